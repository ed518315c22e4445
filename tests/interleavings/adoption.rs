//! Adoption while the heir is in use: its blocks are copied down into a file that others may come to see.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::sync::Arc;

use clonefs::engine::pool::CloneOptions;
use clonefs::engine::volume::Volume;

use crate::hooks::{Call, begin};
use crate::world::{BLOCK, World, filled, read};

/// Lets `heir` adopt its parent; after its first piece is copied, `work` begins. Returns whether it was adopted and
/// whether it came to that.
fn adopt_and_meanwhile(world: &World, heir: &Arc<Volume>, work: impl FnOnce() + Send + 'static) -> (bool, bool) {
    let (asked, work, begun) = (Cell::new(0), Cell::new(Some(work)), RefCell::new(None));
    let stop = || {
        asked.set(asked.get() + 1);
        if asked.get() == 2
            && let Some(work) = work.take()
        {
            *begun.borrow_mut() = Some(begin(work));
        }
        false
    };
    let adopted = world.pool.adopt_parent(heir, &stop).unwrap();
    let begun = begun.take().map(|thread| thread.join().expect("what was done meanwhile"));
    (adopted, begun.is_some())
}

/// A source of 400 blocks of ones, and a clone with a block of sevens and one of eights, far apart: they are copied
/// down in two pieces.
fn source_and_heir(world: &World) -> (Arc<Volume>, Arc<Volume>) {
    let source = world.create_with("source", &filled(400, 1));
    let heir = world.clone_of(&source, "heir");
    heir.write(5 * BLOCK, &filled(1, 7)).unwrap();
    heir.write(300 * BLOCK, &filled(1, 8)).unwrap();
    (source, heir)
}

/// Blocks that the heir lost after they were copied down were not taken back: they showed again when it had grown.
#[test]
fn a_shrink_and_a_growth_during_an_adoption_leave_zeros() {
    let world = World::new();
    let (source, heir) = source_and_heir(&world);
    drop(source);
    world.remove("source");
    let guest = heir.clone();
    let resize = move || {
        guest.set_size(BLOCK).unwrap();
        guest.set_size(400 * BLOCK).unwrap();
    };
    assert_eq!(adopt_and_meanwhile(&world, &heir, resize), (true, true));
    assert!(read(&heir, 0, 4096) == filled(1, 1));
    assert!(read(&heir, BLOCK, 399 * 4096) == filled(399, 0));
}

/// The record kept the size that the volume had when it adopted, and the next mount took it for the truth.
#[test]
fn the_growth_of_a_volume_that_has_adopted_a_whole_file_survives_a_remount() {
    let world = World::new();
    let source = world.create_with("source", &filled(2, 1));
    let heir = world.clone_of(&source, "heir");
    heir.write(0, &filled(1, 7)).unwrap();
    drop(source);
    world.remove("source");
    assert!(world.pool.adopt_parent(&heir, &|| false).unwrap());
    heir.write(2 * BLOCK, &filled(2, 5)).unwrap();
    heir.sync(false).unwrap();
    drop(heir);
    let world = world.remounted();
    let heir = world.volume("heir");
    assert_eq!(heir.size().unwrap(), 4 * BLOCK);
    assert!(read(&heir, 0, 16384) == [filled(1, 7), filled(1, 1), filled(2, 5)].concat());
}

/// As nothing was written to the heir, its clone became a second heir of the parent, which was about to become the
/// first one's own file.
#[test]
fn a_clone_of_an_empty_heir_made_during_its_adoption_sees_none_of_its_writes() {
    let world = World::new();
    let source = world.create_with("source", &filled(2, 1));
    let heir = world.clone_of(&source, "heir");
    world.pool.flush().unwrap();
    drop(source);
    world.remove("source");
    let clone = world.create("clone");
    let (pool, from, to) = (world.pool.clone(), heir.clone(), clone.clone());
    // The parent's file, which is still known by its old name, is synced just before the end.
    let parent = |call: &Call<'_>| matches!(call, Call::Sync(path) if *path == Path::new("source"));
    let work = world.hooks.meanwhile(parent, move || {
        pool.clone_volume(&from, &to, &CloneOptions::default()).unwrap();
        from.write(0, &filled(1, 9)).unwrap();
    });
    world.pool.adopt_parent(&heir, &|| false).unwrap();
    work.sprung();
    assert!(read(&clone, 0, 8192) == filled(2, 1));
    assert!(read(&heir, 0, 8192) == [filled(1, 9), filled(1, 1)].concat());
}

/// A deleted file that a token still stood for had no name and no reader on record, so it was adopted, and a clone
/// made by the token showed the heir's blocks. Now a token is void once nobody else has the file.
#[test]
fn a_token_of_a_deleted_source_gives_the_bytes_of_the_source_or_nothing() {
    for open in [true, false] {
        let world = World::new();
        let (source, heir) = source_and_heir(&world);
        world.pool.flush().unwrap();
        let token = world.pool.token(&source, 0).unwrap();
        // Somebody has it open, or nobody.
        let handle = Some(source).filter(|_| open);
        world.remove("source");
        let clone = world.create("clone");
        let (pool, to) = (world.pool.clone(), clone.clone());
        let redeem = move || {
            let source = pool.redeem(&token)?;
            pool.clone_volume(&source, &to, &CloneOptions::default())
        };
        let meanwhile = redeem.clone();
        let (adopted, met) = adopt_and_meanwhile(&world, &heir, move || assert!(meanwhile().is_err()));
        assert_eq!((adopted, met), (!open, !open));
        assert_eq!(redeem().is_ok(), open);
        if open {
            assert!(read(&clone, 0, 400 * 4096) == filled(400, 1));
        }
        drop(handle);
    }
}

/// The copy of the last block kept what was cut off it, and the parent's bytes after its end, and both showed when the
/// volume grew before the adoption had ended.
#[test]
fn the_rest_of_a_last_block_is_zeros_after_an_adoption_too() {
    let end = 5 * BLOCK + 100;
    let expect = [vec![7; 100], vec![0; 3996]].concat();

    let world = World::new();
    let (source, heir) = source_and_heir(&world);
    drop(source);
    world.remove("source");
    let guest = heir.clone();
    let resize = move || {
        guest.set_size(end).unwrap();
        guest.set_size(400 * BLOCK).unwrap();
    };
    assert_eq!(adopt_and_meanwhile(&world, &heir, resize), (true, true));
    assert!(read(&heir, 5 * BLOCK, 4096) == expect, "cut off meanwhile");

    let world = World::new();
    let (source, heir) = source_and_heir(&world);
    heir.set_size(end).unwrap();
    world.pool.flush().unwrap();
    drop(source);
    world.remove("source");
    let guest = heir.clone();
    let parent = |call: &Call<'_>| matches!(call, Call::Sync(path) if *path == Path::new("source"));
    let growth = world.hooks.meanwhile(parent, move || guest.set_size(400 * BLOCK).unwrap());
    assert!(world.pool.adopt_parent(&heir, &|| false).unwrap());
    growth.sprung();
    assert!(read(&heir, 5 * BLOCK, 4096) == expect, "cut off before");
}

/// What a volume was cloned from was given back to it by a reset although blocks of the volume had been copied into its
/// file, by an adoption that had not come to its end.
#[test]
fn what_an_adoption_has_begun_to_change_is_not_gone_back_to() {
    let world = World::new();
    let (source, heir) = source_and_heir(&world);
    drop(source);
    world.remove("source");
    let asked = Cell::new(0);
    let stop = || asked.replace(asked.get() + 1) > 0;
    assert!(!world.pool.adopt_parent(&heir, &stop).unwrap());
    assert!(asked.get() > 1, "a piece was copied before it was stopped");
    let bytes = read(&heir, 0, 400 * 4096);
    assert!(world.pool.reset(&heir, None).is_err());
    drop(heir);
    let world = world.remounted();
    let heir = world.volume("heir");
    assert!(world.pool.reset(&heir, None).is_err());
    assert!(read(&heir, 0, 400 * 4096) == bytes);
    assert!(world.pool.adopt_parent(&heir, &|| false).unwrap());
    assert!(read(&heir, 0, 400 * 4096) == bytes);
}

/// The same, of an adoption that is under way.
#[test]
fn a_reset_that_meets_an_adoption_does_not_go_back_to_half_of_it() {
    let world = World::new();
    let (source, heir) = source_and_heir(&world);
    drop(source);
    world.remove("source");
    let bytes = read(&heir, 0, 400 * 4096);
    let (pool, volume) = (world.pool.clone(), heir.clone());
    let reset = move || assert!(pool.reset(&volume, None).is_err());
    let (_, met) = adopt_and_meanwhile(&world, &heir, reset);
    assert!(met);
    assert!(read(&heir, 0, 400 * 4096) == bytes);
}
