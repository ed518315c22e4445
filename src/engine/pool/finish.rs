//! The end of deepening: the data file of a volume that has all its blocks takes the place of its stub, and is from
//! then on an ordinary file.
//!
//! | crash after | what is found |
//! |---|---|
//! | the data is durable | the volume, with nothing left to copy |
//! | the exchange of names | a volume whose data file is its stub: that name is removed, and then as after the next |
//! | the removal of the stub's new name | a volume whose stub is in no directory and whose data file is gone: removed. The file is plain |

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Pool, Spot, stub};
use crate::engine::events::{Event, What};
use crate::engine::io::{FileKey, FileRef, SetTime};
use crate::engine::store::record::Change;
use crate::engine::store::{LAYERS, data_path, map_path, stub_path};
use crate::engine::volume::overlay::Overlay;
use crate::engine::volume::plain::Plain;
use crate::engine::volume::{State, Volume};
use crate::error::{Context, Result};
use crate::units::Id;

/// So many times a volume may be renamed while it is being finished; then it is another round's.
const RENAMES: usize = 8;

/// How an attempt to finish ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Finished {
    /// It is a plain file now, or was one.
    Plain,
    /// It needs no other file, but its stub has several names and stays.
    Linked,
    /// Blocks are still absent.
    NotYet,
    /// It was deleted.
    Deleted,
    /// Its name was not found.
    Lost,
}

impl Pool {
    /// Turns `volume` into a plain file if nothing is absent. Takes the names' lock: the caller must hold no lock.
    pub fn finish(&self, volume: &Arc<Volume>) -> Result<Finished> {
        let _switching = volume.switching().lock();
        let (id, stub, top, syncing) = {
            let gate = volume.gate().read();
            let State::Overlay(overlay) = &*gate else { return Ok(Finished::Plain) };
            if overlay.top.next_absent(0, overlay.visible_end()).is_some() {
                return Ok(Finished::NotYet);
            }
            overlay.clean_absent()?;
            (overlay.id, overlay.stub.clone(), overlay.top.clone(), overlay.syncing())
        };
        // Before the switch, whatever the volume shows must be durable in this one file. What is written after this
        // overwrites durable bytes, as in any file.
        syncing.run(self.env.fs.as_ref(), &self.env.store, false)?;
        let data = top.data_for_writing()?;
        let file = top.file_id();
        stub::copy_attributes(stub.as_ref(), data.as_ref()).context("copy attributes", volume.path())?;
        stub::join_project(stub.as_ref(), data.as_ref()).context("give the project to layer data", volume.path())?;
        data.sync_all().context("sync layer data", data_path(file))?;
        match stub.stat().context("look at stub", stub_path(id))?.nlink {
            0 | 1 => return Ok(Finished::Deleted),
            2 => {}
            _ => return self.release_parent(volume).map(|()| Finished::Linked),
        }
        let old = volume.key();
        match self.put_in_place_of(volume, &stub, (id, file))? {
            Finished::Plain => {}
            other => return Ok(other),
        }
        self.events.tell(Event::new(What::Deepened, volume.path()));
        self.forget_finished(volume, id, file, old).inspect_err(|_| self.keep_unsettled(volume))?;
        Ok(Finished::Plain)
    }

    /// Finds the name of the stub, makes it durable as it is, and puts the file in its place.
    ///
    /// The name comes first: the file gets it by a rename of its own, which a sync of the file can make durable while an
    /// older rename of the stub to this name is not. After a power cut on btrfs the stub would still have its old name,
    /// too, without a word in it: two files where there was one.
    fn put_in_place_of(&self, volume: &Arc<Volume>, stub: &FileRef, (id, file): (Id, Id)) -> Result<Finished> {
        let Some(names) = self.names() else { return Ok(Finished::Lost) };
        let old = volume.key();
        let recorded = self.env.store.catalogue().volume(id).map(|r| PathBuf::from(&r.path));
        let mut durable = names.path_of(old).or(recorded);
        for _ in 0..RENAMES {
            stub.sync_all().context("sync stub", stub_path(id))?;
            let (mut outcome, mut now) = (Finished::Plain, None);
            let mut replace = |spot: &Spot| {
                if durable.as_deref() != Some(&spot.path) {
                    now = Some(spot.path.clone());
                    return Ok(old);
                }
                self.replace_stub(volume, file, spot, &mut outcome)
            };
            let mut swapped = names.swap(old, durable.as_deref(), &mut replace)?;
            if swapped.is_none()
                && let Some(found) = self.find_by_walk(old)
            {
                swapped = names.swap(old, Some(&found), &mut replace)?;
            }
            match (swapped, now) {
                (None, _) => return Ok(Finished::Lost),
                (Some(_), None) => return Ok(outcome),
                // It was renamed meanwhile.
                (Some(_), Some(path)) => durable = Some(path),
            }
        }
        Ok(Finished::NotYet)
    }

    /// With no name changing: the rename, and the switch in memory.
    fn replace_stub(&self, volume: &Arc<Volume>, file: Id, spot: &Spot, outcome: &mut Finished) -> Result<FileKey> {
        let path = spot.path.as_path();
        let mut gate = volume.gate().write();
        let State::Overlay(overlay) = &*gate else { return Ok(volume.key()) };
        let complete = overlay.top.next_absent(0, overlay.visible_end()).is_none();
        let links = overlay.stub.stat().context("look at stub", path)?.nlink;
        if !complete || overlay.top.file_id() != file || links != 2 || overlay.check_latch().is_err() {
            // A clone was taken meanwhile, say. The next round sees the new state.
            *outcome = Finished::NotYet;
            return Ok(volume.key());
        }
        let data = self.give_attributes(volume, overlay, path)?;
        self.exchange((data.as_ref(), &data_path(file)), spot, volume.key())?;
        // The stub: a start that finds it there takes the volume for finished, see `startup`.
        let _ = self.env.fs.unlink(&data_path(file));
        let key = data.stat().context("look at layer data", path)?.key;
        let mut tables = self.tables.lock();
        let old = volume.key();
        tables.volumes.remove(&old);
        tables.stubs.remove(&old);
        tables.by_id.remove(&overlay.id);
        tables.volumes.insert(key, Arc::downgrade(volume));
        drop(tables);
        volume.set_key(key);
        volume.set_path(path);
        let directory = path.parent().unwrap_or(Path::new("")).to_path_buf();
        let plain = Plain::of_layer(data, &overlay.top, directory);
        *gate = State::Plain(plain);
        Ok(key)
    }

    /// What changed since the attributes were copied: they can change at any time before the rename.
    fn give_attributes(&self, volume: &Volume, overlay: &Overlay, path: &Path) -> Result<FileRef> {
        let data = overlay.top.data_for_writing()?;
        if data.stat().context("look at layer data", path)?.size != overlay.top.size() {
            data.set_len(overlay.top.size()).context("set size", path)?;
        }
        stub::copy_attributes(overlay.stub.as_ref(), data.as_ref()).context("copy attributes", path)?;
        stub::unmark(data.as_ref());
        if let Some(mtime) = volume.pending_mtime() {
            data.set_times(SetTime::Keep, SetTime::At(mtime)).context("set times", path)?;
            volume.forget_mtime();
        }
        Ok(data)
    }

    /// The names are durable first, then the records go, then what they named.
    fn forget_finished(&self, volume: &Volume, id: Id, file: Id, _old: FileKey) -> Result<()> {
        let path = volume.path();
        let parent = path.parent().unwrap_or(Path::new(""));
        self.env.fs.sync_dir(parent).context("sync directory", parent)?;
        if let State::Plain(plain) = &*volume.gate().read() {
            plain.durability.directory.lock().take_if(|owed| owed == parent);
        }
        self.env.fs.sync_dir(Path::new(LAYERS)).context("sync layers directory", LAYERS)?;
        let number = {
            let _ops = self.ops.lock();
            self.env.store.commit(vec![Change::DropVolume(id)])?
        };
        self.env.store.sync(number)?;
        let _ = self.env.fs.unlink(&stub_path(id));
        let _ = self.env.fs.unlink(&map_path(file));
        self.failures.lock().remove(&id);
        self.jobs.lock().remove(&id);
        self.wake_background();
        Ok(())
    }

    /// A complete volume whose stub must stay lets go of its parent all the same.
    fn release_parent(&self, volume: &Volume) -> Result<()> {
        let gate = volume.gate().write();
        let State::Overlay(overlay) = &*gate else { return Ok(()) };
        if overlay.top.parent().is_none() || overlay.top.next_absent(0, overlay.visible_end()).is_some() {
            return Ok(());
        }
        let id = overlay.id;
        let number = {
            let _ops = self.ops.lock();
            self.env.store.commit_with(|catalogue| {
                let record = catalogue.volume(id).cloned();
                record
                    .map(|mut r| {
                        r.parent = None;
                        Change::Volume(r)
                    })
                    .into_iter()
                    .collect()
            })?
        };
        self.env.store.sync(number)?;
        overlay.top.drop_parent();
        drop(gate);
        self.wake_background();
        Ok(())
    }
}
