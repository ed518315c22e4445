//! Policies on a mounted pool: what is protected stays, volumes are deepened when they may be, names follow the rules.

mod support;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clonefs::protocol::VolumeState;
use serde_json::Value;
use support::{Backing, Done, Pool, as_user, clonefs, noise, on, on_each_filesystem, wait_until};

fn policy(pool: &Pool, command: &str, path: &str, more: &[&str]) -> Done {
    let path = pool.at(path);
    clonefs([&["policy", command, path.to_str().expect("path")], more].concat())
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

const REFUSED: Option<i32> = Some(libc::EPERM);

#[test]
fn what_is_protected_is_neither_deleted_nor_overwritten() {
    on_each_filesystem(|pool| {
        fs::create_dir_all(pool.at("golden/old")).unwrap();
        let bytes = noise(1, 1 << 20);
        pool.write("golden/base", &bytes);
        pool.write("other", b"other");
        pool.clone("golden/base", "golden/overlay");
        let overlay = pool.at("golden/overlay");
        let snapshot = format!("{}@one", overlay.display());
        clonefs(["snapshot", "create", &snapshot]).success();
        let writer = File::options().write(true).open(pool.at("golden/base")).unwrap();
        let busy = policy(pool, "set", "golden", &["--protect"]).code(1);
        assert!(busy.stderr.contains("open for writing"), "{busy:?}");
        drop(writer);
        // The kernel tells of a close when it has the time.
        wait_until(|| policy(pool, "set", "golden", &["--protect"]).status.success());

        for name in ["golden/base", "golden/overlay"] {
            let path = pool.at(name);
            assert_eq!(errno(fs::remove_file(&path)), REFUSED, "{name}");
            assert_eq!(errno(fs::rename(&path, pool.at("away"))), REFUSED);
            assert_eq!(errno(fs::rename(pool.at("other"), &path)), REFUSED);
            assert_eq!(errno(support::rename(&pool.at("other"), &path, libc::RENAME_EXCHANGE)), REFUSED);
            assert_eq!(errno(File::options().write(true).open(&path)), REFUSED);
            assert_eq!(errno(File::options().append(true).open(&path)), REFUSED);
            assert_eq!(errno(fs::write(&path, b"x")), REFUSED);
            let c_path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
            // SAFETY: the path is NUL-terminated.
            assert_eq!(unsafe { libc::truncate(c_path.as_ptr(), 5) }, -1);
            assert_eq!(io::Error::last_os_error().raw_os_error(), REFUSED);
            assert_eq!(errno(fs::hard_link(&path, pool.at("link"))), REFUSED);
            assert!(pool.read(name) == bytes);
        }
        for command in [
            &["reset", overlay.to_str().unwrap()][..],
            &["resize", overlay.to_str().unwrap(), "2M"],
            &["resize", overlay.to_str().unwrap(), "1K", "--shrink"],
            &["snapshot", "rollback", &snapshot],
            &["snapshot", "remove", &snapshot],
        ] {
            let said = clonefs(command.iter().copied()).code(1).stderr;
            assert!(said.contains("protect") || said.contains("ermitted"), "{command:?}: {said}");
        }
        clonefs(["snapshot", "create", &format!("{}@two", overlay.display())]).success();
        assert!(pool.read("golden/overlay") == bytes && pool.info("golden/overlay").size == 1 << 20);
        assert_eq!(errno(fs::remove_dir(pool.at("golden/old"))), REFUSED);
        assert_eq!(errno(fs::rename(pool.at("golden"), pool.at("silver"))), REFUSED);
        let said =
            clonefs(["clone", "--force", pool.at("other").to_str().unwrap(), pool.at("golden/base").to_str().unwrap()]);
        assert!(said.code(1).stderr.contains("ermitted"));

        // Cloned, read, made independent, and added to, it can be.
        pool.clone("golden/base", "clone");
        pool.clone("golden/base", "golden/new");
        pool.write("golden/fresh", b"fresh");
        assert_eq!(errno(fs::remove_file(pool.at("golden/fresh"))), REFUSED);
        // What is protected stays so when that is said again while a new file is written.
        let fresh = File::create_new(pool.at("golden/fresher")).unwrap();
        policy(pool, "set", "golden", &["--protect"]).success();
        drop(fresh);
        assert_eq!(errno(fs::write(pool.at("golden/base"), b"x")), REFUSED);
        pool.deepen("golden/overlay");
        assert!(pool.read("golden/overlay") == bytes && pool.read("clone") == bytes);
        fs::set_permissions(pool.at("golden/base"), std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();

        // Below, one can be let go of; and it lasts over a restart.
        policy(pool, "set", "golden/new", &["--protect=false"]).success();
        pool.crash("deepen=manual");
        fs::remove_file(pool.at("golden/new")).unwrap();
        assert_eq!(errno(fs::remove_file(pool.at("golden/base"))), REFUSED);
        let told = clonefs(["events", "--json", pool.root().to_str().unwrap()]).success().stdout;
        assert!(
            told.lines().any(|line| line.contains("\"refused\"") && line.contains("protected by a policy")),
            "{told}"
        );
        policy(pool, "unset", "golden", &["protect"]).success();
        fs::remove_file(pool.at("golden/base")).unwrap();
        assert!(pool.read("clone") == bytes);
    });
}

#[test]
fn nobody_goes_on_writing_what_has_been_protected() {
    on(&[Backing::Tmpfs], |pool| {
        let path = pool.write("vm", b"00000000");
        let number = std::sync::atomic::AtomicU32::new(0);
        let write = || {
            if let Ok(file) = File::options().write(true).open(&path) {
                let text = format!("{:08}", number.fetch_add(1, Ordering::Relaxed));
                file.write_all_at(text.as_bytes(), 0).unwrap();
            }
        };
        while_busy(&write, || {
            for _ in 0..10 {
                wait_until(|| policy(pool, "set", "vm", &["--protect"]).status.success());
                let before = pool.read("vm");
                for _ in 0..5 {
                    std::thread::sleep(Duration::from_millis(10));
                    assert_eq!(pool.read("vm"), before);
                }
                policy(pool, "unset", "vm", &["protect"]).success();
                let written = number.load(Ordering::Relaxed);
                wait_until(|| number.load(Ordering::Relaxed) > written);
            }
        });
    });
}

#[test]
fn settings_are_shown_with_where_they_come_from() {
    on(&[Backing::Ext4], |pool| {
        fs::create_dir(pool.at("lab")).unwrap();
        pool.write("lab/vm", b"x");
        policy(pool, "set", "", &["--deepen", "idle", "--rate", "200M"]).success();
        policy(pool, "set", "lab", &["--deepen", "manual", "--keep-linked"]).success();
        let settings: Value =
            serde_json::from_str(&policy(pool, "get", "lab/vm", &["--json"]).success().stdout).unwrap();
        assert_eq!((&settings["deepen"]["value"], &settings["deepen"]["from"]), (&"manual".into(), &"lab".into()));
        assert_eq!((&settings["rate"]["value"], &settings["rate"]["from"]), (&"200M".into(), &".".into()));
        assert_eq!(policy(pool, "get", "lab/vm", &["--key", "keep-linked"]).success().stdout, "true\n");
        policy(pool, "get", "", &["--key", "protect"]).code(1);
        assert_eq!(pool.mounted().status().rate_limit, 200 << 20);
        let list = policy(pool, "list", "", &[]).success().stdout;
        assert!(list.lines().any(|line| line.split_whitespace().eq(["lab", "deepen", "manual"])), "{list}");
        policy(pool, "unset", "lab", &["deepen"]).success();
        assert_eq!(policy(pool, "get", "lab/vm", &["--key", "deepen"]).success().stdout, "idle\n");

        for bad in
            [&["--deepen", "soon"][..], &["--rate", "fast"], &["--snapshots", "hourly=0"], &["--clone-name", "x"], &[]]
        {
            policy(pool, "set", "lab", bad).code(2);
        }
        // What was set for a file that is gone can be taken back, and nothing is set for one that never was.
        policy(pool, "set", "lab/vm", &["--deepen", "manual"]).success();
        fs::remove_file(pool.at("lab/vm")).unwrap();
        assert!(policy(pool, "list", "", &[]).success().stdout.contains("lab/vm"));
        policy(pool, "unset", "lab/vm", &[]).success();
        assert!(!policy(pool, "list", "", &[]).success().stdout.contains("lab/vm"));
        policy(pool, "set", "lab/vm", &["--deepen", "manual"]).code(1);
        let said = policy(pool, "set", "lab", &["--rate", "1M"]).code(1);
        assert!(said.stderr.contains("whole pool only"), "{said:?}");
        let (program, path) = (env!("CARGO_BIN_EXE_clonefs"), pool.at("lab"));
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let set = as_user(4321, 4321, move || {
            support::run(std::process::Command::new(program).args(["policy", "set", "--protect"]).arg(path))
        });
        assert!(set.code(1).stderr.contains("root and the user who mounted"));
    });
}

#[test]
fn a_file_that_cannot_be_read_is_named_and_the_last_good_policies_hold() {
    on(&[Backing::Ext4], |pool| {
        fs::create_dir(pool.at("golden")).unwrap();
        pool.write("golden/base", b"x");
        policy(pool, "set", "golden", &["--protect"]).success();
        pool.unmount();
        let file = pool.root().join(".clonefs/policy.json");
        let good = fs::read_to_string(&file).unwrap();
        fs::write(&file, good.replace("protect", "protct")).unwrap();
        pool.mount("deepen=manual");
        assert_eq!(errno(fs::remove_file(pool.at("golden/base"))), REFUSED);
        let said = policy(pool, "list", "", &[]).success().stderr;
        assert!(said.contains("protct") && said.contains("line 5 column"), "{said}");
        let troubles = pool.mounted().status().troubles;
        assert!(troubles.iter().any(|trouble| trouble.problem.contains("line 5 column")), "{troubles:?}");
        policy(pool, "set", "golden", &["--deepen", "idle"]).code(1);
        // Mended beside the mount, it is read again without a restart.
        fs::write(pool.below(".clonefs/policy.json"), "{\"format\": 1, \"policies\": {}}").unwrap();
        wait_until(|| fs::remove_file(pool.at("golden/base")).is_ok());
        assert!(pool.mounted().status().troubles.is_empty());
    });
}

/// Runs `test` while another thread does `work` again and again.
fn while_busy(work: &(impl Fn() + Sync), test: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                work();
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test));
        done.store(true, Ordering::Release);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn state(pool: &Pool, name: &str) -> VolumeState {
    pool.info(name).state
}

#[test]
fn volumes_are_deepened_when_the_policy_says() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        pool.mount("deepen=auto");
        for tree in ["manual", "linked", "idle", "late", "auto"] {
            fs::create_dir(pool.at(tree)).unwrap();
        }
        policy(pool, "set", "manual", &["--deepen", "manual"]).success();
        policy(pool, "set", "linked", &["--keep-linked"]).success();
        policy(pool, "set", "idle", &["--deepen", "idle"]).success();
        policy(pool, "set", "late", &["--deepen", "by 1000d"]).success();
        pool.write("base", &noise(1, 4 << 20));
        let file = File::create(pool.at("busy")).unwrap();
        let busy = || file.write_all_at(b"busy", 0).unwrap();
        busy();
        for tree in ["manual", "linked", "idle", "late", "auto"] {
            pool.clone("base", &format!("{tree}/vm"));
        }
        while_busy(&busy, || {
            wait_until(|| state(pool, "auto/vm") == VolumeState::Independent);
            // The others had their turn as well, and nobody has been at rest.
            for tree in ["manual", "linked", "idle", "late"] {
                assert_eq!(state(pool, &format!("{tree}/vm")), VolumeState::Overlay, "{tree}");
            }
            assert!(!pool.info("manual/vm").queued && !pool.info("linked/vm").queued && pool.info("idle/vm").queued);
        });
        // Looking at the state is no request for bytes.
        wait_until(|| state(pool, "idle/vm") == VolumeState::Independent);
        wait_until(|| state(pool, "late/vm") == VolumeState::Independent);
        assert_eq!(state(pool, "manual/vm"), VolumeState::Overlay);
        pool.deepen("manual/vm");
        let linked = pool.at("linked/vm");
        clonefs(["deepen", linked.to_str().unwrap()]).code(1);
        assert_eq!(state(pool, "linked/vm"), VolumeState::Overlay);

        // A time that has passed, and a pool that is mounted to deepen nothing.
        drop(file);
        pool.unmount();
        pool.mount("deepen=manual");
        let file = File::options().read(true).write(true).open(pool.at("busy")).unwrap();
        let busy = || file.write_all_at(b"busy", 0).unwrap();
        policy(pool, "set", "late", &["--deepen", "by 2020-01-01T00:00:00Z"]).success();
        pool.clone("base", "late/again");
        pool.clone("base", "manual/again");
        while_busy(&busy, || wait_until(|| state(pool, "late/again") == VolumeState::Independent));
        assert_eq!(state(pool, "manual/again"), VolumeState::Overlay);
        policy(pool, "unset", "linked", &[]).success();
        pool.deepen("linked/vm");
    });
}

#[test]
fn what_was_read_a_moment_ago_is_copied_first() {
    const MIB: u64 = 1 << 20;
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        pool.mount("deepen=manual");
        // Slow enough to see which part comes first, whatever else this machine does.
        policy(pool, "set", "", &["--order", "hot", "--rate", "1M"]).success();
        pool.write("base", &noise(1, 100 * MIB as usize));
        pool.clone("base", "vm");
        clonefs([Path::new("deepen"), &pool.at("vm")]).success();
        // Where the clone's own file has its first data after the first half.
        let own = || {
            let files = fs::read_dir(pool.below(".clonefs/layers")).unwrap().flatten();
            let mut data = files.filter(|entry| {
                // The source has another name, in the tree.
                entry.path().extension().is_some_and(|end| end == "data") && entry.metadata().unwrap().nlink() == 1
            });
            data.next().map(|entry| File::open(entry.path()).unwrap())
        };
        let next = |file: &File| support::seek(file, 50 * MIB as i64, libc::SEEK_DATA).ok();
        wait_until(|| pool.info("vm").progress > 0.0);
        let mut byte = [0];
        File::open(pool.at("vm")).unwrap().read_exact_at(&mut byte, 80 * MIB).unwrap();
        let own = own().unwrap();
        wait_until(|| next(&own).is_some());
        assert_eq!(next(&own), Some(80 * MIB as i64));
    });
}

/// Names of the snapshots of a volume, and whether a schedule made them.
fn snapshots(pool: &Pool, of: &str) -> Vec<(String, bool)> {
    let list = clonefs(["snapshot", "list", "--json", pool.at(of).to_str().unwrap()]).success().stdout;
    let list: Vec<Value> = serde_json::from_str(&list).unwrap();
    list.iter().map(|row| (row["name"].as_str().unwrap().to_owned(), row["scheduled"] == true)).collect()
}

#[test]
fn snapshots_are_made_by_schedule_and_what_people_made_stays() {
    on(&[Backing::Ext4], |pool| {
        fs::create_dir(pool.at("lab")).unwrap();
        for name in ["vm.img", "lab/a", "lab/none"] {
            pool.write(name, name.as_bytes());
        }
        clonefs(["snapshot", "create", &format!("{}@mine-hourly", pool.at("vm.img").display())]).success();
        policy(pool, "set", "lab/none", &["--snapshots", "none"]).success();
        policy(pool, "set", "lab/a", &["--protect"]).success();
        policy(pool, "set", "", &["--snapshots", "hourly=1,weekly=2"]).success();
        let made = |of: &str, ending: &str| -> Vec<String> {
            let all = snapshots(pool, of).into_iter().filter(|(name, scheduled)| *scheduled && name.ends_with(ending));
            all.map(|(name, _)| name).collect()
        };
        wait_until(|| ["vm.img", "lab/a"].iter().all(|of| made(of, "Z-hourly").len() == 1));
        wait_until(|| ["vm.img", "lab/a"].iter().all(|of| !made(of, "Z-weekly").is_empty()));
        assert!(snapshots(pool, "lab/none").is_empty());
        assert!(snapshots(pool, "vm.img").contains(&("mine-hourly".into(), false)));
        let weekly = made("lab/a", "Z-weekly")[0].clone();
        assert_eq!(fs::read(pool.at(".snapshots/lab").join(format!("a@{weekly}"))).unwrap(), b"lab/a");
        let told = || {
            let told = clonefs(["events", "--json", pool.root().to_str().unwrap()]).success().stdout;
            let told: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            told.into_iter().find(|event| event["path"] == format!("lab/a@{weekly}"))
        };
        wait_until(|| told().is_some());
        let told = told().unwrap();
        assert_eq!(
            (&told["event"], &told["why"], &told["uid"]),
            (&"snapshot".into(), &"by schedule".into(), &Value::Null)
        );

        // A name that somebody gives it is its own from then on, and the schedule makes another one.
        let old = format!("{}@{weekly}", pool.at("vm.img").display());
        clonefs(["snapshot", "rename", &old, "kept-weekly"]).success();
        policy(pool, "set", "vm.img", &["--snapshots", "weekly=1"]).success();
        pool.crash("deepen=manual");
        let made = |of: &str, ending: &str| {
            snapshots(pool, of).iter().filter(|(name, scheduled)| *scheduled && name.ends_with(ending)).count()
        };
        wait_until(|| made("vm.img", "Z-weekly") == 1);
        assert!(snapshots(pool, "vm.img").contains(&("kept-weekly".into(), false)));
        assert!(snapshots(pool, "vm.img").contains(&("mine-hourly".into(), false)));
        // What no schedule asks for any more stays.
        assert_eq!(made("vm.img", "Z-hourly"), 1);
        pool.unmount();
        clonefs([Path::new("check"), pool.root()]).success();
    });
}

#[test]
fn clones_are_named_by_template_and_rule() {
    on(&[Backing::Tmpfs], |pool| {
        pool.write("base.img", b"x");
        policy(pool, "set", "", &["--clone-name", "{stem}-copy{ext}", "--names", "*.img"]).success();
        let base = pool.at("base.img");
        let made = || clonefs(["clone", base.to_str().unwrap()]).success().stdout;
        assert!(made().ends_with("/base-copy.img\n"));
        assert!(made().ends_with("/base-copy-2.img\n"));
        let said = clonefs([Path::new("clone"), &base, &pool.at("wrong.raw")]).code(1);
        assert!(said.stderr.contains("names like *.img"), "{said:?}");
        assert!(!pool.at("wrong.raw").exists());
        pool.clone("base.img", "right.img");
    });
}
