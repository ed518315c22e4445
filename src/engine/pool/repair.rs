//! `clonefs check --repair`: puts damaged metadata in order, on a pool that is not mounted.
//!
//! Nothing is thrown away: before anything is written, the old metadata is copied to `.clonefs/lost/NUMBER`, and the
//! files of layers that nothing names any more get a name there too. And nothing is guessed: a volume whose record is
//! lost or doubtful keeps its place in the tree and reads as EIO, until it is deleted or the user takes it as it is.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::check::{self, Report};
use super::{lock, stub};
use crate::engine::io::{FileKey, FileKind, FileRef, Fs, Open, Rename};
use crate::engine::layer::sums;
use crate::engine::store::record::{Change, LayerRecord, Stamp, VolumeRecord};
use crate::engine::store::salvage::{Salvaged, salvage};
use crate::engine::store::{
    CATALOGUE, DIR, JOURNAL, LAYERS, LOST, POOL, STUBS, Store, TMP, data_path, log, map_path, new_id, persist,
    stub_path, tmp_path,
};
use crate::error::{Context, Error, Kind, Result};
use crate::units::Id;

/// What a repair did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Repaired {
    /// What was done, in words.
    pub done: Vec<String>,
    /// Where the old metadata is kept, relative to the pool, if it was replaced.
    pub kept: Option<String>,
    /// What a check finds afterwards.
    pub report: Report,
}

struct Repair<'a> {
    fs: &'a Arc<dyn Fs>,
    done: Vec<String>,
    kept: Option<PathBuf>,
}

/// Repairs what can be repaired, and takes the volumes at `accept` (relative to the pool) as they are. Takes the
/// pool's lock. A crash at any point leaves what was there, or a pool that can be repaired again.
pub fn repair(fs: &Arc<dyn Fs>, accept: &[PathBuf]) -> Result<Repaired> {
    let _lock = lock::acquire(fs.as_ref())?;
    let mut work = Repair { fs, done: Vec::new(), kept: None };
    let result = work.run(accept).and_then(|()| check::check_unlocked(fs));
    let kept = work.kept.map(|path| path.to_string_lossy().into_owned());
    Ok(Repaired { done: work.done, kept, report: result? })
}

impl Repair<'_> {
    fn run(&mut self, accept: &[PathBuf]) -> Result<()> {
        let found = salvage(self.fs.as_ref())?;
        if !found.lost.is_empty() {
            self.rebuild(found)?;
        }
        if self.exists(Path::new(POOL))? {
            self.mode()?;
            let store = Store::open(self.fs.clone(), false)?;
            self.missing_links(&store)?;
            for path in accept {
                self.accept(&store, path)?;
            }
            store.checkpoint()?;
        } else if let Some(path) = accept.first() {
            return Err(nothing_to_accept(path));
        }
        Ok(())
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        match self.fs.stat(path) {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(Error::io("look at metadata", e).at(path)),
        }
    }

    fn rebuild(&mut self, mut found: Salvaged) -> Result<()> {
        for dir in [LAYERS, STUBS, TMP] {
            if !self.exists(Path::new(dir))? {
                self.fs.mkdir(Path::new(dir), 0o700).context("make metadata directory", dir)?;
            }
        }
        let pool = match found.pool {
            Some(id) => id,
            None => self.pool_of_stubs()?.unwrap_or_else(new_id),
        };
        let kept = self.keep_metadata()?;
        self.keep_files(&found, &kept)?;
        self.keep_stubs(&found, pool, &kept)?;
        self.keep_unlinked_stubs(&found, pool)?;
        self.fs.sync_fs().context("sync filesystem", "")?;
        if found.doubtful {
            let all: Vec<VolumeRecord> = found.catalogue.volumes().cloned().collect();
            for record in all {
                self.done.push(format!("{:?}: its record may be out of date; it reads as EIO", record.path));
                found.catalogue.apply(Change::Volume(VolumeRecord { doubtful: true, ..record }));
            }
        }
        let lost = std::mem::take(&mut found.lost);
        found.write(self.fs, pool)?;
        self.done.extend(lost.into_iter().map(|what| format!("written anew: {what}")));
        Ok(())
    }

    /// The pool that the stubs say they belong to.
    fn pool_of_stubs(&self) -> Result<Option<Id>> {
        for entry in self.fs.list(Path::new(STUBS)).context("list stubs", STUBS)? {
            let value = self.fs.get_xattr(&Path::new(STUBS).join(&entry.name), &stub::XATTR.into());
            let text = String::from_utf8(value.unwrap_or_default()).unwrap_or_default();
            let pool = text.split_once('/').filter(|(_, volume)| entry.name.to_str() == Some(volume));
            if let Some(id) = pool.and_then(|(pool, _)| pool.parse().ok()) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// Copies the metadata files to a new directory, durably.
    fn keep_metadata(&mut self) -> Result<PathBuf> {
        if !self.exists(Path::new(LOST))? {
            self.fs.mkdir(Path::new(LOST), 0o700).context("make directory", LOST)?;
        }
        let used: HashSet<String> = self
            .fs
            .list(Path::new(LOST))
            .context("list directory", LOST)?
            .into_iter()
            .map(|entry| entry.name.to_string_lossy().into_owned())
            .collect();
        let number = (1..).find(|n: &u64| !used.contains(&n.to_string())).unwrap_or(1);
        let kept = Path::new(LOST).join(number.to_string());
        self.fs.mkdir(&kept, 0o700).context("make directory", &kept)?;
        for path in [POOL, CATALOGUE, JOURNAL] {
            let old = match self.fs.open(Path::new(path), Open::Read) {
                Ok(file) => log::read_all(file.as_ref(), u64::MAX).context("read metadata", path)?,
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => continue,
                Err(e) => return Err(Error::io("read metadata", e).at(path)),
            };
            persist(self.fs.as_ref(), &kept.join(Path::new(path).file_name().unwrap_or_default()), &old)?;
        }
        for dir in [LOST, DIR] {
            self.fs.sync_dir(Path::new(dir)).context("sync directory", dir)?;
        }
        self.kept = Some(kept.clone());
        Ok(kept)
    }

    /// Gives the files of layers that no volume is read through any more a second name, so that the next mount, which
    /// tidies up, does not remove the last.
    fn keep_files(&mut self, found: &Salvaged, kept: &Path) -> Result<()> {
        let catalogue = &found.catalogue;
        let layers = catalogue.layers().filter(|layer| catalogue.heir_count(layer.id) > 0).map(|layer| layer.file);
        let used: HashSet<Id> = layers.chain(catalogue.volumes().map(|volume| volume.file)).collect();
        for entry in self.fs.list(Path::new(LAYERS)).context("list layers", LAYERS)? {
            let id = entry.name.to_str().and_then(|name| name.split_once('.')).and_then(|(id, _)| id.parse().ok());
            let path = Path::new(LAYERS).join(&entry.name);
            let stat = self.fs.stat(&path).context("look at layer", &path)?;
            // A file that has another name is the user's own, and stays where that is.
            if id.is_some_and(|id| used.contains(&id)) || stat.nlink > 1 || stat.kind() != FileKind::File {
                continue;
            }
            self.fs.link(&path, &kept.join(&entry.name)).context("keep layer", &path)?;
            self.done.push(format!("{path:?}: no record names it; kept in {kept:?}"));
        }
        Ok(())
    }

    /// A stub without a record must not become an empty file, as those of clones that were never durable do.
    fn keep_stubs(&mut self, found: &Salvaged, pool: Id, kept: &Path) -> Result<()> {
        for entry in self.fs.list(Path::new(STUBS)).context("list stubs", STUBS)? {
            let path = Path::new(STUBS).join(&entry.name);
            let Some(id) = entry.name.to_str().and_then(|name| name.parse::<Id>().ok()) else { continue };
            if found.catalogue.volume(id).is_some() {
                continue;
            }
            let file = self.fs.open(&path, Open::Write).context("open stub", &path)?;
            let stat = file.stat().context("look at stub", &path)?;
            if stat.nlink < 2 {
                continue;
            }
            if !stub::claims_to_be(file.as_ref()) {
                stub::mark(file.as_ref(), pool, id)?;
            }
            if stat.size == 0 {
                stub::describe(file.as_ref(), id, 0).context("write stub", &path)?;
            }
            self.fs.rename(&path, &kept.join(format!("{id}.stub")), Rename::NoReplace).context("keep stub", &path)?;
            self.done.push(format!("volume {id}: its record is lost; it reads as EIO"));
        }
        Ok(())
    }

    /// The same for a stub that has lost its link as well.
    fn keep_unlinked_stubs(&mut self, found: &Salvaged, pool: Id) -> Result<()> {
        let fs = self.fs.clone();
        let orphan = |path: &Path| {
            let file = fs.open(path, Open::Read).ok().filter(|file| file.stat().is_ok_and(|stat| stat.size == 0));
            let volume = file.and_then(|file| stub::marked_as(file.as_ref(), pool));
            volume.filter(|id| found.catalogue.volume(*id).is_none())
        };
        while let Some(path) = self.find(&|path| orphan(path).is_some())? {
            let Some(id) = orphan(&path) else { continue };
            let file = self.fs.open(&path, Open::Write).context("open stub", &path)?;
            stub::describe(file.as_ref(), id, 0).context("write stub", &path)?;
            self.done.push(format!("{path:?}: the record of its volume {id} is lost; it reads as EIO"));
        }
        Ok(())
    }

    fn mode(&mut self) -> Result<()> {
        let stat = self.fs.stat(Path::new(DIR)).context("look at metadata directory", DIR)?;
        if stat.mode & 0o077 != 0 {
            self.fs.chmod(Path::new(DIR), 0o700).context("change mode", DIR)?;
            self.done.push(format!("{DIR}: mode {:o} changed to 700", stat.mode & 0o7777));
        }
        Ok(())
    }

    /// Volumes with data whose link in `stubs` is gone: to the stub in the tree, if it is there, or to a new one.
    fn missing_links(&mut self, store: &Store) -> Result<()> {
        let records: Vec<VolumeRecord> = store.catalogue().volumes().cloned().collect();
        let Some(pool) = store.pool_id() else { return Ok(()) };
        for record in records {
            let link = stub_path(record.id);
            let data = self.exists(&data_path(record.file))?;
            let map = self.fs.stat(&map_path(record.file)).is_ok_and(|stat| stat.size > log::HEADER);
            if self.exists(&link)? || !data || !(map || record.complete) {
                continue;
            }
            let open = |path: &Path| self.fs.open(path, Open::Read).ok();
            let marked = |file: &FileRef| stub::marked_as(file.as_ref(), pool) == Some(record.id);
            let found = self.find(&|path: &Path| open(path).is_some_and(|file| marked(&file)))?;
            // The file that has the mark, whatever the path leads to by now.
            let place = match found.and_then(|path| Some((open(&path).filter(marked)?, path))) {
                Some((file, path)) => {
                    file.link_to(&link).context("link stub", &path)?;
                    path
                }
                None => self.new_stub(&record, pool)?,
            };
            self.fs.sync_fs().context("sync filesystem", "")?;
            self.done.push(format!("{place:?}: its stub was missing, and is there again"));
        }
        Ok(())
    }

    /// Makes a stub for root where the volume was, or beside that if something else is there now.
    fn new_stub(&self, record: &VolumeRecord, pool: Id) -> Result<PathBuf> {
        let temporary = tmp_path();
        let file = self.fs.open(&temporary, Open::CreateNew(0o600)).context("make stub", &temporary)?;
        stub::describe(file.as_ref(), record.id, record.size).context("write stub", &temporary)?;
        stub::mark(file.as_ref(), pool, record.id)?;
        file.sync_all().context("sync stub", &temporary)?;
        self.fs.link(&temporary, &stub_path(record.id)).context("link stub", stub_path(record.id))?;
        let name = Path::new(&record.path).file_name().map_or_else(|| "volume".into(), |name| name.to_os_string());
        let mut beside = name.clone();
        beside.push(format!(".{}", record.id));
        for place in [PathBuf::from(&record.path), PathBuf::from(name), PathBuf::from(beside)] {
            let hidden = place.starts_with(DIR) || place.as_os_str().is_empty();
            if !hidden && self.fs.rename(&temporary, &place, Rename::NoReplace).is_ok() {
                return Ok(place);
            }
        }
        Err(Error::new(Kind::Exists, "give a volume its name again").at(&record.path))
    }

    /// The first file in the tree that is wanted.
    fn find(&self, wanted: &dyn Fn(&Path) -> bool) -> Result<Option<PathBuf>> {
        let mut directories = vec![PathBuf::new()];
        while let Some(directory) = directories.pop() {
            for entry in self.fs.list(&directory).context("list directory", &directory)? {
                let path = directory.join(&entry.name);
                if path == Path::new(DIR) {
                    continue;
                }
                match self.fs.stat(&path).map(|stat| stat.kind()) {
                    Ok(FileKind::Directory) => directories.push(path),
                    Ok(FileKind::File) if wanted(&path) => return Ok(Some(path)),
                    _ => {}
                }
            }
        }
        Ok(None)
    }

    /// The user says that the volume at `path` is to be taken as it is now.
    fn accept(&mut self, store: &Store, path: &Path) -> Result<()> {
        let stat = self.fs.stat(path).context("look at file", path)?;
        let (volume, mut layer) = self.volume_at(store, stat.key);
        let mut changes = Vec::new();
        if let Some(record) = volume {
            layer = record.parent;
            if record.doubtful {
                changes.push(Change::Volume(VolumeRecord { doubtful: false, ..record }));
            }
        }
        let mut steps = store.catalogue().layer_count();
        while let Some(record) = layer.and_then(|id| store.catalogue().layer(id).cloned()) {
            layer = record.parent.filter(|_| steps > 0);
            steps = steps.saturating_sub(1);
            changes.extend(self.as_it_is(record)?);
        }
        if changes.is_empty() {
            return Err(nothing_to_accept(path));
        }
        let number = store.commit(changes)?;
        store.sync(number)?;
        self.done.push(format!("{path:?}: taken as it is"));
        Ok(())
    }

    /// The volume whose stub has this identity, or the layer that a plain file is.
    fn volume_at(&self, store: &Store, key: FileKey) -> (Option<VolumeRecord>, Option<Id>) {
        let is = |path: &Path| self.fs.stat(path).is_ok_and(|stat| stat.key == key);
        let catalogue = store.catalogue();
        let volume = catalogue.volumes().find(|record| is(&stub_path(record.id))).cloned();
        let layer = catalogue.layers().find(|record| record.stamp.is_some() && is(&data_path(record.file)));
        (volume, layer.map(|record| record.id))
    }

    /// The change that takes a layer's file for what it should be, if it is not.
    fn as_it_is(&self, record: LayerRecord) -> Result<Option<Change>> {
        let Some(stamp) = &record.stamp else { return Ok(None) };
        let path = data_path(record.file);
        let stat = self.fs.stat(&path).context("look at layer", &path)?;
        if stamp.matches(&stat) {
            return Ok(None);
        }
        if stat.size < record.size {
            return Err(Error::new(Kind::Changed, "accept")
                .at(path)
                .because(format!("it has {} bytes, and its clones show {}", stat.size, record.size))
                .remedy("restore the file, or delete the clones"));
        }
        // What they were taken of is not what it has now.
        sums::forget(self.fs.as_ref(), record.file)?;
        let (seconds, nanos) = (stat.mtime.seconds, stat.mtime.nanos);
        let stamp = Stamp { size: stat.size, seconds, nanos, firm: true, boot: self.fs.boot_id() };
        Ok(Some(Change::Layer(LayerRecord { stamp: Some(stamp), ..record })))
    }
}

fn nothing_to_accept(path: &Path) -> Error {
    Error::new(Kind::Invalid, "accept").at(path).because("nothing about it is in doubt")
}
