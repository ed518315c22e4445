//! An independent volume through the mount, beside the same file without it.

use crate::bench::Bench;
use crate::failure::Outcome;
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
    let area = bench.work.area()?;
    let pool = Pool::new(bench, area.path())?;
    let (size, native) = (bench.settings.size, area.at("native"));
    bench.step("io: making two images")?;
    file::full(&native, size, 1)?;
    file::full(&pool.at("volume"), size, 1)?;
    let mut tables = Vec::new();
    for case in cases(bench.settings.seconds) {
        let job = &case.job;
        let figure = |path: &std::path::Path| {
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
                "clonefs",
                Box::new(|| {
                    pool.make_cold()?;
                    figure(&pool.at("volume"))
                }),
            ),
        ];
        let series = rounds(bench, case.name, contenders)?;
        let unit = if case.mib { "MiB/s" } else { "IOPS" };
        let name = format!("independent volume: {}", case.name);
        tables.push(Table::new(name, unit, job.words(), series).compare("clonefs", "native", case.bar));
    }
    Ok(tables)
}
