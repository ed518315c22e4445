//! Which parts of a volume were read a moment ago, for a compactor that copies those first.

use std::collections::VecDeque;
use std::ops::Range;

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};

/// Blocks of a part: 1 MiB.
const PART: u64 = 256;
/// Parts that are remembered; of more, those that were read longest ago are forgotten.
const MOST: usize = 1024;

/// Parts that were read and are not the volume's own yet.
#[derive(Default)]
pub struct Hot {
    wanted: AtomicBool,
    /// The last one was read last.
    parts: Mutex<VecDeque<u64>>,
}

impl Hot {
    /// Begins or ends to remember.
    pub fn track(&self, wanted: bool) {
        if self.wanted.swap(wanted, Ordering::Relaxed) && !wanted {
            self.parts.lock().clear();
        }
    }

    /// Blocks were read. Never waits: what cannot be noted at once is not.
    pub fn note(&self, blocks: Range<u64>) {
        if !self.wanted.load(Ordering::Relaxed) || blocks.is_empty() {
            return;
        }
        let Some(mut parts) = self.parts.try_lock() else { return };
        for part in blocks.start / PART..=(blocks.end - 1) / PART {
            if parts.back() != Some(&part) {
                parts.push_back(part);
            }
        }
        let over = parts.len().saturating_sub(MOST);
        parts.drain(..over);
    }

    /// The blocks of the part that was read last, which is forgotten.
    pub fn take(&self) -> Option<Range<u64>> {
        let part = self.parts.lock().pop_back()?;
        Some(part * PART..(part + 1) * PART)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_last_comes_first() {
        let hot = Hot::default();
        hot.note(0..1);
        assert_eq!(hot.take(), None);
        hot.track(true);
        hot.note(0..1);
        hot.note(10 * PART - 1..10 * PART + 1);
        hot.note(10 * PART + 7..10 * PART + 8);
        let taken: Vec<u64> = std::iter::from_fn(|| hot.take()).map(|blocks| blocks.start / PART).collect();
        assert_eq!(taken, [10, 9, 0]);
        (0..5000).for_each(|part| hot.note(part * PART..part * PART + 1));
        assert_eq!(hot.parts.lock().len(), MOST);
        assert_eq!(hot.take(), Some(4999 * PART..5000 * PART));
        hot.track(false);
        assert_eq!(hot.take(), None);
    }
}
