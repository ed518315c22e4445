//! How fast background work may go: below the user's limit, and behind everybody else.

use std::time::{Duration, Instant};

use crate::pool::Pool;

/// While others read and write, background work rests this many times as long as it works.
const YIELD: u32 = 2;
/// Longest rest, so that background work never stops for good.
const LONGEST: Duration = Duration::from_millis(100);

/// Slows a loop of copying down.
pub struct Pace {
    foreground: u64,
    began: Instant,
    /// When the bytes copied so far may be exceeded, under the limit.
    due: Instant,
}

impl Pace {
    /// Begins now.
    pub fn new(pool: &Pool) -> Pace {
        Pace { foreground: pool.foreground(), began: Instant::now(), due: Instant::now() }
    }

    /// To be called after each step that copied `bytes`; sleeps as long as is right.
    pub fn rest(&mut self, pool: &Pool, bytes: u64) {
        let worked = self.began.elapsed();
        let foreground = pool.foreground();
        if foreground != self.foreground {
            std::thread::sleep((worked * YIELD).min(LONGEST));
        }
        let rate = pool.rate();
        if rate > 0 {
            let now = Instant::now();
            self.due = self.due.max(now - Duration::from_secs(1)) + Duration::from_secs_f64(bytes as f64 / rate as f64);
            if self.due > now {
                std::thread::sleep((self.due - now).min(Duration::from_secs(1)));
            }
        }
        self.foreground = pool.foreground();
        self.began = Instant::now();
    }
}

/// Puts this thread's disk I/O behind that of everybody else. A kernel that refuses changes nothing else.
pub fn background_io() {
    /// `IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0)` of the kernel's `linux/ioprio.h`.
    const IDLE_CLASS: libc::c_int = 3 << 13;
    const WHO_PROCESS: libc::c_int = 1;
    // SAFETY: the call takes three integers and changes only this thread's I/O class.
    unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, IDLE_CLASS) };
}
