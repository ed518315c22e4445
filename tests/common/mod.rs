//! What the tests below FUSE share: a simulated backing store, names without a mount, and a pool on them beside a model
//! of what it must hold and of what a crash may leave.

#![allow(dead_code, reason = "each test uses a part of this")]

pub mod model;
pub mod names;
pub mod ops;
pub mod recover;
pub mod relatives;
pub mod rng;
pub mod served;
pub mod simfs;
pub mod world;
