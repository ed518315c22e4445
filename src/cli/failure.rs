//! How a command ends when it does not end well: one place for messages and exit codes.

use std::io;
use std::process::ExitCode;

use crate::error::{Error, Kind};

/// Exit code of a command that failed.
pub const FAILED: u8 = 1;
/// Exit code for a command line that makes no sense, whatever the files are.
pub const USAGE: u8 = 2;
/// Exit code after SIGINT or SIGTERM, as a shell shows it.
pub const INTERRUPTED: u8 = 130;

/// Why a command did not do what it was told.
#[derive(Debug)]
pub enum Failure {
    /// The command line makes no sense.
    Usage(String),
    /// It was tried and failed.
    Error(Error),
    /// It was tried and failed, and this exit code says so.
    Code(u8, Error),
    /// All is said already; only the exit code is left.
    Exit(u8),
    /// Standard output cannot be written.
    Output(io::Error),
}

/// Result of a command.
pub type Outcome<T = ()> = Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Error(error)
    }
}

impl Failure {
    /// Exit code.
    pub fn code(&self) -> u8 {
        match self {
            Failure::Usage(_) => USAGE,
            Failure::Error(error) if error.kind() == Kind::Interrupted => INTERRUPTED,
            Failure::Error(_) => FAILED,
            Failure::Code(code, _) | Failure::Exit(code) => *code,
            // Whoever read the output has seen enough (`clonefs list | head -1`).
            Failure::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => 0,
            Failure::Output(_) => FAILED,
        }
    }

    /// What to say, if anything.
    pub fn message(&self) -> Option<String> {
        match self {
            Failure::Usage(text) => Some(format!("{text} (see --help)")),
            Failure::Error(error) | Failure::Code(_, error) => Some(error.to_string()),
            Failure::Exit(_) => None,
            Failure::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => None,
            Failure::Output(e) => Some(format!("write standard output: {e}")),
        }
    }

    /// Says it on standard error and gives the exit code.
    pub fn report(&self) -> ExitCode {
        if let Some(message) = self.message() {
            note(&message);
        }
        ExitCode::from(self.code())
    }
}

/// One line on standard error, in the name of the program.
pub fn note(message: &str) {
    use std::io::Write;
    // Nowhere to tell that standard error is closed.
    let _ = writeln!(io::stderr(), "clonefs: {message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_what_the_manual_says() {
        assert_eq!(Failure::Usage("x".into()).code(), 2);
        assert_eq!(Failure::Error(Error::new(Kind::Exists, "clone")).code(), 1);
        assert_eq!(Failure::Error(Error::new(Kind::Interrupted, "clone")).code(), 130);
        let closed = Failure::Output(io::ErrorKind::BrokenPipe.into());
        assert_eq!((closed.code(), closed.message()), (0, None));
    }
}
