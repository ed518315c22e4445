//! The blocks that a filesystem keeps for root (ext4: 5 %), which a daemon that runs as root would give to everybody.
//!
//! The kernel decides by the user of the thread that writes. To act as another user costs three changes of credentials (5
//! to 10 microseconds), so it is done only where the reserve can be met: while more than [`NEAR`] is left for everybody, nobody can
//! come to it. How much is left is asked for again after a tenth of a second, or after a quarter of that was written.
//! Whoever wrote a gigabyte past us in a tenth of a second could have a write or two let into the reserve.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use super::identity::{Powers, acting_as, own_group};
use super::sys::{fstat, retry};

/// With less than this left for everybody, writes are made as the user they are for.
const NEAR: i64 = 1 << 30;
/// A look at the filesystem counts for so long, in milliseconds.
const FRESH: u64 = 100;

thread_local! {
    /// For whom this thread writes; else for the owner of each file.
    static WRITER: Cell<Option<u32>> = const { Cell::new(None) };
}

/// What this thread writes is a user's, until the result is dropped. Without it, it is the owner's of the file.
pub fn writes_for(uid: u32) -> Writing {
    Writing { before: WRITER.replace(Some(uid)) }
}

/// See [`writes_for`].
pub struct Writing {
    before: Option<u32>,
}

impl Drop for Writing {
    fn drop(&mut self) {
        WRITER.set(self.before);
    }
}

/// What is known of the space of one filesystem.
#[derive(Default)]
pub struct Reserve {
    /// The last look found that the reserve can be met.
    near: AtomicBool,
    /// Bytes that may be written before the next look.
    left: AtomicI64,
    /// When it was looked at, see [`milliseconds`].
    looked: AtomicU64,
}

impl Reserve {
    /// Runs `work`, which takes up to `len` bytes of the filesystem of `file`, as the user they are for.
    pub fn take<T>(&self, file: RawFd, len: u64, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if !self.is_near(file, len) {
            return work();
        }
        let uid = match WRITER.get() {
            Some(writer) => writer,
            None => fstat(file)?.uid,
        };
        if uid == 0 {
            return work();
        }
        let mut work = Some(work);
        let mut run = || work.take().map(|work| work());
        match acting_as(uid, own_group(), Powers::WRITE, &mut run) {
            Ok(Some(result)) => result,
            // A daemon that may not act as others writes as itself.
            _ => run().unwrap_or_else(|| Err(io::Error::from_raw_os_error(libc::EIO))),
        }
    }

    fn is_near(&self, file: RawFd, len: u64) -> bool {
        let len = i64::try_from(len).unwrap_or(i64::MAX);
        let now = milliseconds();
        if now.wrapping_sub(self.looked.load(Ordering::Acquire)) <= FRESH {
            if self.near.load(Ordering::Acquire) {
                return true;
            }
            if self.left.fetch_sub(len, Ordering::AcqRel) > len {
                return false;
            }
        }
        let (available, reserved) = look(file).unwrap_or((0, 1));
        let near = reserved > 0 && available < NEAR.saturating_add(len);
        self.near.store(near, Ordering::Release);
        self.left.store(available / 4, Ordering::Release);
        self.looked.store(now, Ordering::Release);
        near
    }
}

/// Bytes that are left for everybody, and those kept for root.
fn look(file: RawFd) -> io::Result<(i64, i64)> {
    let mut st = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: st has room for a statfs; it is read only after the call succeeded.
    retry(|| unsafe { libc::fstatfs(file, st.as_mut_ptr()) })?;
    // SAFETY: fstatfs succeeded, so the structure is filled.
    let st = unsafe { st.assume_init() };
    let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(st.f_bsize as u64)).unwrap_or(i64::MAX);
    Ok((bytes(st.f_bavail), bytes(st.f_bfree.saturating_sub(st.f_bavail))))
}

/// A clock that costs no system call; never 0.
fn milliseconds() -> u64 {
    let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: at has room for the time.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut at) };
    at.tv_sec as u64 * 1000 + at.tv_nsec as u64 / 1_000_000 + FRESH + 1
}

/// Gives up the right to take reserved blocks and to exceed quotas, on this thread and those that it starts: it belongs
/// to the process, and would be everybody's who writes through it.
///
/// # Errors
/// When the capabilities cannot be read or set.
pub fn give_up_resources() -> io::Result<()> {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    super::set_effective_capabilities(super::effective_capabilities()? & !CAP_SYS_RESOURCE)
}
