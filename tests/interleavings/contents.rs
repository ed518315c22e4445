//! What writes, truncates and punches leave in a volume.

use std::sync::Arc;

use clonefs::engine::volume::Volume;

use crate::hooks::Call;
use crate::world::{BLOCK, World, filled, read};

/// Of a range with no whole block in it, but with a boundary, only the first block was looked at: where that one read
/// as zeros anyway, the part in the second block kept its bytes.
#[test]
fn zeroing_across_one_block_boundary_zeroes_both_sides() {
    for mode in [libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE] {
        for written in [1..2, 2..3, 1..3] {
            let world = World::new();
            let source = world.create_with("source", &filled(1, 1));
            let clone = world.clone_grown(&source, "clone", 3 * BLOCK);
            clone.write(written.start * BLOCK, &filled(written.end - written.start, 9)).unwrap();
            let mut expect = read(&clone, 0, 3 * 4096);
            clone.allocate(mode | libc::FALLOC_FL_KEEP_SIZE, 2 * BLOCK - 96, 200).unwrap();
            expect[8096..8296].fill(0);
            assert!(read(&clone, 0, 3 * 4096) == expect, "mode {mode:#x}, blocks {written:?} written");
        }
    }
}

/// Nobody's close had the volume kept until its size was durable: it was forgotten with the last reference.
#[test]
fn a_truncate_by_path_is_kept_though_nobody_has_the_volume_open() {
    let world = World::new();
    let source = world.create_with("source", &filled(1, 1));
    let clone = world.clone_of(&source, "clone");
    world.pool.flush().unwrap();
    drop(clone);
    world.volume("clone").set_size(5 * BLOCK).unwrap();
    assert_eq!(world.volume("clone").size().unwrap(), 5 * BLOCK);
}

/// The write marked the volume dirty before its bytes were written, the sync took the mark away, and the new size came
/// after that: the last close found nothing to keep.
#[test]
fn an_append_that_meets_a_sync_is_kept_at_the_last_close() {
    let world = World::new();
    let source = world.create_with("source", &[1; 100]);
    let clone = world.clone_of(&source, "clone");
    clone.open_handle(true);
    clone.write(0, &[2; 100]).unwrap();
    world.pool.flush().unwrap();
    let other = clone.clone();
    let sync = world.hooks.meanwhile(|call| matches!(call, Call::Write(_)), move || other.sync(true).unwrap());
    clone.write(100, &[3; 50]).unwrap();
    sync.sprung();
    world.pool.flush().unwrap();
    clone.close_handle(true);
    drop(clone);
    let clone = world.volume("clone");
    assert_eq!(clone.size().unwrap(), 150);
    assert_eq!(read(&clone, 100, 50), [3; 50]);
}

/// The last block was cut to the new size before the record of the shrink had failed.
#[test]
fn a_shrink_that_fails_changes_neither_size_nor_bytes() {
    let world = World::new();
    let source = world.create_with("source", &filled(2, 1));
    let clone = world.clone_of(&source, "clone");
    world.pool.flush().unwrap();
    // Makes the map, so that what fails is the record.
    clone.write(BLOCK, &filled(1, 2)).unwrap();
    clone.sync(true).unwrap();
    let map = |call: &Call<'_>| matches!(call, Call::Write(path) if path.extension().is_some_and(|e| e == "map"));
    let full = world.hooks.fail(map, libc::ENOSPC);
    let error = clone.set_size(100).unwrap_err();
    full.sprung();
    assert_eq!(error.errno(), libc::ENOSPC);
    assert_eq!(clone.size().unwrap(), 2 * BLOCK);
    assert!(read(&clone, 0, 8192) == [filled(1, 1), filled(1, 2)].concat());
}

/// The data file was longer than the recorded size, and a clone that was made larger showed what it held there.
#[test]
fn bytes_beyond_the_end_never_show_in_a_larger_clone() {
    let world = World::new();
    let source = world.create_with("source", &[1; 100]);
    let clone = world.clone_of(&source, "clone");
    clone.write(0, &[2; 100]).unwrap();
    clone.sync(true).unwrap();
    clone.write(100, &[3; 50]).unwrap();
    let world = world.killed();
    let clone = world.volume("clone");
    assert_eq!(clone.size().unwrap(), 100, "the append was never synced");
    let larger = world.clone_grown(&clone, "larger", BLOCK);
    assert!(read(&larger, 0, 4096) == [vec![2; 100], vec![0; 3996]].concat());
}

fn is_data(call: &Call<'_>) -> bool {
    matches!(call, Call::Write(path) if path.extension().is_some_and(|e| e == "data"))
}

/// A clone of 100 bytes, all its own, that had an append which failed halfway.
fn with_failed_append(world: &World) -> Arc<Volume> {
    let source = world.create_with("source", &[1; 100]);
    let clone = world.clone_of(&source, "clone");
    clone.write(0, &[2; 100]).unwrap();
    let torn = world.hooks.tear(is_data, libc::ENOSPC);
    assert_eq!(clone.write(100, &[9; 3000]).unwrap_err().errno(), libc::ENOSPC);
    torn.sprung();
    assert_eq!(clone.size().unwrap(), 100);
    clone
}

/// What had been written of it showed when the volume grew.
#[test]
fn nothing_of_an_append_that_failed_shows_later() {
    let grow: [fn(&Arc<Volume>); 3] = [
        |clone| clone.set_size(2 * BLOCK).unwrap(),
        |clone| clone.write(BLOCK, &filled(1, 0)).unwrap(),
        |clone| clone.allocate(0, 0, 2 * BLOCK).unwrap(),
    ];
    for grow in grow {
        let world = World::new();
        let clone = with_failed_append(&world);
        grow(&clone);
        assert!(read(&clone, 0, 8192) == [vec![2; 100], vec![0; 8092]].concat());
    }
}

/// The heir is larger: what the file of the layer that it took over had beyond its end became the heir's.
#[test]
fn nothing_of_an_append_that_failed_is_adopted() {
    let world = World::new();
    let clone = with_failed_append(&world);
    let heir = world.clone_grown(&clone, "heir", 2 * BLOCK);
    drop(clone);
    world.remove("clone");
    let expect = [vec![2; 100], vec![0; 8092]].concat();
    assert!(read(&heir, 0, 8192) == expect);
    assert!(world.pool.adopt_parent(&heir, &|| false).unwrap());
    assert!(read(&heir, 0, 8192) == expect);
}

/// The last block was punched as a whole, as nothing was behind the end when that was looked at.
#[test]
fn an_append_that_meets_a_punch_up_to_the_end_stays() {
    for (mode, own) in
        [(libc::FALLOC_FL_PUNCH_HOLE, true), (libc::FALLOC_FL_PUNCH_HOLE, false), (libc::FALLOC_FL_ZERO_RANGE, true)]
    {
        let world = World::new();
        let source = world.create_with("source", &[1; 100]);
        let clone = world.clone_of(&source, "clone");
        if own {
            clone.write(0, &[2; 100]).unwrap();
        }
        let other = clone.clone();
        let append = move || other.write(100, &[3; 50]).unwrap();
        let append = world.hooks.meanwhile(|call| matches!(call, Call::Allocate(_)), append);
        clone.allocate(mode | libc::FALLOC_FL_KEEP_SIZE, 0, 100).unwrap();
        append.sprung();
        assert!(read(&clone, 0, 4096) == [vec![0; 100], vec![3; 50]].concat(), "{mode:#x} {own}");
    }
}
