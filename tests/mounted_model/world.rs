//! Files of a mount beside the model.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use clonefs::protocol::{DeepenAction, DeepenRequest, FLUSH, IOC_PIN};
use libc::{FALLOC_FL_KEEP_SIZE as KEEP, FALLOC_FL_PUNCH_HOLE as HOLE, FALLOC_FL_ZERO_RANGE as ZERO};

use super::Step;
use super::ops::{Name, Op};
use super::oracle::{Contents, Oracle, Outcome, check_holes, data, differ, pieces};
use super::support::{Mapping, Pool, copy_range, fallocate, ioctl, seek, set_xattr};

thread_local! {
    /// Options of the mount, for those who mount again.
    pub static OPTIONS: Cell<&'static str> = const { Cell::new("") };
}

/// Files without a name that are kept open.
const ORPHANS: usize = 3;

/// Whether it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    Yes,
    /// It said that it cannot, and had a reason.
    Refused,
}

pub struct World<'a> {
    pub pool: &'a mut Pool,
    /// Where the files of this sequence are.
    pub directory: PathBuf,
    pub oracle: Oracle,
    open: BTreeMap<Name, File>,
    /// Files that have lost the name by which they are open.
    orphans: Vec<(File, Contents)>,
    pinned: Option<(File, Vec<u8>)>,
    /// Files with stores that the kernel may still hold: a daemon that is killed takes those along.
    stored: BTreeSet<Name>,
}

pub fn text<E: std::fmt::Display>(error: E) -> String {
    error.to_string()
}

/// What is refused with EOPNOTSUPP is not done, and no error.
pub fn unless_refused(result: Result<()>) -> Outcome<Done> {
    match result {
        Ok(()) => Ok(Done::Yes),
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Done::Refused),
        Err(e) => Err(text(e)),
    }
}

impl<'a> World<'a> {
    /// A directory of its own in the pool.
    pub fn new(pool: &'a mut Pool) -> Outcome<World<'a>> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let directory = pool.at(format!("sequence{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&directory).map_err(text)?;
        let (oracle, open, stored) = (Oracle::default(), BTreeMap::new(), BTreeSet::new());
        Ok(World { pool, directory, oracle, open, orphans: Vec::new(), pinned: None, stored })
    }

    pub fn path(&self, name: Name) -> PathBuf {
        self.directory.join(format!("v{name}.img"))
    }

    /// The handle of a name; it stays open, as a VM's disk does.
    fn file(&mut self, name: Name) -> Outcome<File> {
        let path = self.path(name);
        let file = match self.open.remove(&name) {
            Some(file) => file,
            None => File::options().read(true).write(true).open(&path).map_err(|e| format!("open v{name}: {e}"))?,
        };
        let same = file.try_clone().map_err(text)?;
        self.open.insert(name, file);
        Ok(same)
    }

    /// Closes everything.
    pub fn close_all(&mut self) {
        self.open.clear();
        self.orphans.clear();
        self.pinned = None;
    }

    /// Does a step, if it makes sense now, and notes what it must have done.
    pub fn apply(&mut self, step: &Step) -> Outcome {
        match step {
            Step::Op(op) => {
                if !self.oracle.possible(op) || self.collides(op) || self.perform(op)? == Done::Refused {
                    return Ok(());
                }
                self.oracle.done(op)?;
                if let Op::Rename { from, to } = op
                    && let Some(bytes) = self.oracle.snapshots.remove(from)
                {
                    // A snapshot goes where its volume goes.
                    self.oracle.snapshots.insert(*to, bytes);
                }
                Ok(())
            }
            Step::Store(name, offset, len, byte) if self.oracle.has(*name) => {
                self.store(*name, *offset, &data(*len, *byte))
            }
            Step::Close(name) => {
                self.open.remove(name);
                Ok(())
            }
            Step::Store(..) => Ok(()),
        }
    }

    /// The snapshot of a volume would get another name, or another volume of that name come to have it.
    fn collides(&self, op: &Op) -> bool {
        let has = |name: &Name| self.oracle.snapshots.contains_key(name);
        let same = |from: &Name, to: &Name| {
            self.oracle.has(*to) && self.oracle.contents(*from).same(self.oracle.contents(*to))
        };
        match op {
            Op::Rename { from, to } => has(from) && has(to) || same(from, to),
            // Whose snapshot it was is no volume any more, or not the one that has the name.
            Op::Remove(name) => has(name),
            _ => false,
        }
    }

    fn perform(&mut self, op: &Op) -> Outcome<Done> {
        match op {
            Op::Create(name) => self.create(*name).map(drop)?,
            Op::Write { name, offset, len, byte } => {
                self.file(*name)?.write_all_at(&data(*len, *byte), *offset).map_err(text)?;
            }
            Op::Sync(name) => self.file(*name)?.sync_data().map_err(text)?,
            Op::SetSize { name, size } => self.file(*name)?.set_len(*size).map_err(text)?,
            Op::Punch { name, offset, len } => return self.allocate(*name, HOLE | KEEP, *offset, *len),
            Op::Zero { name, offset, len, keep_size } => {
                return self.allocate(*name, ZERO | if *keep_size { KEEP } else { 0 }, *offset, *len);
            }
            Op::Reserve { name, offset, len, keep_size } => {
                return self.allocate(*name, if *keep_size { KEEP } else { 0 }, *offset, *len);
            }
            Op::Clone { from, to, grow, live } => {
                if *live {
                    self.file(*from)?;
                } else {
                    self.open.remove(from);
                }
                self.clone(*from, *to, *grow)?;
            }
            Op::CopyRange { from, to, offset, to_offset, len } => {
                self.copy_range(*from, *offset, *to, *to_offset, *len)?;
            }
            Op::CopyByPieces { from, to, piece, skip, preset_size } => {
                let size = self.oracle.bytes(*from).len() as u64;
                let target = self.create(*to)?;
                if *preset_size {
                    target.set_len(size).map_err(text)?;
                }
                for (at, len) in pieces(size, *piece, *skip) {
                    self.copy_range(*from, at, *to, at, len)?;
                }
                target.set_len(size).map_err(text)?;
            }
            Op::Pin(name) => {
                let file = File::open(self.path(*name)).map_err(text)?;
                let pinned = unless_refused(ioctl(&file, IOC_PIN, &mut []))?;
                self.pinned = (pinned == Done::Yes).then(|| (file, self.oracle.bytes(*name)));
            }
            Op::Unpin => self.pinned = None,
            Op::Fill { name, .. } | Op::Finish(name) => self.deepen(*name)?,
            // The daemon adopts what it can by itself, when it has been told to deepen.
            Op::Adopt(_) | Op::AdoptFrozen | Op::Reap => {}
            Op::Remove(name) => {
                fs::remove_file(self.path(*name)).map_err(text)?;
                self.orphan(*name);
            }
            Op::Rename { from, to } => {
                fs::rename(self.path(*from), self.path(*to)).map_err(text)?;
                self.orphan(*to);
                self.open.remove(from).map(|file| self.open.insert(*to, file));
                if self.stored.remove(from) {
                    self.stored.insert(*to);
                }
            }
            Op::Link { from, to } => fs::hard_link(self.path(*from), self.path(*to)).map_err(text)?,
            Op::Group { from, to } => return self.group(*from, *to),
            Op::Snapshot(names) => return self.snapshot(names),
            Op::RemoveSnapshot(name) => self.remove_snapshot(*name)?,
            Op::Rollback(name) => return self.roll_back(*name),
            Op::Reset(name) => return self.reset(*name),
            Op::Flush => set_xattr(self.pool.root(), FLUSH, b"sync").map_err(text)?,
            Op::Remount => {
                self.close_all();
                self.pool.unmount();
                self.pool.mount(OPTIONS.get());
            }
            Op::KillAndRemount => self.kill()?,
        }
        Ok(Done::Yes)
    }

    fn create(&mut self, name: Name) -> Outcome<File> {
        let path = self.path(name);
        let file = File::options().read(true).write(true).create_new(true).open(path).map_err(text)?;
        self.open.insert(name, file);
        self.file(name)
    }

    fn allocate(&mut self, name: Name, mode: i32, offset: u64, len: u64) -> Outcome<Done> {
        unless_refused(fallocate(&self.file(name)?, mode, offset as i64, len as i64))
    }

    fn store(&mut self, name: Name, offset: u64, bytes: &[u8]) -> Outcome {
        let size = self.oracle.bytes(name).len();
        let start = (offset as usize).min(size);
        let len = bytes.len().min(size - start);
        if len == 0 {
            return Ok(());
        }
        let mut mapping = Mapping::new(&self.file(name)?, size).map_err(text)?;
        mapping.bytes()[start..start + len].copy_from_slice(&bytes[..len]);
        drop(mapping);
        self.stored.insert(name);
        self.oracle.edit(name, |b| b[start..start + len].copy_from_slice(&bytes[..len]));
        Ok(())
    }

    fn copy_range(&mut self, from: Name, offset: u64, to: Name, to_offset: u64, len: u64) -> Outcome {
        let (source, target) = (self.file(from)?, self.file(to)?);
        let mut done = 0;
        while done < len {
            let (at, onto) = ((offset + done) as i64, (to_offset + done) as i64);
            match copy_range((source.as_raw_fd(), at), (target.as_raw_fd(), onto), (len - done) as usize) {
                Ok(0) => break,
                Ok(copied) => done += copied as u64,
                Err(e) => return Err(format!("copy_file_range: {e}")),
            }
        }
        let there = (self.oracle.bytes(from).len() as u64).saturating_sub(offset).min(len);
        if done == there { Ok(()) } else { Err(format!("copied {done} bytes of {there}")) }
    }

    fn deepen(&mut self, name: Name) -> Outcome {
        let request = DeepenRequest { action: DeepenAction::Start, rate: None, physical: false };
        clonefs::client::deepen(&self.path(name), &request).map_err(text)
    }

    /// The name was taken off the file that is open by it.
    fn orphan(&mut self, name: Name) {
        self.stored.remove(&name);
        if let Some(file) = self.open.remove(&name) {
            self.orphans.push((file, self.oracle.contents(name).clone()));
            if self.orphans.len() > ORPHANS {
                self.orphans.remove(0);
            }
        }
    }

    /// The daemon dies; what was written is there all the same, synced or not.
    fn kill(&mut self) -> Outcome {
        for name in std::mem::take(&mut self.stored) {
            self.file(name)?.sync_data().map_err(text)?;
        }
        self.pool.crash(OPTIONS.get());
        self.close_all();
        Ok(())
    }

    /// Every file has the model's bytes, read through the handle that is open or through a new one.
    pub fn compare(&mut self, fresh: bool) -> Outcome {
        for name in self.oracle.names() {
            let expect = self.oracle.bytes(name);
            let shown = fs::metadata(self.path(name)).map_err(|e| format!("v{name}: {e}"))?.len();
            if shown != expect.len() as u64 {
                return Err(format!("v{name} shows {shown} bytes instead of {}", expect.len()));
            }
            let new = || File::open(self.path(name)).map_err(text);
            let opened = self.open.get(&name).filter(|_| !fresh).map(|file| file.try_clone().map_err(text));
            let file = opened.unwrap_or_else(new)?;
            differ(&format!("v{name}"), &read(&file, expect.len())?, &expect)?;
            check_holes(&expect, |at, data| next(&file, at, data)).map_err(|why| format!("v{name}: {why}"))?;
        }
        for (file, contents) in &self.orphans {
            let expect = contents.bytes();
            differ("a file without this name", &read(file, expect.len())?, &expect)?;
        }
        if let Some((file, expect)) = &self.pinned {
            differ("the pinned file", &read(file, expect.len())?, expect)?;
        }
        self.compare_snapshots()
    }

    /// Everything is deepened; then there are only ordinary files, below the mount too.
    pub fn drain(mut self) -> Outcome {
        self.close_all();
        self.remove_snapshots()?;
        let names = self.oracle.names();
        if !self.oracle.has_links() {
            names.iter().try_for_each(|name| self.deepen(*name))?;
            let paths: Vec<PathBuf> = names.iter().map(|name| self.path(*name)).collect();
            clonefs::client::until_independent(&paths, &mut |_| Ok(())).map_err(text)?;
            self.compare(true)?;
            let below = self.pool.below(self.directory.file_name().unwrap_or_default());
            for name in &names {
                let bytes = fs::read(below.join(format!("v{name}.img"))).map_err(text)?;
                differ(&format!("the plain file v{name}"), &bytes, &self.oracle.bytes(*name))?;
            }
        }
        fs::remove_dir_all(&self.directory).map_err(text)
    }
}

/// All bytes of a file of which `len` are expected.
pub fn read(file: &File, len: usize) -> Outcome<Vec<u8>> {
    let mut bytes = vec![0xaa; len + 10];
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], done as u64).map_err(|e| format!("read: {e}"))? {
            0 => break,
            got => done += got,
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

/// Next data, or hole, of a file.
fn next(file: &File, at: u64, data: bool) -> Outcome<Option<u64>> {
    match seek(file, at as i64, if data { libc::SEEK_DATA } else { libc::SEEK_HOLE }) {
        Ok(found) => Ok(Some(found as u64)),
        Err(e) if Error::raw_os_error(&e) == Some(libc::ENXIO) => Ok(None),
        Err(e) => Err(format!("seek: {e}")),
    }
}
