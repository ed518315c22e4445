//! A plain file as a volume: calls go straight through, until it has clones.

use crate::sync::atomic::{AtomicBool, Ordering};
use std::path::PathBuf;
use std::sync::Arc;

use crate::sync::Mutex;

use crate::engine::io::{FileRef, Fs};
use crate::engine::layer::{Latch, Layer};
use crate::error::{Error, Result};

/// Longest write that can be such a probe.
const PROBE: usize = 64 << 10;

/// An ordinary file of the backing filesystem.
pub struct Plain {
    /// The file, open for writing where that is allowed.
    pub file: FileRef,
    /// The layer that clones read this file through; the first write must freeze it (see `pool::freeze`).
    pub shared: Option<Arc<Layer>>,
    /// It was made empty through this mount and nothing was written to it: all of it reads as zeros.
    pub pristine: AtomicBool,
    /// What is not durable.
    pub durability: Arc<Durability>,
    /// It is being copied as it is: whoever would change it waits for `Volume::switching` first.
    still: Arc<AtomicBool>,
}

/// Keeps a plain file from being changed, while it can be read, until this is dropped. Whoever has it holds
/// `Volume::switching`.
pub struct Still(Arc<AtomicBool>);

impl Drop for Still {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Whether what was written to a file is durable; outlives a change of the volume's state.
#[derive(Default)]
pub struct Durability {
    dirty: AtomicBool,
    /// The first failed sync: the kernel reports it once and then calls lost pages clean (R14).
    pub latch: Arc<Latch>,
    /// Directory whose entry for this file may not be durable yet, because it took the place of a stub.
    pub directory: Mutex<Option<PathBuf>>,
}

impl Plain {
    /// An existing file.
    pub fn new(file: FileRef, shared: Option<Arc<Layer>>) -> Plain {
        let durability: Arc<Durability> = Arc::default();
        if let Some(layer) = &shared {
            layer.share_latch(&durability.latch);
        }
        Plain { file, shared, pristine: AtomicBool::new(false), durability, still: Arc::default() }
    }

    /// A file that was a layer's until now, whose syncs may have failed.
    pub fn of_layer(file: FileRef, layer: &Layer, directory: PathBuf) -> Plain {
        let directory = Mutex::new(Some(directory));
        let durability = Arc::new(Durability { latch: layer.latch_of_file(), directory, ..Durability::default() });
        Plain { file, shared: None, pristine: AtomicBool::new(false), durability, still: Arc::default() }
    }

    /// Whether a change has to ask the pool first: clones read the file, or it is being copied.
    pub fn asks_first(&self) -> bool {
        self.shared.is_some() || self.still.load(Ordering::Acquire)
    }

    /// Lets nobody change the file while the result is kept. To be called with `Volume::switching` held, and the gate
    /// held exclusively: no change is under way then, and later ones wait for `switching`.
    pub fn hold_still(&self) -> Still {
        self.still.store(true, Ordering::Release);
        Still(self.still.clone())
    }

    /// Notes that contents are about to change.
    pub fn touch(&self) {
        self.pristine.store(false, Ordering::Release);
        self.durability.dirty.store(true, Ordering::Release);
    }

    /// Notes that this is about to be written. A few zeros, with which qemu-img finds out what alignment a new file
    /// wants, do not make it other than new.
    pub fn touch_with(&self, data: &[u8]) {
        if data.len() > PROBE || data.iter().any(|byte| *byte != 0) {
            self.pristine.store(false, Ordering::Release);
        }
        self.durability.dirty.store(true, Ordering::Release);
    }

    /// Whether something was written since the last sync, or its name is not durable.
    pub fn is_dirty(&self) -> bool {
        self.durability.dirty.load(Ordering::Acquire) || self.owes_name()
    }

    /// Whether its name is not durable yet.
    pub fn owes_name(&self) -> bool {
        self.durability.directory.lock().is_some()
    }

    /// The error to give while a sync has failed.
    pub fn check_latch(&self) -> Result<()> {
        self.durability.latch.check("use file")
    }
}

impl Durability {
    /// Notes that something was written.
    pub fn set_dirty(&self) {
        self.dirty.store(true, Ordering::Release);
    }

    /// Makes contents durable, and the name if it is new; the first failure stays.
    pub fn sync(&self, fs: &dyn Fs, file: &FileRef, data_only: bool) -> Result<()> {
        let synced = self.latch.sync("sync file", || {
            self.dirty.store(false, Ordering::Release);
            if data_only { file.sync_data() } else { file.sync_all() }
        });
        // What is not durable stays so: the end of the pool must not be called a good one.
        synced.inspect_err(|_| self.dirty.store(true, Ordering::Release))?;
        sync_entry(fs, &self.directory)
    }
}

/// Makes a directory entry durable that is owed. A directory that is gone owes nothing.
pub fn sync_entry(fs: &dyn Fs, directory: &Mutex<Option<PathBuf>>) -> Result<()> {
    let Some(path) = directory.lock().clone() else { return Ok(()) };
    match fs.sync_dir(&path) {
        Err(e) if e.raw_os_error() != Some(libc::ENOENT) => return Err(Error::io("sync directory", e).at(path)),
        _ => {}
    }
    directory.lock().take_if(|owed| *owed == path);
    Ok(())
}
