//! Runs the real `cp` and `clonecp` on two equal trees and compares everything that can be seen afterwards.

#![allow(dead_code, reason = "every test program uses another part of this module")]

pub mod mounts;
pub mod tree;
pub mod zoo;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// An ordinary user.
pub const NOBODY: u32 = 65534;

/// The version of `cp` that all comparisons are with.
const CP_VERSION: &str = "9.1";

/// How a case is run.
#[derive(Clone, Debug, Default)]
pub struct Call<'a> {
    /// Words after the program's name.
    pub words: Vec<&'a OsStr>,
    /// Answers on standard input.
    pub input: &'a str,
    /// Run as an ordinary user.
    pub as_nobody: bool,
    /// Additional environment.
    pub environment: &'a [(&'a str, &'a str)],
    /// The umask, 022 if not given.
    pub umask: Option<u32>,
}

impl<'a> Call<'a> {
    /// A call whose words are separated by single spaces.
    pub fn line(line: &'a str) -> Call<'a> {
        Call { words: line.split(' ').filter(|w| !w.is_empty()).map(OsStr::new).collect(), ..Call::default() }
    }
}

/// We may do what only root may.
pub fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says loudly that something was not tested.
pub fn skipped(what: &str, why: &str) {
    eprintln!("\n*** SKIPPED: {what}: {why} ***\n");
}

/// The `cp` to compare with is here; says so if it is not.
pub fn have_cp(test: &str) -> bool {
    static VERSION: OnceLock<String> = OnceLock::new();
    let version = VERSION.get_or_init(|| {
        let output = Command::new("cp").arg("--version").output();
        output
            .map(|o| String::from_utf8_lossy(&o.stdout).lines().next().unwrap_or_default().to_string())
            .unwrap_or_default()
    });
    let ours = version.ends_with(&format!("(GNU coreutils) {CP_VERSION}"));
    if !ours {
        skipped(test, &format!("needs GNU cp {CP_VERSION}, this machine has {version:?}"));
    }
    ours
}

/// A place for trees. A tmpfs where there is one: it is fast, and numbers inodes in the order of their making, which
/// is the order in which directories are copied.
pub fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    scratch_in(if in_order(memory) { memory } else { Path::new("/tmp") })
}

/// A place for trees on a given filesystem.
pub fn scratch_in(place: &Path) -> TempDir {
    let directory =
        tempfile::Builder::new().prefix("clonecp-test-").tempdir_in(place).expect("a directory for the test");
    open_up(directory.path(), 0o755);
    directory
}

/// Inodes there are numbered in order, and space is given out the same way each time.
fn in_order(place: &Path) -> bool {
    const TMPFS: u64 = 0x0102_1994;
    rustix::fs::statfs(place).is_ok_and(|stat| stat.f_type as u64 == TMPFS)
}

/// Served by a daemon.
fn is_fuse(place: &Path) -> bool {
    const FUSE: u64 = 0x6573_5546;
    rustix::fs::statfs(place).is_ok_and(|stat| stat.f_type as u64 == FUSE)
}

/// Sets a mode.
pub fn open_up(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// A copy of `clonecp` that any user can run, wherever the build directory is.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    extern "C" fn remove() {
        if let Some(directory) = PROGRAM.get().and_then(|program| program.parent()) {
            let _ = fs::remove_dir_all(directory);
        }
    }
    PROGRAM.get_or_init(|| {
        let path = scratch().keep().join("clonecp");
        fs::copy(env!("CARGO_BIN_EXE_clonecp"), &path).expect("copy the program");
        // SAFETY: the function stays as long as the program, takes nothing and does not unwind.
        unsafe { libc::atexit(remove) };
        path
    })
}

/// What a program printed and how it ended, with its own name taken out.
#[derive(Debug, PartialEq, Eq)]
pub struct Result {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Result {
    /// Puts the lines in an order that does not depend on that of directories.
    fn sort(&mut self) {
        for text in [&mut self.stdout, &mut self.stderr] {
            let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
            lines.sort_unstable();
            *text = lines.concat();
        }
    }
}

/// Runs one of the two in `directory`.
pub fn run(program: &Path, directory: &Path, call: &Call) -> Result {
    // A shell sets the umask: doing it between fork and exec would make every start slower by a factor.
    let mut command = match call.umask {
        None => Command::new(program),
        Some(umask) => {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("umask {umask:o}; exec \"$0\" \"$@\"")]).arg(program);
            command
        }
    };
    command.args(&call.words).current_dir(directory).env_clear().env("LC_ALL", "C").env("PATH", "/usr/bin:/bin");
    command.envs(call.environment.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if call.as_nobody {
        command.uid(NOBODY).gid(NOBODY);
    }
    let mut child = command.spawn().expect("start the program");
    // A program that asks nothing may be gone before it is answered.
    let _ = child.stdin.take().expect("piped").write_all(call.input.as_bytes());
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait().expect("wait").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("kill");
            panic!("{} {:?} did not end in a minute", program.display(), call.words);
        }
        std::thread::sleep(Duration::from_micros(300));
    }
    text(&child.wait_with_output().expect("output"))
}

fn text(output: &Output) -> Result {
    let clean = |bytes: &[u8]| {
        let text = bytes.iter().map(|&b| b as char).collect::<String>();
        text.replace("clonecp: ", "cp: ").replace("'clonecp --help'", "'cp --help'")
    };
    Result { status: output.status.code(), stdout: clean(&output.stdout), stderr: clean(&output.stderr) }
}

/// Differences between the two, `None` if there are none. `build` fills the directory that each of them works in.
pub fn difference(call: &Call, build: &dyn Fn(&Path)) -> Option<String> {
    compare_in(scratch().path(), call, build)
}

/// The same, in a directory below `place`.
pub fn compare_in(place: &Path, call: &Call, build: &dyn Fn(&Path)) -> Option<String> {
    let exact = in_order(place);
    let clonefs = is_fuse(place);
    let outcome = |program: &Path| {
        let directory = scratch_in(place);
        let work = directory.path().join("w");
        fs::create_dir(&work).expect("mkdir");
        open_up(&work, 0o777);
        build(&work);
        let mut result = run(program, &work, call);
        if !exact {
            result.sort();
        }
        let mut tree = tree::look(&work);
        if !exact {
            tree::forget(&mut tree, "blocks ");
        }
        if clonefs {
            // Reading changes it; a clone through the door of the daemon reads nothing.
            tree::forget(&mut tree, "atime ");
        }
        (result, tree)
    };
    let (theirs, their_tree) = outcome(Path::new("cp"));
    let (ours, our_tree) = outcome(program());
    let mut report = Vec::new();
    if theirs.status != ours.status {
        report.push(format!("status: cp {:?}, clonecp {:?}", theirs.status, ours.status));
    }
    for (what, theirs, ours) in [("stdout", &theirs.stdout, &ours.stdout), ("stderr", &theirs.stderr, &ours.stderr)] {
        if theirs != ours {
            report.push(format!("{what}:\n  cp:      {theirs:?}\n  clonecp: {ours:?}"));
        }
    }
    report.extend(tree::differences(&their_tree, &our_tree));
    (!report.is_empty()).then(|| format!("{:?} {:?}\n{}", call.words, call.environment, report.join("\n")))
}

/// Compares all calls, on all processors, and fails with what differed.
pub fn compare_all(test: &str, calls: &[Call], build: &(dyn Fn(&Path) + Sync)) {
    compare_all_in(scratch().path(), test, calls, build);
}

/// The same, in directories below `place`.
pub fn compare_all_in(place: &Path, test: &str, calls: &[Call], build: &(dyn Fn(&Path) + Sync)) {
    if !have_cp(test) {
        return;
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(call) = calls.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Some(difference) = compare_in(place, call, &|path| build(path)) {
                        found.lock().expect("lock").push(difference);
                    }
                }
            });
        }
    });
    let found = found.into_inner().expect("lock");
    assert!(
        found.is_empty(),
        "{} of {} calls differ from cp:\n\n{}",
        found.len(),
        calls.len(),
        found.iter().take(40).cloned().collect::<Vec<_>>().join("\n\n")
    );
    eprintln!("{test}: {} calls compared", calls.len());
}
