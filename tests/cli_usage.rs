//! The command line without a mounted pool: usage errors, refusals that change nothing, help, manual and completions.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn clonefs(args: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_clonefs")).args(args).current_dir(dir).output().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that must be refused with `code`; gives what it said.
#[track_caller]
fn refused(args: &[&str], dir: &Path, code: i32) -> String {
    let output = clonefs(args, dir);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert!(output.stdout.is_empty(), "{args:?} printed {}", text(&output.stdout));
    said
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn wrong_usage_exits_2_and_says_what_would_be_right() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "a").unwrap();
    for (args, hint) in [
        (&["clone", "a", "b", "--size", "many"][..], "such as 40G"),
        (&["clone", "a", "b", "--size", "-1"], "is not a size"),
        (&["clone", "a", "b", "--size", "17P"], "more than a volume can have"),
        (&["clone", "a", "vm.img", "--count", "3"], "'vm{}.img'"),
        (&["clone", "a", "vm{:3}", "--count", "3"], "{:03}"),
        (&["clone", "a", "vm{}", "--count", "0"], "1..=1000000"),
        (&["clone", "a", "--count", "3"], "one source"),
        (&["clone", "a", "b", "--wait", "--no-deepen"], "cannot be used with"),
        (&["clone"], "required"),
        (&["mount", ".", "-o", "bogus"], "bogus"),
        (&["mount", ".", "--deepen", "never"], "auto, manual"),
        (&["mount", ".", "--rate", "fast"], "such as 40G"),
        (&["export", "a", "b"], "--format"),
        (&["export", "a", "b", "--format", "vhd"], "raw, qcow2, vmdk"),
        (&["export", "a", "b", "--format", "qcow2", "--cluster-size", "3K"], "power of two"),
        (&["import", "a", "b", "--format", "iso"], "raw, qcow2, vmdk, vhdx, vdi"),
        (&["deepen"], "required"),
        (&["completions", "tcsh"], "bash"),
        (&["clnoe", "a", "b"], "clone"),
        (&[], "Usage"),
    ] {
        let said = refused(args, dir.path(), 2);
        assert!(said.contains(hint), "{args:?} said {said}");
    }
    assert_eq!(names(dir.path()), ["a"]);
}

#[test]
fn outside_of_a_pool_nothing_is_done_and_the_remedy_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "a").unwrap();
    for args in [
        &["clone", "a", "b"][..],
        &["clone", "a"],
        &["clone", "a", "b", "--force"],
        &["clone", "a", "vm{}", "--count", "3"],
        &["list", "."],
        &["tree", "a"],
        &["status", "a"],
        &["deepen", "a"],
        &["pause", "."],
        &["wait", "a"],
    ] {
        let said = refused(args, dir.path(), 1);
        assert!(said.starts_with("clonefs: ") && said.contains("not on a mounted pool"), "{args:?} said {said}");
        assert!(said.contains("mount"), "{args:?} names no remedy: {said}");
    }
    assert_eq!(names(dir.path()), ["a"]);
    assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"a");
}

#[test]
fn check_has_the_exit_codes_of_fsck() {
    let dir = tempfile::tempdir().unwrap();
    let output = clonefs(&["check", "."], dir.path());
    assert!(output.status.success() && text(&output.stdout).starts_with("clean"), "{output:?}");
    assert!(clonefs(&["init", "."], dir.path()).status.success());
    assert!(refused(&["init", "."], dir.path(), 1).contains("pool already"));
    let hidden = fs::metadata(dir.path().join(".clonefs")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&hidden.permissions()) & 0o7777, 0o700);
    let output = clonefs(&["check", ".", "--json"], dir.path());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), report["problems"].as_array().map(Vec::len)), (Some(0), Some(0)));
    fs::set_permissions(dir.path().join(".clonefs"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = clonefs(&["check", "."], dir.path());
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stdout).contains("chmod 700"), "{output:?}");
    // What can be repaired is, and says so; then there is nothing left to do.
    let output = clonefs(&["check", ".", "--repair"], dir.path());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stdout).contains("mode 755 changed to 700"), "{output:?}");
    assert_eq!(clonefs(&["check", ".", "--repair"], dir.path()).status.code(), Some(0));
    fs::write(dir.path().join(".clonefs/catalogue"), b"noise").unwrap();
    assert_eq!(clonefs(&["check", "."], dir.path()).status.code(), Some(4));
    let output = clonefs(&["check", ".", "--repair", "--json"], dir.path());
    let repaired: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), repaired["kept"].as_str()), (Some(1), Some(".clonefs/lost/1")));
    assert_eq!(fs::read(dir.path().join(".clonefs/lost/1/catalogue")).unwrap(), b"noise");
    fs::write(dir.path().join("a"), b"a").unwrap();
    assert!(refused(&["check", ".", "--repair", "--accept", "a"], dir.path(), 8).contains("nothing about it"));
    assert!(refused(&["check", ".", "--accept", "a"], dir.path(), 16).contains("--repair"));
    assert!(refused(&["check"], dir.path(), 8).contains("name the pool"));
    assert!(refused(&["check", "no/such"], dir.path(), 8).contains("no/such"));
    assert!(refused(&["check", "--bogus"], dir.path(), 16).contains("--bogus"));
}

#[test]
fn what_is_missing_or_no_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "a").unwrap();
    fs::write(dir.path().join("b"), "b").unwrap();
    assert!(refused(&["clone", "a", "no/such/b"], dir.path(), 1).contains("\"no/such\""));
    assert!(refused(&["clone", "a", "no/"], dir.path(), 1).contains("mkdir -p"));
    assert!(refused(&["clone", "a", "b", "a"], dir.path(), 1).contains("several sources need a directory"));
    assert!(refused(&["list", "no\u{1b}[2J"], dir.path(), 1).contains(r"no\u{1b}[2J"));
    assert!(refused(&["unmount", "."], dir.path(), 1).contains("no clonefs mount here"));
}

#[test]
fn every_command_has_help_with_examples() {
    let dir = tempfile::tempdir().unwrap();
    let help = text(&clonefs(&["--help"], dir.path()).stdout);
    assert!(help.contains("Exit codes"), "{help}");
    let (_, list) = help.split_once("Commands:\n").expect("a list of commands");
    let (list, _) = list.split_once("\n\n").expect("an end of the list");
    let commands: Vec<&str> = list
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert!(commands.contains(&"clone") && commands.len() >= 14, "{commands:?}");
    for command in commands {
        let output = clonefs(&[command, "--help"], dir.path());
        let help = text(&output.stdout);
        assert!(output.status.success() && help.contains("Examples:\n"), "{command}: {help}");
        assert!(help.contains(&format!("clonefs {command}")), "{command}: {help}");
    }
}

#[test]
fn version_manual_and_completions_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let version = text(&clonefs(&["--version"], dir.path()).stdout);
    assert_eq!(version, format!("clonefs {}\n", env!("CARGO_PKG_VERSION")));
    assert!(clonefs(&["man", "pages/man1"], dir.path()).status.success());
    let page = fs::read_to_string(dir.path().join("pages/man1/clonefs-clone.1")).unwrap();
    assert!(page.contains(".TH") && page.contains("base.img"), "{page}");
    assert!(names(&dir.path().join("pages/man1")).len() >= 15);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = text(&clonefs(&["completions", shell], dir.path()).stdout);
        assert!(script.contains("clone") && script.contains("qcow2"), "{shell}: {script}");
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let script =
        format!("set -o pipefail; {:?} completions bash | head -c 1 >/dev/null", env!("CARGO_BIN_EXE_clonefs"));
    let output = Command::new("bash").args(["-c", &script]).output().expect("bash runs");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
}
