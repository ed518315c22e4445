//! Everything small and once, and what is left afterwards: nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use quick_xml::events::Event;
use serde_json::Value;

/// A directory with a file of the user's in it.
fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mine"), "mine").unwrap();
    dir
}

/// Only the user's file is there, as it was, and nothing is mounted.
fn assert_untouched(dir: &Path) {
    let names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["mine"]);
    assert_eq!(std::fs::read_to_string(dir.join("mine")).unwrap(), "mine");
    assert_eq!(mounts_below(dir), Vec::<PathBuf>::new(), "mounts");
}

/// Whether a fio is at work on a file below the directory.
fn fio_runs_in(dir: &Path) -> bool {
    let command = |entry: std::fs::DirEntry| std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
    let mut commands = std::fs::read_dir("/proc").unwrap().flatten().map(command);
    let file = format!("--filename={}/", dir.display());
    commands.any(|line| String::from_utf8_lossy(&line).contains(&file))
}

fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let mounts = clonefs::daemon::mount::table::mounts().unwrap().into_iter().map(|mount| mount.mountpoint);
    mounts.filter(|path| path.starts_with(dir) && path != dir).collect()
}

/// The clonefs program beside ours; built if it is not there.
fn clonefs() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_clonebench")).with_file_name("clonefs");
    if !path.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "clonefs", "--bin", "clonefs"]);
        assert!(build.status().unwrap().success());
    }
    path
}

fn clonebench(dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clonebench"));
    command.arg(dir).args(words).stdin(Stdio::null());
    if !words.contains(&"--clonefs") {
        command.arg("--clonefs").arg(clonefs());
    }
    command
}

fn fails(dir: &Path, words: &[&str], says: &str) {
    let done = clonebench(dir, words).output().unwrap();
    let stderr = text(&done);
    assert!(!done.status.success(), "{stderr}");
    assert!(stderr.contains(says), "{stderr}");
}

fn text(done: &Output) -> String {
    String::from_utf8_lossy(&done.stderr).into_owned()
}

/// Whether the rows can run here.
fn ready() -> bool {
    let root = rustix::process::geteuid().is_root();
    let devices = ["/dev/fuse", "/dev/loop-control"].iter().all(|device| Path::new(device).exists());
    if root && devices {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "clonebench's tests need root, FUSE and loop devices");
    eprintln!("SKIPPED: clonebench's tests need root, FUSE and loop devices");
    false
}

/// A filesystem in memory, so that a busy disk does not hold the test up.
struct Memory(tempfile::TempDir);

impl Memory {
    fn new() -> Memory {
        let memory = Memory(tempfile::tempdir().unwrap());
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=2G", "clonebench-test"]).arg(memory.0.path());
        assert!(mount.status().unwrap().success());
        std::fs::write(memory.0.path().join("mine"), "mine").unwrap();
        memory
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.0.path()).status());
    }
}

#[test]
fn every_row_measures_something_and_leaves_nothing() {
    if !ready() {
        return;
    }
    let memory = Memory::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let page = elsewhere.path().join("report.html");
    let words = ["--quick", "--json", "--report", page.to_str().unwrap()];
    let done = clonebench(memory.0.path(), &words).output().unwrap();
    assert!(done.status.success(), "{}", text(&done));
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(report["not_run"], Value::Array(Vec::new()), "{}", text(&done));
    let tables = report["tables"].as_array().unwrap();
    assert!(tables.len() > 20, "{} tables", tables.len());
    for table in tables {
        let series = table["series"].as_array().unwrap();
        assert!(!series.is_empty(), "{table}");
        for series in series {
            let figures = series["figures"].as_array().unwrap();
            // A figure that is none is null in JSON.
            assert!(!figures.is_empty() && figures.iter().all(Value::is_number), "{table}");
        }
    }
    // Peers that the machine of the tests has all of.
    for peer in ["qcow2 over FUSE", "reflink-xfs", "reflink-btrfs", "cp", "rsync", "qemu-convert"] {
        assert!(String::from_utf8_lossy(&done.stdout).contains(&format!("\"name\": \"{peer}\"")), "{peer}");
    }
    assert_shows(&std::fs::read_to_string(&page).unwrap(), &report);
    assert_untouched(memory.0.path());
}

/// The page is well-formed, and has a plot with all points of each curve, and each table.
fn assert_shows(page: &str, report: &Value) {
    let (mut plots, mut dots, mut headings) = (Vec::new(), 0, Vec::new());
    let mut reader = quick_xml::Reader::from_str(page);
    let mut inside = Vec::new();
    loop {
        match reader.read_event().unwrap() {
            Event::Start(tag) => inside.push(tag.name().as_ref().to_owned()),
            Event::End(tag) => {
                inside.pop();
                if tag.name().as_ref() == "svg" {
                    plots.push(std::mem::take(&mut dots));
                }
            }
            Event::Empty(tag) if tag.name().as_ref() == "circle" => dots += 1,
            Event::Text(text) if inside.last().is_some_and(|tag| tag == "h2") => {
                headings.push(text.into_inner().into_owned());
            }
            Event::Eof => break,
            _ => {}
        }
    }
    assert_eq!(inside, Vec::<String>::new());
    let array = |value: &Value| value.as_array().unwrap().clone();
    let curves = array(&report["curves"]);
    assert_eq!(curves.len(), 5, "size, fragmentation, depth twice, number");
    // One more dot for each name beside the plot.
    let lines = |curve: &Value| array(&curve["lines"]);
    let points = |curve| lines(curve).iter().map(|line| array(&line["points"]).len() + 1).sum::<usize>();
    assert_eq!(plots, curves.iter().map(points).collect::<Vec<usize>>());
    let places = |curve| lines(curve).iter().map(|line| array(&line["points"]).len()).max().unwrap();
    assert!(curves.iter().all(|curve| places(curve) > 1), "{curves:?}");
    let tables = array(&report["tables"]);
    let names = curves.iter().chain(&tables).map(|one| one["name"].as_str().unwrap());
    assert_eq!(headings, names.collect::<Vec<_>>());
}

#[test]
fn a_signal_ends_it_and_leaves_nothing() {
    if !ready() {
        return;
    }
    // During a program that it runs, during work of its own, with filesystems of its own mounted.
    for row in ["io", "stall", "clone"] {
        let dir = place();
        let mut command = clonebench(dir.path(), &["--rows", row, "--size", "32M", "--seconds", "600"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let began = Instant::now();
        let begun = || match row {
            "io" => fio_runs_in(dir.path()),
            _ => !mounts_below(dir.path()).is_empty(),
        };
        while !begun() {
            assert!(began.elapsed() < Duration::from_secs(60), "{row} does not begin");
            std::thread::sleep(Duration::from_millis(10));
        }
        // SAFETY: our child, which nobody has waited for.
        unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
        assert_eq!(child.wait().unwrap().code(), Some(130), "{row}");
        assert_untouched(dir.path());
    }
}

#[test]
fn what_cannot_be_measured_is_refused_in_one_line() {
    let dir = place();
    fails(&dir.path().join("mine"), &[], "is not a directory");
    fails(&dir.path().join("nothing"), &[], "No such file or directory");
    fails(dir.path(), &["--rows", "io,speed"], "there is no row \"speed\"");
    fails(dir.path(), &["--methods", "magic"], "there is no method \"magic\"");
    fails(dir.path(), &["--size", "7"], "at least 16M");
    fails(dir.path(), &["--report", "/no/such/place.html"], "No such file or directory");
    fails(dir.path(), &["--report", dir.path().join("mine").to_str().unwrap()], "is there already");
    fails(dir.path(), &["--clonefs", "/no/such/program"], "is no program");
    if ready() {
        fails(dir.path(), &["--size", "1000T"], "not enough space");
    }
    assert_untouched(dir.path());
}

#[test]
fn a_program_that_is_missing_is_named() {
    if !ready() {
        return;
    }
    let dir = place();
    let done = clonebench(dir.path(), &["--quick", "--rows", "io,cache"]).env("PATH", "").output().unwrap();
    assert!(done.status.success(), "{}", text(&done));
    assert!(text(&done).contains("io: not run: no fio here"), "{}", text(&done));
    assert!(String::from_utf8_lossy(&done.stdout).contains("32 clones of one image read in full"));
    assert_untouched(dir.path());
}
