//! Random sequences of operations against a plain in-memory model, below FUSE. After every step all volumes are
//! compared: contents, sizes, and that holes read as zeros.

mod ops;
mod world;

use proptest::prelude::*;

use ops::Op;
use world::World;

fn cases() -> u32 {
    std::env::var("CLONEFS_MODEL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(400)
}

fn run(ops: &[Op]) -> Result<(), TestCaseError> {
    let mut world = World::new();
    for (step, op) in ops.iter().enumerate() {
        world.apply(op).map_err(|why| TestCaseError::fail(format!("step {step}, {op:?}: {why}")))?;
        world.compare().map_err(|why| TestCaseError::fail(format!("after step {step}, {op:?}: {why}")))?;
    }
    world.drain().map_err(|why| TestCaseError::fail(format!("deepening everything at the end: {why}")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn volumes_hold_what_was_written_to_them(ops in prop::collection::vec(ops::any(), 1..40)) {
        run(&ops)?;
    }
}
