//! Runs every scenario with every call failing, and counts.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::after;
use crate::common::rng::Rng;
use crate::common::served::{Outcome, serve, text};
use crate::common::simfs::{Options, SimFs};
use crate::common::world::World;
use crate::modes::Mode;
use crate::scenarios::{ALL, Scenario, Work};

/// What was done and found.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Operations, each with each kind of failure.
    pub operations: u64,
    /// Calls that failed, each in a run of its own.
    pub failed: u64,
    pub violations: Vec<String>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wrong = self.violations.len();
        write!(f, "{} calls failed in {} operations, {wrong} wrong outcomes", self.failed, self.operations)
    }
}

/// How many wrong outcomes are printed.
pub fn shown() -> usize {
    std::env::var("CLONEFS_FAULTS_SHOW").ok().and_then(|n| n.parse().ok()).unwrap_or(3)
}

/// Which crashes are tried after a failure depends on this.
fn seed() -> u64 {
    std::env::var("CLONEFS_FAULTS_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// Only scenarios whose name contains this are run.
pub fn wanted(name: &str) -> bool {
    std::env::var("CLONEFS_FAULTS_ONLY").map_or(true, |only| name.contains(&only))
}

/// Every scenario with every kind of failure at every call.
pub fn all(modes: &[Mode]) -> Tally {
    let work: Vec<(Scenario, Mode)> =
        ALL.iter().filter(|s| wanted(s.0)).flat_map(|s| modes.iter().map(move |m| (*s, *m))).collect();
    in_parallel(&work, |(scenario, mode), tally| each_call(scenario, *mode, tally))
}

/// Does all pieces of work, on all processors.
pub fn in_parallel<W: Sync>(work: &[W], each: impl Fn(&W, &mut Tally) + Sync) -> Tally {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get());
    let run = || {
        let mut tally = Tally::default();
        while let Some(piece) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
            each(piece, &mut tally);
        }
        tally
    };
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        handles.into_iter().map(|h| h.join().expect("panics are caught below")).collect()
    });
    let mut sum = Tally::default();
    for tally in tallies {
        sum.operations += tally.operations;
        sum.failed += tally.failed;
        sum.violations.extend(tally.violations);
    }
    sum
}

/// One operation, until it makes fewer calls than the one that is to fail.
fn each_call(scenario: &Scenario, mode: Mode, tally: &mut Tally) {
    tally.operations += 1;
    for sync_names in [true, false] {
        let options = Options { sync_names, ..Options::default() };
        for at in 1.. {
            let mut called = String::new();
            let outcome = catch_unwind(AssertUnwindSafe(|| one(scenario, mode, at, options, &mut called)));
            let wrong = match outcome {
                Ok(Ok(true)) => None,
                Ok(Ok(false)) => break,
                Ok(Err(why)) => Some(why),
                Err(panic) => Some(format!("panic: {:?}", panic.downcast_ref::<String>())),
            };
            tally.failed += 1;
            if let Some(why) = wrong {
                tally.violations.push(format!("{} ({mode}, call {at}: {called}; {options:?}): {why}", scenario.0));
            }
        }
    }
}

/// One operation with one failure; `false`: it did not come to that call.
fn one(scenario: &Scenario, mode: Mode, at: u64, options: Options, called: &mut String) -> Outcome<bool> {
    let mut world = World::new(SimFs::new(options), options.sync_names)?;
    for op in scenario.1 {
        world.apply(*op).map_err(|e| format!("before the failure: {op:?}: {e}"))?;
        world.acknowledge(*op);
    }
    match scenario.2 {
        Work::Mount => {
            world.pool.shutdown().map_err(text)?;
            world.close_all();
            after::all_durable(&mut world);
        }
        Work::Recover => world.close_all(),
        _ => {}
    }
    let mut rng = Rng::new(seed().wrapping_mul(1_000_003).wrapping_add(at));
    world.fs.start_log();
    world.fs.set_fault(Some(mode.fault(at)));
    let result = perform(&mut world, scenario.2);
    let hit = world.fs.failed() > 0;
    let trace = world.fs.take_log();
    *called = trace.get(at as usize - 1).cloned().unwrap_or_default();
    if !hit {
        return result.map(|()| false);
    }
    if mode == Mode::Kill {
        return after::killed(&world, options, &mut rng).map(|()| true);
    }
    world.fs.set_fault(None);
    after::failed(&mut world, scenario.2, result, options, &mut rng)?;
    Ok(true)
}

/// Does the work. A pool that opened is looked at, and given up again.
pub fn perform(world: &mut World, work: Work) -> Outcome {
    match work {
        Work::Do(op) => world.apply(op).map(drop),
        Work::Mount | Work::Recover => {
            let (pool, names) = serve(&world.fs)?;
            world.opened = Some((pool, names));
            Ok(())
        }
        Work::Unmount => world.pool.shutdown().map_err(text),
    }
}
