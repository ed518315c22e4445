//! Snapshots by schedule, with clocks of our own: below FUSE, a day in a moment.

#[path = "common/names.rs"]
mod names;

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use clonefs::engine::compactor::snapshots::Schedules;
use clonefs::engine::events::What;
use clonefs::engine::io::{Fs, HostFs, Open};
use clonefs::engine::policy::Patch;
use clonefs::engine::pool::{Names, Pool, PoolOptions};
use clonefs::engine::volume::Volume;
use tempfile::TempDir;

const HOUR: i64 = 3600;
/// A Wednesday, 13:20 UTC.
const NOW: i64 = 1_700_054_400;

/// A pool that is served without a mount.
struct Bench {
    pool: Arc<Pool>,
    _names: Arc<dyn Names>,
    schedules: Schedules,
    /// By a clock that nobody sets.
    time: i64,
    dir: TempDir,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let fs: Arc<dyn Fs> = Arc::new(HostFs::open_dir(dir.path()).unwrap());
        let pool = Pool::open(fs.clone(), PoolOptions { deepen_auto: false, ..PoolOptions::default() }).unwrap();
        let names: Arc<dyn Names> = Arc::new(names::Finder(fs));
        pool.set_names(Arc::downgrade(&names) as Weak<dyn Names>);
        Bench { pool, _names: names, schedules: Schedules::default(), time: 0, dir }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Arc<Volume> {
        let volume = match self.pool.fs().stat(Path::new(name)) {
            Ok(stat) => self.pool.volume(stat.key, Path::new(name)).unwrap(),
            Err(_) => {
                let file = self.pool.fs().open(Path::new(name), Open::CreateNew(0o644)).unwrap();
                self.pool.created(Path::new(name), file).unwrap()
            }
        };
        volume.write(0, bytes).unwrap();
        volume
    }

    fn set(&self, path: &str, snapshots: &str) {
        let patch = Patch::from([("snapshots".to_owned(), snapshots.into())]);
        self.pool.change_policy(Path::new(path), &patch, |_, _| Ok(())).unwrap();
    }

    /// Time goes on by `seconds`, and the clock shows `now`.
    fn turn(&mut self, seconds: i64, now: i64) {
        self.time += seconds;
        self.schedules.turn(&self.pool, now, Duration::from_secs(self.time as u64));
    }

    /// Names of the snapshots of a file.
    fn there(&self, of: &str) -> Vec<String> {
        let catalogue = self.pool.store().catalogue();
        let mut names: Vec<String> =
            catalogue.snapshots_of(of).filter_map(|record| Some(record.snapshot.as_ref()?.name.clone())).collect();
        names.sort();
        names
    }

    fn by_hand(&self, of: &str, name: &str) {
        let stat = self.pool.fs().stat(Path::new(of)).unwrap();
        let volume = self.pool.volume(stat.key, Path::new(of)).unwrap();
        self.pool.create_snapshots(&[(volume, of.into())], name, None).unwrap();
    }

    fn read(&self, of: &str, name: &str) -> Vec<u8> {
        let id = self.pool.find_snapshot(Path::new(of), name).unwrap();
        let volume = self.pool.volume_by_id(id).unwrap().unwrap();
        let mut bytes = vec![0; volume.size().unwrap() as usize];
        volume.read(0, &mut bytes).unwrap();
        bytes
    }
}

#[test]
fn the_last_of_each_period_stay_and_what_people_made_too() {
    let mut bench = Bench::new();
    bench.write("vm", b"00");
    bench.set(".", "hourly=3,daily=2");
    bench.by_hand("vm", "mine");
    bench.by_hand("vm", "mine-hourly");
    bench.by_hand("vm", "2001-01-01T000000Z-hourly");
    for hour in 0..60 {
        bench.write("vm", format!("{hour:02}").as_bytes());
        bench.turn(HOUR, NOW + hour * HOUR);
        if hour == 5 {
            // Whoever gives a snapshot a name wants to keep it.
            let made = bench.pool.find_snapshot(Path::new("vm"), "2023-11-15T182000Z-hourly").unwrap();
            bench.pool.rename_snapshot(made, "2023-11-15T182000Z-kept-hourly").unwrap();
        }
    }
    let expect = [
        "2001-01-01T000000Z-hourly",
        "2023-11-15T182000Z-kept-hourly",
        "2023-11-17T002000Z-daily",
        "2023-11-17T222000Z-hourly",
        "2023-11-17T232000Z-hourly",
        "2023-11-18T002000Z-daily",
        "2023-11-18T002000Z-hourly",
        "mine",
        "mine-hourly",
    ];
    assert_eq!(bench.there("vm"), expect);
    assert_eq!(bench.read("vm", "2023-11-17T222000Z-hourly"), b"57");
    assert_eq!(bench.read("vm", "2023-11-15T182000Z-kept-hourly"), b"05");
    assert_eq!(bench.read("vm", "mine"), b"00");
    bench.pool.shutdown().unwrap();
    assert!(clonefs::engine::pool::check::check(bench.pool.fs()).unwrap().problems.is_empty());
}

#[test]
fn a_clock_that_goes_back_brings_no_flood_and_costs_no_snapshot() {
    let mut bench = Bench::new();
    bench.write("vm", b"x");
    bench.set("vm", "hourly=5");
    (0..5).for_each(|hour| bench.turn(HOUR, NOW + hour * HOUR));
    let before = bench.there("vm");
    assert_eq!(before.len(), 5);
    for back in [30, HOUR, 3 * HOUR, 0, 2 * HOUR] {
        (0..3).for_each(|second| bench.turn(30, NOW + 4 * HOUR - back + second * 30));
        assert_eq!(bench.there("vm"), before);
    }
    // By far: one is made, as no time that has a snapshot is near, and takes the place of one.
    (0..20).for_each(|turn| bench.turn(30, NOW - 1000 * HOUR + turn * 30));
    let after = bench.there("vm");
    assert_eq!((after.len(), after.iter().filter(|name| before.contains(name)).count()), (5, 4), "{after:?}");
    // Right again, it goes on, and the odd one is the first to go.
    bench.turn(HOUR, NOW + 6 * HOUR);
    assert_eq!(bench.there("vm").len(), 5);
    assert!(bench.there("vm").iter().all(|name| name.starts_with("2023-11-15")), "{:?}", bench.there("vm"));
}

#[test]
fn volumes_of_a_tree_are_taken_together_and_those_that_say_none_are_not() {
    let mut bench = Bench::new();
    for directory in ["tree", "tree/below"] {
        bench.pool.fs().mkdir(Path::new(directory), 0o755).unwrap();
    }
    for name in ["a", "b", "tree/c", "tree/below/d", "tree/none", "tree/.x.clonefs-abcdef"] {
        bench.write(name, name.as_bytes());
    }
    bench.set("a", "daily=1");
    bench.set("tree", "hourly=2");
    bench.set("tree/none", "none");
    bench.turn(30, NOW);
    bench.turn(30, NOW + 30);
    assert_eq!(bench.there("a"), ["2023-11-15T132000Z-daily"]);
    for name in ["tree/c", "tree/below/d"] {
        assert_eq!(bench.there(name), ["2023-11-15T132000Z-hourly"]);
        assert_eq!(bench.read(name, "2023-11-15T132000Z-hourly"), name.as_bytes());
    }
    for name in ["b", "tree/none", "tree/.x.clonefs-abcdef"] {
        assert!(bench.there(name).is_empty(), "{name}");
    }
    // Without a schedule what was made stays.
    bench
        .pool
        .change_policy(Path::new("tree"), &Patch::from([("snapshots".into(), ().into())]), |_, _| Ok(()))
        .unwrap();
    bench.turn(HOUR, NOW + HOUR);
    assert_eq!(bench.there("tree/c").len(), 1);
}

#[test]
fn one_that_cannot_be_made_is_told_once_and_holds_nobody_up() {
    let mut bench = Bench::new();
    for name in ["a", "b", "twice"] {
        bench.write(name, b"x");
    }
    bench.pool.flush().unwrap();
    std::fs::hard_link(bench.dir.path().join("twice"), bench.dir.path().join("other")).unwrap();
    bench.set(".", "hourly=2");
    (0..5).for_each(|turn| bench.turn(30, NOW + turn * 30));
    assert_eq!((bench.there("a").len(), bench.there("b").len(), bench.there("twice").len()), (1, 1, 0));
    assert_eq!(bench.pool.events().count(What::Failed), 2, "once for each name");
    bench.turn(HOUR, NOW + HOUR);
    assert_eq!((bench.there("a").len(), bench.pool.events().count(What::Failed)), (2, 4));
    std::fs::remove_file(bench.dir.path().join("other")).unwrap();
    bench.turn(30, NOW + HOUR + 30);
    assert_eq!(bench.there("twice").len(), 1);
}
