//! The pool under test on a simulated disk, and the model beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use clonefs::io::{Fs, Open, Rename};
use clonefs::pool::{CloneOptions, Member, Names, Pool, PoolOptions};
use clonefs::units::Id;
use clonefs::volume::fill::Filling;
use clonefs::volume::{State, Volume};

use super::model::{Found, Model};
use super::ops::{Name, Op};
use crate::common::names::Finder;
use crate::common::simfs::SimFs;

/// The snapshot of volume n goes by this and n.
pub const SNAPSHOT: Name = 20;

/// Size of the base: large enough for ranges to be shared, with an odd end.
pub const SIZE: usize = (33 << 12) + 700;

pub type Outcome<T = ()> = Result<T, String>;

pub struct World {
    pub fs: Arc<SimFs>,
    pub pool: Arc<Pool>,
    names: Arc<dyn Names>,
    pub model: Model,
    /// Open handles, and whether they can write.
    open: BTreeMap<Name, (Arc<Volume>, bool)>,
    /// A sync of a file makes its name durable.
    sync_names: bool,
    serial: u64,
    /// A start that was tried, for those who make calls fail.
    pub opened: Option<(Arc<Pool>, Arc<dyn Names>)>,
}

/// Begins the message of an operation that gave wrong bytes and said that they are right.
pub const WRONG: &str = "WRONG BYTES";

fn difference(got: &[u8], expect: &[u8]) -> String {
    let at = got.iter().zip(expect).position(|(a, b)| a != b);
    format!("{} bytes of {}, which differ at {at:?}", got.len(), expect.len())
}

pub fn text<E: std::fmt::Display>(error: E) -> String {
    error.to_string()
}

pub fn file_name(name: Name) -> PathBuf {
    PathBuf::from(format!("v{name}.img"))
}

/// Bytes that are found nowhere else: each 8 of them say which write and which place.
pub fn pattern(serial: u64, offset: u64, len: usize) -> Vec<u8> {
    let word = |at: u64| (serial << 40 | at | 1 << 39).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (offset..offset + len as u64).map(|at| word(at / 8)[(at % 8) as usize]).collect()
}

/// Opens the pool of a filesystem, as a mount does.
pub fn serve(fs: &Arc<SimFs>) -> Outcome<(Arc<Pool>, Arc<dyn Names>)> {
    let fs: Arc<dyn Fs> = fs.clone();
    let options = PoolOptions { deepen_auto: false, ..PoolOptions::default() };
    let pool = Pool::open(fs.clone(), options).map_err(|e| format!("the pool does not open: {e}"))?;
    let names: Arc<dyn Names> = Arc::new(Finder(fs));
    let weak: Weak<dyn Names> = Arc::downgrade(&names);
    pool.set_names(weak);
    Ok((pool, names))
}

/// The snapshot that goes by a name.
pub fn snapshot_id(pool: &Arc<Pool>, name: Name) -> Option<Id> {
    pool.find_snapshot(&file_name(name.checked_sub(SNAPSHOT)?), "s")
}

/// The volume that goes by a name.
pub fn volume_of(pool: &Arc<Pool>, name: Name) -> Outcome<Arc<Volume>> {
    match snapshot_id(pool, name) {
        Some(id) => pool.volume_by_id(id).map_err(text)?.ok_or_else(|| format!("snapshot v{name} has no volume")),
        None => volume_at(pool, &file_name(name)),
    }
}

/// The volume at a name.
pub fn volume_at(pool: &Arc<Pool>, path: &Path) -> Outcome<Arc<Volume>> {
    let stat = pool.fs().stat(path).map_err(text)?;
    pool.volume(stat.key, path).map_err(text)
}

/// All of a volume's bytes.
pub fn contents(volume: &Volume) -> Outcome<Vec<u8>> {
    let size = volume.size().map_err(text)? as usize;
    let mut bytes = vec![0xaa; size + 10];
    let got = volume.read(0, &mut bytes).map_err(text)?;
    if got != size {
        return Err(format!("read {got} bytes of {size}"));
    }
    bytes.truncate(got);
    Ok(bytes)
}

/// Everything that users see.
pub fn look(pool: &Arc<Pool>) -> Outcome<Found> {
    let mut found = Found::new();
    for entry in pool.fs().list(Path::new("")).map_err(text)? {
        let name = entry.name.to_string_lossy().into_owned();
        let Some(number) = name.strip_prefix('v').and_then(|n| n.strip_suffix(".img")).and_then(|n| n.parse().ok())
        else {
            continue;
        };
        let path = file_name(number);
        let volume = volume_at(pool, &path).map_err(|e| format!("v{number}: {e}"))?;
        let bytes = contents(&volume).map_err(|e| format!("v{number}: {e}"))?;
        let stat = pool.fs().stat(&path).map_err(text)?;
        let shown = pool.describe(&path, stat).map_err(text)?.size;
        if shown != bytes.len() as u64 {
            return Err(format!("v{number} shows a size of {shown} and has {}", bytes.len()));
        }
        found.insert(number, bytes);
    }
    for number in 0..SNAPSHOT {
        if snapshot_id(pool, SNAPSHOT + number).is_some() {
            let volume = volume_of(pool, SNAPSHOT + number)?;
            found.insert(SNAPSHOT + number, contents(&volume).map_err(|e| format!("snapshot of v{number}: {e}"))?);
        }
    }
    Ok(found)
}

/// One step of deepening, of `most` bytes.
pub fn fill(pool: &Pool, volume: &Arc<Volume>, most: u64) -> clonefs::error::Result<bool> {
    let how = Filling { most, share: pool.can_share(), trust_holes: pool.trusts_holes() };
    let filled = {
        let gate = volume.gate().read();
        let State::Overlay(overlay) = &*gate else { return Ok(true) };
        overlay.fill_absent(0, &how)?
    };
    if filled.next.is_some() {
        volume.sync(true)?;
    }
    Ok(filled.next.is_none())
}

impl World {
    /// A pool with one plain file, durable.
    pub fn new(fs: Arc<SimFs>, sync_names: bool) -> Outcome<World> {
        let file = fs.open(&file_name(0), Open::CreateNew(0o640)).map_err(text)?;
        let bytes = pattern(0, 0, SIZE);
        file.write_at(&bytes, 0).map_err(text)?;
        file.set_xattr(&"user.keep".into(), b"me", 0).map_err(text)?;
        drop(file);
        fs.sync_fs().map_err(text)?;
        let (pool, names) = serve(&fs)?;
        let mut model = Model::default();
        let number = model.create(0, vec![bytes]);
        model.synced(number, true);
        model.synced_names();
        model.acknowledged();
        Ok(World { fs, pool, names, model, open: BTreeMap::new(), sync_names, serial: 1, opened: None })
    }

    /// The volume of a name, open for writing; it stays open, as a VM's disk does.
    pub fn volume(&mut self, name: Name) -> Outcome<Arc<Volume>> {
        self.open(name, true)
    }

    fn open(&mut self, name: Name, write: bool) -> Outcome<Arc<Volume>> {
        if let Some((volume, writes)) = self.open.get_mut(&name) {
            if write && !*writes {
                volume.open_handle(true);
                volume.close_handle(false);
                *writes = true;
            }
            return Ok(volume.clone());
        }
        let volume = volume_of(&self.pool, name)?;
        volume.open_handle(write);
        self.open.insert(name, (volume.clone(), write));
        Ok(volume)
    }

    fn close(&mut self, name: Name) {
        if let Some((volume, write)) = self.open.remove(&name) {
            volume.close_handle(write);
        }
    }

    /// Does `op`. The model knows what is under way before the pool is asked; [`World::acknowledge`] says it is done.
    /// `false`: it makes no sense now.
    pub fn apply(&mut self, op: Op) -> Outcome<bool> {
        let has = |name: Name| self.model.get(name).is_some();
        let possible = match op {
            Op::Clone(from, to) | Op::CloneDurably(from, to) | Op::CopyRange(from, to) => has(from) && !has(to),
            Op::Rename(from, to) => has(from) && from != to,
            Op::CloneOver(from, to) => has(from) && has(to),
            Op::Group => has(0) && has(1) && !has(6) && !has(7),
            Op::Snapshot(n) => has(n) && !has(SNAPSHOT + n),
            Op::SnapshotGroup => has(0) && has(1) && !has(SNAPSHOT) && !has(SNAPSHOT + 1),
            Op::RemoveSnapshot(n) => has(SNAPSHOT + n),
            Op::Rollback(n) => has(n) && has(SNAPSHOT + n),
            Op::Reset(n) => self.model.get(n).is_some_and(|number| self.model.volumes[number].base.is_some()),
            Op::AdoptFrozen | Op::Keep | Op::SyncDir | Op::Checkpoint | Op::Kill => true,
            Op::Close(name) => self.open.contains_key(&name),
            Op::Write(n) | Op::Append(n) | Op::Fsync(n) | Op::Fill(n) | Op::Adopt(n) | Op::Finish(n) => has(n),
            Op::Punch(n) | Op::Shrink(n) | Op::Grow(n) | Op::Unlink(n) | Op::Read(n) | Op::Export(n) => has(n),
        };
        if possible {
            self.perform(op)?;
        }
        Ok(possible)
    }

    fn perform(&mut self, op: Op) -> Outcome {
        let pool = self.pool.clone();
        match op {
            Op::Write(name) => self.write(name, 3000, 9000),
            Op::Append(name) => {
                let end = self.model.now(name).expect("it is there").len() as u64;
                self.write(name, end + 1000, 6000)
            }
            Op::Fsync(name) => {
                let volume = self.volume(name)?;
                volume.sync(false).map_err(text)?;
                if self.sync_names { Ok(()) } else { pool.fs().sync_dir(Path::new("")).map_err(text) }
            }
            Op::Clone(from, to) => self.clone(from, to, false),
            Op::CloneDurably(from, to) => self.clone(from, to, true),
            Op::CloneOver(from, to) => self.clone_over(from, to),
            Op::Group => self.group(),
            Op::Snapshot(name) => self.snapshot(&[name]),
            Op::SnapshotGroup => self.snapshot(&[0, 1]),
            Op::RemoveSnapshot(name) => {
                let id = snapshot_id(&pool, SNAPSHOT + name).ok_or("it is not there")?;
                self.model.unlink(SNAPSHOT + name);
                pool.remove_snapshot(id).map_err(text)?;
                self.close(SNAPSHOT + name);
                pool.reap_dead().map_err(text)
            }
            Op::Rollback(name) => {
                let id = snapshot_id(&pool, SNAPSHOT + name).ok_or("it is not there")?;
                let past = self.model.now(SNAPSHOT + name).expect("it is there").clone();
                self.edit(name, |bytes| *bytes = past);
                let volume = volume_at(&pool, &file_name(name))?;
                self.close(name);
                pool.roll_back(&volume, id).map_err(text)
            }
            Op::Reset(name) => self.reset(name),
            Op::Fill(name) => fill(&pool, &self.open(name, false)?, 16 << 10).map(drop).map_err(text),
            Op::Adopt(name) => pool.adopt_parent(&self.open(name, false)?, &|| false).map(drop).map_err(text),
            Op::AdoptFrozen => adopt_frozen(&pool),
            Op::Finish(name) => {
                let volume = self.open(name, false)?;
                while !fill(&pool, &volume, 1 << 20).map_err(text)? {}
                pool.finish(&volume).map(drop).map_err(text)
            }
            Op::Punch(name) => {
                self.edit(name, |bytes| {
                    let end = bytes.len().min(30_000);
                    bytes[10_000.min(end)..end].fill(0)
                });
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                self.volume(name)?.allocate(mode, 10_000, 20_000).map_err(text)
            }
            Op::Shrink(name) => {
                let to = (self.model.now(name).expect("it is there").len() / 2) as u64;
                self.edit(name, |bytes| bytes.truncate(to as usize));
                self.volume(name)?.set_size(to).map_err(text)
            }
            Op::Grow(name) => {
                let to = self.model.now(name).expect("it is there").len() + 50_000;
                self.edit(name, |bytes| bytes.resize(to, 0));
                self.volume(name)?.set_size(to as u64).map_err(text)
            }
            Op::Unlink(name) => {
                let key = pool.fs().stat(&file_name(name)).map_err(text)?.key;
                self.model.unlink(name);
                pool.fs().unlink(&file_name(name)).map_err(text)?;
                pool.removed(key);
                self.close(name);
                pool.reap_dead().map_err(text)
            }
            Op::Rename(from, to) => self.rename(from, to),
            Op::CopyRange(from, to) => self.copy(from, to),
            Op::Keep => {
                pool.reap_dead().map_err(text)?;
                pool.flush().map_err(text)
            }
            Op::SyncDir => pool.fs().sync_dir(Path::new("")).map_err(text),
            Op::Close(name) => {
                self.close(name);
                Ok(())
            }
            Op::Kill => self.kill(),
            Op::Checkpoint => pool.store().checkpoint().map_err(text),
            Op::Read(name) => {
                let got = contents(&*self.open(name, false)?)?;
                self.expect(name, &got, "read")
            }
            Op::Export(name) => {
                let pinned = pool.pin(&self.open(name, false)?).map_err(text)?;
                let mut got = vec![0xaa; pinned.size() as usize];
                pinned.read(0, &mut got).map_err(text)?;
                self.expect(name, &got, "export")
            }
        }
    }

    /// The bytes that an operation gave must be the volume's, whatever else went wrong.
    fn expect(&self, name: Name, got: &[u8], what: &str) -> Outcome {
        let now = self.model.now(name).expect("it is there");
        if got == &now[..] { Ok(()) } else { Err(format!("{WRONG}: {what} of v{name}: {}", difference(got, now))) }
    }

    /// Notes that the operation returned.
    pub fn acknowledge(&mut self, op: Op) {
        match op {
            Op::Fsync(name) | Op::CloneDurably(_, name) => {
                let number = self.model.get(name).expect("it was just synced");
                self.model.synced(number, self.sync_names);
                if op == Op::Fsync(name) && !self.sync_names {
                    self.model.synced_names();
                }
            }
            Op::Group => {
                for name in [6, 7] {
                    let number = self.model.get(name).expect("it was just made");
                    self.model.synced(number, true);
                }
            }
            Op::Snapshot(_) | Op::SnapshotGroup => {
                for name in [0, 1, 2].map(|name| SNAPSHOT + name) {
                    self.model.get(name).inspect(|number| self.model.synced(*number, true));
                }
            }
            Op::Rollback(name) => {
                let number = self.model.get(name).expect("it is there");
                self.model.synced(number, self.sync_names);
            }
            Op::SyncDir => self.model.synced_names(),
            _ => {}
        }
        self.model.acknowledged();
    }

    /// All volumes have what the model says, now.
    pub fn compare(&mut self) -> Outcome {
        for name in self.model.present() {
            let volume = self.open(name, false)?;
            let got = contents(&volume).map_err(|e| format!("v{name}: {e}"))?;
            let expect = self.model.now(name).expect("it is there");
            if &got != expect {
                return Err(format!("v{name}: {}", difference(&got, expect)));
            }
        }
        Ok(())
    }

    /// Closes every handle.
    pub fn close_all(&mut self) {
        let names: Vec<Name> = self.open.keys().copied().collect();
        names.into_iter().for_each(|name| self.close(name));
    }

    /// What was not synced may be lost; what is there afterwards is what users see from then on.
    fn kill(&mut self) -> Outcome {
        self.restart(true)
    }

    /// Starts again on what there is, after the daemon's death or, unless `killed`, a crash of the machine.
    pub fn restart(&mut self, killed: bool) -> Outcome {
        self.open.clear();
        (self.pool, self.names) = serve(&self.fs)?;
        let found = look(&self.pool)?;
        self.model.explains(&found, killed)?;
        for (name, bytes) in found {
            if let Some(number) = self.model.get(name) {
                self.model.volumes[number].push(bytes);
            }
        }
        Ok(())
    }

    fn edit(&mut self, name: Name, edit: impl FnOnce(&mut Vec<u8>)) {
        let number = self.model.get(name).expect("it is there");
        let mut bytes = self.model.volumes[number].now().clone();
        edit(&mut bytes);
        self.model.volumes[number].push(bytes);
    }

    fn write(&mut self, name: Name, offset: u64, len: usize) -> Outcome {
        let data = pattern(self.serial, offset, len);
        self.serial += 1;
        self.edit(name, |bytes| put(bytes, offset as usize, &data));
        self.volume(name)?.write(offset, &data).map_err(text)
    }

    fn create(&mut self, name: Name) -> Outcome<Arc<Volume>> {
        let file = self.pool.fs().open(&file_name(name), Open::CreateNew(0o644)).map_err(text)?;
        let volume = self.pool.created(&file_name(name), file).map_err(text)?;
        volume.open_handle(true);
        self.open.insert(name, (volume.clone(), true));
        Ok(volume)
    }

    fn clone(&mut self, from: Name, to: Name, sync: bool) -> Outcome {
        let versions = self.model.volumes[self.model.get(from).expect("it is there")].versions.clone();
        let source = self.open(from, false)?;
        let number = self.model.create(to, versions);
        self.model.volumes[number].base = Some(self.model.volumes[number].now().clone());
        let target = self.create(to)?;
        let options = CloneOptions { sync, ..CloneOptions::default() };
        self.pool.clone_volume(&source, &target, &options).map_err(text)
    }

    fn group(&mut self) -> Outcome {
        let mut members = Vec::new();
        for (from, to) in [(0, 6), (1, 7)] {
            // Durable before it is there at all, so it can be nothing but what the source is now.
            let now = self.model.now(from).expect("it is there").clone();
            let source = self.open(from, false)?;
            let number = self.model.create(to, vec![now.clone()]);
            self.model.volumes[number].base = Some(now);
            self.model.group.push(number);
            members.push(Member { source, target: self.create(to)?, options: CloneOptions::default() });
        }
        self.pool.clone_group(&members).map_err(text)
    }

    fn snapshot(&mut self, names: &[Name]) -> Outcome {
        let mut volumes = Vec::new();
        for name in names {
            let now = self.model.now(*name).expect("it is there").clone();
            volumes.push((self.open(*name, false)?, file_name(*name)));
            let number = self.model.create(SNAPSHOT + name, vec![now]);
            // Never seen half made.
            self.model.volumes[number].fresh = false;
            self.model.group.push(number);
        }
        self.pool.create_snapshots(&volumes, "s", None).map_err(text)
    }

    fn reset(&mut self, name: Name) -> Outcome {
        let number = self.model.get(name).expect("it is there");
        let base = self.model.volumes[number].base.clone().expect("it is a clone");
        let now = self.model.now(name).expect("it is there").clone();
        self.edit(name, |bytes| *bytes = base);
        let volume = volume_at(&self.pool, &file_name(name))?;
        self.close(name);
        match self.pool.reset(&volume, None) {
            // It does not read from that any more.
            Err(e) if e.errno() == libc::EOPNOTSUPP => {
                self.edit(name, |bytes| *bytes = now);
                Ok(())
            }
            other => other.map_err(text),
        }
    }

    fn clone_over(&mut self, from: Name, to: Name) -> Outcome {
        let (source, target) = (self.open(from, false)?, self.volume(to)?);
        self.edit(to, Vec::clear);
        target.set_size(0).map_err(text)?;
        for version in self.model.volumes[self.model.get(from).expect("it is there")].versions.clone() {
            self.edit(to, |bytes| *bytes = version);
        }
        // A reset goes back to this clone from now on.
        let number = self.model.get(to).expect("it is there");
        self.model.volumes[number].base = Some(self.model.volumes[number].now().clone());
        self.pool.clone_volume(&source, &target, &CloneOptions::default()).map_err(text)
    }

    fn rename(&mut self, from: Name, to: Name) -> Outcome {
        let pool = self.pool.clone();
        let there = match pool.fs().stat(&file_name(to)) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => None,
            other => Some(other.map_err(text)?.key),
        };
        self.model.rename(from, to);
        pool.fs().rename(&file_name(from), &file_name(to), Rename::Replace).map_err(text)?;
        if let Some(key) = there {
            pool.removed(key);
        }
        self.close(to);
        if let Some(handle) = self.open.remove(&from) {
            handle.0.set_path(&file_name(to));
            self.open.insert(to, handle);
        }
        pool.reap_dead().map_err(text)
    }

    fn copy(&mut self, from: Name, to: Name) -> Outcome {
        let source_number = self.model.get(from).expect("it is there");
        let source = self.open(from, false)?;
        let number = self.model.create(to, vec![Vec::new()]);
        let target = self.create(to)?;
        let size = self.model.volumes[source_number].now().len() as u64;
        let mut at = 0;
        while at < size {
            let len = (size - at).min(128 << 10);
            // What is shared is what the source will have after a crash.
            for version in self.model.volumes[source_number].versions.clone() {
                let mut bytes = self.model.volumes[number].now().clone();
                let part =
                    |v: &[u8]| v.get(at as usize..((at + len) as usize).min(v.len())).unwrap_or_default().to_vec();
                put(&mut bytes, at as usize, &part(&version));
                bytes.resize((at + len) as usize, 0);
                self.model.volumes[number].push(bytes);
            }
            let done = self.pool.copy_range(&source, at, &target, at, len).map_err(text)?;
            if done != len {
                return Err(format!("copied {done} bytes of {len}"));
            }
            at += len;
        }
        Ok(())
    }
}

fn adopt_frozen(pool: &Arc<Pool>) -> Outcome {
    let ids: Vec<Id> = pool.store().catalogue().layers().map(|l| l.id).collect();
    for id in ids {
        if let Some(layer) = pool.frozen_layer(id).map_err(text)? {
            pool.adopt_frozen(&layer, &|| false).map_err(text)?;
        }
    }
    Ok(())
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if bytes.len() < offset + data.len() {
        bytes.resize(offset + data.len(), 0);
    }
    bytes[offset..offset + data.len()].copy_from_slice(data);
}
