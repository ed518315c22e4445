//! What a status needs a look at all volumes for: what waits to be worked on, and what can no longer be written.
//!
//! Anybody may ask for a status, and as often as they like. So where there are many volumes one look serves all who ask
//! for a while, which is longer the longer the look takes: however many ask, it takes a small part of one processor.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::report::LIST_LIMIT;
use super::{Pool, Prospect};
use crate::engine::store::record::VolumeRecord;
use crate::engine::volume::State;
use crate::protocol::{JobStatus, Trouble};
use crate::sync::Mutex;
use crate::units::{BLOCK, Id, blocks};

pub(super) const CHECK_DISK: &str = "check the disk, then unmount and mount again";

/// With no more volumes than this every status takes a look of its own.
const FEW: usize = 256;
/// A look serves for so many times as long as it took.
const SHARE: u32 = 20;
/// And for so long at least.
const SERVES: Duration = Duration::from_secs(1);

/// What one look at all volumes has found.
#[derive(Clone, Default)]
pub(super) struct Overview {
    /// Volumes that will be worked on and are not yet. Never none while there can be one.
    pub waiting: u64,
    /// The first of them.
    pub first: Arc<Vec<JobStatus>>,
    /// Volumes whose file could not be written or synced.
    pub latched: Arc<Vec<Trouble>>,
    /// How much had been committed to the catalogue before.
    committed: u64,
}

/// The last look.
#[derive(Default)]
pub(super) struct Seen(Mutex<Last>);

#[derive(Default)]
struct Last {
    found: Option<(Overview, Instant, Duration)>,
    /// One is under way.
    looking: bool,
}

impl Last {
    /// What others have found and that may still be shown; else it is for the caller to look.
    fn take(&mut self, now: Instant) -> Option<Overview> {
        let found = self.found.as_ref();
        let serves = |at: Instant, took: Duration| now.duration_since(at) < SERVES.max(took * SHARE);
        let known = found.filter(|(_, at, took)| self.looking || serves(*at, *took));
        let known = known.map(|(overview, ..)| overview.clone());
        self.looking |= known.is_none();
        known
    }
}

impl Pool {
    pub(super) fn overview(&self) -> Overview {
        let few = {
            let catalogue = self.env.store.catalogue();
            catalogue.volume_count() <= FEW
        };
        if few {
            return self.look_at_all();
        }
        let begun = Instant::now();
        let known = self.seen.0.lock().take(begun);
        let Some(mut known) = known else {
            let found = self.look_at_all();
            let now = Instant::now();
            *self.seen.0.lock() = Last { found: Some((found.clone(), now, now - begun)), looking: false };
            return found;
        };
        // Whoever waits for the last of them must not take what was so a moment ago for what is.
        if known.waiting == 0 && known.committed != self.env.store.committed() {
            let some = self.deepens_some();
            known.waiting = u64::from(self.env.store.catalogue().to_deepen(some).next().is_some());
        }
        known
    }

    fn look_at_all(&self) -> Overview {
        let committed = self.env.store.committed();
        let waiting = self.waiting();
        let first = waiting.iter().take(LIST_LIMIT).map(waiting_job).collect();
        Overview { waiting: waiting.len() as u64, first: Arc::new(first), latched: Arc::new(self.latched()), committed }
    }

    /// Volumes that will be worked on, but are not yet.
    fn waiting(&self) -> Vec<VolumeRecord> {
        let begun: HashSet<Id> = self.jobs.lock().keys().copied().collect();
        let some = self.deepens_some();
        let records: Vec<VolumeRecord> = {
            let catalogue = self.env.store.catalogue();
            catalogue.to_deepen(some).filter(|record| !begun.contains(&record.id)).cloned().collect()
        };
        records.into_iter().filter(|record| self.prospect(record) != Prospect::Rests).collect()
    }

    /// Open volumes whose file could not be written or synced.
    fn latched(&self) -> Vec<Trouble> {
        let open: Vec<_> = {
            let tables = self.tables.lock();
            tables.volumes.values().filter_map(std::sync::Weak::upgrade).collect()
        };
        let trouble = |volume: &Arc<crate::engine::volume::Volume>| {
            let error = match &*volume.gate().read() {
                State::Plain(plain) => plain.check_latch().err(),
                State::Overlay(overlay) => overlay.check_latch().err(),
                State::Broken { .. } => None,
            }?;
            let path = volume.path().to_string_lossy().into_owned();
            Some(Trouble { path, problem: error.to_string(), remedy: CHECK_DISK.into() })
        };
        open.iter().filter_map(trouble).take(LIST_LIMIT).collect()
    }
}

/// A job that has not begun. What it has to copy is not known before its map is read: it can be less.
fn waiting_job(record: &VolumeRecord) -> JobStatus {
    let to_copy = record.overlap.min(blocks(record.size)) * BLOCK;
    JobStatus { path: record.path.clone(), step: "waiting".into(), progress: 0.0, to_copy, rate: 0, eta: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_look_serves_all_who_ask_for_a_while() {
        let mut last = Last::default();
        let now = Instant::now();
        assert!(last.take(now).is_none() && last.looking);
        assert!(last.take(now).is_none(), "there is nothing else to show yet");
        let found = |at, took| Some((Overview { waiting: 7, ..Overview::default() }, at, took));
        last = Last { found: found(now, Duration::from_millis(100)), looking: false };
        for after in [0, 1000, 1999] {
            let known = last.take(now + Duration::from_millis(after));
            assert_eq!(known.map(|overview| overview.waiting), Some(7), "{after}");
        }
        assert!(last.take(now + Duration::from_secs(2)).is_none() && last.looking);
        // While that one looks, the others have the old answer.
        assert!(last.take(now + Duration::from_secs(3)).is_some());
        last = Last { found: found(now, Duration::ZERO), looking: false };
        assert!(last.take(now + SERVES / 2).is_some() && last.take(now + SERVES).is_none());
    }
}
