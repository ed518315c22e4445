//! Background work: its threads, what they wait for, and what users say of deepening.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Pool;
use crate::engine::store::record::{Change, Deepening};
use crate::engine::volume::{Hooks, State, Volume};
use crate::error::{Error, Kind, Result};
use crate::protocol::{DeepenAction, DeepenRequest};
use crate::sync::atomic::Ordering;

impl Pool {
    /// Counts bytes that background work has copied.
    pub fn note_copied(&self, bytes: u64) {
        self.copied.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Number of reads and writes by users so far.
    pub fn foreground(&self) -> u64 {
        self.env.foreground.begun()
    }

    /// Number of reads and writes under way.
    pub fn under_way(&self) -> u64 {
        self.env.foreground.under_way()
    }

    /// Whether all background work is paused.
    pub fn paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// Starts, pauses or resumes deepening, of one volume or of all. A rate that comes with it holds for the whole pool:
    /// who may set that is for the caller to know.
    pub fn deepen(&self, volume: Option<&Arc<Volume>>, request: &DeepenRequest) -> Result<()> {
        let set_rate = || request.rate.map(|rate| self.rate.store(rate, Ordering::Relaxed));
        let Some(volume) = volume else {
            set_rate();
            match request.action {
                DeepenAction::Pause => self.paused.store(true, Ordering::Release),
                DeepenAction::Resume | DeepenAction::Start => self.paused.store(false, Ordering::Release),
            }
            self.wake();
            return Ok(());
        };
        let id = match &*volume.gate().read() {
            State::Overlay(overlay) => overlay.id,
            State::Plain(_) => return Ok(()),
            State::Broken { why, .. } => {
                return Err(Error::new(Kind::Damaged, "deepen").at(volume.path()).because(why.clone()));
            }
        };
        if volume.is_snapshot() {
            return Err(Error::new(Kind::ReadOnly, "deepen").because("it is a snapshot").remedy("clone it"));
        }
        set_rate();
        self.failures.lock().remove(&id);
        let number = self.env.store.commit_with(|catalogue| {
            let Some(mut record) = catalogue.volume(id).cloned() else { return Vec::new() };
            match request.action {
                DeepenAction::Start if request.physical => record.deepening = Deepening::Physical,
                DeepenAction::Start => record.deepening = Deepening::Forced,
                _ => {}
            }
            record.paused = request.action == DeepenAction::Pause;
            vec![Change::Volume(record)]
        })?;
        self.env.store.sync(number)?;
        self.wake();
        Ok(())
    }

    /// Registers a background thread; [`Pool::shutdown`] waits for it.
    pub fn attach(&self, thread: JoinHandle<()>) {
        self.work.lock().threads.push(thread);
    }

    /// Whether background work must end.
    pub fn stopping(&self) -> bool {
        self.work.lock().stopping
    }

    /// Waits until something has changed since `seen`, the pool stops, or `limit` has passed. Returns whether
    /// something changed.
    pub fn wait_for_work(&self, seen: &mut u64, limit: Duration) -> bool {
        let mut work = self.work.lock();
        if work.stirred == *seen && !work.stopping {
            self.stirred.wait_for(&mut work, limit);
        }
        let changed = work.stirred != *seen;
        *seen = work.stirred;
        changed
    }

    /// Sleeps, unless the pool stops meanwhile.
    pub fn rest(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut work = self.work.lock();
        while !work.stopping && !self.stirred.wait_until(&mut work, until).timed_out() {}
    }
}
