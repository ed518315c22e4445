//! A layer: a data file in which block n lies at n * 4096, and the set of blocks that it has.
//!
//! | state of a block | in the set | in the data file |
//! |---|---|---|
//! | parent | no | nothing that counts: a hole, or leftovers of a write that a crash took back |
//! | data | yes | the bytes |
//! | zero | yes | a hole |
//!
//! A block's bit is durable only after its data is: [`Layer::flush`] takes the set of newly present blocks, syncs the
//! data, and only then appends the set to the map.
//!
//! **No block at or beyond the end of the volume is present** (E1 in docs/ordering.md), in memory at any moment at which
//! the lock of the set is free. So a volume that grows again shows zeros there, a write there is one to absent blocks and
//! is noted as such, and the note of a size may stand for "nothing beyond is present". Set and size change together,
//! under that lock: [`Layer::mark_and_grow`], [`Layer::shrink`], [`Layer::set_extent`]. Maps on disk can say more, where an
//! older version or a kill left it: what they say beyond the end is forgotten as they are read.

mod files;
mod flush;
mod idle;
pub mod map;
mod presence;
pub mod resolve;
pub mod sums;
pub mod unsynced;

pub use idle::close_idle;

use std::sync::{Arc, OnceLock};

use roaring::RoaringBitmap;

use crate::engine::io::{FileRef, Fs};
use crate::engine::store::data_path;
use crate::engine::store::record::{LayerRecord, VolumeRecord};
use crate::error::{Context, Error, Kind, Result};
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, RwLock};
use crate::units::{BLOCK, Id};
use map::Map;
use unsynced::Unsynced;

/// The first failure of a sync of one file. It stays until the pool is opened again.
#[derive(Default)]
pub struct Latch {
    failure: Mutex<Option<String>>,
    /// Held during a sync of the file: of two at a time only one would hear of a failure.
    syncing: Mutex<()>,
}

impl Latch {
    /// Records a failure, unless there was one. A lack of descriptors is none: the call was never made.
    pub fn set(&self, error: &std::io::Error) {
        if !matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
            self.failure.lock().get_or_insert(error.to_string());
        }
    }

    /// Runs a sync of the file, if none has failed yet.
    pub fn sync(&self, operation: &'static str, sync: impl FnOnce() -> std::io::Result<()>) -> Result<()> {
        let _one = self.syncing.lock();
        self.check(operation)?;
        sync().map_err(|error| {
            self.set(&error);
            Error::io(operation, error)
        })
    }

    /// The error to give after a failure.
    pub fn check(&self, operation: &'static str) -> Result<()> {
        match &*self.failure.lock() {
            None => Ok(()),
            Some(why) => Err(Error::new(Kind::Latched, operation)
                .because(why.clone())
                .remedy("check the disk, then unmount and mount again")),
        }
    }
}

/// A layer in memory. All methods may be called from any thread.
pub struct Layer {
    /// Identity.
    pub id: Id,
    fs: Arc<dyn Fs>,
    /// Size in bytes of the volume this layer is, or was, the top of.
    size: AtomicU64,
    /// Blocks of the parent that can be seen.
    overlap: AtomicU64,
    /// Data or map were written since the last flush.
    dirty: AtomicBool,
    /// Lock order: `map` before `body`; no I/O under `body` but the first opening of the data file.
    body: RwLock<Body>,
    map: Mutex<MapState>,
    /// The first failure after which nothing of this layer may be called durable (R14). Shared with the volume whose
    /// file it is: the kernel reports the failure only once.
    latch: Mutex<Arc<Latch>>,
    /// Its heir's blocks are being copied into its file: what it shows by itself is nobody's contents.
    adopting: AtomicBool,
    /// Readers that hold this layer open as a point in time, without a record on disk.
    pins: AtomicUsize,
    /// Nothing is written to it any more.
    frozen: AtomicBool,
    /// Records of the map on disk that are durable.
    map_records: AtomicU64,
    /// The catalogue knows of them.
    map_noted: AtomicBool,
    /// Pieces that a scrub found damaged, see [`sums`].
    bad: RwLock<Vec<u32>>,
    any_bad: AtomicBool,
    owners: resolve::Cache,
    /// User and group of the volume, to whom the data file belongs: the filesystem's quotas count it there.
    owner: Mutex<Option<(u32, u32)>>,
    /// Where changes are noted until the map has them.
    unsynced: OnceLock<Arc<Unsynced>>,
}

struct Body {
    /// Name of the files.
    file: Id,
    parent: Option<Arc<Layer>>,
    data: Option<FileRef>,
    data_writable: bool,
    /// Every block is present; `present` is not used.
    complete: bool,
    present: RoaringBitmap,
    /// Changes that the map on disk does not have yet.
    added: RoaringBitmap,
    cleared: RoaringBitmap,
    /// Size or overlap that the map on disk does not have yet.
    extent_changed: bool,
    /// Another layer has taken its files: there is nothing left to make durable.
    retired: bool,
    /// Blocks written since an adoption began to copy this layer's blocks.
    touched: Option<RoaringBitmap>,
}

#[derive(Default)]
struct MapState {
    map: Option<Map>,
    /// Names of data and map may not be durable yet.
    names_dirty: bool,
}

/// Blocks `[start, end)` as a roaring bitmap wants them; the last possible block is `u32::MAX - 1`.
fn span(start: u64, end: u64) -> std::ops::Range<u32> {
    start.min(u32::MAX as u64) as u32..end.min(u32::MAX as u64) as u32
}

/// A layer that is held; it is let go of with this.
pub struct Hold(Arc<Layer>);

impl std::ops::Deref for Hold {
    type Target = Arc<Layer>;

    fn deref(&self) -> &Arc<Layer> {
        &self.0
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.pins.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Layer {
    fn new(fs: &Arc<dyn Fs>, id: Id, file: Id, parent: Option<Arc<Layer>>, size: u64, overlap: u64) -> Layer {
        Layer {
            id,
            fs: fs.clone(),
            size: AtomicU64::new(size),
            overlap: AtomicU64::new(overlap),
            dirty: AtomicBool::new(false),
            body: RwLock::new(Body {
                file,
                parent,
                data: None,
                data_writable: false,
                complete: false,
                present: RoaringBitmap::new(),
                added: RoaringBitmap::new(),
                cleared: RoaringBitmap::new(),
                extent_changed: false,
                retired: false,
                touched: None,
            }),
            map: Mutex::new(MapState::default()),
            latch: Mutex::default(),
            adopting: AtomicBool::new(false),
            pins: AtomicUsize::new(0),
            frozen: AtomicBool::new(false),
            map_noted: AtomicBool::new(false),
            map_records: AtomicU64::new(0),
            bad: RwLock::default(),
            any_bad: AtomicBool::new(false),
            owners: resolve::Cache::default(),
            owner: Mutex::new(None),
            unsynced: OnceLock::new(),
        }
    }

    /// A new empty top layer; it has no files until something is written.
    pub fn fresh(fs: &Arc<dyn Fs>, id: Id, parent: Option<Arc<Layer>>, size: u64, overlap: u64) -> Arc<Layer> {
        idle::register(Layer::new(fs, id, id, parent, size, overlap))
    }

    /// A frozen layer. `parent` is the layer that the record names.
    pub fn open_frozen(fs: &Arc<dyn Fs>, record: &LayerRecord, parent: Option<Arc<Layer>>) -> Result<Arc<Layer>> {
        let mut layer = Layer::new(fs, record.id, record.file, parent, record.size, record.overlap);
        let body = layer.body.get_mut();
        body.complete = record.complete;
        if !record.complete {
            let found = map::read_known(fs.as_ref(), record.file, record.records)?;
            *layer.map_records.get_mut() = found.as_ref().map_or(0, |(_, scan)| scan.records.len() as u64);
            if let Some((presence, _)) = found {
                body.present = presence.present;
                body.forget_beyond(record.size);
                check_data_exists(fs.as_ref(), body)?;
            }
        }
        *layer.map_noted.get_mut() = *layer.map_records.get_mut() == record.records;
        layer.load_bad(record.file)?;
        *layer.frozen.get_mut() = true;
        Ok(idle::register(layer))
    }

    /// The top layer of a volume, as the last flush before now left it.
    pub fn open_top(fs: &Arc<dyn Fs>, record: &VolumeRecord, parent: Option<Arc<Layer>>) -> Result<Arc<Layer>> {
        let mut layer = Layer::new(fs, record.top, record.file, parent, record.size, record.overlap);
        let body = layer.body.get_mut();
        body.complete = record.complete;
        *layer.map_noted.get_mut() = record.mapped;
        if record.complete {
            // Like any file's, its size is that of the file.
            let path = data_path(record.file);
            *layer.size.get_mut() = fs.stat(&path).context("look at layer data", path)?.size;
        } else if let Some((presence, scan)) = map::read_known(fs.as_ref(), record.file, record.mapped.into())? {
            *layer.map_records.get_mut() = scan.records.len() as u64;
            body.present = presence.present;
            if let Some((size, overlap)) = presence.extent {
                *layer.size.get_mut() = size;
                *layer.overlap.get_mut() = overlap;
            }
            body.forget_beyond(presence.extent.map_or(record.size, |(size, _)| size));
            check_data_exists(fs.as_ref(), body)?;
            let map =
                Map::resume(fs, record.file, &scan).context("open map", crate::engine::store::map_path(record.file));
            layer.map.get_mut().map = match map {
                Ok(map) => Some(map),
                // A read-only pool can still be read.
                Err(e) if e.os_error() == Some(libc::EROFS) => None,
                Err(e) => return Err(e),
            };
        }
        Ok(idle::register(layer))
    }

    /// The filesystem that its files are on.
    pub fn fs(&self) -> &Arc<dyn Fs> {
        &self.fs
    }

    /// Size in bytes of the volume.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Makes the size at least `size`; the data file is the caller's business.
    pub fn grow_size(&self, size: u64) {
        if self.size.fetch_max(size, Ordering::AcqRel) < size {
            self.extent_changed();
        }
    }

    /// Blocks of the parent that can be seen.
    pub fn overlap(&self) -> u64 {
        self.overlap.load(Ordering::Acquire)
    }

    /// Sets them.
    pub fn set_overlap(&self, overlap: u64) {
        self.overlap.store(overlap, Ordering::Release);
        self.extent_changed();
    }

    /// The layer below.
    pub fn parent(&self) -> Option<Arc<Layer>> {
        self.body.read().parent.clone()
    }

    /// Name of the files.
    pub fn file_id(&self) -> Id {
        self.body.read().file
    }

    /// Whether it has every block below its size.
    pub fn complete(&self) -> bool {
        self.body.read().complete
    }

    /// Whether nothing was ever written to it.
    pub fn is_empty(&self) -> bool {
        let body = self.body.read();
        !body.complete && body.present.is_empty()
    }

    /// Lets go of the parent, when no block is absent any more.
    pub fn drop_parent(&self) {
        self.body.write().parent = None;
    }

    /// Holds the layer as a point in time: nobody adopts it while that is kept.
    pub fn hold(self: &Arc<Self>) -> Hold {
        self.pins.fetch_add(1, Ordering::AcqRel);
        Hold(self.clone())
    }

    /// Whether its heir's blocks are being copied into its file.
    pub fn adopting(&self) -> bool {
        self.adopting.load(Ordering::Acquire)
    }

    /// Says whether they are.
    pub fn set_adopting(&self, adopting: bool) {
        self.adopting.store(adopting, Ordering::Release);
    }

    /// Whether somebody holds it.
    pub fn pinned(&self) -> bool {
        self.pins.load(Ordering::Acquire) > 0
    }

    /// Whether its map has been durable: then a map that is not there was lost.
    pub fn mapped(&self) -> bool {
        self.map_records() > 0
    }

    /// How many records of its map are durable.
    pub fn map_records(&self) -> u64 {
        self.map_records.load(Ordering::Acquire)
    }

    /// Whether it is frozen, and all of it durable.
    pub fn at_rest(&self) -> bool {
        self.frozen.load(Ordering::Acquire) && !self.is_dirty() && !self.adopting()
    }

    /// Whether the catalogue has yet to be told that there is a map.
    pub fn map_unnoted(&self) -> bool {
        self.mapped() && !self.map_noted.load(Ordering::Acquire)
    }

    /// The catalogue was told.
    pub fn set_map_noted(&self) {
        self.map_noted.store(true, Ordering::Release);
    }

    /// The record of this layer as a frozen one.
    pub fn frozen_record(&self) -> LayerRecord {
        let body = self.body.read();
        LayerRecord {
            id: self.id,
            file: body.file,
            parent: body.parent.as_ref().map(|p| p.id),
            overlap: self.overlap(),
            size: self.size(),
            complete: body.complete,
            // More may be in it, but it can still be written anew, as one.
            records: self.mapped().into(),
            given: false,
            stamp: None,
        }
    }
}

impl Drop for Layer {
    /// One by one: a chain can be thousands of layers long, and the stack is not.
    fn drop(&mut self) {
        let mut next = self.body.get_mut().parent.take();
        while let Some(mut layer) = next.and_then(Arc::into_inner) {
            next = layer.body.get_mut().parent.take();
        }
    }
}

/// A map that names blocks without a data file to hold them is damage: reading it must not give zeros.
fn check_data_exists(fs: &dyn Fs, body: &Body) -> Result<()> {
    let Some(last) = body.present.max() else { return Ok(()) };
    let path = data_path(body.file);
    let damaged = |why: String| {
        Err(Error::new(Kind::Damaged, "open layer")
            .at(&path)
            .because(why)
            .remedy("restore this file from a backup; the other volumes are not touched"))
    };
    match fs.stat(&path) {
        Ok(stat) if stat.size <= last as u64 * BLOCK => damaged(format!("shorter than its map says: {}", stat.size)),
        Ok(_) => Ok(()),
        Err(e) => damaged(e.to_string()),
    }
}

/// Bytes from `offset` to the end of its block.
pub fn to_block_end(offset: u64) -> u64 {
    BLOCK - offset % BLOCK
}
