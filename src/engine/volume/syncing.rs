//! What makes an overlay durable: layers below, its own layer, names and the journal, in the order that a crash allows.

use std::path::PathBuf;
use std::sync::Arc;

use super::plain::sync_entry;
use crate::engine::io::{FileRef, Fs};
use crate::engine::layer::Layer;
use crate::engine::store::Store;
use crate::engine::store::catalogue::Catalogue;
use crate::engine::store::record::Change;
use crate::error::{Context, Result};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::units::Id;

/// What must become durable with a volume, besides its own layer. Its own object, so that a sync can work on it
/// without holding up anybody who wants the volume.
pub struct Debts {
    /// Layers below that may hold data that is not durable yet, lowest first (R5). Held only for a look.
    pub pending: Mutex<Vec<Arc<Layer>>>,
    /// Number of the last commit that this volume depends on.
    pub commit: AtomicU64,
    /// The link in `stubs` may not be durable yet.
    pub names_dirty: AtomicBool,
    /// Directory whose entry for the stub may not be durable yet, because the stub took the place of a file.
    pub directory: Mutex<Option<PathBuf>>,
}

/// All that a sync needs, taken from a volume at one moment.
pub struct Syncing {
    pub(super) id: Id,
    pub(super) top: Arc<Layer>,
    pub(super) stub: FileRef,
    pub(super) debts: Arc<Debts>,
}

impl Syncing {
    /// Makes the stub and its link durable, if they are not; whether it had to. That comes before the map of its layer:
    /// data without a stub is taken for a volume that lost its name.
    pub(super) fn sync_names(&self, fs: &dyn Fs) -> Result<bool> {
        if !self.debts.names_dirty.load(Ordering::Acquire) {
            return Ok(false);
        }
        let stubs = std::path::Path::new(crate::engine::store::STUBS);
        let (mut stub, mut link) = (Ok(()), Ok(()));
        fs.both(&mut || stub = self.stub.sync_all(), &mut || link = fs.sync_dir(stubs));
        stub.context("sync stub", crate::engine::store::stub_path(self.id))?;
        link.context("sync stubs directory", stubs)?;
        Ok(true)
    }

    /// Nothing was ever written to it, and nothing below is owed a sync: names and the journal are all that there is.
    fn is_bare(&self) -> bool {
        let debts = &self.debts;
        let owed = !debts.pending.lock().is_empty() || debts.directory.lock().is_some();
        !owed && self.top.is_empty() && self.top.is_settled()
    }

    /// The sync of a clone that nothing was written to. Neither stub nor record says anything about data, so they need
    /// not wait for each other: whichever a crash leaves, the other is dropped at the next start.
    fn run_bare(&self, fs: &dyn Fs, store: &Store) -> Result<bool> {
        self.top.check_latch()?;
        let (mut names, mut journal) = (Ok(false), Ok(()));
        let commit = self.debts.commit.load(Ordering::Acquire);
        fs.both(&mut || names = self.sync_names(fs), &mut || journal = store.sync(commit));
        let synced = names?;
        journal?;
        self.debts.names_dirty.store(false, Ordering::Release);
        Ok(synced)
    }

    /// Makes everything durable: layers below first, then data, map, names and the journal. Hold no gate: writes to
    /// the volume, and clones of it, go on meanwhile. With `names_synced`, names need no sync of their own. Says whether
    /// it synced the stub itself, with the attributes that it had before.
    pub fn run(&self, fs: &dyn Fs, store: &Store, names_synced: bool) -> Result<bool> {
        let debts = &self.debts;
        if !names_synced && debts.names_dirty.load(Ordering::Acquire) && self.is_bare() {
            return self.run_bare(fs, store);
        }
        // Cleared only at the end: a second sync must not return before the names of the first are durable.
        let names = debts.names_dirty.load(Ordering::Acquire);
        // Before any map: a layer below can be what another volume, whose stub is new too, writes to until its record
        // is durable. The directory is one for all stubs.
        let stub_synced = !names_synced && self.sync_names(fs)?;
        let pending = debts.pending.lock().clone();
        for layer in &pending {
            // A chain has all layers below: what one volume has synced need not be synced again for each above it.
            layer.check_latch()?;
            if !layer.is_settled() {
                layer.flush()?;
            }
            // Its file is durable as it was when it was cloned: a later difference is somebody's doing.
            let number = store.commit_with(|catalogue| firm_stamp(catalogue, layer.id))?;
            debts.commit.fetch_max(number, Ordering::AcqRel);
        }
        self.top.flush()?;
        sync_entry(fs, &debts.directory)?;
        store.sync(debts.commit.load(Ordering::Acquire))?;
        if names {
            debts.names_dirty.store(false, Ordering::Release);
        }
        debts.pending.lock().retain(|layer| !pending.iter().any(|done| Arc::ptr_eq(done, layer)));
        Ok(stub_synced)
    }
}

/// The change that makes a layer's stamp firm, if there is one to make.
pub fn firm_stamp(catalogue: &Catalogue, layer: Id) -> Vec<Change> {
    let Some(mut record) = catalogue.layer(layer).cloned() else { return Vec::new() };
    match &mut record.stamp {
        Some(stamp) if !stamp.firm => stamp.firm = true,
        _ => return Vec::new(),
    }
    vec![Change::Layer(record)]
}
