//! Deaths at chosen points, for tests of what comes after: builds with debug assertions alone have them.
//!
//! `CLONEFS_TEST_DEATHS` is `REQUEST:POINT:N[:SIGNAL]`: the process is killed (by signal 9 if no other is said) at every N-th
//! time that it comes to this point with this request. `*` stands for every request, or every point.

/// The process may die here.
#[cfg(not(debug_assertions))]
pub fn point(_point: &str) {}

/// The request that this thread works on.
#[cfg(not(debug_assertions))]
pub fn working_on(_request: &'static str) {}

#[cfg(debug_assertions)]
pub use injected::{point, working_on};

#[cfg(debug_assertions)]
mod injected {
    use std::cell::Cell;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Plan {
        request: String,
        point: String,
        every: u64,
        signal: i32,
    }

    static PLAN: LazyLock<Option<Plan>> = LazyLock::new(|| {
        let text = std::env::var("CLONEFS_TEST_DEATHS").ok()?;
        let mut parts = text.split(':').map(str::to_owned);
        let (request, point, every) = (parts.next()?, parts.next()?, parts.next()?.parse().ok()?);
        let signal = parts.next().map_or(Some(libc::SIGKILL), |signal| signal.parse().ok())?;
        Some(Plan { request, point, every, signal })
    });
    static COUNT: AtomicU64 = AtomicU64::new(0);

    thread_local! {
        static REQUEST: Cell<&'static str> = const { Cell::new("") };
    }

    /// The request that this thread works on.
    pub fn working_on(request: &'static str) {
        REQUEST.set(request);
    }

    /// The process may die here.
    pub fn point(point: &str) {
        let Some(plan) = &*PLAN else { return };
        let is = |wanted: &str, what: &str| wanted == "*" || wanted == what;
        if is(&plan.request, REQUEST.get()) && is(&plan.point, point) {
            let count = COUNT.fetch_add(1, Ordering::SeqCst) + 1;
            if count.is_multiple_of(plan.every) {
                // SAFETY: the process ends here, as by a kill at this very place.
                unsafe { libc::kill(libc::getpid(), plan.signal) };
                std::thread::sleep(std::time::Duration::from_secs(10));
            }
        }
    }
}
