use std::collections::BTreeSet;

use super::*;

/// A window with little room.
fn window(names: &BTreeSet<String>, from: u64, room: usize, sum: fn(&str) -> u64) -> Window {
    let mut choice = Choice::new(from, room);
    names.iter().for_each(|name| choice.offer(sum(name), OsStr::new(name), 1, None));
    let (entries, to, total) = choice.end();
    Window { entries, from, to, total, taken: Instant::now(), took: Duration::ZERO }
}

fn usual(name: &str) -> u64 {
    checksum(OsStr::new(name))
}

/// Only seven different ones.
fn alike(name: &str) -> u64 {
    usual(name) % 7 + 1
}

/// Reads everything, a few names at a time, each time from a window of its own; `between` changes the directory.
fn read_all(
    names: &mut BTreeSet<String>,
    room: usize,
    at_once: usize,
    sum: fn(&str) -> u64,
    mut between: impl FnMut(&mut BTreeSet<String>),
) -> Vec<String> {
    let (mut at, mut found) = (FIRST, Vec::new());
    loop {
        let window = window(names, at, room, sum);
        assert!(window.covers(at));
        assert_eq!(window.total(), names.len());
        let entries = window.entries_from(at);
        for (position, entry) in entries.iter().take(at_once) {
            assert!(*position >= at && (*position as i64) > 0);
            at = position + 1;
            found.push(entry.name.to_str().unwrap().to_owned());
        }
        match window.end() {
            None if entries.len() <= at_once => return found,
            Some(end) if entries.len() <= at_once => at = end,
            _ => {}
        }
        between(names);
    }
}

fn some_names(count: usize) -> BTreeSet<String> {
    (0..count).map(|number| format!("disk-{number}.img")).collect()
}

#[test]
fn every_name_comes_once_whatever_the_sizes() {
    for sum in [usual, alike] {
        for (count, room, at_once) in [(0, 4, 3), (1, 1, 1), (100, 4, 3), (1000, 10, 1), (1000, 300, 128), (500, 1, 7)]
        {
            let mut names = some_names(count);
            let found = read_all(&mut names, room, at_once, sum, |_| ());
            assert_eq!(found.len(), count);
            assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), names);
        }
    }
}

#[test]
fn names_that_stay_come_once_whatever_else_comes_and_goes() {
    let stay: BTreeSet<String> = (0..500).map(|number| format!("stays-{number}")).collect();
    let mut names: BTreeSet<String> = stay.iter().cloned().chain((0..500).map(|n| format!("goes-{n}"))).collect();
    let mut step = 0;
    let found = read_all(&mut names, 16, 5, usual, |names| {
        step += 1;
        names.insert(format!("new-{step}"));
        names.remove(&format!("goes-{step}"));
        names.remove(&format!("new-{}", step / 2));
    });
    let mut kept: Vec<_> = found.into_iter().filter(|name| name.starts_with("stays")).collect();
    kept.sort();
    assert_eq!(kept, stay.into_iter().collect::<Vec<_>>());
}

#[test]
fn a_window_has_the_names_that_there_is_room_for() {
    let names = some_names(100_000);
    let window = window(&names, FIRST, 1000, usual);
    assert!((1000..2000).contains(&window.entries.len()), "{}", window.entries.len());
    let next = self::window(&names, window.end().unwrap(), 1000, usual);
    assert!(next.entries[0].0 >= window.end().unwrap() && !next.covers(FIRST));
}

#[test]
fn positions_never_change() {
    // Others remember them, perhaps from an older clonefs.
    assert_eq!(usual("disk.img"), 0x3_c392_001c_06d6);
    assert_eq!(usual(""), 0x2_15c3_8943_f930);
}

#[test]
fn what_was_read_a_moment_ago_is_found_and_the_oldest_goes() {
    let with = |count: usize, took| {
        let names = some_names(count);
        Arc::new(Window { took, ..window(&names, FIRST, count.max(1), usual) })
    };
    let mut recent = Recent::default();
    let long = Duration::from_secs(100);
    recent.keep((1, 1), &with(10, long));
    recent.keep((2, 1), &with(10, Duration::from_micros(10)));
    assert!(recent.find((1, 1), FIRST + 5).is_some());
    assert!(recent.find((1, 2), FIRST).is_none(), "another directory had the number");
    assert!(recent.find((2, 1), FIRST).is_none(), "it is read again as fast");
    recent.keep((3, 1), &with(Recent::MOST, long));
    assert!(recent.find((1, 1), FIRST).is_none() && recent.find((3, 1), FIRST).is_some());
    let old = Arc::new(Window { taken: Instant::now() - long * 2, ..window(&some_names(3), FIRST, 3, usual) });
    recent.keep((4, 1), &old);
    assert!(recent.find((4, 1), FIRST).is_none());
}
