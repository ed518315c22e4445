//! Locks on ranges of blocks: a block that is being filled is filled once, by one thread.

use std::ops::Range;

use crate::sync::{Condvar, Mutex};

/// Locked ranges of one volume. Few are held at a time, so a list serves.
#[derive(Default)]
pub struct Ranges {
    held: Mutex<Vec<Range<u64>>>,
    freed: Condvar,
}

/// A locked range; unlocked when dropped.
pub struct Held<'a> {
    ranges: &'a Ranges,
    range: Range<u64>,
}

impl Ranges {
    /// Waits until no part of `range` is locked, then locks it. A thread that holds one range must not lock another.
    pub fn lock(&self, range: Range<u64>) -> Held<'_> {
        let mut held = self.held.lock();
        while held.iter().any(|h| h.start < range.end && range.start < h.end) {
            self.freed.wait(&mut held);
        }
        held.push(range.clone());
        Held { ranges: self, range }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self.ranges.held.lock();
        if let Some(at) = held.iter().position(|h| *h == self.range) {
            held.swap_remove(at);
        }
        drop(held);
        self.ranges.freed.notify_all();
    }
}
