//! A sync that failed once: the kernel tells it one caller, and then takes the lost pages for clean.

use std::path::Path;

use crate::hooks::Call;
use crate::world::{BLOCK, World, filled};

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
