//! The compactor: which volume is next, and one slice of work on it.

use std::sync::Arc;
use std::time::Duration;

use super::IDLE;
use super::pace::{Pace, background_io};
use crate::engine::policy::value::{Order, When};
use crate::engine::pool::{Finished, Pool, Prospect};
use crate::engine::store::record::{Deepening, VolumeRecord};
use crate::engine::volume::fill::{Filled, Filling};
use crate::engine::volume::{State, Volume};
use crate::error::{Error, Kind, Result};
use crate::units::{BLOCK, Id};

/// Bytes copied for one volume before the next has its turn; also how much a crash can cost.
const SLICE: u64 = 256 << 20;
/// Bytes that are read in one turn of taking checksums, at most.
const SUMMED: u64 = 64 << 20;

/// How long the first of several changes waits for the others.
const GATHER: Duration = Duration::from_millis(20);

/// How soon work that waits for a quiet moment is looked at again.
const SOON: Duration = Duration::from_millis(500);

/// How a slice ended.
#[derive(PartialEq, Eq)]
enum Outcome {
    /// There is more to copy.
    More,
    /// Nothing can be done now: it waits for others, or is done.
    Rest,
}

/// The thread.
pub fn run(pool: &Arc<Pool>) {
    background_io();
    let mut seen = 0;
    let mut more = true;
    while !pool.stopping() {
        let deferred = pool.take_deferred();
        let stirred = more || pool.wait_for_work(&mut seen, if deferred { SOON } else { IDLE });
        if stirred && !more {
            // Many clones made one after another are looked at together.
            pool.rest(GATHER);
        }
        let may = !pool.paused() && !pool.stopping();
        let mut pace = Pace::new(pool);
        more = may && (round(pool) | pool.scrub_turn());
        pace.rest(pool, 0);
        // Checksums are taken in the time that nobody else wants.
        while may && !stirred && !more && !deferred && !pool.stopping() && pool.sum_turn() {
            pace.rest(pool, 0);
            // Under a limit reading counts like copying; whatever else there is to do ends the pause, and the sums.
            more = pool.wait_for_work(&mut seen, pause_after(SUMMED, pool.rate()));
        }
    }
}

/// How long so many bytes may take, under a limit of so many a second; 0 for none.
fn pause_after(bytes: u64, rate: u64) -> Duration {
    bytes.checked_div(rate).map_or(Duration::ZERO, Duration::from_secs)
}

/// One slice for each volume that wants it. Whether there is more to do.
fn round(pool: &Arc<Pool>) -> bool {
    let mut more = merge_layers(pool);
    // Sources wait until their clones no longer need what they would adopt.
    for source in [false, true] {
        for id in wanting(pool, source) {
            let record = pool.store().catalogue().volume(id).cloned();
            if let Some(record) = record.filter(|_| !pool.has_failed(id)) {
                more |= slice(pool, &record) == Outcome::More;
            }
            if pool.stopping() || pool.paused() {
                return false;
            }
        }
    }
    more
}

/// Volumes that may be worked on, of those that continue a cloned file or of the others.
fn wanting(pool: &Pool, source: bool) -> Vec<Id> {
    let records: Vec<VolumeRecord> = {
        let catalogue = pool.store().catalogue();
        catalogue.to_deepen(pool.deepens_some()).filter(|r| r.source == source).cloned().collect()
    };
    records.iter().filter(|r| pool.when_to_deepen(r) != When::Manual).map(|r| r.id).collect()
}

/// One slice of work on one volume; a failure is kept with the volume and ends work on it.
fn slice(pool: &Arc<Pool>, record: &VolumeRecord) -> Outcome {
    match work_on(pool, record) {
        Ok(outcome) => {
            if outcome == Outcome::Rest {
                pool.end_job(record.id);
            }
            outcome
        }
        Err(error) if error.kind() == Kind::Interrupted => Outcome::Rest,
        Err(error) => {
            pool.end_job(record.id);
            tracing::warn!("deepening {:?} failed: {error}", record.path);
            pool.set_failure(record.id, Some(error.to_string()));
            Outcome::Rest
        }
    }
}

fn work_on(pool: &Arc<Pool>, record: &VolumeRecord) -> Result<Outcome> {
    let hot = pool.order_of(record) == Order::Hot;
    if hot && let Some(volume) = pool.volume_by_id(record.id)? {
        volume.track_hot();
    }
    if pool.has_to_wait(pool.when_to_deepen(record)) {
        pool.defer();
        return Ok(Outcome::Rest);
    }
    let Some(volume) = pool.volume_by_id(record.id)? else { return Ok(Outcome::Rest) };
    let stop = || pool.stopping() || pool.paused();
    let only_heir = {
        let gate = volume.gate().read();
        match &*gate {
            State::Overlay(overlay) => overlay.top.parent().is_some_and(|parent| pool.can_adopt(record.id, &parent)),
            State::Plain(_) => return Ok(Outcome::Rest),
            State::Broken { why, .. } => {
                return Err(Error::new(Kind::Damaged, "deepen").at(&record.path).because(why.clone()));
            }
        }
    };
    if only_heir {
        pool.set_job(record.id, &record.path, "adopting", 0, 0);
        let adopted = pool.adopt_parent(&volume, &stop)?;
        return Ok(if adopted { Outcome::More } else { Outcome::Rest });
    }
    if pool.prospect(record) != Prospect::Works {
        return Ok(Outcome::Rest);
    }
    fill_slice(pool, &volume, record, &stop)
}

fn fill_slice(
    pool: &Arc<Pool>,
    volume: &Arc<Volume>,
    record: &VolumeRecord,
    stop: &dyn Fn() -> bool,
) -> Result<Outcome> {
    let mut pace = Pace::new(pool);
    let mut how = Filling {
        most: pace.step(pool),
        share: pool.can_share() && record.deepening != Deepening::Physical && !pool.options().physical,
        trust_holes: pool.trusts_holes(),
        allocate: pool.fills_holes_in_turn(),
    };
    let by_heat = pool.order_of(record) == Order::Hot;
    let (mut from, mut copied) = (0, 0);
    loop {
        let filled = {
            let gate = volume.gate().read();
            let State::Overlay(overlay) = &*gate else { return Ok(Outcome::Rest) };
            overlay.check_latch()?;
            overlay.hot.track(by_heat);
            let hot = overlay.fill_hot(&how)?.map(|hot| Filled { next: Some(from), ..hot });
            let filled = hot.map_or_else(|| overlay.fill_absent(from, &how), Ok)?;
            let end = overlay.visible_end();
            let done = overlay.top.present_below(end);
            pool.set_job(record.id, &record.path, "deepening", end * BLOCK, done * BLOCK);
            filled
        };
        let Some(next) = filled.next else { break };
        from = next;
        copied += filled.copied;
        pool.note_copied(filled.copied);
        pace.rest(pool, filled.copied);
        how.most = pace.step(pool);
        if copied >= SLICE || stop() || pool.is_too_full_to_deepen() || pool.has_to_wait(pool.when_to_deepen(record)) {
            // A durable point: what was copied so far is not copied again after a crash.
            volume.sync(true)?;
            return Ok(Outcome::More);
        }
    }
    finish(pool, volume, record)
}

fn finish(pool: &Arc<Pool>, volume: &Arc<Volume>, record: &VolumeRecord) -> Result<Outcome> {
    pool.set_job(record.id, &record.path, "finishing", 1, 1);
    match pool.finish(volume)? {
        Finished::NotYet => Ok(Outcome::More),
        Finished::Plain | Finished::Linked | Finished::Deleted => Ok(Outcome::Rest),
        Finished::Lost => Err(Error::new(Kind::NotFound, "finish volume")
            .at(&record.path)
            .because("its name was not found in the pool")
            .remedy("`clonefs check` names its files")),
    }
}

/// Frozen layers with one heir that is a frozen layer too: the two become one. Whether there was one.
fn merge_layers(pool: &Arc<Pool>) -> bool {
    let pairs: Vec<Id> = {
        let catalogue = pool.store().catalogue();
        catalogue.single_heirs().map(|l| l.id).collect()
    };
    let mut merged = false;
    for id in pairs {
        let stop = || pool.stopping() || pool.paused();
        if stop() {
            return false;
        }
        match pool.frozen_layer(id).and_then(|layer| layer.map_or(Ok(false), |l| pool.adopt_frozen(&l, &stop))) {
            Ok(done) => merged |= done,
            Err(error) => tracing::warn!("cannot merge layer {id} into its parent: {error}"),
        }
    }
    merged
}
