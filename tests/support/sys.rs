//! System calls that the standard library lacks, for tests.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A path as C wants it.
pub fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("path without NUL")
}

/// The errno of a failed call, or its value.
pub fn result<T: Copy + PartialOrd + From<i8>>(value: T) -> io::Result<T> {
    if value < T::from(0) { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// The errno of a result, 0 for success.
pub fn errno<T>(result: io::Result<T>) -> i32 {
    result.err().map_or(0, |error| error.raw_os_error().expect("an error of the system"))
}

/// getxattr(2), of a link itself.
pub fn get_xattr(path: &Path, name: impl AsRef<OsStr>) -> io::Result<Vec<u8>> {
    let (path, name) = (c_path(path), CString::new(name.as_ref().as_bytes()).expect("name"));
    let mut value = vec![0u8; 65536];
    // SAFETY: strings are NUL-terminated, the buffer has the length passed.
    let len = result(unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) })?;
    value.truncate(len as usize);
    Ok(value)
}

/// setxattr(2), of a link itself.
pub fn set_xattr(path: &Path, name: impl AsRef<OsStr>, value: &[u8]) -> io::Result<()> {
    let (path, name) = (c_path(path), CString::new(name.as_ref().as_bytes()).expect("name"));
    // SAFETY: strings are NUL-terminated, pointer and length describe the value.
    result(unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }).map(drop)
}

/// removexattr(2), of a link itself.
pub fn remove_xattr(path: &Path, name: impl AsRef<OsStr>) -> io::Result<()> {
    let (path, name) = (c_path(path), CString::new(name.as_ref().as_bytes()).expect("name"));
    // SAFETY: strings are NUL-terminated.
    result(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) }).map(drop)
}

/// listxattr(2), of a link itself: sorted names.
pub fn list_xattr(path: &Path) -> io::Result<Vec<String>> {
    let path = c_path(path);
    let mut list = vec![0u8; 65536];
    // SAFETY: path is NUL-terminated, the buffer has the length passed.
    let len = result(unsafe { libc::llistxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) })?;
    let names = list[..len as usize].split(|b| *b == 0).filter(|name| !name.is_empty());
    let mut names: Vec<String> = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    names.sort();
    Ok(names)
}

/// renameat2(2).
pub fn rename(from: &Path, to: &Path, flags: u32) -> io::Result<()> {
    let (from, to) = (c_path(from), c_path(to));
    // SAFETY: strings are NUL-terminated.
    result(unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) }).map(drop)
}

/// mknod(2).
pub fn mknod(path: &Path, mode: u32, device: u64) -> io::Result<()> {
    let path = c_path(path);
    // SAFETY: path is NUL-terminated.
    result(unsafe { libc::mknod(path.as_ptr(), mode, device) }).map(drop)
}

/// fallocate(2).
pub fn fallocate(file: &impl AsRawFd, mode: i32, offset: i64, len: i64) -> io::Result<()> {
    // SAFETY: the descriptor is open.
    result(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) }).map(drop)
}

/// lseek(2).
pub fn seek(file: &impl AsRawFd, offset: i64, whence: i32) -> io::Result<i64> {
    // SAFETY: the descriptor is open.
    result(unsafe { libc::lseek(file.as_raw_fd(), offset, whence) })
}

/// copy_file_range(2) at given offsets.
pub fn copy_range(from: (RawFd, i64), to: (RawFd, i64), len: usize) -> io::Result<isize> {
    let (mut at, mut onto) = (from.1, to.1);
    // SAFETY: descriptors are open, offsets are places for the results.
    result(unsafe { libc::copy_file_range(from.0, &raw mut at, to.0, &raw mut onto, len, 0) })
}

/// ioctl(2) with a buffer.
pub fn ioctl(file: &impl AsRawFd, request: u32, argument: &mut [u8]) -> io::Result<()> {
    // SAFETY: the descriptor is open; the buffer is as long as the request's number says (the tests see to that).
    result(unsafe { libc::ioctl(file.as_raw_fd(), libc::c_ulong::from(request), argument.as_mut_ptr()) }).map(drop)
}

/// Runs `work` on a thread of its own with another user, group and no supplementary groups; only that thread changes.
pub fn as_user<T: Send>(uid: u32, gid: u32, work: impl FnOnce() -> T + Send) -> T {
    as_user_in(uid, gid, &[], work)
}

/// The same with supplementary groups.
pub fn as_user_in<T: Send>(uid: u32, gid: u32, groups: &[u32], work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: raw calls, as those of libc would change all threads; the array lives during the call.
            unsafe {
                assert_eq!(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()), 0);
                assert_eq!(libc::syscall(libc::SYS_setresgid, gid, gid, gid), 0);
                assert_eq!(libc::syscall(libc::SYS_setresuid, uid, uid, uid), 0);
            }
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A shared mapping of a file.
pub struct Mapping {
    at: *mut u8,
    len: usize,
}

impl Mapping {
    /// Maps the first `len` bytes for reading and writing.
    pub fn new(file: &impl AsRawFd, len: usize) -> io::Result<Mapping> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, nothing is replaced.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Mapping { at: at.cast(), len }) }
    }

    /// Its bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is of this length and lives as long as self.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and used by nobody any more.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}
