//! A workload that announces what it does: file operations with the oracle's marks around them.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clonefs::error::{Context, Error, Kind, Result};
use parking_lot::Mutex;

use crate::files::{Cloning, Directory, Files};
use crate::record::Site;
use crate::stamp::{SECTOR, stamped};

/// Writes marks into the log.
pub struct Marks {
    path: PathBuf,
    file: File,
    /// All marks of this and of those that were made from it, in the order of the log.
    said: Arc<Mutex<Vec<String>>>,
}

impl Marks {
    /// Marks of the recording at `site`.
    pub fn new(site: &Site) -> Result<Marks> {
        let file = OpenOptions::new().append(true).open(&site.mark).context("open marks", &site.mark)?;
        Ok(Marks { path: site.mark.clone(), file, said: Arc::default() })
    }

    /// One more of the same recording.
    pub fn more(&self) -> Result<Marks> {
        let file = self.file.try_clone().context("open marks", &self.path)?;
        Ok(Marks { path: self.path.clone(), file, said: self.said.clone() })
    }

    /// Adds one mark. When this returns, it is in the log.
    pub fn say(&self, mark: &str) -> Result<()> {
        let mut said = self.said.lock();
        // One call, so one request and one mark.
        (&self.file).write_all(mark.as_bytes()).context("write mark", &self.path)?;
        said.push(mark.to_string());
        Ok(())
    }

    /// What was said so far.
    pub fn said(&self) -> Vec<String> {
        self.said.lock().clone()
    }
}

/// Volumes in one directory, changed and announced by one thread.
pub struct Workload {
    files: Box<dyn Files>,
    marks: Marks,
    volumes: Vec<Volume>,
    next: u32,
    version: u64,
}

/// A volume of a workload.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Its number in marks and stamps.
    pub number: u32,
    /// Its file.
    pub name: String,
    /// Its size.
    pub sectors: u64,
}

/// Sectors in bytes.
fn bytes(sectors: u64) -> u64 {
    sectors * SECTOR as u64
}

impl Workload {
    /// A workload on the files of `dir`, whose volumes get numbers from `first` on: one that runs beside it in another
    /// thread needs others.
    pub fn new(site: &Site, dir: &Path, first: u32) -> Result<Workload> {
        Ok(Workload::on(Marks::new(site)?, Box::new(Directory::new(dir)), first))
    }

    /// The same on files that are reached in another way.
    pub fn on(marks: Marks, files: Box<dyn Files>, first: u32) -> Workload {
        Workload { files, marks, volumes: Vec::new(), next: first, version: 0 }
    }

    /// Its marks, for more of them.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// From now on its files are reached through `files`.
    pub fn move_to(&mut self, files: Box<dyn Files>) {
        self.files = files;
    }

    /// The volumes that exist now, oldest first.
    pub fn volumes(&self) -> &[Volume] {
        &self.volumes
    }

    /// The volume called `name`.
    pub fn volume(&self, name: &str) -> Result<Volume> {
        let found = self.volumes.iter().find(|volume| volume.name == name).cloned();
        found.ok_or_else(|| Error::new(Kind::NotFound, "find volume").at(name))
    }

    /// Announces a change of `v`, makes it, says that it is done.
    fn change(&self, v: u32, announcement: &str, change: impl FnOnce(&dyn Files) -> Result<()>) -> Result<()> {
        self.marks.say(announcement)?;
        change(&*self.files)?;
        self.marks.say(&format!("done {v}"))
    }

    /// Makes an empty file, then gives it its size.
    pub fn create(&mut self, name: &str, sectors: u64) -> Result<()> {
        let v = self.next;
        self.next += 1;
        self.change(v, &format!("create {v} {name}"), |files| files.create(name))?;
        self.volumes.push(Volume { number: v, name: name.to_string(), sectors: 0 });
        self.set_size(name, sectors)
    }

    /// Writes `count` sectors with a new version, through the page cache or past it (then in whole blocks of 4 KiB).
    pub fn write(&mut self, name: &str, first: u64, count: u64, direct: bool) -> Result<()> {
        self.version += 1;
        let (v, version) = (self.volume(name)?.number, self.version);
        let data = stamped(v, first, count, version);
        self.change(v, &format!("write {v} {first} {count} {version}"), |files| {
            files.write(name, bytes(first), &data, direct)
        })
    }

    /// Writes `count` sectors with a new version through a shared mapping, and leaves it to the kernel when to hand the
    /// pages on.
    pub fn write_mapped(&mut self, name: &str, first: u64, count: u64) -> Result<()> {
        self.version += 1;
        let (volume, version) = (self.volume(name)?, self.version);
        let v = volume.number;
        let data = stamped(v, first, count, version);
        self.change(v, &format!("write {v} {first} {count} {version}"), |files| {
            files.write_mapped(name, bytes(volume.sectors), bytes(first), &data)
        })
    }

    /// Makes a range read as zeros, by a hole (`FALLOC_FL_PUNCH_HOLE`) or not (`FALLOC_FL_ZERO_RANGE`).
    pub fn zero(&mut self, name: &str, first: u64, count: u64, hole: bool) -> Result<()> {
        let v = self.volume(name)?.number;
        self.change(v, &format!("zero {v} {first} {count}"), |files| files.zero(name, bytes(first), bytes(count), hole))
    }

    /// Cuts or grows a volume.
    pub fn set_size(&mut self, name: &str, sectors: u64) -> Result<()> {
        let v = self.volume(name)?.number;
        self.change(v, &format!("size {v} {sectors}"), |files| files.set_size(name, bytes(sectors)))?;
        if let Some(volume) = self.volumes.iter_mut().find(|volume| volume.number == v) {
            volume.sectors = sectors;
        }
        Ok(())
    }

    /// Makes what was done to a volume durable.
    pub fn sync(&mut self, name: &str) -> Result<()> {
        self.files.sync(name)?;
        self.is_durable(name)
    }

    /// Says that a volume was reported durable by something else than [`Workload::sync`].
    pub fn is_durable(&self, name: &str) -> Result<()> {
        self.marks.say(&format!("synced {}", self.volume(name)?.number))
    }

    /// Makes `to` a clone of `from`, of the same size or a larger one. The source may belong to another workload, and be
    /// in use there.
    pub fn clone_volume(&mut self, from: &Volume, to: &str, sectors: u64, how: Cloning) -> Result<()> {
        let (s, d) = (from.number, self.next);
        self.next += 1;
        let size = (sectors > from.sectors).then_some(bytes(sectors));
        self.change(d, &format!("clone {s} {d} {to} {sectors}"), |files| {
            files.clone_file(&from.name, to, Cloning { size, ..how })
        })?;
        self.volumes.push(Volume { number: d, name: to.to_string(), sectors });
        if how.durable { self.is_durable(to) } else { Ok(()) }
    }

    /// Has a clone deepened. That changes nothing that anybody could see, so it is not announced.
    pub fn deepen(&self, name: &str) -> Result<()> {
        self.files.deepen(name)
    }

    /// Renames a volume, over another one where `to` exists.
    pub fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        let v = self.volume(from)?.number;
        self.change(v, &format!("rename {v} {to}"), |files| files.rename(from, to))?;
        self.volumes.retain(|volume| volume.name != to);
        if let Some(volume) = self.volumes.iter_mut().find(|volume| volume.number == v) {
            volume.name = to.to_string();
        }
        Ok(())
    }

    /// Unlinks a volume.
    pub fn unlink(&mut self, name: &str) -> Result<()> {
        let v = self.volume(name)?.number;
        self.change(v, &format!("unlink {v}"), |files| files.unlink(name))?;
        self.volumes.retain(|volume| volume.number != v);
        Ok(())
    }

    /// Makes the names durable.
    pub fn sync_names(&mut self) -> Result<()> {
        self.marks.say("dirsync")?;
        self.files.sync_names()?;
        self.marks.say("dirsynced")
    }
}
