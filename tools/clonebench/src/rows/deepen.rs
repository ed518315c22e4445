//! Deepening beside cp, and what it does to another volume meanwhile.

use std::time::{Duration, Instant};

use clonefs::client::doors;
use clonefs::protocol::{DeepenAction, DeepenRequest, VolumeState};

use crate::bench::Bench;
use crate::failure::{During, Outcome};
use crate::file;
use crate::fio::{Found, Job};
use crate::pool::Pool;
use crate::report::{Bar, Table};
use crate::rounds::{Contender, Series, rounds};
use crate::run;
use crate::work::Work;

/// Between two looks at whether it is done.
const LOOK: Duration = Duration::from_millis(2);

pub fn run(bench: &Bench) -> Outcome<Vec<Table>> {
    let area = bench.work.area()?;
    let pool = Pool::with(bench, area.path(), "deepen=manual,physical")?;
    let size = bench.settings.size;
    bench.step("deepen: making images")?;
    // A quarter of it is holes, in pieces.
    file::mixed(&pool.at("base"), size, 11, |piece| piece % 16 < 12)?;
    // So large that it is not deepened before the other volume's test has ended.
    file::mixed(&pool.at("large"), LARGE * size, 13, |piece| piece % 16 < 12)?;
    file::full(&pool.at("other"), size, 12)?;
    let mut tables = vec![throughput(bench, &area, &pool)?];
    tables.extend(foreground(bench, &pool)?);
    Ok(tables)
}

fn throughput(bench: &Bench, area: &Work, pool: &Pool) -> Outcome<Table> {
    let mib = bench.settings.size as f64 / f64::from(1 << 20);
    let base = pool.file("base");
    let copy = |sync: bool| {
        let to = area.at("copy");
        pool.make_cold()?;
        let began = Instant::now();
        run::output(run::command("cp").arg("--sparse=always").arg(&base).arg(&to))?;
        if sync {
            file::open(&to)?.sync_all().during("sync", &to)?;
        }
        let took = began.elapsed();
        // What is still to be written must not slow the next one down.
        file::open(&to)?.sync_all().during("sync", &to)?;
        file::remove(&to)?;
        Ok(mib / took.as_secs_f64())
    };
    let deepen = || {
        pool.clone("base", "deepened")?;
        pool.make_cold()?;
        let began = Instant::now();
        ask(pool, "deepened", DeepenAction::Start)?;
        while doors::info(&pool.at("deepened"))?.is_some_and(|info| info.state != VolumeState::Independent) {
            run::check()?;
            std::thread::sleep(LOOK);
        }
        let took = began.elapsed();
        file::remove(&pool.at("deepened"))?;
        Ok(mib / took.as_secs_f64())
    };
    let contenders: Vec<Contender> = vec![
        ("cp --sparse=always", Box::new(|| copy(false))),
        ("cp --sparse=always, fsync", Box::new(|| copy(true))),
        ("clonefs deepen", Box::new(deepen)),
    ];
    let how = "as clonefs deepen CLONE; the image is three quarters data; nothing of it in memory";
    let series = rounds(bench, "deepening", contenders)?;
    let table = Table::new("deepening an image, durable at its end", "MiB/s", how, series);
    let table = table.compare("clonefs deepen", "cp --sparse=always", Bar::AtLeast(1.0));
    Ok(table.compare("clonefs deepen", "cp --sparse=always, fsync", Bar::None))
}

/// The image that is deepened in the background has so many times the size of the others.
const LARGE: u64 = 4;

/// Sets background work going, or stops it.
fn ask(pool: &Pool, name: &str, action: DeepenAction) -> Outcome<()> {
    Ok(doors::deepen(&pool.at(name), &DeepenRequest { action, rate: None, physical: true })?)
}

fn foreground(bench: &Bench, pool: &Pool) -> Outcome<Vec<Table>> {
    let mut tables = Vec::new();
    for (kind, depth) in [("randread", 1), ("randwrite", 1), ("randread", 32), ("randwrite", 32)] {
        let job = Job::random(kind, depth, bench.settings.seconds);
        let alone = std::cell::RefCell::new(Vec::new());
        let beside = std::cell::RefCell::new(Vec::new());
        let moved = std::cell::RefCell::new(Vec::new());
        let other = |found: &std::cell::RefCell<Vec<Found>>| {
            found.borrow_mut().push(job.run(&pool.at("other"), bench.settings.size)?);
            Ok(found.borrow().last().map_or(f64::NAN, |found| found.iops))
        };
        let deepening = || {
            pool.clone("large", "background")?;
            let to_copy =
                || Ok::<u64, crate::failure::Failure>(doors::info(&pool.at("background"))?.map_or(0, |i| i.to_copy));
            let before = to_copy()?;
            ask(pool, "background", DeepenAction::Start)?;
            let figure = other(&beside);
            let after = to_copy()?;
            moved.borrow_mut().push((before - after) as f64 / f64::from(1 << 20) / job.seconds);
            file::remove(&pool.at("background"))?;
            figure
        };
        let settle = || {
            pool.make_cold()?;
            other(&alone)
        };
        let contenders: Vec<Contender> = vec![
            ("alone", Box::new(settle)),
            (
                "beside deepening",
                Box::new(|| {
                    pool.make_cold()?;
                    deepening()
                }),
            ),
        ];
        let name = format!("another volume while deepening: {kind}, QD{depth}");
        let series = rounds(bench, &name, contenders)?;
        let table = Table::new(name.clone(), "IOPS", job.words(), series);
        tables.push(table.compare("beside deepening", "alone", Bar::AtLeast(0.90)));
        let p99 = |found: Vec<Found>| found.iter().map(|found| found.p99).collect();
        let series = |name: &str, figures| Series { name: name.to_owned(), figures };
        let latencies =
            vec![series("alone", p99(alone.into_inner())), series("beside deepening", p99(beside.into_inner()))];
        let table = Table::new(format!("{name}: p99"), "ms", job.words(), latencies);
        tables.push(table.compare("beside deepening", "alone", Bar::AtMost(1.25)));
        let moved = vec![series("moved meanwhile", moved.into_inner())];
        tables.push(Table::new(
            format!("{name}: the background's own speed"),
            "MiB/s",
            "to_copy, before and after",
            moved,
        ));
    }
    Ok(tables)
}
