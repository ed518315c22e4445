//! Loading volumes and layers from a slow disk: nobody waits for it but whoever needs what is being read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::hooks::Call;
use crate::world::{BLOCK, World, filled, read};

fn opens_a_map(call: &Call<'_>) -> bool {
    matches!(call, Call::Open(path) if path.extension().is_some_and(|e| e == "map"))
}

fn opens_layer_data(call: &Call<'_>) -> bool {
    matches!(call, Call::Open(path) if path.extension().is_some_and(|e| e == "data"))
}

/// Two clones with blocks of their own, nothing of them in memory.
fn two_clones() -> World {
    let world = World::new();
    let source = world.create_with("source", &filled(4, 1));
    for (name, byte) in [("one", 2), ("other", 3)] {
        let clone = world.clone_of(&source, name);
        clone.write(BLOCK, &filled(1, byte)).unwrap();
        clone.sync(false).unwrap();
    }
    drop(source);
    world.remounted()
}

/// All volumes waited for the maps of whichever was opened first.
#[test]
fn an_open_that_reads_its_map_slowly_holds_no_other_up() {
    let world = two_clones();
    let (pool, fs) = (world.pool.clone(), world.fs.clone());
    let stalled = world.hooks.stall_for(opens_a_map, move || {
        // What others do meanwhile: look at a file, open one, clone one, delete one.
        let path = |name: &'static str| std::path::Path::new(name);
        let stat = fs.stat(path("other")).unwrap();
        assert_eq!(pool.describe(path("other"), stat).unwrap().size, 4 * BLOCK);
        let other = pool.volume(stat.key, path("other")).unwrap();
        assert!(read(&other, 0, (2 * BLOCK) as usize) == [filled(1, 1), filled(1, 3)].concat());
        let file = fs.open(path("third"), clonefs::engine::io::Open::CreateNew(0o600)).unwrap();
        let third = pool.created(path("third"), file).unwrap();
        pool.clone_volume(&other, &third, &Default::default()).unwrap();
        third.write(0, &[9]).unwrap();
        let key = third.key();
        drop(third);
        fs.unlink(path("third")).unwrap();
        pool.removed(key);
    });
    let one = world.volume("one");
    stalled.sprung();
    assert!(read(&one, 0, (2 * BLOCK) as usize) == [filled(1, 1), filled(1, 2)].concat());
}

/// Whoever needs the volume that is being loaded waits for it and gets that one, not a second one.
#[test]
fn a_volume_is_loaded_once_however_many_ask_for_it() {
    let world = Arc::new(two_clones());
    let given = Arc::new(AtomicUsize::new(0));
    let (asking, counted) = (world.clone(), given.clone());
    let waits = world.hooks.meanwhile(opens_a_map, move || {
        let one = asking.volume("one");
        counted.store(Arc::as_ptr(&one) as usize, Ordering::Release);
    });
    let one = world.volume("one");
    waits.sprung();
    assert_eq!(given.load(Ordering::Acquire), Arc::as_ptr(&one) as usize);
}

/// A load that fails leaves its slot free, and whoever waited for it loads the volume himself.
#[test]
fn a_load_that_fails_leaves_it_to_whoever_waited() {
    let world = Arc::new(two_clones());
    let asking = world.clone();
    let fails = world.hooks.fail_meanwhile(opens_a_map, libc::ENOMEM, move || {
        let one = asking.volume("one");
        assert!(read(&one, 0, (2 * BLOCK) as usize) == [filled(1, 1), filled(1, 2)].concat());
    });
    let stat = world.fs.stat(std::path::Path::new("one")).unwrap();
    assert!(world.pool.volume(stat.key, std::path::Path::new("one")).is_err());
    fails.sprung();
    let one = world.volume("one");
    assert!(read(&one, 0, (2 * BLOCK) as usize) == [filled(1, 1), filled(1, 2)].concat());
}

/// A frozen layer adopts its parent while a volume above it is being loaded: the loader has read a record that is out of
/// date when it comes to the layer.
#[test]
fn a_chain_that_is_adopted_while_it_is_loaded_is_read_as_it_is_then() {
    let world = World::new();
    let source = world.create_with("source", &filled(4, 1));
    let first = world.clone_of(&source, "first");
    drop(source);
    world.remove("source");
    first.write(0, &filled(1, 2)).unwrap();
    let second = world.clone_of(&first, "second");
    let third = world.clone_of(&first, "third");
    second.write(BLOCK, &filled(1, 3)).unwrap();
    third.write(BLOCK, &filled(1, 4)).unwrap();
    drop((first, second, third));
    world.remove("first");
    let world = world.remounted();
    let layers: Vec<_> = {
        let catalogue = world.pool.store().catalogue();
        catalogue.layers().map(|layer| (layer.id, layer.parent)).collect()
    };
    let heir = layers.iter().find(|(_, parent)| parent.is_some()).expect("a chain of two frozen layers").0;
    let pool = world.pool.clone();
    // The lowest layer is loaded first: there the loader stands when the one above it takes that file over.
    let adopts = world.hooks.meanwhile(opens_layer_data, move || {
        let heir = pool.frozen_layer(heir).unwrap().expect("it is in the catalogue");
        pool.adopt_frozen(&heir, &|| false).unwrap();
    });
    let third = world.volume("third");
    // Whichever came first, the other has waited for it.
    adopts.join();
    let expected = [filled(1, 2), filled(1, 4), filled(2, 1)].concat();
    assert!(read(&third, 0, expected.len()) == expected);
    let second = world.volume("second");
    assert!(read(&second, BLOCK, BLOCK as usize) == filled(1, 3));
}
