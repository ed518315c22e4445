//! What a mount makes durable by itself, or at every write where that was asked for.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Command, Stdio};

use crate::support::{self, Backing, noise, on, on_each_filesystem, wait_until};
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
            is_map && entry.metadata().is_ok_and(|map| map.len() > clonefs::store::log::HEADER)
        };
        wait_until(|| fs::read_dir(&layers).unwrap().any(|entry| entry.is_ok_and(noted)));
    });
}
