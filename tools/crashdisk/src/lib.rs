//! A recorder disk: what a power cut could have left, at any moment, on a real filesystem.
//!
//! [`record`] runs a workload on a filesystem whose disk is ours ([`disk`]) and logs all that reaches it ([`log`]).
//! [`replay`] draws power cuts from the log ([`states`]), mounts what each one leaves and lets the caller verify it.
//! [`workload`] and [`oracle`] are a protocol for the two ends: announced changes of stamped sectors ([`stamp`]), and
//! what may be found of them. [`selftest`] plants bugs in a small store ([`ministore`]) and sees them found; [`pool`] does all
//! this with clonefs itself.
//!
//! Everything here needs root, FUSE and loop devices.

pub mod boot;
pub mod disk;
pub mod files;
pub mod image;
pub mod log;
pub mod ministore;
pub mod oracle;
pub mod pool;
pub mod record;
pub mod replay;
pub mod selftest;
pub mod stamp;
pub mod states;
pub mod sys;
pub mod workload;
