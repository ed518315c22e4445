//! The kernel's mount table.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};

/// Type that the kernel shows for a clonefs mount.
pub const FS_TYPE: &str = "fuse.clonefs";

/// What the mount table shows before the path of a pool, such as `clonefs:/srv/images`. A bare path would be looked at by
/// programs that compare all mounts with a device, such as mkfs.btrfs, and they fail if its daemon has died: a pool that
/// is mounted over itself is then no file that can be asked for.
const PREFIX: &[u8] = b"clonefs:";

/// One mounted filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number of the mount, as in the `mnt_id` of /proc/PID/fdinfo.
    pub id: u64,
    /// Number of the mount that it lies on.
    pub parent: u64,
    /// Device number, as in `st_dev` of the files in it.
    pub dev: u64,
    /// What of the filesystem is mounted: `/`, or a directory or file of it.
    pub root: PathBuf,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Its type, such as `ext4` or [`FS_TYPE`].
    pub fs_type: String,
    /// What is mounted, such as `/dev/sda`. See [`Entry::pool`] for that of a clonefs mount.
    pub source: OsString,
}

impl Entry {
    /// The path of the pool that is mounted there, if it is a clonefs mount.
    pub fn pool(&self) -> &Path {
        without_prefix(Path::new(&self.source))
    }
}

/// What the mount table shows for a pool, whose path must be absolute.
pub fn source_of(pool: &Path) -> PathBuf {
    OsString::from_vec([PREFIX, pool.as_os_str().as_bytes()].concat()).into()
}

/// The path of a pool that may be written as the mount table shows it, or as a path.
pub fn without_prefix(pool: &Path) -> &Path {
    match pool.as_os_str().as_bytes().strip_prefix(PREFIX) {
        Some(path) if path.starts_with(b"/") => Path::new(OsStr::from_bytes(path)),
        _ => pool,
    }
}

/// All mounts that this process can see, the topmost of a place last.
pub fn mounts() -> Result<Vec<Entry>> {
    read("/proc/self/mountinfo")
}

/// The same that process `pid` can see.
pub fn mounts_of(pid: u32) -> Result<Vec<Entry>> {
    read(&format!("/proc/{pid}/mountinfo"))
}

fn read(path: &str) -> Result<Vec<Entry>> {
    let text = std::fs::read(path).context("read the mount table", path)?;
    Ok(text.split(|&b| b == b'\n').filter_map(parse_line).collect())
}

/// The topmost mount at exactly `path`, which must be absolute and without symbolic links.
pub fn at(path: &Path) -> Result<Option<Entry>> {
    Ok(mounts()?.into_iter().rev().find(|entry| entry.mountpoint == path))
}

/// The mount among these that a path leads into for a process whose root directory is `/`. The path must be absolute, without
/// symbolic links and without `..`.
pub fn of<'a>(mounts: &'a [Entry], path: &Path) -> Option<&'a Entry> {
    let lies_on = |below: Option<&Entry>, place: &Path| {
        mounts.iter().find(|entry| match below {
            Some(below) => entry.parent == below.id && entry.id != below.id && entry.mountpoint == place,
            None => {
                entry.mountpoint == place
                    && !mounts.iter().any(|other| other.id == entry.parent && other.id != entry.id)
            }
        })
    };
    let mut places: Vec<&Path> = path.ancestors().collect();
    let mut here = lies_on(None, places.pop()?)?;
    places.push(Path::new("/"));
    for place in places.into_iter().rev() {
        // Several can lie on one another. No chain is longer than the table.
        for _ in 0..mounts.len() {
            let Some(above) = lies_on(Some(here), place) else { break };
            here = above;
        }
    }
    Some(here)
}

/// Reads `36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/sda rw`, see proc_pid_mountinfo(5).
fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|&b| b == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let parent = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let numbers = std::str::from_utf8(fields.next()?).ok()?;
    let (major, minor) = numbers.split_once(':')?;
    let root = unescape(fields.next()?);
    let mountpoint = unescape(fields.next()?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    Some(Entry {
        id,
        parent,
        dev: libc::makedev(major.parse().ok()?, minor.parse().ok()?),
        root: root.into(),
        mountpoint: mountpoint.into(),
        fs_type: String::from_utf8(rest.next()?.to_vec()).ok()?,
        source: unescape(rest.next()?),
    })
}

/// Undoes the kernel's `\040` for blanks, tabs, newlines and backslashes.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\').then(|| tail.get(..3)).flatten().and_then(octal);
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

/// An absolute path without symbolic links, also for a mount point whose daemon is dead: only the directory that holds
/// it is looked at.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    let full = std::path::absolute(path).context("find the path of", path)?;
    match (full.parent(), full.file_name()) {
        (Some(parent), Some(name)) if !full.as_os_str().as_bytes().ends_with(b"/..") => {
            let parent = parent.canonicalize().context("find the path of", path)?;
            let joined = parent.join(name);
            // A symbolic link to the mount point names the mount point; a dead mount fails here and is none.
            match std::fs::symlink_metadata(&joined) {
                Ok(meta) if meta.is_symlink() => joined.canonicalize().context("find the path of", path),
                _ => Ok(joined),
            }
        }
        _ => full.canonicalize().context("find the path of", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_mount_table_is_read() {
        let line = br"36 35 0:98 / /mnt/a\040b rw,noatime shared:1 master:2 - fuse.clonefs /pool\134x rw,user_id=0";
        let entry = parse_line(line).unwrap();
        assert_eq!(entry.mountpoint, Path::new("/mnt/a b"));
        assert_eq!((entry.fs_type.as_str(), entry.source.as_bytes()), (FS_TYPE, br"/pool\x".as_slice()));
        assert_eq!((entry.id, entry.parent, entry.dev, entry.root.as_path()), (36, 35, 98, Path::new("/")));
        assert_eq!(parse_line(b""), None);
    }

    #[test]
    fn a_pool_is_known_by_its_path_and_by_what_the_mount_table_shows() {
        let entry = |source: &str| Entry {
            id: 1,
            parent: 0,
            dev: 1,
            root: "/".into(),
            mountpoint: "/mnt".into(),
            fs_type: FS_TYPE.to_owned(),
            source: source.into(),
        };
        assert_eq!(source_of(Path::new("/a b")), Path::new("clonefs:/a b"));
        assert_eq!(entry("clonefs:/a b").pool(), Path::new("/a b"));
        assert_eq!(entry("/a b").pool(), Path::new("/a b"));
        // A directory may have such a name.
        assert_eq!(without_prefix(Path::new("clonefs:pool")), Path::new("clonefs:pool"));
        assert_eq!(without_prefix(Path::new("./clonefs:/pool")), Path::new("./clonefs:/pool"));
    }

    #[test]
    fn a_path_leads_into_what_is_mounted_last_and_not_into_what_that_hides() {
        let lines: [&[u8]; 7] = [
            b"20 1 8:1 / / rw - ext4 /dev/sda rw",
            b"21 20 8:2 / /a rw - ext4 /dev/sdb rw",
            b"22 21 8:3 / /a/b rw - ext4 /dev/sdc rw",
            // Over /a: what is mounted at /a/b is hidden.
            b"23 21 8:4 / /a rw - ext4 /dev/sdd rw",
            b"24 20 8:5 / /c rw - ext4 /dev/sde rw",
            b"25 24 8:6 / /c/d rw - ext4 /dev/sdf rw",
            b"26 25 8:7 / /c/d rw - ext4 /dev/sdg rw",
        ];
        let mounts: Vec<Entry> = lines.iter().map(|line| parse_line(line).unwrap()).collect();
        let leads = |path: &str| of(&mounts, Path::new(path)).unwrap().id;
        let paths = ["/", "/x/y", "/a", "/a/b/x", "/ab", "/c", "/c/x", "/c/d", "/c/d/x"];
        assert_eq!(paths.map(leads), [20, 20, 23, 23, 20, 24, 24, 26, 26]);
        assert!(of(&[], Path::new("/")).is_none());
    }

    #[test]
    fn every_mount_is_found() {
        assert!(mounts().unwrap().iter().any(|entry| entry.mountpoint == Path::new("/proc")));
    }
}
