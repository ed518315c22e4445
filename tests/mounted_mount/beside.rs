//! Mounts and pools beside each other: held by others, dead, nested, seen without clonefs.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::entry;
use crate::support::{Backing, Done, Mount, clonefs, is_running, noise, on, run, wait_until};
use tempfile::TempDir;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A process in a mount namespace of its own, which has a copy of all mounts; ended when it is dropped.
struct Holder(Child);

impl Holder {
    fn new() -> Holder {
        let mut command = Command::new("unshare");
        let child = command.args(["--mount", "--propagation", "private", "sleep", "1000"]).spawn().unwrap();
        let own = fs::read_link("/proc/self/ns/mnt").unwrap();
        let sleeps = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n");
        wait_until(|| {
            sleeps(child.id()) && fs::read_link(format!("/proc/{}/ns/mnt", child.id())).is_ok_and(|ns| ns != own)
        });
        Holder(child)
    }

    fn named(&self) -> String {
        format!("PID {} (sleep)", self.0.id())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_mount_that_another_namespace_holds_is_named_by_all_commands() {
    on(&[Backing::Ext4], |pool| {
        let pid = pool.mounted().status().pid;
        let holder = Holder::new();
        let root = text(pool.root()).to_owned();

        let begun = Instant::now();
        let done = clonefs(["unmount", "--timeout", "3s", &root]).code(1);
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert!(done.stderr.contains(&holder.named()) && done.stderr.contains("nsenter"), "{done:?}");
        // Once while it waited, once at the end, and when somebody else came to hold it: a program that another test just
        // starts has, for a moment, what this one has open.
        let said = done.stderr.lines().filter(|line| line.contains(&format!("process {pid}, goes on")));
        assert!(said.clone().count() >= 2 && said.clone().all(|line| line.contains(&holder.named())), "{done:?}");
        assert!(said.map(str::to_owned).collect::<std::collections::HashSet<_>>().len() >= 2, "{done:?}");
        assert_eq!(entry(pool.root()), None);
        assert!(is_running(pid));

        let lingering = format!("lingering: {} in another mount namespace still holds it", holder.named());
        for command in ["status", "mount", "unmount"] {
            let done = clonefs([command, &root]).code(1);
            assert!(done.stderr.contains(&lingering) && done.stderr.contains("nsenter"), "{done:?}");
            assert!(
                !done.stderr.contains("clonefs mount DIR") && !done.stderr.contains("clonefs unmount`"),
                "{done:?}"
            );
        }

        drop(holder);
        wait_until(|| !is_running(pid));
        pool.forget_mount();
        pool.mount("");
    });
}

#[test]
fn an_unmount_that_waits_says_for_whom_and_ends_with_them() {
    on(&[Backing::Ext4], |pool| {
        let holder = Holder::new();
        let mut command = Command::new(env!("CARGO_BIN_EXE_clonefs"));
        let mut child = command.arg("unmount").arg(pool.root()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let (mut said, mut piece) = (String::new(), [0; 4096]);
        let begun = Instant::now();
        while !said.contains(&holder.named()) {
            let read = stderr.read(&mut piece).unwrap();
            assert_ne!(read, 0, "it ended and had said {said:?}");
            said.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
        assert!(begun.elapsed() < Duration::from_secs(3));
        drop(holder);
        assert!(child.wait().unwrap().success());
        pool.forget_mount();
        pool.mount("");
    });
}

#[test]
fn a_loop_device_and_a_mount_inside_are_named_as_what_is_in_the_way() {
    on(&[Backing::Ext4], |pool| {
        fs::File::create(pool.at("image")).unwrap().set_len(1 << 20).unwrap();
        fs::create_dir(pool.at("inside")).unwrap();
        let image = pool.at("image");
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&image)).success().stdout;
        run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(pool.at("inside"))).success();
        let done = clonefs([Path::new("unmount"), pool.root()]);
        run(Command::new("umount").arg(pool.at("inside"))).success();
        run(Command::new("losetup").args(["--detach", device.trim()])).success();
        assert!(done.stderr.contains(device.trim()) && done.stderr.contains("/inside"), "{done:?}");
        wait_until(|| clonefs([Path::new("unmount"), pool.root()]).status.success());
        pool.forget_mount();
        pool.mount("");
    });
}

#[test]
fn a_dead_mount_silences_no_other() {
    on(&[Backing::Ext4], |pool| {
        let other = TempDir::new().unwrap();
        let dead = Mount::new(other.path(), None, "");
        let see = |arguments: &[&str]| -> Done {
            let mut command = Command::new(env!("CARGO_BIN_EXE_clonefs"));
            run(command.args(arguments).current_dir("/"))
        };
        let root = format!("{:?}", text(pool.root()));
        let (alive, gone) = (root.trim_matches('"'), text(other.path()));
        assert!(see(&["metrics"]).success().stdout.contains(&format!("clonefs_up{{pool=\"{gone}\"}} 1")));
        dead.kill();

        let done = see(&["status"]).code(1);
        assert!(done.stdout.contains(&format!("pool      {alive} on ext4")), "{done:?}");
        assert!(done.stdout.contains(&format!("at {gone}: NO ANSWER")), "{done:?}");

        let done = see(&["status", "--json"]).code(1);
        let pools: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        let find = |path: &str| pools.as_array().unwrap().iter().find(|pool| pool["pool"] == path).unwrap().clone();
        assert!(find(alive)["pid"].is_u64() && find(alive)["error"].is_null());
        assert!(find(gone)["error"].as_str().unwrap().contains("daemon of this mount has died"), "{done:?}");

        let done = see(&["metrics"]).success();
        assert!(done.stdout.contains(&format!("clonefs_up{{pool=\"{alive}\"}} 1")), "{done:?}");
        assert!(done.stdout.contains(&format!("clonefs_up{{pool=\"{gone}\"}} 0")), "{done:?}");
        assert!(done.stdout.contains(&format!("clonefs_overlays{{pool=\"{alive}\"}}")), "{done:?}");
        // Asked for alone it is an error.
        assert!(see(&["status", gone]).code(1).stdout.is_empty());
    });
}

/// Fails before anything is deleted on bad advice, and before a second daemon serves the files of the first.
#[test]
fn a_directory_above_or_inside_a_pool_is_no_pool() {
    on(&[Backing::Ext4, Backing::Xfs], |pool| {
        fs::create_dir(pool.at("dir")).unwrap();
        pool.write("dir/base", &noise(1, 100_000));
        pool.clone("dir/base", "dir/clone");
        let (inner, outer) = (pool.root().to_owned(), pool.root().parent().unwrap().to_owned());
        // Also while it is mounted.
        let done = clonefs([Path::new("mount"), &outer]).code(1);
        assert!(done.stderr.contains(&format!("the pool {inner:?} lies in it")), "{done:?}");
        pool.unmount();
        for directory in [outer.as_path(), &inner.join("dir")] {
            let done = clonefs([Path::new("check"), directory]).code(8);
            assert!(done.stderr.contains(&format!("{inner:?}")) && !done.stderr.contains("delete"), "{done:?}");
            let done = clonefs([Path::new("check"), Path::new("--repair"), directory]).code(8);
            assert!(done.stderr.contains(&format!("{inner:?}")), "{done:?}");
            let done = clonefs([Path::new("mount"), directory]).code(1);
            assert!(done.stderr.contains(&format!("{inner:?}")), "{done:?}");
            assert_eq!(entry(directory), None);
        }
        // A pool that got another one into it goes on, and finds nothing wrong with the other's stubs.
        let below = pool.at("below");
        fs::create_dir(&below).unwrap();
        run(Command::new("cp").arg("-a").arg(inner.join(".clonefs")).arg(&below)).success();
        run(Command::new("cp").arg("-a").arg(inner.join("dir")).arg(&below)).success();
        clonefs([Path::new("check"), &inner]).success();
        pool.mount("");
        assert_eq!(pool.read("dir/clone"), noise(1, 100_000));
    });
}

#[test]
fn a_stub_is_not_taken_for_the_disk() {
    on(&[Backing::Ext4, Backing::Xfs, Backing::Btrfs], |pool| {
        pool.write("base.raw", &noise(1, 1 << 20));
        pool.clone("base.raw", "clone.raw");
        pool.unmount();
        let place = TempDir::new().unwrap();
        let other = Mount::new(place.path(), None, "");
        // With its mark, and copied by a program that copies no attributes.
        let copied = pool.disk.root().join("copied.raw");
        fs::write(&copied, fs::read(pool.at("clone.raw")).unwrap()).unwrap();
        for stub in [pool.at("clone.raw"), copied] {
            let (out, into) = (pool.disk.root().join("out"), place.path().join("in"));
            for format in ["raw", "qcow2"] {
                let done = clonefs(["export", "--format", format, text(&stub), text(&out)]).code(1);
                assert!(done.stderr.contains("stub") && !out.exists(), "{done:?}");
            }
            let done = clonefs(["import", "--format", "raw", text(&stub), text(&into)]).code(1);
            assert!(done.stderr.contains("stub") && !into.exists(), "{done:?}");
            let done = clonefs(["clone", text(&stub), text(&into)]).code(1);
            assert!(done.stderr.contains("stub") && !into.exists(), "{done:?}");
        }
        // What only looks like one is a file, where clonefs shows it.
        fs::write(place.path().join("file"), fs::read(pool.at("clone.raw")).unwrap()).unwrap();
        let out = pool.disk.root().join("out");
        clonefs(["export", "--format", "raw", text(&place.path().join("file")), text(&out)]).success();
        other.unmount();
        pool.mount("");
    });
}

/// Serves in the foreground; its messages go to `stderr`.
fn serve(pool: &Path, stderr: Stdio, log: &str) -> (Child, Mount) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clonefs"));
    command.args(["mount", "-f"]).arg(pool).env("CLONEFS_LOG", log).stderr(stderr);
    // It may be started by a program that ignores or blocks nothing, as a shell does.
    let child = command.process_group(0).spawn().unwrap();
    wait_until(|| entry(pool).is_some());
    (child, Mount::adopt(pool))
}

#[test]
fn a_log_that_nobody_reads_any_more_is_lost_and_nothing_else() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        let (reader, writer) = std::io::pipe().unwrap();
        let (mut child, mount) = serve(pool.root(), writer.into(), "info");
        drop(reader);
        pool.write("base", &noise(1, 100_000));
        pool.clone("base", "clone");
        assert_eq!(pool.read("clone"), noise(1, 100_000));
        // SAFETY: kill takes a pid and a signal.
        unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
        assert!(child.wait().unwrap().success());
        assert_eq!(entry(pool.root()), None);
        drop(mount);
        clonefs([Path::new("check"), pool.root()]).success();
        pool.mount("");
    });
}

#[test]
fn a_reader_of_the_log_that_stops_reading_holds_no_request_up() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        let (reader, writer) = std::io::pipe().unwrap();
        // More than a pipe holds: every request is a message.
        let (mut child, mount) = serve(pool.root(), writer.into(), "trace");
        for n in 0..2000 {
            fs::write(pool.at(format!("file{n}")), "x").unwrap();
        }
        assert_eq!(fs::read_dir(pool.root()).unwrap().count(), 2000);
        let begun = Instant::now();
        mount.unmount();
        assert!(child.wait().unwrap().success());
        assert!(begun.elapsed() < Duration::from_secs(60));
        drop(reader);
        pool.mount("");
    });
}
