//! Making a layer durable: data first, then the names of its files, then the map (R1).

use crate::sync::atomic::Ordering;
use std::path::Path;
use std::sync::Arc;

use super::map::{Delta, Map};
use super::{Latch, Layer, MapState};
use crate::engine::store::{LAYERS, data_path};
use crate::error::{Error, Result};

impl Layer {
    pub(super) fn failed(&self, operation: &'static str, error: std::io::Error) -> Error {
        Error::io(operation, error).at(data_path(self.file_id()))
    }

    /// The error to give while the layer is latched.
    pub fn check_latch(&self) -> Result<()> {
        let latch = self.latch.lock().clone();
        latch.check("use layer").map_err(|e| e.at(data_path(self.file_id())))
    }

    /// Records a failure after which nothing of this layer may be called durable.
    pub fn latch(&self, error: &std::io::Error) {
        self.latch.lock().set(error);
    }

    /// Uses the latch of the volume whose file this layer's data is.
    pub fn share_latch(&self, latch: &Arc<Latch>) {
        *self.latch.lock() = latch.clone();
    }

    /// The latch, for a volume whose file this layer's data becomes.
    pub fn latch_of_file(&self) -> Arc<Latch> {
        self.latch.lock().clone()
    }

    /// Whether something was written since the last flush.
    pub fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    /// Whether all that was written is durable, and known to be: a flush that is under way can still fail.
    pub fn is_settled(&self) -> bool {
        // The second look at `dirty`: the flush can have ended, and failed, between the first one and the lock's.
        !self.is_dirty() && !self.map.is_locked() && !self.is_dirty()
    }

    /// Marks a layer whose data was written by others (a plain file that was just frozen) as not yet durable.
    pub fn set_dirty(&self) {
        self.dirty.store(true, Ordering::Release);
    }

    /// Makes data and map durable, in this order. A failure of a data sync is latched: the next call fails too.
    /// A full disk while the map is appended to is not: nothing is lost, and a later call can succeed.
    pub fn flush(&self) -> Result<()> {
        let mut state = self.map.lock();
        if self.body.read().retired {
            return Ok(());
        }
        self.check_latch()?;
        self.dirty.store(false, Ordering::Release);
        let delta = {
            let mut body = self.body.write();
            let changed = body.extent_changed || !body.added.is_empty() || !body.cleared.is_empty();
            body.extent_changed = false;
            let (added, cleared) = (std::mem::take(&mut body.added), std::mem::take(&mut body.cleared));
            debug_assert!(body.complete || body.ends_by(self.size()), "blocks beyond the end of {:?}", self.id);
            let delta = Delta { size: self.size(), overlap: self.overlap(), added, cleared, replace: false };
            (changed && !body.complete).then_some(delta)
        };
        let result = self.flush_steps(&mut state, delta.as_ref());
        if result.is_err() {
            self.put_back(delta);
            if self.check_latch().is_err() {
                self.note_failure();
            }
        }
        result
    }

    fn flush_steps(&self, state: &mut MapState, delta: Option<&Delta>) -> Result<()> {
        if let Some(data) = self.data()? {
            // The stamp of a shared file is its modification time, which fdatasync does not make durable.
            let all = self.complete();
            let sync = || if all { data.sync_all() } else { data.sync_data() };
            let synced = self.latch_of_file().sync("sync layer data", sync);
            synced.map_err(|e| e.at(data_path(self.file_id())))?;
        }
        self.sync_names(state)?;
        let file = self.file_id();
        let path = || crate::engine::store::map_path(file);
        let Some(delta) = delta else {
            return state.map.as_mut().map_or(Ok(()), Map::assure).map_err(|e| {
                self.latch(&e);
                Error::io("sync map", e).at(path())
            });
        };
        if state.map.is_none() {
            // Only the size changed and nothing was ever written, or its descriptor was given back.
            self.ensure_map(state, file)?;
            self.sync_names(state)?;
        }
        if let Some(unsynced) = self.unsynced.get() {
            unsynced.check()?;
        }
        let map = self.ensure_map(state, file)?;
        map.append(delta).map_err(|e| {
            if !matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) {
                self.latch(&e);
            }
            Error::io("append to map", e).at(path())
        })?;
        // Whatever the reason: what a sync has failed to write counts as clean from then on.
        map.sync().map_err(|e| {
            self.latch(&e);
            Error::io("sync map", e).at(path())
        })?;
        self.map_records.store(map.records(), Ordering::Release);
        let body = self.body.read();
        if map.rewrite_due(&body.present) {
            // What is not durable yet must not get into the new log.
            let mut present = &body.present - &body.added;
            present |= &body.cleared;
            let whole = Delta { size: delta.size, overlap: delta.overlap, added: present, ..Delta::default() };
            drop(body);
            // A failure leaves the old log, which is as good.
            if map.rewrite(whole).is_ok() {
                self.map_records.store(1, Ordering::Release);
                // Old and new say the same, so this flush holds whichever a crash leaves; the next one needs the name.
                state.names_dirty = true;
                if self.sync_names(state).is_err() {
                    self.dirty.store(true, Ordering::Release);
                }
            }
        }
        Ok(())
    }

    fn sync_names(&self, state: &mut MapState) -> Result<()> {
        if state.names_dirty {
            self.fs.sync_dir(Path::new(LAYERS)).map_err(|e| {
                self.latch(&e);
                Error::io("sync layers directory", e).at(LAYERS)
            })?;
            state.names_dirty = false;
        }
        Ok(())
    }

    /// Gives the changes of a failed flush back, under those made since.
    fn put_back(&self, delta: Option<Delta>) {
        self.dirty.store(true, Ordering::Release);
        let Some(delta) = delta else { return };
        let mut body = self.body.write();
        let added = &delta.added - &body.cleared;
        // Blocks that the map has still, and that have come back: it need not be told of them.
        let back = &delta.cleared & &body.added;
        body.added -= &back;
        body.added |= added;
        body.cleared |= delta.cleared - back;
        body.extent_changed = true;
    }
}
