//! Which blocks a layer has.

use roaring::RoaringBitmap;

use super::{Layer, span};
use crate::sync::atomic::Ordering;
use crate::units::blocks;

impl Layer {
    /// Number of blocks it has.
    pub fn present_count(&self) -> u64 {
        let body = self.body.read();
        if body.complete { blocks(self.size()) } else { body.present.len() }
    }

    /// Number of blocks of `[0, end)` that it has.
    pub fn present_below(&self, end: u64) -> u64 {
        let body = self.body.read();
        if body.complete { end } else { body.present.range_cardinality(span(0, end)) }
    }

    /// Whether it has all of the blocks `[start, end)`.
    pub fn has_all(&self, start: u64, end: u64) -> bool {
        let body = self.body.read();
        body.complete || start >= end || body.present.contains_range(span(start, end))
    }

    /// Whether it has a block.
    pub fn has(&self, block: u64) -> bool {
        let body = self.body.read();
        body.complete || u32::try_from(block).is_ok_and(|b| body.present.contains(b))
    }

    /// The parts of `[start, end)` that it has (`true`) and does not have, in order.
    pub fn runs(&self, start: u64, end: u64) -> Vec<(std::ops::Range<u64>, bool)> {
        let body = self.body.read();
        if body.complete {
            return vec![(start..end, true)];
        }
        let mut runs = Vec::with_capacity(4);
        let mut at = start;
        let mut iter = body.present.range(span(start, end));
        while let Some(run) = iter.next_range() {
            let (from, to) = (*run.start() as u64, *run.end() as u64 + 1);
            if from > at {
                runs.push((at..from, false));
            }
            runs.push((from..to, true));
            at = to;
        }
        if at < end {
            runs.push((at..end, false));
        }
        runs
    }

    /// First run of absent blocks in `[start, end)`.
    pub fn next_absent(&self, start: u64, end: u64) -> Option<std::ops::Range<u64>> {
        let body = self.body.read();
        if body.complete || start >= end {
            return None;
        }
        let mut at = start;
        let mut iter = body.present.range(span(start, end));
        while let Some(run) = iter.next_range() {
            if *run.start() as u64 > at {
                return Some(at..*run.start() as u64);
            }
            at = *run.end() as u64 + 1;
        }
        (at < end).then_some(at..end)
    }

    /// A copy of the set of present blocks, for a layer that is not complete.
    pub fn present(&self) -> RoaringBitmap {
        self.body.read().present.clone()
    }

    /// Records that blocks `[start, end)` are now in the data file.
    pub fn mark(&self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let mut body = self.body.write();
        if let Some(touched) = &mut body.touched {
            touched.insert_range(span(start, end));
        }
        if !body.complete {
            let range = span(start, end);
            // Only what is new: a block that the map on disk has must not be taken for one that it does not have yet.
            let mut new = RoaringBitmap::new();
            new.insert_range(range.clone());
            new -= &body.present;
            body.present.insert_range(range);
            body.cleared -= &new;
            body.added |= new;
        }
        drop(body);
        self.dirty.store(true, Ordering::Release);
    }

    /// Records a write to blocks that were present already.
    pub fn touch(&self, start: u64, end: u64) {
        self.dirty.store(true, Ordering::Release);
        if self.body.read().touched.is_some()
            && let Some(touched) = &mut self.body.write().touched
        {
            touched.insert_range(span(start, end));
        }
    }

    /// Makes blocks absent again: blocks that are zeros and whose data was never written, or that lie beyond the end.
    pub fn clear(&self, start: u64, end: u64) {
        let mut body = self.body.write();
        if body.complete {
            return;
        }
        let mut range = RoaringBitmap::new();
        range.insert_range(span(start, end));
        range &= &body.present;
        if let Some(touched) = &mut body.touched {
            *touched |= &range;
        }
        body.present -= &range;
        let unwritten = &body.added & &range;
        body.added -= &range;
        body.cleared |= range - unwritten;
        drop(body);
        self.dirty.store(true, Ordering::Release);
    }

    /// Which of the blocks `[start, end)` it has, for a layer that is not complete.
    pub fn present_between(&self, start: u64, end: u64) -> RoaringBitmap {
        let body = self.body.read();
        let mut range = RoaringBitmap::new();
        if !body.complete {
            range.insert_range(span(start, end));
            range &= &body.present;
        }
        range
    }

    /// Undoes [`Layer::clear`] for these blocks.
    pub fn restore(&self, lost: &RoaringBitmap) {
        let mut iter = lost.iter();
        while let Some(run) = iter.next_range() {
            self.mark(*run.start() as u64, *run.end() as u64 + 1);
        }
    }

    /// Begins to remember written blocks; [`Layer::take_touched`] ends it.
    pub fn watch_writes(&self) {
        self.body.write().touched = Some(RoaringBitmap::new());
    }

    /// Blocks written since [`Layer::watch_writes`]; stops remembering.
    pub fn take_touched(&self) -> RoaringBitmap {
        self.body.write().touched.take().unwrap_or_default()
    }
}
