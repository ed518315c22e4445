//! Going back: a volume becomes again what a snapshot of it shows, or what it was when it was made as a clone. O(1): it
//! gets a new, empty layer over the frozen one that shows that; what it held itself is removed in the background.
//!
//! An overlay keeps its stub, and one journal record is all. A plain file gets a stub in its place, as when it is frozen:
//!
//! | crash after | what is found |
//! |---|---|
//! | the record is durable | a volume whose stub is in no directory: removed. The file is as before |
//! | the rename | the volume as it was then |

use std::sync::Arc;

use super::reap::Dead;
use super::replace::{Changed, Past};
use super::{Pool, Spot};
use crate::engine::io::{FileKey, FileRef, SetTime, Timestamp};
use crate::engine::layer::Layer;
use crate::engine::store::new_id;
use crate::engine::store::record::{Change, VolumeRecord};
use crate::engine::volume::overlay::Overlay;
use crate::engine::volume::{State, Volume};
use crate::error::{Context, Error, Kind, Result};
use crate::sync::atomic::Ordering;
use crate::units::{Id, blocks};

impl Pool {
    /// Makes `volume`, which nobody may have open, what the snapshot `id` shows. Its name, owner, mode and attributes stay.
    pub fn roll_back(&self, volume: &Arc<Volume>, id: Id) -> Result<()> {
        let record = self.env.store.catalogue().volume(id).filter(|r| r.snapshot.is_some()).cloned();
        let record = record.ok_or_else(|| Error::new(Kind::NotFound, "roll back").at(volume.path()))?;
        let layer = record.parent.map(|id| self.need_layer(id)).transpose()?;
        self.rewind(volume, "roll back", &Past { layer, overlap: record.overlap, size: record.size })
    }

    /// Makes `volume`, which nobody may have open, what it was when it was made as a clone. `who` must have owned it then;
    /// `None`: somebody who may do all.
    pub fn reset(&self, volume: &Arc<Volume>, who: Option<u32>) -> Result<()> {
        let id = match &*volume.gate().read() {
            State::Overlay(overlay) => overlay.id,
            _ => return Err(nothing_left(volume, "it is an ordinary file")),
        };
        let record = self.env.store.catalogue().volume(id).cloned();
        let base = record.and_then(|record| record.base);
        let base = base.ok_or_else(|| nothing_left(volume, "it was not made as a clone"))?;
        if who.is_some_and(|uid| uid != base.uid) {
            return Err(Error::new(Kind::Permission, "reset")
                .at(volume.path())
                .because("it was another user's when it was made as a clone")
                .remedy("root can do it"));
        }
        self.check_kept(volume, Some(base.layer))?;
        let layer = Some(self.need_layer(base.layer)?);
        self.rewind(volume, "reset", &Past { layer, overlap: base.visible, size: base.size })
    }

    /// Whether a layer still is what it was: nobody has adopted it, or begun to. Nobody begins to while it has another
    /// heir, so under `ops` with the commit of that one this stays true.
    fn check_kept(&self, volume: &Volume, layer: Option<Id>) -> Result<()> {
        let catalogue = self.env.store.catalogue();
        match layer.map(|id| catalogue.layer(id)) {
            None => Ok(()),
            Some(Some(record)) if !record.given => Ok(()),
            _ => Err(nothing_left(volume, "what it was cloned from is no longer kept: it was taken over")),
        }
    }

    fn need_layer(&self, id: Id) -> Result<Arc<Layer>> {
        self.frozen_layer(id)?.ok_or_else(|| Error::new(Kind::Damaged, "open layer").because("it has no record"))
    }

    fn rewind(&self, volume: &Arc<Volume>, doing: &'static str, past: &Past) -> Result<()> {
        if self.options.read_only || volume.is_snapshot() {
            return Err(Error::new(Kind::ReadOnly, doing).at(volume.path()));
        }
        refuse_open(volume, doing)?;
        volume.settle_bypass();
        let _naming = volume.naming().read();
        // Held so that nobody drops or adopts it before the record of the volume names it.
        let _held = past.layer.as_ref().map(Layer::hold);
        let _switching = volume.switching().lock();
        let plain = match &*volume.gate().read() {
            State::Overlay(_) => None,
            State::Plain(plain) => Some((plain.file.clone(), plain.shared.clone())),
            State::Broken { why, .. } => {
                return Err(Error::new(Kind::Damaged, doing).at(volume.path()).because(why.clone()));
            }
        };
        match plain {
            None => self.rewind_overlay(volume, doing, past),
            Some((_, Some(shared))) if is_all_of(past, &shared) => Ok(()),
            Some((file, shared)) => self.rewind_plain(volume, doing, past, &file, shared.is_some()),
        }
    }

    fn rewind_overlay(&self, volume: &Arc<Volume>, doing: &'static str, past: &Past) -> Result<()> {
        {
            let mut gate = volume.gate().write();
            let State::Overlay(overlay) = &mut *gate else { return Err(Error::new(Kind::Busy, doing)) };
            // Whoever opens it from now on waits for the gate with the first call, and finds the new state.
            refuse_open(volume, doing)?;
            self.switch_layer(volume, doing, overlay, past)?;
        }
        volume.forget_mtime();
        // With its name, which may be new, and with what lies below. What it held goes only when this is durable.
        volume.sync(false)?;
        self.wake_background();
        Ok(())
    }

    /// With the gate held exclusively: the record, and the switch in memory.
    fn switch_layer(&self, volume: &Volume, doing: &'static str, overlay: &mut Overlay, past: &Past) -> Result<()> {
        let id = overlay.id;
        let top = self.env.next_layer(&overlay.top, new_id(), past.layer.clone(), past.size, past.overlap);
        let ops = self.ops.lock();
        self.check_kept(volume, past.parent())?;
        let record = self.env.store.catalogue().volume(id).cloned();
        let record = record.ok_or_else(|| Error::new(Kind::NotFound, doing).at(volume.path()))?;
        let old = record.file;
        let over = VolumeRecord::over(id, top.id, past.parent(), (past.overlap, past.size), record.path.clone());
        // From here on it shares what it reads with a snapshot, or its origin, and would rather adopt than copy.
        let VolumeRecord { origin, deepening, paused, base, .. } = record;
        let record = VolumeRecord { origin, deepening, paused, base, source: true, ..over };
        let number = self.env.store.commit(vec![Change::Volume(record)])?;
        drop(ops);
        overlay.top = top;
        overlay.debts.commit.fetch_max(number, Ordering::AcqRel);
        overlay.pristine.store(false, Ordering::Release);
        // A failure of it costs the time of the last change.
        let _ = overlay.stub.set_times(SetTime::Keep, SetTime::At(Timestamp::now()));
        self.dead.lock().push(Dead::Files(old));
        self.failures.lock().remove(&id);
        Ok(())
    }

    fn rewind_plain(
        &self,
        volume: &Arc<Volume>,
        doing: &'static str,
        past: &Past,
        file: &FileRef,
        shared: bool,
    ) -> Result<()> {
        let names = self.names().ok_or_else(|| Error::new(Kind::Unsupported, doing))?;
        let links = file.stat().context("look at file", volume.path())?.nlink;
        if links > 1 + u64::from(shared) {
            return Err(Error::new(Kind::Unsupported, doing)
                .at(volume.path())
                .because("it has several names")
                .remedy("clone the snapshot instead"));
        }
        let commit = |record| {
            let _ops = self.ops.lock();
            self.check_kept(volume, past.parent())?;
            self.env.store.commit(vec![Change::Volume(record)])
        };
        // Its own last rename first: the stub that takes its name can be durable without it, see `finish`.
        file.sync_all().context("sync file", volume.path())?;
        let prepared = self.prepare_stub(volume, file, past, Changed::Now, &commit)?;
        let mut replace = |spot: &Spot| -> Result<FileKey> {
            let mut gate = volume.gate().write();
            refuse_open(volume, doing)?;
            // One that is just being opened.
            volume.check_not_bypassed(doing)?;
            self.put_in_place(volume, &mut gate, spot, past.layer.as_ref(), &prepared)
        };
        match names.swap(volume.key(), Some(&volume.path()), &mut replace) {
            Ok(Some(_)) => self.settle_name(volume),
            other => {
                self.discard_stub(&prepared, None);
                other.and(Err(Error::new(Kind::NotFound, doing).at(volume.path())))
            }
        }
    }
}

/// Whether that is what a plain file that is read through `shared` is still.
fn is_all_of(past: &Past, shared: &Layer) -> bool {
    let all = past.size == shared.size() && past.overlap >= blocks(past.size);
    all && past.parent() == Some(shared.id)
}

fn refuse_open(volume: &Volume, doing: &'static str) -> Result<()> {
    if volume.handles() == 0 {
        return Ok(());
    }
    Err(Error::new(Kind::Busy, doing).at(volume.path()).because("it is open").remedy("shut down what uses it first"))
}

fn nothing_left(volume: &Volume, why: &'static str) -> Error {
    Error::new(Kind::Unsupported, "reset").at(volume.path()).because(why)
}
