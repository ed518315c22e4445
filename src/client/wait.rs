//! Waiting until volumes are independent.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::doors;
use crate::error::{Error, Kind, Result};
use crate::protocol::{Level, VolumeInfo, VolumeState};

/// Pause between two looks: at first the short one, then a sixteenth of the time that was waited, at most the long one.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_millis(500);
const PART: u32 = 16;
/// For how long an overlay may be at rest before waiting for it is an error: when no work on it is planned, because
/// two looks at others can lie between the end of their work and its own; and when it is planned, and nothing at all is
/// done in its pool.
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

/// Waits until every volume in `paths` is independent, for as long as anything is done in its pool. Fails when one of them
/// cannot get there by waiting: it failed, is paused, has gone, or nothing is deepening it; the error says why.
pub fn until_independent(paths: &[PathBuf], progress: &mut dyn FnMut(WaitProgress) -> Result<()>) -> Result<()> {
    let mut pending: Vec<Waiting> = paths.iter().map(|path| Waiting { path, last: 0, idle_since: None }).collect();
    let mut pools = Pools::default();
    let mut total = 0;
    let began = Instant::now();
    loop {
        let started = Instant::now();
        let mut left = 0;
        let mut still = Vec::with_capacity(pending.len());
        pools.looked.clear();
        for mut volume in pending {
            if !volume.look(&mut pools)? {
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

/// What is known of the pools that volumes are waited for in, by the device number of their mount.
#[derive(Default)]
struct Pools {
    /// What was done when that changed last, and since when it has not.
    work: HashMap<u64, (Done, Instant)>,
    /// Pools that were looked at in this round.
    looked: HashSet<u64>,
}

/// What has been done in a pool. It changes with every step of work, however small.
#[derive(PartialEq, Eq)]
struct Done {
    jobs: u64,
    copied: u64,
    told: BTreeMap<String, u64>,
}

impl Pools {
    /// For how long nothing at all has been done in the pool that has the file at `path`.
    fn still_for(&mut self, path: &Path) -> Result<Duration> {
        let Ok(device) = std::fs::metadata(path).map(|status| status.dev()) else { return Ok(Duration::ZERO) };
        if self.looked.insert(device) {
            let Some(status) = doors::status(directory(path))? else { return Ok(Duration::ZERO) };
            let done = Done { jobs: status.job_count, copied: status.copied_bytes, told: status.events };
            let works = status.jobs.iter().any(|job| job.step != "waiting");
            let known = self.work.get(&device).is_some_and(|(before, _)| *before == done);
            if works || !known {
                self.work.insert(device, (done, Instant::now()));
            }
        }
        Ok(self.work.get(&device).map_or(Duration::ZERO, |(_, since)| since.elapsed()))
    }
}

struct Waiting<'a> {
    path: &'a Path,
    last: u64,
    idle_since: Option<Instant>,
}

impl Waiting<'_> {
    /// Looks once; true when there is nothing more to wait for.
    fn look(&mut self, pools: &mut Pools) -> Result<bool> {
        let info = doors::info(self.path)?.ok_or_else(|| doors::not_here("wait for", self.path))?;
        self.last = info.to_copy;
        match info.state {
            VolumeState::Independent => return Ok(true),
            VolumeState::Failed => return Err(stopped(self.path, info)),
            VolumeState::Paused => return Err(paused(self.path)),
            VolumeState::Deepening => self.idle_since = None,
            VolumeState::Overlay => self.check_idle(&info, pools)?,
        }
        Ok(false)
    }

    /// An overlay at rest is either in the queue, or nobody will ever deepen it: that is worth an error, not a wait.
    fn check_idle(&mut self, info: &VolumeInfo, pools: &mut Pools) -> Result<()> {
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        let stands = match info.queued {
            false => since.elapsed() >= PATIENCE,
            // Others may come first, for as long as it takes.
            true => since.elapsed() >= PATIENCE && pools.still_for(self.path)? >= PATIENCE_QUEUED,
        };
        if !stands {
            return Ok(());
        }
        if let Some(space) =
            doors::status(directory(self.path))?.map(|status| status.space).filter(|s| s.level >= Level::StopDeepening)
        {
            return Err(Error::new(Kind::NoSpace, "wait for")
                .at(self.path)
                .because(format!("the filesystem is {}% full: {}", space.used_percent, space.level.says()))
                .remedy("delete what is not needed; deepening then goes on by itself"));
        }
        let why = info.why.as_ref().map(|why| format!("; {why}")).unwrap_or_default();
        Err(Error::new(Kind::Invalid, "wait for")
            .at(self.path)
            .because(format!("it is an overlay and nothing is deepening it{why}"))
            .remedy("clonefs deepen asks for a copy of what is missing"))
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn stopped(path: &Path, info: VolumeInfo) -> Error {
    let cause = info.error.unwrap_or_else(|| "it cannot be deepened".into());
    Error::new(Kind::Damaged, "deepen").at(path).because(cause).remedy("see clonefs status")
}

fn paused(path: &Path) -> Error {
    Error::new(Kind::Invalid, "wait for").at(path).because("its deepening is paused").remedy("clonefs resume goes on")
}
