//! Snapshots, going back to them, and resetting clones, through the mount and the program.

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use clonefs::door::{SNAPSHOT, VolumeState};
use support::{Backing, Pool, as_user, clonefs, errno, noise, on, on_each_filesystem, set_xattr, wait_until};

const BLOCK: usize = 4096;

/// Runs `clonefs WORDS...`, with paths relative to the pool.
fn command(pool: &Pool, words: &[&str]) -> support::Done {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_clonefs"));
    support::run(command.args(words).current_dir(pool.root()))
}

fn ok(pool: &Pool, words: &[&str]) -> String {
    command(pool, words).success().stdout
}

/// The command fails with a message that has these words, and changes nothing.
fn refused(pool: &Pool, words: &[&str], why: &str) {
    let before = names(pool);
    let done = command(pool, words).code(1);
    assert!(done.stderr.contains(why), "{words:?}: {}", done.stderr);
    assert_eq!(names(pool), before, "{words:?}");
}

/// All snapshots, by path.
fn names(pool: &Pool) -> Vec<String> {
    let list: serde_json::Value = serde_json::from_str(&ok(pool, &["snapshot", "list", "--json"])).unwrap();
    let name =
        |row: &serde_json::Value| format!("{}@{}", row["volume"].as_str().unwrap(), row["name"].as_str().unwrap());
    let mut names: Vec<String> = list.as_array().unwrap().iter().map(name).collect();
    names.sort();
    names
}

fn place(pool: &Pool, name: &str) -> PathBuf {
    pool.at(".snapshots").join(name)
}

fn snapshot(pool: &Pool, name: &str) -> Vec<u8> {
    fs::read(place(pool, name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn overwrite(pool: &Pool, name: &str, offset: usize, bytes: &[u8]) {
    let file = File::options().write(true).open(pool.at(name)).unwrap();
    file.write_all_at(bytes, offset as u64).unwrap();
}

fn clean(pool: &mut Pool) {
    pool.unmount();
    clonefs([Path::new("check"), pool.root()]).success();
    pool.mount("deepen=manual");
}

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
fn a_rollback_brings_back_what_the_snapshot_shows() {
    on_each_filesystem(|pool| {
        let first = noise(1, 30 * BLOCK + 5);
        pool.write("vm.img", &first);
        fs::set_permissions(pool.at("vm.img"), PermissionsExt::from_mode(0o606)).unwrap();
        ok(pool, &["snapshot", "create", "vm.img@first"]);
        // Nothing was written since: nothing to do.
        ok(pool, &["snapshot", "rollback", "vm.img@first"]);
        assert_eq!(pool.info("vm.img").state, VolumeState::Independent);
        overwrite(pool, "vm.img", 100, &noise(2, 3 * BLOCK));
        File::options().write(true).open(pool.at("vm.img")).unwrap().set_len(50 * BLOCK as u64).unwrap();
        let second = pool.read("vm.img");
        ok(pool, &["snapshot", "create", "vm.img@second"]);
        overwrite(pool, "vm.img", 0, &noise(3, BLOCK));
        let open = File::open(pool.at("vm.img")).unwrap();
        refused(pool, &["snapshot", "rollback", "vm.img@first"], "it is open");
        drop(open);
        ok(pool, &["snapshot", "rollback", "vm.img@first"]);
        assert!(pool.read("vm.img") == first);
        assert_eq!(fs::metadata(pool.at("vm.img")).unwrap().mode() & 0o7777, 0o606);
        // Forward again, as later snapshots stay; and over a crash.
        ok(pool, &["snapshot", "rollback", "vm.img@second"]);
        pool.crash("deepen=manual");
        assert!(pool.read("vm.img") == second);
        // An independent volume goes back as well.
        pool.deepen("vm.img");
        assert_eq!(pool.info("vm.img").state, VolumeState::Independent);
        overwrite(pool, "vm.img", 5000, b"changed");
        ok(pool, &["snapshot", "rollback", "vm.img@first"]);
        assert!(pool.read("vm.img") == first);
        assert_eq!(fs::metadata(pool.at("vm.img")).unwrap().mode() & 0o7777, 0o606);
        // And one that was replaced by another file.
        fs::remove_file(pool.at("vm.img")).unwrap();
        pool.write("vm.img", b"other");
        ok(pool, &["snapshot", "rollback", "vm.img@second"]);
        pool.crash("deepen=manual");
        assert!(pool.read("vm.img") == second);
        overwrite(pool, "vm.img", 0, b"written again");
        assert!(snapshot(pool, "vm.img@second") == second && snapshot(pool, "vm.img@first") == first);
        clean(pool);
        assert!(pool.read("vm.img")[13..] == second[13..]);
    });
}

#[test]
fn snapshots_follow_their_volume_and_outlive_it() {
    on(&[Backing::Ext4], |pool| {
        fs::create_dir_all(pool.at("a/b")).unwrap();
        for (name, seed) in [("a/vm.img", 1), ("a/b/vm.img", 2), ("other.img", 3)] {
            pool.write(name, &noise(seed, 2 * BLOCK));
            ok(pool, &["snapshot", "create", &format!("{name}@s")]);
        }
        fs::rename(pool.at("a"), pool.at("z")).unwrap();
        assert_eq!(names(pool), ["other.img@s", "z/b/vm.img@s", "z/vm.img@s"]);
        fs::rename(pool.at("z/vm.img"), pool.at("vm.img")).unwrap();
        assert!(snapshot(pool, "vm.img@s") == noise(1, 2 * BLOCK));
        // Over a volume that has one of the same name: both stay.
        fs::rename(pool.at("other.img"), pool.at("vm.img")).unwrap();
        assert_eq!(names(pool), ["vm.img@s", "vm.img@s-2", "z/b/vm.img@s"]);
        assert!(snapshot(pool, "vm.img@s") == noise(1, 2 * BLOCK));
        assert!(snapshot(pool, "vm.img@s-2") == noise(3, 2 * BLOCK));
        support::rename(&pool.at("vm.img"), &pool.at("z/b/vm.img"), libc::RENAME_EXCHANGE).unwrap();
        assert!(snapshot(pool, "vm.img@s") == noise(2, 2 * BLOCK));
        assert!(snapshot(pool, "z/b/vm.img@s-2") == noise(3, 2 * BLOCK));
        // Deleting the volume leaves them.
        fs::remove_file(pool.at("vm.img")).unwrap();
        pool.crash("deepen=manual");
        assert_eq!(ok(pool, &["snapshot", "list", "vm.img"]).lines().count(), 2);
        refused(pool, &["snapshot", "rollback", "vm.img@s"], "No such file");
        ok(pool, &["clone", "vm.img@s", "vm.img"]);
        assert!(pool.read("vm.img") == noise(2, 2 * BLOCK));
        ok(pool, &["snapshot", "rename", "vm.img@s", "t"]);
        assert_eq!(names(pool), ["vm.img@t", "z/b/vm.img@s", "z/b/vm.img@s-2"]);
        ok(pool, &["snapshot", "create", "vm.img@s"]);
        refused(pool, &["snapshot", "rename", "vm.img@s", "t"], "exists");
        clean(pool);
    });
}

#[test]
fn who_may_not_reach_a_volume_does_not_reach_its_snapshots() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        pool.mount("deepen=manual,allow_other");
        for (directory, mode) in [("open", 0o755), ("closed", 0o700), ("shared", 0o777)] {
            fs::create_dir(pool.at(directory)).unwrap();
            fs::set_permissions(pool.at(directory), PermissionsExt::from_mode(mode)).unwrap();
            for (file, mode) in [("public", 0o644), ("secret", 0o600)] {
                let path = pool.write(&format!("{directory}/{file}"), b"contents");
                fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
                ok(pool, &["snapshot", "create", &format!("{directory}/{file}@s")]);
            }
        }
        // What is said of the volume later does not open its past.
        fs::write(pool.at("open/secret"), b"harmless").unwrap();
        fs::set_permissions(pool.at("open/secret"), PermissionsExt::from_mode(0o666)).unwrap();
        let read = |name: &str| errno(as_user(1234, 1234, || fs::read(place(pool, name))));
        assert_eq!(read("open/public@s"), 0);
        assert_eq!(read("open/secret@s"), libc::EACCES);
        assert_eq!(read("closed/public@s"), libc::EACCES);
        assert_eq!(read("closed/secret@s"), libc::EACCES);
        let remove = |name: &str| errno(as_user(1234, 1234, || fs::remove_file(place(pool, name))));
        assert_eq!(remove("open/public@s"), libc::EACCES);
        assert_eq!(remove("closed/public@s"), libc::EACCES);
        assert_eq!(errno(as_user(1234, 1234, || fs::read_dir(place(pool, "closed")).map(drop))), libc::EACCES);
        // Whoever may write to it could bring its past back, for all who may read it now.
        let set = |name: &str, action: &str| {
            let request = format!("{{\"action\":\"{action}\",\"name\":\"s\"}}");
            errno(as_user(1234, 1234, || set_xattr(&pool.at(name), SNAPSHOT, request.as_bytes())))
        };
        assert_eq!(set("open/secret", "rollback"), libc::EPERM);
        assert_eq!(pool.read("open/secret"), b"harmless");
        assert_eq!(set("open/public", "create"), libc::EACCES);
        assert_eq!(
            errno(as_user(1234, 1234, || set_xattr(&pool.at("open/secret"), clonefs::door::RESET, b"origin"))),
            libc::EPERM
        );
        // Whoever may remove the volume may remove its snapshots.
        assert_eq!(remove("shared/public@s"), 0);
        // A user's own.
        chown(pool.at("shared/secret"), Some(1234), None).unwrap();
        let clonefs = |words: &[&str]| {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_clonefs"));
            std::os::unix::process::CommandExt::uid(&mut command, 1234);
            support::run(command.args(words).current_dir(pool.at("shared")))
        };
        clonefs(&["snapshot", "create", "secret@mine"]).success();
        fs::write(pool.at("shared/secret"), b"later").unwrap();
        clonefs(&["snapshot", "rollback", "secret@mine"]).success();
        assert_eq!(pool.read("shared/secret"), b"contents");
        // This one was root's when it was made.
        clonefs(&["snapshot", "rollback", "secret@s"]).code(1);
        // Cloned by root from what the user may not read, cut, and given away: the user does not get it back.
        pool.write("golden", b"for root only");
        ok(pool, &["clone", "--no-deepen", "golden", "shared/gift"]);
        fs::write(pool.at("shared/gift"), b"nothing").unwrap();
        chown(pool.at("shared/gift"), Some(1234), None).unwrap();
        assert!(clonefs(&["reset", "gift"]).code(1).stderr.contains("root may do that"));
        assert_eq!(pool.read("shared/gift"), b"nothing");
    });
}

#[test]
fn bad_names_and_bad_places_are_refused_with_one_clear_error() {
    on(&[Backing::Ext4], |pool| {
        pool.write("vm.img", b"x");
        pool.write("two", b"x");
        fs::hard_link(pool.at("two"), pool.at("names")).unwrap();
        fs::create_dir(pool.at("dir")).unwrap();
        support::mknod(&pool.at("device"), libc::S_IFCHR | 0o600, 0x103).unwrap();
        ok(pool, &["snapshot", "create", "vm.img@taken"]);
        let create = |name: &str, why: &str| refused(pool, &["snapshot", "create", name], why);
        create("vm.img", "VOLUME@NAME");
        create("vm.img@", "the name is empty");
        create("vm.img@a/b", "VOLUME@NAME");
        create("vm.img@a\tb", "a name has no");
        create(&format!("vm.img@{}", "x".repeat(250)), "of at most 255");
        create("vm.img@taken", "exists");
        create("missing@s", "No such file");
        create("dir@s", "it is a directory");
        create("device@s", "it is a device");
        create("names@s", "several names");
        create("/etc/hostname@s", "not on a mounted pool");
        refused(pool, &["snapshot", "create", "vm.img", "missing@s"], "No such file");
        refused(pool, &["snapshot", "create", "vm.img", "names@s"], "several names");
        refused(pool, &["snapshot", "rename", "vm.img@taken", "a@b"], "a name has no");
        refused(pool, &["snapshot", "rename", "vm.img@none", "b"], "does not exist");
        refused(pool, &["snapshot", "remove", "vm.img@taken", "vm.img@none"], "does not exist");
        refused(pool, &["snapshot", "rollback", "vm.img@none"], "does not exist");
        refused(pool, &["clone", "vm.img@none", "c"], "does not exist");
        // Straight at the door.
        let door = |value: &str| errno(set_xattr(&pool.at("vm.img"), SNAPSHOT, value.as_bytes()));
        assert_eq!(door("{\"action\":\"create\",\"name\":\"a@b\"}"), libc::EINVAL);
        assert_eq!(door("{\"action\":\"create\",\"name\":\"../x\"}"), libc::EINVAL);
        assert_eq!(door("{\"action\":\"create\",\"name\":\"taken\"}"), libc::EEXIST);
        assert_eq!(door("{\"action\":\"rollback\",\"name\":\"none\"}"), libc::ENOENT);
        assert_eq!(door("nonsense"), libc::EINVAL);
        assert_eq!(names(pool), ["vm.img@taken"]);
        clean(pool);
    });
}

#[test]
fn a_pool_that_has_its_own_directory_of_this_name_keeps_it() {
    on(&[Backing::Ext4], |pool| {
        fs::create_dir(pool.below(".snapshots")).unwrap();
        fs::write(pool.below(".snapshots/mine"), b"mine").unwrap();
        pool.write("vm.img", b"x");
        assert_eq!(pool.read(".snapshots/mine"), b"mine");
        pool.write(".snapshots/more", b"more");
        assert!(command(pool, &["snapshot", "create", "vm.img@s"]).code(1).stderr.contains(".snapshots"));
        fs::remove_dir_all(pool.at(".snapshots")).unwrap();
        ok(pool, &["snapshot", "create", "vm.img@s"]);
        assert_eq!(snapshot(pool, "vm.img@s"), b"x");
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
fn a_clone_is_reset_to_what_it_was() {
    on_each_filesystem(|pool| {
        let golden = noise(1, 40 * BLOCK + 9);
        pool.write("golden.img", &golden);
        for (name, size) in [("desk.img", None), ("large.img", Some("1M"))] {
            let mut words = vec!["clone", "--no-deepen", "golden.img", name];
            words.extend(size.iter().flat_map(|size| ["--size", size]));
            ok(pool, &words);
        }
        let mut large = golden.clone();
        large.resize(1 << 20, 0);
        for round in 0..3 {
            overwrite(pool, "desk.img", 1000, &noise(round, 2 * BLOCK));
            File::options().write(true).open(pool.at("large.img")).unwrap().set_len(7000).unwrap();
            overwrite(pool, "large.img", 9000, b"y");
            ok(pool, &["snapshot", "create", &format!("desk.img@{round}")]);
            let open = File::options().append(true).open(pool.at("desk.img")).unwrap();
            (&open).write_all(b"more").unwrap();
            refused(pool, &["reset", "desk.img"], "it is open");
            drop(open);
            ok(pool, &["reset", "desk.img", "large.img"]);
            assert!(pool.read("desk.img") == golden && pool.read("large.img") == large);
            if round == 1 {
                pool.crash("deepen=manual");
                assert!(pool.read("desk.img") == golden && pool.read("large.img") == large);
            }
        }
        // Its past is its own: the source can change, and is another matter.
        overwrite(pool, "golden.img", 0, b"changed");
        overwrite(pool, "desk.img", 0, b"changed too");
        ok(pool, &["reset", "desk.img"]);
        assert!(pool.read("desk.img") == golden);
        pool.deepen("desk.img");
        refused(pool, &["reset", "desk.img"], "not below it any more");
        refused(pool, &["reset", "golden.img"], "not below it any more");
        refused(pool, &["reset", "missing"], "No such file");
        assert!(pool.read("desk.img") == golden);
        clean(pool);
    });
}

#[test]
fn a_volume_is_resized_while_it_is_in_use() {
    on_each_filesystem(|pool| {
        let bytes = noise(1, 10 * BLOCK + 100);
        for name in ["plain", "shared", "source"] {
            pool.write(name, &bytes);
        }
        pool.clone("shared", "other");
        pool.clone("source", "clone");
        let mut grown = bytes.clone();
        grown.resize(1 << 20, 0);
        for name in ["plain", "shared", "clone"] {
            let open = File::options().read(true).append(true).open(pool.at(name)).unwrap();
            let told = ok(pool, &["resize", name, "1M"]);
            assert!(told.contains("blockresize") && told.contains("growpart"), "{told}");
            // Whoever has it open sees the new size, and appends there.
            assert_eq!(open.metadata().unwrap().len(), 1 << 20);
            assert!(pool.read(name) == grown, "{name}");
            (&open).write_all(b"end").unwrap();
            assert_eq!(pool.read(name)[1 << 20..], *b"end");
            refused(pool, &["resize", name, "1M"], "--shrink");
            refused(pool, &["resize", name, "1M", "--shrink"], "it is open");
            drop(open);
            assert!(ok(pool, &["resize", name, "5000", "--shrink"]).contains("is gone"));
            assert!(pool.read(name) == bytes[..5000], "{name}");
            // What was cut off does not come back.
            ok(pool, &["resize", name, "+3000"]);
            let mut expect = bytes[..5000].to_vec();
            expect.resize(8000, 0);
            assert!(pool.read(name) == expect, "{name}");
        }
        assert!(pool.read("other") == bytes && pool.read("source") == bytes);
        refused(pool, &["resize", "missing", "1M"], "No such file");
        clonefs(["resize", "x", "17P"]).code(2);
        pool.write("q.qcow2", b"QFI\xfb and more");
        refused(pool, &["resize", "q.qcow2", "1M"], "qemu-img resize");
        clean(pool);
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
