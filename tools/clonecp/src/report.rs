//! What the user reads: errors and questions on standard error, `--verbose` lines on standard output.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::path::Path;

use crate::quote;

/// Name in front of every message.
pub const PROGRAM: &str = "clonecp";

/// Something failed and the user has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// This file; go on with the next one.
    Here,
    /// A directory was about to be copied into itself: going on in this directory would never end.
    IntoItself,
}

/// Result of a step that has reported its own failure.
pub type Done<T = ()> = Result<T, Failed>;

/// The text of a system error, without Rust's error number.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(number) => text.strip_suffix(&format!(" (os error {number})")).unwrap_or(&text).to_string(),
        None => text,
    }
}

/// Prints one line to standard error, after the program's name.
pub fn say(message: impl Display) {
    // Nothing can be done about a standard error that cannot be written.
    let _ = writeln!(io::stderr(), "{PROGRAM}: {message}");
}

/// Standard output, kept back until the end or the next question unless somebody is watching, and whether it could be
/// written.
pub struct Report {
    terminal: bool,
    out: RefCell<BufWriter<Stdout>>,
    write_error: Cell<Option<i32>>,
}

impl Report {
    /// With nothing written.
    pub fn new() -> Report {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        Report { terminal, out: RefCell::new(BufWriter::new(stdout)), write_error: Cell::new(None) }
    }

    /// Reports a failure.
    pub fn fail(&self, message: impl Display) -> Failed {
        say(message);
        Failed::Here
    }

    /// Reports a failed system call: `message: reason`.
    pub fn os(&self, message: impl Display, error: &io::Error) -> Failed {
        self.fail(format_args!("{message}: {}", reason(error)))
    }

    /// Reports a failed system call on `path`: `what 'path': reason`.
    pub fn at(&self, what: &str, path: &Path, error: &io::Error) -> Failed {
        self.os(format_args!("{what} {}", quote::shell(path)), error)
    }

    /// Tells about something that is not a failure.
    pub fn warn(&self, message: impl Display) {
        say(format_args!("warning: {message}"));
    }

    /// A line of `--verbose`.
    pub fn verbose(&self, line: impl Display) {
        self.verbose_bytes(format!("{line}\n").as_bytes());
    }

    /// A line of `--verbose` that need not be text.
    pub fn verbose_bytes(&self, line: &[u8]) {
        let result = self.out.borrow_mut().write_all(line);
        self.note(result);
        if self.terminal {
            self.flush();
        }
    }

    /// Asks on standard error and reads the answer from standard input: starts with `y` or `Y`?
    pub fn ask(&self, question: impl Display) -> bool {
        self.flush();
        let mut stderr = io::stderr();
        let _ = write!(stderr, "{PROGRAM}: {question}? ").and_then(|()| stderr.flush());
        let mut answer = Vec::new();
        match io::BufRead::read_until(&mut io::stdin().lock(), b'\n', &mut answer) {
            Ok(_) => matches!(answer.first(), Some(b'y' | b'Y')),
            Err(_) => false,
        }
    }

    /// Writes out what was kept back, and says whether all of it could be written.
    pub fn finish(&self) -> bool {
        self.flush();
        match self.write_error.get() {
            None => true,
            Some(number) => {
                say(format_args!("write error: {}", reason(&io::Error::from_raw_os_error(number))));
                false
            }
        }
    }

    fn flush(&self) {
        let result = self.out.borrow_mut().flush();
        self.note(result);
    }

    fn note(&self, result: io::Result<()>) {
        if let (Err(error), None) = (result, self.write_error.get()) {
            self.write_error.set(Some(error.raw_os_error().unwrap_or(libc::EIO)));
        }
    }
}
