//! Where messages of the daemon go: to standard error in the foreground, to syslog in the background. Where standard error
//! is the journal's, as in a service of systemd, each message begins with its priority, as sd-daemon(3) wants it.

use std::ffi::CString;
use std::io::{self, Write};

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Environment variable with the levels to show, such as `debug` or `clonefs::pool=trace`.
const VARIABLE: &str = "CLONEFS_LOG";
/// Without it: what an administrator wants to know. fuser warns about replies to callers that were killed.
const DEFAULT: &str = "info,fuser=error";

/// Starts logging, unless the program has done so already.
pub fn start(foreground: bool) {
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(false);
    // An error here means that there is a subscriber; it is the one to use.
    if foreground && is_journal() {
        drop(builder.without_time().with_level(false).with_writer(Sink::Journal).try_init());
    } else if foreground {
        drop(builder.with_writer(io::stderr).try_init());
    } else {
        // SAFETY: the name is static, as openlog(3) keeps the pointer.
        unsafe { libc::openlog(c"clonefs".as_ptr(), libc::LOG_PID, libc::LOG_DAEMON) };
        drop(builder.without_time().with_level(false).with_writer(Sink::Syslog).try_init());
    }
}

/// Whether standard error leads to systemd's journal, which then says so.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Makes a writer for each message, with the priority of its level.
#[derive(Clone, Copy)]
enum Sink {
    Syslog,
    Journal,
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Message;

    fn make_writer(&'a self) -> Message {
        Message { sink: *self, priority: libc::LOG_INFO, text: Vec::new() }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Message {
        let priority = match *meta.level() {
            Level::ERROR => libc::LOG_ERR,
            Level::WARN => libc::LOG_WARNING,
            Level::INFO => libc::LOG_INFO,
            _ => libc::LOG_DEBUG,
        };
        Message { sink: *self, priority, text: Vec::new() }
    }
}

/// One message, sent when it is complete.
struct Message {
    sink: Sink,
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
        let text = std::mem::take(&mut self.text);
        if matches!(self.sink, Sink::Journal) {
            let line = [format!("<{}>", self.priority).as_bytes(), &text].concat();
            // Nowhere to tell that it cannot be written.
            let _ = io::stderr().write_all(&line);
        } else if let Ok(text) = CString::new(text) {
            // SAFETY: the format takes one string, and text is NUL-terminated.
            unsafe { libc::syslog(self.priority, c"%s".as_ptr(), text.as_ptr()) };
        }
    }
}
