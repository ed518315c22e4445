//! An independent volume through the mount, and with passthrough, beside the same file without it.

use std::fs::File;
use std::path::Path;

use clonefs::client::doors;

use crate::bench::Bench;
use crate::failure::{During, Outcome};
use crate::file;
use crate::fio::Job;
use crate::pool::Pool;
use crate::report::{Bar, Table};
use crate::rounds::{Contender, rounds};

/// A measurement: its name, what fio does, whether its figure is MiB a second, the bar.
struct Case {
    name: &'static str,
    job: Job,
    mib: bool,
    bar: Bar,
}

/// How the mount is used.
struct Way {
    /// Options of the mount.
    options: &'static str,
    /// What its tables begin with.
    title: &'static str,
    /// What it is called in them.
    name: &'static str,
    /// The bar of all that have one, if it is another one here.
    bar: Option<Bar>,
    /// A handle for reading and writing stays open, as a virtual machine's does: it takes all others past the daemon.
    held: bool,
}

const DAEMON: Way =
    Way { options: "deepen=manual", title: "independent volume", name: "clonefs", bar: None, held: false };

const PAST: Way = Way {
    options: "deepen=manual,passthrough=writable",
    title: "independent volume with passthrough",
    name: "passthrough",
    bar: Some(Bar::AtLeast(0.95)),
    held: true,
};

fn cases(seconds: f64) -> Vec<Case> {
    let random = |name, kind, depth, bar| Case { name, job: Job::random(kind, depth, seconds), mib: false, bar };
    let sequential = |name, kind| {
        let job = Job::sequential(kind, seconds);
        Case { name, job, mib: true, bar: Bar::AtLeast(0.90) }
    };
    let durable = |name, depth, more| {
        let job = Job { more, ..Job::random("randwrite", depth, seconds) };
        Case { name, job, mib: false, bar: Bar::None }
    };
    vec![
        random("random read, QD1", "randread", 1, Bar::AtLeast(0.75)),
        random("random write, QD1", "randwrite", 1, Bar::AtLeast(0.75)),
        random("random read, QD32", "randread", 32, Bar::AtLeast(0.80)),
        random("random write, QD32", "randwrite", 32, Bar::AtLeast(0.75)),
        sequential("sequential read", "read"),
        sequential("sequential write", "write"),
        durable("random write, QD1, each with fdatasync", 1, &["--fdatasync=1"]),
        durable("random write, QD32, and one fsync at the end", 32, &["--end_fsync=1"]),
    ]
}

pub fn run(bench: &Bench) -> Outcome<Vec<Table>> {
    measure(bench, &DAEMON)
}

pub fn run_past(bench: &Bench) -> Outcome<Vec<Table>> {
    measure(bench, &PAST)
}

/// Why nothing goes past the daemon here, if so: it is tried.
pub fn no_passthrough(bench: &Bench) -> Option<String> {
    let goes_past = || -> Outcome<bool> {
        let area = bench.work.area()?;
        let pool = Pool::with(bench, area.path(), PAST.options)?;
        file::full(&pool.at("probe"), 1 << 20, 1)?;
        let _held = hold(&pool.at("probe"))?;
        Ok(doors::status(&pool.root)?.is_some_and(|status| status.open_past > 0))
    };
    match goes_past() {
        Ok(true) => None,
        Ok(false) => Some("passthrough needs root, Linux 6.9 or newer, and ext4, xfs or btrfs".into()),
        Err(failure) => Some(format!("passthrough: {failure}")),
    }
}

fn hold(path: &Path) -> Outcome<File> {
    File::options().read(true).write(true).open(path).during("open", path)
}

fn measure(bench: &Bench, way: &Way) -> Outcome<Vec<Table>> {
    let area = bench.work.area()?;
    let pool = Pool::with(bench, area.path(), way.options)?;
    let (size, native) = (bench.settings.size, area.at("native"));
    bench.step("io: making two images")?;
    file::full(&native, size, 1)?;
    file::full(&pool.at("volume"), size, 1)?;
    let _held = way.held.then(|| hold(&pool.at("volume"))).transpose()?;
    let mut tables = Vec::new();
    for case in cases(bench.settings.seconds) {
        let job = &case.job;
        let figure = |path: &Path| {
            let found = job.run(path, size)?;
            Ok(if case.mib { found.mib } else { found.iops })
        };
        // Everything from the disk at first, on both sides.
        let contenders: Vec<Contender> = vec![
            (
                "native",
                Box::new(|| {
                    file::make_cold(&native)?;
                    figure(&native)
                }),
            ),
            (
                way.name,
                Box::new(|| {
                    pool.make_cold()?;
                    figure(&pool.at("volume"))
                }),
            ),
        ];
        let series = rounds(bench, case.name, contenders)?;
        let unit = if case.mib { "MiB/s" } else { "IOPS" };
        let bar = match (&case.bar, way.bar) {
            (Bar::None, _) | (_, None) => case.bar,
            (_, Some(bar)) => bar,
        };
        let name = format!("{}: {}", way.title, case.name);
        tables.push(Table::new(name, unit, job.words(), series).compare(way.name, "native", bar));
    }
    Ok(tables)
}
