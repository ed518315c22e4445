//! The life of a mount, sentence by sentence as it is promised: where it is, what it shows, what is refused.

mod beside;
mod durable;
mod endings;
mod served;
#[path = "../support/mod.rs"]
mod support;
mod users;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use clonefs::daemon::mount::table;
use support::{Backing, Mount, clonefs, errno, get_xattr, noise, on, on_each_filesystem, wait_until};
use tempfile::TempDir;

fn entry(path: &Path) -> Option<table::Entry> {
    table::at(path).expect("mount table").filter(|entry| entry.fs_type == table::FS_TYPE)
}

#[test]
fn files_are_there_before_under_and_after_a_mount() {
    on_each_filesystem(|pool| {
        pool.unmount();
        fs::create_dir(pool.at("dir")).unwrap();
        pool.write("dir/old", b"from before");
        fs::set_permissions(pool.at("dir/old"), fs::Permissions::from_mode(0o640)).unwrap();
        let before = fs::metadata(pool.at("dir/old")).unwrap();

        pool.mount("");
        let under = fs::metadata(pool.at("dir/old")).unwrap();
        let facts = |m: &fs::Metadata| (m.mode(), m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.nlink(), m.uid());
        assert_eq!(facts(&before), facts(&under));
        assert_eq!(pool.read("dir/old"), b"from before");
        pool.write("dir/new", b"from under the mount");

        pool.unmount();
        assert_eq!(entry(pool.root()), None);
        assert_eq!(pool.read("dir/new"), b"from under the mount");
        let names: Vec<_> = fs::read_dir(pool.root()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["dir"], "a mount alone leaves nothing behind");
    });
}

#[test]
fn the_mount_table_shows_type_and_pool() {
    on(&[Backing::Ext4], |pool| {
        let entry = entry(pool.root()).unwrap();
        assert_eq!((entry.fs_type.as_str(), entry.pool()), ("fuse.clonefs", pool.root()));
        assert_eq!(entry.source.to_str().unwrap(), format!("clonefs:{}", pool.root().display()));
        assert_eq!(entry.dev, fs::metadata(pool.root()).unwrap().dev());
    });
}

#[test]
fn a_pool_can_be_mounted_elsewhere() {
    on_each_filesystem(|pool| {
        pool.unmount();
        let place = TempDir::new().unwrap();
        pool.write("file", b"content");
        let mount = Mount::new(pool.root(), Some(place.path()), "");
        assert_eq!(fs::read(place.path().join("file")).unwrap(), b"content");
        assert_eq!(mount.status().pool, pool.root().to_str().unwrap());
        // By the path of the pool, too.
        clonefs([Path::new("unmount"), pool.root()]).success();
        assert_eq!(entry(place.path()), None);
    });
}

#[test]
fn a_change_beside_the_mount_shows_within_a_second() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        let place = TempDir::new().unwrap();
        let _mount = Mount::new(pool.root(), Some(place.path()), "");
        let seen = place.path().join("file");
        assert!(!seen.exists());
        pool.write("file", b"1");
        wait_until(|| seen.exists());
        pool.write("file", b"longer");
        wait_until(|| fs::metadata(&seen).unwrap().len() == 6);
        assert_eq!(fs::read(&seen).unwrap(), b"longer");
        // Another file under the same name.
        pool.write("other", b"other file");
        fs::rename(pool.at("other"), pool.at("file")).unwrap();
        wait_until(|| fs::read(&seen).is_ok_and(|bytes| bytes == b"other file"));
        fs::remove_file(pool.at("file")).unwrap();
        wait_until(|| !seen.exists());
    });
}

#[test]
fn the_pools_own_directory_cannot_be_reached() {
    on_each_filesystem(|pool| {
        // Made by the first clone, not before.
        assert!(!pool.below(".clonefs").exists());
        pool.write("base", &support::noise(1, 100_000));
        pool.clone("base", "clone");
        let below = fs::metadata(pool.below(".clonefs")).unwrap();
        assert_eq!(below.mode() & 0o7777, 0o700);

        let names: Vec<_> = fs::read_dir(pool.root()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!names.contains(&".clonefs".into()), "{names:?}");
        let hidden = pool.at(".clonefs");
        assert_eq!(errno(fs::symlink_metadata(&hidden)), libc::ENOENT);
        for inside in ["layers", "journal", "../base"] {
            assert_eq!(errno(fs::symlink_metadata(hidden.join(inside))), libc::ENOENT);
        }
        assert_eq!(errno(fs::File::open(&hidden)), libc::ENOENT);
        assert_eq!(errno(fs::remove_dir(&hidden)), libc::ENOENT);
        assert_eq!(errno(fs::rename(&hidden, pool.at("x"))), libc::ENOENT);

        assert_eq!(errno(fs::write(&hidden, "x")), libc::EPERM);
        assert_eq!(errno(fs::create_dir(&hidden)), libc::EPERM);
        assert_eq!(errno(std::os::unix::fs::symlink("base", &hidden)), libc::EPERM);
        assert_eq!(errno(fs::hard_link(pool.at("base"), &hidden)), libc::EPERM);
        assert_eq!(errno(support::mknod(&hidden, libc::S_IFIFO | 0o600, 0)), libc::EPERM);
        fs::create_dir(pool.at("d")).unwrap();
        assert_eq!(errno(fs::rename(pool.at("d"), &hidden)), libc::EPERM);
        assert_eq!(errno(support::rename(&pool.at("base"), &hidden, libc::RENAME_NOREPLACE)), libc::EPERM);

        // The name is the pool's at its root only.
        fs::create_dir(pool.at("d/.clonefs")).unwrap();
        pool.write("d/.clonefs/file", b"mine");
        assert_eq!(pool.read("clone"), pool.read("base"));
    });
}

#[test]
fn options_are_those_of_mount_programs() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        pool.write("file", b"content");
        pool.mount("ro,noatime,nosuid,nodev,noexec,_netdev,x-systemd.automount,defaults");
        let path = pool.at("file");
        assert_eq!(errno(fs::write(&path, "x")), libc::EROFS);
        assert_eq!(errno(fs::remove_file(&path)), libc::EROFS);
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line =
            table.lines().find(|line| line.contains("fuse.clonefs") && line.contains(pool.root().to_str().unwrap()));
        let flags = line.unwrap().split(' ').nth(5).unwrap().to_owned();
        for flag in ["ro", "noatime", "nosuid", "nodev", "noexec"] {
            assert!(flags.split(',').any(|word| word == flag), "{flag} is not in {flags}");
        }
        assert_eq!(pool.read("file"), b"content");
        pool.unmount();

        let done = clonefs(["mount", "-o", "ro,bogus", pool.root().to_str().unwrap()]).code(2);
        assert!(done.stderr.contains("bogus"), "{done:?}");
        assert_eq!(entry(pool.root()), None);
    });
}

#[test]
fn a_mount_can_be_made_read_only_and_writable_again() {
    on(&[Backing::Ext4], |pool| {
        let path = pool.write("file", b"content");
        clonefs(["mount", "-o", "remount,ro", pool.root().to_str().unwrap()]).success();
        assert_eq!(errno(fs::write(&path, "x")), libc::EROFS);
        clonefs(["mount", "-o", "remount,rw", pool.root().to_str().unwrap()]).success();
        fs::write(&path, "x").unwrap();
    });
}

/// The mount table would show another option than the daemon follows.
#[test]
fn a_remount_refuses_what_it_cannot_change() {
    on(&[Backing::Ext4], |pool| {
        let root = pool.root().to_str().unwrap().to_owned();
        for words in ["rate=5M", "threads=3", "deepen=auto", "passthrough=writable", "noatime", "dirsync", "physical"] {
            let done = clonefs(["mount", "-o", &format!("remount,ro,{words}"), &root]).code(1);
            assert!(done.stderr.contains(words) && done.stderr.contains("nothing was changed"), "{done:?}");
            fs::write(pool.at("file"), "x").unwrap();
        }
        // As it was started: mount(8) repeats the words of fstab.
        clonefs(["mount", "-o", "remount,ro,deepen=manual,rate=0,passthrough=off,fsname=x", &root]).success();
        assert_eq!(errno(fs::write(pool.at("file"), "x")), libc::EROFS);
        clonefs(["mount", "-o", "remount,rw", &root]).success();
    });
}

#[test]
fn reading_leaves_no_trace_where_that_is_wanted() {
    on(&[Backing::Ext4, Backing::Xfs, Backing::Btrfs], |pool| {
        pool.disk.remount("strictatime");
        pool.write("file", &noise(1, 100_000));
        fs::create_dir(pool.at("dir")).unwrap();
        let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        let read = |pool: &mut support::Pool, options: &str| {
            pool.unmount();
            pool.mount(options);
            for name in ["file", "dir"] {
                let times = fs::FileTimes::new().set_accessed(long_ago);
                fs::File::open(pool.at(name)).unwrap().set_times(times).unwrap();
            }
            pool.read("file");
            assert_eq!(fs::read_dir(pool.at("dir")).unwrap().count(), 0);
            std::thread::sleep(std::time::Duration::from_millis(1100));
            ["file", "dir"].map(|name| fs::metadata(pool.at(name)).unwrap().accessed().unwrap() == long_ago)
        };
        assert_eq!(read(pool, "noatime"), [true, true]);
        assert_eq!(read(pool, "nodiratime"), [false, true]);
        assert_eq!(read(pool, ""), [false, false]);
    });
}

#[test]
fn a_read_only_filesystem_is_mounted_read_only() {
    on(&[Backing::Ext4, Backing::Xfs, Backing::Btrfs], |pool| {
        pool.write("base", &support::noise(1, 50_000));
        pool.clone("base", "clone");
        let bytes = pool.read("clone");
        pool.unmount();
        // The test's own descriptor of the pool's directory is not open for writing.
        pool.disk.remount("ro");
        pool.mount("rw");
        assert_eq!(errno(fs::write(pool.at("new"), "x")), libc::EROFS);
        assert_eq!(pool.read("clone"), bytes);
        pool.unmount();
        pool.disk.remount("rw");
    });
}

#[test]
fn what_the_backing_mount_forbids_stays_forbidden() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        pool.disk.remount("nosuid,nodev,noexec");
        pool.mount("");
        fs::copy("/bin/true", pool.at("program")).unwrap();
        fs::set_permissions(pool.at("program"), fs::Permissions::from_mode(0o755)).unwrap();
        let error = Command::new(pool.at("program")).status().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        pool.unmount();
        pool.mount("exec");
        assert!(Command::new(pool.at("program")).status().unwrap().success());
    });
}

#[test]
fn what_cannot_be_mounted_is_refused_with_its_name() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        let file = pool.write("file", b"x");
        fs::create_dir(pool.at("inside")).unwrap();
        let root = pool.root().to_str().unwrap().to_owned();
        let name = |path: PathBuf| path.to_str().unwrap().to_owned();
        let cases = [
            (vec![name(pool.at("missing"))], "missing"),
            (vec![name(file)], "file"),
            (vec![root.clone(), name(pool.at("inside"))], "inside the pool"),
            (vec![root.clone(), name(pool.at("nowhere"))], "nowhere"),
        ];
        for (arguments, word) in cases {
            let done = clonefs(["mount".to_owned()].into_iter().chain(arguments));
            assert!(!done.status.success() && done.stderr.contains(word), "{done:?}");
            assert_eq!(done.stderr.trim().lines().count(), 1, "{done:?}");
            assert_eq!(entry(pool.root()), None);
        }
        let done = clonefs(["unmount", &root]).code(1);
        assert!(done.stderr.contains("no clonefs mount"), "{done:?}");
        pool.mount("");
    });
}

#[test]
fn a_mount_point_with_odd_characters_works() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        let odd = pool.at("a b,c\\d\te\"f");
        fs::create_dir(&odd).unwrap();
        let mount = Mount::new(&odd, None, "");
        fs::write(odd.join("file"), "x").unwrap();
        assert_eq!(entry(&odd).unwrap().pool(), odd);
        assert!(get_xattr(&odd, clonefs::protocol::STATUS).is_ok());
        mount.unmount();
        assert_eq!(fs::read(odd.join("file")).unwrap(), b"x");
        pool.mount("");
    });
}

#[test]
fn a_link_to_the_pool_is_as_good_as_the_pool() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        let place = TempDir::new().unwrap();
        let link = place.path().join("link");
        std::os::unix::fs::symlink(pool.root(), &link).unwrap();
        let mount = Mount::new(&link, None, "");
        assert!(entry(pool.root()).is_some());
        clonefs([Path::new("unmount"), &link]).success();
        assert_eq!(entry(pool.root()), None);
        drop(mount);
        pool.mount("");
    });
}
