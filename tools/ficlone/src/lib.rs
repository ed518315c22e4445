//! A library to be loaded before the C library (`LD_PRELOAD`), for programs that ask for clones with FICLONE or
//! FICLONERANGE: `cp --reflink=always`, libvirt's `vol-clone --reflink`.
//!
//! Linux answers these calls for a FUSE filesystem by itself, with EOPNOTSUPP, and asks nobody. Only then, and only if
//! both files lie on one clonefs mount, this library does what was asked for by another way: the clone ioctl of
//! clonefs for a whole file into an empty one, `copy_file_range` otherwise. Every other call, and every call that
//! succeeds, goes through unchanged.
//!
//! It allocates nothing, takes no lock and keeps no state, so it can be in any program.

use std::ffi::{c_int, c_ulong, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

// ---- calls of others ---------------------------------------------------------------------------------------------

/// `_IOW(0x94, 9, int)`.
const FICLONE: c_ulong = 0x4004_9409;
/// `_IOW(0x94, 13, struct file_clone_range)`.
const FICLONERANGE: c_ulong = 0x4020_940d;

// ---- clonefs: see src/door/mod.rs there --------------------------------------------------------------------------

/// `_IOR(0xCF, 1, u8[16])`.
const IOC_TOKEN: c_ulong = 0x8010_cf01;
/// `_IOW(0xCF, 2, struct { u8 token[16]; u64 size; u64 flags; })`.
const IOC_CLONE: c_ulong = 0x4020_cf02;

/// What FICLONERANGE takes.
#[repr(C)]
#[derive(Clone, Copy)]
struct Range {
    source: i64,
    offset: u64,
    length: u64,
    target_offset: u64,
}

/// What [`IOC_CLONE`] takes.
#[repr(C)]
struct CloneRequest {
    token: [u8; 16],
    size: u64,
    flags: u64,
}

/// As in C: `int ioctl(int fd, unsigned long request, ...)`. There is at most one more argument, of a pointer's size,
/// which the conventions for calls on Linux pass in the same place whether a function is variadic or not.
///
/// # Safety
///
/// As for the C library's `ioctl`: the argument must be what the request takes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // SAFETY: the caller's promise is handed on.
    let result = unsafe { next_ioctl(fd, request, argument) };
    // Some callers give a negative int.
    let request = request & 0xffff_ffff;
    if result != -1 || !matches!(request, FICLONE | FICLONERANGE) || errno() != libc::EOPNOTSUPP {
        return result;
    }
    let range = if request == FICLONE {
        Range { source: argument as c_int as i64, offset: 0, length: 0, target_offset: 0 }
    } else if argument.is_null() {
        return result;
    } else {
        // SAFETY: FICLONERANGE takes a pointer to this struct, and the kernel has just read it.
        unsafe { argument.cast::<Range>().read_unaligned() }
    };
    match clone(fd, range) {
        Ok(()) => 0,
        Err(error) => {
            set_errno(error);
            -1
        }
    }
}

/// Does what FICLONERANGE asks for. EOPNOTSUPP, as if nothing had been tried, where that is not for us to do.
fn clone(target: c_int, range: Range) -> Result<(), c_int> {
    let source = c_int::try_from(range.source).map_err(|_| libc::EBADF)?;
    let (from, to) = (status(source)?, status(target)?);
    if from.st_dev != to.st_dev || from.st_ino == to.st_ino {
        return Err(libc::EOPNOTSUPP);
    }
    let token = token(source)?;
    let size = from.st_size as u64;
    let length = if range.length == 0 { size.saturating_sub(range.offset) } else { range.length };
    if range.offset.checked_add(length).is_none_or(|end| end > size) {
        return Err(libc::EINVAL);
    }
    let whole = range.offset == 0 && range.target_offset == 0 && length == size;
    if whole && to.st_size <= from.st_size && holds_nothing(target, &to) && clone_whole(target, &to, token) {
        return Ok(());
    }
    copy(source, range.offset, target, range.target_offset, length)
}

fn status(fd: c_int) -> Result<libc::stat, c_int> {
    // SAFETY: zero is a valid value for every field of stat.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a whole struct.
    if unsafe { libc::fstat(fd, &raw mut status) } == -1 { Err(errno()) } else { Ok(status) }
}

/// A token for a source. No other filesystem than clonefs knows the request.
fn token(source: c_int) -> Result<[u8; 16], c_int> {
    let mut token = [0u8; 16];
    // SAFETY: the request writes 16 bytes.
    let result = unsafe { next_ioctl(source, IOC_TOKEN, token.as_mut_ptr().cast()) };
    if result == -1 { Err(libc::EOPNOTSUPP) } else { Ok(token) }
}

/// Whether a file is empty, or has a size and perhaps space but no data: libvirt makes it so before it clones.
fn holds_nothing(fd: c_int, status: &libc::stat) -> bool {
    if status.st_size == 0 {
        return true;
    }
    // SAFETY: these calls take numbers. The second moves the position in the file, the third puts it back.
    unsafe {
        let position = libc::lseek64(fd, 0, libc::SEEK_CUR);
        let none = position != -1 && libc::lseek64(fd, 0, libc::SEEK_DATA) == -1 && errno() == libc::ENXIO;
        position != -1 && libc::lseek64(fd, position, libc::SEEK_SET) == position && none
    }
}

/// Makes a file that holds nothing a clone, which has to be empty for that; false if that cannot be, and then it has
/// its size again.
fn clone_whole(target: c_int, status: &libc::stat, token: [u8; 16]) -> bool {
    let resize = |size| {
        // SAFETY: this call takes numbers.
        status.st_size == 0 || unsafe { libc::ftruncate64(target, size) == 0 }
    };
    let mut request = CloneRequest { token, size: 0, flags: 0 };
    // SAFETY: the request reads this struct.
    if resize(0) && unsafe { next_ioctl(target, IOC_CLONE, (&raw mut request).cast()) == 0 } {
        return true;
    }
    resize(status.st_size);
    false
}

/// Copies the range, which clonefs shares where it can.
fn copy(source: c_int, offset: u64, target: c_int, target_offset: u64, length: u64) -> Result<(), c_int> {
    let (mut from, mut to) = (offset as libc::off64_t, target_offset as libc::off64_t);
    let mut left = length;
    while left > 0 {
        let piece = usize::try_from(left).unwrap_or(usize::MAX).min(0x7fff_f000);
        // SAFETY: both offsets are ours, for the call to read and write.
        let copied = unsafe { libc::copy_file_range(source, &raw mut from, target, &raw mut to, piece, 0) };
        match copied {
            -1 if errno() == libc::EINTR => {}
            -1 => return Err(errno()),
            // The source has become shorter.
            0 => return Err(libc::EINVAL),
            count => left -= count as u64,
        }
    }
    Ok(())
}

// ---- the C library -----------------------------------------------------------------------------------------------

type Ioctl = unsafe extern "C" fn(c_int, c_ulong, *mut c_void) -> c_int;

/// Calls the `ioctl` that would have been called without this library.
///
/// # Safety
///
/// As for `ioctl`.
unsafe fn next_ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    static NEXT: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
    let mut next = NEXT.load(Ordering::Relaxed);
    if next.is_null() {
        // SAFETY: the name ends with a zero byte.
        next = unsafe { libc::dlsym(libc::RTLD_NEXT, c"ioctl".as_ptr()) };
        NEXT.store(next, Ordering::Relaxed);
    }
    if next.is_null() {
        // SAFETY: the caller's promise is handed on.
        return unsafe { libc::syscall(libc::SYS_ioctl, fd, request, argument) as c_int };
    }
    // SAFETY: what has this name is a function of this type.
    let next: Ioctl = unsafe { std::mem::transmute(next) };
    // SAFETY: the caller's promise is handed on.
    unsafe { next(fd, request, argument) }
}

fn errno() -> c_int {
    // SAFETY: the pointer is to this thread's errno.
    unsafe { *libc::__errno_location() }
}

fn set_errno(value: c_int) {
    // SAFETY: the pointer is to this thread's errno.
    unsafe { *libc::__errno_location() = value }
}
