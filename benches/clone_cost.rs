//! What a clone costs through a real mount: against the size of the source, its fragmentation, and the number of its
//! clones; and what a pool of many clones costs to mount and to list.
//!
//! `cargo bench --bench clone_cost` prints a table. `CLONEFS_BENCH_DIR` is where pools are made (default: the
//! temporary directory), `CLONEFS_BENCH_CLONES` the number of clones of one image (default 10,000).

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clonefs::client::doors;
use clonefs::protocol::CloneRequest;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Rounds of each measurement; the sources take turns in each round.
const ROUNDS: usize = 200;

/// A pool that is mounted, and unmounted and removed at the end.
struct Mounted {
    dir: tempfile::TempDir,
    pool: PathBuf,
}

fn clonefs(args: &[&str]) -> Outcome<Duration> {
    let began = Instant::now();
    let done = Command::new(env!("CARGO_BIN_EXE_clonefs")).args(args).output()?;
    if !done.status.success() {
        return Err(format!("clonefs {args:?}: {}", String::from_utf8_lossy(&done.stderr)).into());
    }
    Ok(began.elapsed())
}

impl Mounted {
    fn new() -> Outcome<Mounted> {
        let base = std::env::var_os("CLONEFS_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let dir = tempfile::tempdir_in(base)?;
        let pool = dir.path().join("pool");
        fs::create_dir(&pool)?;
        Ok(Mounted { dir, pool })
    }

    fn mount(&self) -> Outcome<Duration> {
        clonefs(&["mount", "--deepen", "manual", text(&self.pool)?])
    }

    fn unmount(&self) -> Outcome<Duration> {
        clonefs(&["unmount", text(&self.pool)?])
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.unmount();
        let _ = self.dir.path();
    }
}

fn text(path: &Path) -> Outcome<&str> {
    path.to_str().ok_or_else(|| "a path that is not UTF-8".into())
}

/// A sparse file of `size` bytes with `extents` separate blocks of data.
fn source(path: &Path, size: u64, extents: u64) -> Outcome<()> {
    let file = File::create_new(path)?;
    file.set_len(size)?;
    let step = (size / extents.max(1)) / 4096 * 4096;
    for i in 0..extents {
        file.write_all_at(&[(i % 251) as u8 + 1; 4096], i * step.max(8192) % size.max(1))?;
    }
    file.sync_all()?;
    Ok(())
}

/// One clone through the extended attribute door; the time is that of the clone alone.
fn clone(from: &Path, to: &Path) -> Outcome<Duration> {
    let source = File::open(from)?;
    let token = doors::token(&source, from)?;
    let target = OpenOptions::new().write(true).create_new(true).open(to)?;
    let request = CloneRequest { token, ..CloneRequest::default() };
    let began = Instant::now();
    doors::clone(&target, &request, from)?;
    Ok(began.elapsed())
}

fn quantile(times: &mut [Duration], q: f64) -> f64 {
    times.sort();
    let at = ((times.len() - 1) as f64 * q) as usize;
    times[at].as_secs_f64() * 1e6
}

fn by_size_and_extents() -> Outcome<()> {
    let bench = Mounted::new()?;
    let sources = [
        ("1 MiB", 1 << 20, 1),
        ("1 GiB", 1 << 30, 1),
        ("100 GiB", 100 << 30, 1),
        ("1 TiB", 1 << 40, 1),
        ("1 GiB, 100,000 extents", 1 << 30, 100_000),
    ];
    for (name, size, extents) in sources {
        source(&bench.pool.join(format!("{name}.img")), size, extents)?;
    }
    bench.mount()?;
    let mut times = vec![Vec::new(); sources.len()];
    for round in 0..ROUNDS {
        for (i, (name, ..)) in sources.iter().enumerate() {
            let to = bench.pool.join(format!("{name}-{round}.img"));
            times[i].push(clone(&bench.pool.join(format!("{name}.img")), &to)?);
        }
    }
    println!("clone latency, {ROUNDS} interleaved rounds");
    println!("{:<26} {:>10} {:>10} {:>8}", "source", "p50 us", "p95 us", "ratio");
    let mut first = 0.0;
    for ((name, ..), times) in sources.iter().zip(&mut times) {
        let (p50, p95) = (quantile(times, 0.5), quantile(times, 0.95));
        if first == 0.0 {
            first = p50;
        }
        println!("{name:<26} {p50:>10.0} {p95:>10.0} {:>8.2}", p50 / first);
    }
    Ok(())
}

/// Resident memory of the process that serves a mount, in KiB.
fn memory(pool: &Path) -> Outcome<u64> {
    let pid = doors::status(pool)?.ok_or("not mounted")?.pid;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

fn files(dir: &Path) -> Outcome<u64> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        count += 1;
        if entry.file_type()?.is_dir() {
            count += files(&entry.path())?;
        }
    }
    Ok(count)
}

fn by_number() -> Outcome<()> {
    let clones: usize = std::env::var("CLONEFS_BENCH_CLONES").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000);
    let bench = Mounted::new()?;
    source(&bench.pool.join("base.img"), 1 << 30, 1000)?;
    bench.mount()?;
    let before = memory(&bench.pool)?;
    let mut times = Vec::with_capacity(clones);
    let began = Instant::now();
    for i in 0..clones {
        times.push(clone(&bench.pool.join("base.img"), &bench.pool.join(format!("vm{i}.img")))?);
    }
    let all = began.elapsed();
    let after = memory(&bench.pool)?;
    let tenth = (clones / 10).max(1);
    let (first, last) = (quantile(&mut times[..tenth], 0.5), quantile(&mut times[clones - tenth..], 0.5));
    println!("\n{clones} clones of one image");
    println!("clones a second                 {:>10.0}", clones as f64 / all.as_secs_f64());
    println!("p50 of the first and last tenth {first:>10.0} {last:>10.0} us, ratio {:.2}", last / first);
    println!("memory for each clone           {:>10.1} KiB", (after.saturating_sub(before)) as f64 / clones as f64);
    let listed = clonefs(&["list", "--json", text(&bench.pool)?])?;
    println!("list                            {:>10.2} s", listed.as_secs_f64());
    let unmounted = bench.unmount()?;
    println!("unmount                         {:>10.2} s", unmounted.as_secs_f64());
    let made = files(&bench.pool.join(".clonefs"))?;
    println!("metadata files for each clone   {:>10.2} (a link to the stub)", made as f64 / clones as f64);
    let mounted = bench.mount()?;
    println!("mount                           {:>10.2} s", mounted.as_secs_f64());
    println!("memory after mount              {:>10} KiB", memory(&bench.pool)?);
    let listed = clonefs(&["list", "--json", text(&bench.pool)?])?;
    println!("list, nothing known yet         {:>10.2} s", listed.as_secs_f64());
    Ok(())
}

fn main() -> Outcome<()> {
    // `cargo test --benches` and nextest ask for a list of tests: there are none here.
    if std::env::args().any(|a| a == "--list" || a == "--test") {
        return Ok(());
    }
    by_size_and_extents()?;
    by_number()
}
