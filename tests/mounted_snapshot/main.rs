//! Snapshots, going back to them, and resetting clones, through the mount and the program.

mod fixture;
mod moments;
mod owners;
mod places;
mod resize;
mod rollback;
#[path = "../support/mod.rs"]
mod support;
