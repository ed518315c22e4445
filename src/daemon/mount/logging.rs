//! Where messages of the daemon go: to standard error in the foreground, to syslog in the background. Where standard error
//! is the journal's, as in a service of systemd, each message begins with its priority, as sd-daemon(3) wants it.
//!
//! No message ends the daemon or holds a request up, see [`Outbox`]. That holds for the message of a panic too.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::ffi::CString;
use std::io::{self, Write};
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::outbox::{Line, Outbox, write_out};
use crate::error::{Error, Result};

/// Environment variable with the levels to show, such as `debug` or `clonefs::engine::pool=trace`.
const VARIABLE: &str = "CLONEFS_LOG";
/// Without it: what an administrator wants to know. fuser warns about replies to callers that were killed.
const DEFAULT: &str = "info,fuser=error";

/// How long the end of the process waits for whoever reads its last messages.
const LAST_WORDS: Duration = Duration::from_secs(1);

static OUTBOX: Outbox = Outbox::new();

/// Begins to collect messages, unless the program has done so already. They go out once [`write`] was called, which
/// starts a thread; a fork takes those along that were collected before.
pub fn start(foreground: bool) -> Sink {
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(false);
    // What cannot be formatted is no reason to write to standard error, which can panic.
    let builder = builder.log_internal_errors(false);
    // An error here means that there is a subscriber; it is the one to use.
    if foreground && !is_journal() {
        drop(builder.with_writer(Sink::Stderr).try_init());
        return Sink::Stderr;
    }
    let sink = if foreground { Sink::Journal } else { Sink::Syslog };
    if !foreground {
        // SAFETY: the name is static, as openlog(3) keeps the pointer.
        unsafe { libc::openlog(c"clonefs".as_ptr(), libc::LOG_PID, libc::LOG_DAEMON) };
    }
    drop(builder.without_time().with_level(false).with_writer(sink).try_init());
    sink
}

/// Writes messages out from now on, those collected before first. Call it after the last fork.
pub fn write(sink: Sink) -> Result<()> {
    // A thread begins with the mask of the one that starts it: signals to the process are for others.
    // SAFETY: both sets are valid places; sigfillset initialises the first, pthread_sigmask the second.
    unsafe {
        let (mut all, mut before) = (std::mem::zeroed::<libc::sigset_t>(), std::mem::zeroed::<libc::sigset_t>());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let started = OUTBOX.serve(move |line| sink.write(line));
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        started.map_err(|e| Error::io("start a thread", e))
    }
}

/// Waits a moment for whoever reads the messages: the process is about to end.
pub fn finish() {
    OUTBOX.drain(LAST_WORDS);
}

/// A panic says where and why through the log. Where `goes_on` says no, the process ends then, visibly.
pub fn report_panics(goes_on: fn() -> bool) {
    std::panic::set_hook(Box::new(move |info| {
        let trace = Backtrace::capture();
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("?");
        match trace.status() {
            BacktraceStatus::Captured => tracing::error!("a bug in clonefs, in thread {name}: {info}\n{trace}"),
            _ => tracing::error!("a bug in clonefs, in thread {name}: {info}"),
        }
        if !goes_on() {
            finish();
            std::process::abort();
        }
    }));
}

/// Whether standard error leads to systemd's journal, which then says so.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Where messages go. Makes a writer for each, with the priority of its level.
#[derive(Clone, Copy)]
pub enum Sink {
    /// The system's log.
    Syslog,
    /// Standard error, which systemd reads.
    Journal,
    /// Standard error.
    Stderr,
}

impl Sink {
    /// Writes one message; false if nobody can read it.
    fn write(self, (priority, text): &Line) -> bool {
        match self {
            Sink::Stderr => write_out(io::stderr(), text),
            Sink::Journal => write_out(io::stderr(), &[format!("<{priority}>").as_bytes(), text].concat()),
            Sink::Syslog => {
                let Ok(text) = CString::new(text.as_slice()) else { return false };
                // SAFETY: the format takes one string, and text is NUL-terminated.
                unsafe { libc::syslog(*priority, c"%s".as_ptr(), text.as_ptr()) };
                true
            }
        }
    }
}

impl MakeWriter<'_> for Sink {
    type Writer = Message;

    fn make_writer(&self) -> Message {
        Message { priority: libc::LOG_INFO, text: Vec::new() }
    }

    fn make_writer_for(&self, meta: &Metadata<'_>) -> Message {
        let priority = match *meta.level() {
            Level::ERROR => libc::LOG_ERR,
            Level::WARN => libc::LOG_WARNING,
            Level::INFO => libc::LOG_INFO,
            _ => libc::LOG_DEBUG,
        };
        Message { priority, text: Vec::new() }
    }
}

/// One message, sent when it is complete.
pub struct Message {
    priority: i32,
    text: Vec<u8>,
}

impl Write for Message {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.text.extend(data.iter().filter(|byte| **byte != 0));
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        OUTBOX.put(self.priority, std::mem::take(&mut self.text));
    }
}
