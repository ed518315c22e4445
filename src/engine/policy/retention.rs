//! Which scheduled snapshots are due, and which of those that there are stay: a pure function of names, times, and now.
//!
//! Time is cut into periods; a snapshot is due while the present period has none. Clocks can be wrong, so nothing is done
//! because of what the clock says alone: of each period the last so many are kept, however old they are, and whatever the
//! clock does, no two are made in less than a tenth of the period, and no more than a period and a quarter goes by without
//! one. What was made later than the clock says it is now counts as the oldest: the clock was wrong then, or is wrong now,
//! and one of the others was made under the same clock.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, UNIX_EPOCH};

use super::value::{LAST, Period, Schedule};

/// 1970 began on a Thursday; weeks begin on Mondays.
const FIRST_MONDAY: i64 = 4 * 86_400;

impl Period {
    /// Number of the period that a time lies in.
    pub fn number(self, seconds: i64) -> i64 {
        match self {
            Period::Hourly => seconds.div_euclid(3600),
            Period::Daily => seconds.div_euclid(86_400),
            Period::Weekly => (seconds - FIRST_MONDAY).div_euclid(7 * 86_400),
        }
    }
}

/// Name of a snapshot that is made now for a period. Names sort by time.
pub fn name(period: Period, seconds: i64) -> String {
    let time = Duration::from_secs(seconds.max(0) as u64).min(LAST);
    let text = humantime::format_rfc3339_seconds(UNIX_EPOCH + time).to_string();
    format!("{}-{}", text.replace(':', ""), period.word())
}

/// The period that a snapshot of this name was made for. One whose name was taken at a new place has a number.
pub fn period_of(name: &str) -> Option<Period> {
    let (rest, last) = name.rsplit_once('-')?;
    let numbered = !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit());
    Period::called(if numbered { rest.rsplit_once('-')?.1 } else { last })
}

/// What is to be done for one volume now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Snapshots to be made.
    pub make: Vec<Period>,
    /// Names of snapshots to be removed, when none has to be made.
    pub remove: HashSet<String>,
}

/// What is due for a volume whose scheduled snapshots are these: name, and when it was made. Others, which people have
/// made, must not be among them. `ago` says how long it is that one was made for a period, by a clock that nobody sets;
/// `None`: not since it runs.
pub fn due<'a>(
    schedule: &Schedule,
    scheduled: impl Iterator<Item = (&'a str, i64)>,
    now: i64,
    ago: impl Fn(Period) -> Option<Duration>,
) -> Due {
    let mut there: BTreeMap<Period, Vec<(bool, i64, &str)>> = BTreeMap::new();
    for (name, made) in scheduled {
        if let Some(period) = period_of(name) {
            there.entry(period).or_default().push((made <= now, made, name));
        }
    }
    let mut due = Due::default();
    for (period, kept) in schedule.kept() {
        let mut found = there.remove(&period).unwrap_or_default();
        let present = period.number(now);
        let missing = !found.iter().any(|(_, made, _)| period.number(*made) == present);
        let (ago, length) = (ago(period), period.length());
        if missing && ago.is_none_or(|ago| ago >= length / 10) || ago.is_some_and(|ago| ago >= length * 5 / 4) {
            due.make.push(period);
        }
        // Newest first, and what seems to be from the future last.
        found.sort_by(|a, b| b.cmp(a));
        due.remove.extend(found.into_iter().skip(kept as usize).map(|(_, _, name)| name.to_owned()));
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;
    /// A Wednesday, 13:20 UTC.
    const NOW: i64 = 1_700_054_400;

    /// A volume that lives under a schedule, with a clock that goes right and one that people look at.
    struct Life {
        schedule: Schedule,
        /// Name, time by the clock, and real time. The last one was made last.
        there: Vec<(String, i64, i64)>,
        /// The last that was made, in real time.
        made: BTreeMap<Period, i64>,
        real: i64,
    }

    impl Life {
        fn new(schedule: &str) -> Life {
            Life { schedule: schedule.parse().unwrap(), there: Vec::new(), made: BTreeMap::new(), real: 0 }
        }

        fn due(&self, now: i64) -> Due {
            let all = self.there.iter().map(|(name, made, _)| (name.as_str(), *made));
            let ago = |period| Some(Duration::from_secs((self.real - self.made.get(&period)?) as u64));
            due(&self.schedule, all, now, ago)
        }

        /// Time goes on, the clock shows `now`, and what is due is done.
        fn turn(&mut self, seconds: i64, now: i64) {
            self.real += seconds;
            for period in self.due(now).make {
                let name = name(period, now);
                if self.there.iter().all(|(other, _, _)| *other != name) {
                    self.there.push((name, now, self.real));
                    self.made.insert(period, self.real);
                }
            }
            let Due { make, remove } = self.due(now);
            if make.is_empty() {
                self.there.retain(|(name, _, _)| !remove.contains(name));
            }
        }

        fn of(&self, period: Period) -> Vec<&(String, i64, i64)> {
            self.there.iter().filter(|(name, _, _)| period_of(name) == Some(period)).collect()
        }

        fn times(&self) -> Vec<i64> {
            self.there.iter().map(|(_, made, _)| *made).collect()
        }
    }

    #[test]
    fn each_period_has_one_and_the_last_ones_stay() {
        let mut life = Life::new("hourly=5,daily=3,weekly=2");
        (0..40 * 24 * 4).for_each(|quarter| life.turn(900, NOW + quarter * 900));
        let counts = [Period::Hourly, Period::Daily, Period::Weekly].map(|period| life.of(period).len());
        assert_eq!(counts, [5, 3, 2]);
        let last = Period::Hourly.number(NOW + (40 * 24 * 4 - 1) * 900);
        let hours: Vec<i64> = life.of(Period::Hourly).iter().map(|(_, made, _)| Period::Hourly.number(*made)).collect();
        assert_eq!(hours, (last - 4..=last).collect::<Vec<_>>());
        let mut by_name = life.there.clone();
        by_name.sort();
        assert!(by_name.is_sorted_by_key(|(_, made, _)| *made), "names do not sort by time: {by_name:?}");
    }

    #[test]
    fn a_clock_that_goes_back_makes_no_second_one_and_removes_nothing() {
        let mut life = Life::new("hourly=4");
        (0..6).for_each(|hour| life.turn(HOUR, NOW + hour * HOUR));
        let before = life.there.clone();
        for now in [5 * HOUR - 60, 4 * HOUR, 3 * HOUR, 5 * HOUR] {
            life.turn(60, NOW + now);
            assert_eq!(life.there, before);
        }
        // It stays wrong, and snapshots are made all the same.
        (0..8).for_each(|quarter| life.turn(900, NOW + 2 * HOUR + quarter * 900));
        assert!(life.there.last().unwrap().2 > before.last().unwrap().2);
    }

    #[test]
    fn what_was_made_while_the_clock_was_ahead_goes_first() {
        let mut life = Life::new("hourly=3");
        [9000 * HOUR, 0, HOUR].into_iter().for_each(|now| life.turn(HOUR, NOW + now));
        assert_eq!(life.there.len(), 3);
        life.turn(HOUR, NOW + 2 * HOUR);
        assert_eq!(life.times(), [NOW, NOW + HOUR, NOW + 2 * HOUR]);
        // Kept once only, the one that was just made is not removed for one from the future.
        let mut life = Life::new("daily=1");
        [9000 * HOUR, 0, HOUR].into_iter().for_each(|now| life.turn(3 * HOUR, NOW + now));
        assert_eq!(life.times(), [NOW]);
    }

    #[test]
    fn whatever_the_clock_does_there_is_neither_a_flood_nor_a_gap() {
        for seed in 1..200u64 {
            let mut state = seed;
            let mut dice = move |faces: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % faces
            };
            let kept = 1 + dice(5) as usize;
            let mut life = Life::new(&format!("hourly={kept}"));
            let mut offset = 0;
            let mut made = Vec::new();
            for _ in 0..600 {
                if dice(8) == 0 {
                    offset = [0, -40, 40, -HOUR, HOUR, -5 * HOUR, 100 * HOUR, -NOW, 1 << 36][dice(9) as usize];
                }
                life.turn(30 + dice(300) as i64, NOW + life.real + offset);
                let newest = *life.made.get(&Period::Hourly).expect("there is one from the start");
                if made.last() != Some(&newest) {
                    made.push(newest);
                }
                let there = life.of(Period::Hourly);
                assert!(there.len() <= kept, "seed {seed}: {there:?}");
                assert!(there.iter().any(|(_, _, real)| *real == newest), "seed {seed}: the newest was removed");
                assert!(life.real - newest < HOUR * 5 / 4 + 330, "seed {seed}: a gap");
            }
            assert!(made.windows(2).all(|two| two[1] - two[0] >= HOUR / 10), "seed {seed}: a flood, {made:?}");
        }
    }

    #[test]
    fn what_no_schedule_asks_for_stays() {
        let there =
            ["2023-11-15T130000Z-daily", "mine", "weekly", "7", "a-7", ""].map(|name| (name, NOW - 90 * 24 * HOUR));
        let due = due(&"hourly=1".parse().unwrap(), there.into_iter(), NOW, |_| None);
        assert_eq!((due.make, due.remove.len()), (vec![Period::Hourly], 0));
        assert_eq!(period_of("2023-11-15T130000Z-daily-2"), Some(Period::Daily));
        for (time, is) in [(-5, "1970-01-01T000000Z-hourly"), (i64::MAX, "9999-01-01T000000Z-hourly")] {
            assert_eq!(name(Period::Hourly, time), is);
        }
    }
}
