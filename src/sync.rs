//! Locks, conditions and atomics of the pool and what lies under it: the one place where they are chosen.
//!
//! An ordinary build takes parking_lot's and the standard library's, at no cost. A build with `--cfg shuttle` takes those of
//! shuttle, which decides at each of them which thread goes on: `tests/schedules` searches the interleavings that way.
//! What lives longer than a pool (statics) does not use this module.

#[cfg(not(shuttle))]
pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
#[cfg(not(shuttle))]
pub use std::sync::atomic;

#[cfg(shuttle)]
pub use scheduled::Condvar;
#[cfg(shuttle)]
pub use shuttle::sync::atomic;
#[cfg(shuttle)]
pub use shuttle_parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

#[cfg(shuttle)]
mod scheduled {
    //! parking_lot's condition variable over shuttle's.

    use std::time::{Duration, Instant};

    use shuttle_parking_lot::MutexGuard;

    /// A condition that threads wait for.
    #[derive(Debug, Default)]
    pub struct Condvar {
        /// Held from before the caller's mutex is let go until the wait has begun, so that no notice is missed.
        waiting: shuttle::sync::Mutex<()>,
        inner: shuttle::sync::Condvar,
    }

    /// Whether a wait ended because its time was over.
    #[derive(Clone, Copy, Debug)]
    pub struct WaitTimeoutResult(bool);

    impl WaitTimeoutResult {
        /// Whether it did.
        pub fn timed_out(self) -> bool {
            self.0
        }
    }

    impl Condvar {
        /// One that nobody waits for.
        pub fn new() -> Condvar {
            Condvar::default()
        }

        /// Lets `guard` go, waits for a notice, and takes it again.
        pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let waiting = self.waiting.lock().unwrap_or_else(|poison| poison.into_inner());
            MutexGuard::unlocked(guard, || drop(self.inner.wait(waiting)));
        }

        /// There is no time in a schedule: others may run, and then the time is over.
        pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _limit: Duration) -> WaitTimeoutResult {
            MutexGuard::unlocked(guard, shuttle::thread::yield_now);
            WaitTimeoutResult(true)
        }

        /// The same.
        pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _until: Instant) -> WaitTimeoutResult {
            self.wait_for(guard, Duration::ZERO)
        }

        /// Wakes all that wait.
        pub fn notify_all(&self) {
            let _waiting = self.waiting.lock().unwrap_or_else(|poison| poison.into_inner());
            self.inner.notify_all();
        }
    }
}
