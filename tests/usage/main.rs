//! What volumes take, after random sequences of operations below FUSE, against a full count of the maps and the blocks
//! on disk; and what is freed, against deleting the volume.

#[path = "../common/mod.rs"]
mod common;

mod count;

use common::ops::{ALL, MORE, Op};
use common::rng::Rng;
use common::served::{Outcome, SNAPSHOT, file_name, text, volume_at};
use common::simfs::{Options, SimFs};
use common::world::World;
use count::Count;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// What was compared.
#[derive(Debug, Default)]
struct Tally {
    volumes: u64,
    overlays: u64,
    shared: u64,
    costs: u64,
    freed: u64,
}

/// Everything that can be done in the background of itself is done, and durable.
fn rest(world: &mut World) -> Outcome {
    world.close_all();
    world.pool.reap_dead().map_err(text)?;
    world.pool.flush().map_err(text)
}

fn compare(world: &World, tally: &mut Tally) -> Outcome {
    let count = Count::of(&world.pool)?;
    // Snapshots have no line of their own; what they hold is somebody else's too.
    for name in world.model.present().into_iter().filter(|name| *name < SNAPSHOT) {
        let expect = count.volume(&file_name(name))?;
        let usage = world.pool.usage(&volume_at(&world.pool, &file_name(name))?).map_err(text)?;
        let got = count::Figures::from(&usage);
        if got != expect {
            return Err(format!("v{name}: {got:?}, and a full count gives {expect:?}; {:?}", usage.pieces));
        }
        tally.volumes += 1;
        tally.overlays += u64::from(usage.present < usage.size);
        tally.shared += u64::from(usage.shared > 0);
        tally.costs += u64::from(usage.independence > 0);
    }
    Ok(())
}

/// Deletes the volumes one after the other: each gives back what was said that it would.
fn delete_all(world: &mut World, rng: &mut Rng, tally: &mut Tally) -> Outcome {
    loop {
        let names = world.model.present();
        if names.is_empty() {
            return Ok(());
        }
        let name = names[rng.below(names.len() as u64) as usize];
        if let Some(of) = name.checked_sub(SNAPSHOT) {
            world.apply(Op::RemoveSnapshot(of))?;
            world.acknowledge(Op::RemoveSnapshot(of));
            rest(world)?;
            compare(world, tally)?;
            continue;
        }
        let said = world.pool.usage(&volume_at(&world.pool, &file_name(name))?).map_err(text)?.freed;
        let before = count::on_disk(&world.pool)?;
        world.apply(Op::Unlink(name))?;
        world.acknowledge(Op::Unlink(name));
        rest(world)?;
        let freed = before - count::on_disk(&world.pool)?;
        if freed != said {
            return Err(format!("v{name}: {said} bytes were to come free, {freed} did"));
        }
        tally.freed += u64::from(freed > 0);
        compare(world, tally)?;
    }
}

fn sequence(seed: u64, tally: &mut Tally, done: &mut Vec<Op>) -> Outcome {
    let mut rng = Rng::new(seed);
    let options = Options { reflink: rng.once_in(4), ..Options::default() };
    let mut world = World::new(SimFs::new(options), true)?;
    for _ in 0..10 + rng.below(30) {
        let at = rng.below((ALL.len() + MORE.len()) as u64) as usize;
        let op = if at < ALL.len() { ALL[at] } else { MORE[at - ALL.len()] };
        done.push(op);
        if world.apply(op)? {
            world.acknowledge(op);
        }
        if rng.once_in(4) {
            rest(&mut world)?;
            compare(&world, tally)?;
        }
    }
    rest(&mut world)?;
    compare(&world, tally)?;
    delete_all(&mut world, &mut rng, tally)
}

#[test]
fn usage_is_what_a_full_count_gives() {
    let first = number("CLONEFS_USAGE_SEED", 1);
    let mut tally = Tally::default();
    for seed in first..first + number("CLONEFS_USAGE_ROUNDS", 1000) {
        let mut done = Vec::new();
        sequence(seed, &mut tally, &mut done).unwrap_or_else(|why| panic!("seed {seed}, {done:?}: {why}"));
    }
    println!("usage: {tally:?}");
    // A test that met none of these would prove nothing.
    assert!(tally.overlays > 100 && tally.shared > 100 && tally.costs > 100 && tally.freed > 100, "{tally:?}");
}
