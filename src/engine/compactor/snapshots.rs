//! Snapshots by schedule: those that the policies ask for are made, all of one name as of one moment, and those that are
//! no longer to be kept are removed. What people have made is never touched.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::events::{Event, What};
use crate::engine::io::Timestamp;
use crate::engine::policy::retention::{self, Due};
use crate::engine::policy::value::Period;
use crate::engine::pool::Pool;
use crate::error::{Context, Error, Result};

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(30);
/// The thread.
pub fn run(pool: &Arc<Pool>) {
    let begun = Instant::now();
    let mut schedules = Schedules::default();
    let mut looked: Option<(Instant, u64)> = None;
    let mut seen = 0;
    while !pool.stopping() {
        // A change of the policies stirs the background work.
        let version = pool.policies().version();
        let age = looked.filter(|(_, seen)| *seen == version).map(|(at, _)| at.elapsed());
        if age.is_none_or(|age| age >= EVERY) {
            schedules.turn(pool, Timestamp::now().seconds, begun.elapsed());
            looked = Some((Instant::now(), version));
        }
        pool.wait_for_work(&mut seen, EVERY.saturating_sub(age.unwrap_or_default()));
    }
}

/// What is known of the volumes that have a schedule.
#[derive(Default)]
pub struct Schedules {
    /// When one was made, by a clock that nobody sets.
    made: HashMap<(PathBuf, Period), Duration>,
    /// What could not be made, and in which period that was told.
    failed: HashMap<(PathBuf, Period), i64>,
}

impl Schedules {
    /// One look at all volumes that have a schedule. `now` is what the clock says, in seconds since the epoch; `time` what
    /// a clock says that nobody sets.
    pub fn turn(&mut self, pool: &Arc<Pool>, now: i64, time: Duration) {
        let files = match scheduled_files(pool) {
            Ok(files) => files,
            Err(error) => return tracing::warn!("cannot look for volumes with a schedule of snapshots: {error}"),
        };
        self.made.retain(|(path, _), _| files.contains(path));
        self.failed.retain(|(path, _), _| files.contains(path));
        let mut wanted: BTreeMap<Period, Vec<PathBuf>> = BTreeMap::new();
        for path in &files {
            for period in self.due(pool, path, now, time).make {
                wanted.entry(period).or_default().push(path.clone());
            }
        }
        for (period, paths) in wanted {
            self.make(pool, period, paths, now, time);
        }
        for path in &files {
            let Due { make, remove } = self.due(pool, path, now, time);
            // What could not be made takes the place of nothing.
            if make.is_empty() && !remove.is_empty() && !pool.stopping() {
                let pruned = pool.prune_snapshots(&path.to_string_lossy(), |snapshot| remove.contains(&snapshot.name));
                if let Err(error) = pruned {
                    tracing::warn!("cannot remove old snapshots of {path:?}: {error}");
                }
            }
        }
    }

    fn due(&self, pool: &Pool, path: &Path, now: i64, time: Duration) -> Due {
        let policy = pool.policies().at(path);
        let (Some(of), Some(schedule)) = (path.to_str(), policy.snapshots) else { return Due::default() };
        let catalogue = pool.store().catalogue();
        let all = catalogue.snapshots_of(of).filter_map(|record| record.snapshot.as_ref());
        let scheduled =
            all.filter(|snapshot| snapshot.scheduled).map(|snapshot| (snapshot.name.as_str(), snapshot.made));
        let ago = |period| Some(time.saturating_sub(*self.made.get(&(path.to_path_buf(), period))?));
        retention::due(&schedule, scheduled, now, ago)
    }

    /// All as of one moment, but those that could not be made the last time: each of them by itself.
    fn make(&mut self, pool: &Arc<Pool>, period: Period, paths: Vec<PathBuf>, now: i64, time: Duration) {
        let name = retention::name(period, now);
        let known = |path: &PathBuf| self.failed.contains_key(&(path.clone(), period));
        let (mut alone, together): (Vec<PathBuf>, Vec<PathBuf>) = paths.into_iter().partition(known);
        if together.len() > 1 {
            match snapshot(pool, &together, &name, now) {
                Ok(()) => self.note(period, &together, time),
                Err(_) => alone.extend(together),
            }
        } else {
            alone.extend(together);
        }
        for path in alone.into_iter().take_while(|_| !pool.stopping()) {
            let one = std::slice::from_ref(&path);
            match snapshot(pool, one, &name, now) {
                Ok(()) => self.note(period, one, time),
                // Deleted or replaced a moment ago: the next look is soon.
                Err(error) if error.os_error() == Some(libc::ENOENT) => {}
                Err(error) => self.fail(pool, period, path, &error, now),
            }
        }
    }

    fn note(&mut self, period: Period, paths: &[PathBuf], time: Duration) {
        for path in paths {
            self.failed.remove(&(path.clone(), period));
            self.made.insert((path.clone(), period), time);
        }
    }

    /// It is tried again with every look, and told once in a period.
    fn fail(&mut self, pool: &Pool, period: Period, path: PathBuf, error: &Error, now: i64) {
        let number = period.number(now);
        if self.failed.insert((path.clone(), period), number) != Some(number) {
            tracing::warn!("cannot make a scheduled snapshot of {path:?}: {error}");
            let why = format!("snapshot by schedule, {}: {error}", period.word());
            pool.events().tell(Event::new(What::Failed, path).because(why));
        }
    }
}

/// Makes snapshots of what is at these paths: all as of one moment, or none.
fn snapshot(pool: &Arc<Pool>, paths: &[PathBuf], name: &str, now: i64) -> Result<()> {
    let found = |path: &PathBuf| {
        let stat = pool.fs().stat(path).context("look at", path)?;
        Ok((pool.volume(stat.key, path)?, path.clone()))
    };
    let volumes = paths.iter().map(found).collect::<Result<Vec<_>>>()?;
    pool.create_snapshots(&volumes, name, Some(now))
}

/// Regular files below the paths that have a schedule.
fn scheduled_files(pool: &Pool) -> Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    let policies = pool.policies().list().policies;
    for path in policies.iter().filter(|(_, policy)| policy.snapshots.is_some()).map(|(path, _)| path) {
        let root = if path == crate::engine::policy::POOL { PathBuf::new() } else { PathBuf::from(path) };
        files.extend(pool.files_below(&root)?);
    }
    Ok(files)
}
