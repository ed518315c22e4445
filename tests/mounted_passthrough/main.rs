//! Opens that go past the daemon (`-o passthrough=...`): they never meet one that the kernel refuses beside them, and no
//! clone misses a write that went past.

mod clones;
mod fixture;
mod opens;
mod snapshots;
#[path = "../support/mod.rs"]
mod support;
