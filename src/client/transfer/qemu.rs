//! Running qemu-img: a child that gets descriptors and no names, with limits, that can be stopped at any time.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal};
use serde_json::{Value, json};

use super::nbd::Export;
use super::output::{Output, write_error};
use super::{Cancel, interrupted};
use crate::error::{Error, Kind, Result};

/// The program.
const QEMU_IMG: &str = "qemu-img";
/// Address space of the child. It takes 1.2 GiB to compress on many cores; an image whose tables want more than this
/// is damaged or hostile.
const ADDRESS_SPACE: u64 = 4 << 30;
/// CPU time without a single request for data and without growth of the output after which the child counts as hung.
const CPU_SECONDS_IDLE: f64 = 120.0;
/// A failed write to a filesystem with less free space than this failed for that.
const FULL: u64 = 1 << 20;
/// How often cancellation and progress are looked at.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// Most that is kept of what the child says.
const MAX_STDOUT: u64 = 1 << 20;
const MAX_STDERR: u64 = 16 << 10;
/// Most of an error message that is passed on, in characters.
const MAX_MESSAGE: usize = 600;

/// One way of running qemu-img.
#[derive(Debug)]
pub struct QemuImg<'a> {
    /// What is being done, for errors.
    pub operation: &'static str,
    /// The file that is named in errors: the image, or the volume.
    pub path: &'a Path,
    /// The file that it writes.
    pub output: Option<Target<'a>>,
    /// Ends it.
    pub cancel: &'a Cancel,
}

/// The file that is written; the child inherits it.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The file.
    pub file: &'a File,
    /// Most bytes that it may be long.
    pub max_len: Option<u64>,
    /// Most bytes that it may occupy.
    pub max_allocated: Option<u64>,
}

/// How a run ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error as one line, safe to print.
    pub message: String,
}

/// The block node of the NBD server behind the inherited socket `fd`.
pub fn nbd_node(fd: RawFd) -> Value {
    json!({"driver": "nbd", "server": {"type": "fd", "str": fd.to_string()}, "export": ""})
}

impl QemuImg<'_> {
    /// Runs it while `exports` are served. `arguments` gets the descriptor of the socket of each export, in order.
    /// `percent` is called with what the child reports about itself, never with less than before.
    pub fn run(
        &self,
        exports: &[Export<'_>],
        arguments: impl FnOnce(&[RawFd]) -> Vec<String>,
        percent: &mut dyn FnMut(f64),
    ) -> Result<Finished> {
        self.run_program(QEMU_IMG, CPU_SECONDS_IDLE, exports, arguments, percent)
    }

    fn run_program(
        &self,
        program: &str,
        cpu_seconds_idle: f64,
        exports: &[Export<'_>],
        arguments: impl FnOnce(&[RawFd]) -> Vec<String>,
        percent: &mut dyn FnMut(f64),
    ) -> Result<Finished> {
        let io = |e: io::Error| Error::io(self.operation, e).at(self.path);
        let mut servers = Vec::new();
        let mut clients = Vec::new();
        for _ in exports {
            let (server, client) = UnixStream::pair().map_err(io)?;
            servers.push(server);
            clients.push(client);
        }
        let fds: Vec<RawFd> = clients.iter().map(AsRawFd::as_raw_fd).collect();
        let arguments = arguments(&fds);
        let mut child = Running(self.spawn(program, &arguments, &fds)?);
        // Ours must be closed, or the servers would never see that the child is gone.
        drop(clients);
        let (stdout, stderr) = (child.0.stdout.take(), child.0.stderr.take());
        let reported = AtomicU64::new(0);
        let (status, stdout, stderr) = thread::scope(|scope| {
            for (export, socket) in exports.iter().zip(&servers) {
                // An error of the socket means that the child went away, which its exit status tells better.
                scope.spawn(move || export.serve(socket));
            }
            let stdout = scope.spawn(|| read_stdout(stdout, &reported));
            let stderr = scope.spawn(|| read_some(stderr, MAX_STDERR));
            let mut watch = Watch { job: self, exports, reported: &reported, cpu_seconds_idle, percent };
            let status = watch.until_exit(&mut child.0);
            // Kills the child where `status` is an error; the threads end with it.
            drop(child);
            (status, stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default())
        });
        let status = status?;
        if let Some(failure) = exports.iter().find_map(|e| Some((e.take_failure()?, e.source().path()))) {
            return Err(Error::io(self.operation, failure.0).at(failure.1));
        }
        self.finish(status, stdout, &one_line(&stderr, &arguments))
    }

    fn spawn(&self, program: &str, arguments: &[String], fds: &[RawFd]) -> Result<Child> {
        let mut inherited = fds.to_vec();
        inherited.extend(self.output.map(|output| output.file.as_raw_fd()));
        let file_size = self.output.and_then(|output| output.max_len);
        let parent = rustix::process::getpid();
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        // Each malloc arena reserves address space, which is limited below.
        command.env("LC_ALL", "C").env("MALLOC_ARENA_MAX", "4");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C goes to our process group; the child is stopped by us, when we are done with it.
        command.process_group(0);
        // SAFETY: the closure runs between fork and exec: it makes system calls only, allocates nothing, takes no lock.
        unsafe { command.pre_exec(move || prepare_child(&inherited, file_size, parent)) };
        command.spawn().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::new(Kind::Unsupported, self.operation)
                .at(self.path)
                .because(format!("{program} is not installed"))
                .remedy("apt install qemu-utils"),
            _ => Error::io(format!("start {program}"), e),
        })
    }

    fn finish(&self, status: ExitStatus, stdout: Vec<u8>, message: &str) -> Result<Finished> {
        if let Some(code) = status.code() {
            return Ok(Finished { code, stdout, message: message.to_owned() });
        }
        let cause = match status.signal() {
            Some(libc::SIGXFSZ) => "qemu-img wanted to write more than the size of the image".to_owned(),
            signal => format!("qemu-img was ended by signal {}: {message}", signal.unwrap_or(0)),
        };
        Err(Error::new(Kind::Invalid, self.operation).at(self.path).because(cause))
    }

    /// The error of a run that was to read only and ended with a nonzero code.
    pub fn rejected(&self, finished: &Finished) -> Error {
        self.explain(finished, self.path, false)
    }

    /// The error of a run that was to write `output` and ended with a nonzero code.
    pub fn failed(&self, finished: &Finished, output: &Output) -> Error {
        // Some of qemu-img's formats have no other word for it than "invalid argument".
        let free = output.free_bytes().unwrap_or(u64::MAX);
        self.explain(finished, output.path(), free < FULL)
    }

    fn explain(&self, finished: &Finished, output: &Path, full: bool) -> Error {
        let text = &finished.message;
        if full {
            return write_error(io::Error::from_raw_os_error(libc::ENOSPC), output, self.operation);
        }
        for (words, errno) in [
            ("No space left on device", libc::ENOSPC),
            ("Disk quota exceeded", libc::EDQUOT),
            ("File too large", libc::EFBIG),
        ] {
            if text.contains(words) {
                return write_error(io::Error::from_raw_os_error(errno), output, self.operation);
            }
        }
        let text = if text.is_empty() { format!("qemu-img failed with code {}", finished.code) } else { text.clone() };
        Error::new(Kind::Invalid, self.operation).at(self.path).because(text)
    }
}

/// Set in the child before it becomes qemu-img.
fn prepare_child(inherited: &[RawFd], file_size: Option<u64>, parent: Pid) -> io::Result<()> {
    for &fd in inherited {
        // SAFETY: the descriptor is open: the parent holds it until spawn returns.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
    }
    limit(Resource::Core, 0)?;
    limit(Resource::As, ADDRESS_SPACE)?;
    if let Some(bytes) = file_size {
        limit(Resource::Fsize, bytes)?;
    }
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have died before the call above.
    if rustix::process::getppid() != Some(parent) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
}

/// Lowers a limit; one that is lower already stays.
fn limit(resource: Resource, value: u64) -> io::Result<()> {
    let now = rustix::process::getrlimit(resource).maximum;
    let value = Some(now.map_or(value, |now| now.min(value)));
    Ok(rustix::process::setrlimit(resource, Rlimit { current: value, maximum: value })?)
}

/// A child that is killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // With all that it may have started: our pipes stay open as long as one of them lives. Once the child has been
        // waited for its number may be that of something else.
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = rustix::process::kill_process_group(Pid::from_child(&self.0), Signal::KILL);
            let _ = self.0.wait();
        }
    }
}

/// Looks after a running child.
struct Watch<'a, 'b> {
    job: &'a QemuImg<'a>,
    exports: &'a [Export<'b>],
    reported: &'a AtomicU64,
    cpu_seconds_idle: f64,
    percent: &'a mut dyn FnMut(f64),
}

impl Watch<'_, '_> {
    fn until_exit(&mut self, child: &mut Child) -> Result<ExitStatus> {
        let io = |e: io::Error| Error::io("wait for qemu-img", e);
        let pid = Pid::from_child(child);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|e| io(e.into()))?;
        let mut last = (self.activity(), cpu_seconds(pid));
        loop {
            match rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&TICK)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(io(e.into())),
            }
            if let Some(status) = child.try_wait().map_err(io)? {
                return Ok(status);
            }
            if self.job.cancel.is_set() {
                return Err(interrupted(self.job.operation, self.job.path));
            }
            (self.percent)(self.reported.load(Ordering::Relaxed) as f64 / 100.0);
            let now = (self.activity(), cpu_seconds(pid));
            if self.job.output.and_then(|o| o.max_allocated).is_some_and(|max| now.0.2 > max) {
                let cause = "it holds more data than its file: parts of it overlap";
                return Err(Error::new(Kind::Invalid, self.job.operation).at(self.job.path).because(cause));
            }
            if now.0 != last.0 {
                last = now;
            } else if now.1 - last.1 > self.cpu_seconds_idle {
                let cause = "qemu-img works without getting anywhere: the image is damaged";
                return Err(Error::new(Kind::Invalid, self.job.operation).at(self.job.path).because(cause));
            }
        }
    }

    /// Numbers that change while the child gets on: requests, what it reported, bytes that the output occupies.
    fn activity(&self) -> (u64, u64, u64) {
        let requests = self.exports.iter().map(Export::requests).sum();
        let output = self.job.output.and_then(|o| rustix::fs::fstat(o.file).ok());
        (requests, self.reported.load(Ordering::Relaxed), output.map_or(0, |st| st.st_blocks as u64 * 512))
    }
}

/// CPU time that a process has used, in seconds; 0 where /proc does not tell.
fn cpu_seconds(pid: Pid) -> f64 {
    let read = || {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        // The second field, a name in parentheses, may hold anything; user and system time are fields 14 and 15.
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
        let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
        Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    };
    read().unwrap_or(0.0)
}

/// Reads all of standard output, keeps the beginning, and stores the last percentage it saw, times 100.
fn read_stdout(pipe: Option<impl Read>, reported: &AtomicU64) -> Vec<u8> {
    let (mut kept, mut tail) = (Vec::new(), String::new());
    let Some(mut pipe) = pipe else { return kept };
    let mut buffer = [0u8; 4096];
    loop {
        let n = match pipe.read(&mut buffer) {
            Ok(0) => return kept,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return kept,
        };
        if kept.len() as u64 + n as u64 <= MAX_STDOUT {
            kept.extend_from_slice(&buffer[..n]);
        }
        // A report is "    (12.34/100%)\r", perhaps cut in two.
        tail.push_str(&String::from_utf8_lossy(&buffer[..n]));
        if let Some((before, _)) = tail.rsplit_once("/100%)")
            && let Some(value) = before.rsplit_once('(').and_then(|(_, v)| v.parse::<f64>().ok())
        {
            reported.fetch_max((value.clamp(0.0, 100.0) * 100.0) as u64, Ordering::Relaxed);
        }
        let keep = tail.char_indices().rev().nth(31).map_or(0, |(i, _)| i);
        tail.drain(..keep);
    }
}

/// Reads all of a pipe and keeps the beginning.
fn read_some(pipe: Option<impl Read>, limit: u64) -> Vec<u8> {
    let mut kept = Vec::new();
    if let Some(mut pipe) = pipe {
        // The rest is read too: a child that cannot write would wait for ever.
        let _ = pipe.by_ref().take(limit).read_to_end(&mut kept);
        let _ = io::copy(&mut pipe, &mut io::sink());
    }
    kept
}

/// An error message of the child as one line: without its name, with words for the block nodes and descriptors that it
/// was given, and without control characters, since parts of it may come from the image.
fn one_line(stderr: &[u8], arguments: &[String]) -> String {
    let mut text = String::from_utf8_lossy(stderr).into_owned();
    for argument in arguments {
        let word = match argument {
            node if node.starts_with("json:") => "it",
            file if file.starts_with("/proc/self/fd/") => "the new file",
            _ => continue,
        };
        text = text.replace(&format!("'{argument}'"), word).replace(argument, word);
    }
    let mut line = String::new();
    for part in text.lines().map(|l| l.trim().trim_start_matches("qemu-img: ")).filter(|l| !l.is_empty()) {
        if !line.is_empty() {
            line.push_str("; ");
        }
        for c in part.chars().take(MAX_MESSAGE.saturating_sub(line.chars().count())) {
            // Writing to a String cannot fail.
            let _ = if c.is_control() { write!(line, "{}", c.escape_default()) } else { line.write_char(c) };
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job<'a>(cancel: &'a Cancel, output: Option<Target<'a>>) -> QemuImg<'a> {
        QemuImg { operation: "test", path: Path::new("image"), output, cancel }
    }

    fn shell(script: &str, output: Option<Target<'_>>, idle: f64) -> Result<Finished> {
        let arguments = |_: &[RawFd]| vec!["-c".to_owned(), script.to_owned()];
        job(&Cancel::default(), output).run_program("sh", idle, &[], arguments, &mut |_| ())
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let cancel = Cancel::default();
        let error = job(&cancel, None).run_program("qemu-img-none", 1.0, &[], |_| vec![], &mut |_| ()).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("apt install qemu-utils"), "{error}");
    }

    #[test]
    fn a_child_that_spins_is_ended() {
        let error = shell("while :; do :; done", None, 0.3).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains("without getting anywhere"), "{error}");
    }

    #[test]
    fn cancelling_ends_a_child_that_waits() {
        let cancel = Cancel::default();
        let job = job(&cancel, None);
        cancel.set();
        let arguments = |_: &[RawFd]| vec!["1000000".to_owned()];
        let error = job.run_program("sleep", 1.0, &[], arguments, &mut |_| ()).unwrap_err();
        assert_eq!(error.kind(), Kind::Interrupted);
    }

    #[test]
    fn the_child_cannot_write_more_than_it_may() {
        let file = tempfile::tempfile().unwrap();
        let target = Target { file: &file, max_len: Some(1 << 20), max_allocated: None };
        let script = format!("exec head -c 2000000 /dev/zero > /proc/self/fd/{}", file.as_raw_fd());
        let error = shell(&script, Some(target), 1.0).unwrap_err();
        assert!(error.to_string().contains("more than the size"), "{error}");
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    }

    #[test]
    fn the_child_cannot_fill_more_than_it_may() {
        let file = tempfile::tempfile().unwrap();
        let target = Target { file: &file, max_len: None, max_allocated: Some(1 << 20) };
        let script = format!("head -c 2000000 /dev/zero > /proc/self/fd/{}; sleep 1000000", file.as_raw_fd());
        let error = shell(&script, Some(target), 1.0).unwrap_err();
        assert!(error.to_string().contains("overlap"), "{error}");
    }

    #[test]
    fn percentages_are_found_where_they_are_cut() {
        let mut seen = Vec::new();
        let script = "printf '    (1.00/100%%)\\r    (42.'; sleep 0.3; printf '50/100%%)\\r'; sleep 0.3";
        let arguments = |_: &[RawFd]| vec!["-c".to_owned(), script.to_owned()];
        let cancel = Cancel::default();
        job(&cancel, None).run_program("sh", 1.0, &[], arguments, &mut |p| seen.push(p)).unwrap();
        assert!(seen.contains(&42.5), "{seen:?}");
        assert!(seen.is_sorted(), "{seen:?}");
    }

    #[test]
    fn messages_are_one_harmless_line() {
        let given = ["convert", "json:{x}", "/proc/self/fd/7"].map(str::to_owned);
        let said = b"qemu-img: bad \x1b[31mname\n\nqemu-img: Could not open 'json:{x}': \xff\n/proc/self/fd/7: no\n";
        let line = "bad \\u{1b}[31mname; Could not open it: \u{fffd}; the new file: no";
        assert_eq!(one_line(said, &given), line);
        assert!(one_line(&[b'x'; 10_000], &[]).len() <= MAX_MESSAGE);
    }

    #[test]
    fn a_full_disk_is_told_from_a_bad_image() {
        let cancel = Cancel::default();
        let finished =
            |message: &str| Finished { code: 1, stdout: vec![], message: format!("error while writing: {message}") };
        let full = job(&cancel, None).explain(&finished("No space left on device"), Path::new("out"), false);
        assert_eq!((full.kind(), full.errno(), full.path()), (Kind::Io, libc::ENOSPC, Some(Path::new("out"))));
        let bad = job(&cancel, None).explain(&finished("Invalid argument"), Path::new("out"), false);
        let full = job(&cancel, None).explain(&finished("Invalid argument"), Path::new("out"), true);
        assert_eq!(full.errno(), libc::ENOSPC);
        assert_eq!((bad.kind(), bad.path()), (Kind::Invalid, Some(Path::new("image"))));
    }
}
