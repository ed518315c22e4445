//! Where something new is to stand, and the draft of it: a name that is removed again unless it is published.

use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::mounts::mount_of;
use super::{doors, xattr};
use crate::error::{Error, Kind, Result};

/// Longest name of a file in bytes.
const NAME_MAX: usize = 255;

/// An open directory, as a rule of a mounted pool. Names are used relative to it, so that renaming a directory above it meanwhile
/// does not lead elsewhere.
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
    device: u64,
    /// It gives an ACL to what is created in it, which a clone must not keep.
    gives_acl: bool,
}

impl Directory {
    /// Opens a directory that must lie on a clonefs mount.
    pub fn open(path: &Path) -> Result<Rc<Directory>> {
        let directory = Self::open_anywhere(path)?;
        if mount_of(&directory.fd)?.is_none() {
            let shown = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            return Err(doors::not_here("clone into", shown));
        }
        Ok(directory)
    }

    /// Opens a directory wherever it lies.
    pub fn open_anywhere(path: &Path) -> Result<Rc<Directory>> {
        let shown = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(shown, flags, Mode::empty()).map_err(|e| match e {
            Errno::NOENT => doors::failed("open directory", shown, e).remedy("make it first: mkdir -p"),
            e => doors::failed("open directory", shown, e),
        })?;
        let stat = rustix::fs::fstat(&fd).map_err(|e| doors::failed("look at", shown, e))?;
        let through = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let gives_acl = xattr::get(&through, "system.posix_acl_default").is_ok();
        Ok(Rc::new(Directory { fd, path: path.to_path_buf(), device: stat.st_dev, gives_acl }))
    }

    /// Its path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device number of the mounted filesystem: one for each mounted pool.
    pub fn device(&self) -> u64 {
        self.device
    }

    /// Whether files created in it start with an ACL of its own.
    pub fn gives_acl(&self) -> bool {
        self.gives_acl
    }

    /// Makes its names durable, as far as the caller may open it. A clone's name is durable without: fsync of the file
    /// does that on a clonefs mount.
    fn sync(&self) -> rustix::io::Result<()> {
        match rustix::fs::openat(&self.fd, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => rustix::fs::fsync(fd),
            Err(Errno::ACCESS) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A name to be made.
#[derive(Clone)]
pub struct Target {
    /// Directory it will stand in.
    pub dir: Rc<Directory>,
    /// Its name there.
    pub name: OsString,
    /// Replace what has the name, if that is not a directory.
    pub replace: bool,
}

impl Target {
    /// Path as it would be given to other programs.
    pub fn path(&self) -> PathBuf {
        self.dir.path.join(&self.name)
    }

    /// Fails early where making the target is bound to fail: a name that is too long or taken. The calls that make it
    /// check again.
    pub fn check(&self) -> Result<()> {
        let path = self.path();
        if self.name.len() > NAME_MAX {
            let cause = format!("the name has {} bytes, a name can have {NAME_MAX}", self.name.len());
            return Err(Error::new(Kind::TooLarge, "create").at(path).because(cause).remedy("choose a shorter name"));
        }
        match rustix::fs::statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(doors::failed("create", &path, e)),
            Ok(stat) if stat.st_mode & libc::S_IFMT == libc::S_IFDIR => {
                Err(exists(&path).remedy("it is a directory: add a slash to clone into it, or choose another name"))
            }
            Ok(_) if self.replace => Ok(()),
            Ok(_) => Err(exists(&path).remedy("use --force to replace it, or choose another name")),
        }
    }
}

fn exists(path: &Path) -> Error {
    Error::new(Kind::Exists, "create").at(path)
}

/// A new file or directory that is removed when this value is dropped, unless it was published.
pub struct Draft {
    target: Target,
    /// Name it has now: a hidden one, or already the target's.
    name: OsString,
    /// Inode, so that nothing else is removed by mistake.
    inode: u64,
    directory: bool,
    published: bool,
}

/// What to make as a draft.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// A file that has its final name from the beginning.
    FileInPlace,
    /// A file with a hidden name until it is published.
    FileHidden,
    /// A directory with a hidden name until it is published.
    DirectoryHidden,
}

impl Draft {
    /// Creates an empty file or directory that only the caller can open (mode 0600 or 0700), and opens it.
    pub fn create(target: &Target, make: Make) -> Result<(Draft, OwnedFd)> {
        target.check()?;
        for _ in 0..1000 {
            let name = match make {
                Make::FileInPlace => target.name.clone(),
                _ => hidden_name(&target.name),
            };
            match Self::open_new(target, &name, make) {
                Ok(fd) => {
                    let directory = make == Make::DirectoryHidden;
                    let mut draft = Draft { target: target.clone(), name, inode: 0, directory, published: false };
                    draft.inode =
                        rustix::fs::fstat(&fd).map_err(|e| doors::failed("create", &target.path(), e))?.st_ino;
                    return Ok((draft, fd));
                }
                Err(Errno::EXIST) if make != Make::FileInPlace => {}
                Err(e) => return Err(doors::failed("create", &target.path(), e)),
            }
        }
        Err(Error::new(Kind::Busy, "find a free name for").at(target.path()))
    }

    fn open_new(target: &Target, name: &OsStr, make: Make) -> rustix::io::Result<OwnedFd> {
        if make == Make::DirectoryHidden {
            rustix::fs::mkdirat(&target.dir, name, Mode::RWXU)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            return rustix::fs::openat(&target.dir, name, flags, Mode::empty());
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&target.dir, name, flags, Mode::RUSR | Mode::WUSR)
    }

    /// Final path.
    pub fn path(&self) -> PathBuf {
        self.target.path()
    }

    /// Gives it its final name, in one step, and keeps it. With `sync`, the name is durable after that.
    pub fn publish(mut self, sync: bool) -> Result<PathBuf> {
        let dir = &self.target.dir;
        let path = self.target.path();
        if self.name != self.target.name {
            let flags = if self.target.replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
            rustix::fs::renameat_with(dir, &self.name, dir, &self.target.name, flags)
                .map_err(|e| doors::failed("create", &path, e))?;
        }
        self.published = true;
        if sync {
            dir.sync().map_err(|e| doors::failed("make durable", dir.path(), e))?;
        }
        Ok(path)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        let dir = &self.target.dir;
        let ours = rustix::fs::statat(dir, &self.name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|s| s.st_ino == self.inode);
        if !ours {
            return;
        }
        // Best effort: the error that led here is the one to report.
        if self.directory {
            let through = PathBuf::from(format!("/proc/self/fd/{}", dir.fd.as_raw_fd()));
            let _ = std::fs::remove_dir_all(through.join(&self.name));
        } else {
            let _ = rustix::fs::unlinkat(dir, &self.name, AtFlags::empty());
        }
    }
}

/// A hidden name that says where it comes from, cut so that it fits.
fn hidden_name(name: &OsStr) -> OsString {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    const ENDING: usize = ".clonefs-".len() + 6;
    let bits = RandomState::new().hash_one(std::process::id());
    let kept = name.len().min(NAME_MAX - ENDING - 1);
    let mut hidden = vec![b'.'];
    hidden.extend_from_slice(&name.as_bytes()[..kept]);
    hidden.extend_from_slice(b".clonefs-");
    hidden.extend((0..6).map(|i| LETTERS[(bits >> (5 * i)) as usize & 31]));
    OsString::from_vec(hidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_names_differ_and_fit() {
        let long = OsString::from("x".repeat(255));
        assert_eq!(hidden_name(&long).len(), 255);
        let (a, b) = (hidden_name(OsStr::new("vm.img")), hidden_name(OsStr::new("vm.img")));
        assert_ne!(a, b);
        assert!(a.as_bytes().starts_with(b".vm.img.clonefs-"));
        assert_eq!(a.len(), ".vm.img.clonefs-".len() + 6);
    }

    #[test]
    fn a_directory_outside_any_pool_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = Directory::open(dir.path()).err().expect("refused").to_string();
        assert!(error.contains("not on a mounted pool") && error.contains("clonefs mount"), "{error}");
        let error = Directory::open(&dir.path().join("none")).err().expect("refused").to_string();
        assert!(error.contains("mkdir -p"), "{error}");
    }
}
