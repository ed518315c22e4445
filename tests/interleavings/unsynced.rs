//! What was written and not synced when the daemon is killed.

use std::path::Path;
use std::sync::Arc;

use clonefs::engine::io::Fs;
use clonefs::engine::layer::unsynced::{self, Change, Unsynced};
use clonefs::engine::store::UNSYNCED;
use clonefs::units::Id;

use crate::hooks::Call;
use crate::world::{BLOCK, World, filled, read};

/// Length of the log, 0 if there is none.
fn length(fs: &dyn Fs) -> u64 {
    fs.stat(Path::new(UNSYNCED)).map_or(0, |stat| stat.size)
}

/// Only the death of the daemon is survived, and only where it died: another place can hold older data.
#[test]
fn unsynced_writes_survive_a_kill_in_the_pool_itself_and_nowhere_else() {
    let world = World::new();
    let source = world.create_with("source", &filled(8, 1));
    let clone = world.clone_of(&source, "clone");
    clone.sync(false).unwrap();
    clone.write(5 * BLOCK + 7, &[9; 100]).unwrap();
    clone.write(9 * BLOCK, &[8; 10]).unwrap();
    let all = read(&clone, 0, 1 << 20);
    assert_eq!(all.len() as u64, 9 * BLOCK + 10);
    let copy = world.killed();
    assert!(read(&copy.volume("clone"), 0, 1 << 20) == filled(8, 1), "a copy of the pool has what was synced");
    drop((source, clone));
    let world = world.reopened();
    assert!(read(&world.volume("clone"), 0, 1 << 20) == all);
    assert_eq!(length(world.fs.as_ref()), 0, "it is all in the maps");
    // Shrinking and growing, and a kill again.
    let clone = world.volume("clone");
    clone.write(2 * BLOCK, &filled(1, 4)).unwrap();
    clone.set_size(2 * BLOCK + 5).unwrap();
    clone.set_size(9 * BLOCK).unwrap();
    let all = read(&clone, 0, 1 << 20);
    drop(clone);
    let world = world.reopened();
    assert!(read(&world.volume("clone"), 0, 1 << 20) == all);
}

/// Blocks of a layer that was frozen by a clone before anything of it was synced.
#[test]
fn unsynced_writes_below_a_clone_survive_a_kill() {
    let world = World::new();
    let source = world.create_with("source", &filled(8, 1));
    let middle = world.clone_of(&source, "middle");
    middle.write(3 * BLOCK, &filled(1, 7)).unwrap();
    let top = world.clone_of(&middle, "top");
    top.write(4 * BLOCK, &filled(1, 6)).unwrap();
    let (in_middle, in_top) = (read(&middle, 0, 1 << 20), read(&top, 0, 1 << 20));
    drop((source, middle, top));
    let world = world.reopened();
    assert!(read(&world.volume("middle"), 0, 1 << 20) == in_middle);
    assert!(read(&world.volume("top"), 0, 1 << 20) == in_top);
}

/// A change that could not be noted, in a log that could not be removed, would be undone by what was noted before it.
#[test]
fn nothing_is_made_durable_beside_a_log_that_is_not_the_last_word() {
    let world = World::new();
    let source = world.create_with("source", &filled(8, 1));
    let clone = world.clone_of(&source, "clone");
    clone.write(9 * BLOCK, &filled(1, 2)).unwrap();
    let unnoted = world.hooks.fail(|call| matches!(call, Call::Write(path) if path.ends_with("unsynced")), libc::EIO);
    clone.write(11 * BLOCK, &filled(1, 3)).unwrap();
    unnoted.sprung();
    clone.sync(false).unwrap();
    assert_eq!(length(world.fs.as_ref()), 0, "it counts for nothing");
    let all = read(&clone, 0, 1 << 20);
    drop((source, clone));
    assert!(read(&world.reopened().volume("clone"), 0, 1 << 20) == all);
}

#[test]
fn an_orderly_end_leaves_no_log() {
    let world = World::new();
    let source = world.create_with("source", &filled(8, 1));
    world.clone_of(&source, "clone").write(0, &[1]).unwrap();
    drop(source);
    assert!(length(world.fs.as_ref()) > 0);
    assert_eq!(length(world.remounted().fs.as_ref()), 0);
}

#[test]
fn a_log_that_is_dropped_from_stays_short_and_keeps_the_rest() {
    let world = World::new();
    world.clone_of(&world.create_with("source", &filled(1, 1)), "clone");
    let log = Arc::new(Unsynced::new(world.fs.clone()));
    let mut kept = 0;
    for n in 0..300_000_u64 {
        if n % 1_000 == 0 {
            log.drop_before(kept);
            kept = log.position();
        }
        log.note_with(Id(n % 3), || Change::Present(n, n + 1));
    }
    assert!(length(world.fs.as_ref()) <= 2 << 20, "{}", length(world.fs.as_ref()));
    let found = unsynced::read(world.fs.as_ref()).unwrap();
    let mut blocks: Vec<u32> = found.values().flat_map(|changes| changes.present.iter()).collect();
    blocks.sort_unstable();
    // What was noted after the last position that was dropped, and nothing else.
    assert_eq!(blocks, (298_000..300_000).collect::<Vec<u32>>());
}

#[test]
fn a_damaged_log_is_never_replayed_in_part() {
    let world = World::new();
    world.clone_of(&world.create_with("source", &filled(1, 1)), "clone");
    let log = Unsynced::new(world.fs.clone());
    let changes = [Change::Extent(4096, 1), Change::Present(0, 3), Change::Absent(1, 2), Change::Extent(8192, 1)];
    for change in changes {
        log.note_with(Id(5), || change);
    }
    let whole = unsynced::read(world.fs.as_ref()).unwrap().remove(&Id(5)).unwrap();
    assert_eq!((whole.present.iter().collect::<Vec<_>>(), whole.extent), (vec![0], Some((8192, 1))));
    let path = world.root().join(UNSYNCED);
    let sound = std::fs::read(&path).unwrap();
    // The last four bytes of the header mean nothing.
    for at in (0..sound.len()).filter(|at| !(28..32).contains(at)) {
        let mut bytes = sound.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bytes).unwrap();
        let found = unsynced::read(world.fs.as_ref()).unwrap();
        // The last record can be one that the kill cut short.
        let last = at >= sound.len() - 32;
        assert_eq!(found.is_empty(), !last, "byte {at}");
        assert!(found.values().all(|changes| changes.extent == Some((4096, 1))), "byte {at}");
    }
}

/// A file that grows with every write notes its size each time; that must not cost a set of all blocks beyond it.
#[test]
fn a_hundred_thousand_sizes_are_read_at_once() {
    let world = World::new();
    world.clone_of(&world.create_with("source", &filled(1, 1)), "clone");
    let log = Unsynced::new(world.fs.clone());
    for n in 1..=100_000 {
        log.note_with(Id(5), || Change::Present(n - 1, n));
        log.note_with(Id(5), || Change::Extent(n * BLOCK, 1));
    }
    log.note_with(Id(5), || Change::Extent(10 * BLOCK, 1));
    log.note_with(Id(5), || Change::Extent(50_000 * BLOCK, 1));
    log.note_with(Id(5), || Change::Present(70, 71));
    let found = unsynced::read(world.fs.as_ref()).unwrap().remove(&Id(5)).unwrap();
    let before = (5..100).collect();
    assert_eq!(found.over(&before), (0..10).chain([70]).collect());
    assert_eq!(found.extent, Some((50_000 * BLOCK, 1)));
    assert!(found.absent.is_empty(), "no set of what is beyond");
}
