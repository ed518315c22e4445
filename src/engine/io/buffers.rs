//! Aligned room for reads that end on another thread than they began on.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use parking_lot::Mutex;

use super::direct::ALIGNMENT;

/// Lengths of buffers: 4 KiB times a power of two, up to the longest request.
const CLASSES: usize = 9;
/// Bytes of each length that are kept for the next read.
const KEPT: usize = 2 << 20;

/// Buffers that nobody uses at the moment.
#[derive(Default)]
pub struct Buffers {
    free: Mutex<[Vec<Block>; CLASSES]>,
}

/// Memory of its own, at an address that direct reads can use.
struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a block owns its memory alone, like a Box; nothing of it depends on the thread.
unsafe impl Send for Block {}
// SAFETY: through a shared reference the memory is only read.
unsafe impl Sync for Block {}

impl Block {
    fn new(len: usize) -> Option<Block> {
        let layout = Layout::from_size_align(len, ALIGNMENT).ok()?;
        // SAFETY: the layout's size is not zero, as `class` gives none that is.
        let start = unsafe { alloc_zeroed(layout) };
        Some(Block { start: NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout)), layout })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout, and is freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// Room for one read; given back when it is dropped.
pub struct Buffer {
    /// Always there, until the drop.
    block: Option<Block>,
    len: usize,
    class: usize,
    home: Arc<Buffers>,
}

/// The class of buffers of `len` bytes.
fn class(len: usize) -> Option<usize> {
    let pages = len.max(1).div_ceil(ALIGNMENT).next_power_of_two();
    let class = pages.trailing_zeros() as usize;
    (class < CLASSES).then_some(class)
}

impl Buffers {
    /// Room for `len` bytes, whatever is in it; `None` for more than the longest request.
    pub fn take(self: &Arc<Self>, len: usize) -> Option<Buffer> {
        let class = class(len)?;
        let known = self.free.lock()[class].pop();
        let block = match known {
            Some(block) => block,
            None => Block::new(ALIGNMENT << class)?,
        };
        Some(Buffer { block: Some(block), len, class, home: self.clone() })
    }
}

impl Buffer {
    /// Where the bytes are; the same for as long as it lives, wherever the buffer itself is moved.
    pub fn address(&mut self) -> *mut u8 {
        self.block.as_ref().map_or(std::ptr::null_mut(), |block| block.start.as_ptr())
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.block {
            // SAFETY: the block has at least `len` bytes, which were zeros at first, and is ours.
            Some(block) => unsafe { std::slice::from_raw_parts(block.start.as_ptr(), self.len) },
            None => &[],
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.block {
            // SAFETY: the block has at least `len` bytes, which were zeros at first, and is ours alone.
            Some(block) => unsafe { std::slice::from_raw_parts_mut(block.start.as_ptr(), self.len) },
            None => &mut [],
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = self.home.free.lock();
        let kept = &mut free[self.class];
        if kept.len() < KEPT / (ALIGNMENT << self.class) {
            kept.extend(self.block.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_used_again() {
        let home = Arc::new(Buffers::default());
        for len in [1, 4096, 4097, 100_000, 1 << 20] {
            let mut buffer = home.take(len).unwrap();
            assert_eq!((buffer.len(), buffer.address() as usize % ALIGNMENT), (len, 0));
            buffer.fill(7);
            let before = buffer.address();
            drop(buffer);
            assert_eq!(home.take(len).unwrap().address(), before);
        }
        assert!(home.take((1 << 20) + 1).is_none());
    }

    #[test]
    fn no_more_are_kept_than_one_can_afford() {
        let home = Arc::new(Buffers::default());
        let many: Vec<Buffer> = (0..20).map(|_| home.take(1 << 20).unwrap()).collect();
        drop(many);
        assert_eq!(home.free.lock()[8].len(), KEPT >> 20);
    }
}
