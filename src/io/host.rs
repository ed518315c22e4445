//! The real backing filesystem: [`Fs`] and [`File`] over system calls.

use std::collections::HashMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::demands::{self, Demands};
use super::file::HostFile;
use super::sys::{c_name, grow_buffer, lstat_at, open_beneath, proc_path, retry, split_names, timespec};
use super::types::{DirEntry, FileKind, FsInfo, Open, Rename, SetTime, Stat};
use super::{File, FileRef, Fs};

/// Longest piece of a path handed to the kernel at once; `PATH_MAX` is 4096.
const PIECE: usize = 3800;

/// A directory tree on this machine, reached through the descriptor of its root: a mount laid over the directory
/// afterwards does not hide it.
pub struct HostFs {
    root: Arc<OwnedFd>,
    /// Descriptors of directories that are never renamed (those of `.clonefs`), to save a walk for each call.
    fixed: Mutex<HashMap<PathBuf, Arc<OwnedFd>>>,
}

impl HostFs {
    /// The tree below `root`, a descriptor of a directory (not `O_PATH`).
    pub fn new(root: OwnedFd) -> HostFs {
        HostFs { root: Arc::new(root), fixed: Mutex::new(HashMap::new()) }
    }

    /// The tree below the directory at `path`.
    pub fn open_dir(path: &Path) -> io::Result<HostFs> {
        let name = c_name(path.as_os_str())?;
        // SAFETY: name is NUL-terminated.
        let fd = retry(|| unsafe { libc::open(name.as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) })?;
        // SAFETY: the descriptor was just opened and is owned by nobody else.
        Ok(HostFs::new(unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) }))
    }

    /// Opens `path` with `flags`, in pieces when it is longer than the kernel takes.
    fn walk(&self, path: &Path, flags: i32, mode: u32) -> io::Result<OwnedFd> {
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
        let dir = here.as_ref().map_or(self.root.as_fd(), |fd| fd.as_fd());
        open_beneath(dir, OsStr::from_bytes(rest), flags, mode)
    }

    /// Descriptor of the directory that holds `path`, and the last component.
    fn parent(&self, path: &Path) -> io::Result<(Arc<OwnedFd>, CString)> {
        let name = match path.components().next_back() {
            Some(Component::Normal(name)) => c_name(name)?,
            None => return Ok((self.root.clone(), c"".to_owned())),
            Some(_) => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        if parent.as_os_str().is_empty() {
            return Ok((self.root.clone(), name));
        }
        let fixed = parent.starts_with(".clonefs");
        if fixed && let Some(fd) = self.fixed.lock().get(parent) {
            return Ok((fd.clone(), name));
        }
        let fd = Arc::new(self.walk(parent, libc::O_PATH | libc::O_DIRECTORY, 0)?);
        if fixed {
            self.fixed.lock().insert(parent.to_path_buf(), fd.clone());
        }
        Ok((fd, name))
    }

    /// A descriptor for xattr calls on anything: `O_PATH`, used through /proc.
    fn handle(&self, path: &Path) -> io::Result<OwnedFd> {
        let (dir, name) = self.parent(path)?;
        open_beneath(dir.as_fd(), OsStr::from_bytes(name.to_bytes()), libc::O_PATH | libc::O_NOFOLLOW, 0)
    }
}

impl Fs for HostFs {
    fn open(&self, path: &Path, how: Open) -> io::Result<FileRef> {
        let (dir, name) = self.parent(path)?;
        let common = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let (flags, mode) = match how {
            Open::Read => (common | libc::O_RDONLY, 0),
            Open::Write => (common | libc::O_RDWR, 0),
            Open::CreateNew(mode) => (common | libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, mode & 0o7777),
        };
        let fd = open_beneath(dir.as_fd(), OsStr::from_bytes(name.to_bytes()), flags, mode)?;
        let root = self.root.clone();
        let file = HostFile::new(fd, root);
        // A FIFO or a device swapped in for a file must not be read as one.
        if file.stat()?.kind() != FileKind::File {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Ok(Arc::new(file))
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let (dir, name) = self.parent(path)?;
        lstat_at(dir.as_fd(), &name)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let fd = self.walk(path, libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        read_directory(fd)
    }

    fn mkdir(&self, path: &Path, mode: u32) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        // SAFETY: name is NUL-terminated; dir is open.
        retry(|| unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
    }

    fn mknod(&self, path: &Path, mode: u32, rdev: u64) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        // SAFETY: name is NUL-terminated; dir is open.
        retry(|| unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, rdev) }).map(drop)
    }

    fn symlink(&self, target: &Path, path: &Path) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        let target = c_name(target.as_os_str())?;
        // SAFETY: both strings are NUL-terminated; dir is open.
        retry(|| unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }).map(drop)
    }

    fn readlink(&self, path: &Path) -> io::Result<PathBuf> {
        let (dir, name) = self.parent(path)?;
        let mut target = vec![0u8; 4096];
        // SAFETY: target has the length passed; name is NUL-terminated.
        let len = retry(|| unsafe {
            libc::readlinkat(dir.as_raw_fd(), name.as_ptr(), target.as_mut_ptr().cast(), target.len())
        })?;
        target.truncate(len as usize);
        Ok(PathBuf::from(<OsString as std::os::unix::ffi::OsStringExt>::from_vec(target)))
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        // SAFETY: name is NUL-terminated; dir is open.
        retry(|| unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), 0) }).map(drop)
    }

    fn rmdir(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        // SAFETY: name is NUL-terminated; dir is open.
        retry(|| unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), libc::AT_REMOVEDIR) }).map(drop)
    }

    fn rename(&self, from: &Path, to: &Path, how: Rename) -> io::Result<()> {
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        let flags = match how {
            Rename::Replace => 0,
            Rename::NoReplace => libc::RENAME_NOREPLACE,
            Rename::Exchange => libc::RENAME_EXCHANGE,
        };
        let (from_fd, to_fd) = (from_dir.as_raw_fd(), to_dir.as_raw_fd());
        // SAFETY: both names are NUL-terminated; both directories are open.
        retry(|| unsafe { libc::renameat2(from_fd, from_name.as_ptr(), to_fd, to_name.as_ptr(), flags) }).map(drop)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        let (from_fd, to_fd) = (from_dir.as_raw_fd(), to_dir.as_raw_fd());
        // SAFETY: both names are NUL-terminated; both directories are open.
        retry(|| unsafe { libc::linkat(from_fd, from_name.as_ptr(), to_fd, to_name.as_ptr(), 0) }).map(drop)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let fd = self.walk(path, libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        // SAFETY: fd is open.
        retry(|| unsafe { libc::fsync(fd.as_raw_fd()) }).map(drop)
    }

    fn sync_fs(&self) -> io::Result<()> {
        // SAFETY: the descriptor is open.
        retry(|| unsafe { libc::syncfs(self.root.as_raw_fd()) }).map(drop)
    }

    fn instance(&self) -> Option<String> {
        // Kernels before 6.8 have only identities of mounts that are used again.
        const MNT_ID_UNIQUE: u32 = 0x4000;
        let mask = rustix::fs::StatxFlags::from_bits_retain(MNT_ID_UNIQUE);
        let st = rustix::fs::statx(&*self.root, "", rustix::fs::AtFlags::EMPTY_PATH, mask).ok()?;
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
        let fd = self.handle(path)?;
        let path = proc_path(fd.as_raw_fd());
        // SAFETY: path is NUL-terminated.
        retry(|| unsafe { libc::chmod(path.as_ptr(), mode) }).map(drop)
    }

    fn chown(&self, path: &Path, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        let (uid, gid) = (uid.unwrap_or(u32::MAX), gid.unwrap_or(u32::MAX));
        let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
        // SAFETY: name is NUL-terminated; dir is open.
        retry(|| unsafe { libc::fchownat(dir.as_raw_fd(), name.as_ptr(), uid, gid, flags) }).map(drop)
    }

    fn set_times(&self, path: &Path, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        let times = [timespec(atime), timespec(mtime)];
        let flags = libc::AT_SYMLINK_NOFOLLOW | if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
        // SAFETY: name is NUL-terminated, times are two timespecs.
        retry(|| unsafe { libc::utimensat(dir.as_raw_fd(), name.as_ptr(), times.as_ptr(), flags) }).map(drop)
    }

    fn get_xattr(&self, path: &Path, name: &OsString) -> io::Result<Vec<u8>> {
        let (fd, name) = (self.handle(path)?, c_name(name)?);
        let path = proc_path(fd.as_raw_fd());
        // SAFETY: both strings are NUL-terminated; buffer and length come as a pair.
        grow_buffer(|buf, len| unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buf, len) })
    }

    fn set_xattr(&self, path: &Path, name: &OsString, value: &[u8], flags: i32) -> io::Result<()> {
        let (fd, name) = (self.handle(path)?, c_name(name)?);
        let path = proc_path(fd.as_raw_fd());
        let (data, len) = (value.as_ptr().cast(), value.len());
        // SAFETY: both strings are NUL-terminated; data and len describe `value`.
        retry(|| unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), data, len, flags) }).map(drop)
    }

    fn list_xattr(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let fd = self.handle(path)?;
        let path = proc_path(fd.as_raw_fd());
        // SAFETY: path is NUL-terminated; buffer and length come as a pair.
        grow_buffer(|buf, len| unsafe { libc::listxattr(path.as_ptr(), buf.cast(), len) }).map(|l| split_names(&l))
    }

    fn remove_xattr(&self, path: &Path, name: &OsString) -> io::Result<()> {
        let (fd, name) = (self.handle(path)?, c_name(name)?);
        let path = proc_path(fd.as_raw_fd());
        // SAFETY: both strings are NUL-terminated.
        retry(|| unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }).map(drop)
    }

    fn info(&self) -> io::Result<FsInfo> {
        let mut st = MaybeUninit::<libc::statfs>::uninit();
        // SAFETY: st has room for a statfs; it is read only after the call succeeded.
        retry(|| unsafe { libc::fstatfs(self.root.as_raw_fd(), st.as_mut_ptr()) })?;
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
        let path = self.handle(directory)?;
        let open = self.walk(directory, libc::O_RDONLY | libc::O_DIRECTORY, 0).ok();
        demands::demands(path.as_fd(), open.as_ref().map(AsFd::as_fd))
    }

    fn take_any_project(&self, directory: &Path) -> io::Result<()> {
        demands::take_any_project(self.walk(directory, libc::O_RDONLY | libc::O_DIRECTORY, 0)?.as_fd())
    }

    fn root_fd(&self) -> Option<RawFd> {
        Some(self.root.as_raw_fd())
    }
}

/// Reads a whole directory.
fn read_directory(fd: OwnedFd) -> io::Result<Vec<DirEntry>> {
    let raw = std::os::fd::IntoRawFd::into_raw_fd(fd);
    // SAFETY: raw is an open directory descriptor; fdopendir takes it over when it succeeds.
    let stream = unsafe { libc::fdopendir(raw) };
    if stream.is_null() {
        let error = io::Error::last_os_error();
        // SAFETY: fdopendir failed, so the descriptor is still ours to close.
        unsafe { libc::close(raw) };
        return Err(error);
    }
    let mut entries = Vec::new();
    let result = loop {
        // SAFETY: errno is thread-local; readdir tells its end from an error by it alone.
        unsafe { *libc::__errno_location() = 0 };
        // SAFETY: stream is open and used by this thread only.
        let entry = unsafe { libc::readdir64(stream) };
        if entry.is_null() {
            let error = io::Error::last_os_error();
            break if error.raw_os_error() == Some(0) { Ok(entries) } else { Err(error) };
        }
        // SAFETY: readdir returned a valid entry whose name is NUL-terminated.
        let (name, ino, kind) =
            unsafe { (std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()), (*entry).d_ino, (*entry).d_type) };
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let kind = (kind != libc::DT_UNKNOWN).then(|| FileKind::from_mode((kind as u32) << 12));
        entries.push(DirEntry { name: OsStr::from_bytes(name.to_bytes()).to_owned(), ino, kind });
    };
    // SAFETY: stream is open and not used after this.
    unsafe { libc::closedir(stream) };
    result
}
