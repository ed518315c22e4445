//! The machine sees planted bugs on real filesystems, and nothing where there is none.

use clonefs::error::{Context, Error, Kind};
use crashdisk::files::Cloning;
use crashdisk::log::Log;
use crashdisk::ministore::Bug;
use crashdisk::oracle::History;
use crashdisk::record::Recording;
use crashdisk::replay::Replay;
use crashdisk::states::{Mode, Modes};
use crashdisk::workload::Workload;
use crashdisk::{selftest, sys};

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

fn planted_bugs_are_seen(filesystem: &str) {
    if !can_mount() {
        return;
    }
    let sound = Replay { states: 60, nested: 1, ..Replay::default() };
    let outcome = selftest::run(filesystem, Bug::None, &sound).unwrap();
    assert_eq!(outcome.checked, 120);
    assert!(outcome.violations.is_empty(), "the sound store: {:#?}", outcome.violations);
    for bug in Bug::ALL {
        if selftest::expected(filesystem, bug) {
            // The rarest of them breaks one state in ten.
            let replay = Replay { states: 400, first: true, ..Replay::default() };
            let outcome = selftest::run(filesystem, bug, &replay).unwrap();
            assert!(!outcome.violations.is_empty(), "{} was not seen in {} states", bug.name(), outcome.checked);
        }
    }
}

#[test]
fn planted_bugs_are_seen_on_ext4() {
    planted_bugs_are_seen("ext4");
}

#[test]
fn planted_bugs_are_seen_on_xfs() {
    planted_bugs_are_seen("xfs");
}

#[test]
fn planted_bugs_are_seen_on_btrfs() {
    planted_bugs_are_seen("btrfs");
}

/// Ordinary files on the bare filesystem keep the oracle's promises: what it demands is what filesystems give.
#[test]
fn files_on_a_bare_filesystem_satisfy_the_oracle() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for filesystem in ["ext4", "xfs", "btrfs"] {
        let log = dir.path().join(filesystem);
        Recording::new(filesystem)
            .run(&log, |site| {
                let mut work = Workload::new(site, &site.mnt, 1)?;
                for round in 0..12u64 {
                    let (a, b) = (format!("a{}", round % 3), format!("b{round}"));
                    work.create(&b, 64)?;
                    work.write(&b, 0, 40, false)?;
                    work.sync(&b)?;
                    work.write(&b, 8, 8, round % 2 == 0)?;
                    work.write_mapped(&b, 24, 3)?;
                    work.zero(&b, 16, 8, round % 2 == 0)?;
                    work.set_size(&b, 20)?;
                    work.set_size(&b, 64)?;
                    let source = work.volume(&b)?;
                    work.clone_volume(&source, &format!("{b}.copy"), 64, Cloning::default())?;
                    work.sync(&format!("{b}.copy"))?;
                    work.rename(&b, &a)?;
                    if round % 2 == 1 {
                        work.sync_names()?;
                    }
                    work.unlink(&format!("{b}.copy"))?;
                }
                Ok(())
            })
            .unwrap();
        let log = Log::open(&log).unwrap();
        let replay = Replay { states: 150, ..Replay::default() };
        let verify =
            |crash: &crashdisk::replay::Crash| History::read(crash.marks.iter().copied())?.check_dir(crash.mnt);
        let outcome = replay.run(&log, verify).unwrap();
        // A plain copy is not an atomic clone: until it is synced it may be half there. Everything else must hold.
        let real: Vec<_> = outcome.violations.iter().filter(|v| !v.found.contains(".copy")).collect();
        assert!(real.is_empty(), "{filesystem}: {real:#?}");
        assert_eq!(outcome.checked, 150);
    }
}

#[test]
fn the_same_log_and_seed_give_the_same_violations() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    Recording::new("ext4")
        .run(&path, |site| {
            for n in 0..40 {
                let name = site.mnt.join(format!("file{n}"));
                std::fs::write(&name, vec![7; 20_000]).context("write", &name)?;
                let marks = crashdisk::workload::Marks::new(site)?;
                // A lie for every second file: it was not synced.
                if n % 2 == 0 {
                    std::fs::File::open(&name).and_then(|f| f.sync_all()).context("sync", &name)?;
                }
                marks.say(&format!("file{n}"))?;
            }
            Ok(())
        })
        .unwrap();
    let log = Log::open(&path).unwrap();
    let verify = |crash: &crashdisk::replay::Crash| {
        let whole = |name: &&str| std::fs::read(crash.mnt.join(name)).is_ok_and(|bytes| bytes == vec![7; 20_000]);
        let lost: Vec<&str> = crash.marks.iter().copied().filter(|name| !whole(name)).collect();
        let even = |name: &&str| name[4..].parse::<u32>().unwrap() % 2 == 0;
        assert!(!lost.iter().any(even), "a file that was synced is lost");
        if lost.is_empty() { Ok(()) } else { Err(lost.join(" ")) }
    };
    let replay = Replay { states: 40, seed: 5, modes: Modes::Only(Mode::Subset), ..Replay::default() };
    let names = |replay: &Replay| -> Vec<String> {
        let violations = replay.run(&log, verify).unwrap().violations;
        violations.into_iter().map(|v| format!("{}: {}", v.name, v.found)).collect()
    };
    let all = names(&replay);
    assert!(!all.is_empty(), "the lies are seen");
    assert_eq!(all, names(&replay));
    let (id, _) = all[0].split_once(':').unwrap();
    assert_eq!(names(&Replay { only: Some(id.parse().unwrap()), ..replay }), all[..1]);
}

#[test]
fn a_workload_that_fails_leaves_no_log_to_replay() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let error = Recording::new("ext4").run(&path, |_| Err(Error::new(Kind::Busy, "do the work"))).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    assert_eq!(Log::open(&path).unwrap_err().kind(), Kind::Damaged);
}
