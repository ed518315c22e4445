//! The sequences of `tests/model` through a real mount, against the same oracle, with what only a mount has besides:
//! stores through a mapping, files without a name that are still open, several handles, and the daemon's own background
//! work going on meanwhile. After every step all files are compared: contents, sizes, and that holes read as zeros.
//!
//! `CLONEFS_MOUNTED_CASES` sets the number of sequences; `scripts/soak mounted-model` runs many.

#[path = "../model/ops.rs"]
mod ops;
#[path = "../model/oracle.rs"]
mod oracle;
#[path = "../support/mod.rs"]
mod support;

mod life;
mod world;

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use oracle::Outcome;
use support::{Backing, Pool};
use world::World;

/// Steps that were compared with the model.
static STEPS: AtomicU64 = AtomicU64::new(0);

/// A step of a sequence.
#[derive(Clone, Debug)]
pub enum Step {
    /// What is done below FUSE too.
    Op(ops::Op),
    /// Stores at an offset so many bytes through a shared mapping, as far as the file goes. Nobody syncs it.
    Store(ops::Name, u64, u64, u8),
    /// Closes the handle that the other steps use.
    Close(ops::Name),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let store = (0u8..6, 0u64..400 << 10, 1u64..70_000, 1u8..255)
        .prop_map(|(name, offset, len, byte)| Step::Store(name, offset, len, byte));
    let step = prop_oneof![2 => store, 1 => (0u8..6).prop_map(Step::Close)].prop_map(|step| vec![step]);
    let some = prop_oneof![16 => ops::some().prop_map(|ops| ops.into_iter().map(Step::Op).collect()), 3 => step];
    prop::collection::vec(some, 1..40).prop_map(|parts: Vec<Vec<Step>>| parts.concat())
}

fn cases() -> u32 {
    std::env::var("CLONEFS_MOUNTED_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(160)
}

fn run(pool: &mut Pool, steps: &[Step]) -> Outcome {
    let mut world = World::new(pool)?;
    for (number, step) in steps.iter().enumerate() {
        world.apply(step).map_err(|why| format!("step {number}, {step:?}: {why}"))?;
        world.compare(number % 2 == 0).map_err(|why| format!("after step {number}, {step:?}: {why}"))?;
        STEPS.fetch_add(1, Ordering::Relaxed);
    }
    world.drain().map_err(|why| format!("deepening everything at the end: {why}"))
}

fn on(kind: Backing, options: &'static str, cases: u32) {
    if !support::ready() || cases == 0 {
        return;
    }
    let config =
        ProptestConfig { cases, max_shrink_iters: 300, failure_persistence: None, ..ProptestConfig::default() };
    let pool = RefCell::new(Pool::unmounted(kind));
    pool.borrow_mut().mount(options);
    world::OPTIONS.set(options);
    let outcome =
        TestRunner::new(config).run(&steps(), |steps| run(&mut pool.borrow_mut(), &steps).map_err(TestCaseError::fail));
    println!("mounted model on {kind:?}: {cases} sequences, {} steps", STEPS.load(Ordering::Relaxed));
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(pool.borrow().mounted().status().troubles.is_empty());
}

#[test]
fn files_of_a_mount_hold_what_was_written_to_them() {
    // Deepened only when a step asks for it, and all the time.
    on(Backing::Ext4, "deepen=manual", cases().div_ceil(2));
    on(Backing::Xfs, "", cases() / 2);
}
