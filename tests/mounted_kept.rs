//! What a clone, and the work behind it, leave as they were: that the source can be written, the times of its directory, the
//! policies of its place, and the time of everybody else.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clonefs::engine::io::{Fs, HostFs, Open};
use clonefs::protocol::{RESET, VolumeState};
use support::{Backing, Pool, clonefs, errno, noise, on, ready, run, set_xattr, wait_until};

fn write_at(path: &Path, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    File::options().write(true).open(path)?.write_all_at(bytes, offset)
}

/// Sets attributes until not even the smallest one fits.
fn fill_attributes(path: &Path) {
    for (number, size) in (1..4096).rev().step_by(4).chain((1..64).rev()).enumerate() {
        let _ = set_xattr(path, format!("user.a{number}"), &vec![b'x'; size]);
    }
    assert_eq!(errno(set_xattr(path, "user.one-more", &[b'x'; 60])), libc::ENOSPC);
}

fn changed(bytes: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

/// The stub that takes a source's place has one attribute more than the source, for which ext4 had no room.
#[test]
fn a_source_whose_attributes_leave_no_room_can_be_written() {
    on(&[Backing::Ext4], |pool| {
        let bytes = noise(1, 300_000);
        for name in ["before", "after"] {
            let path = pool.write(name, &bytes);
            if name == "before" {
                fill_attributes(&path);
            }
            let clone = pool.at(format!("{name}-clone"));
            let made = clonefs([Path::new("clone"), &path, &clone]);
            assert!(name == "before" || made.status.success(), "{made:?}");
            if name == "after" {
                fill_attributes(&path);
            }
            write_at(&path, 5000, b"changed").unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(fs::read(&path).unwrap() == changed(&bytes, 5000, b"changed"), "{name}");
            assert!(!clone.exists() || fs::read(&clone).unwrap() == bytes, "{name}");
        }
        // What has lost its reader's eye is an ordinary file, and can be cloned as one when there is room again.
        assert_eq!(pool.info("after").state, VolumeState::Independent);
        assert_eq!(pool.info("after-clone").state, VolumeState::Overlay);
        pool.crash("deepen=manual");
        assert!(pool.read("after") == changed(&bytes, 5000, b"changed") && pool.read("after-clone") == bytes);
        pool.deepen("after-clone");
        pool.unmount();
        assert!(fs::read(pool.at("after-clone")).unwrap() == bytes);
    });
}

fn chattr(how: &[&str], path: &Path) {
    run(Command::new("chattr").args(how).arg(path)).success();
}

#[test]
fn a_source_in_a_directory_that_takes_no_other_file_can_be_written() {
    on(&[Backing::Ext4, Backing::Xfs, Backing::Btrfs], |pool| {
        let bytes = noise(2, 300_000);
        fs::create_dir(pool.at("d")).unwrap();
        for name in ["d/a", "d/open", "d/late"] {
            pool.write(name, &bytes);
        }
        pool.clone("d/a", "clone");
        // The log of events of a pool that was just made is read after the next start.
        pool.unmount();
        pool.mount("deepen=manual");
        chattr(&["+a"], &pool.below("d"));
        write_at(&pool.at("d/a"), 0, b"in place").unwrap();
        // Cloned now, with and without a writer: copies, and it is said why.
        let writer = File::options().write(true).open(pool.at("d/open")).unwrap();
        for name in ["open", "late"] {
            pool.clone(&format!("d/{name}"), name);
            assert_eq!(pool.info(name).state, VolumeState::Independent);
        }
        writer.write_all_at(b"in place", 0).unwrap();
        let events = clonefs([Path::new("events"), pool.root()]).success().stdout;
        assert!(events.contains("chattr +a"), "{events}");
        // A clone in it could never be finished: refused, and nothing has changed.
        let refused = clonefs([Path::new("clone"), &pool.at("clone"), &pool.at("d/clone")]);
        assert!(!refused.status.success(), "{refused:?}");
        chattr(&["-a"], &pool.below("d"));
        let now = changed(&bytes, 0, b"in place");
        assert!(pool.read("d/a") == now && pool.read("d/open") == now && pool.read("d/late") == bytes);
        assert!(["clone", "open", "late"].iter().all(|name| pool.read(name) == bytes));
        assert_eq!(
            (pool.info("d/a").state, pool.info("clone").state),
            (VolumeState::Independent, VolumeState::Overlay)
        );
        pool.clone("d/a", "again");
        pool.deepen("clone");
        clonefs([Path::new("check"), pool.root()]).success();
        assert!(pool.read("again") == now && fs::read(pool.below("clone")).unwrap() == bytes);
    });
}

/// A second name that was given without clonefs would keep the old file when the first one gets a stub.
#[test]
fn a_source_that_got_a_second_name_without_clonefs_stays_one_file() {
    on(&[Backing::Ext4, Backing::Xfs], |pool| {
        let bytes = noise(3, 200_000);
        pool.write("a", &bytes);
        pool.clone("a", "clone");
        fs::hard_link(pool.below("a"), pool.below("b")).unwrap();
        write_at(&pool.at("a"), 9, b"seen by both").unwrap();
        let now = changed(&bytes, 9, b"seen by both");
        assert!(pool.read("a") == now && pool.read("b") == now && pool.read("clone") == bytes);
    });
}

/// On xfs: ext4 with projects needs a kernel with quotas of the second format.
#[test]
fn clones_in_a_directory_with_a_project_are_as_anywhere() {
    if !ready() {
        return;
    }
    for root_has_one in [false, true] {
        eprintln!("-- the root has a project: {root_has_one}");
        let mut pool = Pool::unmounted(Backing::Xfs);
        if root_has_one {
            chattr(&["-p", "5", "+P"], pool.root());
        }
        fs::create_dir(pool.at("tenant")).unwrap();
        chattr(&["-p", "7", "+P"], &pool.at("tenant"));
        pool.mount("deepen=manual");
        let bytes = noise(4, 2 << 20);
        pool.write("tenant/a", &bytes);
        pool.clone("tenant/a", "tenant/b");
        clonefs([Path::new("snapshot"), Path::new("create"), &pool.at("tenant/a@one")]).success();
        write_at(&pool.at("tenant/a"), 9000, b"source").unwrap();
        write_at(&pool.at("tenant/b"), 5000, b"clone").unwrap();
        pool.deepen("tenant/b");
        pool.unmount();
        assert!(fs::read(pool.at("tenant/b")).unwrap() == changed(&bytes, 5000, b"clone"));
        let tenant = HostFs::open_dir(&pool.at("tenant")).unwrap();
        for name in ["a", "b"] {
            assert_eq!(tenant.open(Path::new(name), Open::Read).unwrap().project().unwrap(), 7, "{name}");
        }
        pool.mount("deepen=manual");
        assert!(pool.read("tenant/a") == changed(&bytes, 9000, b"source"));
    }
}

#[test]
fn background_work_leaves_the_times_of_directories_until_somebody_changes_one() {
    on(&Backing::ALL, |pool| {
        fs::create_dir(pool.at("d")).unwrap();
        pool.write("d/a", &noise(5, 300_000));
        pool.clone("d/a", "d/b");
        let times = || {
            let status = fs::metadata(pool.at("d")).unwrap();
            (status.mtime(), status.mtime_nsec(), status.ctime(), status.ctime_nsec())
        };
        // Longer than the kernel remembers attributes.
        let later = || std::thread::sleep(Duration::from_millis(1200));
        later();
        let before = times();
        write_at(&pool.at("d/a"), 9, b"x").unwrap();
        later();
        assert_eq!(times(), before, "after a freeze");
        pool.deepen("d/b");
        later();
        assert_eq!(times(), before, "after a finish");
        let below = fs::metadata(pool.below("d")).unwrap();
        assert!((below.mtime(), below.mtime_nsec()) > (before.0, before.1), "nobody has put times back");
        fs::write(pool.at("d/new"), b"").unwrap();
        let after = times();
        assert!(after > before, "a name that somebody makes is seen");
        later();
        assert_eq!(times(), after);
        pool.clone("d/new", "d/new-clone");
        later();
        let made = times();
        fs::write(pool.below("d/without-clonefs"), b"").unwrap();
        later();
        assert!(times() > made, "a name made without clonefs is seen");
    });
}

/// Each reset of an open file had a thread to itself for two seconds, of the eight that all users share.
#[test]
fn resets_of_open_files_hold_nobody_else_up() {
    on(&[Backing::Ext4], |pool| {
        pool.write("base", &noise(6, 100_000));
        let names: Vec<String> = (0..64).map(|number| format!("clone{number}")).collect();
        names.iter().for_each(|name| pool.clone("base", name));
        let over = AtomicBool::new(false);
        let open: Vec<File> = names.iter().map(|name| File::open(pool.at(name)).unwrap()).collect();
        let slowest = std::thread::scope(|scope| {
            for name in &names {
                let (over, path) = (&over, pool.at(name));
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        assert_eq!(errno(set_xattr(&path, RESET, b"origin")), libc::EBUSY);
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(300));
            let mut slowest = Duration::ZERO;
            for number in 0..4 {
                let begun = Instant::now();
                pool.clone("base", &format!("other{number}"));
                fs::hard_link(pool.at(format!("other{number}")), pool.at(format!("link{number}"))).unwrap();
                slowest = slowest.max(begun.elapsed());
            }
            over.store(true, Ordering::Relaxed);
            slowest
        });
        drop(open);
        assert!(slowest < Duration::from_secs(2), "a clone and a link took {slowest:?}");
        // And one that is closed in time is carried out.
        wait_until(|| set_xattr(&pool.at(&names[0]), RESET, b"origin").is_ok());
    });
}

#[test]
fn policies_find_what_came_by_a_rename_or_as_a_tree() {
    on(&[Backing::Ext4], |pool| {
        ["golden", "old", "later"].iter().for_each(|name| fs::create_dir(pool.at(name)).unwrap());
        pool.write("golden/f", &noise(7, 100_000));
        pool.clone("golden/f", "old/f");
        pool.clone("golden/f", "later/f");
        fs::rename(pool.at("old"), pool.at("moved")).unwrap();
        clonefs([Path::new("clone"), Path::new("-r"), &pool.at("golden"), &pool.at("tree")]).success();
        pool.unmount();
        // Without clonefs: where it is now is known once somebody has come to it.
        fs::rename(pool.at("later"), pool.at("unseen")).unwrap();
        pool.mount("deepen=manual");
        for directory in ["moved", "tree", "unseen"] {
            let [policy, set, deepen, auto] = ["policy", "set", "--deepen", "auto"].map(Path::new);
            clonefs([policy, set, &pool.at(directory), deepen, auto]).success();
        }
        for directory in ["moved", "tree"] {
            wait_until(|| pool.info(&format!("{directory}/f")).state == VolumeState::Independent);
        }
        pool.read("unseen/f");
        wait_until(|| pool.info("unseen/f").state == VolumeState::Independent);
    });
}

#[test]
fn who_waits_beside_a_snapshot_is_told_of_it() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        pool.mount("deepen=auto");
        pool.write("vm.img", &noise(8, 100_000));
        clonefs([Path::new("snapshot"), Path::new("create"), &pool.at("vm.img@monday")]).success();
        write_at(&pool.at("vm.img"), 0, b"x").unwrap();
        let begun = Instant::now();
        let waited = clonefs([Path::new("wait"), pool.root()]);
        assert!(!waited.status.success() && waited.stderr.contains("snapshot \"monday\""), "{waited:?}");
        assert!(begun.elapsed() < Duration::from_secs(10));
        clonefs([Path::new("deepen"), Path::new("--wait"), &pool.at("vm.img")]).success();
        assert_eq!(pool.info("vm.img").state, VolumeState::Independent);
    });
}

/// The last of many waited for a fixed time only, although the others were being worked on all the while.
#[test]
fn who_waits_for_the_last_of_many_waits_as_long_as_work_goes_on() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        pool.mount("deepen=auto,rate=1M");
        for number in 0..24 {
            pool.write(&format!("base{number}"), &noise(number, 1 << 20));
            pool.clone(&format!("base{number}"), &format!("clone{number}"));
        }
        // Longer than anybody waits for a pool in which nothing is done.
        let begun = Instant::now();
        clonefs([Path::new("wait"), pool.root()]).success();
        assert!(begun.elapsed() > Duration::from_secs(16), "it has to take longer to show anything");
        assert_eq!(pool.info("clone23").state, VolumeState::Independent);
    });
}
