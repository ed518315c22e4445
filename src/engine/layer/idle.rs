//! Descriptors of layers that nobody uses at the moment: given back when the process has no more to spare.
//!
//! The limit of open files is one for the whole process, and so is this list. Only frozen layers whose data is durable
//! are closed: a descriptor through which something was written must stay open until its sync has told of failures
//! (R14).

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::Layer;

/// Lock order: held while trying, and only trying, the locks of layers.
static LAYERS: Mutex<Known> = Mutex::new(Known { layers: Vec::new(), prune_at: 1024 });

struct Known {
    layers: Vec<Weak<Layer>>,
    /// Length at which those that are gone are removed.
    prune_at: usize,
}

/// Puts a new layer on the list.
pub fn register(layer: Layer) -> Arc<Layer> {
    let layer = Arc::new(layer);
    crate::engine::io::set_relief(close_idle);
    let mut known = LAYERS.lock();
    if known.layers.len() >= known.prune_at {
        known.layers.retain(|layer| layer.strong_count() > 0);
        known.prune_at = (known.layers.len() * 2).max(1024);
    }
    known.layers.push(Arc::downgrade(&layer));
    layer
}

/// Closes what can be opened again at any time; returns how many layers had something to close.
pub fn close_idle() -> usize {
    let layers: Vec<Arc<Layer>> = LAYERS.lock().layers.iter().filter_map(Weak::upgrade).collect();
    layers.iter().filter(|layer| layer.close()).count()
}

impl Layer {
    /// From now on nothing is written to it, or, in an adoption, something is again.
    pub fn set_frozen(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Release);
    }

    /// Closes its files, if it is frozen, durable, and not in use at this moment.
    fn close(&self) -> bool {
        let (Some(mut state), Some(mut body)) = (self.map.try_lock(), self.body.try_write()) else { return false };
        let idle = self.frozen.load(Ordering::Acquire) && !self.dirty.load(Ordering::Acquire) && !state.names_dirty;
        // Somebody holds the file for a call: closing it here would give nothing back.
        let held = body.data.as_ref().is_some_and(|data| Arc::strong_count(data) > 1);
        if !idle || held || body.data.is_none() && state.map.is_none() {
            return false;
        }
        body.data = None;
        body.data_writable = false;
        state.map = None;
        true
    }
}
