//! The end of deepening, while the volume is in use.

use clonefs::pool::Finished;

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
