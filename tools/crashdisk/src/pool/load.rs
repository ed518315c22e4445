//! What is done to a pool while it is recorded: several threads, each with volumes of its own and clones of one that
//! they share and that is written all the time.

use std::path::Path;

use clonefs::error::{Error, Kind, Result};
use fastrand::Rng;

use crate::files::{Cloning, Files};
use crate::oracle::History;
use crate::record::Site;
use crate::workload::{Marks, Volume, Workload};

/// Sectors of the shared volume: no multiple of a block.
const BASE: u64 = 509;
/// Most sectors of any other volume.
const LARGEST: u64 = 640;
/// Most volumes of one thread.
const MOST: usize = 4;
/// Numbers that each thread has for its volumes.
const NUMBERS: u32 = 100_000;

/// The workloads of all threads; they live on when the pool is unmounted and mounted again.
pub struct Load {
    works: Vec<(Workload, Rng)>,
    base: Volume,
    marks: Marks,
}

impl Load {
    /// Makes the shared volume. `files` gives each of the threads its files.
    pub fn new(site: &Site, threads: u32, seed: u64, files: impl Fn() -> Box<dyn Files>) -> Result<Load> {
        let marks = Marks::new(site)?;
        let mut works = Vec::new();
        for thread in 0..threads {
            let rng = Rng::with_seed(seed.wrapping_add(u64::from(thread)));
            works.push((Workload::on(marks.more()?, files(), 1 + thread * NUMBERS), rng));
        }
        let Some((first, _)) = works.first_mut() else { return Err(Error::new(Kind::Invalid, "run no threads")) };
        first.create("base", BASE)?;
        first.write("base", 0, BASE, false)?;
        first.sync("base")?;
        first.sync_names()?;
        let base = first.volume("base")?;
        Ok(Load { works, base, marks })
    }

    /// The pool is reached in another way from now on.
    pub fn move_to(&mut self, files: impl Fn() -> Box<dyn Files>) {
        self.works.iter_mut().for_each(|(work, _)| work.move_to(files()));
    }

    /// With no thread at work: everything in `root` is just what it was made, with no power cut at all.
    pub fn check_live(&self, root: &Path) -> Result<()> {
        let mut marks = self.marks.said();
        let volumes = self.works.iter().flat_map(|(work, _)| work.volumes());
        // Nothing that was done may be missing, as if all had been synced.
        marks.extend(volumes.map(|volume| format!("synced {}", volume.number)));
        marks.extend(["dirsync".to_string(), "dirsynced".to_string()]);
        let history = History::read(marks.iter().map(String::as_str));
        history.and_then(|history| history.check_dir(root)).map_err(|why| {
            let error = Error::new(Kind::Damaged, "compare the mounted pool with what was done to it");
            error.at(root).because(why)
        })
    }

    /// Lets each thread take `steps` steps.
    pub fn run(&mut self, steps: u32) -> Result<()> {
        let base = &self.base;
        std::thread::scope(|scope| {
            let one = |(number, (work, rng)): (usize, &mut (Workload, Rng))| {
                let mut hand = Hand { work, rng, base, prefix: char::from(b'a' + number as u8), made: 0 };
                (0..steps).try_for_each(|_| hand.step())
            };
            let threads: Vec<_> =
                self.works.iter_mut().enumerate().map(|each| scope.spawn(move || one(each))).collect();
            let mut ended = threads.into_iter().map(|thread| thread.join());
            ended.try_for_each(|end| end.unwrap_or_else(|_| Err(Error::new(Kind::Invalid, "run the workload"))))
        })
    }
}

/// One thread at work.
struct Hand<'a> {
    work: &'a mut Workload,
    rng: &'a mut Rng,
    base: &'a Volume,
    prefix: char,
    made: u32,
}

impl Hand<'_> {
    fn step(&mut self) -> Result<()> {
        let own: Vec<Volume> = self.work.volumes().iter().filter(|v| v.name != self.base.name).cloned().collect();
        let with_base = self.work.volumes().to_vec();
        let any = |rng: &mut Rng, from: &[Volume]| rng.choice(from.iter()).cloned();
        let Some(volume) = any(self.rng, &with_base) else { return self.make() };
        match self.rng.u8(..100) {
            0..25 => self.write(&volume),
            25..45 => self.write(&volume).and_then(|()| self.work.sync(&volume.name)),
            45..53 => self.zero(&volume),
            53..58 => self.work.sync(&volume.name),
            58..64 => self.work.sync_names(),
            64..80 if own.len() < MOST => self.make(),
            80..85 => any(self.rng, &own).map_or(Ok(()), |v| self.resize(&v)),
            85..90 => any(self.rng, &own).map_or(Ok(()), |v| self.work.deepen(&v.name)),
            90..93 => self.replace(&own),
            93..97 => any(self.rng, &own).map_or(Ok(()), |v| self.work.unlink(&v.name)),
            // Time for write-back and for background work.
            _ => {
                std::thread::sleep(std::time::Duration::from_millis(self.rng.u64(..20)));
                Ok(())
            }
        }
    }

    /// A range within a volume, now and then of whole blocks, now and then its end.
    fn range(&mut self, volume: &Volume) -> (u64, u64, bool) {
        let sectors = volume.sectors;
        let count = self.rng.u64(1..=48).min(sectors);
        let first = match self.rng.u8(..6) {
            0 => sectors - count,
            // Where others write as well.
            1 => 0,
            _ => self.rng.u64(..=sectors - count),
        };
        let (low, high) = (first.next_multiple_of(8), (first + count) / 8 * 8);
        if self.rng.u8(..3) == 0 && low < high { (low, high - low, true) } else { (first, count, false) }
    }

    fn write(&mut self, volume: &Volume) -> Result<()> {
        if volume.sectors == 0 {
            return Ok(());
        }
        let (first, count, whole) = self.range(volume);
        match self.rng.u8(..6) {
            0 => self.work.write_mapped(&volume.name, first, count),
            1 | 2 if whole => self.work.write(&volume.name, first, count, true),
            _ => self.work.write(&volume.name, first, count, false),
        }
    }

    /// Zeroes a range, and often writes part of it again: a punch that comes late would take that away.
    fn zero(&mut self, volume: &Volume) -> Result<()> {
        if volume.sectors == 0 {
            return Ok(());
        }
        let (first, count, _) = self.range(volume);
        self.work.zero(&volume.name, first, count, self.rng.bool())?;
        if self.rng.bool() {
            self.work.write(&volume.name, first, count.div_ceil(2), false)?;
        }
        if self.rng.bool() { self.work.sync(&volume.name) } else { Ok(()) }
    }

    /// A new volume: a clone mostly, of the shared volume or of one of its own.
    fn make(&mut self) -> Result<()> {
        let name = self.new_name();
        let own = self.rng.choice(self.work.volumes()).cloned();
        let source = match self.rng.u8(..5) {
            0 => None,
            1 | 2 => own,
            _ => Some(self.base.clone()),
        };
        let Some(source) = source else { return self.make_plain(&name) };
        let grown = if self.rng.u8(..4) == 0 { self.rng.u64(..64) } else { 0 };
        let how = Cloning { size: None, durable: self.rng.u8(..4) == 0, no_deepen: self.rng.bool() };
        self.work.clone_volume(&source, &name, source.sectors + grown, how)?;
        let clone = self.work.volume(&name)?;
        match self.rng.u8(..3) {
            0 => self.work.sync(&name),
            1 => self.write(&clone).and_then(|()| self.work.sync(&name)),
            _ => Ok(()),
        }
    }

    fn make_plain(&mut self, name: &str) -> Result<()> {
        let sectors = self.rng.u64(64..=LARGEST);
        self.work.create(name, sectors)?;
        self.work.write(name, 0, sectors / 2, false)?;
        if self.rng.bool() { self.work.sync(name) } else { Ok(()) }
    }

    fn new_name(&mut self) -> String {
        // Names come back: what had one before must not show again.
        let taken = |name: &str| self.work.volumes().iter().any(|v| v.name == name);
        loop {
            self.made += 1;
            let name = format!("{}{}", self.prefix, self.made % (3 * MOST as u32));
            if !taken(&name) {
                return name;
            }
        }
    }

    /// Cuts a volume, now and then grows it back: what was cut off must read as zeros.
    fn resize(&mut self, volume: &Volume) -> Result<()> {
        let smaller = self.rng.u64(..=volume.sectors);
        self.work.set_size(&volume.name, smaller)?;
        if self.rng.u8(..4) == 0 {
            self.work.sync(&volume.name)?;
        }
        self.work.set_size(&volume.name, (smaller + self.rng.u64(..256)).min(LARGEST))
    }

    /// Renames one volume, over another where there are two.
    fn replace(&mut self, own: &[Volume]) -> Result<()> {
        let Some(volume) = self.rng.choice(own) else { return Ok(()) };
        let other = self.rng.choice(own).filter(|other| other.name != volume.name).map(|other| other.name.clone());
        let to = match other {
            Some(name) => name,
            None => self.new_name(),
        };
        self.work.rename(&volume.name, &to)
    }
}
