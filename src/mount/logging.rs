//! Where messages of the daemon go: to standard error in the foreground, to syslog in the background.

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
    if foreground {
        drop(builder.with_writer(io::stderr).try_init());
    } else {
        // SAFETY: the name is static, as openlog(3) keeps the pointer.
        unsafe { libc::openlog(c"clonefs".as_ptr(), libc::LOG_PID, libc::LOG_DAEMON) };
        drop(builder.without_time().with_level(false).with_writer(Syslog).try_init());
    }
}

/// Makes a writer for each message, with the priority of its level.
struct Syslog;

impl<'a> MakeWriter<'a> for Syslog {
    type Writer = Message;

    fn make_writer(&'a self) -> Message {
        Message { priority: libc::LOG_INFO, text: Vec::new() }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Message {
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
struct Message {
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
        if let Ok(text) = CString::new(std::mem::take(&mut self.text)) {
            // SAFETY: the format takes one string, and text is NUL-terminated.
            unsafe { libc::syslog(self.priority, c"%s".as_ptr(), text.as_ptr()) };
        }
    }
}
