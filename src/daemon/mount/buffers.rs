//! Memory that requests are read into, which is there before the first one comes.
//!
//! A process that is killed while the kernel copies a request into memory that it has never touched cannot be given that
//! memory any more: the kernel then answers the request with EIO, and no server ever sees it. So the buffers that fuser
//! allocates are mapped here, as shared memory (which the reaper of a process killed for want of memory leaves alone),
//! with the part that requests come into populated, and locked where that is allowed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// How large a buffer of fuser 0.18 is; nothing else here asks for so much at once.
const SIZE: usize = (16 << 20) + 4096;
/// What a request takes at most: a write of 1 MiB, with what comes before the bytes.
const USED: usize = (1 << 20) + (8 << 10);
/// Most buffers at a time, one for each thread.
const MOST: usize = 512;

static ON: AtomicBool = AtomicBool::new(false);
static MAPPED: [AtomicUsize; MOST] = [const { AtomicUsize::new(0) }; MOST];

/// The system's allocator, but for those buffers.
pub struct Allocator;

/// From now on the buffers are mapped.
pub fn map_them() {
    ON.store(true, Ordering::Release);
}

fn map() -> Option<*mut u8> {
    let place =
        MAPPED.iter().position(|place| place.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire).is_ok())?;
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, which replaces nothing.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), SIZE, access, flags | libc::MAP_NORESERVE, -1, 0) };
    if base == libc::MAP_FAILED {
        MAPPED[place].store(0, Ordering::Release);
        return None;
    }
    // SAFETY: the range lies in the mapping. Where a call fails (an older kernel, a limit) the memory is as any other.
    unsafe {
        if libc::madvise(base, USED, libc::MADV_POPULATE_WRITE) != 0 {
            std::ptr::write_bytes(base.cast::<u8>(), 0, USED);
        }
        libc::mlock(base, USED);
    }
    MAPPED[place].store(base as usize, Ordering::Release);
    Some(base.cast())
}

/// Unmaps a buffer; `false`: it is none of them.
fn unmap(pointer: *mut u8) -> bool {
    let Some(place) = MAPPED.iter().find(|place| place.load(Ordering::Acquire) == pointer as usize) else {
        return false;
    };
    // SAFETY: it was mapped by `map` with this size, and its owner gives it back.
    unsafe { libc::munmap(pointer.cast(), SIZE) };
    place.store(0, Ordering::Release);
    true
}

// SAFETY: everything goes to the system's allocator, but for zeroed memory of one size, which a mapping of that size gives,
// zeroed and aligned to a page; it is given back in the way that it was got, which the table tells.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() == SIZE
            && layout.align() <= 4096
            && ON.load(Ordering::Acquire)
            && let Some(buffer) = map()
        {
            return buffer;
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if layout.size() != SIZE || !unmap(pointer) {
            // SAFETY: the caller's promise is passed on: it came from the system's allocator.
            unsafe { System.dealloc(pointer, layout) }
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if layout.size() != SIZE {
            // SAFETY: the caller's promise is passed on: nothing of another size was mapped.
            return unsafe { System.realloc(pointer, layout, size) };
        }
        // SAFETY: the new layout is not empty (the caller promises), both pieces have that many bytes, and the old one is
        // given back as it was got.
        unsafe {
            let new = System.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                std::ptr::copy_nonoverlapping(pointer, new, size.min(SIZE));
                self.dealloc(pointer, layout);
            }
            new
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages of a piece of memory that are there.
    fn present(pointer: *mut u8, length: usize) -> usize {
        let mut pages = vec![0u8; length / 4096];
        // SAFETY: the range is mapped, and there is a byte for each page.
        assert_eq!(unsafe { libc::mincore(pointer.cast(), length, pages.as_mut_ptr()) }, 0);
        pages.iter().filter(|page| **page & 1 != 0).count()
    }

    #[test]
    fn what_requests_come_into_is_there_and_no_more() {
        map_them();
        let layout = Layout::from_size_align(SIZE, 1).unwrap();
        // SAFETY: the layout is not empty.
        let buffer = unsafe { Allocator.alloc_zeroed(layout) };
        assert_eq!(present(buffer, USED), USED / 4096);
        assert!(present(buffer, SIZE) < 2 * USED / 4096, "all of it would slow the start");
        // SAFETY: got from this allocator with this layout.
        unsafe { Allocator.dealloc(buffer, layout) };
        assert!(MAPPED.iter().all(|place| place.load(Ordering::Acquire) == 0));
    }
}
