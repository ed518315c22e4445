//! How long a clone takes, each way.

use std::cell::Cell;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::bench::Bench;
use crate::disk::Disk;
use crate::failure::{During, Failure, Outcome};
use crate::file;
use crate::pool::{Pool, copy_file_range, reflink};
use crate::qsd::create_linked;
use crate::report::{Bar, Table, Verdict};
use crate::rounds::{Contender, Series, median, rounds};
use crate::run;

/// Ways to clone, as `--methods` takes them.
const METHODS: &[&str] = &[
    "clonefs",
    "clonefs-durable",
    "clonefs-ioctl",
    "clonefs-copy-file-range",
    "clonefs-command",
    "cp",
    "cp-sparse",
    "copy-file-range",
    "rsync",
    "qemu-create",
    "qemu-convert",
    "reflink-xfs",
    "reflink-btrfs",
];

/// Fails on a way that there is not.
pub fn check_methods(names: &[String]) -> Outcome<()> {
    match names.iter().find(|name| !METHODS.contains(&name.as_str())) {
        Some(name) => Err(Failure::line(format!("there is no method {name:?}; there are {}", METHODS.join(", ")))),
        None => Ok(()),
    }
}

/// An image everywhere that it is cloned from.
pub(super) struct Image<'a> {
    pool: &'a Pool<'a>,
    disks: &'a [(&'static str, Disk)],
    native: PathBuf,
    name: String,
    next: Cell<u32>,
}

pub fn run(bench: &Bench) -> Outcome<Vec<Table>> {
    let area = bench.work.area()?;
    let pool = Pool::new(bench, area.path())?;
    let settings = bench.settings;
    let room = settings.size * 2 + settings.extents * 8192 * 2 + (1 << 30);
    let disks = disks(bench, area.path(), room)?;
    let mut tables = Vec::new();
    let natively = area.make_dir("native")?;
    for (name, what) in [("whole", "an image in one piece"), ("fragmented", "a fragmented image")] {
        bench.step(&format!("clone: making {what}"))?;
        let make = |path: &Path| match name {
            "whole" => file::full(path, settings.size, 13),
            _ => file::fragmented(path, settings.extents),
        };
        let image = Image::new(&pool, &disks, natively.join(name), name, make)?;
        tables.push(image.measure(bench, what)?);
    }
    tables.push(beside_a_sync(bench, &pool, &natively)?);
    let (whole, fragmented) = (tables[0].median("clonefs"), tables[1].median("clonefs"));
    let last = tables.len() - 1;
    let flat = Verdict::new("clonefs: fragmented / in one piece", fragmented / whole, Bar::AtMost(1.2));
    tables[last].verdicts.push(flat);
    Ok(tables)
}

/// Filesystems with reflinks, those that can be made here.
pub(super) fn disks(bench: &Bench, dir: &Path, room: u64) -> Outcome<Vec<(&'static str, Disk)>> {
    let mut disks = Vec::new();
    for kind in ["xfs", "btrfs"] {
        if !wanted(bench, &format!("reflink-{kind}")) {
            continue;
        }
        match Disk::missing(kind) {
            Some(why) => bench.say(&format!("without {kind}: {why}")),
            None => disks.push((kind, Disk::new(dir, kind, room)?)),
        }
    }
    Ok(disks)
}

fn wanted(bench: &Bench, method: &str) -> bool {
    bench.methods.is_empty() || bench.methods.iter().any(|name| name == method)
}

impl<'a> Image<'a> {
    /// Makes the image in the pool, beside it at `native`, and on each of the disks.
    pub(super) fn new(
        pool: &'a Pool,
        disks: &'a [(&'static str, Disk)],
        native: PathBuf,
        name: &str,
        make: impl Fn(&Path) -> Outcome<()>,
    ) -> Outcome<Image<'a>> {
        make(&pool.at(name))?;
        make(&native)?;
        for (_, disk) in disks {
            make(&disk.root().join(name))?;
        }
        Ok(Image { pool, disks, native, name: name.to_owned(), next: Cell::new(0) })
    }

    /// Removes it everywhere.
    pub(super) fn remove(self) -> Outcome<()> {
        file::remove(&self.pool.at(&self.name))?;
        file::remove(&self.native)?;
        self.disks.iter().try_for_each(|(_, disk)| file::remove(&disk.root().join(&self.name)))
    }

    /// Times of a clone in milliseconds: those of `methods` that were asked for and can be gone here.
    pub(super) fn times(&self, bench: &Bench, what: &str, methods: &[&'static str]) -> Outcome<Vec<Series>> {
        let methods = methods.iter().copied().filter(|method| wanted(bench, method));
        let able = methods.filter(|method| self.able(bench, method));
        let contenders = able.map(|method| -> Contender { (method, Box::new(move || self.often(bench, method))) });
        rounds(bench, what, contenders.collect())
    }

    fn measure(&self, bench: &Bench, what: &str) -> Outcome<Table> {
        let series = self.times(bench, &format!("clones of {what}"), METHODS)?;
        let settings = bench.settings;
        let how = match self.name.as_str() {
            "whole" => format!("{} bytes of data; each figure is the median of several", settings.size),
            _ => format!("{} blocks with holes between them; each figure is the median of several", settings.extents),
        };
        let bar = |bar| if self.name == "whole" { Bar::None } else { Bar::AtLeast(bar) };
        let table = Table::new(format!("a clone of {what}"), "ms", how, series);
        Ok(table.compare("reflink-xfs", "clonefs", bar(500.0)).compare("reflink-btrfs", "clonefs", Bar::None))
    }

    /// Whether this way can be gone here; says so if not.
    fn able(&self, bench: &Bench, method: &str) -> bool {
        let missing = match method {
            "rsync" => run::missing(&["rsync"]),
            "qemu-create" | "qemu-convert" => run::missing(&["qemu-img"]),
            "reflink-xfs" | "reflink-btrfs" => {
                let there = self.disks.iter().any(|(kind, _)| method.ends_with(kind));
                return there;
            }
            _ => None,
        };
        if let Some(why) = &missing {
            bench.say(&format!("without {method}: {why}"));
        }
        missing.is_none()
    }

    /// The median of several; what takes long is done once.
    fn often(&self, bench: &Bench, method: &str) -> Outcome<f64> {
        let mut times = Vec::new();
        let began = Instant::now();
        while times.len() < bench.settings.repeats as usize && began.elapsed() < Duration::from_secs(1) {
            run::check()?;
            times.push(self.once(bench, method)?.as_secs_f64() * 1e3);
        }
        Ok(median(&times))
    }

    fn once(&self, bench: &Bench, method: &str) -> Outcome<Duration> {
        self.next.set(self.next.get() + 1);
        let to = format!("{}-{}", self.name, self.next.get());
        let native = self.native.with_file_name(&to);
        let (took, made) = match method {
            "clonefs" => (self.pool.clone(&self.name, &to)?, self.pool.at(&to)),
            "clonefs-durable" => (self.pool.clone_durable(&self.name, &to)?, self.pool.at(&to)),
            "clonefs-ioctl" => (self.pool.clone_by_ioctl(&self.name, &to)?, self.pool.at(&to)),
            "clonefs-copy-file-range" => {
                (copy_file_range(&self.pool.at(&self.name), &self.pool.at(&to))?, self.pool.at(&to))
            }
            "clonefs-command" => {
                let mut command = Command::new(&bench.clonefs);
                command.arg("clone").arg(self.pool.at(&self.name)).arg(self.pool.at(&to));
                (run::output(&mut command)?.1, self.pool.at(&to))
            }
            "cp" => (run::output(run::command("cp").arg(&self.native).arg(&native))?.1, native),
            "cp-sparse" => {
                let mut command = run::command("cp");
                (run::output(command.arg("--sparse=always").arg(&self.native).arg(&native))?.1, native)
            }
            "copy-file-range" => (copy_file_range(&self.native, &native)?, native),
            "rsync" => {
                let mut command = run::command("rsync");
                (run::output(command.args(["--sparse", "--whole-file"]).arg(&self.native).arg(&native))?.1, native)
            }
            "qemu-create" => (create_linked(&self.native, &native)?, native),
            "qemu-convert" => {
                let mut command = run::command("qemu-img");
                command.args(["convert", "-f", "raw", "-O", "raw"]).arg(&self.native).arg(&native);
                (run::output(&mut command)?.1, native)
            }
            _ => self.reflinked(method, &to)?,
        };
        file::remove(&made)?;
        Ok(took)
    }

    fn reflinked(&self, method: &str, to: &str) -> Outcome<(Duration, PathBuf)> {
        let disk = self.disks.iter().find(|(kind, _)| method.ends_with(kind));
        let (_, disk) = disk.ok_or_else(|| Failure::line(format!("{method}: there is no such filesystem")))?;
        let made = disk.root().join(to);
        Ok((reflink(&disk.root().join(&self.name), &made)?, made))
    }
}

/// A durable clone beside one fdatasync of the disk.
fn beside_a_sync(bench: &Bench, pool: &Pool, dir: &Path) -> Outcome<Table> {
    let path = dir.join("log");
    let log = crate::pool::create(&path)?;
    let (at, next) = (Cell::new(0u64), Cell::new(0u32));
    let several = |once: &dyn Fn() -> Outcome<Duration>| {
        let mut times = Vec::new();
        for _ in 0..bench.settings.repeats {
            times.push(once()?.as_secs_f64() * 1e3);
        }
        Ok(median(&times))
    };
    let sync = || {
        let began = Instant::now();
        log.write_all_at(&[1; 4096], at.get()).during("write", &path)?;
        at.set(at.get() + 4096);
        log.sync_data().during("sync", &path)?;
        Ok(began.elapsed())
    };
    let clone = |durable: bool| {
        next.set(next.get() + 1);
        let to = format!("synced-{}", next.get());
        let took = if durable { pool.clone_durable("whole", &to) } else { pool.clone("whole", &to) }?;
        file::remove(&pool.at(&to))?;
        Ok(took)
    };
    let (durable, volatile) = (|| clone(true), || clone(false));
    let contenders: Vec<Contender> = vec![
        ("append and fdatasync", Box::new(|| several(&sync))),
        ("clonefs, durable", Box::new(|| several(&durable))),
        ("clonefs", Box::new(|| several(&volatile))),
    ];
    let series = rounds(bench, "a durable clone", contenders)?;
    let table = Table::new("a clone beside one sync of the disk", "ms", "medians of several, in rounds", series);
    let above: Vec<f64> = match (table.of("clonefs, durable"), table.of("append and fdatasync")) {
        (Some(a), Some(b)) => a.figures.iter().zip(&b.figures).map(|(a, b)| a - b).collect(),
        _ => Vec::new(),
    };
    let p50 = table.median("clonefs");
    let table = table.verdict(Verdict::new("durable clone - one fdatasync", median(&above), Bar::AtMost(0.5)));
    Ok(table.verdict(Verdict::new("clone, p50", p50, Bar::AtMost(0.5))))
}
