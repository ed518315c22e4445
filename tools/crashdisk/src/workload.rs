//! A workload that announces what it does: file operations with the oracle's marks around them.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clonefs::error::{Context, Error, Kind, Result};

use crate::record::Site;
use crate::stamp::{SECTOR, stamped};

/// Writes marks into the log.
pub struct Marks {
    path: PathBuf,
    file: File,
}

impl Marks {
    /// Marks of the recording at `site`.
    pub fn new(site: &Site) -> Result<Marks> {
        let file = OpenOptions::new().append(true).open(&site.mark).context("open marks", &site.mark)?;
        Ok(Marks { path: site.mark.clone(), file })
    }

    /// Adds one mark. When this returns, it is in the log.
    pub fn say(&self, mark: &str) -> Result<()> {
        // One call, so one request and one mark.
        (&self.file).write_all(mark.as_bytes()).context("write mark", &self.path)
    }
}

/// Volumes in one directory, changed and announced by one thread.
pub struct Workload {
    dir: PathBuf,
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

impl Workload {
    /// A workload on the files of `dir`, whose volumes get numbers from `first` on: one that runs beside it in another
    /// thread needs others.
    pub fn new(site: &Site, dir: &Path, first: u32) -> Result<Workload> {
        let marks = Marks::new(site)?;
        Ok(Workload { dir: dir.to_path_buf(), marks, volumes: Vec::new(), next: first, version: 0 })
    }

    /// Its marks, for more of them.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// Path of `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
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

    fn open(&self, name: &str, flags: i32) -> Result<File> {
        let path = self.path(name);
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path).context("open", &path)
    }

    /// Announces a change of `v`, makes it, says that it is done.
    fn change(&self, v: u32, announcement: &str, change: impl FnOnce() -> Result<()>) -> Result<()> {
        self.marks.say(announcement)?;
        change()?;
        self.marks.say(&format!("done {v}"))
    }

    /// Makes an empty file, then gives it its size.
    pub fn create(&mut self, name: &str, sectors: u64) -> Result<()> {
        let (v, path) = (self.next, self.path(name));
        self.next += 1;
        self.change(v, &format!("create {v} {name}"), || {
            OpenOptions::new().write(true).create_new(true).open(&path).context("create", &path).map(drop)
        })?;
        self.volumes.push(Volume { number: v, name: name.to_string(), sectors: 0 });
        self.set_size(name, sectors)
    }

    /// Writes `count` sectors with a new version, through the page cache or past it (then in whole blocks of 4 KiB).
    pub fn write(&mut self, name: &str, first: u64, count: u64, direct: bool) -> Result<()> {
        self.version += 1;
        let (v, version) = (self.volume(name)?.number, self.version);
        let file = self.open(name, if direct { libc::O_DIRECT } else { 0 })?;
        let bytes = Aligned::new(&stamped(v, first, count, version));
        self.change(v, &format!("write {v} {first} {count} {version}"), || {
            file.write_all_at(bytes.get(), first * SECTOR as u64).context("write", self.path(name))
        })
    }

    /// Writes `count` sectors with a new version through a shared mapping, and leaves it to the kernel when to hand the
    /// pages on.
    pub fn write_mapped(&mut self, name: &str, first: u64, count: u64) -> Result<()> {
        self.version += 1;
        let (volume, version) = (self.volume(name)?, self.version);
        let v = volume.number;
        let file = self.open(name, 0)?;
        let bytes = stamped(v, first, count, version);
        self.change(v, &format!("write {v} {first} {count} {version}"), || {
            let len = volume.sectors as usize * SECTOR;
            write_through_mapping(&file, len, first as usize * SECTOR, &bytes).context("map", self.path(name))
        })
    }

    /// Makes a range read as zeros, by a hole (`FALLOC_FL_PUNCH_HOLE`) or not (`FALLOC_FL_ZERO_RANGE`).
    pub fn zero(&mut self, name: &str, first: u64, count: u64, hole: bool) -> Result<()> {
        use std::os::fd::AsRawFd;
        let (v, file) = (self.volume(name)?.number, self.open(name, 0)?);
        let kind = if hole { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE };
        let (offset, len) = ((first * SECTOR as u64) as i64, (count * SECTOR as u64) as i64);
        self.change(v, &format!("zero {v} {first} {count}"), || {
            // SAFETY: the descriptor is open during the call.
            let done = unsafe { libc::fallocate(file.as_raw_fd(), kind | libc::FALLOC_FL_KEEP_SIZE, offset, len) };
            let done = if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) };
            done.context("zero", self.path(name))
        })
    }

    /// Cuts or grows a volume.
    pub fn set_size(&mut self, name: &str, sectors: u64) -> Result<()> {
        let (v, file) = (self.volume(name)?.number, self.open(name, 0)?);
        self.change(v, &format!("size {v} {sectors}"), || {
            file.set_len(sectors * SECTOR as u64).context("truncate", self.path(name))
        })?;
        if let Some(volume) = self.volumes.iter_mut().find(|volume| volume.number == v) {
            volume.sectors = sectors;
        }
        Ok(())
    }

    /// Makes what was done to a volume durable.
    pub fn sync(&mut self, name: &str) -> Result<()> {
        self.open(name, 0)?.sync_all().context("sync", self.path(name))?;
        self.is_durable(name)
    }

    /// Says that a volume was reported durable by something else than [`Workload::sync`].
    pub fn is_durable(&self, name: &str) -> Result<()> {
        self.marks.say(&format!("synced {}", self.volume(name)?.number))
    }

    /// Makes `to` a clone of `from`, of the same size or a larger one. `clone` gets both paths. The source may belong to
    /// another workload, and be in use there.
    pub fn clone_volume(
        &mut self,
        from: &Volume,
        to: &str,
        sectors: u64,
        clone: impl FnOnce(&Path, &Path) -> Result<()>,
    ) -> Result<()> {
        let (s, d) = (from.number, self.next);
        self.next += 1;
        let (source, target) = (self.path(&from.name), self.path(to));
        self.change(d, &format!("clone {s} {d} {to} {sectors}"), || clone(&source, &target))?;
        self.volumes.push(Volume { number: d, name: to.to_string(), sectors });
        Ok(())
    }

    /// Renames a volume, over another one where `to` exists.
    pub fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        let v = self.volume(from)?.number;
        self.change(v, &format!("rename {v} {to}"), || {
            std::fs::rename(self.path(from), self.path(to)).context("rename", self.path(from))
        })?;
        self.volumes.retain(|volume| volume.name != to);
        if let Some(volume) = self.volumes.iter_mut().find(|volume| volume.number == v) {
            volume.name = to.to_string();
        }
        Ok(())
    }

    /// Unlinks a volume.
    pub fn unlink(&mut self, name: &str) -> Result<()> {
        let v = self.volume(name)?.number;
        self.change(v, &format!("unlink {v}"), || {
            std::fs::remove_file(self.path(name)).context("unlink", self.path(name))
        })?;
        self.volumes.retain(|volume| volume.number != v);
        Ok(())
    }

    /// Makes the names durable.
    pub fn sync_names(&mut self) -> Result<()> {
        self.marks.say("dirsync")?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).context("sync directory", &self.dir)?;
        self.marks.say("dirsynced")
    }
}

/// Maps the first `len` bytes of a file and copies `bytes` to `at`, which lies within them.
fn write_through_mapping(file: &File, len: usize, at: usize, bytes: &[u8]) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    assert!(at + bytes.len() <= len);
    let (rights, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping at a place of the kernel's choice.
    let map = unsafe { libc::mmap(std::ptr::null_mut(), len, rights, flags, file.as_raw_fd(), 0) };
    if map == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the range lies in the mapping (asserted above), which nothing else in this process refers to. The file is
    // not cut meanwhile: one thread at a time changes a volume.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), map.cast::<u8>().add(at), bytes.len());
        libc::munmap(map, len);
    }
    Ok(())
}

/// Bytes at an address that direct I/O takes.
pub(crate) struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    const ALIGNMENT: usize = 4096;

    pub(crate) fn new(data: &[u8]) -> Aligned {
        let mut bytes = vec![0; data.len() + Aligned::ALIGNMENT];
        let start = bytes.as_ptr().align_offset(Aligned::ALIGNMENT);
        bytes[start..start + data.len()].copy_from_slice(data);
        Aligned { bytes, start, len: data.len() }
    }

    pub(crate) fn get(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}
