//! Reads and writes past the page cache: what a program asks for that opens a file with O_DIRECT.
//!
//! The kernel keeps both ways in step: a direct read writes out what is dirty in its range first, a direct write drops
//! what is cached of it, and both happen under the lock that buffered writes take. That holds for calls that wait, as
//! all of these do; it does not hold for asynchronous ones, which end after the lock was given back. Nor does it hold once
//! what was in the cache could not be written out: the cache has it still, the disk never will (R14). So what is in the
//! cache is read from there, as far as the kernel says what that is (Linux 6.5). A direct call is also told of such a
//! failure, but only one of those that are under way; after the first error of any kind there are no more of them for
//! this file.
//!
//! Asynchronous reads ([`super::ring`]) end like waiting ones: what is written while they are under way may or may not be
//! in them. But the kernel does not tell them of a page that could not be written out *before*: it has them look for
//! pages that are dirty, not for failures. So they may only read what is not in the cache at all.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::sys::{proc_path, retry};

/// What offsets, lengths and addresses are multiples of: no filesystem wants more than its block or page.
pub const ALIGNMENT: usize = 4096;

/// A second descriptor of a file, with O_DIRECT; made when it is first needed.
#[derive(Default)]
pub struct Direct {
    file: RwLock<Slot>,
    /// The disk may not have what the cache has.
    distrusted: AtomicBool,
    /// The ring cannot read this file.
    ringless: AtomicBool,
}

#[derive(Default)]
enum Slot {
    /// Nobody has asked for it, or somebody wanted it closed.
    #[default]
    Closed,
    /// The filesystem has no direct reads and writes.
    Impossible,
    Open(Arc<OwnedFd>),
}

thread_local! {
    /// Aligned room for data that is not.
    static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The first `len` bytes of `room` at an address that direct reads and writes can use.
pub fn aligned(room: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if room.len() < len + ALIGNMENT {
        room.resize(len + ALIGNMENT, 0);
    }
    let start = room.as_ptr().align_offset(ALIGNMENT);
    &mut room[start..start + len]
}

fn is_aligned(number: u64) -> bool {
    number.is_multiple_of(ALIGNMENT as u64)
}

impl Direct {
    /// The descriptor; `None` where the filesystem has no direct reads and writes, or no descriptor is left.
    fn descriptor(&self, file: BorrowedFd) -> Option<Arc<OwnedFd>> {
        if self.distrusted.load(Ordering::Acquire) {
            return None;
        }
        match &*self.file.read() {
            Slot::Open(fd) => return Some(fd.clone()),
            Slot::Impossible => return None,
            Slot::Closed => {}
        }
        let mut slot = self.file.write();
        if matches!(*slot, Slot::Closed) {
            *slot = open_again(file)?;
        }
        match &*slot {
            Slot::Open(fd) => Some(fd.clone()),
            _ => None,
        }
    }

    /// Opens the descriptor, if it is not open and can be.
    pub fn prepare(&self, file: BorrowedFd) {
        drop(self.descriptor(file));
    }

    /// Gives the descriptor up, so that it does not count as somebody who has the file open. Calls under way keep it; the
    /// next one opens it again.
    pub fn close(&self) {
        let mut slot = self.file.write();
        if matches!(*slot, Slot::Open(_)) {
            *slot = Slot::Closed;
        }
    }

    /// After a sync that failed: from now on everything goes through the cache.
    pub fn distrust(&self) {
        self.distrusted.store(true, Ordering::Release);
    }

    /// The descriptor for an asynchronous read; `None` if a waiting one must be made.
    pub fn for_ring(&self, file: BorrowedFd, offset: u64, len: usize) -> Option<Arc<OwnedFd>> {
        let fits = len > 0 && is_aligned(offset) && is_aligned(len as u64);
        if !fits || self.ringless.load(Ordering::Acquire) {
            return None;
        }
        self.descriptor(file).filter(|fd| is_uncached(fd.as_raw_fd(), offset, len))
    }

    /// An asynchronous read has failed. After what is no matter of this file's bytes others may still be read directly.
    pub fn ring_failed(&self, error: &io::Error) {
        self.ringless.store(true, Ordering::Release);
        if !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EAGAIN | libc::EOPNOTSUPP)) {
            self.distrust();
        }
    }

    /// Reads as much of the beginning of `buf` as can be read so; returns how much.
    pub fn read(&self, file: BorrowedFd, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let fits = is_aligned(offset) && is_aligned(buf.len() as u64) && is_aligned(buf.as_ptr() as u64);
        let Some(open) = self.descriptor(file).filter(|_| fits) else { return Ok(0) };
        let fd = open.as_raw_fd();
        if cached(fd, offset, buf.len()).is_ok_and(|pages| pages > 0) {
            return Ok(0);
        }
        let mut done = 0;
        while done < buf.len() && is_aligned(done as u64) {
            let rest = &mut buf[done..];
            let (to, len, at) = (rest.as_mut_ptr().cast(), rest.len(), (offset + done as u64) as i64);
            // SAFETY: to and len describe the rest of `buf`, which is ours to fill.
            match retry(|| unsafe { libc::pread(fd, to, len, at) }) {
                Ok(0) => break,
                Ok(read) => done += read as usize,
                // It wants another alignment.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                // A read through the cache says what there is.
                Err(_) => {
                    self.distrust();
                    return Ok(0);
                }
            }
        }
        Ok(done)
    }

    /// Writes as much of the beginning of `data` as can be written so; returns how much. Where there is no room for the
    /// rest, that is no failure: a direct write that finds none may have changed some of it and not say how much, a write
    /// through the cache says.
    pub fn write(&self, file: BorrowedFd, data: &[u8], offset: u64) -> (usize, io::Result<()>) {
        let fits = is_aligned(offset) && is_aligned(data.len() as u64);
        let Some(open) = self.descriptor(file).filter(|_| fits) else { return (0, Ok(())) };
        let fd = open.as_raw_fd();
        let written = if is_aligned(data.as_ptr() as u64) {
            write_all(fd, data, offset)
        } else {
            ROOM.with_borrow_mut(|room| {
                let room = aligned(room, data.len());
                room.copy_from_slice(data);
                write_all(fd, room, offset)
            })
        };
        match written {
            (done, Err(error)) => {
                self.distrust();
                let full = matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
                (done, if full { Ok(()) } else { Err(error) })
            }
            all => all,
        }
    }
}

/// Opens a file with O_DIRECT; `None`: perhaps it can be had the next time.
fn open_again(file: BorrowedFd) -> Option<Slot> {
    // SAFETY: the descriptor is open; the call reads its flags.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    let path = proc_path(file.as_raw_fd());
    let flags = flags & libc::O_ACCMODE | libc::O_DIRECT | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: path is NUL-terminated. It is our own descriptor, which no link can lead away from.
    match retry(|| unsafe { libc::open(path.as_ptr(), flags) }) {
        // SAFETY: the descriptor was just opened and is owned by nobody else.
        Ok(fd) => Some(Slot::Open(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) }))),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => None,
        Err(_) => Some(Slot::Impossible),
    }
}

/// The `struct cachestat_range` of cachestat(2).
#[repr(C)]
struct CacheRange {
    offset: u64,
    len: u64,
}

/// Its `struct cachestat`; the kernel fills all of it.
#[repr(C)]
#[derive(Default)]
struct CacheState {
    cached: u64,
    dirty: u64,
    in_writing: u64,
    evicted: u64,
    lately_evicted: u64,
}

/// How many pages of a range are in the page cache; Linux 6.5 and later.
fn cached(fd: RawFd, offset: u64, len: usize) -> io::Result<u64> {
    /// The same on all architectures.
    const CACHESTAT: libc::c_long = 451;
    let (range, mut state) = (CacheRange { offset, len: len as u64 }, CacheState::default());
    // SAFETY: both structures have the layout that the call wants and live until it returns.
    retry(|| unsafe { libc::syscall(CACHESTAT, fd, &raw const range, &raw mut state, 0) }).map(|_| state.cached)
}

/// Whether nothing of a range is in the page cache, as far as the kernel says.
fn is_uncached(fd: RawFd, offset: u64, len: usize) -> bool {
    cached(fd, offset, len).is_ok_and(|pages| pages == 0)
}

/// Whether the kernel can say what is in the page cache. Without that nothing can be read asynchronously.
pub fn tells_cached() -> io::Result<()> {
    match cached(-1, 0, 1) {
        Err(error) if error.raw_os_error() != Some(libc::EBADF) => Err(error),
        _ => Ok(()),
    }
}

fn write_all(fd: RawFd, data: &[u8], offset: u64) -> (usize, io::Result<()>) {
    let mut done = 0;
    while done < data.len() && is_aligned(done as u64) {
        let rest = &data[done..];
        let (from, len, at) = (rest.as_ptr().cast(), rest.len(), (offset + done as u64) as i64);
        // SAFETY: from and len describe the rest of `data`.
        match retry(|| unsafe { libc::pwrite(fd, from, len, at) }) {
            Ok(0) => return (done, Err(io::Error::from_raw_os_error(libc::EIO))),
            Ok(written) => done += written as usize,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return (done, Err(error)),
        }
    }
    (done, Ok(()))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    /// A file of 10,000 bytes that are all different from their neighbours.
    fn file() -> (std::fs::File, Vec<u8>) {
        let bytes: Vec<u8> = (0..10_000u32).map(|i| (i * 7 % 251) as u8).collect();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        (file, bytes)
    }

    #[test]
    fn a_read_ends_where_the_file_does() {
        let ((file, bytes), direct, mut room) = (file(), Direct::default(), Vec::new());
        let room = aligned(&mut room, 3 * ALIGNMENT);
        let read = direct.read(file.as_fd(), room, 0).unwrap();
        // Nothing where the filesystem has no direct reads.
        assert!(read == 0 || read == bytes.len(), "{read}");
        assert_eq!(room[..read], bytes[..read]);
    }

    #[test]
    fn what_is_in_the_page_cache_is_read_from_there() {
        if tells_cached().is_err() {
            return eprintln!("SKIPPED: this kernel cannot say what is in the page cache");
        }
        let ((file, bytes), direct, mut room) = (file(), Direct::default(), Vec::new());
        let room = aligned(&mut room, ALIGNMENT);
        assert_eq!(direct.read(file.as_fd(), room, 0).unwrap(), 0, "it was just written");
        file.sync_all().unwrap();
        // SAFETY: the descriptor is open; the call touches no memory of ours.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        let read = direct.read(file.as_fd(), room, 0).unwrap();
        // Nothing where the filesystem has no direct reads.
        assert!(read == 0 || room[..read] == bytes[..ALIGNMENT], "{read}");
    }

    #[test]
    fn what_is_not_aligned_is_left_to_others() {
        let ((file, _), direct, mut room) = (file(), Direct::default(), Vec::new());
        let room = aligned(&mut room, 2 * ALIGNMENT);
        assert_eq!(direct.read(file.as_fd(), room, 512).unwrap(), 0);
        assert_eq!(direct.read(file.as_fd(), &mut room[..5000], 0).unwrap(), 0);
        assert_eq!(direct.read(file.as_fd(), &mut room[1..ALIGNMENT + 1], 0).unwrap(), 0);
        assert_eq!(direct.write(file.as_fd(), &room[..100], 0).0, 0);
    }

    #[test]
    fn data_of_any_address_is_written() {
        let ((file, mut bytes), direct) = (file(), Direct::default());
        let data = vec![9; ALIGNMENT + 1];
        let (written, failed) = direct.write(file.as_fd(), &data[1..], ALIGNMENT as u64);
        failed.unwrap();
        assert!(written == 0 || written == ALIGNMENT, "{written}");
        bytes[ALIGNMENT..ALIGNMENT + written].fill(9);
        let mut found = vec![0; bytes.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(found, bytes);
    }
}
