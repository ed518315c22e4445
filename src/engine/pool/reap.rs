//! Removing what nobody needs any more: deleted volumes, layers without heirs, files that no record names.
//!
//! Order (R8): the directory entry that is gone must be durably gone, then the records go, durably, then the files. A
//! crash in between leaves files that no record names, which the next start removes.

use crate::sync::atomic::Ordering;
use std::path::Path;
use std::sync::Arc;

use super::Pool;
use crate::engine::io::FileKey;
use crate::engine::layer::Layer;
use crate::engine::store::record::Change;
use crate::engine::store::{bad_path, data_path, map_path, stub_path, sums_path};
use crate::engine::volume::{State, Volume};
use crate::error::{Context, Result};
use crate::units::Id;

/// Something to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Dead {
    /// A volume that the user deleted.
    Volume(Id),
    /// Files of a layer that no record names.
    Files(Id),
}

/// Most new, empty files that are remembered after they were closed.
const MOST_BLANK: usize = 16;

impl Pool {
    /// To be called when a name of the file `key` was removed, or another file was renamed over it.
    pub fn removed(&self, key: FileKey) {
        let (id, live) = {
            let tables = self.tables.lock();
            (tables.stubs.get(&key).copied(), tables.volumes.get(&key).and_then(std::sync::Weak::upgrade))
        };
        if let Some(id) = id
            && live.is_none_or(|v| v.handles() == 0)
        {
            self.bury(id);
        }
        // A plain file that was deleted may have left a layer with one heir, which can adopt it now.
        self.wake_background();
    }

    /// Queues a volume for removal if its stub has no name in the tree any more.
    fn bury(&self, id: Id) {
        if self.env.fs.stat(&stub_path(id)).is_ok_and(|s| s.nlink == 1) {
            let mut dead = self.dead.lock();
            if !dead.contains(&Dead::Volume(id)) {
                dead.push(Dead::Volume(id));
            }
            drop(dead);
            self.wake_background();
        }
    }

    /// The last handle of a volume was closed.
    pub(super) fn volume_closed(&self, volume: &Arc<Volume>) {
        volume.settle_mtime();
        let id = match &*volume.gate().read() {
            State::Overlay(overlay) => overlay.id,
            State::Plain(plain) if plain.check_latch().is_err() || plain.owes_name() => {
                // That must outlive the handle: the file would look clean to the next one (R14).
                self.tables.lock().unsettled.insert(volume.serial, volume.clone());
                return;
            }
            State::Plain(plain) if plain.pristine.load(Ordering::Acquire) => {
                // That it holds nothing is known only here, and lets a copy into it be a clone.
                let mut blank = self.blank.lock();
                blank.push_back(volume.clone());
                let oldest = if blank.len() > MOST_BLANK { blank.pop_front() } else { None };
                drop(blank);
                drop(oldest);
                return;
            }
            _ => return,
        };
        let unnoted = matches!(&*volume.gate().read(), State::Overlay(overlay) if overlay.top.map_unnoted());
        if !volume.is_settled() || unnoted {
            // Which blocks are present is known only here until the next flush, also if one is under way and fails.
            self.tables.lock().unsettled.insert(volume.serial, volume.clone());
        }
        self.bury(id);
        self.limit_unsettled();
    }

    /// Lets go of new files that nobody has filled.
    pub(super) fn forget_blank(&self) {
        let blank = std::mem::take(&mut *self.blank.lock());
        drop(blank);
    }

    /// Removes what is queued. Called by background work and at the end.
    pub fn reap_dead(&self) -> Result<()> {
        let dead = std::mem::take(&mut *self.dead.lock());
        if dead.is_empty() || self.options.read_only {
            return self.drop_unused_layers();
        }
        let result = self.reap(&dead);
        if result.is_err() {
            self.dead.lock().extend(dead);
        }
        result.and_then(|()| self.drop_unused_layers())
    }

    fn reap(&self, dead: &[Dead]) -> Result<()> {
        // One sync for all of them, whatever directories they were in.
        self.env.fs.sync_fs().context("sync filesystem", "")?;
        let mut files = Vec::new();
        let mut number = 0;
        for one in dead {
            match *one {
                Dead::Files(file) => files.push((file, None)),
                Dead::Volume(id) => {
                    let ops = self.ops.lock();
                    let record = self.env.store.catalogue().volume(id).cloned();
                    let Some(record) = record else { continue };
                    number = self.env.store.commit(vec![Change::DropVolume(id)])?;
                    drop(ops);
                    let key = self.env.fs.stat(&stub_path(id)).ok().map(|stat| stat.key);
                    let mut tables = self.tables.lock();
                    if let Some(volume) = tables.by_id.remove(&id).and_then(|v| v.upgrade()) {
                        tables.unsettled.remove(&volume.serial);
                        tables.volumes.remove(&volume.key());
                    }
                    match key.filter(|key| tables.stubs.get(key) == Some(&id)) {
                        Some(key) => drop(tables.stubs.remove(&key)),
                        None => tables.stubs.retain(|_, stub| *stub != id),
                    }
                    drop(tables);
                    self.jobs.lock().remove(&id);
                    self.failures.lock().remove(&id);
                    files.push((record.file, Some(id)));
                }
            }
        }
        number = number.max(self.env.store.committed());
        self.env.store.sync(number)?;
        for (file, volume) in files {
            self.unlink_files(file);
            if let Some(id) = volume {
                let _ = self.env.fs.unlink(&stub_path(id));
            }
        }
        Ok(())
    }

    /// Removes the files of a layer. What cannot be removed now is removed at the next start.
    pub(super) fn unlink_files(&self, file: Id) {
        // After a repair a layer that nobody reads can name the files of a volume.
        if self.env.store.catalogue().names_file(file) {
            return;
        }
        for path in [data_path(file), map_path(file), sums_path(file), bad_path(file)] {
            let _ = self.env.fs.unlink(&path);
        }
    }

    /// Drops frozen layers that nobody reads, until there is none.
    fn drop_unused_layers(&self) -> Result<()> {
        if self.options.read_only || !self.env.store.damage().is_empty() {
            return Ok(());
        }
        loop {
            let mut dropped = Vec::new();
            let unused: Vec<(Id, Id)> = {
                let catalogue = self.env.store.catalogue();
                catalogue.unread_layers().map(|l| (l.id, l.file)).collect()
            };
            if unused.is_empty() {
                return Ok(());
            }
            // That nobody reads them must be durable before anything of them goes.
            self.env.store.sync(self.env.store.committed())?;
            for (id, file) in unused {
                let _ops = self.ops.lock();
                if self.layer_is_unused(id) {
                    self.drop_layer(id, file)?;
                    dropped.push(file);
                }
            }
            if dropped.is_empty() {
                return Ok(());
            }
            self.env.store.sync(self.env.store.committed())?;
            for file in dropped {
                self.unlink_files(file);
            }
        }
    }

    /// Under `ops`.
    fn layer_is_unused(&self, id: Id) -> bool {
        let live = self.tables.lock().layers.get(&id).and_then(std::sync::Weak::upgrade);
        let catalogue = self.env.store.catalogue();
        catalogue.layer(id).is_some() && catalogue.heir_count(id) == 0 && !live.as_deref().is_some_and(Layer::pinned)
    }

    /// Under `ops`: drops a layer that nobody reads, and, if its file is a plain file of the user's, its link to that
    /// file too, in one step for whoever looks at the file: it has one name again, and is not shared.
    pub(super) fn drop_layer(&self, id: Id, file: Id) -> Result<()> {
        let mut tables = self.tables.lock();
        self.env.store.commit(vec![Change::DropLayer(id)])?;
        tables.layers.remove(&id);
        tables.shared.retain(|_, layer| *layer != id);
        let path = data_path(file);
        if self.env.fs.stat(&path).is_ok_and(|stat| stat.nlink > 1) {
            let _ = self.env.fs.unlink(&path);
        }
        Ok(())
    }

    /// Removes files below `dir` for which `keep` says no. For the start.
    pub(super) fn sweep(&self, dir: &str, keep: impl Fn(&str) -> bool) -> Result<()> {
        for entry in self.env.fs.list(Path::new(dir)).context("list metadata directory", dir)? {
            let known = entry.name.to_str().is_some_and(&keep);
            if !known {
                let path = Path::new(dir).join(&entry.name);
                self.env.fs.unlink(&path).context("remove leftover file", path)?;
            }
        }
        Ok(())
    }
}
