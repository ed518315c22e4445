//! SIGTERM and SIGINT end the daemon in order.

use std::io;
use std::mem::MaybeUninit;
use std::thread;

use crate::error::{Error, Result};

/// Signals that ask for an orderly end.
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Keeps them for [`Signals::watch`]; call it before any thread is started, as threads inherit this.
    ///
    /// A daemon does not care about SIGHUP; in the foreground it ends the work as SIGTERM does.
    pub fn block(foreground: bool) -> Result<Signals> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set, the other calls get a valid one and valid signal numbers.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            if foreground {
                libc::sigaddset(&raw mut set, libc::SIGHUP);
            } else {
                libc::signal(libc::SIGHUP, libc::SIG_IGN);
            }
            match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) {
                0 => Ok(Signals(set)),
                code => Err(Error::io("block signals", io::Error::from_raw_os_error(code))),
            }
        }
    }

    /// Calls `act` for each signal, on a thread of its own, with a count that starts at 1.
    pub fn watch(self, mut act: impl FnMut(u32) + Send + 'static) -> Result<()> {
        let wait = move || {
            for count in 1.. {
                let mut signal = 0;
                // SAFETY: the set is valid, signal is a place for the result.
                while unsafe { libc::sigwait(&raw const self.0, &raw mut signal) } != 0 {}
                tracing::info!("signal {signal}");
                act(count);
            }
        };
        let thread = thread::Builder::new().name("signals".to_owned()).spawn(wait);
        thread.map(drop).map_err(|e| Error::io("start a thread", e))
    }
}
