//! When a sync may begin, on filesystems that keep a sync waiting for those that begin after it.
//!
//! On a disk that it takes for a turning one, btrfs gathers syncs: before it writes its log it waits until a tick of the
//! kernel has passed in which no other sync began, one of a file that is clean included. So whoever syncs without a pause
//! keeps all others waiting, for seconds, on any such filesystem. Through a mount nobody shall do that to others: while
//! a sync takes long, new ones begin together, at times that lie several ticks apart.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A sync that takes longer may be waiting for others.
const LONG: Duration = Duration::from_millis(50);
/// From one time at which syncs begin to the next, while one takes long; a tick of the kernel is 10 ms at most.
const APART: Duration = Duration::from_millis(25);

/// The syncs of one filesystem.
pub struct Turns {
    since: Instant,
    /// Those under way, the oldest first; `None` where they do not wait for others.
    begun: Option<Mutex<Begun>>,
}

#[derive(Default)]
struct Begun {
    count: u64,
    under_way: BTreeMap<u64, Instant>,
}

impl Turns {
    /// Of a filesystem that gathers syncs, or of another one, where each begins at once.
    pub fn new(gathers: bool) -> Turns {
        Turns { since: Instant::now(), begun: gathers.then(Mutex::default) }
    }

    /// Does `sync` when its turn has come: after `APART` at the latest.
    pub fn take(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let Some(begun) = &self.begun else { return sync() };
        let oldest = begun.lock().under_way.first_key_value().map(|(_, began)| *began);
        if oldest.is_some_and(|began| began.elapsed() > LONG) {
            std::thread::sleep(self.until_next());
        }
        let number = {
            let mut begun = begun.lock();
            begun.count += 1;
            let number = begun.count;
            begun.under_way.insert(number, Instant::now());
            number
        };
        let result = sync();
        begun.lock().under_way.remove(&number);
        result
    }

    fn until_next(&self) -> Duration {
        let into = self.since.elapsed().as_nanos() % APART.as_nanos();
        APART.saturating_sub(Duration::from_nanos(into as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// How many syncs one thread begins while another's takes long, and how long that was.
    fn begun_beside_a_long_one(turns: &Turns) -> (u128, Duration) {
        let (long, end) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let slow = || {
                    std::thread::sleep(LONG * 2);
                    long.store(true, Ordering::SeqCst);
                    std::thread::sleep(LONG * 8);
                    end.store(true, Ordering::SeqCst);
                    Ok(())
                };
                turns.take(slow).expect("sync");
            });
            while !long.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            let (began, mut count) = (Instant::now(), 0);
            while !end.load(Ordering::SeqCst) {
                turns.take(|| Ok(())).expect("sync");
                count += 1;
            }
            (count, began.elapsed())
        })
    }

    #[test]
    fn beside_a_sync_that_takes_long_others_begin_in_turns() {
        let (count, took) = begun_beside_a_long_one(&Turns::new(true));
        assert!(count <= took.as_nanos() / APART.as_nanos() + 2, "{count} in {took:?}");
    }

    #[test]
    fn elsewhere_each_begins_at_once() {
        let (count, took) = begun_beside_a_long_one(&Turns::new(false));
        assert!(count > took.as_nanos() / APART.as_nanos() + 2, "{count} in {took:?}");
    }
}
