//! The end of deepening, while the volume is in use.

use std::sync::atomic::{AtomicUsize, Ordering};

use clonefs::engine::pool::Finished;

use crate::hooks::Call;
use crate::world::{BLOCK, World, filled, read};

/// Blocks that neither the clone nor its source has were looked up, and then punched, with no lock on them: a write
/// between the two was punched away.
#[test]
fn a_write_while_a_volume_finishes_is_kept() {
    let world = World::new();
    let source = world.create_with("source", &filled(1, 1));
    let clone = world.clone_grown(&source, "clone", 100 * BLOCK);
    clone.write(0, &filled(1, 2)).unwrap();
    let guest = clone.clone();
    let punching =
        |call: &Call<'_>| matches!(call, Call::Allocate(path) if path.extension().is_none_or(|e| e != "map"));
    let write = world.hooks.meanwhile(punching, move || guest.write(50 * BLOCK, &filled(1, 7)).unwrap());
    assert_eq!(world.pool.finish(&clone).unwrap(), Finished::Plain);
    write.sprung();
    assert!(read(&clone, 50 * BLOCK, 4096) == filled(1, 7));
}

/// The compactor came by while a source was being frozen: its record was there and its stub not yet in place, so the file
/// at its path was another one, and deepening it was called failed for good.
#[test]
fn a_volume_whose_stub_is_not_in_place_yet_is_not_taken_for_lost() {
    let world = World::new();
    let source = world.create_with("source", &filled(2, 1));
    let _clone = world.clone_of(&source, "clone");
    let pool = world.pool.clone();
    let look = move || {
        let ids: Vec<_> = pool.store().catalogue().volumes().filter(|record| record.source).map(|r| r.id).collect();
        assert_eq!(ids.len(), 1, "its record is there");
        assert!(pool.volume_by_id(ids[0]).expect("no error").is_none(), "it is not a volume yet");
    };
    // The stub is synced first, then the journal, which was made under this directory too.
    let journal = |call: &Call<'_>| {
        static SYNCS: AtomicUsize = AtomicUsize::new(0);
        matches!(call, Call::Sync(path) if path.starts_with(".clonefs/tmp"))
            && SYNCS.fetch_add(1, Ordering::SeqCst) == 1
    };
    let looked = world.hooks.meanwhile(journal, look);
    source.write(0, &filled(1, 2)).unwrap();
    looked.sprung();
}
