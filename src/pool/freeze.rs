//! The first change of a plain file that has clones: its name gets a stub over a new empty layer, and the file itself,
//! which no name in the tree leads to any more, stays as the frozen layer under it.
//!
//! | crash after | what is found |
//! |---|---|
//! | the stub is made and linked | links that no record names: removed |
//! | the record is durable | a volume whose stub is in no directory: removed. The file is plain, as before |
//! | the rename | the volume |
//!
//! No change is let through before the rename is durable, so each of these is a state the file had.

use crate::sync::atomic::Ordering;
use std::path::Path;
use std::sync::Arc;

use super::{Pool, stub};
use crate::error::{Context, Error, Kind, Result};
use crate::io::{FileKey, FileRef, Open, Rename};
use crate::layer::Layer;
use crate::store::record::{Change, LayerRecord, VolumeRecord};
use crate::store::{LAYERS, STUBS, data_path, new_id, stub_path, tmp_path};
use crate::units::{Id, MAX_VOLUME, blocks};
use crate::volume::overlay::Overlay;
use crate::volume::plain::sync_entry;
use crate::volume::{State, Volume};

/// A stub that is ready to take a file's place.
pub(super) struct Prepared {
    pub id: Id,
    pub top: Arc<Layer>,
    pub stub: FileRef,
    pub key: FileKey,
    pub temporary: std::path::PathBuf,
    pub commit: u64,
}

/// The layer that a plain file becomes, held so that nobody drops it meanwhile.
pub(super) struct Held {
    layer: Arc<Layer>,
    file: FileRef,
    /// It was made for this: nothing on disk names it yet.
    fresh: bool,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.layer.unpin();
    }
}

impl Pool {
    /// Freezes `volume` if it is a plain file with clones. Takes the names' lock: the caller must hold no lock.
    pub(super) fn freeze_plain(&self, volume: &Arc<Volume>) -> Result<()> {
        let _switching = volume.switching().lock();
        match self.still_shared(volume)? {
            Some(held) => self.freeze(volume, &held),
            None => Ok(()),
        }
    }

    /// Freezes `volume` if it is a plain file, also one that has no clones yet, because it is about to be cloned while
    /// somebody writes to it. All syncs happen while writes go on; they wait for one rename. Where it cannot be done
    /// (several names, a size that changes) the ordinary way is taken later. While the result is held, nothing adopts
    /// the layer.
    pub(super) fn freeze_open(&self, volume: &Arc<Volume>) -> Result<Option<Held>> {
        if !matches!(&*volume.gate().read(), State::Plain(_)) {
            return Ok(None);
        }
        let _switching = volume.switching().lock();
        if let Some(held) = self.still_shared(volume)? {
            return self.freeze(volume, &held).map(|()| Some(held));
        }
        let held = {
            let gate = volume.gate().read();
            let State::Plain(plain) = &*gate else { return Ok(None) };
            plain.check_latch().map_err(|e| e.at(volume.path()))?;
            let stat = plain.file.stat().context("look at source", volume.path())?;
            if stat.nlink != 1 || stat.size > MAX_VOLUME || self.names().is_none() {
                return Ok(None);
            }
            let id = new_id();
            plain.file.link_to(&data_path(id)).context("link source", volume.path())?;
            let record = LayerRecord::of_file(id, stat.size, None);
            let layer = self.env.open_frozen(&record, None)?;
            layer.set_complete_data(plain.file.clone());
            layer.share_latch(&plain.durability.latch);
            layer.set_names_dirty();
            layer.pin();
            self.tables.lock().layers.insert(id, Arc::downgrade(&layer));
            Held { layer, file: plain.file.clone(), fresh: true }
        };
        match self.freeze(volume, &held) {
            // It grew or shrank meanwhile, or was renamed: the clone freezes it as it is then.
            Err(error) if error.kind() == Kind::Busy => Ok(None),
            other => other.map(|()| Some(held)),
        }
    }

    fn freeze(&self, volume: &Arc<Volume>, held: &Held) -> Result<()> {
        let prepared = self.prepare(volume, held)?;
        let swapped = match self.names() {
            None => Ok(None),
            Some(names) => names
                .swap(volume.key(), Some(&volume.path()), &mut |path| self.replace_file(volume, path, held, &prepared)),
        };
        match swapped {
            Ok(Some(_)) => {
                // Whoever syncs the volume meanwhile pays the same debt.
                let debts = match &*volume.gate().read() {
                    State::Overlay(overlay) => Some(overlay.debts.clone()),
                    _ => None,
                };
                debts.map_or(Ok(()), |debts| sync_entry(self.env.fs.as_ref(), &debts.directory))
            }
            // No name leads to it: it was deleted and is still open. The stub stays nameless, like the file.
            Ok(None) if held.file.stat().is_ok_and(|s| s.nlink <= 1) => {
                let _ = self.env.fs.unlink(&prepared.temporary);
                self.switch_to_overlay(volume, &mut volume.gate().write(), Some(&held.layer), &prepared);
                Ok(())
            }
            Ok(None) => {
                self.discard(&prepared, held);
                Err(Error::new(Kind::Busy, "write to shared file")
                    .at(volume.path())
                    .because("its name in the pool was not found")
                    .remedy("was it renamed without clonefs? Open it again by its new name"))
            }
            Err(error) => {
                self.discard(&prepared, held);
                Err(error)
            }
        }
    }

    /// With no name changing: the rename, and the switch in memory.
    fn replace_file(&self, volume: &Arc<Volume>, path: &Path, held: &Held, prepared: &Prepared) -> Result<FileKey> {
        let mut gate = volume.gate().write();
        let size = held.file.stat().context("look at file", path)?.size;
        if size != held.layer.size() {
            return Err(Error::new(Kind::Busy, "freeze").at(path).because("its size changed meanwhile"));
        }
        // Owner, mode and times can have changed since the stub was made.
        stub::copy_attributes(held.file.as_ref(), prepared.stub.as_ref()).context("copy attributes to stub", path)?;
        self.env.fs.rename(&prepared.temporary, path, Rename::Replace).context("replace file", path)?;
        volume.set_path(path);
        if held.fresh {
            // Writes went on after the sync in `prepare`, into what is the layer's file from now on.
            held.layer.set_dirty();
        }
        self.switch_to_overlay(volume, &mut gate, Some(&held.layer), prepared);
        if let State::Overlay(overlay) = &*gate {
            *overlay.debts.directory.lock() = Some(path.parent().unwrap_or(Path::new("")).to_path_buf());
        }
        Ok(prepared.key)
    }

    /// The layer and file, if it is still a plain file that somebody reads through a layer. If nobody does, it stops
    /// being shared.
    fn still_shared(&self, volume: &Volume) -> Result<Option<Held>> {
        let mut gate = volume.gate().write();
        let State::Plain(plain) = &mut *gate else { return Ok(None) };
        let Some(layer) = plain.shared.clone() else { return Ok(None) };
        let _ops = self.ops.lock();
        let unused = {
            let catalogue = self.env.store.catalogue();
            catalogue.layer(layer.id).is_none() || (catalogue.heir_count(layer.id) == 0 && !layer.pinned())
        };
        if !unused {
            // From here until the volume itself reads it, nobody else's deletion may take it away.
            layer.pin();
            return Ok(Some(Held { layer, file: plain.file.clone(), fresh: false }));
        }
        if self.env.store.catalogue().layer(layer.id).is_some() {
            self.drop_layer(layer.id, layer.file_id())?;
            self.dead.lock().push(super::reap::Dead::Files(layer.file_id()));
        }
        plain.shared = None;
        self.tables.lock().shared.remove(&volume.key());
        Ok(None)
    }

    /// Makes the stub, its link and its records, all durable.
    fn prepare(&self, volume: &Volume, held: &Held) -> Result<Prepared> {
        let (layer, file) = (&held.layer, &held.file);
        let (id, top_id, temporary) = (new_id(), new_id(), tmp_path());
        let fs = &self.env.fs;
        let pool = self.env.store.pool_id().ok_or_else(|| Error::new(Kind::Damaged, "freeze"))?;
        let size = layer.size();
        let made = (|| {
            let stub = fs.open(&temporary, Open::CreateNew(0o600)).context("make stub", &temporary)?;
            stub::describe(stub.as_ref(), id, size).context("write stub", &temporary)?;
            stub::copy_attributes(file.as_ref(), stub.as_ref()).context("copy attributes to stub", volume.path())?;
            stub::mark(stub.as_ref(), pool, id)?;
            fs.link(&temporary, &stub_path(id)).context("link stub", stub_path(id))?;
            // The record below gives the layer its size, and takes away the stamp: its data must be durable first.
            layer.flush()?;
            stub.sync_all().context("sync stub", &temporary)?;
            fs.sync_dir(Path::new(STUBS)).context("sync stubs directory", STUBS)?;
            // Once the rename takes the user's name away, this name is all that leads to the data.
            fs.sync_dir(Path::new(LAYERS)).context("sync layers directory", LAYERS)?;
            let key = stub.stat().context("look at stub", &temporary)?.key;
            let path = volume.path().to_string_lossy().into_owned();
            let over = VolumeRecord::over(id, top_id, Some(layer.id), (blocks(size), size), path);
            let record = VolumeRecord { source: true, ..over };
            // From now on no name of the user's leads to the file: nobody can change it, and its stamp is not needed.
            let frozen = layer.frozen_record();
            let commit = {
                let _ops = self.ops.lock();
                self.env.store.commit(vec![Change::Layer(frozen), Change::Volume(record)])?
            };
            self.env.store.sync(commit)?;
            let top = self.env.fresh_layer(top_id, Some(layer.clone()), size, blocks(size));
            Ok(Prepared { id, top, stub, key, temporary: temporary.clone(), commit })
        })();
        made.inspect_err(|_| {
            let _ = fs.unlink(&temporary);
            let _ = fs.unlink(&stub_path(id));
            if held.fresh && self.env.store.catalogue().layer(layer.id).is_none() {
                let _ = fs.unlink(&data_path(layer.file_id()));
            }
        })
    }

    pub(super) fn switch_to_overlay(
        &self,
        volume: &Arc<Volume>,
        gate: &mut State,
        layer: Option<&Arc<Layer>>,
        prepared: &Prepared,
    ) {
        let pending = layer.filter(|layer| !layer.is_settled()).into_iter().cloned().collect();
        let overlay = Overlay::new(prepared.id, prepared.stub.clone(), prepared.top.clone(), pending, prepared.commit);
        overlay.debts.names_dirty.store(false, Ordering::Release);
        let old = volume.key();
        volume.set_key(prepared.key);
        *gate = State::Overlay(overlay);
        let mut tables = self.tables.lock();
        tables.volumes.remove(&old);
        tables.shared.remove(&old);
        tables.volumes.insert(prepared.key, Arc::downgrade(volume));
        tables.by_id.insert(prepared.id, Arc::downgrade(volume));
        tables.stubs.insert(prepared.key, prepared.id);
        tables.unsettled.insert(volume.serial, volume.clone());
        drop(tables);
        // Background work that came by meanwhile found no volume.
        self.wake_background();
    }

    /// Takes a prepared stub back. The layer, if it was made for this, has no heir then and goes as such layers do.
    fn discard(&self, prepared: &Prepared, held: &Held) {
        let _ = self.env.fs.unlink(&prepared.temporary);
        let mut changes = vec![Change::DropVolume(prepared.id)];
        if held.fresh {
            changes.push(Change::DropLayer(held.layer.id));
        }
        let committed = {
            let _ops = self.ops.lock();
            self.env.store.commit(changes)
        };
        // Records that are still there after a crash must find their files: the next start drops both.
        if committed.and_then(|number| self.env.store.sync(number)).is_err() {
            return;
        }
        let _ = self.env.fs.unlink(&stub_path(prepared.id));
        if held.fresh {
            // At once: a file of two names cannot be cloned, only copied.
            let _ = self.env.fs.unlink(&data_path(held.layer.file_id()));
        }
    }
}
