//! Whether a copy is certain to stay inside of the mount, where it can be a clone: see `copying`.
//!
//! Nothing is asked of a filesystem but the one below the pool, and that with the caller's rights. The mount table tells of all
//! others what is needed: the way to a mount point leads through directories only, and through none that is hidden.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use super::caller::Caller;
use super::copying::{self, Copying, Goal};
use super::{HIDDEN, NameTree};
use crate::engine::io::mounts::{self, Entry};
use crate::engine::io::{FileKey, FileKind};

/// All of them are looked at for each that is copied.
const MOST_SOURCES: usize = 256;

/// What is at a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum There {
    Nothing,
    /// A directory, in the pool with its key.
    Directory(Option<FileKey>),
    /// A regular file of the pool.
    File(FileKey),
}

/// Walks as the kernel does for a process, as far as that is certain.
struct Walk<'a> {
    tree: &'a NameTree,
    device: u64,
    mounts: Vec<Entry>,
}

impl NameTree {
    /// Whether it is certain that `asker` copies this file, and into this mount.
    pub(super) fn is_copied_within(&self, id: u64, asker: &Caller) -> bool {
        self.stays(id, asker).unwrap_or(false)
    }

    fn stays(&self, id: u64, asker: &Caller) -> Option<bool> {
        let here = fs::read_link("/proc/self/ns/mnt").ok()?;
        if asker.link("ns/mnt") != here || asker.link("root") != Path::new("/") {
            return None;
        }
        let program = copying::program(&asker.executable())?;
        let line = asker.arguments();
        let copying = copying::parse(program, &line)?;
        let walk = Walk { tree: self, device: *self.device.get()?, mounts: mounts::mounts().ok()? };
        let key = self.table.lock().node(id)?.key;
        let start = asker.link("cwd");
        let held = walk.knows_the_way(&start).then(|| hold_directory(asker, &start)).flatten();
        // Of what the caller could not see nothing is learnt here.
        let stays = asker.act(|| {
            let start = held.filter(|mount| walk.is_really(&start, *mount)).map(|_| start.as_path());
            Ok(walk.stays(&copying, start, key))
        });
        stays.ok()?
    }
}

/// Number of the mount that the working directory of a process is on, if `path` is its path still.
fn hold_directory(asker: &Caller, path: &Path) -> Option<u64> {
    let link = format!("/proc/{}/cwd", asker.pid);
    let directory = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(link).ok()?;
    let fd = directory.as_raw_fd();
    if fs::read_link(format!("/proc/self/fd/{fd}")).ok()? != path {
        return None;
    }
    let about = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    about.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
}

impl Walk<'_> {
    fn stays(&self, copying: &Copying<'_>, start: Option<&Path>, key: FileKey) -> Option<bool> {
        let source = self.only_source(&copying.sources, start, key)?;
        let named = |directory: PathBuf, there: There| {
            let There::Directory(Some(holder)) = there else { return None };
            let path = directory.join(Path::new(source).file_name()?);
            Some((self.there(&path)?, holder))
        };
        let (copy, holder) = match copying.goal {
            Goal::Into(word) => {
                let (path, there) = self.find(word, start)?;
                named(path, there)?
            }
            Goal::To(word) | Goal::As(word) => match self.find(word, start)? {
                (_, There::Directory(_)) if matches!(copying.goal, Goal::As(_)) => return None,
                (path, there @ There::Directory(_)) => named(path, there)?,
                (path, there) if copying.sources.len() == 1 => {
                    let There::Directory(Some(holder)) = self.there(path.parent()?)? else { return None };
                    (there, holder)
                }
                _ => return None,
            },
        };
        // What lies on another filesystem below the pool cannot be a clone.
        let same = holder.dev == key.dev;
        Some(
            same && match copy {
                There::Nothing => true,
                There::File(copy) => copy.dev == key.dev,
                There::Directory(_) => false,
            },
        )
    }

    /// The source that is the file `key`, if no other one can be: which of them is being copied could not be told.
    fn only_source<'b>(&self, sources: &[&'b OsStr], start: Option<&Path>, key: FileKey) -> Option<&'b OsStr> {
        if sources.len() > MOST_SOURCES {
            return None;
        }
        let mut only = None;
        for source in sources {
            let (_, There::File(file)) = self.find(source, start)? else { return None };
            if file == key && only.replace(*source).is_some() {
                return None;
            }
        }
        only
    }

    /// The absolute path that a word of the command line leads to through directories, and what is there.
    fn find(&self, word: &OsStr, start: Option<&Path>) -> Option<(PathBuf, There)> {
        let word_path = Path::new(word);
        let mut path = if word_path.is_absolute() { PathBuf::from("/") } else { start?.to_owned() };
        let mut there = self.there(&path)?;
        for component in word_path.components() {
            let Component::Normal(name) = component else {
                if component == Component::ParentDir {
                    self.is_directory(there)?;
                    path.pop();
                    there = self.there(&path)?;
                }
                continue;
            };
            self.is_directory(there)?;
            path.push(name);
            there = self.there(&path)?;
        }
        // The last name is that of a directory, which `components` does not tell.
        let bytes = word.as_bytes();
        if bytes.ends_with(b"/") || bytes.ends_with(b"/.") {
            self.is_directory(there)?;
        }
        Some((path, there))
    }

    fn is_directory(&self, there: There) -> Option<()> {
        matches!(there, There::Directory(_)).then_some(())
    }

    /// What is at a path whose parent is a directory. `None` if that is not certain.
    fn there(&self, path: &Path) -> Option<There> {
        let mount = mounts::of(&self.mounts, path)?;
        if mount.dev != self.device {
            return self.leads_to_us(path).then_some(There::Directory(None));
        }
        let root = mount.root.strip_prefix("/").ok()?;
        let place = root.join(path.strip_prefix(&mount.mountpoint).ok()?);
        // With nothing joined to it, a path gets a slash at its end.
        let place: PathBuf = place.components().collect();
        if place.starts_with(HIDDEN) {
            return None;
        }
        match self.tree.fs.stat(&place) {
            Ok(stat) => match stat.kind() {
                FileKind::Directory => Some(There::Directory(Some(stat.key))),
                FileKind::File => Some(There::File(stat.key)),
                _ => None,
            },
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Some(There::Nothing),
            Err(_) => None,
        }
    }

    /// Whether a path is on the way to a mount point of this mount that is not hidden.
    fn leads_to_us(&self, path: &Path) -> bool {
        let is_there =
            |entry: &Entry| mounts::of(&self.mounts, &entry.mountpoint).is_some_and(|top| top.id == entry.id);
        let mut ours =
            self.mounts.iter().filter(|entry| entry.dev == self.device && entry.mountpoint.starts_with(path));
        ours.any(is_there)
    }

    /// Whether a path is in this mount or on the way to it.
    fn knows_the_way(&self, path: &Path) -> bool {
        let inside = mounts::of(&self.mounts, path).is_some_and(|mount| mount.dev == self.device);
        inside || self.leads_to_us(path)
    }

    /// Whether a working directory on this mount is what its path leads to.
    fn is_really(&self, path: &Path, mount: u64) -> bool {
        path.is_absolute()
            && !path.as_os_str().as_bytes().ends_with(b" (deleted)")
            && mounts::of(&self.mounts, path).is_some_and(|entry| entry.id == mount)
            && matches!(self.there(path), Some(There::Directory(_)))
    }
}
