//! Making volumes durable in the background, so that what nobody syncs is safe within seconds, as with any file.

use std::sync::Arc;
use std::sync::Weak;

use super::{Pool, stub};
use crate::engine::layer::Layer;
use crate::engine::store::record::{Change, LayerRecord, VolumeRecord};
use crate::engine::store::stub_path;
use crate::engine::volume::{State, Volume};
use crate::error::{Context, Result};
use crate::sync::Mutex;
use crate::sync::atomic::Ordering;
use crate::units::Id;

/// From this many files on, one sync of the whole filesystem is cheaper than one of each.
pub(super) const MANY: usize = 8;

/// So many of them are synced at the same time.
const SYNCS: usize = 16;

/// An eighth of the descriptors that this process can have: a volume that is not durable holds up to three of them, for
/// its stub, its data and its map.
pub(super) fn most_unsettled() -> usize {
    (open_files() / 8).max(1)
}

/// So many files this process may have open.
pub(crate) fn open_files() -> usize {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20) as usize
}

impl Pool {
    /// Makes everything durable if too many volumes are not. What fails there is the affair of those that it is about.
    pub(super) fn limit_unsettled(&self) {
        let many = self.tables.lock().unsettled.len() >= self.most_unsettled;
        if many {
            self.flush_quietly();
        }
    }

    /// Makes everything durable for the sake of descriptors, not of durability: a failure is not the caller's.
    pub(crate) fn flush_quietly(&self) {
        if let Err(error) = self.flush() {
            tracing::warn!("cannot make writes durable: {error}");
        }
    }

    /// Makes everything written so far durable.
    pub fn flush(&self) -> Result<()> {
        if self.options.read_only {
            return Ok(());
        }
        self.forget_blank();
        let noted = self.env.unsynced.position();
        let volumes = self.dirty_volumes();
        let many = volumes.len() > MANY;
        // Which names there are before that: a volume can get others while it goes on.
        let names: Vec<_> = volumes.iter().map(|volume| if many { volume.debts() } else { None }).collect();
        if many {
            // What follows then finds nothing left to write, and need not sync names one by one.
            self.env.fs.sync_fs().context("sync filesystem", "")?;
        }
        // Together: a journalling filesystem makes many syncs that wait at the same time in one commit.
        let outcome = Mutex::new((None, true));
        self.env.fs.each(SYNCS, volumes.len(), &|index| {
            let volume = &volumes[index];
            match volume.sync_as(true, names[index].as_ref()) {
                Ok(()) => self.settle(volume),
                Err(error) => {
                    let in_maps = volume.note_failure();
                    let (first_error, all_in_maps) = &mut *outcome.lock();
                    *all_in_maps &= in_maps;
                    first_error.get_or_insert(error);
                }
            }
        });
        let (mut first_error, all_in_maps) = outcome.into_inner();
        if all_in_maps {
            self.env.unsynced.drop_before(noted);
        }
        self.note_maps();
        self.note_places();
        let committed = self.env.store.committed();
        match self.env.store.sync(committed) {
            // From here on no volume owes a commit either.
            Ok(()) => self.settle_synced(),
            Err(error) => drop(first_error.get_or_insert(error)),
        }
        if self.env.store.checkpoint_due() {
            self.env.store.checkpoint()?;
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Has the catalogue know which layers have a map, so that a map that is lost later is missed. A failure, on a full
    /// disk perhaps, costs nothing but that knowledge.
    fn note_maps(&self) {
        let volumes = self.live_volumes();
        let layers: Vec<Arc<Layer>> = {
            let tables = self.tables.lock();
            tables.layers.values().filter_map(Weak::upgrade).filter(|l| l.map_unnoted() && l.at_rest()).collect()
        };
        let top = |volume: &Arc<Volume>| match &*volume.gate().read() {
            State::Overlay(overlay) if overlay.top.map_unnoted() => Some((overlay.id, overlay.top.clone())),
            _ => None,
        };
        let tops: Vec<(Id, Arc<Layer>)> = volumes.iter().filter_map(top).collect();
        if tops.is_empty() && layers.is_empty() {
            return;
        }
        let told = self.env.store.commit_with(|catalogue| {
            // Only while the record is still about this file.
            let of_top = |(id, top): &(Id, Arc<Layer>)| {
                let record = catalogue.volume(*id).filter(|r| r.file == top.file_id() && !r.mapped)?;
                Some(Change::Volume(VolumeRecord { mapped: true, ..record.clone() }))
            };
            let of_layer = |layer: &Arc<Layer>| {
                let about = |r: &&LayerRecord| r.file == layer.file_id() && !r.complete && layer.at_rest();
                let record = catalogue.layer(layer.id).filter(about)?;
                Some(Change::Layer(LayerRecord { records: layer.map_records(), ..record.clone() }))
            };
            tops.iter().filter_map(of_top).chain(layers.iter().filter_map(of_layer)).collect()
        });
        if told.is_ok() {
            tops.iter().map(|(_, top)| top).chain(&layers).for_each(|layer| layer.set_map_noted());
        }
    }

    /// Volumes in memory that hold something which is not durable, or not known to be.
    fn dirty_volumes(&self) -> Vec<Arc<Volume>> {
        self.live_volumes().into_iter().filter(|volume| !volume.is_settled()).collect()
    }

    /// Volumes in memory, each once.
    fn live_volumes(&self) -> Vec<Arc<Volume>> {
        let mut seen = std::collections::HashSet::new();
        let tables = self.tables.lock();
        let live = tables.volumes.values().filter_map(Weak::upgrade).chain(tables.unsettled.values().cloned());
        live.filter(|volume| seen.insert(volume.serial)).collect()
    }

    /// After a sync: the text of a new stub can be written, and the volume need not be kept in memory.
    fn settle(&self, volume: &Arc<Volume>) {
        volume.settle_mtime();
        self.describe_stub(volume);
        let latched = match &*volume.gate().read() {
            State::Overlay(overlay) => overlay.check_latch().is_err(),
            State::Plain(plain) => plain.check_latch().is_err(),
            State::Broken { .. } => false,
        };
        if !latched && volume.is_settled() {
            self.tables.lock().unsettled.remove(&volume.serial);
            if !volume.is_settled() {
                // Whoever changed it meanwhile wanted it kept, perhaps before it was removed here.
                self.keep_unsettled(volume);
            }
        }
    }

    /// Writes the text of a stub that has none yet. Its mark, its link and its record must be durable: with the text and
    /// without them it would pass for a user's file.
    pub(super) fn describe_stub(&self, volume: &Volume) {
        if let State::Overlay(overlay) = &*volume.gate().read()
            // Until then a crash makes of the stub the file that it was.
            && !overlay.debts.names_dirty.load(Ordering::Acquire)
            && stub::lacks_text(overlay.stub.as_ref())
        {
            // A failure costs people who look at the pool without clonefs a hint, and nothing else.
            let _ = stub::describe(overlay.stub.as_ref(), overlay.id, overlay.top.size());
        }
    }

    /// Keeps a volume in memory until it is durable, unless it has been removed.
    pub(super) fn keep_unsettled(&self, volume: &Arc<Volume>) {
        let id = match &*volume.gate().read() {
            State::Overlay(overlay) => Some(overlay.id),
            State::Plain(_) => None,
            State::Broken { .. } => return,
        };
        let mut tables = self.tables.lock();
        if id.is_none_or(|id| self.env.store.catalogue().volume(id).is_some()) {
            tables.unsettled.insert(volume.serial, volume.clone());
        }
    }

    /// The same for those that somebody else has synced since they were kept.
    fn settle_synced(&self) {
        let kept: Vec<Arc<Volume>> = self.tables.lock().unsettled.values().cloned().collect();
        let unnoted = |state: &State| matches!(state, State::Overlay(overlay) if overlay.top.map_unnoted());
        let done = |volume: &&Arc<Volume>| volume.is_settled() && !unnoted(&volume.gate().read());
        kept.iter().filter(done).for_each(|volume| self.settle(volume));
    }

    /// Whether a stub's link is where it must be; for checks.
    pub fn stub_in_place(&self, volume: &Volume) -> bool {
        match &*volume.gate().read() {
            State::Overlay(overlay) => self.env.fs.stat(&stub_path(overlay.id)).is_ok(),
            _ => true,
        }
    }

    /// Has background work look again.
    pub(super) fn wake_background(&self) {
        self.work.lock().stirred += 1;
        self.stirred.notify_all();
    }
}
