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

use std::path::Path;
use std::sync::Arc;

use super::fit::is_lasting;
use super::replace::{Changed, Past, Prepared};
use super::{Pool, Spot, stub};
use crate::engine::io::{FileKey, FileRef};
use crate::engine::layer::Hold;
use crate::engine::store::record::{Change, LayerRecord, VolumeRecord};
use crate::engine::store::{LAYERS, data_path, new_id};
use crate::engine::volume::{State, Volume};
use crate::error::{Context, Error, Kind, Result};
use crate::units::{MAX_VOLUME, blocks};

/// The layer that a plain file becomes, held so that nobody drops it meanwhile.
pub(super) struct Held {
    pub(super) layer: Hold,
    pub(super) file: FileRef,
    /// It was made for this: nothing on disk names it yet.
    fresh: bool,
}

impl Pool {
    /// Freezes `volume` if it is a plain file with clones. Takes the names' lock: the caller must hold no lock.
    pub(super) fn freeze_plain(&self, volume: &Arc<Volume>) -> Result<()> {
        let _switching = volume.switching().lock();
        match self.still_shared(volume)? {
            Some(held) => self.freeze(volume, &held).or_else(|error| self.detach_readers(volume, &held, error)),
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
        // From here to the end none begins to go past us. One that does keeps the file: the clone sees to that.
        if volume.is_bypassed() {
            return Ok(None);
        }
        if let Some(held) = self.still_shared(volume)? {
            return match self.freeze(volume, &held) {
                // The layer that is there shows this moment. The next write finds its own way out.
                Err(error) if stays_plain(&error) && !error.is_no_space() => Ok(None),
                other => other.map(|()| Some(held)),
            };
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
            match self.link_in(plain.file.as_ref(), &data_path(id)) {
                // The clone will say why.
                Err(error) if is_lasting(&error) => return Ok(None),
                other => other.context("link source", volume.path())?,
            }
            let record = LayerRecord::of_file(id, stat.size, None);
            let layer = self.env.open_frozen(&record, None)?;
            layer.set_complete_data(plain.file.clone());
            layer.share_latch(&plain.durability.latch);
            layer.set_names_dirty();
            let layer = layer.hold();
            self.tables.lock().layers.insert(id, Arc::downgrade(&*layer));
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
                .swap(volume.key(), Some(&volume.path()), &mut |spot| self.replace_file(volume, spot, held, &prepared)),
        };
        match swapped {
            Ok(Some(_)) => self.settle_name(volume),
            // No name leads to it: it was deleted and is still open. The stub stays nameless, like the file.
            Ok(None) if held.file.stat().is_ok_and(|s| s.nlink <= 1) => {
                self.put_nowhere(volume, &held.layer, &prepared);
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
    fn replace_file(&self, volume: &Arc<Volume>, spot: &Spot, held: &Held, prepared: &Prepared) -> Result<FileKey> {
        let path = spot.path.as_path();
        let mut gate = volume.gate().write();
        let stat = held.file.stat().context("look at file", path)?;
        if stat.nlink > 2 {
            // One of the user's, given without clonefs: under that one the file would stay what it is.
            return Err(Error::new(Kind::Unsupported, "freeze").at(path).because("it has several names"));
        }
        let size = stat.size;
        if size != held.layer.size() {
            return Err(Error::new(Kind::Busy, "freeze").at(path).because("its size changed meanwhile"));
        }
        // Owner, mode and times can have changed since the stub was made.
        stub::copy_attributes(held.file.as_ref(), prepared.stub.as_ref()).context("copy attributes to stub", path)?;
        if held.fresh {
            // Writes went on after the sync in `prepare`, into what is the layer's file from now on.
            held.layer.set_dirty();
        }
        self.put_in_place(volume, &mut gate, spot, Some(&held.layer), prepared)
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
            return Ok(Some(Held { layer: layer.hold(), file: plain.file.clone(), fresh: false }));
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
        let (layer, fs) = (&held.layer, &self.env.fs);
        let size = layer.size();
        let past = Past { layer: Some((**layer).clone()), overlap: blocks(size), size };
        let commit = |record: VolumeRecord| {
            // The record below gives the layer its size, and takes away the stamp: its data must be durable first.
            layer.flush()?;
            // Once the rename takes the user's name away, this name is all that leads to the data.
            fs.sync_dir(Path::new(LAYERS)).context("sync layers directory", LAYERS)?;
            // From now on no name of the user's leads to the file: nobody can change it, and its stamp is not needed.
            let changes = vec![Change::Layer(layer.frozen_record()), Change::Volume(record)];
            let _ops = self.ops.lock();
            self.env.store.commit(changes)
        };
        let made = self.prepare_stub(volume, &held.file, &past, Changed::AsBefore, &commit);
        made.inspect_err(|_| {
            if held.fresh && self.env.store.catalogue().layer(layer.id).is_none() {
                let _ = fs.unlink(&data_path(layer.file_id()));
            }
        })
    }

    /// Takes a prepared stub back. The layer, if it was made for this, has no heir then and goes as such layers do.
    fn discard(&self, prepared: &Prepared, held: &Held) {
        let layer = held.fresh.then(|| Change::DropLayer(held.layer.id));
        if self.discard_stub(prepared, layer) && held.fresh {
            // At once: a file of two names cannot be cloned, only copied.
            let _ = self.env.fs.unlink(&data_path(held.layer.file_id()));
        }
    }
}

/// Whether a file that could not be frozen for this reason can be cloned all the same, or not be cloned for one that the
/// clone will find.
pub(super) fn stays_plain(error: &Error) -> bool {
    let of_the_file = |errno| is_lasting(&std::io::Error::from_raw_os_error(errno));
    matches!(error.kind(), Kind::Busy | Kind::Unsupported)
        || error.kind() == Kind::Io && error.os_error().is_some_and(of_the_file)
}
