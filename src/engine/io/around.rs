//! Reads of what many will read: an image that clones share.
//!
//! Somebody who reads 4 KiB of it at random, as a guest does that starts, waits for the disk once for each of them, and so
//! does the next one for its neighbours. So what is not in the page cache comes into it together with its neighbourhood:
//! the disk takes hardly longer for that, and whoever comes next finds it there. The kernel does the same for files that
//! are mapped. An image that memory has no room for is read as it is asked for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use super::sys::{fstat, retry};

/// What is read together, in bytes; longer reads are left to the kernel's own read-ahead.
const AROUND: u64 = 64 << 10;
/// Largest part of memory that the data of an image may have for this.
const PART: u64 = 4;

/// What is known of one file.
#[derive(Default)]
pub struct Around {
    /// Memory has room for all of it.
    fits: OnceLock<bool>,
}

impl Around {
    /// Whether memory has room for all of the file.
    pub fn fits(&self, file: BorrowedFd) -> bool {
        *self.fits.get_or_init(|| fits(file))
    }

    /// Before a read through the page cache. Reads all of `buf` if that is there already; else has the disk read what is
    /// around it, and returns `false`.
    pub fn read(&self, file: BorrowedFd, buf: &mut [u8], offset: u64) -> bool {
        if buf.len() as u64 >= AROUND || !self.fits(file) {
            return false;
        }
        if read_cached(file, buf, offset).is_ok_and(|read| read == buf.len()) {
            return true;
        }
        let start = offset / AROUND * AROUND;
        let len = (offset + buf.len() as u64).next_multiple_of(AROUND) - start;
        // SAFETY: the descriptor is open; the call reads nothing of ours.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), start as i64, len as i64, libc::POSIX_FADV_WILLNEED) };
        false
    }
}

/// Reads what is in the page cache, without waiting for more.
fn read_cached(file: BorrowedFd, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let room = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: `room` describes `buf`, which is ours to fill.
    retry(|| unsafe { libc::preadv2(file.as_raw_fd(), &raw const room, 1, offset as i64, libc::RWF_NOWAIT) })
        .map(|read| read as usize)
}

fn fits(file: BorrowedFd) -> bool {
    let Ok(stat) = fstat(file.as_raw_fd()) else { return false };
    // SAFETY: all zeros are a valid sysinfo, which the call fills.
    let mut memory: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: `memory` is ours to fill.
    let known = unsafe { libc::sysinfo(&raw mut memory) } == 0;
    known && stat.blocks * 512 <= memory.totalram * u64::from(memory.mem_unit) / PART
}

#[cfg(test)]
impl Around {
    /// For a file that memory has no room for.
    pub fn too_large() -> Around {
        Around { fits: OnceLock::from(false) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_is_in_memory_is_read_at_once() {
        let (file, around) = (tempfile::tempfile().unwrap(), Around::default());
        let bytes: Vec<u8> = (0..200_000u32).map(|i| (i * 7 % 251) as u8).collect();
        file.write_all_at(&bytes, 0).unwrap();
        let mut found = vec![0; 5000];
        // Just written, it is there, or the filesystem cannot tell; never are other bytes given.
        if around.read(file.as_fd(), &mut found, 70_000) {
            assert_eq!(found, bytes[70_000..75_000]);
        }
        // All of it or nothing: the caller finds out where the file ends.
        assert!(!around.read(file.as_fd(), &mut found, 199_000));
        assert!(!around.read(file.as_fd(), &mut found, 1 << 40));
        assert!(!around.read(file.as_fd(), &mut vec![0; 100_000], 0), "the kernel reads ahead by itself");
    }
}
