//! `clonefs check`: all that can be seen on disk of the invariants, without changing anything.
//!
//! What a crash leaves behind and the next start removes (files that no record names, clones that were never durable)
//! is counted as leftovers; it is no damage.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::stub::Mark;
use super::{lock, stub};
use crate::engine::io::{FileKind, Fs, Open, Stat};
use crate::engine::layer::map;
use crate::engine::store::catalogue::Catalogue;
use crate::engine::store::record::{LayerRecord, VolumeRecord};
use crate::engine::store::{DIR, LAYERS, POOL, SNAPSHOTS, STUBS, Store, TMP, data_path, log, map_path, stub_path};
use crate::error::{Context, Error, Kind, Result};
use crate::units::{BLOCK, Id, MAX_VOLUME, blocks};

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The file, relative to the pool.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
    /// What it means and what to do.
    pub remedy: String,
}

/// What a check found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// What is wrong; empty for a clean pool.
    pub problems: Vec<Problem>,
    /// Volumes that are not plain files.
    pub volumes: u64,
    /// Frozen layers.
    pub layers: u64,
    /// Blocks that maps call present.
    pub blocks: u64,
    /// Files that the next mount removes.
    pub leftovers: u64,
}

/// Checks a pool that is not mounted. Takes its lock, so that nothing changes meanwhile.
pub fn check(fs: &Arc<dyn Fs>) -> Result<Report> {
    let _lock = lock::acquire(fs.as_ref())?;
    check_unlocked(fs)
}

/// Checks a pool that this process serves, or that nobody does. Changes under way can look like problems.
pub fn check_unlocked(fs: &Arc<dyn Fs>) -> Result<Report> {
    let store = Store::open(fs.clone(), true)?;
    let mut check = Check { fs: fs.as_ref(), report: Report::default(), stubs: HashSet::new(), files: HashMap::new() };
    for problem in store.damage() {
        let remedy = "run `clonefs check --repair`, which keeps what is there and saves what can be read";
        check.problem(DIR, problem.clone(), remedy);
    }
    if let Some(pool) = store.pool_id() {
        let catalogue = store.catalogue();
        check.layers(&catalogue);
        check.volumes(&catalogue, pool);
        check.leftovers(&catalogue)?;
        check.mode()?;
    }
    check.tree()?;
    Ok(check.report)
}

struct Check<'a> {
    fs: &'a dyn Fs,
    report: Report,
    /// Inodes of known stubs.
    stubs: HashSet<crate::engine::io::FileKey>,
    /// Owner of each pair of files.
    files: HashMap<Id, Id>,
}

impl Check<'_> {
    fn problem(&mut self, path: impl AsRef<Path>, problem: impl Into<String>, remedy: &str) {
        let path = path.as_ref().to_string_lossy().into_owned();
        self.report.problems.push(Problem { path, problem: problem.into(), remedy: remedy.into() });
    }

    /// Two layers must never share a file.
    fn claim(&mut self, file: Id, owner: Id) {
        if let Some(other) = self.files.insert(file, owner) {
            let problem = format!("both {other} and {owner} say that it is theirs");
            self.problem(data_path(file), problem, "neither can be trusted; restore from a backup");
        }
    }

    fn layers(&mut self, catalogue: &Catalogue) {
        for record in catalogue.layers() {
            self.report.layers += 1;
            self.claim(record.file, record.id);
            if catalogue.heir_count(record.id) == 0 {
                // Nobody reads it, so whoever it belongs to may have changed it; the next start drops it.
                self.report.leftovers += 1;
                continue;
            }
            self.parent(catalogue, record.id, record.parent, record.overlap);
            self.layer_files(record);
            if cyclic(catalogue, record) {
                self.problem(data_path(record.file), "it is its own ancestor", "restore .clonefs from a backup");
            }
        }
    }

    fn layer_files(&mut self, record: &LayerRecord) {
        if record.size > MAX_VOLUME {
            self.problem(data_path(record.file), "its size is beyond the limit", "its record is damaged");
        }
        if record.complete {
            let path = data_path(record.file);
            match self.fs.stat(&path) {
                Ok(stat) => self.stamp(record, &stat),
                // A clone that was never durable; the next start takes it back.
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) && self.never_durable(record) => {
                    self.report.leftovers += 1;
                }
                Err(e) => self.problem(path, format!("missing: {e}"), "restore it; its clones cannot be read"),
            }
        } else {
            self.map(record.file, record.size, record.records);
        }
    }

    fn never_durable(&self, record: &LayerRecord) -> bool {
        record.stamp.as_ref().is_some_and(|stamp| stamp.lost(&self.fs.boot_id()))
    }

    fn stamp(&mut self, record: &LayerRecord, stat: &Stat) {
        let path = data_path(record.file);
        let Some(stamp) = &record.stamp else {
            if stat.size < record.size {
                self.problem(path, format!("{} bytes instead of {}", stat.size, record.size), "restore it");
            }
            return;
        };
        if !stamp.matches(stat) && !stamp.lost(&self.fs.boot_id()) {
            let remedy = "its clones give EIO; restore the file it is a link of, delete the clones, or take it as it is \
                          with `clonefs check --repair --accept FILE`";
            self.problem(path, "changed without clonefs", remedy);
        }
    }

    /// Reads a map and compares it with the data file.
    fn map(&mut self, file: Id, size: u64, least: u64) {
        match map::read_known(self.fs, file, least) {
            Ok(None) => {}
            Ok(Some((presence, _))) => {
                self.report.blocks += presence.present.len();
                let size = presence.extent.map_or(size, |(size, _)| size);
                let below = u32::try_from(blocks(size)).unwrap_or(u32::MAX);
                let last = presence.present.range(0..below).next_back();
                let len = self.fs.stat(&data_path(file)).map(|s| s.size);
                match (last, len) {
                    (None, _) => {}
                    (Some(last), Ok(len)) if len > last as u64 * BLOCK => {}
                    (Some(last), Ok(len)) => {
                        let problem = format!("{len} bytes, but block {last} should be in it");
                        self.problem(data_path(file), problem, "restore it; reading the volume gives EIO");
                    }
                    (Some(_), Err(e)) => {
                        self.problem(data_path(file), format!("missing: {e}"), "restore it; the volume gives EIO");
                    }
                }
            }
            Err(e) => self.problem(map_path(file), e.to_string(), "restore it; reading the volume gives EIO"),
        }
    }

    fn parent(&mut self, catalogue: &Catalogue, child: Id, parent: Option<Id>, overlap: u64) {
        let Some(parent) = parent else { return };
        match catalogue.layer(parent) {
            None => {
                let problem = format!("{child} is read from layer {parent}, which has no record");
                self.problem(DIR, problem, "reading it gives EIO; restore .clonefs from a backup");
            }
            Some(record) if overlap > blocks(record.size) => {
                let problem = format!("{child} shows {overlap} blocks of {parent}, which has {}", blocks(record.size));
                self.problem(DIR, problem, "its record is damaged");
            }
            Some(_) => {}
        }
    }

    fn volumes(&mut self, catalogue: &Catalogue, pool: Id) {
        for record in catalogue.volumes() {
            self.claim(record.file, record.id);
            let path = stub_path(record.id);
            match self.fs.stat(&path) {
                // Deleted by the user, or a clone that a crash took back.
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => self.stub_missing(record),
                Ok(stat) if stat.nlink < 2 => self.report.leftovers += 1,
                // Finished, and a crash before the stub had lost the name that it got for the file's own.
                Ok(stat) if self.fs.stat(&data_path(record.file)).is_ok_and(|data| data.key == stat.key) => {
                    self.report.leftovers += 1;
                }
                Err(e) => self.problem(path, format!("cannot be read: {e}"), "check the disk"),
                Ok(stat) => {
                    self.report.volumes += 1;
                    self.stubs.insert(stat.key);
                    self.stub(catalogue, record, &stat, pool);
                    if record.doubtful {
                        let remedy = "it gives EIO; compare it with a backup: `clonefs check --repair --accept FILE` takes \
                                      it as it is";
                        self.problem(record.shown(), "its record may be out of date", remedy);
                    }
                    self.parent(catalogue, record.id, record.parent, record.overlap);
                    if record.complete {
                        if let Err(e) = self.fs.stat(&data_path(record.file)) {
                            self.problem(data_path(record.file), format!("missing: {e}"), "restore it");
                        }
                    } else {
                        self.map(record.file, record.size, record.mapped.into());
                    }
                }
            }
        }
    }

    fn stub_missing(&mut self, record: &VolumeRecord) {
        let data = self.fs.stat(&data_path(record.file)).is_ok();
        let map = self.fs.stat(&map_path(record.file)).is_ok_and(|s| s.size > log::HEADER);
        if data && (map || record.complete) {
            let remedy = "`clonefs check --repair` gives it a name again";
            self.problem(
                &record.path,
                format!("its stub is missing; its data is in {:?}", data_path(record.file)),
                remedy,
            );
        } else {
            self.report.leftovers += 1;
        }
    }

    fn stub(&mut self, catalogue: &Catalogue, record: &VolumeRecord, stat: &Stat, pool: Id) {
        let path = stub_path(record.id);
        if stat.kind() != FileKind::File {
            return self.problem(path, "not a regular file", "somebody replaced it; restore it");
        }
        let value = match self.fs.get_xattr(&path, &stub::XATTR.into()) {
            // A crash before the first sync of a clone took it; the next start sets it again.
            Err(e) if e.raw_os_error() == Some(libc::ENODATA) => return self.report.leftovers += 1,
            value => value.unwrap_or_default(),
        };
        if let Mark::Ours(id) = Mark::parse(&value, Some(pool))
            && catalogue.volume(id).is_none()
        {
            // The same, of a file that was another volume's stub before.
            self.report.leftovers += 1;
            return;
        }
        if value != format!("{pool}/{}", record.id).as_bytes() {
            self.problem(path, "it is not marked as the stub of this volume", "somebody replaced it; restore it");
        }
    }

    fn leftovers(&mut self, catalogue: &Catalogue) -> Result<()> {
        let stubs: HashSet<String> = catalogue.volumes().map(|v| v.id.to_string()).collect();
        let snapshots: HashSet<String> = catalogue.snapshots_below("").map(|v| v.id.to_string()).collect();
        for (dir, known) in [(LAYERS, None), (STUBS, Some(&stubs)), (TMP, None), (SNAPSHOTS, Some(&snapshots))] {
            let entries = match self.fs.list(Path::new(dir)) {
                // Made with the first of them.
                Err(e) if dir == SNAPSHOTS && e.raw_os_error() == Some(libc::ENOENT) => continue,
                other => other.context("list metadata directory", dir)?,
            };
            for entry in entries {
                let name = entry.name.to_string_lossy().into_owned();
                let used = match known {
                    Some(names) => names.contains(&name),
                    None => name
                        .split_once('.')
                        .and_then(|(id, _)| id.parse().ok())
                        .is_some_and(|id: Id| self.files.contains_key(&id)),
                };
                self.report.leftovers += u64::from(!used);
            }
        }
        Ok(())
    }

    fn mode(&mut self) -> Result<()> {
        let stat = self.fs.stat(Path::new(DIR)).context("look at metadata directory", DIR)?;
        if stat.mode & 0o077 != 0 {
            self.problem(DIR, format!("its mode is {:o}", stat.mode & 0o7777), "run `chmod 700` on it");
        }
        Ok(())
    }

    /// Looks for stubs that no record names: what they stood for is lost, and they must not pass for files.
    fn tree(&mut self) -> Result<()> {
        let mut directories = vec![PathBuf::new()];
        while let Some(directory) = directories.pop() {
            let entries = match self.fs.list(&directory) {
                Ok(entries) => entries,
                Err(e) if directory.as_os_str().is_empty() => {
                    return Err(Error::io("list pool", e));
                }
                // Removed meanwhile, or not ours to read.
                Err(_) => continue,
            };
            // A pool of its own: its stubs are known there.
            if !directory.as_os_str().is_empty() && self.fs.stat(&directory.join(POOL)).is_ok() {
                continue;
            }
            for entry in entries {
                let path = directory.join(&entry.name);
                if directory.as_os_str().is_empty() && entry.name == DIR {
                    continue;
                }
                let Ok(stat) = self.fs.stat(&path) else { continue };
                match stat.kind() {
                    FileKind::Directory => directories.push(path),
                    FileKind::File => self.tree_file(&path, &stat),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn tree_file(&mut self, path: &Path, stat: &Stat) {
        if stat.size == 0 || stat.size > stub::MAX_STUB || self.stubs.contains(&stat.key) {
            return;
        }
        let orphan = |file: crate::engine::io::FileRef| {
            let mark = stub::mark_of(file.as_ref(), None)?;
            Ok(mark != Mark::None && stub::holds_text(file.as_ref())?)
        };
        if self.fs.open(path, Open::Read).and_then(orphan).is_ok_and(|orphan| orphan) {
            let remedy = "its volume is lost or in another pool; restore .clonefs, or delete this file";
            self.problem(path, "a stub whose volume is not in the catalogue", remedy);
        }
    }
}

/// Whether following parents from a layer comes back to it.
fn cyclic(catalogue: &Catalogue, record: &LayerRecord) -> bool {
    let mut steps = 0;
    let mut next = record.parent;
    while let Some(id) = next {
        steps += 1;
        if id == record.id || steps > catalogue.layer_count() {
            return true;
        }
        next = catalogue.layer(id).and_then(|l| l.parent);
    }
    false
}

/// Makes the metadata directory of a pool that has none.
pub fn initialise(fs: &Arc<dyn Fs>) -> Result<()> {
    let _lock = lock::acquire(fs.as_ref())?;
    let store = Store::open(fs.clone(), false)?;
    if store.pool_id().is_some() {
        return Err(Error::new(Kind::Exists, "make pool").at(DIR).because("it is a pool already"));
    }
    store.ensure()
}
