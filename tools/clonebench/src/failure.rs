//! Why something was not measured, in one line.

use std::fmt;
use std::io;
use std::path::Path;

/// A failure that the user is told of.
#[derive(Debug)]
pub enum Failure {
    /// Ctrl-C or SIGTERM.
    Stopped,
    /// One line that says what and why.
    Line(String),
}

/// What most functions here give.
pub type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// A failure from its line.
    pub fn line(text: impl Into<String>) -> Failure {
        Failure::Line(text.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Stopped => f.write_str("stopped"),
            Failure::Line(text) => f.write_str(text),
        }
    }
}

impl From<clonefs::error::Error> for Failure {
    fn from(error: clonefs::error::Error) -> Failure {
        Failure::Line(error.to_string())
    }
}

/// Says what was being done, and to what, when a call failed.
pub trait During<T> {
    /// `operation` on `path` failed.
    fn during(self, operation: &str, path: &Path) -> Outcome<T>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, operation: &str, path: &Path) -> Outcome<T> {
        self.map_err(|error| Failure::Line(format!("{operation} {path:?}: {}", error.into())))
    }
}
