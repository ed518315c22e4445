//! Workloads and verifications that are programs.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use clonefs::error::{Context, Error, Kind, Result};
use crashdisk::record::Site;
use crashdisk::replay::Crash;
use crashdisk::sys;

/// The process that a signal to us ends first; 0 for none.
static CHILD: AtomicI32 = AtomicI32::new(0);

/// On SIGINT and SIGTERM: end the command, note it, and let the work come to an orderly end.
/// A reader that has seen enough ends us as it ends other programs.
pub fn watch_signals() {
    // SAFETY: SIG_DFL is a valid disposition.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only stores to atomics and calls kill, both of which a signal handler may do.
        unsafe { libc::signal(signal, interrupted as *const () as libc::sighandler_t) };
    }
}

extern "C" fn interrupted(_signal: libc::c_int) {
    sys::interrupt();
    let child = CHILD.load(Ordering::SeqCst);
    if child > 0 {
        // SAFETY: kill takes no pointers.
        unsafe { libc::kill(child, libc::SIGKILL) };
    }
}

/// Runs a workload at `site`.
pub fn workload(command: &[String], site: &Site) -> Result<()> {
    let mut process = contained(command);
    process.env("CRASHDISK_MNT", &site.mnt).env("CRASHDISK_MARK", &site.mark);
    let status = run(process, None)?;
    let Some(status) = status.filter(|status| !status.success()) else { return Ok(()) };
    let error = Error::new(Kind::Invalid, format!("run workload {:?}", command.join(" ")));
    Err(error.because(ended(status)).remedy("a recording needs a workload that ends well"))
}

/// A verification that is a program.
pub struct Verifier<'a> {
    command: &'a [String],
    timeout: Duration,
    dir: tempfile::TempDir,
}

impl Verifier<'_> {
    /// The verification `command`; it is ended after `timeout`.
    pub fn new(command: &[String], timeout: Duration) -> Result<Verifier<'_>> {
        let dir = tempfile::Builder::new().prefix("crashdisk.").tempdir();
        Ok(Verifier { command, timeout, dir: dir.context("make directory in", std::env::temp_dir())? })
    }

    /// Runs it on one state. What it printed last is the complaint.
    pub fn verify(&self, crash: &Crash) -> std::result::Result<(), String> {
        let (marks, output) = (self.dir.path().join("marks"), self.dir.path().join("output"));
        let lines: String = crash.marks.iter().flat_map(|mark| [*mark, "\n"]).collect();
        let prepare = || -> std::io::Result<(File, File)> {
            std::fs::write(&marks, lines)?;
            let output = File::create(&output)?;
            Ok((output.try_clone()?, output))
        };
        let (stdout, stderr) = prepare().map_err(|e| format!("crashdisk could not run it: {e}"))?;
        let mut process = contained(self.command);
        process.env("CRASHDISK_MNT", crash.mnt).env("CRASHDISK_MARKS", &marks).env("CRASHDISK_STATE", crash.name);
        process.stdin(std::process::Stdio::null()).stdout(stdout).stderr(stderr);
        let why = match run(process, Some(self.timeout)).map_err(|e| e.to_string())? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => ended(status),
            None => format!("it did not end within {} s", self.timeout.as_secs()),
        };
        Err(format!("{}{why}", tail(&output)))
    }
}

/// `command` in its own process and mount name space. When it ends, so does everything that it started.
fn contained(command: &[String]) -> Command {
    let mut process = Command::new("unshare");
    process.args(["--pid", "--fork", "--mount-proc", "--kill-child", "--"]).args(command);
    process
}

/// Runs a process to its end; `None` when it had to be ended because it took too long.
fn run(mut process: Command, timeout: Option<Duration>) -> Result<Option<ExitStatus>> {
    let mut child = process.spawn().context("run", "unshare")?;
    let pid = child.id() as libc::pid_t;
    CHILD.store(pid, Ordering::SeqCst);
    let (finished, waiting) = mpsc::channel::<()>();
    let watchdog = timeout.map(|timeout| {
        std::thread::spawn(move || {
            let late = waiting.recv_timeout(timeout) == Err(mpsc::RecvTimeoutError::Timeout);
            if late {
                // SAFETY: kill takes no pointers. The number is the child's own until it has been waited for, and then
                // the channel is closed within microseconds.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
            late
        })
    });
    let status = child.wait().context("wait for", "unshare");
    CHILD.store(0, Ordering::SeqCst);
    drop(finished);
    let late = watchdog.is_some_and(|watchdog| watchdog.join().unwrap_or(false));
    if sys::was_interrupted() {
        return Err(Error::new(Kind::Interrupted, "run command"));
    }
    status.map(|status| (!late).then_some(status))
}

fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(127), _) => "exit code 127: is there such a command?".into(),
        (Some(code), _) => format!("exit code {code}"),
        (_, Some(signal)) => format!("ended by signal {signal}"),
        _ => "ended in an unknown way".into(),
    }
}

/// The last lines of a file of output.
fn tail(path: &Path) -> String {
    const LIMIT: usize = 4096;
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LIMIT)..]).into_owned();
    if text.is_empty() || text.ends_with('\n') { text } else { text + "\n" }
}
