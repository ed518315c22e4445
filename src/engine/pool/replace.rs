//! A stub that takes the place of a plain file, which thereby becomes an overlay: when the file is frozen, and when it
//! goes back to what it was. The stub, its link and its record are durable before it gets the file's name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Pool, Spot, stub};
use crate::engine::io::{File, FileKey, FileRef, Open, Rename, SetTime, Timestamp, leaf};
use crate::engine::layer::Layer;
use crate::engine::store::record::{Change, VolumeRecord};
use crate::engine::store::{STUBS, new_id, stub_path, tmp_path};
use crate::engine::volume::overlay::Overlay;
use crate::engine::volume::plain::sync_entry;
use crate::engine::volume::{State, Volume};
use crate::error::{Context, Error, Kind, Result};
use crate::sync::atomic::Ordering;
use crate::units::Id;

/// What the overlay lies over.
pub(super) struct Past {
    pub layer: Option<Arc<Layer>>,
    /// Blocks of the layer that can be seen.
    pub overlap: u64,
    /// In bytes.
    pub size: u64,
}

impl Past {
    pub(super) fn parent(&self) -> Option<Id> {
        self.layer.as_ref().map(|layer| layer.id)
    }
}

/// Where the new volume's time of the last change comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Changed {
    /// It has the same bytes as the file.
    AsBefore,
    Now,
}

/// Whether two files cannot be exchanged where they are.
fn cannot_exchange(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::EXDEV))
}

/// A stub that is ready to take a file's place.
pub(super) struct Prepared {
    id: Id,
    top: Arc<Layer>,
    pub stub: FileRef,
    key: FileKey,
    temporary: PathBuf,
    commit: u64,
}

impl Pool {
    /// Makes the stub and its link durable, then what `commit` commits: the record that it is given, and what belongs to
    /// it.
    pub(super) fn prepare_stub(
        &self,
        volume: &Volume,
        file: &FileRef,
        past: &Past,
        changed: Changed,
        commit: &dyn Fn(VolumeRecord) -> Result<u64>,
    ) -> Result<Prepared> {
        let (id, temporary, fs) = (new_id(), tmp_path(), &self.env.fs);
        let pool = self.env.store.pool_id().ok_or_else(|| Error::new(Kind::Damaged, "make stub"))?;
        let made = (|| {
            let stub = fs.open(&temporary, Open::CreateNew(0o600)).context("make stub", &temporary)?;
            stub::describe(stub.as_ref(), id, past.size).context("write stub", &temporary)?;
            stub::copy_attributes(file.as_ref(), stub.as_ref()).context("copy attributes to stub", volume.path())?;
            if changed == Changed::Now {
                // A failure of it costs the time of the last change.
                let _ = stub.set_times(SetTime::Keep, SetTime::At(Timestamp::now()));
            }
            stub::join_project(file.as_ref(), stub.as_ref()).context("give the project to stub", volume.path())?;
            stub::mark(stub.as_ref(), pool, id)?;
            fs.link(&temporary, &stub_path(id)).context("link stub", stub_path(id))?;
            stub.sync_all().context("sync stub", &temporary)?;
            fs.sync_dir(Path::new(STUBS)).context("sync stubs directory", STUBS)?;
            let key = stub.stat().context("look at stub", &temporary)?.key;
            let path = volume.path().to_string_lossy().into_owned();
            let top = self.env.fresh_layer(new_id(), past.layer.clone(), past.size, past.overlap);
            let over = VolumeRecord::over(id, top.id, past.parent(), (past.overlap, past.size), path);
            let commit = commit(VolumeRecord { source: true, ..over })?;
            self.env.store.sync(commit)?;
            Ok(Prepared { id, top, stub, key, temporary: temporary.clone(), commit })
        })();
        made.inspect_err(|_| {
            let _ = fs.unlink(&temporary);
            let _ = fs.unlink(&stub_path(id));
        })
    }

    /// Exchanges `ours`, a file of the pool's own and its path, with the file `expected`, which has a name in the tree.
    /// Somebody who can write to the directory beside us can have given the name to another file: then it is changed back.
    ///
    /// # Errors
    /// [`Kind::Busy`] where the name was another file's; nothing has changed then.
    pub(super) fn exchange(&self, ours: (&dyn File, &Path), spot: &Spot, expected: FileKey) -> Result<()> {
        let (file, ours) = ours;
        let (directory, name) = leaf(self.env.fs.as_ref(), ours).context("find file", ours)?;
        let place = spot.path.parent().unwrap_or(Path::new(""));
        let rename = |how| self.in_project(file, place, &|| directory.rename(&name, &*spot.directory, &spot.name, how));
        match rename(Rename::Exchange) {
            Ok(()) => {}
            // Not every filesystem can do it, and not between any two projects: then the name is looked at just before.
            Err(error) if cannot_exchange(&error) => {
                if !spot.has(expected) {
                    return Err(taken(spot));
                }
                return rename(Rename::Replace).context("replace file", &spot.path);
            }
            Err(error) => return Err(error).context("replace file", &spot.path),
        }
        // One that cannot be looked at is the one that was there a moment ago.
        if directory.stat_at(&name).map_or(true, |stat| stat.key == expected) {
            return Ok(());
        }
        rename(Rename::Exchange).context("give a name back that was another file's", &spot.path)?;
        Err(taken(spot))
    }

    /// Gives the stub the file's name, with the gate held exclusively and no name changing.
    pub(super) fn put_in_place(
        &self,
        volume: &Arc<Volume>,
        gate: &mut State,
        spot: &Spot,
        layer: Option<&Arc<Layer>>,
        prepared: &Prepared,
    ) -> Result<FileKey> {
        let path = spot.path.as_path();
        self.exchange((prepared.stub.as_ref(), &prepared.temporary), spot, volume.key())?;
        // What is left behind in case of an error goes at the next start.
        let _ = self.env.fs.unlink(&prepared.temporary);
        volume.set_path(path);
        self.switch_to_overlay(volume, gate, layer, prepared);
        if let State::Overlay(overlay) = gate {
            *overlay.debts.directory.lock() = Some(path.parent().unwrap_or(Path::new("")).to_path_buf());
        }
        Ok(prepared.key)
    }

    /// Lets the volume have no name, as the file had none that it could take over.
    pub(super) fn put_nowhere(&self, volume: &Arc<Volume>, layer: &Arc<Layer>, prepared: &Prepared) {
        let _ = self.env.fs.unlink(&prepared.temporary);
        self.switch_to_overlay(volume, &mut volume.gate().write(), Some(layer), prepared);
    }

    fn switch_to_overlay(
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

    /// Makes the new name durable.
    pub(super) fn settle_name(&self, volume: &Volume) -> Result<()> {
        // Whoever syncs the volume meanwhile pays the same debt.
        volume.debts().map_or(Ok(()), |debts| sync_entry(self.env.fs.as_ref(), &debts.directory))
    }

    /// Takes a stub back that got no name, with `more` of what was committed for it; whether that is durable.
    pub(super) fn discard_stub(&self, prepared: &Prepared, more: Option<Change>) -> bool {
        // What could not be given its name back is somebody's file.
        if self.env.fs.stat(&prepared.temporary).is_ok_and(|stat| stat.key == prepared.key) {
            let _ = self.env.fs.unlink(&prepared.temporary);
        }
        let mut changes = vec![Change::DropVolume(prepared.id)];
        changes.extend(more);
        let committed = {
            let _ops = self.ops.lock();
            self.env.store.commit(changes)
        };
        // A record that is still there after a crash must find its stub: the next start drops both.
        let dropped = committed.and_then(|number| self.env.store.sync(number)).is_ok();
        if dropped {
            let _ = self.env.fs.unlink(&stub_path(prepared.id));
        }
        dropped
    }
}

fn taken(spot: &Spot) -> Error {
    Error::new(Kind::Busy, "replace file")
        .at(&spot.path)
        .because("another file was given its name without clonefs")
        .remedy("give names in a mounted pool through the mount only")
}
