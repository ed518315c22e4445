//! Many clones of one image.

use std::time::Instant;

use crate::bench::Bench;
use crate::failure::{During, Failure, Outcome};
use crate::file;
use crate::pool::Pool;
use crate::report::{Bar, Table, Verdict};
use crate::rounds::{Series, median};

/// Milliseconds.
fn ms(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub fn run(bench: &Bench) -> Outcome<Vec<Table>> {
    let area = bench.work.area()?;
    let pool = Pool::new(bench, area.path())?;
    let clones = bench.settings.clones as usize;
    file::mixed(&pool.at("base"), bench.settings.size, 6, |piece| piece < 16)?;
    let before = memory(&pool)?;
    let mut times = Vec::with_capacity(clones);
    let began = Instant::now();
    for clone in 0..clones {
        if clone % 100 == 0 {
            bench.step(&format!("many: clone {clone} of {clones}"))?;
        }
        times.push(ms(pool.clone("base", &format!("clone-{clone}"))?));
    }
    let all = began.elapsed();
    let each = memory(&pool)?.saturating_sub(before) as f64 / clones as f64;
    let tenth = clones / 10;
    let (first, last) = (times[..tenth].to_vec(), times[clones - tenth..].to_vec());
    let growth = median(&last) / median(&first);
    let series = |name: &str, figures| Series { name: name.to_owned(), figures };
    let how = format!("{clones} times open, create and the attribute user.clonefs.clone, from one process");
    let table = Table::new(
        "clones of one image",
        "ms",
        how,
        vec![
            series("first tenth", first),
            series("last tenth", last),
            series("unmount", vec![ms(pool.unmount()?)]),
            series("mount", vec![ms(pool.mount("deepen=manual")?)]),
        ],
    );
    let rate = clones as f64 / all.as_secs_f64();
    let table = table
        .verdict(Verdict::new("clones a second", rate, Bar::AtLeast(500.0)))
        .verdict(Verdict::new("last tenth / first tenth", growth, Bar::AtMost(1.2)))
        .verdict(Verdict::new("KiB of memory for each clone", each, Bar::AtMost(16.0)));
    Ok(vec![table])
}

/// Resident memory of the daemon in KiB.
fn memory(pool: &Pool) -> Outcome<u64> {
    let path = format!("/proc/{}/status", pool.pid()?);
    let status = std::fs::read_to_string(&path).during("read", path.as_ref())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse().ok());
    number.ok_or_else(|| Failure::line(format!("{path} has no VmRSS")))
}
