//! Waiting until volumes are independent.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::doors;
use crate::door::{Level, VolumeInfo, VolumeState};
use crate::error::{Error, Kind, Result};

/// Pause between two looks: at first the short one, then a sixteenth of the time that was waited, at most the long one.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_millis(500);
const PART: u32 = 16;
/// For how long an overlay may be at rest before waiting for it is an error: when no work on it is planned, because
/// two looks at others can lie between the end of their work and its own; and when it is planned and nothing is done.
const PATIENCE: Duration = Duration::from_millis(300);
const PATIENCE_QUEUED: Duration = Duration::from_secs(15);

/// How far the volumes have come that are waited for.
#[derive(Clone, Copy, Debug, Default)]
pub struct WaitProgress {
    /// Bytes still to be copied at the first look.
    pub total: u64,
    /// Of those, bytes that are done.
    pub done: u64,
    /// Volumes that are not independent yet.
    pub pending: usize,
}

/// Waits until every volume in `paths` is independent. Fails when one of them cannot get there by waiting: it failed,
/// is paused, has gone, or nothing is deepening it.
pub fn until_independent(paths: &[PathBuf], progress: &mut dyn FnMut(WaitProgress) -> Result<()>) -> Result<()> {
    let mut pending: Vec<Waiting> = paths.iter().map(|path| Waiting { path, last: 0, idle_since: None }).collect();
    let mut total = 0;
    let began = Instant::now();
    loop {
        let started = Instant::now();
        let mut left = 0;
        let mut still = Vec::with_capacity(pending.len());
        for mut volume in pending {
            if !volume.look()? {
                left += volume.last;
                still.push(volume);
            }
        }
        pending = still;
        // More than at the first look: writes to a source froze it meanwhile, or the count grew exact.
        total = total.max(left);
        progress(WaitProgress { total, done: total - left, pending: pending.len() })?;
        if pending.is_empty() {
            break;
        }
        // Never busy for more than half of the time, however many there are.
        sleep((began.elapsed() / PART).clamp(FIRST_PAUSE, LAST_PAUSE).max(started.elapsed()));
    }
    Ok(())
}

struct Waiting<'a> {
    path: &'a Path,
    last: u64,
    idle_since: Option<Instant>,
}

impl Waiting<'_> {
    /// Looks once; true when there is nothing more to wait for.
    fn look(&mut self) -> Result<bool> {
        let info = doors::info(self.path)?.ok_or_else(|| doors::not_here("wait for", self.path))?;
        self.last = info.to_copy;
        match info.state {
            VolumeState::Independent => return Ok(true),
            VolumeState::Failed => return Err(stopped(self.path, info)),
            VolumeState::Paused => return Err(paused(self.path)),
            VolumeState::Deepening => self.idle_since = None,
            VolumeState::Overlay => self.check_idle(info.queued)?,
        }
        Ok(false)
    }

    /// An overlay at rest is either in the queue, or nobody will ever deepen it: that is worth an error, not a wait.
    fn check_idle(&mut self, queued: bool) -> Result<()> {
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        if since.elapsed() < if queued { PATIENCE_QUEUED } else { PATIENCE } {
            return Ok(());
        }
        if queued {
            let dir = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let Some(status) = doors::status(dir)? else { return Ok(()) };
            if status.jobs.iter().any(|job| job.step != "waiting") {
                // At work on others.
                self.idle_since = None;
                return Ok(());
            }
        }
        let dir = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if let Some(space) = doors::status(dir)?.map(|status| status.space).filter(|s| s.level >= Level::StopDeepening)
        {
            return Err(Error::new(Kind::NoSpace, "wait for")
                .at(self.path)
                .because(format!("the filesystem is {}% full: {}", space.used_percent, space.level.says()))
                .remedy("delete what is not needed; deepening then goes on by itself"));
        }
        Err(Error::new(Kind::Invalid, "wait for")
            .at(self.path)
            .because("it is an overlay and nothing is deepening it")
            .remedy("start that with clonefs deepen"))
    }
}

fn stopped(path: &Path, info: VolumeInfo) -> Error {
    let cause = info.error.unwrap_or_else(|| "it cannot be deepened".into());
    Error::new(Kind::Damaged, "deepen").at(path).because(cause).remedy("see clonefs status")
}

fn paused(path: &Path) -> Error {
    Error::new(Kind::Invalid, "wait for").at(path).because("its deepening is paused").remedy("clonefs resume goes on")
}
