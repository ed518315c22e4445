//! The pool under test beside the model, below FUSE.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use clonefs::engine::io::{FileKey, Fs, HostFs, Open, Rename, Whence};
use clonefs::engine::pool::{CloneOptions, Finished, Names, Pool, PoolOptions, Spot};
use clonefs::engine::volume::fill::Filling;
use clonefs::engine::volume::{Pinned, State, Volume};
use clonefs::error::Result;
use clonefs::units::Id;

use super::ops::{Name, Op};
use super::oracle::{Oracle, Outcome, check_holes, data, differ, pieces};

/// Finds names by looking: there are few files.
struct Finder(Arc<dyn Fs>);

impl Names for Finder {
    fn swap(
        &self,
        key: FileKey,
        _hint: Option<&Path>,
        swap: &mut dyn FnMut(&Spot) -> Result<FileKey>,
    ) -> Result<Option<FileKey>> {
        let spot = self.path_of(key).and_then(|path| Spot::find(&*self.0, &path).ok());
        spot.map(|spot| swap(&spot)).transpose()
    }

    fn path_of(&self, key: FileKey) -> Option<PathBuf> {
        let entries = self.0.list(Path::new("")).ok()?;
        let found = entries.into_iter().find(|e| self.0.stat(Path::new(&e.name)).is_ok_and(|s| s.key == key))?;
        Some(PathBuf::from(found.name))
    }

    fn flush_cached(&self, _key: FileKey) {}
}

pub struct World {
    dir: tempfile::TempDir,
    pool: Option<Arc<Pool>>,
    _names: Option<Arc<dyn Names>>,
    pub oracle: Oracle,
    open: BTreeMap<Name, (Arc<Volume>, bool)>,
    pinned: Option<(Pinned, Vec<u8>)>,
}

/// Whether the pool did what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    Yes,
    /// It said that it cannot, and had a reason.
    Refused,
}

/// What is refused with EOPNOTSUPP is not done, and no error: what needs to exchange a file cannot be done to one of
/// several names, and some filesystems cannot zero a range.
pub fn unless_refused(result: Result<()>) -> Outcome<Done> {
    match result {
        Ok(()) => Ok(Done::Yes),
        Err(e) if e.errno() == libc::EOPNOTSUPP => Ok(Done::Refused),
        Err(e) => Err(text(e)),
    }
}

pub fn file_name(name: Name) -> PathBuf {
    PathBuf::from(format!("v{name}.img"))
}

pub fn text<E: std::fmt::Display>(error: E) -> String {
    error.to_string()
}

impl World {
    pub fn new() -> World {
        // Memory, if there is some: the model is about what is done, not where.
        let base = if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
        let dir = tempfile::tempdir_in(base).expect("a temporary directory");
        let (oracle, open) = (Oracle::default(), BTreeMap::new());
        let mut world = World { dir, pool: None, _names: None, oracle, open, pinned: None };
        world.mount().expect("an empty pool opens");
        world
    }

    fn mount(&mut self) -> Outcome {
        let fs: Arc<dyn Fs> = Arc::new(HostFs::open_dir(self.dir.path()).map_err(text)?);
        let pool =
            Pool::open(fs.clone(), PoolOptions { deepen_auto: false, ..PoolOptions::default() }).map_err(text)?;
        let names: Arc<dyn Names> = Arc::new(Finder(fs));
        let weak: Weak<dyn Names> = Arc::downgrade(&names);
        pool.set_names(weak);
        let status = pool.status();
        if !status.troubles.is_empty() {
            return Err(format!("troubles after mount: {:?}", status.troubles));
        }
        (self.pool, self._names) = (Some(pool), Some(names));
        Ok(())
    }

    pub fn pool(&self) -> Arc<Pool> {
        self.pool.clone().expect("the pool is mounted between operations")
    }

    /// The open volume of a name; it stays open, as a VM's disk does.
    pub fn volume(&mut self, name: Name) -> std::result::Result<Arc<Volume>, String> {
        if let Some((volume, _)) = self.open.get(&name) {
            return Ok(volume.clone());
        }
        let pool = self.pool();
        let path = file_name(name);
        let stat = pool.fs().stat(&path).map_err(text)?;
        let volume = pool.volume(stat.key, &path).map_err(text)?;
        volume.open_handle(false);
        self.open.insert(name, (volume.clone(), false));
        Ok(volume)
    }

    /// Opens a volume for writing, as a running VM has it, or for reading only.
    fn set_writer(&mut self, name: Name, write: bool) -> Outcome {
        let volume = self.volume(name)?;
        volume.open_handle(write);
        let old = self.open.insert(name, (volume.clone(), write));
        volume.close_handle(old.is_some_and(|(_, write)| write));
        Ok(())
    }

    fn close(&mut self, name: Name) {
        if let Some((volume, write)) = self.open.remove(&name) {
            volume.close_handle(write);
        }
    }

    /// Closes everything.
    pub fn close_all(&mut self) {
        for name in self.open.keys().copied().collect::<Vec<_>>() {
            self.close(name);
        }
    }

    pub fn create(&mut self, name: Name) -> std::result::Result<Arc<Volume>, String> {
        let pool = self.pool();
        let file = pool.fs().open(&file_name(name), Open::CreateNew(0o644)).map_err(text)?;
        let volume = pool.created(&file_name(name), file).map_err(text)?;
        volume.open_handle(true);
        self.open.insert(name, (volume.clone(), true));
        Ok(volume)
    }

    /// Does `op`, if it makes sense now, and notes what it must have done.
    pub fn apply(&mut self, op: &Op) -> Outcome {
        if !self.oracle.possible(op) || self.perform(op)? == Done::Refused {
            return Ok(());
        }
        self.oracle.done(op)
    }

    fn perform(&mut self, op: &Op) -> Outcome<Done> {
        match op {
            Op::Create(name) => self.create(*name).map(drop)?,
            Op::Write { name, offset, len, byte } => {
                self.volume(*name)?.write(*offset, &data(*len, *byte)).map_err(text)?;
            }
            Op::Sync(name) => self.volume(*name)?.sync(true).map_err(text)?,
            Op::SetSize { name, size } => self.volume(*name)?.set_size(*size).map_err(text)?,
            Op::Punch { name, offset, len } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                self.volume(*name)?.allocate(mode, *offset, *len).map_err(text)?;
            }
            Op::Zero { name, offset, len, keep_size } => {
                let mode = libc::FALLOC_FL_ZERO_RANGE | if *keep_size { libc::FALLOC_FL_KEEP_SIZE } else { 0 };
                return unless_refused(self.volume(*name)?.allocate(mode, *offset, *len));
            }
            Op::Reserve { name, offset, len, keep_size } => {
                let mode = if *keep_size { libc::FALLOC_FL_KEEP_SIZE } else { 0 };
                self.volume(*name)?.allocate(mode, *offset, *len).map_err(text)?;
            }
            Op::Clone { from, to, grow, live } => {
                self.set_writer(*from, *live)?;
                let source = self.volume(*from)?;
                let target = self.create(*to)?;
                let size = Some(self.oracle.bytes(*from).len() as u64 + grow);
                let options = CloneOptions { size, ..CloneOptions::default() };
                self.pool().clone_volume(&source, &target, &options).map_err(text)?;
            }
            Op::CopyRange { from, to, offset, to_offset, len } => {
                self.copy_range(*from, *offset, *to, *to_offset, *len)?;
            }
            Op::CopyByPieces { from, to, piece, skip, preset_size } => {
                self.copy_by_pieces(*from, *to, (*piece, *skip), *preset_size)?;
            }
            Op::Pin(name) => {
                let volume = self.volume(*name)?;
                let pinned =
                    self.pool().pin(&volume).map(|pinned| self.pinned = Some((pinned, self.oracle.bytes(*name))));
                return unless_refused(pinned);
            }
            Op::Unpin => self.pinned = None,
            Op::Fill { name, bytes } => self.fill(*name, *bytes)?,
            Op::Adopt(name) => {
                let volume = self.volume(*name)?;
                self.pool().adopt_parent(&volume, &|| false).map_err(text)?;
            }
            Op::AdoptFrozen => self.adopt_frozen()?,
            Op::Finish(name) => {
                let volume = self.volume(*name)?;
                self.pool().finish(&volume).map_err(text)?;
            }
            Op::Remove(name) => self.remove(*name)?,
            Op::Rename { from, to } => self.rename(*from, *to)?,
            Op::Link { from, to } => {
                let volume = self.volume(*from)?;
                self.pool().before_link(&volume).map_err(text)?;
                self.pool().fs().link(&file_name(*from), &file_name(*to)).map_err(text)?;
            }
            Op::Group { from, to } => return self.group(*from, *to),
            Op::Snapshot(names) => return self.snapshot(names),
            Op::RemoveSnapshot(name) => self.remove_snapshot(*name)?,
            Op::Rollback(name) => return self.roll_back(*name),
            Op::Reset(name) => return self.reset(*name),
            Op::Flush => self.pool().flush().map_err(text)?,
            Op::Reap => self.pool().reap_dead().map_err(text)?,
            Op::Remount => self.remount(true)?,
            Op::KillAndRemount => self.remount(false)?,
        }
        Ok(Done::Yes)
    }

    fn adopt_frozen(&mut self) -> Outcome {
        let ids: Vec<Id> = self.pool().store().catalogue().layers().map(|l| l.id).collect();
        for id in ids {
            if let Some(layer) = self.pool().frozen_layer(id).map_err(text)? {
                self.pool().adopt_frozen(&layer, &|| false).map_err(text)?;
            }
        }
        Ok(())
    }

    fn copy_range(&mut self, from: Name, offset: u64, to: Name, to_offset: u64, len: u64) -> Outcome {
        let (source, target) = (self.volume(from)?, self.volume(to)?);
        let mut done = 0;
        while done < len {
            let step = self.pool().copy_range(&source, offset + done, &target, to_offset + done, len - done);
            match step.map_err(text)? {
                0 => break,
                copied => done += copied,
            }
        }
        let there = (self.oracle.bytes(from).len() as u64).saturating_sub(offset).min(len);
        if done == there { Ok(()) } else { Err(format!("copied {done} bytes of {there}")) }
    }

    fn copy_by_pieces(&mut self, from: Name, to: Name, (piece, skip): (u64, u64), preset_size: bool) -> Outcome {
        let size = self.oracle.bytes(from).len() as u64;
        let target = self.create(to)?;
        if preset_size {
            target.set_size(size).map_err(text)?;
        }
        for (at, len) in pieces(size, piece, skip) {
            self.copy_range(from, at, to, at, len)?;
        }
        target.set_size(size).map_err(text)
    }

    fn fill(&mut self, name: Name, most: u64) -> Outcome {
        let volume = self.volume(name)?;
        let trust_holes = self.pool().trusts_holes();
        let gate = volume.gate().read();
        if let State::Overlay(overlay) = &*gate {
            overlay.fill_absent(0, &Filling { most, share: false, trust_holes, allocate: true }).map_err(text)?;
        }
        Ok(())
    }

    fn remove(&mut self, name: Name) -> Outcome {
        let pool = self.pool();
        let key = pool.fs().stat(&file_name(name)).map_err(text)?.key;
        pool.fs().unlink(&file_name(name)).map_err(text)?;
        pool.removed(key);
        self.close(name);
        Ok(())
    }

    fn rename(&mut self, from: Name, to: Name) -> Outcome {
        let pool = self.pool();
        let there = pool.fs().stat(&file_name(to)).ok().map(|s| s.key);
        let moved = pool.fs().stat(&file_name(from)).map_err(text)?.key;
        if there == Some(moved) {
            return Ok(());
        }
        pool.fs().rename(&file_name(from), &file_name(to), Rename::Replace).map_err(text)?;
        if let Some(key) = there {
            pool.removed(key);
        }
        self.close(to);
        if let Some((volume, write)) = self.open.remove(&from) {
            volume.set_path(&file_name(to));
            self.open.insert(to, (volume, write));
        }
        Ok(())
    }

    /// Ends the daemon and starts another. Without a goodbye, too, all that was acknowledged must be there, synced or not:
    /// the machine lives on (R16). It was synced first once, which took the log of unsynced changes out of the game.
    fn remount(&mut self, goodbye: bool) -> Outcome {
        self.pinned = None;
        if goodbye {
            for name in self.open.keys().copied().collect::<Vec<_>>() {
                self.close(name);
            }
            self.pool().shutdown().map_err(text)?;
        } else {
            self.open.clear();
        }
        (self.pool, self._names) = (None, None);
        let fs: Arc<dyn Fs> = Arc::new(HostFs::open_dir(self.dir.path()).map_err(text)?);
        let report = clonefs::engine::pool::check::check(&fs).map_err(text)?;
        if !report.problems.is_empty() {
            return Err(format!("check finds {:?}", report.problems));
        }
        drop(fs);
        self.mount()
    }

    /// Every volume has the model's bytes, through an open handle.
    pub fn compare(&mut self) -> Outcome {
        for name in self.oracle.names() {
            let volume = self.volume(name)?;
            let expect = self.oracle.bytes(name);
            let size = volume.size().map_err(text)?;
            if size != expect.len() as u64 {
                return Err(format!("v{name} has {size} bytes instead of {}", expect.len()));
            }
            let pool = self.pool();
            let stat = pool.fs().stat(&file_name(name)).map_err(text)?;
            let shown = pool.describe(&file_name(name), stat).map_err(text)?.size;
            if shown != size {
                return Err(format!("v{name} shows {shown} bytes instead of {size}"));
            }
            let mut bytes = vec![0xaa; expect.len() + 10];
            let got = volume.read(0, &mut bytes).map_err(text)?;
            if got != expect.len() {
                return Err(format!("read {got} bytes of v{name} instead of {}", expect.len()));
            }
            differ(&format!("v{name}"), &bytes[..got], &expect)?;
            check_holes(&expect, |at, data| next(&volume, at, data)).map_err(|why| format!("v{name}: {why}"))?;
        }
        self.compare_snapshots()?;
        if let Some((pinned, expect)) = &self.pinned {
            let mut bytes = vec![0xaa; expect.len() + 10];
            let got = pinned.read(0, &mut bytes).map_err(text)?;
            differ("the pinned volume", &bytes[..got], expect)?;
        }
        Ok(())
    }

    /// Deepens everything; then only plain files are left.
    pub fn drain(mut self) -> Outcome {
        self.pinned = None;
        self.remove_snapshots()?;
        for _ in 0..4 {
            for name in self.oracle.names() {
                self.apply(&Op::Adopt(name))?;
                for _ in 0..40 {
                    self.fill(name, u64::MAX)?;
                }
                let volume = self.volume(name)?;
                let done = self.pool().finish(&volume).map_err(text)?;
                if !matches!(done, Finished::Plain | Finished::Linked | Finished::NotYet) {
                    return Err(format!("v{name} ends as {done:?}"));
                }
            }
            self.pool().reap_dead().map_err(text)?;
            self.compare()?;
        }
        let linked = self.oracle.has_links();
        self.remount(true)?;
        self.compare()?;
        for name in self.open.keys().copied().collect::<Vec<_>>() {
            self.close(name);
        }
        self.pool().shutdown().map_err(text)?;
        if linked {
            return Ok(());
        }
        for name in self.oracle.names() {
            let bytes = std::fs::read(self.dir.path().join(file_name(name))).map_err(text)?;
            differ(&format!("the plain file v{name}"), &bytes, &self.oracle.bytes(name))?;
            let attribute = self.pool().fs().get_xattr(&file_name(name), &OsString::from("user.clonefs.stub"));
            if attribute.is_ok() {
                return Err(format!("the plain file v{name} is marked as a stub"));
            }
        }
        for dir in ["layers", "stubs", "tmp", "snapshots"] {
            let path = self.dir.path().join(".clonefs").join(dir);
            let left = std::fs::read_dir(path).map(|d| d.flatten().map(|e| e.file_name()).collect::<Vec<_>>());
            if left.as_ref().is_ok_and(|l| !l.is_empty()) {
                return Err(format!("left in {dir}: {left:?}"));
            }
        }
        Ok(())
    }
}

/// Next data, or hole, of a volume.
fn next(volume: &Volume, at: u64, data: bool) -> Outcome<Option<u64>> {
    match volume.seek(at, if data { Whence::Data } else { Whence::Hole }) {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.errno() == libc::ENXIO => Ok(None),
        Err(e) => Err(text(e)),
    }
}
