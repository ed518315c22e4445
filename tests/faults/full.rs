//! A disk that is full: whoever writes is told so, everything else works, and deleting gives room at once.

use std::path::Path;

use clonefs::engine::io::{Fs, Open};

use crate::after::{end, goes_on, settle};
use crate::common::ops::{Name, Op};
use crate::common::rng::Rng;
use crate::common::served::{Outcome, text};
use crate::common::simfs::{Options, SimFs};
use crate::common::world::World;
use crate::run::{Tally, perform, wanted};
use crate::scenarios::{ALL, Scenario, Work};

/// Free blocks when the operation begins.
const ROOM: [u64; 14] = [0, 1, 2, 3, 4, 6, 9, 14, 22, 36, 58, 150, 300, 600];
/// A volume that is there to be deleted.
const VICTIM: Name = 5;

/// Every operation with as much room as each of these.
pub fn all() -> Tally {
    let mut tally = Tally::default();
    for scenario in ALL.iter().filter(|s| wanted(s.0)) {
        tally.operations += 1;
        for room in ROOM {
            let outcome = one(scenario, room);
            match outcome {
                Ok(refused) => tally.failed += u64::from(refused),
                Err(why) => tally.violations.push(format!("{} (room for {room} blocks): {why}", scenario.0)),
            }
        }
    }
    tally
}

/// One operation; whether it had to be refused.
fn one(scenario: &Scenario, room: u64) -> Outcome<bool> {
    let options = Options::default();
    let mut world = World::new(SimFs::new(options), options.sync_names)?;
    for op in scenario.1 {
        world.apply(*op)?;
        world.acknowledge(*op);
    }
    // It has more blocks of its own than the journal reserves at once for what is to come.
    let made = [Op::CloneDurably(world.model.present()[0], VICTIM), Op::Write(VICTIM)];
    for op in made.into_iter().chain([Op::Fill(VICTIM); 8]).chain([Op::Fsync(VICTIM)]) {
        world.apply(op)?;
        world.acknowledge(op);
    }
    if matches!(scenario.2, Work::Mount | Work::Recover) {
        world.close_all();
    }
    let full = world.fs.used() + room;
    world.fs.options(|o| o.space = Some(full));
    let result = perform(&mut world, scenario.2);
    let refused = result.is_err();
    after(&mut world, scenario.2, result)?;
    world.pool.status().troubles.first().map_or(Ok(()), |t| Err(format!("a trouble: {t:?}")))?;
    let waiting = sync(&mut world)?;
    delete(&mut world)?;
    if !waiting.is_empty() && !sync(&mut world)?.is_empty() {
        return Err("there is room now, and still no sync".into());
    }
    // An end and a start, still without room.
    world.pool.shutdown().map_err(|e| format!("unmounting: {e}"))?;
    world.close_all();
    world.restart(true).map_err(|why| format!("mounting: {why}"))?;
    world.model.acknowledged();
    world.compare()?;
    world.fs.options(|o| o.space = None);
    let mut rng = Rng::new(room);
    goes_on(&mut world, options, &mut rng)?;
    end(&mut world, options, &mut rng)?;
    Ok(refused)
}

fn after(world: &mut World, work: Work, result: Outcome) -> Outcome {
    match (work, result) {
        (Work::Do(op), Ok(())) => world.acknowledge(op),
        (Work::Do(_), Err(why)) if why.contains("os error 28") => settle(world)?,
        (Work::Do(_), Err(why)) => return Err(format!("another error: {why}")),
        // Neither the end nor the start may need room.
        (_, Err(why)) => return Err(why),
        (_, Ok(())) => {
            world.opened = None;
            world.close_all();
            world.restart(true)?;
            world.model.acknowledged();
        }
    }
    world.compare()
}

/// Syncs everything; returns the volumes that need room for that. It must not be the ones that were only written to.
fn sync(world: &mut World) -> Outcome<Vec<Name>> {
    let mut waiting = Vec::new();
    for name in world.model.present() {
        match world.apply(Op::Fsync(name)) {
            Ok(_) => world.acknowledge(Op::Fsync(name)),
            // What was shared into it has no map yet. The sync says so, and nothing is lost.
            Err(why) if why.contains("make map") && why.contains("os error 28") => {
                settle(world)?;
                waiting.push(name);
            }
            Err(why) => return Err(format!("fsync of v{name}, whose writes were accepted: {why}")),
        }
    }
    Ok(waiting)
}

/// Deleting works, and gives room that can be used at once.
fn delete(world: &mut World) -> Outcome {
    let used = world.fs.used();
    if world.model.get(VICTIM).is_some() {
        world.apply(Op::Unlink(VICTIM)).map_err(|why| format!("deleting: {why}"))?;
        world.acknowledge(Op::Unlink(VICTIM));
    }
    let now = world.fs.used();
    if now >= used {
        return Err(format!("{used} blocks were in use, and {now} are after deleting"));
    }
    let temporary = Path::new("new");
    let file = world.fs.open(temporary, Open::CreateNew(0o600)).map_err(text)?;
    file.write_at(&vec![1; (used - now) as usize * 4096], 0).map_err(|e| format!("using the room: {e}"))?;
    drop(file);
    world.fs.unlink(temporary).map_err(text)
}
