//! From a file in the tree to its volume in memory: what kind it is, its record, its layers.

use crate::sync::atomic::Ordering;
use std::path::Path;
use std::sync::{Arc, Weak};

use super::Pool;
use super::registry::Slot;
use super::stub::{self, Mark};
use crate::engine::io::{FileKey, FileRef, Open};
use crate::engine::layer::Layer;
use crate::engine::store::record::{LayerRecord, VolumeRecord};
use crate::engine::store::{data_path, stub_path};
use crate::engine::volume::overlay::Overlay;
use crate::engine::volume::plain::Plain;
use crate::engine::volume::{Hooks, State, Volume};
use crate::error::{Context, Error, Kind, Result};
use crate::units::Id;

/// Attempts to load a chain of layers while adoptions change it.
const MOVES: usize = 100;

impl Pool {
    /// The volume that the regular file `key` is, which is at `path`.
    pub fn volume(&self, key: FileKey, path: &Path) -> Result<Arc<Volume>> {
        match self.volume_once(key, path) {
            Err(error) if error.is_out_of_files() => {
                self.relieve();
                self.volume_once(key, path)
            }
            other => other,
        }
    }

    fn volume_once(&self, key: FileKey, path: &Path) -> Result<Arc<Volume>> {
        let volume = self.tables.get_or_load(
            Slot::Volume(key),
            |tables| tables.volumes.get(&key).and_then(Weak::upgrade),
            || self.load_volume(key, path),
            |tables, volume| {
                tables.volumes.insert(key, Arc::downgrade(volume));
                if let State::Overlay(overlay) = &*volume.gate().read() {
                    tables.by_id.insert(overlay.id, Arc::downgrade(volume));
                }
                tables.sweep();
            },
        )?;
        volume.set_path(path);
        self.saw(key, path);
        Ok(volume)
    }

    /// Reads a volume from the disk, with its slot taken and no lock held.
    fn load_volume(&self, key: FileKey, path: &Path) -> Result<Arc<Volume>> {
        let stub = self.tables.lock().stubs.get(&key).copied();
        let state = match stub {
            Some(id) => self.load_overlay(id, path)?,
            None => self.load_plain(key, path)?,
        };
        Ok(Volume::new(self.env.clone(), key, path, state))
    }

    /// Opens a file for reading and writing, or for reading where writing is not allowed.
    fn open_any(&self, path: &Path) -> Result<FileRef> {
        let how = if self.options.read_only { Open::Read } else { Open::Write };
        match self.env.fs.open(path, how) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM | libc::EROFS | libc::ETXTBSY)) => {
                self.env.fs.open(path, Open::Read)
            }
            other => other,
        }
        .context("open file", path)
    }

    fn load_plain(&self, key: FileKey, path: &Path) -> Result<State> {
        let file = self.open_any(path)?;
        let stat = file.stat().context("open file", path)?;
        if stat.key != key {
            return Err(Error::io("open file", std::io::Error::from_raw_os_error(libc::ESTALE)).at(path));
        }
        if stat.size <= stub::MAX_STUB
            && let Some(state) = self.load_marked(key, path, &file, stat.size)?
        {
            return Ok(state);
        }
        let shared = self.tables.lock().shared.get(&key).copied();
        let shared = match shared {
            // Dropped since: it is not shared any more.
            Some(id) if self.env.store.catalogue().layer(id).is_none() => None,
            Some(id) => {
                let layer = self.load_layer(id)?;
                layer.set_complete_data(file.clone());
                Some(layer)
            }
            None => None,
        };
        Ok(State::Plain(Plain::new(file, shared)))
    }

    /// What a small file is that is not known as a stub; `None`: a plain file after all.
    fn load_marked(&self, key: FileKey, path: &Path, file: &FileRef, size: u64) -> Result<Option<State>> {
        let mark = stub::mark_of(file.as_ref(), self.env.store.pool_id()).context("read mark of file", path)?;
        if mark == Mark::None {
            return Ok(None);
        }
        if let Mark::Ours(id) = mark
            && self.env.store.catalogue().volume(id).is_some()
            && self.env.fs.stat(&stub_path(id)).context("look at stub", path)?.key == key
        {
            // Its link could not be read when the pool was opened.
            self.tables.lock().stubs.insert(key, id);
            return self.load_overlay(id, path).map(Some);
        }
        // While records are missing, an empty file with a mark is not known to be what a crash left of a clone.
        let lost = size == 0 && !self.env.store.damage().is_empty();
        if lost || size > 0 && stub::holds_text(file.as_ref()).context("read stub", path)? {
            let why = "it is a stub whose volume is not in this pool's catalogue".to_owned();
            return Ok(Some(State::Broken { stub: file.clone(), why }));
        }
        self.unmark_leftover(file.as_ref(), path, mark).map(|()| None)
    }

    /// A crash can leave the mark of a clone that never was on its file. It goes, durably, before the file holds
    /// anything that could then be taken for the text of a stub.
    fn unmark_leftover(&self, file: &dyn crate::engine::io::File, path: &Path, mark: Mark) -> Result<()> {
        let sound = self.env.store.damage().is_empty() && !self.options.read_only;
        if let Mark::Ours(volume) = mark
            && sound
            && self.env.store.catalogue().volume(volume).is_none()
        {
            stub::unmark(file);
            file.sync_all().context("sync file", path)?;
        }
        Ok(())
    }

    fn load_overlay(&self, id: Id, path: &Path) -> Result<State> {
        let stub = self.open_any(&stub_path(id)).map_err(|e| e.at(path))?;
        let record = self.env.store.catalogue().volume(id).cloned();
        let loaded = match &record {
            _ if !self.env.store.trusted() => Err(Error::new(Kind::Damaged, "open volume")
                .because("the pool's records are damaged, and its own may be out of date")
                .remedy("run `clonefs check --repair` on the unmounted pool")),
            Some(record) if record.doubtful => Err(Error::new(Kind::Damaged, "open volume")
                .because("a repair could not tell whether its record is up to date")
                .remedy("`clonefs check --repair --accept FILE` takes it as it is")),
            Some(record) => self.load_top(record),
            None => Err(Error::new(Kind::Damaged, "open volume").because("its record is damaged")),
        };
        Ok(match loaded {
            Ok(top) => {
                let snapshot = record.is_some_and(|record| record.snapshot.is_some());
                let mut overlay = Overlay::new(id, stub, top, Vec::new(), 0);
                overlay.snapshot = snapshot;
                State::Overlay(overlay)
            }
            // An open-file limit or a lack of memory is not damage: the next attempt may do better.
            Err(error) if error.is_scarcity() => return Err(error),
            Err(error) => {
                self.failures.lock().insert(id, error.to_string());
                State::Broken { stub, why: error.to_string() }
            }
        })
    }

    fn load_top(&self, record: &VolumeRecord) -> Result<Arc<Layer>> {
        let parent = record.parent.map(|id| self.load_layer(id)).transpose()?;
        self.check_written(record.file)?;
        self.env.open_top(record, parent)
    }

    fn check_written(&self, file: Id) -> Result<()> {
        if self.findings.lock().unwritten.contains(&file) {
            return Err(Error::new(Kind::Latched, "open layer")
                .at(crate::engine::store::map_path(file))
                .because("it could not be written after the daemon was killed")
                .remedy("check the disk, then unmount and mount again"));
        }
        Ok(())
    }

    /// The frozen layer `id`, and those below it.
    fn load_layer(&self, id: Id) -> Result<Arc<Layer>> {
        let mut attempt = 0;
        loop {
            let before = self.chain(id);
            match self.load_chain(id) {
                // A layer of the chain was adopted while we were on the way: what we looked for is no error.
                Err(_) if attempt < MOVES && self.chain(id) != before => attempt += 1,
                other => return other,
            }
        }
    }

    /// The layer `id` and those below it, by their records; no longer than the catalogue, whatever these say.
    fn chain(&self, id: Id) -> Vec<Id> {
        let catalogue = self.env.store.catalogue();
        let ids = std::iter::successors(Some(id), |id| catalogue.layer(*id).and_then(|record| record.parent));
        ids.take(catalogue.layer_count() + 1).collect()
    }

    /// Loads what of the chain is not in memory, from the lowest layer up, each with its own slot and no other: so two
    /// chains that meet share what they have in common, and no two loaders wait for each other.
    fn load_chain(&self, id: Id) -> Result<Arc<Layer>> {
        let (missing, mut parent) = self.missing_layers(id)?;
        for id in missing.into_iter().rev() {
            let below = parent.take();
            let layer = self.tables.get_or_load(
                Slot::Layer(id),
                |tables| tables.layers.get(&id).and_then(Weak::upgrade),
                || {
                    // Nobody has it in memory now, so nobody changes this record before the layer is entered.
                    let record = self.layer_record(id)?;
                    if record.parent != below.as_ref().map(|layer| layer.id) {
                        return Err(Error::new(Kind::Busy, "open layer").at(data_path(id)));
                    }
                    self.check_written(record.file)?;
                    self.env.open_frozen(&record, below)
                },
                |tables, layer| drop(tables.layers.insert(id, Arc::downgrade(layer))),
            );
            parent = Some(layer?);
        }
        parent.ok_or_else(|| Error::new(Kind::Damaged, "open layer").at(data_path(id)))
    }

    /// The layers from `id` down that are not in memory, and the one below them that is.
    fn missing_layers(&self, id: Id) -> Result<(Vec<Id>, Option<Arc<Layer>>)> {
        let mut missing = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next {
            if let Some(layer) = self.tables.lock().layers.get(&id).and_then(Weak::upgrade) {
                return Ok((missing, Some(layer)));
            }
            if self.findings.lock().changed.contains(&id) {
                return Err(Error::new(Kind::Changed, "open layer")
                    .at(data_path(id))
                    .remedy("restore its source, delete the clone, or `clonefs check --repair --accept FILE`"));
            }
            if missing.len() > self.env.store.catalogue().layer_count() {
                return Err(Error::new(Kind::Damaged, "open layer").because("layers are each other's parents"));
            }
            next = self.layer_record(id)?.parent;
            missing.push(id);
        }
        Ok((missing, None))
    }

    fn layer_record(&self, id: Id) -> Result<LayerRecord> {
        let record = self.env.store.catalogue().layer(id).cloned();
        record.ok_or_else(|| Error::new(Kind::Damaged, "open layer").at(data_path(id)).because("it has no record"))
    }

    /// A frozen layer, if it is in the catalogue and sound.
    pub fn frozen_layer(&self, id: Id) -> Result<Option<Arc<Layer>>> {
        if self.env.store.catalogue().layer(id).is_none() {
            return Ok(None);
        }
        self.load_layer(id).map(Some)
    }

    /// The volume of a file that was just created, empty, through this mount.
    pub fn created(&self, path: &Path, file: FileRef) -> Result<Arc<Volume>> {
        let key = file.stat().context("look at new file", path)?.key;
        let plain = Plain::new(file, None);
        plain.pristine.store(true, Ordering::Release);
        let volume = Volume::new(self.env.clone(), key, path, State::Plain(plain));
        volume.set_new();
        let mut tables = self.tables.lock();
        tables.volumes.insert(key, Arc::downgrade(&volume));
        // The inode number may be that of a file that is gone.
        tables.shared.remove(&key);
        tables.stubs.remove(&key);
        Ok(volume)
    }

    /// The volume with this identity, opened if its stub can be found.
    pub fn volume_by_id(&self, id: Id) -> Result<Option<Arc<Volume>>> {
        if let Some(volume) = self.tables.lock().by_id.get(&id).and_then(Weak::upgrade) {
            return Ok(Some(volume));
        }
        let path = stub_path(id);
        let stat = match self.env.fs.stat(&path) {
            Ok(stat) => stat,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(e) => return Err(Error::io("look at stub", e).at(path)),
        };
        if self.tables.lock().stubs.get(&stat.key) != Some(&id) {
            // It is being frozen: its stub is ready, but what it shows is still the file in whose place it will be put.
            return Ok(None);
        }
        let record = self.env.store.catalogue().volume(id).cloned();
        let path = record.map_or(path, |record| self.present_path(&record));
        self.volume(stat.key, &path).map(Some)
    }
}
