//! Time and memory where there is much of something: 10,000 clones, 1,000 layers, 16 TiB, 100 million scattered blocks.
//!
//! `cargo bench --bench scale` prints a table; a part of a row's name behind it chooses rows. `CLONEFS_BENCH_DIR` is where
//! pools are made (default: the temporary directory), `CLONEFS_BENCH_PART` makes everything so many times smaller. All of it
//! takes less than 2 GiB on the disk: what is large is sparse.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clonefs::client::doors;
use clonefs::engine::io::{Fs, HostFs};
use clonefs::engine::layer::map::{self, Delta, Map};
use clonefs::protocol::CloneRequest;
use clonefs::units::{BLOCK, Id};
use roaring::RoaringBitmap;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Blocks that are read at random places of each subject.
const READS: u64 = 10_000;
/// Clones that are made of each subject.
const CLONES: usize = 21;

/// A pool, which is unmounted and removed at the end.
struct Bench {
    pool: PathBuf,
    /// Everything is so many times smaller.
    part: u64,
    _dir: tempfile::TempDir,
}

/// How the program ended and what it took.
struct Ended {
    took: Duration,
    /// The most memory that it had, in KiB.
    peak: i64,
    output: Vec<u8>,
}

/// Runs clonefs to its end.
fn clonefs(args: &[&str], path: &Path) -> Outcome<Ended> {
    let output = tempfile::tempfile()?;
    let began = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_clonefs"));
    let child = command.args(args).arg(path).stdout(Stdio::from(output.try_clone()?)).spawn()?;
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: our child, which nobody else waits for; status and usage have room for what is written to them.
    let waited = unsafe { libc::wait4(child.id() as libc::pid_t, &raw mut status, 0, usage.as_mut_ptr()) };
    let took = began.elapsed();
    if waited < 0 || !libc::WIFEXITED(status) || libc::WEXITSTATUS(status) != 0 {
        return Err(format!("clonefs {args:?} {path:?} failed").into());
    }
    // SAFETY: all zeros is a valid rusage, and wait4 has filled it in.
    let peak = unsafe { usage.assume_init() }.ru_maxrss;
    let mut text = vec![0; output.metadata()?.len() as usize];
    output.read_exact_at(&mut text, 0)?;
    Ok(Ended { took, peak, output: text })
}

impl Bench {
    fn new() -> Outcome<Bench> {
        let base = std::env::var_os("CLONEFS_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let part = std::env::var("CLONEFS_BENCH_PART").ok().and_then(|part| part.parse().ok()).unwrap_or(1);
        let dir = tempfile::tempdir_in(base)?;
        let pool = dir.path().join("pool");
        fs::create_dir(&pool)?;
        Ok(Bench { pool, part, _dir: dir })
    }

    fn mount(&self) -> Outcome<Duration> {
        Ok(clonefs(&["mount", "--deepen", "manual"], &self.pool)?.took)
    }

    fn unmount(&self) -> Outcome<Duration> {
        Ok(clonefs(&["unmount"], &self.pool)?.took)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.pool.join(name)
    }

    /// Resident memory of the daemon, in KiB.
    fn memory(&self) -> Outcome<i64> {
        let pid = doors::status(&self.pool)?.ok_or("not mounted")?.pid;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
    }

    /// A clone; the time is that of the clone alone.
    fn clone(&self, from: &str, to: &str) -> Outcome<Duration> {
        let from = self.at(from);
        let source = File::open(&from)?;
        let token = doors::token(&source, &from)?;
        let target = OpenOptions::new().write(true).create_new(true).open(self.at(to))?;
        let request = CloneRequest { token, ..CloneRequest::default() };
        let began = Instant::now();
        doors::clone(&target, &request, &from)?;
        Ok(began.elapsed())
    }

    /// A sparse file of `size` bytes with `extents` blocks of data.
    fn sparse(&self, name: &str, size: u64, extents: u64) -> Outcome<()> {
        let file = File::create_new(self.at(name))?;
        file.set_len(size)?;
        let step = size / BLOCK / extents * BLOCK;
        (0..extents).try_for_each(|extent| file.write_all_at(&[7; BLOCK as usize], extent * step))?;
        Ok(file.sync_all()?)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let mut unmount = Command::new(env!("CARGO_BIN_EXE_clonefs"));
        drop(unmount.arg("unmount").arg(&self.pool).stderr(Stdio::null()).status());
    }
}

/// Makes the pool of a row, which is mounted; gives the name of the volume to look at.
type Make = fn(&Bench) -> Outcome<String>;

const ROWS: [(&str, Make); 5] = [
    ("10,000 clones", clones),
    ("10,000 clones, each with a block of its own", used_clones),
    ("1,000 layers", chain),
    ("16 TiB", large),
    ("100 million scattered blocks", scattered),
];

fn clones(bench: &Bench) -> Outcome<String> {
    bench.sparse("base", 1 << 30, 1000)?;
    let (count, before) = (10_000 / bench.part, bench.memory()?);
    for clone in 0..count {
        bench.clone("base", &format!("clone-{clone}"))?;
    }
    let each = (bench.memory()? - before) as f64 / count as f64;
    println!("    memory for each new clone: {each:.1} KiB");
    Ok("clone-0".to_owned())
}

fn used_clones(bench: &Bench) -> Outcome<String> {
    let subject = clones(bench)?;
    let (count, before) = (10_000 / bench.part, bench.memory()?);
    for clone in 0..count {
        let file = OpenOptions::new().write(true).open(bench.at(&format!("clone-{clone}")))?;
        file.write_all_at(&[1; BLOCK as usize], clone * BLOCK)?;
    }
    let each = (bench.memory()? - before) as f64 / count as f64;
    println!("    and for its own block: {each:.1} KiB");
    Ok(subject)
}

fn chain(bench: &Bench) -> Outcome<String> {
    bench.sparse("level-0", 1 << 30, 1000)?;
    let depth = 1000 / bench.part;
    for level in 1..=depth {
        let name = format!("level-{level}");
        bench.clone(&format!("level-{}", level - 1), &name)?;
        let file = OpenOptions::new().write(true).open(bench.at(&name))?;
        file.write_all_at(&[1; BLOCK as usize], level * 7919 % (1 << 18) * BLOCK)?;
    }
    Ok(format!("level-{depth}"))
}

fn large(bench: &Bench) -> Outcome<String> {
    // ext4 has files of 16 TiB less one block.
    bench.sparse("base", (16 << 40) / bench.part / BLOCK * BLOCK - BLOCK, 100_000 / bench.part)?;
    bench.clone("base", "clone")?;
    let file = OpenOptions::new().write(true).open(bench.at("clone"))?;
    file.write_all_at(&[1; BLOCK as usize], file.metadata()?.len() - BLOCK)?;
    Ok("clone".to_owned())
}

/// A clone whose map says that it has 100 million blocks, one here and one there. They read as zeros: there is nothing in
/// its data file.
fn scattered(bench: &Bench) -> Outcome<String> {
    large(bench)?;
    bench.unmount()?;
    let fs: Arc<dyn Fs> = Arc::new(HostFs::open_dir(&bench.pool)?);
    let mut file = None;
    for entry in fs::read_dir(bench.at(".clonefs/layers"))? {
        let name = entry?.file_name().into_string().unwrap_or_default();
        file = name.strip_suffix(".map").map(str::to_owned).or(file);
    }
    let file: Id = file.ok_or("there is no map")?.parse()?;
    let (presence, scan) = map::read(fs.as_ref(), file)?.ok_or("there is no map")?;
    let (size, overlap) = presence.extent.ok_or("the map has no size")?;
    let count = 100_000_000 / bench.part;
    let step = size / BLOCK / count;
    let mut random = 1u64;
    let added: RoaringBitmap = RoaringBitmap::from_sorted_iter((0..count).map(|at| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (at * step + (random >> 33) % step) as u32
    }))?;
    println!("    its map has {} MiB", added.serialized_size() >> 20);
    let mut log = Map::resume(&fs, file, &scan)?;
    log.append(&Delta { size, overlap, added, ..Delta::default() })?;
    log.sync()?;
    bench.mount()?;
    Ok("clone".to_owned())
}

/// Reads one block at each of `count` places.
fn read(path: &Path, count: u64) -> Outcome<Duration> {
    let began = Instant::now();
    let file = File::open(path)?;
    let blocks = file.metadata()?.len() / BLOCK;
    let (mut random, mut buffer) = (7u64, vec![0; BLOCK as usize]);
    for _ in 0..count {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        file.read_exact_at(&mut buffer, (random >> 20) % blocks * BLOCK)?;
    }
    Ok(began.elapsed())
}

fn ms(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    if ms < 100.0 { format!("{ms:.2} ms") } else { format!("{:.2} s", ms / 1e3) }
}

fn mib(kib: i64) -> String {
    format!("{:.0} MiB", kib as f64 / 1024.0)
}

/// One row of the table.
fn measure(name: &str, make: Make) -> Outcome<String> {
    let bench = Bench::new()?;
    bench.mount()?;
    println!("{name}");
    let began = Instant::now();
    let subject = make(&bench)?;
    println!("    made in {}", ms(began.elapsed()));
    let unmounted = bench.unmount()?;
    let checked = clonefs(&["check"], &bench.pool)?;
    let mounted = bench.mount()?;
    let at_rest = bench.memory()?;
    let listed = clonefs(&["list", "--json"], &bench.pool)?;
    let (rows, after_list) = (listed.output.iter().filter(|byte| **byte == b'{').count(), bench.memory()?);
    println!("    list: {rows} objects");
    // Not what list has left in memory.
    bench.unmount()?;
    bench.mount()?;
    let opened = read(&bench.at(&subject), 1)?;
    let read = read(&bench.at(&subject), READS)?;
    let after_reads = bench.memory()?;
    let mut times = Vec::new();
    for clone in 0..CLONES {
        times.push(bench.clone(&subject, &format!("again-{clone}"))?);
    }
    let first = times[0];
    times.sort();
    // What was the top layer is frozen now: who owns which block is looked up, and remembered.
    let read_through = self::read(&bench.at("again-0"), READS)?;
    let after_clones = bench.memory()?;
    let row = [
        name.to_owned(),
        format!("{} ({})", ms(times[CLONES / 2]), ms(first)),
        ms(mounted),
        ms(opened),
        format!("{} ({})", ms(read / READS as u32), ms(read_through / READS as u32)),
        ms(listed.took),
        format!("{}, {}", ms(checked.took), mib(checked.peak)),
        ms(unmounted),
        mib(at_rest),
        mib(after_list),
        format!("{} ({})", mib(after_reads), mib(after_clones)),
    ];
    Ok(format!("| {} |", row.join(" | ")))
}

fn main() -> Outcome<()> {
    // `cargo test --benches` and nextest ask for a list of tests: there are none here.
    if std::env::args().any(|a| a == "--list" || a == "--test") {
        return Ok(());
    }
    let chosen = std::env::args().skip(1).find(|word| !word.starts_with('-')).unwrap_or_default();
    let mut table = vec![
        "| | clone, median (first) | mount | open and read | one read (of a new clone) | list | check, its memory | unmount | memory at rest | after list | after reads (of a new clone) |"
            .to_owned(),
        format!("|{}", "---|".repeat(11)),
    ];
    for (name, make) in ROWS.iter().filter(|(name, _)| name.contains(&chosen)) {
        table.push(measure(name, *make)?);
    }
    println!("\n{}", table.join("\n"));
    Ok(())
}
