//! Thin wrappers over system calls: `c_int` in, `io::Result` out, `EINTR` retried.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::OnceLock;
use std::time::Duration;

use super::types::{FileKey, SetTime, Stat, Timestamp};

/// Runs a call until it does not fail with EINTR; -1 becomes the errno.
pub fn retry<T: Copy + PartialEq + From<i8>>(mut call: impl FnMut() -> T) -> io::Result<T> {
    loop {
        let value = call();
        if value != T::from(-1) {
            return Ok(value);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// A name as C wants it; a NUL in it is `EINVAL`.
pub fn c_name(name: &OsStr) -> io::Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The `struct open_how` of openat2(2).
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// Resolve flags: stay below the directory, follow no link of any kind.
const BENEATH: u64 = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS;

/// What gives descriptors back when the process has no more; returns how many it could.
static RELIEF: OnceLock<fn() -> usize> = OnceLock::new();
/// How often it is asked for, for one call; after a vain attempt the next one comes so many milliseconds later.
const RELIEVED: u64 = 12;

/// Names what gives descriptors back when the process has no more.
pub fn set_relief(relief: fn() -> usize) {
    let _ = RELIEF.set(relief);
}

/// openat2(2), below `dir` and through no symbolic link.
pub fn open_beneath(dir: BorrowedFd<'_>, path: &OsStr, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    open_resolved(dir, path, flags, mode, BENEATH)
}

/// The same, with `EXDEV` where the path crosses a mount point.
pub fn open_same_mount(dir: BorrowedFd<'_>, path: &OsStr, flags: i32) -> io::Result<OwnedFd> {
    open_resolved(dir, path, flags, 0, BENEATH | libc::RESOLVE_NO_XDEV)
}

fn open_resolved(dir: BorrowedFd<'_>, path: &OsStr, flags: i32, mode: u32, resolve: u64) -> io::Result<OwnedFd> {
    let name = if path.is_empty() { c".".to_owned() } else { c_name(path)? };
    let how = OpenHow { flags: (flags | libc::O_CLOEXEC) as u64, mode: mode as u64, resolve };
    let (mut tries, mut relieved) = (0, 0);
    loop {
        // SAFETY: name is NUL-terminated, how is a valid open_how of the size passed.
        let result = retry(|| unsafe {
            libc::syscall(libc::SYS_openat2, dir.as_raw_fd(), name.as_ptr(), &raw const how, size_of::<OpenHow>())
        });
        match result {
            // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }),
            // EAGAIN: a rename somewhere raced with the walk; the manual says to try again.
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) && tries < 128 => tries += 1,
            // No descriptor is left: have those closed that nobody needs now. Others may take them first, or all of them be
            // in use at this moment, each for one call: so more than once.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) && relieved < RELIEVED => {
                relieved += 1;
                let Some(relief) = RELIEF.get() else { return Err(e) };
                if relief() == 0 {
                    std::thread::sleep(Duration::from_millis(relieved));
                }
            }
            Err(e) => return Err(e),
        }
    }
}

fn to_stat(st: &libc::statx) -> Stat {
    let time = |at: &libc::statx_timestamp| Timestamp { seconds: at.tv_sec, nanos: at.tv_nsec };
    Stat {
        key: FileKey { dev: libc::makedev(st.stx_dev_major, st.stx_dev_minor), ino: st.stx_ino },
        mode: u32::from(st.stx_mode),
        nlink: u64::from(st.stx_nlink),
        uid: st.stx_uid,
        gid: st.stx_gid,
        rdev: libc::makedev(st.stx_rdev_major, st.stx_rdev_minor),
        size: st.stx_size,
        blocks: st.stx_blocks,
        blksize: st.stx_blksize,
        atime: time(&st.stx_atime),
        mtime: time(&st.stx_mtime),
        ctime: time(&st.stx_ctime),
        birth: (st.stx_mask & libc::STATX_BTIME != 0).then(|| time(&st.stx_btime)),
    }
}

/// Status of what a descriptor is of.
pub fn fstat(fd: RawFd) -> io::Result<Stat> {
    statx(fd, c"")
}

/// Status of a name in a directory, a link itself and not its target.
pub fn lstat_at(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Stat> {
    statx(dir.as_raw_fd(), name)
}

/// statx(2), which alone tells when a file was made.
fn statx(dir: RawFd, name: &CStr) -> io::Result<Stat> {
    let mut st = MaybeUninit::<libc::statx>::uninit();
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH | libc::AT_NO_AUTOMOUNT;
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
    // SAFETY: name is NUL-terminated, st has room for a statx and is read only after success.
    retry(|| unsafe { libc::statx(dir, name.as_ptr(), flags, mask, st.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so the structure is filled.
    Ok(to_stat(unsafe { st.assume_init_ref() }))
}

/// The `timespec` of utimensat(2) for a request.
pub fn timespec(time: SetTime) -> libc::timespec {
    match time {
        SetTime::Keep => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
        SetTime::Now => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
        SetTime::At(t) => libc::timespec { tv_sec: t.seconds, tv_nsec: t.nanos as i64 },
    }
}

/// Name of a descriptor under /proc, for calls that want a path.
pub fn proc_path(fd: RawFd) -> CString {
    // A formatted integer holds no NUL, so this cannot fail; an empty path would make the call fail safely.
    CString::new(format!("/proc/self/fd/{fd}")).unwrap_or_default()
}

/// Calls a function of the xattr family that fills a buffer, growing the buffer until it fits.
pub fn grow_buffer(mut call: impl FnMut(*mut libc::c_void, usize) -> isize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0u8; 256];
    loop {
        match retry(|| call(buffer.as_mut_ptr().cast(), buffer.len())) {
            Ok(len) => {
                buffer.truncate(len as usize);
                return Ok(buffer);
            }
            Err(e) if e.raw_os_error() == Some(libc::ERANGE) && buffer.len() < (1 << 20) => {
                buffer.resize(buffer.len() * 8, 0);
            }
            Err(e) => return Err(e),
        }
    }
}

/// Splits the NUL-separated list that listxattr(2) gives.
pub fn split_names(list: &[u8]) -> Vec<OsString> {
    list.split(|&b| b == 0).filter(|n| !n.is_empty()).map(|n| OsString::from_vec(n.to_vec())).collect()
}
