//! Random sequences around an adoption: the heir is cut, grown and written to before and after it, its parent comes to have
//! one heir in every way that there is, and there is a crash between any two calls of it.
//!
//! Sequences of two operations are too short for this, and random ones of all operations come to it seldom: an adoption
//! needs that nobody else reads the layer, and what goes wrong with the end of a volume needs it to have been cut before,
//! to grow into the same blocks after, and a kill before the log has been dropped from. A bug of this kind (E1 in
//! docs/ordering.md) was not found by them.

use super::run::{Plan, Tally, step};
use crate::common::ops::{Name, Op};
use crate::common::rng::Rng;
use crate::common::served::Outcome;
use crate::common::simfs::{Options, SimFs};
use crate::common::world::World;

/// What comes before, who the heir is, and what leaves its parent with that one heir.
const WAYS: [(&[Op], Name, Op); 8] = {
    use Op::*;
    [
        (&[CloneDurably(0, 1)], 1, Unlink(0)),
        (&[CloneDurably(0, 1), Write(0)], 0, Unlink(1)),
        (&[CloneDurably(0, 1), Write(1), Snapshot(1)], 1, RemoveSnapshot(1)),
        (&[CloneDurably(0, 1), Write(1), Clone(1, 2)], 1, Unlink(2)),
        (&[CloneDurably(0, 1), Append(1), Fill(1), Fill(1), Clone(1, 2)], 1, Unlink(2)),
        (&[CloneDurably(0, 1), Write(1), Clone(1, 2), Clone(0, 3)], 1, Rename(3, 2)),
        (&[CloneDurably(0, 1), Write(1), Clone(1, 2), Shrink(1), Clone(1, 3), Write(1)], 1, Unlink(2)),
        (&[CloneDurably(0, 1), Write(1), Clone(1, 2), Link(1, 8)], 8, Unlink(2)),
    ]
};

fn changes(heir: Name, count: u64, rng: &mut Rng) -> Vec<Op> {
    let one = |rng: &mut Rng| match rng.below(16) {
        0..3 => Op::Shrink(heir),
        3..5 => Op::Append(heir),
        5..7 => Op::Extend(heir),
        7 => Op::Grow(heir),
        8 => Op::Write(heir),
        9 => Op::Punch(heir),
        10..12 => Op::Fsync(heir),
        12 => Op::Fill(heir),
        13 => Op::Keep,
        14 => Op::Kill,
        _ => Op::Clone(heir, 5),
    };
    (0..count).map(|_| one(rng)).collect()
}

/// Runs so many sequences.
pub fn adoptions(seed: u64, rounds: u64, options: Options) -> Tally {
    let mut tally = Tally::default();
    for round in 0..rounds {
        let seed = seed.wrapping_mul(1_000_003).wrapping_add(round);
        let mut rng = Rng::new(seed);
        let options = Options { sync_names: rng.once_in(2), reflink: rng.once_in(4), ..options };
        let plan = Plan { seed, options, each: 1, share: 1 };
        let mut done = Vec::new();
        if let Err(why) = one(&plan, &mut rng, &mut done, &mut tally) {
            tally.violations.push(format!("seed {seed}, {options:?}\n  {done:?}\n  {why}"));
        }
    }
    tally
}

fn one(plan: &Plan, rng: &mut Rng, done: &mut Vec<Op>, tally: &mut Tally) -> Outcome {
    let (before, heir, last) = WAYS[rng.below(WAYS.len() as u64) as usize];
    let mut world = World::new(SimFs::new(plan.options), plan.options.sync_names)?;
    tally.sequences += 1;
    let (some, few) = (rng.below(3), rng.below(2));
    for op in before.iter().copied().chain(changes(heir, some, rng)) {
        done.push(op);
        world.apply(op).map_err(|why| format!("{op:?}: {why}"))?;
        world.acknowledge(op);
    }
    let adopt = if rng.once_in(3) { Op::AdoptFrozen } else { Op::Adopt(heir) };
    let more = 1 + rng.below(4);
    let around = changes(heir, few, rng).into_iter().chain([adopt, Op::Adopt(heir)]).chain(changes(heir, more, rng));
    for op in [last].into_iter().chain(around).chain([Op::Fsync(heir), Op::Kill]) {
        done.push(op);
        step(&mut world, op, plan, rng, tally)?;
    }
    Ok(())
}
