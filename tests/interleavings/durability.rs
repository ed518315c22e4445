//! A sync that failed once: the kernel tells it one caller, and then takes the lost pages for clean.

use std::path::Path;
use std::sync::{Arc, Mutex};

use clonefs::engine::pool::CloneOptions;
use clonefs::engine::store::STUBS;
use clonefs::engine::volume::Volume;

use crate::hooks::Call;

use crate::world::{BLOCK, World, filled, read};

/// File and layer each remembered their own failure: the clone, which reads the same file, was told that it is durable.
#[test]
fn a_failed_sync_of_a_source_is_told_to_its_clone_as_well() {
    let world = World::new();
    let source = world.create_with("source", &filled(2, 1));
    let clone = world.clone_of(&source, "clone");
    let failure = world.hooks.fail(|call| matches!(call, Call::Sync(_)), libc::EIO);
    assert!(source.sync(true).is_err());
    failure.sprung();
    assert!(clone.sync(true).is_err());
}

/// The freeze made an overlay of the file, and the failure was forgotten with the file.
#[test]
fn a_failed_sync_is_not_forgotten_when_the_file_is_frozen() {
    let world = World::new();
    let source = world.create_with("source", &filled(2, 1));
    let _clone = world.clone_of(&source, "clone");
    let failure = world.hooks.fail(|call| matches!(call, Call::Sync(_)), libc::EIO);
    assert!(source.sync(true).is_err());
    failure.sprung();
    let later = source.write(BLOCK, &filled(1, 2)).and_then(|()| source.sync(true));
    assert!(later.is_err(), "a sync after the failure calls the lost bytes durable");
}

/// A file that is written while it is cloned is frozen with its syncs done before the last write: that write was in the
/// frozen file, which no later sync of the volume looked at, and a power cut took it away.
#[test]
fn a_write_during_the_freeze_for_a_clone_is_made_durable_by_the_next_sync() {
    for of_the_clone in [false, true] {
        let world = World::new();
        let source = world.create_with("source", &filled(2, 1));
        source.open_handle(true);
        let guest = source.clone();
        let after_the_syncs = |call: &Call<'_>| matches!(call, Call::SyncDir(path) if path.ends_with("layers"));
        let write = world.hooks.meanwhile(after_the_syncs, move || guest.write(0, &filled(1, 7)).unwrap());
        let clone = world.clone_of(&source, "clone");
        write.sprung();
        let volume = if of_the_clone { &clone } else { &source };
        let frozen = |call: &Call<'_>| matches!(call, Call::Sync(path) if *path == Path::new("source"));
        let failure = world.hooks.fail(frozen, libc::EIO);
        assert!(volume.sync(true).is_err(), "the file that holds the write is not synced");
        failure.sprung();
    }
}

/// A flush of many files syncs the whole filesystem first. A file that became a clone after that passed for one whose
/// name was durable: no later sync of it made it so, and a power cut took away what had been synced.
#[test]
fn the_name_of_a_clone_that_is_made_during_a_flush_becomes_durable_with_its_next_sync() {
    let world = World::new();
    let others: Vec<_> = (0..9).map(|n| world.create_with(&format!("other{n}"), &filled(1, 1))).collect();
    let source = world.create_with("source", &filled(2, 1));
    // As `cp` leaves a file that there was.
    let target = world.create_with("target", &filled(1, 1));
    target.set_size(0).unwrap();
    let stubs = |call: &Call<'_>| matches!(call, Call::SyncDir(path) if *path == Path::new(STUBS));
    let failure = Arc::new(Mutex::new(None));
    let (pool, from, to) = (world.pool.clone(), source.clone(), target.clone());
    let (hooks, laid) = (world.hooks.clone(), failure.clone());
    let cloned = world.hooks.meanwhile(
        |call| matches!(call, Call::SyncedFs),
        move || {
            pool.clone_volume(&from, &to, &CloneOptions::default()).unwrap();
            *laid.lock().unwrap() = Some(hooks.fail(stubs, libc::EIO));
        },
    );
    let flushed = world.pool.flush();
    cloned.join();
    target.write(0, &filled(1, 7)).unwrap();
    assert!(flushed.and_then(|()| target.sync(true)).is_err(), "its name is in a directory that nobody syncs");
    failure.lock().unwrap().take().unwrap().sprung();
    drop(others);
}

/// Syncs a volume that nobody else holds.
type SyncIt = fn(&World, Arc<Volume>) -> bool;

const SYNCS: [SyncIt; 2] = [|world, _volume| world.pool.flush().is_ok(), |_world, volume| volume.sync(true).is_ok()];

fn is_map(call: &Call<'_>) -> bool {
    let (Call::Sync(path) | Call::Write(path)) = call else { return false };
    path.extension().is_some_and(|extension| extension == "map")
}

/// While a sync is under way nothing counts as written since; a volume that was closed then was not kept, and when the
/// sync failed, nobody knew of what had been written to it, nor that the sync had failed.
#[test]
fn what_is_closed_during_a_sync_that_fails_is_not_forgotten() {
    for sync in SYNCS {
        for errno in [libc::EIO, libc::ENOSPC] {
            let world = World::new();
            let source = world.create_with("source", &filled(2, 1));
            let clone = world.clone_of(&source, "clone");
            world.pool.flush().unwrap();
            clone.open_handle(true);
            clone.write(0, &filled(1, 7)).unwrap();
            let guest = clone.clone();
            let closed = world.hooks.fail_meanwhile(is_map, errno, move || guest.close_handle(true));
            assert!(!sync(&world, clone));
            closed.sprung();
            let clone = world.volume("clone");
            assert!(read(&clone, 0, 4096) == filled(1, 7), "what was written is gone");
            assert_eq!(clone.sync(true).is_ok(), errno == libc::ENOSPC);
        }
    }
}

#[test]
fn a_failed_sync_of_a_file_that_is_closed_meanwhile_is_not_forgotten() {
    for sync in SYNCS {
        let world = World::new();
        let file = world.create_with("file", &filled(2, 1));
        file.open_handle(true);
        let guest = file.clone();
        let data = |call: &Call<'_>| matches!(call, Call::Sync(path) if *path == Path::new("file"));
        let closed = world.hooks.fail_meanwhile(data, libc::EIO, move || guest.close_handle(true));
        assert!(!sync(&world, file));
        closed.sprung();
        assert!(world.volume("file").sync(true).is_err(), "a sync after the failure calls the lost bytes durable");
    }
}

/// A clone that was synced by whoever made it, and not by the pool, was kept with its descriptor for good.
#[test]
fn a_clone_that_was_synced_is_not_kept() {
    let world = World::new();
    let source = world.create_with("source", &filled(2, 1));
    let clone = world.clone_of(&source, "clone");
    clone.sync(false).unwrap();
    world.pool.flush().unwrap();
    let kept = Arc::downgrade(&clone);
    drop(clone);
    assert!(kept.upgrade().is_none());
}

fn of_the_tree(call: &Call<'_>) -> bool {
    matches!(call, Call::SyncDir(path) if path.as_os_str().is_empty())
}

/// The directory in which a stub, or a finished file, has taken the place of the other could not be synced: a sync after
/// that must make good for it, also once nobody has held the volume for a while.
#[test]
fn a_directory_that_could_not_be_synced_is_owed_until_it_is() {
    for finish in [false, true] {
        let world = World::new();
        let source = world.create_with("source", &filled(2, 1));
        let clone = world.clone_of(&source, "clone");
        clone.write(0, &filled(2, 7)).unwrap();
        // From here on the pool keeps neither of them.
        world.pool.flush().unwrap();
        let failure = world.hooks.fail(of_the_tree, libc::EIO);
        let name = if finish {
            assert!(world.pool.finish(&clone).is_err());
            "clone"
        } else {
            assert!(source.write(0, &filled(1, 7)).is_err());
            "source"
        };
        failure.sprung();
        drop((source, clone));
        let again = world.hooks.fail(of_the_tree, libc::EIO);
        let flushed = world.pool.flush();
        let volume = world.volume(name);
        volume.write(0, &filled(1, 8)).unwrap();
        assert!(flushed.and_then(|()| volume.sync(true)).is_err(), "nobody syncs the directory of {name}");
        again.sprung();
        world.pool.flush().unwrap();
    }
}
