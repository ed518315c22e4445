//! The real backing filesystem: [`Fs`] and [`File`] over system calls.

use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::demands::{self, Demands};
use super::file::HostFile;
use super::inode::{Inode, InodeRef};
use super::sys::{c_name, lstat_at, open_beneath, retry};
use super::tree::{HostInode, Quiet, Tree, rename_flags};
use super::types::{DirEntry, FileKind, FsInfo, Open, Rename, SetTime, Stat};
use super::{File, FileRef, Fs};

/// A directory tree on this machine, reached through the descriptor of its root: a mount laid over the directory
/// afterwards does not hide it.
pub struct HostFs {
    tree: Arc<Tree>,
}

impl HostFs {
    /// The tree below `root`, a descriptor of a directory (not `O_PATH`).
    pub fn new(root: OwnedFd) -> HostFs {
        HostFs { tree: Arc::new(Tree::new(root)) }
    }

    /// Reading files, or directories, does not change their access times from now on, as far as this process may have it
    /// so: the kernel grants it for its own files, and for all to root.
    pub fn without_access_times(self, files: bool, directories: bool) -> HostFs {
        self.tree.leave_no_trace(files, directories);
        self
    }

    /// The tree below the directory at `path`.
    pub fn open_dir(path: &Path) -> io::Result<HostFs> {
        let name = c_name(path.as_os_str())?;
        // SAFETY: name is NUL-terminated.
        let fd = retry(|| unsafe { libc::open(name.as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) })?;
        // SAFETY: the descriptor was just opened and is owned by nobody else.
        Ok(HostFs::new(unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) }))
    }

    fn held(&self, path: &Path) -> io::Result<HostInode> {
        self.tree.find(path)
    }
}

impl Fs for HostFs {
    fn find(&self, path: &Path) -> io::Result<InodeRef> {
        Ok(Arc::new(self.held(path)?))
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<FileRef> {
        let (dir, name) = self.tree.parent(path)?;
        let common = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let (flags, mode) = match how {
            Open::Read => (common | libc::O_RDONLY, 0),
            Open::Write => (common | libc::O_RDWR, 0),
            Open::CreateNew(mode) => (common | libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, mode & 0o7777),
        };
        let name = OsStr::from_bytes(name.to_bytes());
        let fd = self.tree.quietly(Quiet::Files, |quiet| open_beneath(dir.as_fd(), name, flags | quiet, mode))?;
        let file = HostFile::new(fd, self.tree.clone());
        // A FIFO or a device swapped in for a file must not be read as one.
        if file.stat()?.kind() != FileKind::File {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Ok(Arc::new(file))
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let (dir, name) = self.tree.parent(path)?;
        lstat_at(dir.as_fd(), &name)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let fd = self.tree.quietly(Quiet::Directories, |quiet| self.tree.walk(path, flags | quiet))?;
        let mut entries = Vec::new();
        read_directory(fd, &mut |name, ino, kind| entries.push(DirEntry { name: name.to_owned(), ino, kind }))?;
        Ok(entries)
    }

    fn mkdir(&self, path: &Path, mode: u32) -> io::Result<()> {
        let (dir, name) = self.tree.parent(path)?;
        // SAFETY: name is NUL-terminated; dir is open.
        retry(|| unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
    }

    fn mknod(&self, path: &Path, mode: u32, rdev: u64) -> io::Result<()> {
        let (dir, name) = self.tree.parent(path)?;
        // SAFETY: name is NUL-terminated; dir is open.
        retry(|| unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, rdev) }).map(drop)
    }

    fn symlink(&self, target: &Path, path: &Path) -> io::Result<()> {
        let (dir, name) = self.tree.parent(path)?;
        let target = c_name(target.as_os_str())?;
        // SAFETY: both strings are NUL-terminated; dir is open.
        retry(|| unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }).map(drop)
    }

    fn readlink(&self, path: &Path) -> io::Result<PathBuf> {
        self.held(path)?.readlink()
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.tree.parent(path)?;
        // SAFETY: name is NUL-terminated; dir is open.
        retry(|| unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), 0) }).map(drop)
    }

    fn rmdir(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.tree.parent(path)?;
        // SAFETY: name is NUL-terminated; dir is open.
        retry(|| unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), libc::AT_REMOVEDIR) }).map(drop)
    }

    fn rename(&self, from: &Path, to: &Path, how: Rename) -> io::Result<()> {
        let (from_dir, from_name) = self.tree.parent(from)?;
        let (to_dir, to_name) = self.tree.parent(to)?;
        let flags = rename_flags(how);
        let (from_fd, to_fd) = (from_dir.as_raw_fd(), to_dir.as_raw_fd());
        // SAFETY: both names are NUL-terminated; both directories are open.
        retry(|| unsafe { libc::renameat2(from_fd, from_name.as_ptr(), to_fd, to_name.as_ptr(), flags) }).map(drop)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_dir, from_name) = self.tree.parent(from)?;
        let (to_dir, to_name) = self.tree.parent(to)?;
        let (from_fd, to_fd) = (from_dir.as_raw_fd(), to_dir.as_raw_fd());
        // SAFETY: both names are NUL-terminated; both directories are open.
        retry(|| unsafe { libc::linkat(from_fd, from_name.as_ptr(), to_fd, to_name.as_ptr(), 0) }).map(drop)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let fd = self.tree.walk(path, libc::O_RDONLY | libc::O_DIRECTORY)?;
        // SAFETY: fd is open.
        self.tree.turns.take(|| retry(|| unsafe { libc::fsync(fd.as_raw_fd()) }).map(drop))
    }

    fn sync_fs(&self) -> io::Result<()> {
        // SAFETY: the descriptor is open.
        retry(|| unsafe { libc::syncfs(self.tree.root.as_raw_fd()) }).map(drop)
    }

    fn instance(&self) -> Option<String> {
        // Kernels before 6.8 have only identities of mounts that are used again.
        const MNT_ID_UNIQUE: u32 = 0x4000;
        let mask = rustix::fs::StatxFlags::from_bits_retain(MNT_ID_UNIQUE);
        let st = rustix::fs::statx(&self.tree.root, "", rustix::fs::AtFlags::EMPTY_PATH, mask).ok()?;
        let boot = self.boot_id();
        (st.stx_mask & MNT_ID_UNIQUE != 0 && !boot.is_empty()).then(|| format!("{boot} {}", st.stx_mnt_id))
    }

    fn both(&self, first: &mut (dyn FnMut() + Send), second: &mut (dyn FnMut() + Send)) {
        // The second one is run here where no thread can be had.
        let waiting = Mutex::new(Some(second));
        let run = || {
            let second = waiting.lock().take();
            if let Some(second) = second {
                second();
            }
        };
        std::thread::scope(|scope| {
            let beside = std::thread::Builder::new().name("both".to_owned()).spawn_scoped(scope, run);
            first();
            if beside.is_err() {
                run();
            }
        });
    }

    fn each(&self, at_once: usize, count: usize, work: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        let run = || {
            while let Some(index) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|index| *index < count) {
                work(index);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..count.min(at_once) {
                // Without it this thread does more of them.
                drop(std::thread::Builder::new().name("each".to_owned()).spawn_scoped(scope, run));
            }
            run();
        });
    }

    fn chmod(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.held(path)?.chmod(mode)
    }

    fn chown(&self, path: &Path, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        self.held(path)?.chown(uid, gid)
    }

    fn set_times(&self, path: &Path, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        self.held(path)?.set_times(atime, mtime)
    }

    fn get_xattr(&self, path: &Path, name: &OsString) -> io::Result<Vec<u8>> {
        self.held(path)?.get_xattr(name)
    }

    fn set_xattr(&self, path: &Path, name: &OsString, value: &[u8], flags: i32) -> io::Result<()> {
        self.held(path)?.set_xattr(name, value, flags)
    }

    fn list_xattr(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.held(path)?.list_xattr()
    }

    fn remove_xattr(&self, path: &Path, name: &OsString) -> io::Result<()> {
        self.held(path)?.remove_xattr(name)
    }

    fn info(&self) -> io::Result<FsInfo> {
        let mut st = MaybeUninit::<libc::statfs>::uninit();
        // SAFETY: st has room for a statfs; it is read only after the call succeeded.
        retry(|| unsafe { libc::fstatfs(self.tree.root.as_raw_fd(), st.as_mut_ptr()) })?;
        // SAFETY: fstatfs succeeded, so the structure is filled.
        let st = unsafe { st.assume_init() };
        Ok(FsInfo {
            magic: st.f_type,
            block_size: st.f_bsize as u64,
            blocks: st.f_blocks,
            free: st.f_bfree,
            available: st.f_bavail,
            files: st.f_files,
            files_free: st.f_ffree,
            name_max: st.f_namelen as u32,
        })
    }

    fn demands(&self, directory: &Path) -> io::Result<Demands> {
        let path = self.tree.walk(directory, libc::O_PATH | libc::O_NOFOLLOW)?;
        let open = self.tree.walk(directory, libc::O_RDONLY | libc::O_DIRECTORY).ok();
        demands::demands(path.as_fd(), open.as_ref().map(AsFd::as_fd))
    }

    fn take_any_project(&self, directory: &Path) -> io::Result<()> {
        demands::take_any_project(self.tree.walk(directory, libc::O_RDONLY | libc::O_DIRECTORY)?.as_fd())
    }

    fn root_fd(&self) -> Option<RawFd> {
        Some(self.tree.root.as_raw_fd())
    }
}

/// Reads a whole directory.
pub fn read_directory(fd: OwnedFd, each: &mut dyn FnMut(&OsStr, u64, Option<FileKind>)) -> io::Result<()> {
    let raw = std::os::fd::IntoRawFd::into_raw_fd(fd);
    // SAFETY: raw is an open directory descriptor; fdopendir takes it over when it succeeds.
    let stream = unsafe { libc::fdopendir(raw) };
    if stream.is_null() {
        let error = io::Error::last_os_error();
        // SAFETY: fdopendir failed, so the descriptor is still ours to close.
        unsafe { libc::close(raw) };
        return Err(error);
    }
    let result = loop {
        // SAFETY: errno is thread-local; readdir tells its end from an error by it alone.
        unsafe { *libc::__errno_location() = 0 };
        // SAFETY: stream is open and used by this thread only.
        let entry = unsafe { libc::readdir64(stream) };
        if entry.is_null() {
            let error = io::Error::last_os_error();
            break if error.raw_os_error() == Some(0) { Ok(()) } else { Err(error) };
        }
        // SAFETY: readdir returned a valid entry whose name is NUL-terminated.
        let (name, ino, kind) =
            unsafe { (std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()), (*entry).d_ino, (*entry).d_type) };
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let kind = (kind != libc::DT_UNKNOWN).then(|| FileKind::from_mode((kind as u32) << 12));
        each(OsStr::from_bytes(name.to_bytes()), ino, kind);
    };
    // SAFETY: stream is open and not used after this.
    unsafe { libc::closedir(stream) };
    result
}
