//! The command line, run as a user runs it.

use std::process::{Command, Output};

fn crashdisk(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_crashdisk")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn can_mount() -> bool {
    let Some(missing) = crashdisk::sys::missing() else { return true };
    assert!(std::env::var_os("CI").is_none(), "{missing} is missing");
    eprintln!("SKIPPED: {missing} is missing");
    false
}

/// Ten files, each synced or only said to be.
fn workload(sync: &str) -> String {
    format!(
        "cd $CRASHDISK_MNT; for n in 1 2 3 4 5 6 7 8 9 10; do \
         echo contents of $n > file$n; {sync} file$n; echo synced file$n >> $CRASHDISK_MARK; done"
    )
}

const VERIFY: &str = "cd $CRASHDISK_MNT; grep ^synced $CRASHDISK_MARKS | while read _ name; do \
                      grep -q ^contents $name || { echo lost: $name; exit 1; }; done";

#[test]
fn a_shell_script_is_recorded_and_verified() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log").display().to_string();
    let record = |sync: &str| {
        let out =
            crashdisk(&["record", "--fs", "ext4", "--size", "64M", "--log", &log, "--", "sh", "-c", &workload(sync)]);
        assert!(out.status.success() && out.stdout.is_empty(), "{}{}", text(&out.stdout), text(&out.stderr));
    };
    let replay = |more: &[&str]| {
        let mut arguments = vec!["replay", "--log", &log, "--seed", "3", "--states", "60"];
        arguments.extend_from_slice(more);
        arguments.extend(["--", "sh", "-c", VERIFY]);
        crashdisk(&arguments)
    };

    record("sync");
    let good = replay(&[]);
    let said = text(&good.stdout);
    assert!(said.starts_with("states 60  violations 0  seed 3  mode mixed"), "{said}{}", text(&good.stderr));
    assert_eq!(good.status.code(), Some(0));

    record("true");
    let bad = replay(&[]);
    let said = text(&bad.stdout);
    assert_eq!(bad.status.code(), Some(1), "{said}");
    assert!(said.contains("    lost: file"), "{said}");
    // The line that it prints shows the same violation again.
    let again = said.lines().find_map(|line| line.trim().strip_prefix("again: crashdisk ")).unwrap();
    let again =
        Command::new("sh").args(["-c", &format!("{} {again}", env!("CARGO_BIN_EXE_crashdisk"))]).output().unwrap();
    assert_eq!(text(&again.stdout).lines().next(), said.lines().next());
    assert!(text(&again.stdout).contains("states 1  violations 1  seed 3"), "{}", text(&again.stdout));

    let image = dir.path().join("image");
    let saved = crashdisk(&["replay", "--log", &log, "--seed", "3", "--state", "1", "--save", image.to_str().unwrap()]);
    assert!(saved.status.success(), "{}", text(&saved.stderr));
    assert_eq!(image.metadata().unwrap().len(), 64 << 20);
    let dump = text(&crashdisk(&["dump", &log]).stdout);
    assert!(dump.starts_with("# ext4 on 64M, commit=1\n") && dump.contains(" mark synced file3\n"), "{dump}");
}

#[test]
fn what_a_command_leaves_behind_is_ended() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log").display().to_string();
    // A mount on top and a process that sits in it: both would keep the filesystem busy.
    let leave =
        "mkdir $CRASHDISK_MNT/sub; mount -t tmpfs none $CRASHDISK_MNT/sub; cd $CRASHDISK_MNT/sub; sleep 1000 & exit 0";
    let out = crashdisk(&["record", "--size", "64M", "--log", &log, "--", "sh", "-c", leave]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let out = crashdisk(&[
        "replay",
        "--log",
        &log,
        "--states",
        "3",
        "--seed",
        "1",
        "--",
        "sh",
        "-c",
        "cd $CRASHDISK_MNT; sleep 1000 & exit 0",
    ]);
    assert!(out.status.success(), "{}", text(&out.stdout));
    let out = crashdisk(&["replay", "--log", &log, "--states", "1", "--timeout", "1", "--", "sleep", "1000"]);
    assert!(text(&out.stdout).contains("it did not end within 1 s"), "{}", text(&out.stdout));
}

#[test]
fn errors_name_the_file_and_the_remedy() {
    let usage = |arguments: &[&str]| assert_eq!(crashdisk(arguments).status.code(), Some(2), "{arguments:?}");
    usage(&["record", "--fs", "fat", "--log", "x", "--", "true"]);
    usage(&["record", "--size", "big", "--log", "x", "--", "true"]);
    usage(&["record", "--log", "x"]);
    usage(&["replay", "--log", "x", "--mode", "some", "--", "true"]);
    usage(&["replay", "--log", "x", "--states", "0", "--", "true"]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let failure = |arguments: &[&str], message: &str| {
        let out = crashdisk(arguments);
        assert_eq!(out.status.code(), Some(1), "{arguments:?}");
        assert!(text(&out.stderr).contains(message), "{}", text(&out.stderr));
    };
    let name = path.to_str().unwrap();
    failure(&["replay", "--log", name, "--", "true"], "No such file");
    std::fs::write(&path, "something else").unwrap();
    failure(&["replay", "--log", name, "--", "true"], "not a crashdisk log (record again)");
    if can_mount() {
        failure(&["record", "--size", "64M", "--log", name, "--", "false"], "exit code 1");
        failure(&["replay", "--log", name, "--", "true"], "did not come to its end (record again)");
        failure(&["record", "--fs", "xfs", "--size", "20M", "--log", name, "--", "true"], "mkfs.xfs:");
    }
}
