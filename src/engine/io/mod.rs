//! The one seam to the system. Everything that touches the backing filesystem goes through [`Fs`] and [`File`], so
//! that a simulated disk or a fault injector can stand in for it.
//!
//! Paths are relative to the pool's root directory (`""` is the root itself), never contain `..`, and are resolved
//! without following a symbolic link anywhere. No call here retries or hides an error; `EINTR` alone is retried.

mod around;
mod buffers;
mod demands;
mod direct;
mod file;
mod host;
mod identity;
mod inode;
pub mod mounts;
mod reserve;
mod ring;
mod sole;
mod sys;
mod tree;
mod turns;
mod types;

use std::ffi::OsString;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use buffers::Buffer;
pub use demands::Demands;
pub use direct::aligned;
pub use host::HostFs;
pub use identity::{
    Powers, acting_as, effective_capabilities, effective_gid, effective_uid, is_root, set_effective_capabilities,
};
pub use inode::{Inode, InodeRef, leaf};
pub use reserve::{Writing, give_up_resources, writes_for};
pub use ring::{Read, Ring};
pub use sys::set_relief;
pub use types::{DirEntry, FileId, FileKey, FileKind, FsInfo, Open, Rename, SetTime, Stat, Timestamp, Whence};

/// A shared open file.
pub type FileRef = Arc<dyn File>;

/// A directory tree of the backing filesystem.
///
/// Durability: a change of names is durable after [`Fs::sync_dir`] of every directory it touched (the filesystem may
/// make it durable earlier, and alone); contents are durable after [`File::sync_data`].
pub trait Fs: Send + Sync + 'static {
    /// Opens a regular file (or creates one, see [`Open`]). Never blocks on a FIFO, never follows a link.
    fn open(&self, path: &Path, how: Open) -> io::Result<FileRef>;
    /// Holds what `path` names, so that what was looked at is what is acted on, see [`Inode`]. Changes of names that
    /// users can reach are made through the [`Inode`] of the directory; the calls with paths are for the pool's own files.
    fn find(&self, path: &Path) -> io::Result<InodeRef>;
    /// Status of what `path` names, a symbolic link itself and not its target.
    fn stat(&self, path: &Path) -> io::Result<Stat>;
    /// Names in a directory, without `.` and `..`.
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>>;
    /// Makes a directory.
    fn mkdir(&self, path: &Path, mode: u32) -> io::Result<()>;
    /// Makes a special file, a FIFO, a socket or an empty regular file.
    fn mknod(&self, path: &Path, mode: u32, rdev: u64) -> io::Result<()>;
    /// Makes a symbolic link.
    fn symlink(&self, target: &Path, path: &Path) -> io::Result<()>;
    /// Target of a symbolic link.
    fn readlink(&self, path: &Path) -> io::Result<PathBuf>;
    /// Removes a name that is not a directory.
    fn unlink(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory.
    fn rmdir(&self, path: &Path) -> io::Result<()>;
    /// Renames, atomically.
    fn rename(&self, from: &Path, to: &Path, how: Rename) -> io::Result<()>;
    /// Gives the file at `from` (not a link's target) one more name. Fails if `to` exists.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes everything on the filesystem durable.
    fn sync_fs(&self) -> io::Result<()>;
    /// Runs both, in any order or at the same time: two syncs that do not wait for each other often cost as much as one.
    /// Here one after the other, so that a simulated disk sees its calls in the same order each time.
    fn both(&self, first: &mut (dyn FnMut() + Send), second: &mut (dyn FnMut() + Send)) {
        first();
        second();
    }
    /// Does `work` for each number below `count`, in any order, up to `at_once` at the same time. Here one after the
    /// other, for the same reason.
    fn each(&self, _at_once: usize, count: usize, work: &(dyn Fn(usize) + Sync)) {
        (0..count).for_each(work);
    }
    /// Changes permission bits. Does not follow links.
    fn chmod(&self, path: &Path, mode: u32) -> io::Result<()>;
    /// Changes owner and group; `None` leaves one as it is. Does not follow links.
    fn chown(&self, path: &Path, uid: Option<u32>, gid: Option<u32>) -> io::Result<()>;
    /// Sets access and modification time. Does not follow links.
    fn set_times(&self, path: &Path, atime: SetTime, mtime: SetTime) -> io::Result<()>;
    /// Value of an extended attribute.
    fn get_xattr(&self, path: &Path, name: &OsString) -> io::Result<Vec<u8>>;
    /// Sets an extended attribute; `flags` are those of setxattr(2).
    fn set_xattr(&self, path: &Path, name: &OsString, value: &[u8], flags: i32) -> io::Result<()>;
    /// Names of the extended attributes.
    fn list_xattr(&self, path: &Path) -> io::Result<Vec<OsString>>;
    /// Removes an extended attribute.
    fn remove_xattr(&self, path: &Path, name: &OsString) -> io::Result<()>;
    /// What kind of filesystem this is and how full it is.
    fn info(&self) -> io::Result<FsInfo>;
    /// Names the present boot of the machine: another one after a power loss, the same after the death of a process.
    fn boot_id(&self) -> String {
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
    }
    /// Names the time for which what was written, synced or not, is there for whoever reads it: this boot and this
    /// mount of the filesystem. `None` where that cannot be told.
    fn instance(&self) -> Option<String>;
    /// What a directory demands of files that are to get a name in it.
    fn demands(&self, _directory: &Path) -> io::Result<Demands> {
        Ok(Demands::default())
    }
    /// Has a directory take files of any project.
    fn take_any_project(&self, _directory: &Path) -> io::Result<()> {
        Ok(())
    }
    /// A file that another process of this mount has opened.
    fn adopt(&self, _file: std::os::fd::OwnedFd) -> io::Result<FileRef> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }
    /// Descriptor of the root directory, where there is one.
    fn root_fd(&self) -> Option<RawFd> {
        None
    }
}

/// An open regular file.
pub trait File: Send + Sync + 'static {
    /// Reads until `buf` is full or the file ends; returns the number of bytes read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `data`, or fails (some of it may then have been written).
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Writes `data` from its beginning until all of it is written or a call fails; with `direct`, past the page cache where
    /// that can be. Returns how many bytes were written, and the failure. As far as the system tells, bytes that are not
    /// counted are what they were.
    fn write_part(&self, data: &[u8], offset: u64, direct: bool) -> (usize, io::Result<()>);
    /// As [`File::read_at`], for somebody who reads the whole file once, in order: the disk reads what comes next
    /// meanwhile, and what others have in the page cache is not driven out by a file that memory has no room for.
    fn read_through(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(buf, offset)
    }
    /// As [`File::read_at`], for what others will read too: what is around it may come into the page cache with it.
    fn read_around(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(buf, offset)
    }
    /// As [`File::read_at`], past the page cache where that can be (O_DIRECT); the same bytes in any case.
    fn read_direct(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(buf, offset)
    }
    /// As [`File::write_at`], past the page cache where that can be. Durable only after a sync, as any write.
    fn write_direct(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(data, offset)
    }
    /// The descriptor through which the ring may read these bytes; with `direct`, past the page cache. `None` if they must be read in the ordinary way.
    fn ring_fd(&self, _direct: bool, _offset: u64, _len: usize) -> Option<Arc<OwnedFd>> {
        None
    }
    /// A read through the ring has failed.
    fn ring_failed(&self, _error: &io::Error) {}
    /// Sets the size; new bytes read as zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes contents and size durable (fdatasync).
    fn sync_data(&self) -> io::Result<()>;
    /// Makes contents and all attributes durable (fsync).
    fn sync_all(&self) -> io::Result<()>;
    /// fallocate(2) with its mode bits.
    fn allocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()>;
    /// Status.
    fn stat(&self) -> io::Result<Stat>;
    /// Next data or hole at or after `offset`, as lseek(2) finds it; `ENXIO` past the end.
    fn seek(&self, offset: u64, whence: Whence) -> io::Result<u64>;
    /// Shares `len` bytes of `source` at `from` with this file at `to` (FICLONERANGE).
    fn share_range(&self, source: &dyn File, from: u64, to: u64, len: u64) -> io::Result<()>;
    /// Gives the open file one more name in `fs`, also when it has none left that is known.
    fn link_to(&self, path: &Path) -> io::Result<()>;
    /// Changes permission bits.
    fn chmod(&self, mode: u32) -> io::Result<()>;
    /// Changes owner and group.
    fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()>;
    /// Sets access and modification time.
    fn set_times(&self, atime: SetTime, mtime: SetTime) -> io::Result<()>;
    /// Value of an extended attribute.
    fn get_xattr(&self, name: &OsString) -> io::Result<Vec<u8>>;
    /// Sets an extended attribute.
    fn set_xattr(&self, name: &OsString, value: &[u8], flags: i32) -> io::Result<()>;
    /// Names of the extended attributes.
    fn list_xattr(&self) -> io::Result<Vec<OsString>>;
    /// Removes an extended attribute.
    fn remove_xattr(&self, name: &OsString) -> io::Result<()>;
    /// The project that what it takes is counted for; 0 also where there are none.
    fn project(&self) -> io::Result<u32> {
        Ok(0)
    }
    /// Moves it, with what it takes, to a project.
    fn set_project(&self, _project: u32) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }
    /// Whether it was opened for writing too.
    fn is_writable(&self) -> bool {
        true
    }
    /// Whether nobody else has the file open or mapped, in this process (once more) or another, through whatever name.
    fn is_sole(&self) -> io::Result<bool> {
        Ok(true)
    }
    /// Descriptor, for calls that the seam does not have; `None` in a simulated store.
    fn fd(&self) -> Option<RawFd> {
        None
    }
}
