//! Other programs, and Ctrl-C: a program that runs is ended and waited for, then everything is cleaned up.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::failure::{Failure, Outcome};

static STOPPED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: libc::c_int) {
    STOPPED.store(true, Ordering::Relaxed);
}

/// From now on SIGINT, SIGTERM and SIGHUP end the measuring at its next step, and not this process.
pub fn note_signals() {
    // SAFETY: zero is a valid value for every field of sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = note as extern "C" fn(libc::c_int) as usize;
    action.sa_flags = libc::SA_RESTART;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler does nothing but store into an atomic.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
}

/// Whether a signal came.
pub fn is_stopped() -> bool {
    STOPPED.load(Ordering::Relaxed)
}

/// Fails once a signal came.
pub fn check() -> Outcome<()> {
    if is_stopped() { Err(Failure::Stopped) } else { Ok(()) }
}

/// The path of a program, if it is there.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // mkfs and its like are not in everybody's PATH.
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places.map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Says which of these programs are not there.
pub fn missing(programs: &[&str]) -> Option<String> {
    let absent: Vec<&str> = programs.iter().copied().filter(|program| find(program).is_none()).collect();
    (!absent.is_empty()).then(|| format!("no {} here", absent.join(", ")))
}

/// A command that finds programs as [`find`] does.
pub fn command(program: &str) -> Command {
    Command::new(find(program).unwrap_or_else(|| program.into()))
}

/// Runs a program to its end; gives its output and how long it ran.
pub fn output(command: &mut Command) -> Outcome<(String, Duration)> {
    // A group of its own: Ctrl-C comes to us alone, who may be in the middle of something.
    std::os::unix::process::CommandExt::process_group(command, 0);
    let began = Instant::now();
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|error| Failure::line(format!("{}: {error}", name(command))))?;
    let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let ended = wait(&mut child);
    let took = began.elapsed();
    let (stdout, stderr) = (text(stdout), text(stderr));
    if ended? {
        return Ok((stdout, took));
    }
    let why = stderr.lines().last().unwrap_or("failed and said nothing").to_owned();
    Err(Failure::line(format!("{}: {why}", name(command))))
}

/// The same where only the end matters; not ended by Ctrl-C, for cleaning up.
pub fn finish(command: &mut Command) -> bool {
    std::os::unix::process::CommandExt::process_group(command, 0);
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

fn name(command: &Command) -> String {
    Path::new(command.get_program()).file_name().unwrap_or(OsStr::new("?")).to_string_lossy().into_owned()
}

fn collect(stream: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            drop(stream.read_to_end(&mut bytes));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn text(thread: JoinHandle<String>) -> String {
    thread.join().unwrap_or_default()
}

/// Waits for the end of a child, or ends it after a signal. Whether it succeeded.
fn wait(child: &mut Child) -> Outcome<bool> {
    // A watcher ends it on Ctrl-C; the wait itself is exact.
    let pid = child.id() as libc::pid_t;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                if is_stopped() {
                    // SAFETY: a child that nobody has waited for yet; its pid is not given to another process.
                    unsafe { libc::kill(-pid, libc::SIGTERM) };
                }
                std::thread::park_timeout(Duration::from_millis(50));
            }
        });
        // Not reaped before the watcher is told: the pid stays ours.
        let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::uninit();
        loop {
            let flags = libc::WEXITED | libc::WNOWAIT;
            // SAFETY: info has room for a siginfo.
            let waited = unsafe { libc::waitid(libc::P_PID, child.id(), info.as_mut_ptr(), flags) };
            if waited == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
                break;
            }
        }
        done.store(true, Ordering::Release);
        watcher.thread().unpark();
    });
    let status = child.wait().map_err(|error| Failure::line(format!("wait for a program: {error}")))?;
    check()?;
    Ok(status.success())
}
