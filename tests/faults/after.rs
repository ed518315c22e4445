//! What must hold after a call has failed.

use std::path::Path;

use crate::common::model::Found;
use crate::common::ops::{Name, Op};
use crate::common::recover::{Thorough, examine};
use crate::common::rng::Rng;
use crate::common::served::{Outcome, contents, file_name, look, text, volume_at};
use crate::common::simfs::{Crash, Moment, Options, POWER, SimFs};
use crate::common::world::{WRONG, World};
use crate::scenarios::Work;

/// Ends the message of everything that is refused because something is latched.
pub const LATCHED: &str = "then unmount and mount again";

/// A crash of this kind now leaves what the model allows.
fn crash(world: &World, kind: Crash, options: Options, rng: &mut Rng, drain: bool) -> Outcome {
    let image = world.fs.crash(kind, rng);
    let moment = Moment { image, crash: kind, call: 0, before: String::new() };
    let how = Thorough { nested: 0, drain };
    examine(&moment, &world.model, options, rng, how).map_err(|why| format!("{kind:?}: {why}"))
}

/// The daemon died at a call: nothing more was done.
pub fn killed(world: &World, options: Options, rng: &mut Rng) -> Outcome {
    let drain = rng.once_in(4);
    crash(world, Crash::Kill, options, rng, drain)?;
    POWER.iter().try_for_each(|kind| crash(world, *kind, options, rng, false))
}

/// A call failed, and none does from now on.
pub fn failed(world: &mut World, work: Work, result: Outcome, options: Options, rng: &mut Rng) -> Outcome {
    world.model.forgiving = true;
    match (work, result) {
        (_, Err(why)) if why.starts_with(WRONG) => return Err(why),
        (Work::Mount | Work::Recover, result) => mounted(world, result)?,
        (Work::Unmount, result) => {
            if result.is_ok() {
                all_durable(world);
            }
            crash(world, POWER[rng.below(7) as usize], options, rng, false)?;
            world.close_all();
            // What a sync has failed to write may be gone from memory at any time: here, at once (R14).
            world.fs = SimFs::from_image(world.fs.crash(Crash::KeepAll, rng), options);
            again(world, false)?;
        }
        (Work::Do(op), Ok(())) => {
            world.acknowledge(op);
            world.compare().map_err(|why| format!("after it was said to be done: {why}"))?;
        }
        (Work::Do(_), Err(why)) => {
            settle(world).map_err(|wrong| format!("after the error {why:?}: {wrong}"))?;
        }
    }
    let kind = POWER[rng.below(7) as usize];
    crash(world, kind, options, rng, false).map_err(|why| format!("a crash right after it: {why}"))?;
    goes_on(world, options, rng)?;
    end(world, options, rng)
}

/// Everything in the model is durable.
pub fn all_durable(world: &mut World) {
    for name in world.model.present() {
        let number = world.model.get(name).expect("it is there");
        world.model.synced(number, false);
    }
}

/// What is there after an operation that failed is what was there before, or what it would have made.
pub fn settle(world: &mut World) -> Outcome {
    let found = match look(&world.pool) {
        Ok(found) => found,
        // What could not be read when it was opened stays so until it is closed.
        Err(_) => {
            world.close_all();
            look(&world.pool)?
        }
    };
    world.model.failed(&found)
}

/// A start with a call that failed: it says so, or what it shows is true. The next one finds everything.
fn mounted(world: &mut World, result: Outcome) -> Outcome {
    if let Some((pool, names)) = world.opened.take() {
        let mut found = Found::new();
        for name in world.model.present() {
            // An error is no wrong outcome here, but wrong bytes are.
            if let Ok(bytes) = volume_at(&pool, &file_name(name)).and_then(|v| contents(&v)) {
                found.insert(name, bytes);
            }
        }
        result?;
        for (name, bytes) in &found {
            let number = world.model.get(*name).expect("it is one of the model's");
            let known = world.model.volumes[number].explains(bytes);
            known.map_err(|why| format!("v{name} after a start with a failure: {why}"))?;
        }
        drop((pool, names));
    }
    again(world, true)
}

/// A start without failures.
fn again(world: &mut World, killed: bool) -> Outcome {
    world.restart(killed)?;
    world.model.acknowledged();
    let troubles = world.pool.status().troubles;
    if troubles.is_empty() { Ok(()) } else { Err(format!("the next start finds {troubles:?}")) }
}

/// Volumes can be written and synced, or say that they cannot, and then for good.
pub fn goes_on(world: &mut World, options: Options, rng: &mut Rng) -> Outcome {
    let names = world.model.present();
    let mut latched = Vec::new();
    for op in names.iter().flat_map(|n| [Op::Write(*n), Op::Fsync(*n)]) {
        if let Err(why) = world.apply(op) {
            if !why.contains(LATCHED) {
                return Err(format!("{op:?} afterwards fails although nothing is latched: {why}"));
            }
            settle(world)?;
            if let Op::Fsync(name) = op {
                latched.push((name, why));
            }
        } else {
            world.acknowledge(op);
        }
    }
    crash(world, Crash::LoseAll, options, rng, false).map_err(|why| format!("after later syncs: {why}"))?;
    for (name, why) in latched {
        refused(world, name, &why).map_err(|wrong| format!("v{name} is latched ({why}), but {wrong}"))?;
    }
    world.compare()
}

/// A volume whose sync failed is named, and nothing is made of it that could be called durable.
fn refused(world: &mut World, name: Name, why: &str) -> Outcome {
    let journal = why.contains("journal");
    let path = if journal { ".clonefs/journal".into() } else { file_name(name) };
    let troubles = world.pool.status().troubles;
    if !troubles.iter().any(|t| Path::new(&t.path) == path) {
        return Err(format!("status names only {troubles:?}"));
    }
    let mut ops = vec![Op::Fsync(name), Op::CloneDurably(name, 9)];
    if !journal {
        ops.extend([Op::Clone(name, 8), Op::Export(name)]);
    }
    for op in ops {
        if world.apply(op) == Ok(true) {
            return Err(format!("{op:?} is done"));
        }
        settle(world)?;
    }
    Ok(())
}

/// The end, and what is there afterwards.
pub fn end(world: &mut World, options: Options, rng: &mut Rng) -> Outcome {
    // Volumes are still open: what nobody holds is, as any file, the kernel's to write.
    let ended = world.pool.shutdown();
    world.close_all();
    match ended.map_err(text) {
        Ok(()) => all_durable(world),
        Err(why) if why.contains(LATCHED) => {}
        Err(why) => return Err(format!("unmounting afterwards fails: {why}")),
    }
    crash(world, Crash::LoseAll, options, rng, false).map_err(|why| format!("after the end: {why}"))?;
    let drain = rng.once_in(4);
    crash(world, Crash::Kill, options, rng, drain).map_err(|why| format!("after the end: {why}"))
}
