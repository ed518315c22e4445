//! Snapshots: volumes that never change, whose stub lies in `.clonefs/snapshots` and not in the tree.
//!
//! A snapshot is a clone in all but its place: a record that reads a frozen layer and has no data of its own, and a stub
//! that carries owner, mode, ACL and attributes as they were. So whatever is true of clones (who reads which layer, what
//! may be adopted, what a crash leaves) is true of snapshots, and nothing has to be made true twice.
//!
//! | crash after | what is found |
//! |---|---|
//! | the stub is made and linked | files that no record names: removed |
//! | the record | the snapshot |
//! | the record has lost its name (removal) | a stub that no named snapshot has: removed, and then its volume is |

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::group::Taken;
use super::settle::MANY;
use super::{Pool, stub};
use crate::engine::events::{Event, What};
use crate::engine::io::{File, FileKey, Open, Timestamp};
use crate::engine::store::record::{Change, Deepening, Snapshot, VolumeRecord};
use crate::engine::store::{DIR, SNAPSHOTS, STUBS, new_id, snapshot_path, stub_path};
use crate::engine::volume::Volume;
use crate::error::{Context, Error, Kind, Result};
use crate::units::Id;

/// Where snapshots are seen: a directory below the root of the mount.
pub const NAME: &str = ".snapshots";
/// The attribute with a program's capabilities.
pub(super) const CAPABILITY: &str = "security.capability";
/// Longest name of a file in bytes.
const NAME_MAX: usize = 255;

/// A stub of a snapshot that no record names yet; removed when this is dropped.
struct Prepared<'a> {
    pool: &'a Pool,
    record: VolumeRecord,
    key: FileKey,
    done: bool,
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        if !self.done {
            let _ = self.pool.env.fs.unlink(&stub_path(self.record.id));
            let _ = self.pool.env.fs.unlink(&snapshot_path(self.record.id));
        }
    }
}

impl Pool {
    /// Makes a snapshot called `name` of each of these volumes, which are at these paths: all of one moment, all durable
    /// when it returns, all or none. `scheduled`: a schedule asked for them, at this
    /// time in seconds since the epoch, and [`Pool::prune_snapshots`] may remove them.
    pub fn create_snapshots(
        self: &Arc<Self>,
        volumes: &[(Arc<Volume>, PathBuf)],
        name: &str,
        scheduled: Option<i64>,
    ) -> Result<()> {
        let new = |(volume, path): &(Arc<Volume>, PathBuf)| {
            let snapshot = new_snapshot(path, name, scheduled)?;
            Ok(Snapshot { directory: self.mark_above(volume, path), ..snapshot })
        };
        let snapshots = volumes.iter().map(new).collect::<Result<Vec<_>>>()?;
        self.check_place()?;
        snapshots.iter().try_for_each(|snapshot| self.check_free(snapshot))?;
        let mut sources: Vec<Arc<Volume>> = volumes.iter().map(|(volume, _)| volume.clone()).collect();
        sources.sort_by_key(|volume| volume.serial);
        sources.dedup_by_key(|volume| volume.serial);
        let taken = self.take_group(&sources)?;
        self.ensure_snapshots()?;
        let mut made = Vec::with_capacity(volumes.len());
        for ((volume, _), snapshot) in volumes.iter().zip(snapshots) {
            let taken = &taken[sources.partition_point(|source| source.serial < volume.serial)];
            made.push(self.prepare_snapshot(volume, taken, snapshot)?);
        }
        self.sync_snapshots(made.len())?;
        let number = {
            let _ops = self.ops.lock();
            made.iter()
                .filter_map(|p| p.record.snapshot.as_ref())
                .try_for_each(|snapshot| self.check_free(snapshot))?;
            let mut changes = self.make_way(made.iter().filter_map(|p| p.record.snapshot.as_ref()));
            changes.extend(made.iter().map(|p| Change::Volume(p.record.clone())));
            self.env.store.commit(changes)?
        };
        let mut tables = self.tables.lock();
        for prepared in &mut made {
            prepared.done = true;
            tables.stubs.insert(prepared.key, prepared.record.id);
        }
        drop(tables);
        self.env.store.sync(number)?;
        for snapshot in made.iter().filter_map(|p| p.record.snapshot.as_ref()) {
            let event = Event::new(What::Snapshot, format!("{}@{}", snapshot.of, snapshot.name)).from(&snapshot.of);
            self.events.tell(if scheduled.is_some() { event.because("by schedule") } else { event });
        }
        Ok(())
    }

    /// A pool that has its own `.snapshots` could not show any.
    pub(crate) fn check_place(&self) -> Result<()> {
        match self.env.fs.stat(Path::new(NAME)) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Err(e) => Err(Error::io("look at", e).at(NAME)),
            Ok(_) => Err(Error::new(Kind::Exists, "make a snapshot")
                .at(NAME)
                .because("the pool has a file or directory of this name, where snapshots would be seen")
                .remedy("rename it")),
        }
    }

    /// Whether a name can be had. One that is left from a directory that had this one's name before makes way.
    fn check_free(&self, snapshot: &Snapshot) -> Result<()> {
        let other = |known: &Snapshot| known.directory != snapshot.directory;
        let known = |record: &VolumeRecord| record.snapshot.as_ref().is_none_or(other);
        if self.env.store.catalogue().snapshot(&snapshot.of, &snapshot.name).is_none_or(known) {
            return Ok(());
        }
        Err(Error::new(Kind::Exists, "make snapshot").at(format!("{}@{}", snapshot.of, snapshot.name)))
    }

    /// Gives numbers to those that have the names of new ones, and belong to a directory that is gone.
    fn make_way<'a>(&self, new: impl Iterator<Item = &'a Snapshot>) -> Vec<Change> {
        let catalogue = self.env.store.catalogue();
        let away = |snapshot: &Snapshot| {
            let record = catalogue.snapshot(&snapshot.of, &snapshot.name)?;
            let old = record.snapshot.clone()?;
            let mut numbered = (2..).map(|n| format!("{}-{n}", old.name));
            let name = numbered.find(|name| catalogue.snapshot(&old.of, name).is_none())?;
            let snapshot = Some(Snapshot { name, ..old });
            Some(Change::Volume(VolumeRecord { snapshot, ..record.clone() }))
        };
        new.filter_map(away).collect()
    }

    fn ensure_snapshots(&self) -> Result<()> {
        match self.env.fs.mkdir(Path::new(SNAPSHOTS), 0o700) {
            Ok(()) => self.env.fs.sync_dir(Path::new(DIR)).context("make directory", SNAPSHOTS),
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            Err(e) => Err(Error::io("make directory", e).at(SNAPSHOTS)),
        }
    }

    fn prepare_snapshot(&self, volume: &Volume, taken: &Taken, snapshot: Snapshot) -> Result<Prepared<'_>> {
        let id = new_id();
        let place = snapshot_path(id);
        let parent = taken.layer.as_ref().map(|layer| layer.id);
        let extent = (taken.visible, taken.size);
        let record = VolumeRecord::over(id, new_id(), parent, extent, place.to_string_lossy().into_owned());
        let origin = Some(snapshot.of.clone());
        let record = VolumeRecord { snapshot: Some(snapshot), deepening: Deepening::Never, origin, ..record };
        let pool = self.env.store.pool_id().ok_or_else(|| Error::new(Kind::Damaged, "make snapshot"))?;
        volume.settle_mtime();
        let file = self.env.fs.open(&place, Open::CreateNew(0o600)).context("make stub", &place)?;
        let mut prepared = Prepared { pool: self, record, key: FileKey { dev: 0, ino: 0 }, done: false };
        stub::describe(file.as_ref(), id, taken.size).context("write stub", &place)?;
        let copied = volume.with_file(|from| stub::copy_attributes(from.as_ref(), file.as_ref()));
        copied.context("copy attributes to stub", volume.path())?;
        drop_privileges(file.as_ref()).context("take privileges off", &place)?;
        stub::mark(file.as_ref(), pool, id)?;
        self.env.fs.link(&place, &stub_path(id)).context("link stub", stub_path(id))?;
        file.sync_all().context("sync stub", &place)?;
        prepared.key = file.stat().context("look at stub", &place)?.key;
        Ok(prepared)
    }

    /// The names of stubs are durable before a record names them.
    fn sync_snapshots(&self, count: usize) -> Result<()> {
        if count > MANY {
            return self.env.fs.sync_fs().context("sync filesystem", "");
        }
        for directory in [SNAPSHOTS, STUBS] {
            self.env.fs.sync_dir(Path::new(directory)).context("sync directory", directory)?;
        }
        Ok(())
    }

    /// Removes a snapshot. Its name is free at once; what it held comes free in the background, when the last reader of
    /// it is gone.
    pub fn remove_snapshot(&self, id: Id) -> Result<()> {
        let snapshot = self.unname_snapshot(id)?;
        self.events.tell(Event::new(What::Unsnapshot, format!("{}@{}", snapshot.of, snapshot.name)));
        let place = snapshot_path(id);
        let stat = self.env.fs.stat(&place).context("remove snapshot", &place)?;
        self.env.fs.unlink(&place).context("remove snapshot", &place)?;
        self.removed(stat.key);
        Ok(())
    }

    /// Takes the name away, and returns what it was.
    fn unname_snapshot(&self, id: Id) -> Result<Snapshot> {
        let _ops = self.ops.lock();
        let record = self.env.store.catalogue().volume(id).cloned();
        let record = record.and_then(|mut record| record.snapshot.take().map(|snapshot| (record, snapshot)));
        let (record, snapshot) = record.ok_or_else(|| Error::new(Kind::NotFound, "remove snapshot"))?;
        self.env.store.commit(vec![Change::Volume(record)])?;
        Ok(snapshot)
    }

    /// Gives a snapshot another name.
    pub fn rename_snapshot(&self, id: Id, name: &str) -> Result<()> {
        let number = {
            let _ops = self.ops.lock();
            let record = self.env.store.catalogue().volume(id).cloned();
            let record = record.and_then(|record| record.snapshot.clone().map(|snapshot| (record, snapshot)));
            let (record, snapshot) = record.ok_or_else(|| Error::new(Kind::NotFound, "rename snapshot"))?;
            if snapshot.name == name {
                return Ok(());
            }
            check_name(Path::new(&snapshot.of), name)?;
            // Whoever gives it a name wants to keep it.
            let snapshot = Snapshot { name: name.to_owned(), scheduled: false, ..snapshot };
            self.check_free(&snapshot)?;
            self.env.store.commit(vec![Change::Volume(VolumeRecord { snapshot: Some(snapshot), ..record })])?
        };
        self.env.store.sync(number)
    }

    /// The snapshot of this name of the volume at this path.
    pub fn find_snapshot(&self, of: &Path, name: &str) -> Option<Id> {
        self.env.store.catalogue().snapshot(of.to_str()?, name).map(|record| record.id)
    }

    /// Removes those of the snapshots of the volume at this path that a schedule made and that `goes` names. Those that
    /// people made, or have given a name to, are never touched.
    pub fn prune_snapshots(&self, of: &str, goes: impl Fn(&Snapshot) -> bool) -> Result<()> {
        let old: Vec<Id> = {
            let catalogue = self.env.store.catalogue();
            let all = catalogue.snapshots_of(of).filter_map(|record| Some((record.id, record.snapshot.as_ref()?)));
            all.filter(|(_, snapshot)| snapshot.scheduled && goes(snapshot)).map(|(id, _)| id).collect()
        };
        for id in old {
            let mut result = Ok(());
            let mut remove = || result = self.remove_snapshot(id);
            match self.names() {
                Some(names) => names.while_removing(id, &mut remove),
                None => remove(),
            }
            result?;
        }
        Ok(())
    }

    /// For the start: stubs that no named snapshot has.
    pub(super) fn sweep_snapshots(&self) -> Result<()> {
        match self.env.fs.stat(Path::new(SNAPSHOTS)) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            other => other.context("look at directory", SNAPSHOTS)?,
        };
        let named: std::collections::HashSet<String> = {
            let catalogue = self.env.store.catalogue();
            catalogue.snapshots_below("").map(|record| record.id.to_string()).collect()
        };
        self.sweep(SNAPSHOTS, |name| named.contains(name))
    }
}

fn new_snapshot(path: &Path, name: &str, scheduled: Option<i64>) -> Result<Snapshot> {
    check_name(path, name)?;
    let of = path.to_str().ok_or_else(|| {
        Error::new(Kind::Invalid, "make snapshot").at(path).because("the name of the volume is not UTF-8")
    })?;
    let made = scheduled.unwrap_or_else(|| Timestamp::now().seconds);
    Ok(Snapshot { of: of.to_owned(), name: name.to_owned(), made, scheduled: scheduled.is_some(), directory: None })
}

/// What is kept to be read is not run with another's rights, years after that program was replaced.
fn drop_privileges(file: &dyn File) -> std::io::Result<()> {
    match file.remove_xattr(&CAPABILITY.into()) {
        Err(e) if !matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP | libc::EPERM)) => return Err(e),
        _ => {}
    }
    let (mode, ids) = (file.stat()?.mode & 0o7777, libc::S_ISUID | libc::S_ISGID);
    if mode & ids == 0 { Ok(()) } else { file.chmod(mode & !ids) }
}

/// Whether a snapshot of the volume at `path` can have this name: it is part of a file name.
pub fn check_name(path: &Path, name: &str) -> Result<()> {
    let refuse = |kind, why: String| {
        let remedy = "letters, digits, '-', '_', ':' and '.' are good";
        Err(Error::new(kind, "name snapshot").at(name).because(why).remedy(remedy))
    };
    if name.is_empty() {
        return refuse(Kind::Invalid, "the name is empty".into());
    }
    if let Some(bad) = name.chars().find(|c| matches!(c, '@' | '/') || c.is_control()) {
        return refuse(Kind::Invalid, format!("a name has no {bad:?}"));
    }
    let len = path.file_name().map_or(0, OsStr::len) + 1 + name.len();
    if len > NAME_MAX {
        return refuse(Kind::TooLarge, format!("with the volume's name it has {len} bytes of at most {NAME_MAX}"));
    }
    Ok(())
}
