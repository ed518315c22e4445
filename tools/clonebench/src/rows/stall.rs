//! The longest write of a source while it is cloned.

use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::bench::Bench;
use crate::failure::{During, Failure, Outcome};
use crate::file;
use crate::pool::Pool;
use crate::report::{Bar, Table, Verdict};
use crate::rounds::{Series, median, quantile};

/// Between two clones.
const PAUSE: Duration = Duration::from_millis(20);

/// 4096 bytes where O_DIRECT wants them.
#[repr(align(4096))]
struct Block([u8; 4096]);

pub fn run(bench: &Bench) -> Outcome<Vec<Table>> {
    let area = bench.work.area()?;
    let pool = Pool::new(bench, area.path())?;
    let (size, clones) = (bench.settings.size, bench.settings.repeats);
    bench.step("stall: making an image")?;
    file::full(&pool.at("source"), size, 7)?;
    let names = ["p99.9 undisturbed", "longest undisturbed", "p99.9 while cloned", "longest while cloned"];
    let mut series = names.map(|name| Series { name: name.to_owned(), figures: Vec::new() });
    for round in 0..bench.settings.rounds {
        bench.step(&format!("stall, round {}", round + 1))?;
        let quiet = while_writing(&pool.at("source"), size, || {
            for _ in 0..clones {
                std::thread::sleep(PAUSE);
            }
            Ok(())
        })?;
        let cloned = while_writing(&pool.at("source"), size, || {
            for clone in 0..clones {
                std::thread::sleep(PAUSE);
                pool.clone("source", &format!("clone-{round}-{clone}"))?;
            }
            Ok(())
        })?;
        let figures =
            [quantile(&quiet, 0.999), quantile(&quiet, 1.0), quantile(&cloned, 0.999), quantile(&cloned, 1.0)];
        for (series, figure) in series.iter_mut().zip(figures) {
            series.figures.push(figure);
        }
        for clone in 0..clones {
            file::remove(&pool.at(&format!("clone-{round}-{clone}")))?;
        }
    }
    let above = median(&series[3].figures) - median(&series[2].figures);
    let how =
        format!("pwrite(2) of 4 KiB with O_DIRECT at random places, one after another; {clones} clones meanwhile");
    let table = Table::new("writes to a source while it is cloned", "ms", how, series.to_vec());
    let verdict = Verdict::new("longest while cloned, above its p99.9", above, Bar::AtMost(5.0));
    Ok(vec![table.verdict(verdict)])
}

/// Latencies in milliseconds of writes to `path` while `work` runs.
fn while_writing(path: &Path, size: u64, work: impl FnOnce() -> Outcome<()>) -> Outcome<Vec<f64>> {
    let done = AtomicBool::new(false);
    let file = std::fs::OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).during("open", path)?;
    let (worked, latencies) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> std::io::Result<Vec<f64>> {
            let (mut random, block) = (fastrand::Rng::with_seed(8), Block([9; 4096]));
            let mut latencies = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let at = random.u64(0..size / 4096) * 4096;
                let began = Instant::now();
                file.write_all_at(&block.0, at)?;
                latencies.push(began.elapsed().as_secs_f64() * 1e3);
            }
            Ok(latencies)
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        (worked, writer.join())
    });
    worked?;
    let latencies = latencies.map_err(|_| Failure::line("the writer panicked"))?;
    latencies.during("write", path)
}
