//! The pool under test beside the model: for each name the bytes that it must have.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use clonefs::error::Result;
use clonefs::io::{FileKey, Fs, HostFs, Open, Rename};
use clonefs::pool::{CloneOptions, Finished, Names, Pool, PoolOptions};
use clonefs::units::Id;
use clonefs::volume::fill::Filling;
use clonefs::volume::{Pinned, State, Volume};

use super::ops::{Name, Op};

/// Finds names by looking: there are few files.
struct Finder(Arc<dyn Fs>);

impl Names for Finder {
    fn swap(
        &self,
        key: FileKey,
        _hint: Option<&Path>,
        swap: &mut dyn FnMut(&Path) -> Result<FileKey>,
    ) -> Result<Option<FileKey>> {
        self.path_of(key).map(|path| swap(&path)).transpose()
    }

    fn path_of(&self, key: FileKey) -> Option<PathBuf> {
        let entries = self.0.list(Path::new("")).ok()?;
        let found = entries.into_iter().find(|e| self.0.stat(Path::new(&e.name)).is_ok_and(|s| s.key == key))?;
        Some(PathBuf::from(found.name))
    }

    fn flush_cached(&self, _key: FileKey) {}
}

/// A file of the model; hard links share one.
#[derive(Clone, Debug, Default)]
struct Contents(std::rc::Rc<std::cell::RefCell<Vec<u8>>>);

pub struct World {
    dir: tempfile::TempDir,
    pool: Option<Arc<Pool>>,
    _names: Option<Arc<dyn Names>>,
    model: BTreeMap<Name, Contents>,
    open: BTreeMap<Name, (Arc<Volume>, bool)>,
    /// What clones were when they were made.
    pub bases: BTreeMap<Name, Vec<u8>>,
    /// What snapshots show, by the name that their volume had then.
    pub snapshots: BTreeMap<Name, Vec<u8>>,
    pinned: Option<(Pinned, Vec<u8>)>,
}

pub type Outcome = std::result::Result<(), String>;

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
        let (model, open) = (BTreeMap::new(), BTreeMap::new());
        let (bases, snapshots) = (BTreeMap::new(), BTreeMap::new());
        let mut world = World { dir, pool: None, _names: None, model, open, bases, snapshots, pinned: None };
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
        self.model.insert(name, Contents::default());
        self.bases.remove(&name);
        Ok(volume)
    }

    pub fn edit(&mut self, name: Name, edit: impl FnOnce(&mut Vec<u8>)) {
        edit(&mut self.model[&name].0.borrow_mut());
    }

    pub fn bytes(&self, name: Name) -> Vec<u8> {
        self.model[&name].0.borrow().clone()
    }

    pub fn apply(&mut self, op: &Op) -> Outcome {
        let has = |world: &World, name: &Name| world.model.contains_key(name);
        match op {
            Op::Create(name) if !has(self, name) => self.create(*name).map(drop),
            Op::Write { name, offset, len, byte } if has(self, name) => {
                let data: Vec<u8> = (0..*len).map(|i| byte.wrapping_add((i / 512) as u8).max(1)).collect();
                self.volume(*name)?.write(*offset, &data).map_err(text)?;
                self.edit(*name, |bytes| put(bytes, *offset, &data));
                Ok(())
            }
            Op::Sync(name) if has(self, name) => self.volume(*name)?.sync(true).map_err(text),
            Op::SetSize { name, size } if has(self, name) => {
                self.volume(*name)?.set_size(*size).map_err(text)?;
                self.edit(*name, |bytes| bytes.resize(*size as usize, 0));
                Ok(())
            }
            Op::Punch { name, offset, len } if has(self, name) && *len > 0 => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                self.volume(*name)?.allocate(mode, *offset, *len).map_err(text)?;
                self.edit(*name, |bytes| wipe(bytes, *offset, *len));
                Ok(())
            }
            Op::Zero { name, offset, len, keep_size } if has(self, name) && *len > 0 => {
                let mode = libc::FALLOC_FL_ZERO_RANGE | if *keep_size { libc::FALLOC_FL_KEEP_SIZE } else { 0 };
                match self.volume(*name)?.allocate(mode, *offset, *len) {
                    // tmpfs cannot, for a plain file.
                    Err(e) if e.errno() == libc::EOPNOTSUPP => return Ok(()),
                    other => other.map_err(text)?,
                }
                self.edit(*name, |bytes| {
                    wipe(bytes, *offset, *len);
                    grow(bytes, if *keep_size { 0 } else { offset + len });
                });
                Ok(())
            }
            Op::Reserve { name, offset, len, keep_size } if has(self, name) && *len > 0 => {
                let mode = if *keep_size { libc::FALLOC_FL_KEEP_SIZE } else { 0 };
                self.volume(*name)?.allocate(mode, *offset, *len).map_err(text)?;
                self.edit(*name, |bytes| grow(bytes, if *keep_size { 0 } else { offset + len }));
                Ok(())
            }
            Op::Clone { from, to, grow, live } if has(self, from) && !has(self, to) => {
                self.set_writer(*from, *live)?;
                let source = self.volume(*from)?;
                let target = self.create(*to)?;
                let size = Some(self.bytes(*from).len() as u64 + grow);
                let options = CloneOptions { size, ..CloneOptions::default() };
                self.pool().clone_volume(&source, &target, &options).map_err(text)?;
                let mut bytes = self.bytes(*from);
                bytes.resize(bytes.len() + *grow as usize, 0);
                self.bases.insert(*to, bytes.clone());
                self.edit(*to, |b| *b = bytes);
                Ok(())
            }
            Op::CopyRange { from, to, offset, to_offset, len } if has(self, from) && has(self, to) && from != to => {
                if std::rc::Rc::ptr_eq(&self.model[from].0, &self.model[to].0) {
                    return Ok(());
                }
                self.copy_range(*from, *offset, *to, *to_offset, *len)
            }
            Op::CopyByPieces { from, to, piece, skip, preset_size } if has(self, from) && !has(self, to) => {
                self.copy_by_pieces(*from, *to, *piece, *skip, *preset_size)
            }
            Op::Pin(name) if has(self, name) => {
                let volume = self.volume(*name)?;
                match self.pool().pin(&volume) {
                    Ok(pinned) => self.pinned = Some((pinned, self.bytes(*name))),
                    // A file of several names cannot be held.
                    Err(e) if e.errno() == libc::EOPNOTSUPP => {}
                    Err(e) => return Err(text(e)),
                }
                Ok(())
            }
            Op::Unpin => {
                self.pinned = None;
                Ok(())
            }
            Op::Fill { name, bytes } if has(self, name) => self.fill(*name, *bytes),
            Op::Adopt(name) if has(self, name) => {
                let volume = self.volume(*name)?;
                self.pool().adopt_parent(&volume, &|| false).map(drop).map_err(text)
            }
            Op::AdoptFrozen => {
                let ids: Vec<Id> = self.pool().store().catalogue().layers().map(|l| l.id).collect();
                for id in ids {
                    if let Some(layer) = self.pool().frozen_layer(id).map_err(text)? {
                        self.pool().adopt_frozen(&layer, &|| false).map_err(text)?;
                    }
                }
                Ok(())
            }
            Op::Finish(name) if has(self, name) => {
                let volume = self.volume(*name)?;
                self.pool().finish(&volume).map(drop).map_err(text)
            }
            Op::Remove(name) if has(self, name) => self.remove(*name),
            Op::Rename { from, to } if has(self, from) && from != to => self.rename(*from, *to),
            Op::Link { from, to } if has(self, from) && !has(self, to) => {
                let volume = self.volume(*from)?;
                self.pool().before_link(&volume).map_err(text)?;
                self.pool().fs().link(&file_name(*from), &file_name(*to)).map_err(text)?;
                let contents = self.model[from].clone();
                self.model.insert(*to, contents);
                self.bases.remove(to);
                self.bases.get(from).cloned().map(|base| self.bases.insert(*to, base));
                Ok(())
            }
            Op::Group { from, to } => {
                let there = from.iter().all(|name| has(self, name)) && from[0] != from[1];
                let free = to[0] != to[1] && !to.iter().any(|name| has(self, name));
                if there && free { self.group(*from, *to) } else { Ok(()) }
            }
            Op::Snapshot(names) => {
                let fresh = |name: &Name| has(self, name) && !self.snapshots.contains_key(name);
                let twice = names.len() == 2 && names[0] == names[1];
                if names.iter().all(fresh) && !twice { self.snapshot(names) } else { Ok(()) }
            }
            Op::RemoveSnapshot(name) if self.snapshots.contains_key(name) => self.remove_snapshot(*name),
            Op::Rollback(name) if has(self, name) && self.snapshots.contains_key(name) => self.roll_back(*name),
            Op::Reset(name) if has(self, name) => self.reset(*name),
            Op::Flush => self.pool().flush().map_err(text),
            Op::Reap => self.pool().reap_dead().map_err(text),
            Op::Remount => self.remount(true),
            Op::KillAndRemount => self.remount(false),
            _ => Ok(()),
        }
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
        let bytes = self.bytes(from);
        let start = (offset as usize).min(bytes.len());
        let end = ((offset + len) as usize).min(bytes.len());
        if done != (end - start) as u64 {
            return Err(format!("copied {done} bytes of {}", end - start));
        }
        if start < end {
            self.edit(to, |b| put(b, to_offset, &bytes[start..end]));
        }
        Ok(())
    }

    fn copy_by_pieces(&mut self, from: Name, to: Name, piece: u64, skip: u64, preset_size: bool) -> Outcome {
        let size = self.bytes(from).len() as u64;
        let target = self.create(to)?;
        if preset_size {
            target.set_size(size).map_err(text)?;
            self.edit(to, |b| b.resize(size as usize, 0));
        }
        let mut at = 0;
        let mut number = 0;
        while at < size {
            // As for a file with holes: some pieces are left out.
            if skip == 0 || number % 4 != skip - 1 {
                self.copy_range(from, at, to, at, piece.min(size - at))?;
            }
            at += piece;
            number += 1;
        }
        target.set_size(size).map_err(text)?;
        self.edit(to, |b| b.resize(size as usize, 0));
        Ok(())
    }

    fn fill(&mut self, name: Name, most: u64) -> Outcome {
        let volume = self.volume(name)?;
        let trust_holes = self.pool().trusts_holes();
        let gate = volume.gate().read();
        if let State::Overlay(overlay) = &*gate {
            overlay.fill_absent(0, &Filling { most, share: false, trust_holes }).map_err(text)?;
        }
        Ok(())
    }

    fn remove(&mut self, name: Name) -> Outcome {
        let pool = self.pool();
        let key = pool.fs().stat(&file_name(name)).map_err(text)?.key;
        pool.fs().unlink(&file_name(name)).map_err(text)?;
        self.model.remove(&name);
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
        let contents = self.model.remove(&from).expect("the caller looked");
        self.model.insert(to, contents);
        self.bases.remove(&to);
        self.bases.remove(&from).map(|base| self.bases.insert(to, base));
        Ok(())
    }

    /// Ends the daemon and starts another. Without a goodbye everything synced must be there; so it is synced first,
    /// as the model knows no other way to tell what may be lost.
    fn remount(&mut self, goodbye: bool) -> Outcome {
        self.pinned = None;
        if goodbye {
            for name in self.open.keys().copied().collect::<Vec<_>>() {
                self.close(name);
            }
            self.pool().shutdown().map_err(text)?;
        } else {
            self.pool().flush().map_err(text)?;
            self.open.clear();
        }
        (self.pool, self._names) = (None, None);
        let fs: Arc<dyn Fs> = Arc::new(HostFs::open_dir(self.dir.path()).map_err(text)?);
        let report = clonefs::pool::check::check(&fs).map_err(text)?;
        if !report.problems.is_empty() {
            return Err(format!("check finds {:?}", report.problems));
        }
        drop(fs);
        self.mount()
    }

    /// Every volume has the model's bytes, through an open handle.
    pub fn compare(&mut self) -> Outcome {
        for name in self.model.keys().copied().collect::<Vec<_>>() {
            let volume = self.volume(name)?;
            let expect = self.bytes(name);
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
            check_holes(&volume, &expect).map_err(|why| format!("v{name}: {why}"))?;
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
            for name in self.model.keys().copied().collect::<Vec<_>>() {
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
        let linked = self.model.values().any(|c| std::rc::Rc::strong_count(&c.0) > 1);
        self.remount(true)?;
        self.compare()?;
        for name in self.open.keys().copied().collect::<Vec<_>>() {
            self.close(name);
        }
        self.pool().shutdown().map_err(text)?;
        if linked {
            return Ok(());
        }
        for (name, contents) in &self.model {
            let bytes = std::fs::read(self.dir.path().join(file_name(*name))).map_err(text)?;
            differ(&format!("the plain file v{name}"), &bytes, &contents.0.borrow())?;
            let attribute = self.pool().fs().get_xattr(&file_name(*name), &OsString::from("user.clonefs.stub"));
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

fn put(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    grow(bytes, offset + data.len() as u64);
    bytes[offset as usize..offset as usize + data.len()].copy_from_slice(data);
}

fn grow(bytes: &mut Vec<u8>, len: u64) {
    if bytes.len() < len as usize {
        bytes.resize(len as usize, 0);
    }
}

fn wipe(bytes: &mut [u8], offset: u64, len: u64) {
    let end = ((offset + len) as usize).min(bytes.len());
    if (offset as usize) < end {
        bytes[offset as usize..end].fill(0);
    }
}

pub fn differ(what: &str, got: &[u8], expect: &[u8]) -> Outcome {
    if got.len() != expect.len() {
        return Err(format!("{what} has {} bytes instead of {}", got.len(), expect.len()));
    }
    match got.iter().zip(expect).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => Err(format!("{what} has {:#04x} instead of {:#04x} at byte {at}", got[at], expect[at])),
    }
}

/// Whatever the volume calls a hole must be zeros.
fn check_holes(volume: &Volume, expect: &[u8]) -> Outcome {
    use clonefs::io::Whence;
    let mut at = 0;
    while at < expect.len() as u64 {
        let data = match volume.seek(at, Whence::Data) {
            Ok(data) => data,
            Err(e) if e.errno() == libc::ENXIO => expect.len() as u64,
            Err(e) => return Err(text(e)),
        };
        if let Some(bad) = expect[at as usize..data as usize].iter().position(|b| *b != 0) {
            return Err(format!("byte {} is called a hole, but is not zero", at as usize + bad));
        }
        if data == expect.len() as u64 {
            break;
        }
        at = volume.seek(data, Whence::Hole).map_err(text)?;
        if at <= data {
            return Err(format!("the hole after byte {data} is at {at}"));
        }
    }
    Ok(())
}
