//! What is loaded: volumes and frozen layers in memory, and what is known of files without loading them.
//!
//! One lock guards the tables, and no system call is made under it by a load: whoever needs a volume or a layer that is
//! not in memory takes its *slot*, reads from the disk with no lock held, and enters the result. Others who need the
//! object of that slot wait for it; nobody else does, however slow the disk is.
//!
//! What makes a load without the lock right: a volume's files and its record are changed only through the volume in
//! memory, and a frozen layer's only through that layer in memory. While a slot is taken there is no such object, so what
//! the load reads does not change under it. The one exception is a frozen layer that adopts its parent while a loader
//! is on its way down to it: the loader looks at the record again once it has the slot (`Pool::load_layer`).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use crate::engine::io::FileKey;
use crate::engine::layer::Layer;
use crate::engine::volume::Volume;
use crate::error::Result;
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::units::Id;

/// What is loaded, and what is known of files that are not.
#[derive(Default)]
pub(super) struct Tables {
    /// Open volumes by the file that carries their attributes.
    pub volumes: HashMap<FileKey, Weak<Volume>>,
    /// Open volumes of the catalogue, by identity.
    pub by_id: HashMap<Id, Weak<Volume>>,
    /// Volumes that must be kept until they are synced.
    pub unsettled: HashMap<u64, Arc<Volume>>,
    /// Stubs by inode.
    pub stubs: HashMap<FileKey, Id>,
    /// Plain files that clones read through a layer, by inode.
    pub shared: HashMap<FileKey, Id>,
    /// Frozen layers in memory.
    pub layers: HashMap<Id, Weak<Layer>>,
    /// Where volumes were seen that their records have elsewhere.
    pub seen: super::follow::Seen,
    /// Slots that are taken: somebody reads the object from the disk.
    loading: HashSet<Slot>,
}

impl Tables {
    /// Whether somebody is just loading the volume of this file.
    pub fn is_loading(&self, key: FileKey) -> bool {
        self.loading.contains(&Slot::Volume(key))
    }

    /// Lets go of entries whose objects are gone, now and then.
    pub fn sweep(&mut self) {
        if self.volumes.len().is_multiple_of(1024) {
            self.volumes.retain(|_, v| v.strong_count() > 0);
            self.by_id.retain(|_, v| v.strong_count() > 0);
            self.layers.retain(|_, l| l.strong_count() > 0);
        }
    }
}

/// Names an object that can be loaded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Slot {
    /// The volume whose attributes are those of a file.
    Volume(FileKey),
    /// A frozen layer.
    Layer(Id),
}

/// The tables and their lock, which comes after `ops` and before the store's own.
#[derive(Default)]
pub(super) struct Registry {
    tables: Mutex<Tables>,
    /// A slot was given back.
    loaded: Condvar,
}

impl Registry {
    /// The tables, for a look or a change in memory.
    pub fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock()
    }

    /// The object of `slot`: the one that `known` finds, else the one that `load` makes, with no lock held and with
    /// nobody else loading it. `enter` puts a new object into the tables. A load that fails leaves nothing behind, and
    /// whoever waited for it tries for itself.
    ///
    /// No caller may hold another slot of its own kind: then two loaders cannot wait for each other, as a load of a volume
    /// takes slots of layers, and a load of a layer takes none.
    pub fn get_or_load<T>(
        &self,
        slot: Slot,
        known: impl Fn(&Tables) -> Option<Arc<T>>,
        load: impl FnOnce() -> Result<Arc<T>>,
        enter: impl FnOnce(&mut Tables, &Arc<T>),
    ) -> Result<Arc<T>> {
        let mut tables = self.tables.lock();
        loop {
            if let Some(object) = known(&tables) {
                return Ok(object);
            }
            if tables.loading.insert(slot) {
                break;
            }
            self.loaded.wait(&mut tables);
        }
        drop(tables);
        let taken = Taken { registry: self, slot };
        let object = load()?;
        let mut tables = self.tables.lock();
        // A file that was just created can have got the number of the one that was looked for.
        if let Some(newer) = known(&tables) {
            drop(tables);
            drop(taken);
            return Ok(newer);
        }
        enter(&mut tables, &object);
        drop(tables);
        drop(taken);
        Ok(object)
    }
}

/// A slot that is taken; it is given back whatever the load comes to.
struct Taken<'a> {
    registry: &'a Registry,
    slot: Slot,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.registry.tables.lock().loading.remove(&self.slot);
        self.registry.loaded.notify_all();
    }
}
