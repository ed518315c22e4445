//! Runs sequences, takes the crashes of their last operation, and counts.

use std::fmt;

use crate::common::ops::{ALL, MORE, Op, PREFIXES};
use crate::common::recover::{Thorough, examine};
use crate::common::rng::Rng;
use crate::common::served::Outcome;
use crate::common::simfs::{Crash, Moment, Options, POWER, SimFs};
use crate::common::world::World;

/// What is tried.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    pub options: Options,
    /// Power cuts at each point.
    pub each: u64,
    /// One in so many sequences of the greatest length is run.
    pub share: u64,
}

/// What was done and found.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub sequences: u64,
    pub states: u64,
    pub violations: Vec<String>,
}

impl Tally {
    pub fn add(&mut self, other: Tally) {
        self.sequences += other.sequences;
        self.states += other.states;
        self.violations.extend(other.violations);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sequences, {} states, {} violations", self.sequences, self.states, self.violations.len())
    }
}

/// All sequences of up to `depth` operations after each prefix. The crashes of each are those of its last operation:
/// those of the others belong to shorter sequences.
pub fn exhaustive(plan: &Plan, depth: usize) -> Tally {
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get());
    let work: Vec<(usize, Op)> = (0..PREFIXES.len()).flat_map(|p| ALL.map(|op| (p, op))).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let run = || {
            let mut tally = Tally::default();
            while let Some((prefix, op)) = work.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                grow(plan, *prefix, &mut vec![*op], depth, &mut tally);
            }
            tally
        };
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        handles.into_iter().map(|h| h.join().expect("a run does not panic")).collect()
    });
    let mut sum = Tally::default();
    tallies.into_iter().for_each(|t| sum.add(t));
    sum
}

/// Runs a sequence and all that begin with it. One whose last operation did nothing is not gone on with.
fn grow(plan: &Plan, prefix: usize, ops: &mut Vec<Op>, depth: usize, tally: &mut Tally) {
    let seed = seed_of(plan.seed, prefix, ops);
    if ops.len() == depth && depth > 1 && !Rng::new(seed).once_in(plan.share) {
        return;
    }
    if !sequence(plan, prefix, ops, seed, tally) || ops.len() == depth {
        return;
    }
    for op in ALL {
        ops.push(op);
        grow(plan, prefix, ops, depth, tally);
        ops.pop();
    }
}

fn seed_of(seed: u64, prefix: usize, ops: &[Op]) -> u64 {
    let mut rng = Rng::new(seed ^ prefix as u64);
    let index = |op: &Op| ALL.iter().chain(&MORE).position(|o| o == op).unwrap_or_default() as u64;
    ops.iter().fold(rng.next(), |sum, op| Rng::new(sum ^ index(op)).next())
}

/// Runs one sequence; returns whether its last operation changed something on disk.
fn sequence(plan: &Plan, prefix: usize, ops: &[Op], seed: u64, tally: &mut Tally) -> bool {
    let result = one(plan, prefix, ops, seed, tally);
    match result {
        Ok(changed) => changed,
        Err(why) => {
            let name = PREFIXES[prefix].0;
            let options = plan.options;
            let plan = format!("seed {}, prefix {prefix} ({name}), {options:?}", plan.seed);
            tally.violations.push(format!("{plan}\n  {ops:?}\n  {why}"));
            false
        }
    }
}

fn one(plan: &Plan, prefix: usize, ops: &[Op], seed: u64, tally: &mut Tally) -> Outcome<bool> {
    let mut world = World::new(SimFs::new(plan.options), plan.options.sync_names)?;
    let (last, before) = ops.split_last().expect("a sequence has an operation");
    for op in PREFIXES[prefix].1.iter().chain(before) {
        world.apply(*op).map_err(|e| format!("{op:?}: {e}"))?;
        world.acknowledge(*op);
        world.compare().map_err(|e| format!("after {op:?}: {e}"))?;
    }
    tally.sequences += 1;
    let mut rng = Rng::new(seed);
    step(&mut world, *last, plan, &mut rng, tally)
}

/// Does one operation with a crash before each of its calls, and one after it.
pub fn step(world: &mut World, op: Op, plan: &Plan, rng: &mut Rng, tally: &mut Tally) -> Outcome<bool> {
    world.fs.start_capture(Rng::new(rng.next()), plan.each);
    let result = world.apply(op);
    let (during, after) = world.fs.stop_capture();
    let possible = result.map_err(|e| format!("{op:?}: {e}"))?;
    world.compare().map_err(|e| format!("after {op:?}: {e}"))?;
    let changed = !during.is_empty();
    if !possible || !changed && !matches!(op, Op::Fsync(_)) {
        return Ok(false);
    }
    judge(world, &during, plan, rng, tally)?;
    world.acknowledge(op);
    judge(world, &after, plan, rng, tally)?;
    Ok(changed)
}

fn judge(world: &World, moments: &[Moment], plan: &Plan, rng: &mut Rng, tally: &mut Tally) -> Outcome {
    for moment in moments {
        tally.states += 1;
        let nested = if rng.once_in(8) { 2 } else { 0 };
        let how = Thorough { nested, drain: rng.once_in(4) };
        examine(moment, &world.model, plan.options, rng, how).map_err(|why| {
            format!("crash {:?} before call {}, {:?}: {why}", moment.crash, moment.call + 1, moment.before)
        })?;
    }
    Ok(())
}

/// Adoptions of what was written to in some way, and of what was not.
pub fn adoptions(plan: &Plan) -> Tally {
    let mut tally = Tally::default();
    // The prefixes in which a source, or a frozen layer, has one heir left.
    for prefix in [4, 5] {
        for before in [Op::Write(1), Op::Append(1), Op::Punch(1), Op::Shrink(1), Op::Fsync(1)] {
            let ops = [before, Op::Adopt(1)];
            sequence(plan, prefix, &ops, seed_of(plan.seed, prefix, &ops), &mut tally);
        }
    }
    tally
}

/// What is written and not synced, and then written out as it is every few seconds: no power cut takes it away.
pub fn kept(seed: u64) -> Tally {
    const WRITTEN: [&[Op]; 4] = [
        &[Op::Write(0), Op::Append(1)],
        &[Op::Punch(1), Op::Clone(1, 2), Op::Write(2)],
        &[Op::Shrink(1), Op::Grow(1), Op::Write(1)],
        &[Op::Clone(0, 2), Op::Write(0), Op::Append(2), Op::Close(2)],
    ];
    let mut tally = Tally::default();
    for ops in WRITTEN {
        let mut rng = Rng::new(seed);
        if let Err(why) = keep(ops, &mut rng, &mut tally) {
            tally.violations.push(format!("seed {seed}\n  {ops:?}\n  {why}"));
        }
    }
    tally
}

fn keep(ops: &[Op], rng: &mut Rng, tally: &mut Tally) -> Outcome {
    let options = Options::default();
    let mut world = World::new(SimFs::new(options), options.sync_names)?;
    let (_, prefix) = PREFIXES[3];
    tally.sequences += 1;
    for op in prefix.iter().chain(ops).chain([&Op::Keep]) {
        world.apply(*op)?;
        world.acknowledge(*op);
    }
    for name in world.model.present() {
        let number = world.model.get(name).expect("it is present");
        world.model.synced(number, true);
    }
    for crash in POWER.into_iter().chain([Crash::LoseAll, Crash::Random, Crash::Random, Crash::Random]) {
        tally.states += 1;
        let moment = Moment { image: world.fs.crash(crash, rng), crash, call: 0, before: String::new() };
        let how = Thorough { nested: 0, drain: false };
        examine(&moment, &world.model, options, rng, how).map_err(|why| format!("{crash:?}: {why}"))?;
    }
    Ok(())
}

/// Every step of one sequence, with many crashes at each point.
pub fn regression(plan: &Plan, prefix: usize, ops: &[Op]) -> Tally {
    let mut tally = Tally::default();
    for length in 1..=ops.len() {
        sequence(plan, prefix, &ops[..length], seed_of(plan.seed, prefix, &ops[..length]), &mut tally);
    }
    tally
}

/// Long sequences of random operations, with a crash at a random moment and life after it.
pub fn random(seed: u64, rounds: u64, length: u64) -> Tally {
    let mut tally = Tally::default();
    for round in 0..rounds {
        let seed = seed.wrapping_mul(1_000_003).wrapping_add(round);
        let mut rng = Rng::new(seed);
        let (sync_names, lone_names) = (rng.once_in(2), rng.once_in(3));
        let options = Options { sync_names, lone_names, reflink: rng.once_in(3), ..Options::default() };
        let plan = Plan { seed, options, each: 1, share: 1 };
        let mut done = Vec::new();
        if let Err(why) = long(&plan, length, &mut rng, &mut done, &mut tally) {
            tally.violations.push(format!("seed {seed}, {options:?}\n  {done:?}\n  {why}"));
        }
    }
    tally
}

fn long(plan: &Plan, length: u64, rng: &mut Rng, done: &mut Vec<Op>, tally: &mut Tally) -> Outcome {
    let mut world = World::new(SimFs::new(plan.options), plan.options.sync_names)?;
    tally.sequences += 1;
    for _ in 0..length {
        let number = rng.below((ALL.len() + MORE.len()) as u64) as usize;
        let op = if number < ALL.len() { ALL[number] } else { MORE[number - ALL.len()] };
        done.push(op);
        step(&mut world, op, plan, rng, tally)?;
        if world.model.get(0).is_none() && world.model.present().is_empty() {
            break;
        }
    }
    Ok(())
}
