//! Which blocks a layer has.

use roaring::RoaringBitmap;

use std::sync::Arc;

use super::unsynced::{Change, Unsynced};
use super::{Body, Layer, span};
use crate::sync::atomic::Ordering;
use crate::units::{Id, blocks};

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

    /// Records that blocks `[start, end)`, which lie within the volume, are now in the data file.
    pub fn mark(&self, start: u64, end: u64) {
        if start < end {
            self.mark_and_grow(start, end, 0);
        }
    }

    /// Records that blocks `[start, end)` are now in the data file of a volume that has at least `size` bytes. Both at
    /// once: a sync, or another's note of the size, between the two would take the blocks for some beyond the end (E1).
    pub fn mark_and_grow(&self, start: u64, end: u64, size: u64) {
        debug_assert!(start < end && end <= blocks(size).max(blocks(self.size())));
        let mut body = self.body.write();
        if let Some(touched) = &mut body.touched {
            touched.insert_range(span(start, end));
        }
        if !body.complete {
            let mut range = RoaringBitmap::new();
            range.insert_range(span(start, end));
            body.insert(&range);
        }
        // The blocks first: who sees the new size must see what is in it.
        let grown = self.size.fetch_max(size, Ordering::AcqRel) < size;
        body.extent_changed |= grown;
        let (file, noted) = (body.file, !body.complete);
        drop(body);
        self.dirty.store(true, Ordering::Release);
        if noted {
            self.note(file, Change::Present(start, end));
        }
        if grown {
            self.note_extent();
        }
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

    /// Makes blocks absent again: blocks that are zeros and whose data was never written.
    pub fn clear(&self, start: u64, end: u64) {
        let mut body = self.body.write();
        if body.complete {
            return;
        }
        body.remove(start, end);
        let file = body.file;
        drop(body);
        self.dirty.store(true, Ordering::Release);
        self.note(file, Change::Absent(start, end));
    }

    /// Sets a smaller size in bytes and as many visible blocks of the parent as there then can be. Blocks beyond become
    /// absent; they are returned, for [`Layer::grow_back`]. A sync that comes in between sees all of it or nothing.
    pub fn shrink(&self, size: u64) -> RoaringBitmap {
        self.set_extent(size, self.overlap().min(blocks(size)))
    }

    /// Sets the size in bytes and how many blocks of the parent can be seen. Blocks beyond the end become absent; they
    /// are returned. The data file is the caller's business.
    pub fn set_extent(&self, size: u64, overlap: u64) -> RoaringBitmap {
        let mut body = self.body.write();
        let lost = if body.complete { RoaringBitmap::new() } else { body.remove(blocks(size), u64::MAX) };
        self.size.store(size, Ordering::Release);
        self.overlap.store(overlap, Ordering::Release);
        body.extent_changed = true;
        drop(body);
        self.dirty.store(true, Ordering::Release);
        self.note_extent();
        lost
    }

    /// Undoes a [`Layer::shrink`] from `size` and `overlap`.
    pub fn grow_back(&self, lost: &RoaringBitmap, size: u64, overlap: u64) {
        let mut body = self.body.write();
        self.size.store(size, Ordering::Release);
        self.overlap.store(overlap, Ordering::Release);
        body.extent_changed = true;
        if !body.complete {
            body.insert(lost);
        }
        let file = body.file;
        drop(body);
        self.dirty.store(true, Ordering::Release);
        self.note_extent();
        let mut iter = lost.iter();
        while let Some(run) = iter.next_range() {
            self.note(file, Change::Present(*run.start() as u64, *run.end() as u64 + 1));
        }
    }

    /// Has all changes noted in `unsynced` from now on.
    pub fn note_changes(&self, unsynced: &Arc<Unsynced>) {
        let _ = self.unsynced.set(unsynced.clone());
    }

    /// Size or overlap were changed.
    pub(super) fn extent_changed(&self) {
        self.body.write().extent_changed = true;
        self.dirty.store(true, Ordering::Release);
        self.note_extent();
    }

    pub(super) fn note_extent(&self) {
        let body = self.body.read();
        // What the note says of all blocks beyond the end must be so.
        debug_assert!(body.complete || body.ends_by(self.size()), "blocks beyond the end of {:?}", self.id);
        let (file, noted) = (body.file, !body.complete);
        drop(body);
        if let (Some(unsynced), true) = (self.unsynced.get(), noted) {
            // Looked at under the log's lock: of two that grow at once the last to note has the larger size.
            unsynced.note_with(file, || Change::Extent(self.size(), self.overlap()));
        }
    }

    /// Notes a change, after it was made, and before anybody is told that it was.
    pub(super) fn note(&self, file: Id, change: Change) {
        if let Some(unsynced) = self.unsynced.get() {
            unsynced.note_with(file, || change);
        }
    }

    /// Notes that nobody knows what of this layer is in its file, after a failed sync.
    pub fn note_failure(&self) {
        self.note(self.file_id(), Change::Failed);
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

impl Body {
    /// Makes blocks present. Only what is new counts as added: a block that the map on disk has must not be taken for
    /// one that it does not have yet.
    fn insert(&mut self, range: &RoaringBitmap) {
        let mut new = range - &self.present;
        self.present |= range;
        let known = &self.cleared & &new;
        self.cleared -= &known;
        new -= known;
        self.added |= new;
    }

    /// Makes blocks absent; returns those that were present.
    fn remove(&mut self, start: u64, end: u64) -> RoaringBitmap {
        // Run by run: a set of all blocks up to the largest number would take 512 MiB.
        let mut range = RoaringBitmap::new();
        let mut iter = self.present.range(span(start, end));
        while let Some(run) = iter.next_range() {
            range.insert_range(run);
        }
        if let Some(touched) = &mut self.touched {
            *touched |= &range;
        }
        self.present -= &range;
        let unwritten = &self.added & &range;
        self.added -= &range;
        self.cleared |= &range - unwritten;
        range
    }

    /// Makes what a map says beyond the end of the volume absent. The next flush tells the map.
    pub(super) fn forget_beyond(&mut self, size: u64) {
        drop(self.remove(blocks(size), u64::MAX));
    }

    /// Whether nothing beyond that size is present.
    pub(super) fn ends_by(&self, size: u64) -> bool {
        self.present.max().is_none_or(|last| u64::from(last) < blocks(size))
    }
}
