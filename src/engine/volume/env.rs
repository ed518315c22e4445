//! What all volumes of a pool share, and what they need from the pool above.

use std::ops::Deref;
use std::sync::{Arc, OnceLock, Weak};

use super::Volume;
use crate::engine::io::Fs;
use crate::engine::layer::Layer;
use crate::engine::layer::unsynced::Unsynced;
use crate::engine::store::Store;
use crate::engine::store::record::{LayerRecord, VolumeRecord};
use crate::error::{Error, Kind, Result};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::units::Id;

/// What a volume needs from the pool above it.
pub trait Hooks: Send + Sync {
    /// The volume is a plain file with clones, and is about to be changed: freezes it.
    fn before_change(&self, volume: &Arc<Volume>) -> Result<()>;
    /// The last handle was closed.
    fn closed(&self, volume: &Arc<Volume>);
    /// A sync has failed: that, and what is not durable, must outlive whoever holds the volume.
    fn sync_failed(&self, volume: &Arc<Volume>);
    /// Something that background work may wait for has changed.
    fn wake(&self);
    /// There are no descriptors left: closes what can be closed after a sync.
    fn relieve(&self);
}

/// What all volumes of a pool share.
pub struct Env {
    /// The backing filesystem.
    pub fs: Arc<dyn Fs>,
    /// The pool's metadata.
    pub store: Store,
    /// Changes of layers that no map has yet.
    pub unsynced: Arc<Unsynced>,
    /// The pool is served for reading only.
    pub read_only: bool,
    /// Files of the pool were opened past a daemon since the machine was started, see [`super::bypass`].
    pub past: AtomicBool,
    /// The pool.
    pub hooks: OnceLock<Weak<dyn Hooks>>,
    /// What others read and write, for background work to keep out of their way.
    pub foreground: Arc<Foreground>,
}

/// Reads and writes that somebody waits for.
#[derive(Default)]
pub struct Foreground {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Foreground {
    /// Counts one, which lasts until the result is dropped.
    pub(super) fn begin<F: Deref<Target = Foreground>>(foreground: F) -> Request<F> {
        foreground.begun.fetch_add(1, Ordering::Relaxed);
        Request(foreground)
    }

    /// Number that began so far.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Number that is under way.
    pub fn under_way(&self) -> u64 {
        // In this order the difference is never negative but for what the processor reorders.
        let ended = self.ended.load(Ordering::Relaxed);
        self.begun().saturating_sub(ended)
    }
}

/// A read or write under way.
pub(super) struct Request<F: Deref<Target = Foreground>>(F);

impl<F: Deref<Target = Foreground>> Drop for Request<F> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

impl Env {
    /// A new empty top layer, see [`Layer::fresh`].
    pub fn fresh_layer(&self, id: Id, parent: Option<Arc<Layer>>, size: u64, overlap: u64) -> Arc<Layer> {
        self.noting(Layer::fresh(&self.fs, id, parent, size, overlap))
    }

    /// A new top layer over `top`, the present one, for the same volume.
    pub fn next_layer(
        &self,
        top: &Arc<Layer>,
        id: Id,
        parent: Option<Arc<Layer>>,
        size: u64,
        overlap: u64,
    ) -> Arc<Layer> {
        let layer = self.fresh_layer(id, parent, size, overlap);
        if let Some((uid, gid)) = top.owner() {
            layer.set_owner(uid, gid);
        }
        layer
    }

    /// A frozen layer, see [`Layer::open_frozen`].
    pub fn open_frozen(&self, record: &LayerRecord, parent: Option<Arc<Layer>>) -> Result<Arc<Layer>> {
        Ok(self.noting(Layer::open_frozen(&self.fs, record, parent)?))
    }

    /// A volume's own layer, see [`Layer::open_top`].
    pub fn open_top(&self, record: &VolumeRecord, parent: Option<Arc<Layer>>) -> Result<Arc<Layer>> {
        Ok(self.noting(Layer::open_top(&self.fs, record, parent)?))
    }

    /// Has the changes of a layer noted until a map has them.
    fn noting(&self, layer: Arc<Layer>) -> Arc<Layer> {
        layer.note_changes(&self.unsynced);
        layer
    }

    /// The pool above, unless it is being torn down.
    pub fn hooks(&self) -> Result<Arc<dyn Hooks>> {
        let gone = || Error::new(Kind::Interrupted, "use pool");
        self.hooks.get().and_then(Weak::upgrade).ok_or_else(gone)
    }
}
