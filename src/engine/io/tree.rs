//! A directory tree of the host, and what is held of it by `O_PATH` descriptors.

use std::collections::HashMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::FileRef;
use super::file::HostFile;
use super::host::read_directory;
use super::inode::{Inode, InodeRef};
use super::reserve::Reserve;
use super::sys::{
    c_name, fstat, grow_buffer, lstat_at, open_beneath, open_same_mount, proc_path, retry, split_names, timespec,
};
use super::turns::Turns;
use super::types::{DirEntry, FileKind, Rename, SetTime, Stat};

/// Longest piece of a path handed to the kernel at once; `PATH_MAX` is 4096.
const PIECE: usize = 3800;

/// A directory tree, reached through the descriptor of its root.
pub struct Tree {
    pub root: OwnedFd,
    /// Descriptors of directories that are never renamed (those of `.clonefs`), to save a walk for each call.
    fixed: Mutex<HashMap<PathBuf, Arc<OwnedFd>>>,
    /// What is left of it for everybody.
    pub reserve: Reserve,
    /// When syncs of it begin.
    pub turns: Turns,
    /// Whether reading files, and reading directories, is to leave their access times as they are.
    quiet: OnceLock<(bool, bool)>,
}

/// What is opened, for the question whether reading is to leave a trace.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Quiet {
    Files,
    Directories,
}

impl Tree {
    /// The tree below `root`.
    pub fn new(root: OwnedFd) -> Tree {
        const BTRFS: u64 = 0x9123_683e;
        let gathers = rustix::fs::fstatfs(&root).is_ok_and(|st| st.f_type as u64 == BTRFS);
        let turns = Turns::new(gathers);
        Tree { root, fixed: Mutex::new(HashMap::new()), reserve: Reserve::default(), turns, quiet: OnceLock::new() }
    }

    /// Reading leaves no trace in the access times of files, or of directories, from now on.
    pub fn leave_no_trace(&self, files: bool, directories: bool) {
        let _ = self.quiet.set((files, directories));
    }

    /// Opens with `O_NOATIME` if that is wanted, and without it where the kernel does not grant it: another user's file.
    pub fn quietly(&self, what: Quiet, open: impl Fn(i32) -> io::Result<OwnedFd>) -> io::Result<OwnedFd> {
        let (files, directories) = self.quiet.get().copied().unwrap_or_default();
        let wanted = if what == Quiet::Files { files } else { directories };
        if !wanted {
            return open(0);
        }
        match open(libc::O_NOATIME) {
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => open(0),
            other => other,
        }
    }

    /// Opens `path` with `flags`, in pieces when it is longer than the kernel takes.
    pub fn walk(&self, path: &Path, flags: i32) -> io::Result<OwnedFd> {
        let (here, rest) = self.near(path)?;
        let dir = here.as_ref().map_or(self.root.as_fd(), |fd| fd.as_fd());
        open_beneath(dir, OsStr::from_bytes(rest), flags, 0)
    }

    /// The directory from which the rest of the path is short enough, and that rest.
    fn near<'a>(&self, path: &'a Path) -> io::Result<(Option<OwnedFd>, &'a [u8])> {
        let mut rest = path.as_os_str().as_bytes();
        let mut here: Option<OwnedFd> = None;
        while rest.len() > PIECE {
            let cut = rest[..PIECE]
                .iter()
                .rposition(|&b| b == b'/')
                .ok_or_else(|| io::Error::from_raw_os_error(libc::ENAMETOOLONG))?;
            let dir = here.as_ref().map_or(self.root.as_fd(), |fd| fd.as_fd());
            here = Some(open_beneath(dir, OsStr::from_bytes(&rest[..cut]), libc::O_PATH | libc::O_DIRECTORY, 0)?);
            rest = &rest[cut + 1..];
        }
        Ok((here, rest))
    }

    /// Holds what `path` leads to.
    pub fn find(self: &Arc<Self>, path: &Path) -> io::Result<HostInode> {
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        let (here, rest) = self.near(path)?;
        let dir = here.as_ref().map_or(self.root.as_fd(), |fd| fd.as_fd());
        match open_same_mount(dir, OsStr::from_bytes(rest), flags) {
            Ok(fd) => Ok(HostInode { fd, tree: self.clone(), same_mount: here.is_none() }),
            Err(error) if error.raw_os_error() == Some(libc::EXDEV) => {
                let fd = open_beneath(dir, OsStr::from_bytes(rest), flags, 0)?;
                Ok(HostInode { fd, tree: self.clone(), same_mount: false })
            }
            Err(error) => Err(error),
        }
    }

    /// Descriptor of the directory that holds `path`, and the last component.
    pub fn parent(&self, path: &Path) -> io::Result<(Directory<'_>, CString)> {
        let name = match path.components().next_back() {
            Some(Component::Normal(name)) => c_name(name)?,
            None => return Ok((Directory::Root(self.root.as_fd()), c"".to_owned())),
            Some(_) => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        if parent.as_os_str().is_empty() {
            return Ok((Directory::Root(self.root.as_fd()), name));
        }
        let fixed = parent.starts_with(".clonefs");
        if fixed && let Some(fd) = self.fixed.lock().get(parent) {
            return Ok((Directory::Below(fd.clone()), name));
        }
        let fd = Arc::new(self.walk(parent, libc::O_PATH | libc::O_DIRECTORY)?);
        if fixed {
            self.fixed.lock().insert(parent.to_path_buf(), fd.clone());
        }
        Ok((Directory::Below(fd), name))
    }
}

/// A directory that was found on the way to a name.
pub enum Directory<'a> {
    Root(BorrowedFd<'a>),
    Below(Arc<OwnedFd>),
}

impl AsFd for Directory<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Directory::Root(fd) => *fd,
            Directory::Below(fd) => fd.as_fd(),
        }
    }
}

impl AsRawFd for Directory<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// A held file, by an `O_PATH` descriptor.
pub struct HostInode {
    fd: OwnedFd,
    tree: Arc<Tree>,
    /// No mount point lies between the root and this.
    same_mount: bool,
}

/// A single name, as C wants it.
fn single(name: &OsStr) -> io::Result<CString> {
    match name.as_bytes() {
        b"" | b"." | b".." => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        bytes if bytes.contains(&b'/') => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        _ => c_name(name),
    }
}

impl HostInode {
    fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// The directory itself, to be read or synced.
    fn open_directory(&self) -> io::Result<OwnedFd> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let open = |quiet| open_beneath(self.fd.as_fd(), OsStr::new(""), flags | quiet, 0);
        self.tree.quietly(Quiet::Directories, open)
    }
}

/// The flags of renameat2(2).
pub fn rename_flags(how: Rename) -> u32 {
    match how {
        Rename::Replace => 0,
        Rename::NoReplace => libc::RENAME_NOREPLACE,
        Rename::Exchange => libc::RENAME_EXCHANGE,
        Rename::Whiteout => libc::RENAME_WHITEOUT,
    }
}

fn foreign() -> io::Error {
    io::Error::from_raw_os_error(libc::EXDEV)
}

impl Inode for HostInode {
    fn stat(&self) -> io::Result<Stat> {
        fstat(self.raw())
    }

    fn chmod(&self, mode: u32) -> io::Result<()> {
        // SAFETY: the descriptor is open, the path is an empty string.
        let result = retry(|| unsafe {
            libc::syscall(libc::SYS_fchmodat2, self.raw(), c"".as_ptr(), mode, libc::AT_EMPTY_PATH)
        });
        match result {
            // Before 6.6. Of a symbolic link, this is the link.
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                let path = proc_path(self.raw());
                // SAFETY: path is NUL-terminated.
                retry(|| unsafe { libc::chmod(path.as_ptr(), mode) }).map(drop)
            }
            other => other.map(drop),
        }
    }

    fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let (uid, gid) = (uid.unwrap_or(u32::MAX), gid.unwrap_or(u32::MAX));
        // SAFETY: the descriptor is open, the path is an empty string.
        retry(|| unsafe { libc::fchownat(self.raw(), c"".as_ptr(), uid, gid, libc::AT_EMPTY_PATH) }).map(drop)
    }

    fn set_times(&self, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        let times = [timespec(atime), timespec(mtime)];
        // SAFETY: the descriptor is open, the path is an empty string, times are two timespecs.
        let result =
            retry(|| unsafe { libc::utimensat(self.raw(), c"".as_ptr(), times.as_ptr(), libc::AT_EMPTY_PATH) });
        match result {
            // Before 5.8 this flag is not known here.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let path = proc_path(self.raw());
                // SAFETY: path is NUL-terminated, times are two timespecs.
                retry(|| unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), 0) }).map(drop)
            }
            other => other.map(drop),
        }
    }

    // The calls that take a descriptor refuse one that is O_PATH, also those of 6.13 with an empty path.

    fn get_xattr(&self, name: &OsString) -> io::Result<Vec<u8>> {
        let (path, name) = (proc_path(self.raw()), c_name(name)?);
        // SAFETY: both strings are NUL-terminated; buffer and length come as a pair.
        grow_buffer(|buf, len| unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buf, len) })
    }

    fn set_xattr(&self, name: &OsString, value: &[u8], flags: i32) -> io::Result<()> {
        let (path, name) = (proc_path(self.raw()), c_name(name)?);
        let (data, len) = (value.as_ptr().cast(), value.len());
        // SAFETY: both strings are NUL-terminated; data and len describe `value`.
        retry(|| unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), data, len, flags) }).map(drop)
    }

    fn list_xattr(&self) -> io::Result<Vec<OsString>> {
        let path = proc_path(self.raw());
        // SAFETY: path is NUL-terminated; buffer and length come as a pair.
        grow_buffer(|buf, len| unsafe { libc::listxattr(path.as_ptr(), buf.cast(), len) }).map(|l| split_names(&l))
    }

    fn remove_xattr(&self, name: &OsString) -> io::Result<()> {
        let (path, name) = (proc_path(self.raw()), c_name(name)?);
        // SAFETY: both strings are NUL-terminated.
        retry(|| unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }).map(drop)
    }

    fn readlink(&self) -> io::Result<PathBuf> {
        let mut target = vec![0u8; 4096];
        // SAFETY: target has the length passed; the path is an empty string.
        let len =
            retry(|| unsafe { libc::readlinkat(self.raw(), c"".as_ptr(), target.as_mut_ptr().cast(), target.len()) })?;
        target.truncate(len as usize);
        Ok(PathBuf::from(OsString::from_vec(target)))
    }

    fn at(&self, name: &OsStr) -> io::Result<InodeRef> {
        single(name)?;
        let fd = open_beneath(self.fd.as_fd(), name, libc::O_PATH | libc::O_NOFOLLOW, 0)?;
        Ok(Arc::new(HostInode { fd, tree: self.tree.clone(), same_mount: false }))
    }

    fn stat_at(&self, name: &OsStr) -> io::Result<Stat> {
        lstat_at(self.fd.as_fd(), &single(name)?)
    }

    fn list(&self) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        self.visit(&mut |name, ino, kind| entries.push(DirEntry { name: name.to_owned(), ino, kind }))?;
        Ok(entries)
    }

    fn visit(&self, each: &mut dyn FnMut(&OsStr, u64, Option<FileKind>)) -> io::Result<()> {
        read_directory(self.open_directory()?, each)
    }

    fn sync(&self) -> io::Result<()> {
        let fd = self.open_directory()?;
        // SAFETY: fd is open.
        self.tree.turns.take(|| retry(|| unsafe { libc::fsync(fd.as_raw_fd()) }).map(drop))
    }

    fn create(&self, name: &OsStr, mode: u32) -> io::Result<FileRef> {
        single(name)?;
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
        let open = |quiet| open_beneath(self.fd.as_fd(), name, flags | quiet, mode & 0o7777);
        let fd = self.tree.quietly(Quiet::Files, open)?;
        Ok(Arc::new(HostFile::new(fd, self.tree.clone())))
    }

    fn mkdir(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        let name = single(name)?;
        // SAFETY: name is NUL-terminated; the directory is open.
        retry(|| unsafe { libc::mkdirat(self.raw(), name.as_ptr(), mode) }).map(drop)
    }

    fn mknod(&self, name: &OsStr, mode: u32, rdev: u64) -> io::Result<()> {
        let name = single(name)?;
        // SAFETY: name is NUL-terminated; the directory is open.
        retry(|| unsafe { libc::mknodat(self.raw(), name.as_ptr(), mode, rdev) }).map(drop)
    }

    fn symlink(&self, target: &Path, name: &OsStr) -> io::Result<()> {
        let (target, name) = (c_name(target.as_os_str())?, single(name)?);
        // SAFETY: both strings are NUL-terminated; the directory is open.
        retry(|| unsafe { libc::symlinkat(target.as_ptr(), self.raw(), name.as_ptr()) }).map(drop)
    }

    fn unlink(&self, name: &OsStr) -> io::Result<()> {
        let name = single(name)?;
        // SAFETY: name is NUL-terminated; the directory is open.
        retry(|| unsafe { libc::unlinkat(self.raw(), name.as_ptr(), 0) }).map(drop)
    }

    fn rmdir(&self, name: &OsStr) -> io::Result<()> {
        let name = single(name)?;
        // SAFETY: name is NUL-terminated; the directory is open.
        retry(|| unsafe { libc::unlinkat(self.raw(), name.as_ptr(), libc::AT_REMOVEDIR) }).map(drop)
    }

    fn rename(&self, name: &OsStr, to: &dyn Inode, new: &OsStr, how: Rename) -> io::Result<()> {
        let (name, new, to) = (single(name)?, single(new)?, to.fd().ok_or_else(foreign)?);
        let flags = rename_flags(how);
        // SAFETY: both names are NUL-terminated; both directories are open.
        retry(|| unsafe { libc::renameat2(self.raw(), name.as_ptr(), to, new.as_ptr(), flags) }).map(drop)
    }

    fn link(&self, file: &dyn Inode, name: &OsStr) -> io::Result<()> {
        let (file, name) = (file.fd().ok_or_else(foreign)?, single(name)?);
        link_descriptor(file, self.raw(), &name)
    }

    fn may_be_kept(&self) -> bool {
        self.same_mount
    }

    fn fd(&self) -> Option<RawFd> {
        Some(self.raw())
    }
}

/// Gives the file that a descriptor is of one more name.
pub fn link_descriptor(file: RawFd, dir: RawFd, name: &CString) -> io::Result<()> {
    // SAFETY: both strings are NUL-terminated, both descriptors are open.
    let result = retry(|| unsafe { libc::linkat(file, c"".as_ptr(), dir, name.as_ptr(), libc::AT_EMPTY_PATH) });
    match result {
        // Only root may do so; the way through /proc is open to all.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            let from = proc_path(file);
            let flags = libc::AT_SYMLINK_FOLLOW;
            // SAFETY: both strings are NUL-terminated; the directory is open.
            retry(|| unsafe { libc::linkat(libc::AT_FDCWD, from.as_ptr(), dir, name.as_ptr(), flags) }).map(drop)
        }
        other => other.map(drop),
    }
}
