//! The pool under test on a simulated disk, and the model beside it.

mod steps;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use clonefs::engine::io::{Fs, Open};
use clonefs::engine::pool::{Names, Pool};
use clonefs::engine::volume::{State, Volume};

use self::steps::adopt_frozen;
use super::model::Model;
use super::ops::{Name, Op};
use super::served::{
    Outcome, SNAPSHOT, contents, file_name, fill, look, pattern, serve, snapshot_id, text, volume_at, volume_of,
};
use super::simfs::SimFs;

/// Size of the base: large enough for ranges to be shared, with an odd end.
pub const SIZE: usize = (33 << 12) + 700;

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
            Op::Clone(from, to) | Op::CloneDurably(from, to) => has(from) && !has(to),
            Op::CopyRange(from, to) => has(from) && !has(to),
            Op::Zeros(name) => !has(name),
            Op::Rename(from, to) => has(from) && !self.model.same(from, to),
            Op::CloneOver(from, to) => has(from) && has(to) && !self.model.same(from, to) && !self.has_links(to),
            Op::CopyInto(from, to) => has(from) && has(to) && !self.model.same(from, to),
            Op::Link(from, to) => has(from) && !has(to) && self.is_overlay(from),
            Op::Group => has(0) && has(1) && !has(6) && !has(7) && !self.model.same(0, 1),
            Op::Snapshot(n) => has(n) && !has(SNAPSHOT + n),
            Op::SnapshotGroup => has(0) && has(1) && !has(SNAPSHOT) && !has(SNAPSHOT + 1) && !self.model.same(0, 1),
            Op::RemoveSnapshot(n) => has(SNAPSHOT + n),
            Op::Rollback(n) => has(n) && has(SNAPSHOT + n),
            Op::Reset(n) => self.model.get(n).is_some_and(|number| self.model.volumes[number].base.is_some()),
            Op::AdoptFrozen | Op::Keep | Op::SyncDir | Op::Checkpoint | Op::Stick | Op::Kill => true,
            Op::Close(name) => self.open.contains_key(&name),
            Op::Write(n) | Op::Append(n) | Op::Fsync(n) | Op::Fill(n) | Op::Adopt(n) | Op::Finish(n) => has(n),
            Op::Extend(n) | Op::Blank(n) | Op::Span(n) => has(n),
            Op::Punch(n) | Op::Shrink(n) | Op::Grow(n) | Op::Unlink(n) | Op::Read(n) | Op::Export(n) => has(n),
        };
        if possible {
            self.perform(op)?;
        }
        Ok(possible)
    }

    fn is_overlay(&self, name: Name) -> bool {
        volume_of(&self.pool, name).is_ok_and(|volume| matches!(&*volume.gate().read(), State::Overlay(_)))
    }

    /// Closes a volume by whatever name it is open.
    fn close_links(&mut self, name: Name) {
        let names: Vec<Name> = self.model.present().into_iter().filter(|other| self.model.same(name, *other)).collect();
        names.into_iter().for_each(|name| self.close(name));
    }

    /// Whether a name is one of several.
    fn has_links(&self, name: Name) -> bool {
        self.model.present().into_iter().any(|other| other != name && self.model.same(name, other))
    }

    fn perform(&mut self, op: Op) -> Outcome {
        let pool = self.pool.clone();
        match op {
            Op::Write(name) => self.write(name, 3000, 9000),
            Op::Append(name) => {
                let end = self.model.now(name).expect("it is there").len() as u64;
                self.write(name, end + 1000, 6000)
            }
            Op::Extend(name) => {
                let end = self.model.now(name).expect("it is there").len() as u64;
                self.write(name, end + 20_000, 9000)
            }
            Op::Blank(name) => self.blank(name),
            Op::CopyInto(from, to) => self.copy_into(from, to),
            Op::Link(from, to) => self.link(from, to),
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
                self.close_links(name);
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
            Op::Zeros(name) => self.zeros(name),
            Op::Span(name) => self.write(name, 5000, 40_000),
            Op::Keep => {
                pool.reap_dead().map_err(text)?;
                pool.flush().map_err(text)
            }
            Op::SyncDir => pool.fs().sync_dir(Path::new("")).map_err(text),
            Op::Close(name) => {
                self.close(name);
                Ok(())
            }
            Op::Stick => {
                self.fs.options(|options| options.stuck = true);
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
}
