//! What holds after a sync has failed and only the daemon was started again. The kernel has told of the failure once, calls
//! the lost pages clean and shows them until it needs the memory (R14); the new daemon knows nothing of that.

use crate::common::model::Found;
use crate::common::ops::Op;
use crate::common::rng::Rng;
use crate::common::served::{Outcome, file_name, look, serve, text, volume_at};
use crate::common::simfs::{Crash, Options, POWER, SimFs};
use crate::common::world::World;
use crate::modes::Mode;
use crate::run::{Tally, in_parallel, wanted};
use crate::scenarios::{ALL, Scenario, Work};

/// Every sync, with each of its calls failing.
pub fn all() -> Tally {
    let syncs = ALL.iter().filter(|s| wanted(s.0) && matches!(s.2, Work::Do(Op::Fsync(_))));
    in_parallel(&syncs.collect::<Vec<_>>(), |scenario, tally| {
        tally.operations += 1;
        for at in 1.. {
            let mut called = String::new();
            match one(scenario, at, &mut called) {
                Ok(Some(failed)) => tally.failed += u64::from(failed),
                Ok(None) => break,
                Err(why) => tally.violations.push(format!("{} (call {at}: {called}): {why}", scenario.0)),
            }
        }
    })
}

/// One sync with one failure. `None`: it did not come to that call; whether the sync failed.
fn one(scenario: &Scenario, at: u64, called: &mut String) -> Outcome<Option<bool>> {
    let Work::Do(op) = scenario.2 else { return Ok(None) };
    let mut world = World::new(SimFs::new(Options::default()), true)?;
    for before in scenario.1 {
        world.apply(*before)?;
        world.acknowledge(*before);
    }
    world.fs.start_log();
    world.fs.set_fault(Some(Mode::Once(libc::EIO).fault(at)));
    let result = world.apply(op);
    *called = world.fs.take_log().get(at as usize - 1).cloned().unwrap_or_default();
    let hit = world.fs.failed() > 0;
    world.fs.set_fault(None);
    if !hit {
        return Ok(None);
    }
    if result.is_ok() {
        return Ok(Some(false));
    }
    world.close_all();
    let mut rng = Rng::new(at);
    restarted(&mut world, &mut rng)?;
    Ok(Some(true))
}

/// The daemon starts again, everything is written to and synced, and the power goes.
fn restarted(world: &mut World, rng: &mut Rng) -> Outcome {
    let (pool, names) = serve(&world.fs)?;
    let troubles = pool.status().troubles;
    if !troubles.is_empty() {
        return Err(format!("the start finds {troubles:?}"));
    }
    explained(world, &look(&pool)?).map_err(|why| format!("after the start: {why}"))?;
    let mut written = Found::new();
    for name in world.model.present() {
        let volume = volume_at(&pool, &file_name(name))?;
        let bytes = vec![0x50 + name; 9000];
        volume.write(3000, &bytes).map_err(text)?;
        volume.sync(false).map_err(|e| format!("v{name} cannot be synced after the start: {e}"))?;
        written.insert(name, bytes);
    }
    drop((pool, names));
    let kind = POWER[rng.below(POWER.len() as u64) as usize];
    for crash in [Crash::LoseAll, kind] {
        let fs = SimFs::from_image(world.fs.crash(crash, rng), Options::default());
        let (pool, _names) = serve(&fs)?;
        let mut found = look(&pool)?;
        for (name, bytes) in &written {
            let got = found.get_mut(name).ok_or(format!("v{name} is gone"))?;
            let there = got.get_mut(3000..3000 + bytes.len()).ok_or(format!("v{name} has lost its end"))?;
            if there != bytes {
                return Err(format!("v{name} has lost what was synced after the start ({crash:?})"));
            }
            // For the rest it is as if nobody had written to it.
            there.fill(0);
        }
        explained(world, &found).map_err(|why| format!("after a power cut ({crash:?}): {why}"))?;
    }
    Ok(())
}

/// Each sector that was not written to after the start is one from before the sync that failed, or one that it was to
/// make durable.
fn explained(world: &World, found: &Found) -> Outcome {
    for name in world.model.present() {
        let number = world.model.get(name).expect("it is present");
        let got = found.get(&name).ok_or(format!("v{name} is gone"))?;
        let mut volume = world.model.volumes[number].clone();
        let blank = |bytes: &Vec<u8>| {
            let mut bytes = bytes.clone();
            let end = bytes.len().min(12_000);
            bytes[3000.min(end)..end].fill(0);
            bytes
        };
        let blanked: Vec<Vec<u8>> = volume.versions.iter().map(blank).collect();
        volume.versions.extend(blanked);
        volume.explains(got).map_err(|why| format!("v{name}: {why}"))?;
    }
    Ok(())
}
