//! Reads through many layers, beside reads through one.

use std::os::unix::fs::FileExt;
use std::time::Instant;

use crate::bench::Bench;
use crate::failure::{During, Outcome};
use crate::file;
use crate::fio::Job;
use crate::pool::Pool;
use crate::report::{Bar, Table};
use crate::rounds::{Contender, rounds};
use crate::run;

pub fn run(bench: &Bench) -> Outcome<Vec<Table>> {
    let area = bench.work.area()?;
    let pool = Pool::new(bench, area.path())?;
    let (size, depth) = (bench.settings.size, bench.settings.depth);
    bench.step("depth: making the chain")?;
    file::full(&pool.at("base"), size, 4)?;
    pool.clone("base", "level-1")?;
    // Every link of the chain has a block of its own, so that every layer is there.
    let mut random = fastrand::Rng::with_seed(5);
    for level in 1..=depth {
        run::check()?;
        let from = format!("level-{level}");
        let block = random.u64(0..size / 4096);
        let source = file::open(&pool.at(&from))?;
        source.write_all_at(&[7; 4096], block * 4096).during("write", &pool.at(&from))?;
        pool.clone(&from, &format!("level-{}", level + 1))?;
    }
    let (deep, shallow) = (format!("level-{}", depth + 1), "level-2".to_owned());
    let job = &Job::random("randread", 32, bench.settings.seconds);
    let read = |name: &str| {
        pool.make_cold()?;
        Ok(job.run(&pool.at(name), size)?.iops)
    };
    let deep_name = format!("depth {depth}");
    let contenders: Vec<Contender> =
        vec![("depth 1", Box::new(|| read(&shallow))), (&deep_name, Box::new(|| read(&deep)))];
    let name = "random reads through layers, QD32";
    let series = rounds(bench, name, contenders)?;
    let reads = Table::new(name, "IOPS", job.words(), series).compare(&deep_name, "depth 1", Bar::AtLeast(0.95));

    let first = |name: &str| {
        // Nothing is known of any volume right after the mount.
        pool.unmount()?;
        pool.mount("deepen=manual")?;
        let path = pool.at(name);
        let began = Instant::now();
        let opened = std::fs::File::open(&path).during("open", &path)?;
        opened.read_exact_at(&mut [0; 4096], 0).during("read", &path)?;
        Ok(began.elapsed().as_secs_f64() * 1e3)
    };
    let contenders: Vec<Contender> =
        vec![("depth 1", Box::new(|| first(&shallow))), (&deep_name, Box::new(|| first(&deep)))];
    let name = "open and read one block, right after the mount";
    let series = rounds(bench, name, contenders)?;
    let how = "open(2) and one pread(2) of 4096 bytes";
    Ok(vec![reads, Table::new(name, "ms", how, series).compare(&deep_name, "depth 1", Bar::None)])
}
