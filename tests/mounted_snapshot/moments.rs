//! A snapshot is one moment of its volume, or of several, for as long as it is there; removing one costs no other.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};

use clonefs::protocol::{SNAPSHOT, VolumeState};

use crate::fixture::{BLOCK, clean, names, ok, overwrite, place, snapshot};
use crate::support::{Backing, Pool, clonefs, errno, noise, on, on_each_filesystem, set_xattr, wait_until};

#[test]
fn a_snapshot_shows_the_moment_and_nothing_that_is_written_later() {
    on_each_filesystem(|pool| {
        let mut bytes = noise(1, 20 * BLOCK + 77);
        pool.write("vm.img", &bytes);
        pool.clone("vm.img", "clone.img");
        fs::create_dir(pool.at("dir")).unwrap();
        pool.write("dir/empty.img", b"");
        let mut shown = Vec::new();
        for round in 0..4u64 {
            for volume in ["vm.img", "clone.img", "dir/empty.img"] {
                let name = format!("{volume}@{round}");
                ok(pool, &["snapshot", "create", &name]);
                shown.push((name, pool.read(volume)));
                overwrite(pool, volume, round as usize * 3000, &noise(round + 9, 5000));
            }
            overwrite(pool, "vm.img", bytes.len(), b"more");
            bytes = pool.read("vm.img");
        }
        let check = |pool: &Pool| {
            for (name, bytes) in &shown {
                assert!(snapshot(pool, name) == *bytes, "{name}");
                assert_eq!(fs::metadata(place(pool, name)).unwrap().len(), bytes.len() as u64, "{name}");
            }
        };
        check(pool);
        pool.crash("deepen=manual");
        check(pool);
        // Reached by name, not listed.
        let listed: Vec<_> = fs::read_dir(pool.root()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!listed.contains(&".snapshots".into()) && listed.len() == 3, "{listed:?}");
        assert_eq!(fs::read_dir(pool.at(".snapshots")).unwrap().count(), 9);
        assert_eq!(fs::read_dir(pool.at(".snapshots/dir")).unwrap().count(), 4);
        assert_eq!(pool.mounted().status().overlays, 3);
        // Whatever becomes of the volumes.
        for volume in ["vm.img", "clone.img", "dir/empty.img"] {
            pool.deepen(volume);
        }
        check(pool);
        clean(pool);
        check(pool);
    });
}

#[test]
fn nobody_can_change_a_snapshot() {
    on(&[Backing::Ext4], |pool| {
        pool.write("vm.img", &noise(1, 3 * BLOCK));
        ok(pool, &["snapshot", "create", "vm.img@s"]);
        let path = place(pool, "vm.img@s");
        assert_eq!(errno(File::options().write(true).open(&path)), libc::EROFS);
        assert_eq!(errno(File::options().append(true).open(&path)), libc::EROFS);
        assert_eq!(errno(File::options().write(true).truncate(true).open(&path)), libc::EROFS);
        assert_eq!(errno(fs::set_permissions(&path, PermissionsExt::from_mode(0o777))), libc::EROFS);
        assert_eq!(errno(chown(&path, Some(1), None)), libc::EROFS);
        assert_eq!(errno(set_xattr(&path, "user.x", b"1")), libc::EROFS);
        assert_eq!(errno(set_xattr(&path, SNAPSHOT, b"{\"action\":\"create\",\"name\":\"x\"}")), libc::EROFS);
        assert_eq!(errno(fs::hard_link(&path, pool.at("link"))), libc::EROFS);
        assert_eq!(errno(fs::rename(&path, pool.at("moved"))), libc::EXDEV);
        assert_eq!(errno(fs::rename(pool.at("vm.img"), place(pool, "x@y"))), libc::EXDEV);
        assert_eq!(errno(File::create(place(pool, "new"))), libc::EROFS);
        assert_eq!(errno(fs::create_dir(place(pool, "new"))), libc::EROFS);
        assert_eq!(errno(File::create(pool.at(".snapshots"))), libc::EISDIR);
        assert_eq!(errno(fs::create_dir(pool.at(".snapshots"))), libc::EEXIST);
        assert_eq!(errno(fs::rename(pool.at("vm.img"), pool.at(".snapshots"))), libc::EISDIR);
        assert_eq!(errno(fs::set_permissions(place(pool, ""), PermissionsExt::from_mode(0o777))), libc::EROFS);
        assert_eq!(errno(fs::metadata(place(pool, "vm.img"))), libc::ENOENT);
        assert_eq!(errno(fs::metadata(place(pool, ".clonefs"))), libc::ENOENT);
        assert_eq!(errno(fs::metadata(place(pool, ".snapshots"))), libc::ENOENT);
        assert!(snapshot(pool, "vm.img@s") == noise(1, 3 * BLOCK));
        // Whoever reads it goes on after it was removed.
        let open = File::open(&path).unwrap();
        overwrite(pool, "vm.img", 0, &noise(2, BLOCK));
        ok(pool, &["snapshot", "remove", "vm.img@s"]);
        assert_eq!(errno(fs::metadata(&path)), libc::ENOENT);
        pool.deepen("vm.img");
        let mut bytes = vec![0; 3 * BLOCK];
        open.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == noise(1, 3 * BLOCK));
        drop(open);
        clean(pool);
    });
}

#[test]
fn a_clone_of_a_snapshot_is_a_file_like_any_other() {
    on(&[Backing::Ext4, Backing::Xfs], |pool| {
        let path = pool.write("vm.img", &noise(1, 9 * BLOCK));
        fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        chown(&path, Some(1234), Some(99)).unwrap();
        for round in 1..4 {
            ok(pool, &["snapshot", "create", &format!("vm.img@{round}")]);
            overwrite(pool, "vm.img", round * BLOCK, &noise(7, BLOCK));
        }
        let expect = snapshot(pool, "vm.img@2");
        ok(pool, &["clone", "vm.img@2", "clone.img"]);
        fs::create_dir(pool.at("into")).unwrap();
        ok(pool, &["clone", "vm.img@2", "vm.img@3", "into/"]);
        ok(pool, &["clone", "--group", "vm.img@1", "vm.img", "group"]);
        ok(pool, &["clone", "vm.img@2"]);
        fs::copy(place(pool, "vm.img@2"), pool.at("copied")).unwrap();
        ok(pool, &["export", "vm.img@2", "exported", "--format", "raw"]);
        let meta = fs::metadata(pool.at("clone.img")).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o640, 1234, 99));
        assert_eq!(pool.info("clone.img").origin.as_deref(), Some("vm.img@2"));
        for name in ["clone.img", "into/vm.img@2", "vm.img@2-clone", "copied", "exported"] {
            assert!(pool.read(name) == expect, "{name}");
        }
        overwrite(pool, "clone.img", 0, b"written");
        assert!(snapshot(pool, "vm.img@2") == expect);
        // It needs nothing else in the end.
        pool.deepen("clone.img");
        ok(pool, &["snapshot", "remove", "vm.img@1", "vm.img@2", "vm.img@3"]);
        assert!(pool.read("clone.img")[7..] == expect[7..]);
        assert!(pool.read("into/vm.img@2") == expect);
        clean(pool);
    });
}

#[test]
fn removing_one_in_the_middle_is_immediate_and_its_space_comes_back() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        pool.mount("deepen=auto");
        pool.write("vm.img", &noise(1, 64 * BLOCK));
        for round in 0..6 {
            ok(pool, &["snapshot", "create", &format!("vm.img@{round}")]);
            overwrite(pool, "vm.img", round * 8 * BLOCK, &noise(round as u64, 8 * BLOCK));
        }
        let kept = [snapshot(pool, "vm.img@0"), snapshot(pool, "vm.img@5")];
        let now = pool.read("vm.img");
        ok(pool, &["snapshot", "remove", "vm.img@2"]);
        // The name is free at once.
        ok(pool, &["snapshot", "create", "vm.img@2"]);
        for round in 1..5 {
            ok(pool, &["snapshot", "rm", &format!("vm.img@{round}")]);
        }
        assert_eq!(names(pool), ["vm.img@0", "vm.img@5"]);
        wait_until(|| pool.mounted().status().layers == 2);
        assert!([snapshot(pool, "vm.img@0"), snapshot(pool, "vm.img@5")] == kept);
        ok(pool, &["snapshot", "remove", "vm.img@0", "vm.img@5"]);
        // With nobody else to read it, the volume becomes an ordinary file again.
        wait_until(|| pool.info("vm.img").state == VolumeState::Independent && pool.mounted().status().layers == 0);
        assert!(pool.read("vm.img") == now && fs::read(pool.below("vm.img")).unwrap() == now);
        assert_eq!(fs::read_dir(pool.below(".clonefs/snapshots")).unwrap().count(), 0);
        clean(pool);
    });
}

#[test]
fn snapshots_of_one_command_are_of_one_moment() {
    // A long run sets it to 1,000.
    let rounds: usize = std::env::var("CLONEFS_GROUPS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    on(&[Backing::Ext4], |pool| {
        fs::create_dir_all(pool.at("lab/sub")).unwrap();
        let files = ["lab/a", "lab/sub/b", "lab/c"];
        files.iter().for_each(|file| drop(pool.write(file, &[0; BLOCK])));
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let open: Vec<File> =
                    files.iter().map(|file| File::options().write(true).open(pool.at(file)).unwrap()).collect();
                for number in 1u64.. {
                    open.iter().for_each(|file| file.write_all_at(&number.to_le_bytes(), 0).unwrap());
                    if stop.load(std::sync::atomic::Ordering::Relaxed) {
                        return;
                    }
                }
            });
            for round in 0..rounds {
                ok(pool, &["snapshot", "create", "-r", &format!("lab@{round}")]);
                let stamp = |file: &&str| {
                    let bytes = snapshot(pool, &format!("{file}@{round}"));
                    u64::from_le_bytes(bytes[..8].try_into().unwrap())
                };
                let stamps: Vec<u64> = files.iter().map(stamp).collect();
                assert!(stamps.windows(2).all(|s| s[0] >= s[1]) && stamps[2] + 1 >= stamps[0], "{stamps:?}");
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            writer.join().unwrap();
        });
        assert_eq!(names(pool).len(), 3 * rounds);
        clean(pool);
        assert_eq!(names(pool).len(), 3 * rounds);
    });
}

#[test]
fn a_lost_record_of_a_snapshot_costs_that_one_alone() {
    on(&[Backing::Ext4], |pool| {
        pool.write("vm.img", &noise(1, 4 * BLOCK));
        ok(pool, &["snapshot", "create", "vm.img@one"]);
        overwrite(pool, "vm.img", 0, &noise(2, BLOCK));
        ok(pool, &["snapshot", "create", "vm.img@two"]);
        let (one, now) = (snapshot(pool, "vm.img@one"), pool.read("vm.img"));
        pool.unmount();
        let catalogue = pool.below(".clonefs/catalogue");
        let text = fs::read_to_string(&catalogue).unwrap();
        let damaged: String =
            text.lines().map(|l| if l.contains("\"two\"") { "xx\n".into() } else { format!("{l}\n") }).collect();
        assert_ne!(text, damaged);
        fs::write(&catalogue, damaged).unwrap();
        clonefs([OsStr::new("check"), pool.root().as_os_str(), OsStr::new("--repair")]);
        pool.mount("deepen=manual");
        assert_eq!(names(pool), ["vm.img@one"]);
        assert!(snapshot(pool, "vm.img@one") == one && pool.read("vm.img") == now);
        ok(pool, &["snapshot", "rollback", "vm.img@one"]);
        assert!(pool.read("vm.img") == one);
        clean(pool);
    });
}
