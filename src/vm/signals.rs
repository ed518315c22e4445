//! Signals put off while a machine is held still: a second Ctrl-C ends the program at once, and nobody would let the
//! machine go on.

use std::marker::PhantomData;

/// While this lives SIGINT and SIGTERM wait, for this thread and those that it starts.
pub struct PutOff {
    before: libc::sigset_t,
    /// Must end on the thread that it began on.
    _here: PhantomData<*const ()>,
}

impl PutOff {
    /// From now on they wait.
    pub fn begin() -> PutOff {
        // SAFETY: zero is a valid value for a set of signals.
        let (mut both, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
        // SAFETY: the sets live as long as the calls, the signals and the way are valid ones.
        unsafe {
            libc::sigemptyset(&raw mut both);
            libc::sigaddset(&raw mut both, libc::SIGINT);
            libc::sigaddset(&raw mut both, libc::SIGTERM);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const both, &raw mut before);
        }
        PutOff { before, _here: PhantomData }
    }
}

impl Drop for PutOff {
    fn drop(&mut self) {
        // SAFETY: the set was filled in by the call above and lives as long as this one.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}
