//! clonefs survives power cuts, and would not without any one of the steps that it takes for that.

use std::path::{Path, PathBuf};
use std::process::Command;

use crashdisk::log::Log;
use crashdisk::pool::{Bug, Effort, judge, record_mounted, record_planted};
use crashdisk::replay::Replay;
use crashdisk::sys;

/// Whether this machine lets us mount, and then a mount name space for it. Where it does not, says so; CI must let us.
fn can_mount() -> bool {
    if let Some(missing) = sys::missing() {
        assert!(std::env::var_os("CI").is_none(), "{missing} is missing");
        eprintln!("SKIPPED: {missing} is missing");
        return false;
    }
    sys::isolate().unwrap();
    true
}

/// The program of the workspace beside this one, built if need be.
fn clonefs() -> PathBuf {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "--package", "clonefs", "--bin", "clonefs"]);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success(), "clonefs cannot be built");
    Path::new(env!("CARGO_BIN_EXE_crashdisk")).with_file_name("clonefs")
}

fn seed() -> u64 {
    u64::from(fastrand::u32(..))
}

/// A log that shows something is worth keeping.
fn kept(log: &Path, name: &str) -> PathBuf {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.log"));
    std::fs::copy(log, &place).map_or_else(|_| log.to_path_buf(), |_| place)
}

fn survives_power_cuts(filesystem: &str) {
    if !can_mount() {
        return;
    }
    let (dir, program, seed) = (tempfile::tempdir().unwrap(), clonefs(), seed());
    let path = dir.path().join("log");
    record_mounted(filesystem, &program, seed, Effort::default(), &path).unwrap();
    let log = Log::open(&path).unwrap();
    // Of some states a second cut, during recovery, is looked at as well.
    let single = Replay { states: 80, seed, ..Replay::default() };
    let nested = Replay { states: 10, nested: 1, seed, ..Replay::default() };
    let mut checked = 0;
    for replay in [single, nested] {
        let outcome = judge(&log, &replay, Some(&program)).unwrap();
        checked += outcome.checked;
        let wrong = &outcome.violations;
        assert!(wrong.is_empty(), "seed {seed}, log {}: {wrong:#?}", kept(&path, filesystem).display());
    }
    assert_eq!(checked, 100);
}

#[test]
fn clonefs_survives_power_cuts_on_ext4() {
    survives_power_cuts("ext4");
}

#[test]
fn clonefs_survives_power_cuts_on_xfs() {
    survives_power_cuts("xfs");
}

#[test]
fn clonefs_survives_power_cuts_on_btrfs() {
    survives_power_cuts("btrfs");
}

/// Below FUSE the sound code survives as well, so what is seen with a bug is the bug's.
#[test]
fn nothing_is_seen_where_no_bug_is_planted() {
    if !can_mount() {
        return;
    }
    let (dir, seed) = (tempfile::tempdir().unwrap(), seed());
    let path = dir.path().join("log");
    for filesystem in ["ext4", "btrfs"] {
        record_planted(filesystem, Bug::None, seed, Effort::default(), &path).unwrap();
        let replay = Replay { states: 40, seed, ..Replay::default() };
        let wrong = judge(&Log::open(&path).unwrap(), &replay, None).unwrap().violations;
        assert!(wrong.is_empty(), "{filesystem}, seed {seed}, log {}: {wrong:#?}", kept(&path, "none").display());
    }
}

/// Each where it shows best; a recording may happen not to come to it, so there are several.
fn is_seen(bug: Bug, filesystem: &str) {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    for _ in 0..6 {
        let seed = seed();
        record_planted(filesystem, bug, seed, Effort::default(), &path).unwrap();
        let replay = Replay { states: 100, first: true, seed, ..Replay::default() };
        if !judge(&Log::open(&path).unwrap(), &replay, None).unwrap().violations.is_empty() {
            return;
        }
    }
    panic!("{} was not seen on {filesystem}", bug.name());
}

#[test]
fn a_bit_before_its_data_is_seen() {
    is_seen(Bug::BitBeforeData, "ext4");
}

#[test]
fn directories_that_are_not_synced_are_seen() {
    is_seen(Bug::NoDirSync, "btrfs");
}

#[test]
fn temporary_files_that_are_not_synced_are_seen() {
    is_seen(Bug::NoTempSync, "xfs");
}

#[test]
fn punches_that_come_late_are_seen() {
    is_seen(Bug::DelayedPunch, "xfs");
}

#[test]
fn deepening_over_new_data_is_seen() {
    is_seen(Bug::DeepenOverwrites, "btrfs");
}
