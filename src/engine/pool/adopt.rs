//! Adoption: when a frozen layer has one heir left and no name of its own, the heir's blocks are copied down into the
//! layer's file, and that file becomes the heir's. Few bytes move, and chains stay short.
//!
//! While blocks are copied, what they replace in the file is hidden by the heir's own copy of them, whose bits are
//! durable before the copying begins; so every crash leaves what was there. The switch is one journal record.

use crate::sync::atomic::Ordering;
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::Pool;
use crate::engine::events::{Event, What};
use crate::engine::layer::Layer;
use crate::engine::store::data_path;
use crate::engine::store::record::Change;
use crate::engine::volume::overlay::punch;
use crate::engine::volume::{State, Volume};
use crate::error::{Context, Result};
use crate::units::{BLOCK, Id, blocks};

/// Copied at once, in blocks.
const PIECE: u64 = 256;

impl Pool {
    /// Whether `heir` (a volume or a layer) can adopt its parent: it is the only one who reads it.
    pub fn can_adopt(&self, heir: Id, parent: &Layer) -> bool {
        let catalogue = self.env.store.catalogue();
        let only = catalogue.heir_count(parent.id) == 1 && catalogue.heirs(parent.id).all(|id| id == heir);
        let exists = catalogue.layer(parent.id).is_some();
        drop(catalogue);
        if !only || !exists || parent.pinned() || parent.check_latch().is_err() {
            return false;
        }
        if !parent.bad().is_empty() {
            return false;
        }
        if parent.is_empty() {
            return true;
        }
        // A plain file in the tree is still the user's: two names mean that one of them is. And one that was deleted
        // while somebody has it open, or is about to clone it, is theirs until they let go.
        let Ok(stat) = self.env.fs.stat(&data_path(parent.file_id())) else { return false };
        let (live, loading) = {
            let tables = self.tables.lock();
            (tables.volumes.get(&stat.key).and_then(std::sync::Weak::upgrade), tables.is_loading(stat.key))
        };
        stat.nlink == 1 && !loading && live.is_none_or(|volume| self.only_tokens_hold(&volume))
    }

    /// Lets `volume` adopt its parent, if it is the only heir. `stop` is asked now and then whether to give up.
    pub fn adopt_parent(&self, volume: &Arc<Volume>, stop: &dyn Fn() -> bool) -> Result<bool> {
        let _switching = volume.switching().lock();
        let (id, top, parent) = {
            let gate = volume.gate().read();
            let State::Overlay(overlay) = &*gate else { return Ok(false) };
            let Some(parent) = overlay.top.parent() else { return Ok(false) };
            (overlay.id, overlay.top.clone(), parent)
        };
        if !self.can_adopt(id, &parent) || !self.begin_adoption(id, &parent)? {
            return Ok(false);
        }
        let result = self.adopt_live(volume, id, &top, &parent, stop);
        if matches!(result, Ok(true)) {
            self.events.tell(Event::new(What::Adopted, volume.path()));
        } else {
            stays_frozen(&parent);
        }
        result
    }

    fn adopt_live(
        &self,
        volume: &Arc<Volume>,
        id: Id,
        top: &Arc<Layer>,
        parent: &Arc<Layer>,
        stop: &dyn Fn() -> bool,
    ) -> Result<bool> {
        {
            // From here on a clone or a reader that wants this moment of the volume gets a layer of its own above the
            // parent, not the parent itself, which is about to change.
            let _gate = volume.gate().write();
            let _ops = self.ops.lock();
            if !self.can_adopt(id, parent) {
                return Ok(false);
            }
            parent.set_adopting(true);
            top.watch_writes();
        }
        let result = self.merge_live(volume, id, top, parent, stop);
        top.take_touched();
        parent.set_adopting(false);
        result
    }

    /// The file is about to change: that, and that its stamp counts no more, if it has one from when it had a name, must
    /// be durable before.
    fn begin_adoption(&self, heir: Id, parent: &Layer) -> Result<bool> {
        // Before the look at the record: from here on nobody counts its map's records, or closes its files.
        parent.set_frozen(false);
        let begun = self.unsettle(heir, parent);
        if !matches!(begun, Ok(true)) {
            stays_frozen(parent);
        }
        begun
    }

    fn unsettle(&self, heir: Id, parent: &Layer) -> Result<bool> {
        if self.read_past(parent)? {
            return Ok(false);
        }
        let record = self.env.store.catalogue().layer(parent.id).cloned();
        let Some(mut record) = record else { return Ok(false) };
        if record.complete {
            // It was a file of the user's. That its names are gone must be durable, or a crash brings one back over
            // the blocks of the heir.
            self.env.fs.sync_fs().context("sync filesystem", "")?;
        }
        let before = record.clone();
        // Its map may be written anew, too, as one record.
        record.records = record.records.min(1);
        record.stamp = None;
        record.given = true;
        if record != before {
            let number = self.env.store.commit(vec![Change::Layer(record)])?;
            self.env.store.sync(number)?;
        }
        // Who came to read it before that was said is an heir now; from here on nobody else can.
        if !self.can_adopt(heir, parent) {
            return Ok(false);
        }
        self.forget_sums(parent)?;
        let (data, path) = (parent.data_for_writing()?, data_path(parent.file_id()));
        // A failed write can have left bytes beyond its end, which would be the heir's.
        if data.stat().context("look at layer data", &path)?.size > parent.size() {
            data.set_len(parent.size()).context("set size", &path)?;
        }
        // The heir can grow, shrink and be written to: it needs a map.
        parent.itemise();
        parent.open_map()?;
        Ok(true)
    }

    fn merge_live(
        &self,
        volume: &Arc<Volume>,
        id: Id,
        top: &Arc<Layer>,
        parent: &Arc<Layer>,
        stop: &dyn Fn() -> bool,
    ) -> Result<bool> {
        // Look, then flush, then copy: only blocks whose bits are durable may hide what is overwritten below them.
        let which = top.present();
        let syncing = {
            let gate = volume.gate().read();
            let State::Overlay(overlay) = &*gate else { return Ok(false) };
            overlay.syncing()
        };
        syncing.run(self.env.fs.as_ref(), &self.env.store, false)?;
        if !merge_blocks(top, parent, &which, stop)? {
            return Ok(false);
        }
        parent.flush()?;
        let gate = volume.gate().write();
        let State::Overlay(overlay) = &*gate else { return Ok(false) };
        if !Arc::ptr_eq(&overlay.top, top) {
            return Ok(false);
        }
        top.flush()?;
        merge_blocks(top, parent, &(top.take_touched() & top.present()), &|| false)?;
        let overlap = hide_invisible(top, parent)?;
        overlay.pristine.store(false, Ordering::Release);
        let ops = self.ops.lock();
        if !self.can_adopt(id, parent) {
            return Ok(false);
        }
        let number = self.env.store.commit_with(|catalogue| {
            let Some(mut record) = catalogue.volume(id).cloned() else { return Vec::new() };
            record.file = parent.file_id();
            record.parent = parent.parent().map(|p| p.id);
            record.overlap = overlap;
            record.size = top.size();
            record.complete = parent.complete();
            record.mapped = parent.mapped();
            vec![Change::DropLayer(parent.id), Change::Volume(record)]
        })?;
        // Whatever is synced from now on lies in the other file, which counts for nothing without this record.
        overlay.debts.commit.fetch_max(number, Ordering::AcqRel);
        let old = top.take_files(parent, overlap);
        drop(ops);
        self.switched(top, parent, old, number)?;
        Ok(true)
    }

    /// Lets the frozen layer `heir` adopt its parent.
    pub fn adopt_frozen(&self, heir: &Arc<Layer>, stop: &dyn Fn() -> bool) -> Result<bool> {
        let Some(parent) = heir.parent() else { return Ok(false) };
        if heir.complete() || !self.can_adopt(heir.id, &parent) || !self.begin_adoption(heir.id, &parent)? {
            return Ok(false);
        }
        let result = self.merge_frozen(heir, &parent, stop);
        if !matches!(result, Ok(true)) {
            stays_frozen(&parent);
        }
        result
    }

    fn merge_frozen(&self, heir: &Arc<Layer>, parent: &Arc<Layer>, stop: &dyn Fn() -> bool) -> Result<bool> {
        heir.flush()?;
        if !merge_blocks(heir, parent, &heir.present(), stop)? {
            return Ok(false);
        }
        let overlap = hide_invisible(heir, parent)?;
        let ops = self.ops.lock();
        if !self.can_adopt(heir.id, parent) || self.env.store.catalogue().layer(heir.id).is_none() {
            return Ok(false);
        }
        let number = self.env.store.commit_with(|catalogue| {
            let Some(mut record) = catalogue.layer(heir.id).cloned() else { return Vec::new() };
            record.file = parent.file_id();
            record.parent = parent.parent().map(|p| p.id);
            record.overlap = overlap;
            record.complete = parent.complete();
            record.records = parent.mapped().into();
            vec![Change::DropLayer(parent.id), Change::Layer(record)]
        })?;
        let old = heir.take_files(parent, overlap);
        drop(ops);
        self.switched(heir, parent, old, number)?;
        // Nothing writes to it any more, so nothing else would: then its descriptors can be given back.
        heir.flush()?;
        Ok(true)
    }

    /// After the record: the rest of the switch in memory, and the files that nothing names any more go.
    fn switched(&self, heir: &Layer, parent: &Layer, old: Id, number: u64) -> Result<()> {
        heir.forget_owners();
        self.sum_again(heir.id);
        {
            let mut tables = self.tables.lock();
            tables.layers.remove(&parent.id);
            // It may have had a name in the tree when the pool was opened; the file is the heir's now.
            tables.shared.retain(|_, layer| *layer != parent.id);
        }
        self.env.store.sync(number)?;
        self.unlink_files(old);
        // Last, as a file that is longer than its volume does no harm, while one that is shorter than its map would.
        let data = heir.data_for_writing()?;
        let path = data_path(heir.file_id());
        if data.stat().context("look at layer data", &path)?.size > heir.size() {
            data.set_len(heir.size()).context("set size", &path)?;
        }
        Ok(())
    }
}

/// Nothing is written to a layer that was not adopted after all; durable, its descriptors can be given back. Where that
/// fails the layer is latched or tried again, and it keeps them.
fn stays_frozen(parent: &Layer) {
    let _ = parent.flush();
    parent.set_frozen(true);
}

/// Copies `which` blocks of `upper` into the file of `lower`. `false`: stopped before the end.
fn merge_blocks(upper: &Layer, lower: &Layer, which: &RoaringBitmap, stop: &dyn Fn() -> bool) -> Result<bool> {
    let Some(source) = upper.data()? else { return Ok(true) };
    let target = lower.data_for_writing()?;
    let path = || data_path(lower.file_id());
    // One that shrinks meanwhile loses what is too much at the end of the adoption.
    let size = upper.size();
    let end = blocks(size);
    let mut buffer = vec![0; (PIECE * BLOCK) as usize];
    let mut iter = which.iter();
    while let Some(run) = iter.next_range() {
        let (mut at, to) = (*run.start() as u64, (*run.end() as u64 + 1).min(end));
        while at < to {
            if stop() {
                return Ok(false);
            }
            let count = (to - at).min(PIECE);
            upper.check_sound(at, at + count)?;
            let piece = &mut buffer[..(count * BLOCK) as usize];
            let got = source.read_at(piece, at * BLOCK).context("read layer data", path())?;
            // Whole blocks, with zeros after the end: it can grow while this runs, and what lies there then shows. It can
            // shrink too, which is made good at the end of the adoption.
            piece[got..].fill(0);
            if piece.iter().all(|&b| b == 0) {
                punch(&target, at * BLOCK, count * BLOCK).context("punch layer data", path())?;
            } else {
                target.write_at(piece, at * BLOCK).context("write layer data", path())?;
            }
            lower.mark_and_grow(at, at + count, ((at + count) * BLOCK).min(size));
            at += count;
        }
    }
    Ok(true)
}

/// Makes what `upper` does not show of `lower` read as zeros in it, gives it the end of `upper`, and makes it durable.
/// Beyond that end nothing is present any more (E1): were it to stay so, a volume that grows would find blocks there that
/// it takes for its own, and would not note that it writes to them. Returns how much of the layer below `lower` can be
/// seen from then on.
fn hide_invisible(upper: &Layer, lower: &Layer) -> Result<u64> {
    let target = lower.data_for_writing()?;
    let path = || data_path(lower.file_id());
    let punch_blocks =
        |from: u64, to: u64| punch(&target, from * BLOCK, (to - from) * BLOCK).context("punch layer data", path());
    let (hidden, end, stop) = (upper.overlap(), blocks(upper.size()), blocks(lower.size()));
    for (run, present) in upper.runs(hidden, end.max(hidden)) {
        if !present {
            punch_blocks(run.start, run.end)?;
            lower.mark_and_grow(run.start, run.end, (run.end * BLOCK).min(upper.size()));
        }
    }
    if end < stop {
        // The file is cut only after the switch, which can fail.
        punch_blocks(end, stop)?;
    }
    let overlap = lower.overlap().min(hidden).min(end);
    if target.stat().context("look at layer data", path())?.size < upper.size() {
        target.set_len(upper.size()).context("set size", path())?;
    }
    lower.set_extent(upper.size(), overlap);
    lower.flush()?;
    Ok(overlap)
}
