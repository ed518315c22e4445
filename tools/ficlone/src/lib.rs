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

// ---- clonefs: see src/protocol/mod.rs there --------------------------------------------------------------------------

/// `_IOR(0xCF, 1, u8[16])`.
const IOC_TOKEN: c_ulong = 0x8010_cf01;
/// `_IOW(0xCF, 2, struct { u8 token[16]; u64 size; u64 flags; })`.
const IOC_CLONE: c_ulong = 0x4020_cf02;

/// The block of every clonefs pool.
const BLOCK: u64 = 4096;

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
    if from.st_dev != to.st_dev {
        return Err(libc::EOPNOTSUPP);
    }
    let token = token(source)?;
    let size = from.st_size as u64;
    let length = match range.length {
        0 => size.checked_sub(range.offset).ok_or(libc::EINVAL)?,
        length => length,
    };
    if !is_valid(&range, length, size, to.st_size as u64, from.st_ino == to.st_ino) {
        return Err(libc::EINVAL);
    }
    // Into a file that has a size nothing is cloned by emptying it first: somebody may look, or the power go.
    let whole = range.offset == 0 && range.target_offset == 0 && length == size && to.st_size == 0;
    if whole && clone_whole(target, token) {
        return Ok(());
    }
    copy(source, range.offset, target, range.target_offset, length)
}

/// What filesystems with reflinks demand of a range, see ioctl_ficlonerange(2): whole blocks that the source has, of which
/// only its last one may be cut off, and then by the end of the destination too; and no overlap in one file.
fn is_valid(range: &Range, length: u64, size: u64, target_size: u64, same_file: bool) -> bool {
    let (from, to) = (range.offset, range.target_offset);
    let (Some(from_end), Some(to_end)) = (from.checked_add(length), to.checked_add(length)) else { return false };
    if !from.is_multiple_of(BLOCK) || !to.is_multiple_of(BLOCK) || from_end > size || to_end > i64::MAX as u64 {
        return false;
    }
    let whole_blocks = length.is_multiple_of(BLOCK) || from_end == size && to_end >= target_size;
    let blocks = length.next_multiple_of(BLOCK);
    whole_blocks && !(same_file && length > 0 && from < to.saturating_add(blocks) && to < from.saturating_add(blocks))
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

/// Makes an empty file a clone; false if that cannot be.
fn clone_whole(target: c_int, token: [u8; 16]) -> bool {
    let mut request = CloneRequest { token, size: 0, flags: 0 };
    // SAFETY: the request reads this struct.
    unsafe { next_ioctl(target, IOC_CLONE, (&raw mut request).cast()) == 0 }
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
