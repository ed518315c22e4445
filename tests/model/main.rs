//! Random sequences of operations against a plain in-memory model, below FUSE. After every step all volumes are
//! compared: contents, sizes, and that holes read as zeros.

mod life;
mod ops;
mod oracle;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use ops::Op;
use world::World;

/// Steps that were compared with the model.
static STEPS: AtomicU64 = AtomicU64::new(0);

fn cases() -> u32 {
    std::env::var("CLONEFS_MODEL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(400)
}

fn run(ops: &[Op]) -> Result<(), TestCaseError> {
    let mut world = World::new();
    for (step, op) in ops.iter().enumerate() {
        world.apply(op).map_err(|why| TestCaseError::fail(format!("step {step}, {op:?}: {why}")))?;
        world.compare().map_err(|why| TestCaseError::fail(format!("after step {step}, {op:?}: {why}")))?;
        STEPS.fetch_add(1, Ordering::Relaxed);
    }
    world.drain().map_err(|why| TestCaseError::fail(format!("deepening everything at the end: {why}")))
}

#[test]
fn volumes_hold_what_was_written_to_them() {
    let config = ProptestConfig {
        cases: cases(),
        max_shrink_iters: 20_000,
        source_file: Some(file!()),
        ..ProptestConfig::default()
    };
    let mut runner = TestRunner::new(config);
    let outcome = runner.run(&prop::collection::vec(ops::any(), 1..40), |ops| run(&ops));
    println!("model: {} sequences, {} steps", cases(), STEPS.load(Ordering::Relaxed));
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}
