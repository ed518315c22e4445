//! A sync that failed once: the kernel tells it one caller, and then takes the lost pages for clean.

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
