//! What users are told: the state of a volume, of the pool, and of background work.

use std::sync::Arc;
use std::time::Instant;

use super::overview::{CHECK_DISK, Overview};
use super::{Pool, Prospect};
use crate::engine::events::{Event, What};
use crate::engine::layer::Layer;
use crate::engine::store::record::VolumeRecord;
use crate::engine::volume::overlay::Overlay;
use crate::engine::volume::{State, Volume};
use crate::error::Result;
use crate::protocol::{JobStatus, PoolStatus, Trouble, VolumeInfo, VolumeState};
use crate::units::{BLOCK, Id};

/// Most entries of a list in a status.
pub(super) const LIST_LIMIT: usize = 256;

/// Background work on one volume.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub path: String,
    pub step: &'static str,
    pub total: u64,
    pub done: u64,
    /// Bytes done and when, at the start of the window that the rate is measured over.
    pub window: (u64, Instant),
    pub rate: u64,
}

impl Pool {
    /// All about one volume.
    pub fn info(&self, volume: &Arc<Volume>) -> Result<VolumeInfo> {
        let gate = volume.gate().read();
        let mut info = VolumeInfo {
            id: None,
            size: 0,
            state: VolumeState::Independent,
            progress: 100.0,
            origin: None,
            parent: None,
            shared_layer: None,
            depth: 0,
            unique_bytes: 0,
            shared_bytes: 0,
            freed_if_deleted: 0,
            to_copy: 0,
            queued: false,
            why: None,
            error: None,
            cannot_clone: None,
        };
        match &*gate {
            State::Plain(plain) => {
                let stat = plain.file.stat().map_err(|e| crate::error::Error::io("look at file", e))?;
                info.size = stat.size;
                let shared = plain.shared.as_ref();
                let heirs = shared.map_or(0, |l| self.env.store.catalogue().heir_count(l.id));
                if let (Some(layer), true) = (shared, heirs > 0) {
                    info.shared_layer = Some(layer.id.to_string());
                    info.shared_bytes = stat.blocks * 512;
                } else {
                    info.unique_bytes = stat.blocks * 512;
                    info.freed_if_deleted = if stat.nlink <= 1 { stat.blocks * 512 } else { 0 };
                }
                info.error = plain.check_latch().err().map(|e| e.to_string());
                let bypass = volume.why_bypassed().filter(|_| plain.shared.is_none());
                info.cannot_clone = bypass.map(|(why, remedy)| format!("{why} ({remedy})"));
            }
            State::Overlay(overlay) => self.overlay_info(overlay, &mut info),
            State::Broken { why, .. } => {
                info.state = VolumeState::Failed;
                info.progress = 0.0;
                info.error = Some(why.clone());
            }
        }
        Ok(info)
    }

    fn overlay_info(&self, overlay: &Overlay, info: &mut VolumeInfo) {
        let record = self.env.store.catalogue().volume(overlay.id).cloned();
        let top = &overlay.top;
        let visible = overlay.visible_end();
        let present = top.present_below(visible);
        info.id = Some(overlay.id.to_string());
        info.size = top.size();
        info.to_copy = (visible - present.min(visible)) * BLOCK;
        info.progress = if visible == 0 { 100.0 } else { present as f64 * 100.0 / visible as f64 };
        info.unique_bytes = top.disk_bytes();
        info.freed_if_deleted = info.unique_bytes;
        info.parent = top.parent().map(|p| p.id.to_string());
        let mut below = top.parent();
        let mut only_ours = true;
        while let Some(layer) = below {
            info.depth += 1;
            let bytes = layer.disk_bytes();
            info.shared_bytes += bytes;
            only_ours &= self.only_heir(&layer);
            if only_ours {
                info.freed_if_deleted += bytes;
            }
            below = layer.parent();
        }
        let working = self.jobs.lock().get(&overlay.id).is_some_and(|j| j.step != "waiting");
        let failure = self.failures.lock().get(&overlay.id).cloned();
        info.error = failure.or_else(|| overlay.check_latch().err().map(|e| e.to_string()));
        let outlook = record.as_ref().map(|record| self.outlook(record));
        info.queued = outlook.is_some_and(|(prospect, _)| prospect != Prospect::Rests);
        let paused = record.as_ref().is_some_and(|r| r.paused) || (self.paused() && (working || info.queued));
        info.state = if info.error.is_some() {
            VolumeState::Failed
        } else if paused {
            VolumeState::Paused
        } else if working {
            VolumeState::Deepening
        } else {
            VolumeState::Overlay
        };
        if let (VolumeState::Overlay, Some(record), Some((_, reason))) = (info.state, &record, outlook) {
            info.why = Some(self.explain(record, reason));
        }
        info.origin = record.and_then(|r| r.origin);
    }

    /// Whether a layer goes when its one heir goes: nobody else reads it, and no plain file is it.
    fn only_heir(&self, layer: &Layer) -> bool {
        let path = crate::engine::store::data_path(layer.file_id());
        self.env.store.catalogue().heir_count(layer.id) == 1 && self.env.fs.stat(&path).is_ok_and(|s| s.nlink == 1)
    }

    /// Says what reads the backing files, for the status.
    pub fn set_engine(&self, engine: &'static str) {
        let _ = self.engine.set(engine);
    }

    /// State of the pool. The mount point is for the caller to fill in.
    pub fn status(self: &Arc<Self>) -> PoolStatus {
        let space = self.env.fs.info().ok();
        let unit = space.as_ref().map_or(0, |i| i.block_size);
        let (overlays, layers) = {
            let catalogue = self.env.store.catalogue();
            ((catalogue.volume_count() - catalogue.snapshot_count()) as u64, catalogue.layer_count() as u64)
        };
        let jobs: Vec<(Id, JobStatus)> = self.jobs.lock().iter().map(|(id, job)| (*id, job.status())).collect();
        let now = |(id, job): (Id, JobStatus)| {
            // It may have been renamed since the work on it began.
            let path = self.env.store.catalogue().volume(id).map(|record| record.path.clone());
            JobStatus { path: path.unwrap_or(job.path), ..job }
        };
        let mut jobs: Vec<JobStatus> = jobs.into_iter().map(now).collect();
        let seen = self.overview();
        let job_count = jobs.len() as u64 + seen.waiting;
        jobs.extend(seen.first.iter().cloned());
        jobs.truncate(LIST_LIMIT);
        PoolStatus {
            pool: String::new(),
            mountpoint: String::new(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            pool_id: self.env.store.pool_id().map(|id| id.to_string()),
            backing: space.as_ref().map_or("unknown", |i| i.type_name()).into(),
            free_bytes: space.as_ref().map_or(0, |i| i.available * unit),
            total_bytes: space.as_ref().map_or(0, |i| i.blocks * unit),
            reflink: self.reflink.get().copied().unwrap_or(false),
            can_clone: self.check_can_clone().is_ok(),
            cannot_clone: self.cannot_clone.get().cloned(),
            engine: self.engine.get().copied().unwrap_or("threads").into(),
            passthrough: "off".into(),
            open_past: 0,
            deepen: if self.options.deepen_auto { "auto" } else { "manual" }.into(),
            paused: self.paused(),
            rate_limit: self.rate(),
            events: What::ALL.iter().map(|what| (what.word().to_owned(), self.events.count(*what))).collect(),
            requests: self.foreground(),
            copied_bytes: self.copied.load(std::sync::atomic::Ordering::Relaxed),
            space: self.space_status(space.as_ref()),
            overlays,
            layers,
            job_count,
            jobs,
            troubles: self.troubles(&seen),
            troubles_hidden: 0,
            scrub: self.scrub_status(),
        }
    }

    fn troubles(self: &Arc<Self>, seen: &Overview) -> Vec<Trouble> {
        let (mut troubles, of_volumes) = {
            let findings = self.findings.lock();
            (findings.troubles.clone(), findings.of_volumes.clone())
        };
        let still = |(id, trouble): (Id, Trouble)| {
            self.env.store.catalogue().volume(id).map(|record| Trouble { path: record.shown(), ..trouble })
        };
        troubles.extend(of_volumes.into_iter().filter_map(still));
        if self.env.store.check_latch().is_err() {
            let problem = "it could not be written or synced: nothing is cloned, deepened or deleted for good";
            let path = crate::engine::store::JOURNAL.into();
            troubles.push(Trouble { path, problem: problem.into(), remedy: CHECK_DISK.into() });
        }
        let failures: Vec<(Id, String)> = self.failures.lock().iter().map(|(id, why)| (*id, why.clone())).collect();
        for (id, why) in failures {
            let path = self.env.store.catalogue().volume(id).map(VolumeRecord::shown);
            troubles.push(Trouble {
                path: path.unwrap_or_else(|| id.to_string()),
                problem: why,
                remedy: "mend the cause, then `clonefs deepen` it again".into(),
            });
        }
        troubles.extend(seen.latched.iter().cloned());
        if let Some(problem) = self.policies.trouble() {
            let remedy = "the last good policies are in force: mend the file, or set them with `clonefs policy`";
            troubles.push(Trouble { path: crate::engine::policy::PATH.into(), problem, remedy: remedy.into() });
        }
        troubles.extend(self.elsewhere_troubles());
        troubles.extend(self.scrub_damage());
        troubles.truncate(LIST_LIMIT);
        troubles
    }

    /// Notes what background work does on a volume.
    pub fn set_job(&self, id: Id, path: &str, step: &'static str, total: u64, done: u64) {
        let mut jobs = self.jobs.lock();
        let job = jobs.entry(id).or_insert_with(|| Job {
            path: path.to_owned(),
            step,
            total,
            done,
            window: (done, Instant::now()),
            rate: 0,
        });
        (job.step, job.total, job.done) = (step, total, done);
        let elapsed = job.window.1.elapsed();
        if elapsed.as_millis() >= 1000 {
            job.rate = (done.saturating_sub(job.window.0) as f64 / elapsed.as_secs_f64()) as u64;
            job.window = (done, Instant::now());
        }
    }

    /// Notes that there is nothing to do on a volume any more.
    pub fn end_job(&self, id: Id) {
        self.jobs.lock().remove(&id);
    }

    /// Notes that work on a volume failed; it is not tried again until asked for.
    pub fn set_failure(&self, id: Id, why: Option<String>) {
        match why {
            Some(why) => {
                let path = self.env.store.catalogue().volume(id).map(|r| r.path.clone()).unwrap_or_default();
                self.events.tell(Event::new(What::Failed, path).because(why.clone()));
                self.failures.lock().insert(id, why)
            }
            None => self.failures.lock().remove(&id),
        };
    }

    /// Whether work on a volume failed.
    pub fn has_failed(&self, id: Id) -> bool {
        self.failures.lock().contains_key(&id)
    }
}

impl Job {
    fn status(&self) -> JobStatus {
        let left = self.total.saturating_sub(self.done);
        JobStatus {
            path: self.path.clone(),
            step: self.step.into(),
            progress: if self.total == 0 { 100.0 } else { self.done as f64 * 100.0 / self.total as f64 },
            to_copy: left,
            rate: self.rate,
            eta: (self.rate > 0).then(|| left.div_ceil(self.rate)),
        }
    }
}
