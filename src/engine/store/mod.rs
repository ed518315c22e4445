//! The pool's own metadata on disk: the catalogue of volumes and layers, its journal, and how they are recovered.
//!
//! One append-only journal carries every change; a change of several records is one journal record, so it happens
//! whole or not at all, and a durable clone costs one sync of one file. From time to time the catalogue is written out
//! as a checkpoint and a new journal begins.
//!
//! | crash during | what is found | what it means |
//! |---|---|---|
//! | an append | a torn end | the change did not happen |
//! | writing a checkpoint | files in `tmp` | ignored and removed; catalogue and journal are the old ones |
//! | between the renames of a checkpoint | catalogue of generation g+1, journal of g | all of the journal is in the catalogue |
//!
//! The journal is a prefix of what was committed, whatever part of it reached the disk: nothing in it is reordered.

pub mod catalogue;
pub mod log;
mod owner;
pub mod record;
mod recover;
pub mod salvage;

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::sync::{Mutex, RwLock, RwLockReadGuard};
use serde::{Deserialize, Serialize};

use crate::engine::io::{Fs, Open, Rename};
use crate::error::{Context, Error, Kind, Result};
use crate::units::{BLOCK, Id};
use catalogue::Catalogue;
use log::Log;
pub use owner::check_owner;
use record::Change;

/// Version of everything below `.clonefs`.
pub const FORMAT: u32 = 1;
/// Directory of all metadata, at the pool's root.
pub const DIR: &str = ".clonefs";
/// Identity and format of the pool.
pub const POOL: &str = ".clonefs/pool.json";
/// Checkpoint.
pub const CATALOGUE: &str = ".clonefs/catalogue";
/// Changes since the checkpoint.
pub const JOURNAL: &str = ".clonefs/journal";
/// Data and maps of layers.
pub const LAYERS: &str = ".clonefs/layers";
/// A link to the stub of each volume.
pub const STUBS: &str = ".clonefs/stubs";
/// The stubs of snapshots. It is made with the first of them.
pub const SNAPSHOTS: &str = ".clonefs/snapshots";
/// Changes of maps that were not synced, for the case that the daemon is killed (`layer::unsynced`).
pub const UNSYNCED: &str = ".clonefs/unsynced";
/// The boot of the machine during which files were opened past a daemon (`pool::past`).
pub const PAST: &str = ".clonefs/past";
/// Files that are not in use yet; emptied at every mount.
pub const TMP: &str = ".clonefs/tmp";

/// What repairs replaced or could not place; a numbered directory for each.
pub const LOST: &str = ".clonefs/lost";

const JOURNAL_MAGIC: &[u8; 8] = b"cfsjrnl1";
/// The journal starts with this much space reserved, so that deleting works on a full disk.
const JOURNAL_RESERVE: u64 = 1 << 20;
/// A checkpoint is due when the journal is longer than this, and longer than the last checkpoint was.
const JOURNAL_LIMIT: u64 = 4 << 20;
/// Largest metadata file that is read into memory.
const METADATA_LIMIT: u64 = 4 << 30;

/// Contents of `pool.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolFile {
    /// Version of everything below `.clonefs`.
    pub format: u32,
    /// Identity of the pool.
    pub id: Id,
    /// Bytes in a block.
    pub block_size: u64,
}

/// Place of a layer's data.
pub fn data_path(file: Id) -> PathBuf {
    PathBuf::from(format!("{LAYERS}/{file}.data"))
}

/// Place of a layer's map.
pub fn map_path(file: Id) -> PathBuf {
    PathBuf::from(format!("{LAYERS}/{file}.map"))
}

/// Place of the checksums of a layer's data.
pub fn sums_path(file: Id) -> PathBuf {
    PathBuf::from(format!("{LAYERS}/{file}.sums"))
}

/// Place of the list of damaged pieces of a layer's data.
pub fn bad_path(file: Id) -> PathBuf {
    PathBuf::from(format!("{LAYERS}/{file}.bad"))
}

/// Place of the link to a volume's stub.
pub fn stub_path(volume: Id) -> PathBuf {
    PathBuf::from(format!("{STUBS}/{volume}"))
}

/// Place of the stub of a snapshot.
pub fn snapshot_path(volume: Id) -> PathBuf {
    PathBuf::from(format!("{SNAPSHOTS}/{volume}"))
}

/// A new place under `tmp`.
pub fn tmp_path() -> PathBuf {
    PathBuf::from(format!("{TMP}/{}", new_id()))
}

/// A new identity. Random, so that it is new even after a crash took back the record of the last one.
pub fn new_id() -> Id {
    let mut bytes = [0u8; 8];
    loop {
        // SAFETY: bytes has the length passed.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        let id = u64::from_ne_bytes(bytes);
        if got == bytes.len() as isize && id != 0 {
            return Id(id);
        }
    }
}

struct Inner {
    pool: Option<PoolFile>,
    catalogue: Catalogue,
    journal: Option<Log>,
    generation: u64,
    checkpoint_len: u64,
    /// Changes committed since the store was opened.
    committed: u64,
}

/// The metadata of one pool.
pub struct Store {
    fs: Arc<dyn Fs>,
    read_only: bool,
    /// What is damaged; nothing that depends on knowing all records is done while this is not empty.
    damage: Vec<String>,
    /// No record at all can be trusted: nothing is written.
    unusable: bool,
    /// Lock order: `syncing` before `inner`.
    inner: RwLock<Inner>,
    syncing: Mutex<()>,
    /// Changes known to be durable.
    synced: AtomicU64,
    /// An append or a sync of the journal failed: nothing can be promised any more (R14).
    latched: AtomicBool,
}

/// Writes a new file in `tmp` and makes its contents durable; nothing is left of it after a failure.
fn write_temporary(fs: &dyn Fs, bytes: &[u8]) -> std::io::Result<PathBuf> {
    let temporary = tmp_path();
    let file = fs.open(&temporary, Open::CreateNew(0o600))?;
    let written = file.write_at(bytes, 0).and_then(|()| file.sync_data());
    written.inspect_err(|_| drop(fs.unlink(&temporary)))?;
    Ok(temporary)
}

/// Writes a small file so that after a crash it holds either what it held before or all of `bytes`.
pub fn persist(fs: &dyn Fs, path: &Path, bytes: &[u8]) -> Result<()> {
    let written = write_temporary(fs, bytes).and_then(|temporary| {
        fs.rename(&temporary, path, Rename::Replace).inspect_err(|_| drop(fs.unlink(&temporary)))?;
        fs.sync_dir(path.parent().unwrap_or(Path::new("")))
    });
    written.context("write metadata", path)
}

impl Store {
    /// Opens the metadata of the pool, recovering it after a crash. A pool that was never cloned in has none.
    pub fn open(fs: Arc<dyn Fs>, read_only: bool) -> Result<Store> {
        recover::open(fs, read_only)
    }

    /// Identity of the pool; `None` while it has no metadata.
    pub fn pool_id(&self) -> Option<Id> {
        self.inner.read().pool.as_ref().map(|p| p.id)
    }

    /// What is damaged, in words; empty if nothing is.
    pub fn damage(&self) -> &[String] {
        &self.damage
    }

    /// Whether the records are those that were last committed; if not, none of them may be read through.
    pub fn trusted(&self) -> bool {
        !self.unusable
    }

    /// The catalogue as it is now. Hold the guard briefly: changes wait for it.
    pub fn catalogue(&self) -> impl std::ops::Deref<Target = Catalogue> + '_ {
        RwLockReadGuard::map(self.inner.read(), |inner| &inner.catalogue)
    }

    /// Makes the metadata directory if there is none.
    pub fn ensure(&self) -> Result<()> {
        if self.inner.read().pool.is_some() {
            return Ok(());
        }
        self.writable()?;
        let mut inner = self.inner.write();
        if inner.pool.is_some() {
            return Ok(());
        }
        recover::initialise(self.fs.as_ref(), &mut inner)
    }

    /// The error to give once nothing can be recorded durably any more.
    pub fn check_latch(&self) -> Result<()> {
        if self.latched.load(Ordering::Acquire) {
            return Err(Error::new(Kind::Latched, "change pool metadata")
                .at(JOURNAL)
                .remedy("check the disk, then unmount and mount again"));
        }
        Ok(())
    }

    fn writable(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::new(Kind::ReadOnly, "change pool metadata"));
        }
        if self.unusable {
            return Err(Error::new(Kind::Damaged, "change pool metadata")
                .at(DIR)
                .because(self.damage.join("; "))
                .remedy("run `clonefs check --repair` on the unmounted pool"));
        }
        self.check_latch()
    }

    /// Applies `changes`, all or none, and returns the number to pass to [`Store::sync`] to make them durable.
    pub fn commit(&self, changes: Vec<Change>) -> Result<u64> {
        self.commit_with(|_| changes)
    }

    /// Like [`Store::commit`], with changes made from the catalogue as it is at that moment.
    pub fn commit_with(&self, make: impl FnOnce(&Catalogue) -> Vec<Change>) -> Result<u64> {
        self.writable()?;
        let mut inner = self.inner.write();
        let changes = make(&inner.catalogue);
        if changes.is_empty() {
            return Ok(inner.committed);
        }
        let payload =
            serde_json::to_vec(&changes).map_err(|e| Error::new(Kind::Invalid, "encode journal record").because(e))?;
        let Some(journal) = inner.journal.as_mut() else {
            return Err(Error::new(Kind::Damaged, "append to the journal").at(JOURNAL));
        };
        let appended = journal.append(&payload);
        if journal.is_broken() {
            self.latched.store(true, Ordering::Release);
        }
        appended.context("append to the journal", JOURNAL)?;
        for change in changes {
            inner.catalogue.apply(change);
        }
        inner.committed += 1;
        Ok(inner.committed)
    }

    /// Makes everything up to commit `number` durable. Calls that arrive together share one sync.
    pub fn sync(&self, number: u64) -> Result<()> {
        if self.synced.load(Ordering::Acquire) >= number {
            return Ok(());
        }
        let _one = self.syncing.lock();
        if self.synced.load(Ordering::Acquire) >= number {
            return Ok(());
        }
        self.writable()?;
        let (file, committed, sequence) = {
            let inner = self.inner.read();
            let Some(journal) = &inner.journal else { return Ok(()) };
            (journal.file().clone(), inner.committed, journal.sequence())
        };
        if let Err(error) = file.sync_data() {
            self.latched.store(true, Ordering::Release);
            return Err(Error::io("sync the journal", error).at(JOURNAL));
        }
        if let Some(journal) = &self.inner.read().journal {
            // Still the same one: a checkpoint waits for `syncing`.
            journal.synced(sequence);
        }
        self.synced.store(committed, Ordering::Release);
        Ok(())
    }

    /// Number of the last commit.
    pub fn committed(&self) -> u64 {
        self.inner.read().committed
    }

    /// Whether a checkpoint is worth its cost now.
    pub fn checkpoint_due(&self) -> bool {
        let inner = self.inner.read();
        inner.journal.as_ref().is_some_and(|j| j.end() > JOURNAL_LIMIT.max(inner.checkpoint_len))
    }

    /// Writes the catalogue out and begins a new journal; everything committed is durable then. Does nothing while
    /// records are damaged, so that nothing is lost that a repair could use. On a full disk the old journal goes on.
    pub fn checkpoint(&self) -> Result<()> {
        if !self.damage.is_empty() || self.read_only {
            return Ok(());
        }
        match self.replace_journal() {
            Err(error) if error.is_no_space() && self.check_latch().is_ok() => self.sync(self.committed()),
            other => other,
        }
    }

    fn replace_journal(&self) -> Result<()> {
        let _one = self.syncing.lock();
        self.writable()?;
        let mut inner = self.inner.write();
        if inner.journal.as_ref().is_none_or(|j| j.sequence() == 0) {
            return Ok(());
        }
        let written = recover::write_checkpoint(self.fs.as_ref(), &mut inner);
        if written.is_err() && inner.journal.is_none() {
            // It stopped half-way: there is no journal that a change could go to.
            self.latched.store(true, Ordering::Release);
        }
        written?;
        self.synced.store(inner.committed, Ordering::Release);
        Ok(())
    }
}

impl PoolFile {
    fn new() -> PoolFile {
        PoolFile { format: FORMAT, id: new_id(), block_size: BLOCK }
    }
}

#[cfg(test)]
mod tests;
