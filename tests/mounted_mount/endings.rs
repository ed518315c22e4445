//! How a mount ends: unmounts, signals, and daemons that died.

use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::entry;
use crate::support::{self, Backing, Mount, clonefs, errno, is_running, on, on_each_filesystem, run, wait_until};
use clonefs::daemon::mount::table;
use tempfile::TempDir;

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
