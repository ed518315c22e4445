//! What snapshots cost through a real mount: making, going back to, and removing one, and resetting a clone, against the size
//! of the volume, its fragmentation, and the number of its snapshots. Each is durable when it returns, so the time is
//! mostly that of a few syncs.
//!
//! `cargo bench --bench snapshot_cost` prints tables. `CLONEFS_BENCH_DIR` is where pools are made (default: the
//! temporary directory), `CLONEFS_BENCH_ROUNDS` the rounds of each row (default 40).

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clonefs::client::{self, SnapshotName};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// The operations, as they are measured in each round.
const WORK: [&str; 4] = ["create", "rollback", "reset", "remove"];

struct Mounted(tempfile::TempDir);

fn clonefs(args: &[&str], path: &Path) -> Outcome<()> {
    let done = Command::new(env!("CARGO_BIN_EXE_clonefs")).args(args).arg(path).output()?;
    if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).into_owned().into()) }
}

impl Mounted {
    fn new() -> Outcome<Mounted> {
        let base = std::env::var_os("CLONEFS_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let dir = tempfile::tempdir_in(base)?;
        fs::create_dir(dir.path().join("pool"))?;
        Ok(Mounted(dir))
    }

    fn pool(&self) -> PathBuf {
        self.0.path().join("pool")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = clonefs(&["unmount"], &self.pool());
    }
}

/// A sparse file of `size` bytes with `extents` separate blocks of data.
fn source(path: &Path, size: u64, extents: u64) -> Outcome<()> {
    let file = File::create_new(path)?;
    file.set_len(size)?;
    let step = ((size / extents.max(1)) / 4096 * 4096).max(8192);
    for i in 0..extents {
        file.write_all_at(&[(i % 251) as u8 + 1; 4096], i * step % size)?;
    }
    Ok(file.sync_all()?)
}

fn quantile(times: &mut [f64], q: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    times[((times.len() - 1) as f64 * q) as usize]
}

/// One round on a clone that nobody has open: a block is written, and all operations are done.
fn round(volume: &Path, times: &mut [Vec<f64>; 4]) -> Outcome<()> {
    let file = OpenOptions::new().write(true).open(volume)?;
    file.write_all_at(&[7; 4096], 0)?;
    file.sync_all()?;
    drop(file);
    let snapshot = SnapshotName { volume: volume.to_owned(), name: "bench".into() };
    let work: [&dyn Fn() -> clonefs::error::Result<()>; 4] = [
        &|| client::create_snapshots(std::slice::from_ref(&snapshot.volume), &snapshot.name),
        &|| client::roll_back(&snapshot),
        &|| client::reset(volume),
        &|| client::remove_snapshot(&snapshot),
    ];
    for (work, times) in work.into_iter().zip(times) {
        let began = Instant::now();
        work()?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(())
}

/// Measures volumes in turn, so that all see the same machine.
fn table(title: &str, volumes: &[(String, PathBuf)]) -> Outcome<()> {
    let rounds = std::env::var("CLONEFS_BENCH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let mut times: Vec<[Vec<f64>; 4]> = volumes.iter().map(|_| Default::default()).collect();
    for _ in 0..rounds {
        for ((_, volume), times) in volumes.iter().zip(&mut times) {
            round(volume, times)?;
        }
    }
    println!("\n{title}: {rounds} interleaved rounds, ms: p50 (p95)");
    println!("{:<24} {}", "", WORK.map(|name| format!("{name:>16}")).concat());
    for ((name, _), times) in volumes.iter().zip(&mut times) {
        let cells =
            times.each_mut().map(|times| format!("{:>8.2} {:>7.2}", quantile(times, 0.5), quantile(times, 0.95)));
        println!("{name:<24} {}", cells.concat());
    }
    Ok(())
}

fn by_size() -> Outcome<()> {
    let bench = Mounted::new()?;
    let sizes = [
        ("1 MiB", 1 << 20, 1),
        ("1 GiB", 1 << 30, 1),
        ("1 TiB", 1 << 40, 1),
        ("1 GiB, 100,000 extents", 1 << 30, 100_000),
    ];
    for (name, size, extents) in sizes {
        source(&bench.pool().join(name), size, extents)?;
    }
    clonefs(&["mount", "--deepen", "manual"], &bench.pool())?;
    let mut volumes = Vec::new();
    for (name, ..) in sizes {
        let volume = bench.pool().join(format!("{name} clone"));
        let from = bench.pool().join(name).to_string_lossy().into_owned();
        clonefs(&["clone", "--no-deepen", &from], &volume)?;
        volumes.push((name.to_owned(), volume));
    }
    // One whose own blocks, which the first snapshot freezes, lie in as many pieces.
    let volume = bench.pool().join("fragmented clone");
    let from = bench.pool().join("1 GiB").to_string_lossy().into_owned();
    clonefs(&["clone", "--no-deepen", &from], &volume)?;
    let file = OpenOptions::new().write(true).open(&volume)?;
    (0..100_000u64).try_for_each(|i| file.write_all_at(&[9; 4096], i * 2 * 4096))?;
    file.sync_all()?;
    drop(file);
    let began = Instant::now();
    client::create_snapshots(std::slice::from_ref(&volume), "fragments")?;
    println!("first snapshot of a clone with 100,000 own extents: {:.2} ms", began.elapsed().as_secs_f64() * 1e3);
    volumes.push(("its own 100,000 extents".to_owned(), volume));
    table("by size and fragmentation", &volumes)
}

fn by_number() -> Outcome<()> {
    let bench = Mounted::new()?;
    source(&bench.pool().join("base"), 1 << 30, 1)?;
    clonefs(&["mount", "--deepen", "manual"], &bench.pool())?;
    let mut volumes = Vec::new();
    for count in [1u64, 10, 100, 1000] {
        let volume = bench.pool().join(format!("{count}.img"));
        let from = bench.pool().join("base").to_string_lossy().into_owned();
        clonefs(&["clone", "--no-deepen", &from], &volume)?;
        for number in 0..count {
            let file = OpenOptions::new().write(true).open(&volume)?;
            file.write_all_at(&number.to_le_bytes(), number << 12)?;
            drop(file);
            client::create_snapshots(std::slice::from_ref(&volume), &format!("{number}"))?;
        }
        volumes.push((format!("{count} snapshots"), volume));
    }
    table("by number of snapshots", &volumes)
}

fn main() -> Outcome<()> {
    by_size()?;
    by_number()
}
