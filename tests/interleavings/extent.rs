//! The end of a volume: what is beyond it is absent, whatever was there before (E1 in docs/ordering.md).

use std::sync::Arc;

use clonefs::engine::layer::Layer;
use clonefs::engine::layer::unsynced::{self, Change, Unsynced};
use clonefs::engine::volume::Volume;
use clonefs::units::Id;

use crate::world::{BLOCK, World, filled, read};

/// A volume of 12 blocks that was cut from 40, and has adopted what it was read from before.
fn cut_and_adopted(way: &str) -> (World, Arc<Volume>) {
    let world = World::new();
    let volume = match way {
        "its source was removed" => {
            let source = world.create_with("source", &filled(40, 1));
            let volume = world.clone_of(&source, "volume");
            volume.set_size(12 * BLOCK).unwrap();
            drop(source);
            world.remove("source");
            volume
        }
        "its clone was removed" => {
            let volume = world.create_with("volume", &filled(40, 1));
            drop(world.clone_of(&volume, "clone"));
            volume.set_size(12 * BLOCK).unwrap();
            world.remove("clone");
            volume
        }
        "its snapshot was removed" => {
            let volume = world.create_with("volume", &filled(40, 1));
            let clone = world.clone_of(&volume, "clone");
            volume.write(0, &filled(40, 2)).unwrap();
            world.pool.create_snapshots(&[(volume.clone(), "volume".into())], "s", None).unwrap();
            volume.set_size(12 * BLOCK).unwrap();
            let id = world.pool.find_snapshot("volume".as_ref(), "s").unwrap();
            world.pool.remove_snapshot(id).unwrap();
            drop(clone);
            volume
        }
        "a part of it had been copied" => {
            let source = world.create_with("source", &filled(40, 1));
            let volume = world.clone_of(&source, "volume");
            volume.write(20 * BLOCK, &filled(20, 2)).unwrap();
            let clone = world.clone_of(&volume, "clone");
            volume.set_size(12 * BLOCK).unwrap();
            drop((source, clone));
            world.remove("clone");
            volume
        }
        other => unreachable!("{other}"),
    };
    world.pool.reap_dead().unwrap();
    assert!(world.pool.adopt_parent(&volume, &|| false).unwrap(), "{way}: it was not adopted");
    (world, volume)
}

const WAYS: [&str; 4] =
    ["its source was removed", "its clone was removed", "its snapshot was removed", "a part of it had been copied"];

/// Blocks beyond the end stayed present when a parent was adopted. A write that grew the volume found nothing absent, so
/// noted nothing; the log still had the smaller size, and after a kill that cut the synced blocks off.
#[test]
fn a_synced_growth_after_an_adoption_survives_a_kill() {
    for way in WAYS {
        let (world, volume) = cut_and_adopted(way);
        volume.write(12 * BLOCK, &filled(9, 7)).unwrap();
        volume.sync(false).unwrap();
        let all = read(&volume, 0, 1 << 20);
        assert_eq!(all.len() as u64, 21 * BLOCK);
        drop(volume);
        let world = world.reopened();
        assert!(read(&world.volume("volume"), 0, 1 << 20) == all, "{way}");
    }
}

/// The same without the sync, and with a growth by size: what was cut off stays zeros.
#[test]
fn what_was_cut_off_before_an_adoption_stays_zeros() {
    for way in WAYS {
        let (world, volume) = cut_and_adopted(way);
        volume.set_size(30 * BLOCK + 5).unwrap();
        volume.write(25 * BLOCK, &filled(1, 7)).unwrap();
        let expect = |volume: &Volume| {
            assert!(read(volume, 12 * BLOCK, 13 * 4096) == filled(13, 0), "{way}");
            assert!(read(volume, 25 * BLOCK, 4096) == filled(1, 7), "{way}");
            assert!(read(volume, 26 * BLOCK, 1 << 20) == [filled(4, 0), vec![0; 5]].concat(), "{way}");
        };
        expect(&volume);
        drop(volume);
        let world = world.reopened();
        expect(&world.volume("volume"));
    }
}

/// Blocks and size were noted one after the other, so the size that another's write noted in between cut the blocks off.
#[test]
fn two_that_append_at_a_time_lose_nothing() {
    for _ in 0..20 {
        let world = World::new();
        let source = world.create_with("source", &filled(2, 1));
        let volume = world.clone_of(&source, "volume");
        drop(source);
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let volume = &volume;
                scope.spawn(move || {
                    for block in 0..40 {
                        volume.write((2 + block * 4 + writer) * BLOCK, &filled(1, 7)).unwrap();
                    }
                });
            }
        });
        volume.sync(false).unwrap();
        drop(volume);
        let world = world.reopened();
        assert!(read(&world.volume("volume"), 2 * BLOCK, 1 << 20) == filled(160, 7));
    }
}

/// A map that says more than the volume has, as older versions left it: that counts for nothing when it grows.
#[test]
fn what_an_old_map_says_beyond_the_end_is_forgotten() {
    let world = World::new();
    let source = world.create_with("source", &filled(40, 1));
    let volume = world.clone_of(&source, "volume");
    volume.write(0, &filled(40, 2)).unwrap();
    volume.sync(false).unwrap();
    let id = world.pool.store().catalogue().volumes().next().unwrap().file;
    drop((source, volume));
    // The size alone is changed, as if what it says of blocks had been left.
    let (presence, scan) = clonefs::engine::layer::map::read(world.fs.as_ref(), id).unwrap().unwrap();
    assert_eq!(presence.present.len(), 40);
    let mut map = clonefs::engine::layer::map::Map::resume(&world.fs, id, &scan).unwrap();
    map.append(&clonefs::engine::layer::map::Delta { size: 12 * BLOCK, overlap: 12, ..Default::default() }).unwrap();
    map.sync().unwrap();
    drop(map);
    let world = world.remounted();
    let volume = world.volume("volume");
    assert!(read(&volume, 0, 1 << 20) == filled(12, 2));
    volume.set_size(20 * BLOCK).unwrap();
    volume.write(30 * BLOCK, &filled(1, 7)).unwrap();
    let all = read(&volume, 0, 1 << 20);
    assert!(all == [filled(12, 2), filled(18, 0), filled(1, 7)].concat());
    volume.sync(false).unwrap();
    drop(volume);
    let world = world.reopened();
    assert!(read(&world.volume("volume"), 0, 1 << 20) == all);
}

/// A block that the map has, that was made absent and present again before a flush, counted as one that the map does not
/// have: when it became absent once more the map was not told.
#[test]
fn a_block_that_comes_and_goes_between_two_flushes_is_absent_on_disk_too() {
    let world = World::new();
    drop(world.clone_of(&world.create_with("source", &filled(1, 1)), "clone"));
    let layer = Layer::fresh(&world.fs, Id(77), None, 10 * BLOCK, 0);
    layer.data_for_writing().unwrap();
    layer.mark(2, 6);
    layer.flush().unwrap();
    layer.clear(4, 5);
    layer.mark(4, 5);
    layer.clear(4, 5);
    layer.flush().unwrap();
    let (presence, _) = clonefs::engine::layer::map::read(world.fs.as_ref(), Id(77)).unwrap().unwrap();
    assert_eq!(presence.present.iter().collect::<Vec<_>>(), [2, 3, 5]);
}

/// A kill between the two notes of a write that grows a volume.
#[test]
fn blocks_that_were_noted_without_their_size_are_not_there() {
    let world = World::new();
    let source = world.create_with("source", &filled(4, 1));
    let volume = world.clone_of(&source, "volume");
    volume.write(0, &filled(1, 2)).unwrap();
    volume.sync(false).unwrap();
    let id = world.pool.store().catalogue().volumes().next().unwrap().file;
    let log = Unsynced::new(world.fs.clone());
    log.note_with(id, || Change::Present(8, 10));
    let data = world.fs.open(&clonefs::engine::store::data_path(id), clonefs::engine::io::Open::Write).unwrap();
    data.write_at(&filled(2, 9), 8 * BLOCK).unwrap();
    assert_eq!(unsynced::read(world.fs.as_ref()).unwrap()[&id].present.len(), 2);
    drop((source, volume, data));
    let world = world.reopened();
    let volume = world.volume("volume");
    assert_eq!(volume.size().unwrap(), 4 * BLOCK);
    volume.set_size(12 * BLOCK).unwrap();
    assert!(read(&volume, 4 * BLOCK, 1 << 20) == filled(8, 0));
    let (presence, _) = clonefs::engine::layer::map::read(world.fs.as_ref(), id).unwrap().unwrap();
    assert_eq!(presence.present.iter().collect::<Vec<_>>(), [0]);
}
