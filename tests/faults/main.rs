//! Every call to the disk that can fail does, once for each kind of failure and each operation; what follows must be an
//! error or the truth, and nothing that was promised may be lost.

#[path = "../common/mod.rs"]
mod common;

mod after;
mod full;
mod modes;
mod names;
mod restart;
mod run;
mod scenarios;
mod view;

use modes::Mode;

/// Runs every operation with this failure at each of its calls.
fn every_call(modes: &[Mode]) {
    judge(&run::all(modes), 1000);
}

/// Nothing may be wrong, and enough must have failed for that to mean something.
fn judge(tally: &run::Tally, least: u64) {
    println!("{tally}");
    tally.violations.iter().take(run::shown()).for_each(|violation| println!("{violation}\n"));
    assert!(tally.violations.is_empty(), "{} wrong outcomes", tally.violations.len());
    assert!(tally.failed > least, "only {} calls failed", tally.failed);
}

#[test]
fn a_full_disk_stops_writers_and_nobody_else() {
    judge(&full::all(), 100);
}

#[test]
fn an_input_output_error_at_any_call() {
    every_call(&[Mode::Once(libc::EIO), Mode::Lasting(libc::EIO)]);
}

#[test]
fn no_space_or_no_quota_at_any_call() {
    every_call(&[Mode::Once(libc::ENOSPC), Mode::Once(libc::EDQUOT), Mode::Short(libc::ENOSPC)]);
}

#[test]
fn no_memory_at_any_call() {
    every_call(&[Mode::Once(libc::ENOMEM), Mode::Short(libc::EIO)]);
}

#[test]
fn a_killed_daemon_at_any_call() {
    every_call(&[Mode::Kill]);
}

#[test]
fn operations_on_names_do_all_or_nothing_whatever_call_fails() {
    let once = [libc::EIO, libc::ENOSPC, libc::EDQUOT, libc::ENOMEM].map(Mode::Once);
    let others = [Mode::Lasting(libc::EIO), Mode::Short(libc::EIO), Mode::Kill];
    judge(&names::all(&[&once[..], &others].concat()), 1000);
}

#[test]
fn after_a_failed_sync_and_a_new_start_syncs_count_again() {
    judge(&restart::all(), 20);
}
