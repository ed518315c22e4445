//! What a mount makes durable by itself, or at every write where that was asked for.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::{
    self, Backing, Mapping, Mount, as_user, clonefs, errno, noise, on, on_each_filesystem, set_xattr, wait_until,
};
use tempfile::TempDir;

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
            is_map && entry.metadata().is_ok_and(|map| map.len() > clonefs::engine::store::log::HEADER)
        };
        wait_until(|| fs::read_dir(&layers).unwrap().any(|entry| entry.is_ok_and(noted)));
    });
}

/// The kernel does not tell of sync(2), so there is a command for it.
#[test]
fn clonefs_sync_makes_all_of_a_pool_durable() {
    // Btrfs is not mounted twice.
    on(&[Backing::Ext4, Backing::Xfs], |pool| {
        pool.write("base", &noise(1, 1 << 20));
        for name in ["written", "mapped"] {
            let clone = [OsStr::new("clone"), OsStr::new("--sync")].map(PathBuf::from);
            clonefs(clone.into_iter().chain([pool.at("base"), pool.at(name)])).success();
        }
        fs::File::options().write(true).open(pool.at("written")).unwrap().write_all_at(&noise(2, 9000), 3000).unwrap();
        let file = fs::File::options().read(true).write(true).open(pool.at("mapped")).unwrap();
        let mut mapping = Mapping::new(&file, 1 << 20).unwrap();
        mapping.bytes()[500_000..509_000].copy_from_slice(&noise(3, 9000));
        fs::create_dir(pool.at("new")).unwrap();
        pool.write("new/plain", &noise(4, 9000));
        clonefs([OsStr::new("sync"), pool.root().as_os_str()]).success();
        let disk = pool.disk.cut();
        let mount = Mount::new(&disk.root().join("pool"), None, "deepen=manual");
        let found = |name: &str| fs::read(mount.path().join(name)).unwrap();
        assert!(found("written")[3000..12_000] == noise(2, 9000));
        assert!(found("mapped")[500_000..509_000] == noise(3, 9000));
        assert!(found("new/plain") == noise(4, 9000));
        mount.unmount();
    });
}

/// All of a pool is the work of many; of a file, that of who asks.
#[test]
fn only_administrators_sync_whole_pools_and_everybody_a_file() {
    on(&[Backing::Ext4], |pool| {
        pool.write("base", b"bytes");
        let refused = as_user(64_201, 64_201, || errno(set_xattr(pool.root(), clonefs::protocol::FLUSH, b"sync")));
        assert_eq!(refused, libc::EPERM);
        as_user(64_201, 64_201, || clonefs::client::sync_file(&pool.at("base"))).unwrap();
        clonefs([OsStr::new("sync"), pool.at("base").as_os_str()]).success();
        // One that fails is named, and the others are synced.
        let refused = clonefs([OsStr::new("sync"), OsStr::new("/no/such/place"), pool.root().as_os_str()]).code(1);
        assert!(refused.stderr.contains("/no/such/place"), "{}", refused.stderr);
    });
}

/// Until the keeper came by, a stub was an empty file, and for good if the daemon died before that.
#[test]
fn stubs_say_what_they_are_though_the_daemon_died() {
    on_each_filesystem(|pool| {
        pool.write("base", &noise(1, 100_000));
        let clone = [OsStr::new("clone"), OsStr::new("--sync")].map(PathBuf::from);
        clonefs(clone.into_iter().chain([pool.at("base"), pool.at("synced")])).success();
        pool.clone("base", "unsynced");
        pool.mounted().kill();
        let text = |name: &str| String::from_utf8_lossy(&fs::read(pool.below(name)).unwrap()).into_owned();
        assert!(text("synced").contains("clonefs"), "without another mount");
        pool.forget_mount();
        pool.mount("deepen=manual");
        assert_eq!(pool.read("unsynced"), noise(1, 100_000));
        pool.unmount();
        for name in ["synced", "unsynced"] {
            let text = String::from_utf8_lossy(&fs::read(pool.below(name)).unwrap()).into_owned();
            assert!(text.contains("clonefs"), "{name} says nothing");
        }
    });
}
