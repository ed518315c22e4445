//! What mounted tests need: filesystems to put a pool on, a mount that is always taken down, and small helpers.
//!
//! Include it with `mod support;`. Tests that cannot run here (no root, no FUSE, no loop devices) say SKIPPED, and fail
//! where `CI` is set: there nothing may be left out.

#![allow(dead_code, unused_imports, reason = "each test program uses a part of it")]

pub mod cli;
mod disk;
mod pool;
pub mod same;
mod sys;

pub use disk::{Backing, Disk};
pub use pool::{Done, Mount, Pool, clonefs, is_running, run, wait_until, when_let_go};
pub use sys::*;

/// Whether mounted tests can run. Use it as `if !support::ready() { return }`.
pub fn ready() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let missing = [
        (!root, "root"),
        (std::fs::File::options().read(true).write(true).open("/dev/fuse").is_err(), "FUSE (/dev/fuse)"),
        (std::fs::metadata("/dev/loop-control").is_err(), "loop devices"),
    ];
    let missing: Vec<&str> = missing.iter().filter(|(missing, _)| *missing).map(|(_, what)| *what).collect();
    if missing.is_empty() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "mounted tests need {}", missing.join(", "));
    eprintln!("SKIPPED: mounted tests need {}", missing.join(", "));
    false
}

/// Runs `test` on a new, empty pool on each kind of filesystem.
pub fn on_each_filesystem(test: impl Fn(&mut Pool)) {
    on(&Backing::ALL, test);
}

/// Runs `test` on a new, empty pool on each of these kinds.
pub fn on(kinds: &[Backing], test: impl Fn(&mut Pool)) {
    if !ready() {
        return;
    }
    for kind in kinds {
        eprintln!("-- {kind:?}");
        let mut pool = Pool::new(*kind);
        test(&mut pool);
    }
}

/// Bytes that look random and are the same each time.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}
