//! Many clones of one image and the page cache.

use std::fs::File;
use std::io::Read;

use crate::bench::Bench;
use crate::failure::{During, Failure, Outcome};
use crate::file;
use crate::pool::Pool;
use crate::report::{Bar, Table, Verdict};
use crate::rounds::Series;
use crate::run;

const CLONES: usize = 32;

pub fn run(bench: &Bench) -> Outcome<Vec<Table>> {
    let area = bench.work.area()?;
    let pool = Pool::new(bench, area.path())?;
    let size = bench.settings.size;
    bench.step("cache: making an image")?;
    file::full(&pool.at("base"), size, 10)?;
    for clone in 0..CLONES {
        pool.clone("base", &format!("clone-{clone}"))?;
    }
    pool.make_cold()?;
    let pid = pool.pid()?;
    let before = bytes_read(pid)?;
    let mut figures = Vec::new();
    for clone in 0..CLONES {
        bench.step(&format!("cache: reading clone {clone}"))?;
        read_all(&pool, &format!("clone-{clone}"))?;
        figures.push((bytes_read(pid)? - before) as f64 / size as f64);
    }
    let all = figures.last().copied().unwrap_or(f64::NAN);
    let how = "32 clones read in full, one after another; read_bytes of /proc/PID/io of the daemon";
    let series = Series { name: "after each clone".to_owned(), figures };
    let table = Table::new("32 clones of one image read in full", "bytes from the disk / size", how, vec![series]);
    let verdict = Verdict::new("bytes from the disk / size of the image", all, Bar::AtMost(1.1));
    Ok(vec![table.verdict(verdict)])
}

fn read_all(pool: &Pool, name: &str) -> Outcome<()> {
    let path = pool.at(name);
    let mut file = File::open(&path).during("open", &path)?;
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer).during("read", &path)? > 0 {
        run::check()?;
    }
    Ok(())
}

/// Bytes that the process has had read from disks.
fn bytes_read(pid: u32) -> Outcome<u64> {
    let path = format!("/proc/{pid}/io");
    let io = std::fs::read_to_string(&path).during("read", path.as_ref())?;
    let number = io.lines().find_map(|line| line.strip_prefix("read_bytes: ")?.parse().ok());
    number.ok_or_else(|| Failure::line(format!("{path} has no read_bytes")))
}
