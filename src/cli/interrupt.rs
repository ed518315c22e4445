//! SIGINT and SIGTERM during work that must be undone: the signal is noted, the work stops at the next step and cleans
//! up. A second signal ends the program at once.

use std::sync::OnceLock;

use crate::client::transfer::Cancel;
use crate::error::{Error, Kind, Result};

static CANCEL: OnceLock<Cancel> = OnceLock::new();

/// From now on signals are noted. Gives the flag, for work that looks at it itself.
pub fn watch() -> Cancel {
    let cancel = CANCEL.get_or_init(Cancel::default).clone();
    // SAFETY: zero is a valid value for every field of sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = note as extern "C" fn(libc::c_int) as usize;
    action.sa_flags = libc::SA_RESETHAND | libc::SA_RESTART;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: action is filled in, the handler does nothing but what a handler may do (an atomic store).
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
    cancel
}

extern "C" fn note(_signal: libc::c_int) {
    if let Some(cancel) = CANCEL.get() {
        cancel.set();
    }
}

/// An error once a signal was noted.
pub fn check(operation: &'static str) -> Result<()> {
    match CANCEL.get() {
        Some(cancel) if cancel.is_set() => Err(Error::new(Kind::Interrupted, operation)),
        _ => Ok(()),
    }
}
