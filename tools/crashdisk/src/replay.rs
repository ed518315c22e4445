//! Replay: power cuts drawn from a log, each one mounted and checked.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clonefs::error::{Context, Error, Kind, Result};

use crate::disk::{Disk, Sink};
use crate::image::Image;
use crate::log::{Log, Record};
use crate::states::{Cut, Modes};
use crate::sys::{self, LoopDevice, Mount};

/// Which states are checked.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Number of states, the `nested` ones not counted.
    pub states: u32,
    /// Check only the state of this number.
    pub only: Option<u32>,
    /// Seed: the same log, seed and modes give the same states.
    pub seed: u64,
    /// What becomes of unflushed writes.
    pub modes: Modes,
    /// For every state, this many states more that are left when the power fails again while it is being recovered and
    /// checked.
    pub nested: u32,
    /// What the disk writes as one: a power of two, 512 or more. `None` for the least that the filesystem itself
    /// survives, see [`usual_sector`].
    pub sector: Option<u64>,
    /// Stop at the first violation.
    pub first: bool,
}

impl Default for Replay {
    fn default() -> Replay {
        Replay { states: 100, only: None, seed: 1, modes: Modes::Mixed, nested: 0, sector: None, first: false }
    }
}

/// A crashed disk, mounted (so the filesystem has replayed its journal).
pub struct Crash<'a> {
    /// The filesystem.
    pub mnt: &'a Path,
    /// The workload's marks before the cut, oldest first.
    pub marks: &'a [&'a str],
    /// Name of the state: its number, and behind a point the number of the second cut.
    pub name: &'a str,
}

/// A state that broke a promise.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Name of the state, see [`Crash::name`].
    pub name: String,
    /// The cut.
    pub cut: Cut,
    /// Number of writes that no flush had covered.
    pub unflushed: usize,
    /// What was found.
    pub found: String,
}

/// What a replay gives.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// States checked, nested ones too.
    pub checked: u32,
    /// Those that broke a promise.
    pub violations: Vec<Violation>,
    /// Time it took.
    pub time: Duration,
}

impl Outcome {
    /// States a second.
    pub fn rate(&self) -> f64 {
        f64::from(self.checked) / self.time.as_secs_f64().max(1e-9)
    }
}

impl Replay {
    /// Runs `verify` on every state. It returns what is wrong; an `Err` of this function means that the machine itself
    /// failed.
    pub fn run(&self, log: &Log, mut verify: impl FnMut(&Crash) -> std::result::Result<(), String>) -> Result<Outcome> {
        let (start, end) = log.workload();
        let ids = self.only.map_or(0..self.states, |only| only..only + 1);
        let mut cuts: Vec<Cut> =
            ids.map(|id| Cut::draw(&log.records, (start, end), self.seed, id, self.modes)).collect();
        cuts.sort_by_key(|cut| cut.point);

        let stage = Stage::new(log, self.sector)?;
        let began = Instant::now();
        let mut outcome = Outcome::default();
        let mut base = Image::new(log.header.size);
        let mut applied = 0;
        for cut in cuts {
            let durable = cut.durable(&log.records);
            log.records[applied..durable].iter().for_each(|r| r.apply(&mut base));
            applied = durable;
            let mut image = base.clone();
            cut.finish(&log.records, stage.sector, &mut image);
            let marks = log.marks(cut.point);
            self.check(&stage, &log.records, cut, image, &marks, &mut verify, &mut outcome)?;
            if self.first && !outcome.violations.is_empty() {
                break;
            }
        }
        outcome.violations.sort_by_key(|v| v.cut.id);
        outcome.time = began.elapsed();
        Ok(outcome)
    }

    /// Checks one state, and those that a second cut leaves while the first one is being checked.
    #[allow(clippy::too_many_arguments)]
    fn check(
        &self,
        stage: &Stage,
        records: &[Record],
        cut: Cut,
        image: Image,
        marks: &[&str],
        verify: &mut impl FnMut(&Crash) -> std::result::Result<(), String>,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let mut enter = |name: &str, cut: Cut, records: &[Record], image: Image| {
            if sys::was_interrupted() {
                return Err(Error::new(Kind::Interrupted, "replay"));
            }
            let (verdict, recovery) = stage.enter(image, name, marks, verify)?;
            outcome.checked += 1;
            if let Err(found) = verdict {
                let unflushed = records[cut.durable(records)..cut.point].iter().filter(|r| r.range().is_some()).count();
                outcome.violations.push(Violation { name: name.to_string(), cut, unflushed, found });
            }
            Ok::<_, Error>(recovery)
        };
        let name = cut.id.to_string();
        let recovery = enter(&name, cut, records, image.clone())?;
        for number in 0..self.nested {
            let second = Cut::draw(&recovery, (0, recovery.len()), cut.seed, number, self.modes);
            let mut image = image.clone();
            recovery[..second.durable(&recovery)].iter().for_each(|r| r.apply(&mut image));
            second.finish(&recovery, stage.nested_sector, &mut image);
            enter(&format!("{name}.{number}"), second, &recovery, image)?;
        }
        Ok(())
    }

    /// What the disk holds in the state `only`, unmounted.
    pub fn image(&self, log: &Log) -> Result<Image> {
        let id = self.only.unwrap_or(0);
        let cut = Cut::draw(&log.records, log.workload(), self.seed, id, self.modes);
        crate::states::image_after(log, &cut, sector_of(&log.header.filesystem, false, self.sector)?)
    }
}

/// The smallest sector that a filesystem survives torn writes with. 512 for ext4 and xfs, in normal service; 4096 for
/// btrfs, whose superblock is one block under one checksum. While they recover and unmount (a `nested` cut), ext4 writes
/// its superblock and xfs its metadata in place, and a tear in the middle of those makes them unmountable.
pub fn usual_sector(filesystem: &str, nested: bool) -> u64 {
    if nested || filesystem == "btrfs" { 4096 } else { 512 }
}

/// The sector that writes are torn at.
fn sector_of(filesystem: &str, nested: bool, wanted: Option<u64>) -> Result<u64> {
    match wanted.unwrap_or_else(|| usual_sector(filesystem, nested)) {
        sector if sector.is_power_of_two() && sector >= 512 => Ok(sector),
        other => Err(Error::new(Kind::Invalid, format!("use sectors of {other} bytes")).remedy("512 or 4096")),
    }
}

/// One recorder disk whose contents are swapped for each state.
struct Stage {
    // Fields drop in this order: the disk is unmounted before its directory goes.
    disk: Disk,
    dir: tempfile::TempDir,
    mnt: PathBuf,
    filesystem: String,
    options: String,
    sector: u64,
    nested_sector: u64,
}

impl Stage {
    fn new(log: &Log, wanted: Option<u64>) -> Result<Stage> {
        let sector = sector_of(&log.header.filesystem, false, wanted)?;
        let nested_sector = sector_of(&log.header.filesystem, true, wanted)?;
        let dir = tempfile::Builder::new().prefix("crashdisk.").tempdir();
        let dir = dir.context("make directory in", std::env::temp_dir())?;
        let (fuse, mnt) = (dir.path().join("fuse"), dir.path().join("mnt"));
        for path in [&fuse, &mnt] {
            std::fs::create_dir(path).context("make directory", path)?;
        }
        let disk = Disk::mount(&fuse, Image::new(log.header.size), Sink::Off)?;
        let (filesystem, options) = (log.header.filesystem.clone(), log.header.options.clone());
        Ok(Stage { disk, dir, mnt, filesystem, options, sector, nested_sector })
    }

    /// Mounts `image`, runs `verify`, unmounts. Gives the verdict and what was written to the disk meanwhile.
    #[allow(clippy::type_complexity)]
    fn enter(
        &self,
        image: Image,
        name: &str,
        marks: &[&str],
        verify: &mut impl FnMut(&Crash) -> std::result::Result<(), String>,
    ) -> Result<(std::result::Result<(), String>, Vec<Record>)> {
        debug_assert!(self.dir.path().exists());
        {
            let mut contents = self.disk.contents();
            contents.image = image;
            contents.sink = Sink::Memory(Vec::new());
        }
        let device = LoopDevice::attach(&self.disk.file())?;
        let verdict = match Mount::new(device.path(), &self.mnt, &self.filesystem, &self.options) {
            Err(error) => Err(format!("the filesystem does not mount: {error}")),
            Ok(mount) => {
                let verdict = verify(&Crash { mnt: &self.mnt, marks, name });
                mount.unmount()?;
                verdict
            }
        };
        let path = device.path().to_path_buf();
        drop(device);
        if self.filesystem == "btrfs" {
            sys::btrfs_forget(&path);
        }
        let recovery = match self.disk.stop_log()? {
            Sink::Memory(records) => records,
            _ => Vec::new(),
        };
        Ok((verdict, recovery))
    }
}
