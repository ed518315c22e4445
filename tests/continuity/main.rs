//! Mounts that outlive their server: kills at chosen points and at random ones, under programs that must not notice.

mod fixture;
mod kills;
mod model;
mod once;
mod refused;
#[path = "../support/mod.rs"]
mod support;
