//! A file that is held: what was looked at is what is acted on.
//!
//! Whoever can write to a directory of the pool beside the mount can give a name to another file at any moment, also
//! between two calls of ours. So nothing that users can reach is acted on by a path that was checked before. A file is
//! held, looked at, and changed through what is held; names are changed below the directory that is held, one name at a
//! time.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::types::{DirEntry, FileKind, Rename, SetTime, Stat};
use super::{FileRef, Fs};

/// A shared held file.
pub type InodeRef = Arc<dyn Inode>;

/// A file of any kind, held whatever becomes of its names. Holding it opens nothing: no device is touched, no FIFO waits.
///
/// Names are single ones: an empty one, `.`, `..` and one with a slash are `EINVAL`. No call follows a symbolic link.
pub trait Inode: Send + Sync + 'static {
    /// Status.
    fn stat(&self) -> io::Result<Stat>;
    /// Changes permission bits.
    fn chmod(&self, mode: u32) -> io::Result<()>;
    /// Changes owner and group; `None` leaves one as it is.
    fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()>;
    /// Sets access and modification time.
    fn set_times(&self, atime: SetTime, mtime: SetTime) -> io::Result<()>;
    /// Value of an extended attribute.
    fn get_xattr(&self, name: &OsString) -> io::Result<Vec<u8>>;
    /// Sets an extended attribute; `flags` are those of setxattr(2).
    fn set_xattr(&self, name: &OsString, value: &[u8], flags: i32) -> io::Result<()>;
    /// Names of the extended attributes.
    fn list_xattr(&self) -> io::Result<Vec<OsString>>;
    /// Removes an extended attribute.
    fn remove_xattr(&self, name: &OsString) -> io::Result<()>;
    /// Target of a symbolic link.
    fn readlink(&self) -> io::Result<PathBuf>;

    /// Holds what has a name in this directory.
    fn at(&self, name: &OsStr) -> io::Result<InodeRef>;
    /// Status of what has a name in this directory.
    fn stat_at(&self, name: &OsStr) -> io::Result<Stat>;
    /// Names in this directory, without `.` and `..`.
    fn list(&self) -> io::Result<Vec<DirEntry>>;
    /// The same, one entry after the other as they are read, with name, inode number and kind: it needs no memory for all.
    fn visit(&self, each: &mut dyn FnMut(&OsStr, u64, Option<FileKind>)) -> io::Result<()> {
        self.list()?.iter().for_each(|entry| each(&entry.name, entry.ino, entry.kind));
        Ok(())
    }
    /// Makes the names in this directory durable.
    fn sync(&self) -> io::Result<()>;
    /// Makes a regular file, open for reading and writing; fails if the name exists.
    fn create(&self, name: &OsStr, mode: u32) -> io::Result<FileRef>;
    /// Makes a directory.
    fn mkdir(&self, name: &OsStr, mode: u32) -> io::Result<()>;
    /// Makes a special file, a FIFO or a socket.
    fn mknod(&self, name: &OsStr, mode: u32, rdev: u64) -> io::Result<()>;
    /// Makes a symbolic link.
    fn symlink(&self, target: &Path, name: &OsStr) -> io::Result<()>;
    /// Removes a name that is not a directory's.
    fn unlink(&self, name: &OsStr) -> io::Result<()>;
    /// Removes an empty directory.
    fn rmdir(&self, name: &OsStr) -> io::Result<()>;
    /// Renames `name` of this directory to `new` in `to`, a directory of the same [`Fs`].
    fn rename(&self, name: &OsStr, to: &dyn Inode, new: &OsStr, how: Rename) -> io::Result<()>;
    /// Gives `file`, of the same [`Fs`], a name in this directory. Fails if the name exists.
    fn link(&self, file: &dyn Inode, name: &OsStr) -> io::Result<()>;

    /// Whether it may be held for long. One below another mount point may not: it could not be unmounted.
    fn may_be_kept(&self) -> bool {
        true
    }
    /// Descriptor, in a real filesystem.
    fn fd(&self) -> Option<RawFd> {
        None
    }
}

/// Holds the directory that `path` is in; the last name comes with it.
pub fn leaf(fs: &dyn Fs, path: &Path) -> io::Result<(InodeRef, OsString)> {
    let name = path.file_name().ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    Ok((fs.find(path.parent().unwrap_or(Path::new("")))?, name.to_owned()))
}
