//! The life of a mount, sentence by sentence as it is promised.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clonefs::mount::table;
use support::{
    Backing, Mount, as_user, clonefs, errno, get_xattr, is_running, noise, on, on_each_filesystem, run, wait_until,
};
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
fn a_pool_has_one_daemon_and_a_second_mount_says_which() {
    on_each_filesystem(|pool| {
        let pid = pool.mounted().status().pid;
        let place = TempDir::new().unwrap();
        let root = pool.root().to_str().unwrap().to_owned();
        for arguments in [&["mount", &root][..], &["mount", &root, place.path().to_str().unwrap()]] {
            let done = clonefs(arguments).code(1);
            assert!(done.stderr.contains(&format!("process {pid}")), "{done:?}");
        }
        pool.unmount();

        // The same when the first one is mounted elsewhere.
        let mount = Mount::new(pool.root(), Some(place.path()), "");
        let pid = mount.status().pid;
        let done = clonefs(["mount", &root]).code(1);
        assert!(done.stderr.contains(&format!("process {pid}")), "{done:?}");
        assert_eq!(entry(pool.root()), None);
        mount.unmount();
        pool.mount("");
    });
}

#[test]
fn a_dead_mount_is_cleared_by_the_next_one() {
    on_each_filesystem(|pool| {
        pool.write("base", &support::noise(7, 300_000));
        pool.clone("base", "clone");
        let bytes = pool.read("clone");
        pool.mounted().kill();
        assert_eq!(errno(fs::read_dir(pool.root())), libc::ENOTCONN);
        pool.forget_mount();
        pool.mount("deepen=manual");
        let now = pool.read("clone");
        assert!(now == bytes, "{} {:?}", now.len(), &now[..64.min(now.len())]);
        assert_eq!(table::mounts().unwrap().iter().filter(|entry| entry.mountpoint == pool.root()).count(), 1);
    });
}

#[test]
fn a_dead_mount_can_be_unmounted() {
    on(&[Backing::Ext4], |pool| {
        pool.write("file", b"content");
        pool.mounted().kill();
        pool.unmount();
        assert_eq!(entry(pool.root()), None);
        assert_eq!(pool.read("file"), b"content");
    });
}

/// mkfs.btrfs asks for the source of every mount, and gives up if one of them cannot be looked at.
#[test]
fn a_dead_mount_is_in_nobody_elses_way() {
    on(&[Backing::Ext4], |pool| {
        pool.mounted().kill();
        // The kernel knows the attributes of the root for a while.
        wait_until(|| fs::metadata(pool.root()).is_err());
        let place = TempDir::new().unwrap();
        let image = place.path().join("image");
        fs::File::create(&image).unwrap().set_len(200 << 20).unwrap();
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&image)).success().stdout;
        let made = run(Command::new("mkfs.btrfs").arg("-q").arg(device.trim()));
        run(Command::new("losetup").args(["--detach", device.trim()])).success();
        made.success();
        pool.unmount();
    });
}

#[test]
fn an_unmount_in_use_is_refused_and_says_by_whom() {
    on(&[Backing::Ext4], |pool| {
        let open = fs::File::create(pool.at("file")).unwrap();
        let root = pool.root().to_str().unwrap();
        let done = clonefs(["unmount", root]).code(1);
        let me = std::process::id().to_string();
        assert!(done.stderr.contains(&format!("process {me} ")), "{done:?}");
        assert!(entry(pool.root()).is_some());
        drop(open);

        let mut sleeper = Command::new("sleep").arg("1000").current_dir(pool.root()).spawn().unwrap();
        let done = clonefs(["unmount", root]).code(1);
        assert!(done.stderr.contains(&format!("{} (sleep)", sleeper.id())), "{done:?}");
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        pool.unmount();
    });
}

#[test]
fn a_lazy_unmount_serves_open_files_to_their_end() {
    on_each_filesystem(|pool| {
        pool.write("base", &support::noise(3, 200_000));
        pool.clone("base", "clone");
        let pid = pool.mounted().status().pid;
        let mut open = fs::File::options().read(true).write(true).open(pool.at("clone")).unwrap();
        clonefs([Path::new("unmount"), Path::new("--lazy"), pool.root()]).success();
        assert_eq!(entry(pool.root()), None);
        open.write_all(b"written after the unmount").unwrap();
        open.sync_all().unwrap();
        let mut bytes = Vec::new();
        open.seek(SeekFrom::Start(0)).unwrap();
        open.read_to_end(&mut bytes).unwrap();
        assert!(bytes.starts_with(b"written after the unmount") && bytes.len() == 200_000);
        assert!(is_running(pid));
        drop(open);
        wait_until(|| !is_running(pid));
        pool.forget_mount();
        pool.mount("");
        assert_eq!(pool.read("clone"), bytes);
    });
}

#[test]
fn signals_end_the_daemon_in_order() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        on(&[Backing::Ext4], |pool| {
            pool.write("base", &support::noise(3, 200_000));
            pool.clone("base", "clone");
            pool.write("clone", b"changed");
            let pid = pool.mounted().status().pid;
            // SAFETY: kill takes a pid and a signal.
            unsafe { libc::kill(pid as i32, signal) };
            wait_until(|| !is_running(pid));
            assert_eq!(entry(pool.root()), None);
            pool.forget_mount();
            clonefs([Path::new("check"), pool.root()]).success();
            pool.mount("");
            assert_eq!(pool.read("clone"), b"changed");
        });
    }
}

#[test]
fn a_signal_with_files_open_leaves_them_served() {
    on(&[Backing::Ext4], |pool| {
        let pid = pool.mounted().status().pid;
        let mut open = fs::File::create(pool.at("file")).unwrap();
        // SAFETY: kill takes a pid and a signal.
        unsafe { libc::kill(pid as i32, libc::SIGTERM) };
        wait_until(|| entry(pool.root()).is_none());
        open.write_all(b"late").unwrap();
        assert!(is_running(pid));
        drop(open);
        wait_until(|| !is_running(pid));
        pool.forget_mount();
        assert_eq!(pool.read("file"), b"late");
    });
}

#[test]
fn in_the_foreground_the_program_stays_until_the_unmount() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        let mut command = Command::new(env!("CARGO_BIN_EXE_clonefs"));
        command.args(["mount", "-f"]).arg(pool.root()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mount = Mount::adopt(pool.root());
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("serving") {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "it ended early");
        }
        assert_eq!(mount.status().pid, child.id());
        fs::write(pool.at("file"), "x").unwrap();
        mount.unmount();
        assert!(child.wait().unwrap().success());
    });
}

#[test]
fn a_daemon_holds_nothing_of_the_program_that_started_it() {
    on(&[Backing::Ext4], |pool| {
        let pid = pool.mounted().status().pid;
        assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
        for stream in 0..3 {
            assert_eq!(fs::read_link(format!("/proc/{pid}/fd/{stream}")).unwrap(), Path::new("/dev/null"));
        }
        // Started by a shell that has a lock open, in a pipe that somebody reads to its end.
        pool.unmount();
        let script = r#"exec 9> "$1/lock" && flock 9 && "$2" mount "$3""#;
        let place = TempDir::new().unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh"]).arg(place.path()).arg(env!("CARGO_BIN_EXE_clonefs")).arg(pool.root());
        support::run(&mut shell).success();
        support::run(Command::new("flock").arg("-n").arg(place.path().join("lock")).arg("true")).success();
        let mount = Mount::adopt(pool.root());
        let pid = mount.status().pid;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let session = stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap().to_owned();
        assert_eq!(session, pid.to_string());
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap().to_owned();
        let numbers: Vec<&str> = files.split_whitespace().skip(3).take(2).collect();
        assert_eq!(numbers[0], numbers[1]);
        mount.unmount();
        pool.mount("");
    });
}

#[test]
fn writes_are_synced_where_that_was_asked_for() {
    on(&[Backing::Ext4], |pool| {
        pool.write("base", &support::noise(1, 100_000));
        pool.clone("base", "clone");
        for (options, flags, synced) in
            [("", 0, false), ("", libc::O_DSYNC, true), ("", libc::O_SYNC, true), ("sync", 0, true)]
        {
            pool.unmount();
            pool.mount(&format!("deepen=manual,{options}"));
            let pid = pool.mounted().status().pid;
            for name in ["base", "clone"] {
                let file = fs::OpenOptions::new().write(true).custom_flags(flags).open(pool.at(name)).unwrap();
                // The first write freezes the source, which syncs much.
                file.write_all_at(b"x", 0).unwrap();
                let log = TempDir::new().unwrap();
                let log = log.path().join("calls");
                let mut strace = Command::new("strace");
                strace.args([
                    "-f",
                    "-e",
                    "trace=fsync,fdatasync,pwrite64,sync_file_range",
                    "-p",
                    &pid.to_string(),
                    "-o",
                ]);
                let mut strace = strace.arg(&log).stderr(Stdio::piped()).spawn().expect("strace");
                let mut messages = BufReader::new(strace.stderr.take().unwrap());
                let mut line = String::new();
                while !line.contains("attached") {
                    line.clear();
                    assert_ne!(messages.read_line(&mut line).unwrap(), 0, "strace ended");
                }
                file.write_all_at(&[7; 4096], 8192).unwrap();
                let written = || fs::read_to_string(&log).unwrap_or_default();
                wait_until(|| written().contains("4096, 8192"));
                // SAFETY: kill takes a pid and a signal.
                unsafe { libc::kill(strace.id() as i32, libc::SIGINT) };
                strace.wait().unwrap();
                let calls = written();
                // By the thread that wrote: another one syncs now and then in any case.
                let mut after = calls.lines().skip_while(|line| !line.contains("4096, 8192"));
                let thread = after.next().unwrap().split(' ').next().unwrap().to_owned();
                let synced_now = after.any(|line| line.starts_with(&thread) && line.contains("sync("));
                assert_eq!(synced_now, synced, "{name} {options:?} {flags:o}: {calls}");
            }
        }
    });
}

#[test]
fn all_users_have_the_rights_that_modes_give() {
    on_each_filesystem(|pool| {
        pool.write("open", b"for all");
        let secret = pool.write("secret", b"for root");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        as_user(1234, 1234, || {
            assert_eq!(fs::read(pool.at("open")).unwrap(), b"for all");
            assert_eq!(errno(fs::read(pool.at("secret"))), libc::EACCES);
            assert_eq!(errno(fs::write(pool.at("open"), "x")), libc::EACCES);
            fs::write(pool.at("mine"), "x").unwrap();
        });
        assert_eq!(fs::metadata(pool.at("mine")).unwrap().uid(), 1234);
    });
}

/// Done by the user `daemon` (fusermount3 wants one that has a name) in a mount namespace of its own, where every user may open the FUSE device, as on most machines.
const AS_A_USER: &str = r#"
set -eux
cd "$PLACE"
mknod -m 666 device c 10 229
mount --bind device /dev/fuse
user() { setpriv --reuid 1 --regid 1 --clear-groups "$@" 2>&1; }
user ./clonefs mount pool
trap 'umount -l pool' EXIT
grep " $PLACE/pool .* - fuse.clonefs clonefs:$PLACE/pool " /proc/self/mountinfo
user cp noise pool/base
user ./clonefs clone pool/base pool/clone
user cmp noise pool/clone
user stat -c %u:%g pool/clone | grep -x 1:1
user ./clonefs mount pool && exit 1
grep -q ^user_allow_other /etc/fuse.conf || user ./clonefs mount -o allow_other elsewhere | grep user_allow_other
cat pool/base && exit 1
user ./clonefs deepen --wait pool/clone
user ./clonefs unmount pool
trap - EXIT
cmp noise pool/clone
grep "fuse.clonefs clonefs:$PLACE/pool" /proc/self/mountinfo && exit 1
true
"#;

#[test]
fn an_ordinary_user_mounts_with_fusermount() {
    if !support::ready() {
        return;
    }
    let place = TempDir::new().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for directory in ["pool", "elsewhere"] {
        fs::create_dir(place.path().join(directory)).unwrap();
        std::os::unix::fs::chown(place.path().join(directory), Some(1), Some(1)).unwrap();
    }
    fs::write(place.path().join("noise"), support::noise(5, 100_000)).unwrap();
    // The program may lie where that user cannot go.
    fs::copy(env!("CARGO_BIN_EXE_clonefs"), place.path().join("clonefs")).unwrap();
    let mut command = Command::new("unshare");
    support::run(command.args(["--mount", "bash", "-c", AS_A_USER]).env("PLACE", place.path())).success();
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
        assert!(get_xattr(&odd, clonefs::door::STATUS).is_ok());
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

/// A layer's map is not even touched before the data is on the disk, so it tells that the data is.
#[test]
fn what_nobody_syncs_is_made_durable_by_itself() {
    on_each_filesystem(|pool| {
        pool.write("base", &noise(1, 1 << 20));
        pool.clone("base", "vm");
        let file = fs::File::options().write(true).open(pool.at("vm")).unwrap();
        file.write_all_at(&noise(2, 9000), 3000).unwrap();
        let layers = pool.below(".clonefs/layers");
        let noted = |entry: fs::DirEntry| {
            let is_map = entry.path().extension().is_some_and(|extension| extension == "map");
            is_map && entry.metadata().is_ok_and(|map| map.len() > clonefs::store::log::HEADER)
        };
        wait_until(|| fs::read_dir(&layers).unwrap().any(|entry| entry.is_ok_and(noted)));
    });
}
