//! The next layer of a volume that is cloned while it is written to.
//!
//! The first write after a clone goes to a new layer, whose two files must be made. On a journalling filesystem that can
//! wait for a commit that is under way, and the writer with it. So they are made before the volume is held up, while it
//! still writes to its old layer. No record names them until the clone is committed: a crash leaves files that the next
//! start removes.

use std::sync::Arc;

use super::Pool;
use crate::engine::io::Fs;
use crate::engine::layer::Layer;
use crate::engine::store::{data_path, map_path, new_id};
use crate::engine::volume::{State, Volume};
use crate::units::blocks;

/// A layer over a volume's own one, with its files; these are removed if nobody takes it.
pub(super) struct Spare {
    fs: Arc<dyn Fs>,
    layer: Option<Arc<Layer>>,
}

impl Pool {
    /// Makes one for a volume that somebody may write to. `None`: there is no need, or it cannot be had, and the next write
    /// will say why.
    pub(super) fn prepare_next_layer(&self, volume: &Volume) -> Option<Spare> {
        if volume.writers() == 0 {
            return None;
        }
        let top = match &*volume.gate().read() {
            State::Overlay(overlay) if !overlay.top.is_empty() => overlay.top.clone(),
            _ => return None,
        };
        let size = top.size();
        let layer = self.env.next_layer(&top, new_id(), Some(top.clone()), size, blocks(size));
        let spare = Spare { fs: self.env.fs.clone(), layer: Some(layer.clone()) };
        layer.data_for_writing().ok()?;
        Some(spare)
    }
}

impl Spare {
    /// The layer, if it fits over `top` as that is now.
    pub(super) fn take_for(&mut self, top: &Arc<Layer>) -> Option<Arc<Layer>> {
        self.layer.take_if(|layer| {
            layer.size() == top.size() && layer.parent().is_some_and(|parent| Arc::ptr_eq(&parent, top))
        })
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        if let Some(layer) = self.layer.take() {
            remove_files(self.fs.as_ref(), &layer);
        }
    }
}

/// Removes the files of a layer that no record names, if it has any. What cannot be removed, the next start removes.
pub(super) fn remove_files(fs: &dyn Fs, layer: &Layer) {
    let _ = fs.unlink(&data_path(layer.file_id()));
    let _ = fs.unlink(&map_path(layer.file_id()));
}
