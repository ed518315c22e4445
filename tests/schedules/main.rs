//! Interleavings of threads, searched by shuttle: at every lock and every call to the (simulated) disk it decides which
//! thread goes on. Only in builds with `--cfg shuttle`; `scripts/test schedules` makes one.
//!
//! `CLONEFS_SCHEDULES` sets how many schedules of each kind are tried, `CLONEFS_SCHEDULE` holds one that failed, as it was
//! printed, and tries that.

#![cfg(shuttle)]

#[path = "../common/mod.rs"]
mod common;

mod history;
mod programs;
mod scene;
