//! How fast background work may go: below the user's limit, and behind everybody else.
//!
//! With nobody else there it goes as fast as the disk. Beside others it takes small steps. Where requests of others are
//! few, it rests between them twice as long as they take. Where they come without a pause, what counts is how many of
//! them meet a step: a step delays those that are under way when its reads and writes are. So it rests until these are
//! less than one in a hundred, which keeps the 99th percentile of their times where it was.

use std::time::{Duration, Instant};

use crate::engine::pool::Pool;

/// Bytes copied between two looks at the clock, while nobody else reads or writes. Those who copy pieces of it at the same
/// time wait for the last one of them: the more of them there are, the less that counts.
const STEP: u64 = 24 << 20;
/// The same beside others.
const SMALL_STEP: u64 = 1 << 20;
/// The least, however low the limit.
const LEAST_STEP: u64 = 64 << 10;

/// Beside few others, background work rests this many times as long as it works.
const YIELD: u32 = 2;
/// Longest rest of that kind.
const LONGEST_YIELD: Duration = Duration::from_millis(100);
/// Between two looks at what others do.
const LOOK: Duration = Duration::from_millis(2);
/// Requests of others for each one that a step may delay.
const FOR_EACH_DELAYED: u64 = 400;
/// A step reads once and writes once.
const TRANSFERS: u64 = 2;
/// Longest rest, so that background work never stops for good: with it 5 MiB a second are copied.
const LONGEST: Duration = Duration::from_millis(200);

/// Slows a loop of copying down.
pub struct Pace {
    foreground: u64,
    began: Instant,
    /// Others are there.
    beside: bool,
    limit: Limit,
}

/// Bytes a second.
struct Limit {
    /// When the bytes copied so far may be exceeded.
    due: Instant,
}

impl Limit {
    /// Counts what was copied; a second in which nothing was can be made up for.
    fn count(&mut self, bytes: u64, rate: u64, now: Instant) {
        if rate > 0 {
            let least = now.checked_sub(Duration::from_secs(1)).unwrap_or(now);
            self.due = self.due.max(least) + Duration::from_secs_f64(bytes as f64 / rate as f64);
        }
    }

    /// How long to rest; `None`: not at all.
    fn rest(&self, now: Instant) -> Option<Duration> {
        self.due.checked_duration_since(now).filter(|rest| !rest.is_zero())
    }
}

impl Pace {
    /// Begins now.
    pub fn new(pool: &Pool) -> Pace {
        let now = Instant::now();
        Pace { foreground: pool.foreground(), began: now, beside: true, limit: Limit { due: now } }
    }

    /// Bytes to copy in the next step: under a limit at most those of a quarter of a second.
    pub fn step(&self, pool: &Pool) -> u64 {
        let step = if self.beside { SMALL_STEP } else { STEP };
        match pool.rate() {
            0 => step,
            rate => step.min(rate / 4).max(LEAST_STEP),
        }
    }

    /// To be called after each step that copied `bytes`; sleeps as long as is right.
    pub fn rest(&mut self, pool: &Pool, bytes: u64) {
        self.beside = pool.foreground() != self.foreground;
        if self.beside {
            let_others_go_first(pool, self.began.elapsed());
        }
        let rate = pool.rate();
        self.limit.count(bytes, rate, Instant::now());
        while let Some(rest) = self.limit.rest(Instant::now())
            && !pool.stopping()
            && pool.rate() == rate
        {
            std::thread::sleep(rest.min(LONGEST));
        }
        self.foreground = pool.foreground();
        self.began = Instant::now();
    }
}

fn let_others_go_first(pool: &Pool, worked: Duration) {
    let (rested, first) = (Instant::now(), pool.foreground());
    let (mut seen, mut under_way) = (first, pool.under_way());
    loop {
        std::thread::sleep(LOOK);
        let now = pool.foreground();
        under_way = under_way.max(pool.under_way());
        let look = Look { rested: rested.elapsed(), came: now - first, came_last: now - seen, under_way };
        if look.is_enough(worked) || pool.stopping() {
            return;
        }
        seen = now;
    }
}

/// What was seen of others during a rest.
struct Look {
    /// Length of the rest so far.
    rested: Duration,
    /// Requests that came during it.
    came: u64,
    /// Requests that came since the look before.
    came_last: u64,
    /// Most of them that were under way at the same time.
    under_way: u64,
}

impl Look {
    /// Whether it is time for a step again, after one that took `worked`.
    fn is_enough(&self, worked: Duration) -> bool {
        let few = self.came_last == 0 && self.rested >= (worked * YIELD).min(LONGEST_YIELD);
        let delayed = TRANSFERS * self.under_way.max(1);
        few || self.came >= delayed * FOR_EACH_DELAYED || self.rested >= LONGEST
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

#[cfg(test)]
mod tests {
    use super::*;

    fn look(rested: u64, came: u64, came_last: u64, under_way: u64) -> Look {
        Look { rested: Duration::from_millis(rested), came, came_last, under_way }
    }

    #[test]
    fn few_others_are_let_go_first_for_twice_the_time() {
        let worked = Duration::from_millis(10);
        assert!(!look(10, 1, 0, 1).is_enough(worked));
        assert!(look(20, 1, 0, 1).is_enough(worked));
        assert!(look(100, 1, 0, 1).is_enough(Duration::from_secs(10)));
    }

    #[test]
    fn a_limit_holds_however_low_it_is() {
        let now = Instant::now();
        let mut limit = Limit { due: now };
        for second in 1..5 {
            limit.count(LEAST_STEP, LEAST_STEP / 8, now);
            assert_eq!(limit.rest(now), Some(Duration::from_secs(8 * second)));
        }
        // A long while in which nothing was copied gives no more than one second's worth.
        let later = now + Duration::from_secs(100);
        limit.count(5 << 20, 1 << 20, later);
        assert_eq!(limit.rest(later), Some(Duration::from_secs(4)));
        limit.count(1 << 30, 0, later);
        assert_eq!(limit.rest(later), Some(Duration::from_secs(4)), "no limit, no more to rest");
    }

    #[test]
    fn of_many_others_less_than_one_in_a_hundred_is_delayed() {
        let worked = Duration::from_millis(2);
        for under_way in 1..33 {
            let enough = (0..).find(|came| look(10, *came, 9, under_way).is_enough(worked)).unwrap();
            assert!(TRANSFERS * under_way * 100 < enough, "{enough}");
        }
        // However many they are, it goes on.
        assert!(look(200, 5, 5, 32).is_enough(worked));
    }
}
