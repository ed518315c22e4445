//! How a call fails.

use std::fmt;

use crate::common::simfs::Fault;

/// A kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One call fails with this.
    Once(i32),
    /// One call fails with this; if it is a write, half of it was written.
    Short(i32),
    /// That call and all later ones of the operation fail.
    Lasting(i32),
    /// The daemon dies instead of making the call.
    Kill,
}

impl Mode {
    /// The fault at call `at`.
    pub fn fault(self, at: u64) -> Fault {
        let fault = Fault { at, count: 1, errno: libc::EIO, short: false, dead: false };
        match self {
            Mode::Once(errno) => Fault { errno, ..fault },
            Mode::Short(errno) => Fault { errno, short: true, ..fault },
            Mode::Lasting(errno) => Fault { errno, count: u64::MAX / 2, ..fault },
            Mode::Kill => Fault { dead: true, count: u64::MAX / 2, ..fault },
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |errno: i32| match errno {
            libc::EIO => "EIO",
            libc::ENOSPC => "ENOSPC",
            libc::EDQUOT => "EDQUOT",
            libc::ENOMEM => "ENOMEM",
            _ => "an error",
        };
        match self {
            Mode::Once(errno) => write!(f, "{} once", name(*errno)),
            Mode::Short(errno) => write!(f, "{} once, half of a write done", name(*errno)),
            Mode::Lasting(errno) => write!(f, "{} from there on", name(*errno)),
            Mode::Kill => f.write_str("killed there"),
        }
    }
}
