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

fn sequences() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(ops::some(), 1..40).prop_map(|parts| parts.concat())
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
    let outcome = runner.run(&sequences(), |ops| run(&ops));
    println!("model: {} sequences, {} steps", cases(), STEPS.load(Ordering::Relaxed));
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

/// A copy of a whole file by ranges is a clone, and can go back to what it was as one.
#[test]
fn a_file_that_was_copied_by_ranges_goes_back_to_what_was_copied() {
    let write = |name, offset, len| Op::Write { name, offset, len, byte: 1 };
    let copy = |from, to, piece| Op::CopyByPieces { from, to, piece, skip: 0, preset_size: false };
    let all = Op::CopyRange { from: 0, to: 1, offset: 0, to_offset: 0, len: 1 << 20 };
    run(&[Op::Create(0), write(0, 61072, 70000), copy(0, 5, 131_072), write(5, 0, 5000), Op::Reset(5)]).unwrap();
    run(&[Op::Create(0), write(0, 0, 200_000), Op::Create(1), all, write(1, 0, 5000), Op::Reset(1)]).unwrap();
}
