//! Reads that end on another thread than they began on.

use super::{Foreground, State, Volume};
use crate::engine::io::{Read, Ring};
use crate::units::{BLOCK, blocks};

impl Volume {
    /// Prepares to read exactly `len` bytes through `ring`, past the page cache: what [`Volume::read_as`] would read with
    /// one direct call. `None` for anything else, which that says or does: what lies beyond the end, in several files, or
    /// in one that cannot be read so; what is shared, damaged, or cannot be opened.
    ///
    /// The read holds the gate shared until it has ended, as `read_as` does: who takes it exclusively, to change what the
    /// volume is, finds no read under way.
    pub fn read_beside(&self, ring: &Ring, offset: u64, len: usize) -> Option<Read> {
        let gate = self.gate.read_arc();
        let read = match &*gate {
            State::Plain(plain) if plain.shared.is_none() => ring.prepare(&plain.file, true, offset, len),
            State::Overlay(overlay) => {
                let end = offset.checked_add(len as u64).filter(|end| *end <= overlay.top.size())?;
                let (first, last) = (offset / BLOCK, blocks(end));
                if !overlay.top.has_all(first, last) || overlay.top.check_sound(first, last).is_err() {
                    return None;
                }
                ring.prepare(&overlay.top.data().ok()??, true, offset, len)
            }
            _ => None,
        };
        // In this order: who finds the gate free finds nothing under way.
        Some(read?.keeping((Foreground::begin(self.env.foreground.clone()), gate)))
    }
}
