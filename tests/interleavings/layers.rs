//! Maps of layers, and chains of them.

use std::path::Path;
use std::sync::Arc;

use clonefs::engine::io::{Open, Whence};
use clonefs::engine::layer::{Layer, close_idle};
use clonefs::engine::pool::CloneOptions;
use clonefs::engine::store::{LAYERS, STUBS, data_path, map_path};
use clonefs::engine::volume::fill::Filling;
use clonefs::engine::volume::{State, Volume};
use clonefs::units::Id;

use crate::hooks::Call;
use crate::world::{BLOCK, World, filled, read};

/// A map that has grown beyond 256 KiB is rewritten; this is just before.
const NEARLY_DUE: u64 = 255 << 10;

/// A clone that is large enough to make its map long by many small syncs.
fn large_clone(world: &World) -> Arc<Volume> {
    let source = world.create_with("source", &filled(1, 1));
    let clone = world.clone_grown(&source, "clone", 20_000 * BLOCK);
    clone.open_handle(true);
    clone
}

/// Writes and syncs block after block from `first` on, while `more` says so; returns the block after the last.
fn sync_blocks(clone: &Arc<Volume>, first: u64, more: impl Fn() -> bool) -> u64 {
    let mut block = first;
    while more() {
        clone.write(block * BLOCK, &[3; 512]).unwrap();
        clone.sync(true).unwrap();
        block += 1;
        assert!(block < 19_000, "the map is never rewritten");
    }
    block
}

/// A write over present and absent blocks at once made all of them count as new, so that the rewrite of the map, which
/// leaves out what is not durable yet, left out blocks that were.
#[test]
fn a_rewrite_of_the_map_keeps_durable_blocks_that_are_written_again_meanwhile() {
    let world = World::new();
    let clone = large_clone(&world);
    let mut next = sync_blocks(&clone, 100, || world.maps_len() < NEARLY_DUE);
    // From here up to `end` all blocks are durable after the next sync, which meets a write over the last of them and
    // one more.
    let start = 19_100;
    clone.write(start * BLOCK, &filled(1, 7)).unwrap();
    clone.sync(true).unwrap();
    let mut end = start + 1;
    loop {
        let (len, guest) = (world.maps_len(), clone.clone());
        let write = world.hooks.meanwhile(
            |call| matches!(call, Call::Sync(_)),
            move || guest.write((end - 1) * BLOCK, &filled(2, 7)).unwrap(),
        );
        next = sync_blocks(&clone, next, || !write.is_sprung());
        write.sprung();
        if world.maps_len() < len {
            break;
        }
        end += 1;
    }
    let count = end - start;
    assert!(read(&world.killed().volume("clone"), start * BLOCK, (count * BLOCK) as usize) == filled(count, 7));
}

/// When the new map had its name, but the sync of the directory failed, the old one, which had no name any more, was
/// appended to until another rewrite could be made.
#[test]
fn what_is_synced_after_a_rewrite_of_the_map_that_failed_at_its_last_sync_is_durable() {
    let world = World::new();
    let clone = large_clone(&world);
    clone.write(0, &[3; 512]).unwrap();
    clone.sync(true).unwrap();
    let layers = |call: &Call<'_>| matches!(call, Call::SyncDir(path) if *path == Path::new(LAYERS));
    let unsynced = world.hooks.fail(layers, libc::EMFILE);
    sync_blocks(&clone, 100, || !unsynced.is_sprung());
    unsynced.sprung();
    let unmade = world.hooks.fail(|call| matches!(call, Call::Create), libc::EMFILE);
    clone.write(19_000 * BLOCK, &filled(1, 7)).unwrap();
    clone.sync(true).unwrap();
    unmade.lifted();
    assert!(read(&world.killed().volume("clone"), 19_000 * BLOCK, 4096) == filled(1, 7));
}

/// Each layer dropped its parent from within its own drop.
#[test]
fn a_chain_of_100_000_layers_is_dropped_without_a_stack_overflow() {
    let world = World::new();
    let mut top = None;
    for n in 1..=100_000 {
        top = Some(Layer::fresh(&world.fs, Id(n), top, BLOCK, 1));
    }
    drop(top);
}

/// The turn that takes checksums of an idle pool waited for itself, and everybody who asked for the pool's status for it.
#[test]
fn checksums_of_an_idle_pool_are_taken_and_nobody_waits_for_that() {
    let world = World::new();
    let pool = world.pool.clone();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send((pool.sum_turn(), pool.scrub_status().is_none())));
    let turn = receiver.recv_timeout(std::time::Duration::from_secs(60));
    assert_eq!(turn, Ok((false, true)), "it does not end");
}

/// The link that a freeze gives the file for a while was taken for a second name of the user's, and all bytes were copied,
/// with writes held up.
#[test]
fn a_clone_that_meets_the_freeze_of_another_one_is_no_copy() {
    let world = World::new();
    let source = world.create_with("source", &filled(2, 1));
    source.open_handle(true);
    let second = world.create("second");
    let (pool, from, to) = (world.pool.clone(), source.clone(), second.clone());
    let stubs = |call: &Call<'_>| matches!(call, Call::SyncDir(path) if *path == Path::new(STUBS));
    let meanwhile = world.hooks.meanwhile(stubs, move || {
        from.close_handle(true);
        pool.clone_volume(&from, &to, &CloneOptions::default()).unwrap();
    });
    let first = world.clone_of(&source, "first");
    meanwhile.sprung();
    for clone in [&first, &second] {
        assert!(matches!(&*clone.gate().read(), State::Overlay(_)));
        assert!(read(clone, 0, 8192) == filled(2, 1));
    }
}

/// A map of which nothing but its size is known yet, closed while its layer rested: where it could not be read again, an
/// empty one took its place.
#[test]
fn a_map_that_was_durable_is_never_made_anew() {
    for damaged in [false, true] {
        let world = World::new();
        world.clone_of(&world.create_with("source", &filled(1, 1)), "clone");
        let layer = Layer::fresh(&world.fs, Id(77), None, BLOCK, 1);
        layer.grow_size(2 * BLOCK);
        layer.flush().unwrap();
        layer.set_frozen(true);
        while close_idle() > 0 {}
        layer.set_frozen(false);
        let map = world.root().join(map_path(Id(77)));
        let mut bytes = std::fs::read(&map).unwrap();
        if damaged {
            bytes[0] ^= 1;
            std::fs::write(&map, &bytes).unwrap();
        }
        assert_eq!(layer.data_for_writing().is_err(), damaged);
        layer.grow_size(3 * BLOCK);
        assert_eq!(layer.flush().is_err(), damaged);
        let after = std::fs::read(&map).unwrap();
        assert!(after.starts_with(&bytes), "what was durable is still there");
        assert_eq!(after.len() == bytes.len(), damaged);
    }
}

/// The checksums of a layer that were half compared when it took its parent's file over were compared with that file
/// in the end: damage that was none.
#[test]
fn a_layer_that_adopts_while_it_is_compared_is_not_damaged() {
    const SIZE: u64 = 20_000 * BLOCK;
    for turns in 1..4 {
        let world = World::new();
        let source = world.create_with("source", &filled(1, 1));
        source.set_size(SIZE).unwrap();
        source.write(SIZE - BLOCK, &filled(1, 2)).unwrap();
        let middle = world.clone_of(&source, "middle");
        drop(source);
        world.remove("source");
        middle.write(0, &filled(1, 7)).unwrap();
        let leaves = [world.clone_of(&middle, "one"), world.clone_of(&middle, "two")];
        world.pool.begin_scrub();
        while world.pool.scrub_turn() {}
        world.pool.begin_scrub();
        for _ in 0..turns {
            assert!(world.pool.scrub_turn());
        }
        let heir = world.pool.store().catalogue().layers().find(|layer| layer.parent.is_some()).unwrap().id;
        let heir = world.pool.frozen_layer(heir).unwrap().unwrap();
        assert!(world.pool.adopt_frozen(&heir, &|| false).unwrap());
        while world.pool.scrub_turn() {}
        let status = world.pool.scrub_status().unwrap();
        assert!(status.damaged.is_empty(), "after {turns} turns: {:?}", status.damaged);
        for leaf in leaves {
            assert!(read(&leaf, 0, 4096) == filled(1, 7) && read(&leaf, SIZE - BLOCK, 4096) == filled(1, 2));
        }
    }
}

/// Where a disk had lost data, and a scrub had found that out, a hole was taken for zeros without a look at what the scrub
/// had found: deepening made them the clone's own, and who copies what is no hole left them out.
#[test]
fn a_hole_in_a_damaged_piece_is_not_zeros() {
    let world = World::new();
    let source = world.create_with("source", &filled(600, 1));
    let clone = world.clone_of(&source, "clone");
    source.write(0, &filled(1, 2)).unwrap();
    let scrub = || {
        world.pool.begin_scrub();
        while world.pool.scrub_turn() {}
        world.pool.scrub_status().unwrap().damaged.len()
    };
    assert_eq!(scrub(), 0);
    let layer = world.pool.store().catalogue().layers().next().unwrap().file;
    let file = world.fs.open(&data_path(layer), Open::Write).unwrap();
    // The first blocks of the second piece.
    let lost = 256 * BLOCK;
    file.allocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, lost, 10 * BLOCK).unwrap();
    assert_eq!(scrub(), 1);
    assert!(clone.read(lost, &mut [0; 512]).is_err());
    assert_eq!(clone.seek(lost, Whence::Data).unwrap(), lost, "who reads only data must hear of it");
    assert_eq!(clone.seek(lost, Whence::Hole).unwrap(), 600 * BLOCK);
    for trust_holes in [true, false] {
        let how = Filling { most: 16 << 20, share: false, trust_holes, allocate: false };
        let State::Overlay(overlay) = &*clone.gate().read() else { panic!("no overlay") };
        assert!(overlay.fill_absent(256, &how).is_err());
        assert!(!overlay.top.has(256));
    }
    assert!(clone.read(lost, &mut [0; 512]).is_err());
    assert!(read(&clone, 0, 4096) == filled(1, 1));
}
