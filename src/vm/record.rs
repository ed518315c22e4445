//! What a snapshot of a domain is: snapshots of its disks, and a record of what the domain was.
//!
//! The record is a file of the pool that exists only as a snapshot, made with those of the disks in one group, beside the
//! first of them. So there is no moment at which one is there without the other, nobody can change it, and wherever the
//! pool goes it goes along. It is found by its name, which has the domain's UUID in it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::disks::{self, Files};
use super::image::Layer;
use super::parts::{Part, Tree};
use super::source::Domain;
use super::undo::Undo;
use super::virsh::Virsh;
use super::xml::Element;
use crate::client::{self, SnapshotName};
use crate::engine::store::new_id;
use crate::error::{Context, Error, Kind, Result};

const FORMAT: u32 = 1;
/// Larger is no record that was written here.
const LARGEST: u64 = 256 << 20;
/// For so many seconds the snapshots of one group may differ in when they say that they were made.
const SLACK: u64 = 2;

/// What a domain was.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Version of this format.
    format: u32,
    /// The domain's name then.
    pub domain: String,
    /// It ran.
    pub running: bool,
    /// Its guest agent held its filesystems still.
    pub quiesced: bool,
    /// Its definition, with passwords.
    pub xml: String,
    /// Its disks.
    pub disks: Vec<HeldDisk>,
    /// Disks that are not held: read-only ones, those of others, those that were left out.
    pub others: Vec<String>,
    /// Its NVRAM and TPM.
    pub parts: Vec<HeldPart>,
}

/// A disk that is held.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldDisk {
    /// Its name in the guest.
    pub disk: String,
    /// The image, then what lies below it.
    pub files: Vec<HeldFile>,
}

/// A file of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldFile {
    /// Where it was.
    pub path: PathBuf,
    /// Its format.
    pub format: String,
}

/// A small file or directory that is held.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldPart {
    /// `nvram` or `tpm`.
    pub what: String,
    /// Where it was.
    pub path: PathBuf,
    /// What it was.
    pub tree: Tree,
}

/// A snapshot of a domain that was found.
#[derive(Clone, Debug)]
pub struct Held {
    /// The record, as a snapshot.
    pub place: SnapshotName,
    /// When it was made, in seconds since the epoch.
    pub made: i64,
    /// What is in it.
    pub record: Record,
}

impl Record {
    /// What `domain` is now, with these files of its disks.
    pub fn new(domain: &Domain, quiesced: bool, disks: Vec<HeldDisk>, others: Vec<String>) -> Record {
        let (xml, running) = (domain.xml.to_string(), domain.active());
        Record { format: FORMAT, domain: domain.name.clone(), running, quiesced, xml, disks, others, parts: Vec::new() }
    }

    /// Writes it to a file of its own in `directory`. It is to be removed when the snapshot has been made.
    pub fn write(&self, directory: &Path, uuid: &str, undo: &mut Undo) -> Result<PathBuf> {
        let path = directory.join(format!("{}{}", prefix(uuid), new_id()));
        let text = serde_json::to_vec(self).map_err(|e| Error::io("write", e.into()).at(&path))?;
        // There may be passwords in it.
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&path).context("create", &path)?;
        undo.file(&path);
        file.write_all(&text).and_then(|()| file.sync_all()).context("write", &path)?;
        Ok(path)
    }

    /// All files of its disks, each once, with whether it is an image that the machine writes to.
    pub fn files(&self) -> Vec<(&Path, bool)> {
        let mut files: Vec<(&Path, bool)> = Vec::new();
        let tops = self.disks.iter().filter_map(|disk| disk.files.first()).map(|file| (&*file.path, true));
        let below = self.disks.iter().flat_map(|disk| disk.files.iter().skip(1)).map(|file| (&*file.path, false));
        for (path, top) in tops.chain(below) {
            if !files.iter().any(|(known, _)| *known == path) {
                files.push((path, top));
            }
        }
        files
    }
}

impl Held {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.place.name
    }

    /// The snapshot of a file.
    pub fn snapshot_of(&self, path: &Path) -> SnapshotName {
        SnapshotName { volume: path.to_path_buf(), name: self.place.name.clone() }
    }

    /// The domain's definition.
    pub fn definition(&self) -> Result<Element> {
        Element::parse(&self.record.xml, &self.record.domain)
    }

    /// Where the snapshot of a file is, if it still is the one that was made with this.
    pub fn find(&self, path: &Path) -> Result<PathBuf> {
        let snapshot = self.snapshot_of(path);
        let place = snapshot.find()?;
        if snapshot.made().is_some_and(|made| made.abs_diff(self.made) <= SLACK) {
            return Ok(place);
        }
        Err(Error::new(Kind::Changed, "find snapshot").at(place).because(
            "it is another one than was made of the domain: the file was moved, and something else is in its place",
        ))
    }

    /// The files to clone for a disk; `None` if it is not held.
    pub fn disk(&self, disk: &Element) -> Result<Option<Files>> {
        let name = disks::target(disk);
        let Some(held) = self.record.disks.iter().find(|held| held.disk == name) else { return Ok(None) };
        let layer = |file: &HeldFile| Layer { path: file.path.clone(), format: file.format.clone() };
        let from = held.files.iter().map(layer).collect();
        let read_at = held.files.iter().map(|file| self.find(&file.path)).collect::<Result<Vec<_>>>()?;
        let pool = disk.child("source").filter(|_| disk.is("type", "volume")).and_then(|s| s.get("pool"));
        let pool = pool.map(|pool| pool.into_owned());
        Ok(Some(Files { pool, read_at: Some(read_at), ..Files::new(from) }))
    }

    /// The same part as it was then; `None` if the domain had none.
    pub fn part(&self, part: Part) -> Option<Part> {
        let held = self.record.parts.iter().find(|held| held.path == part.from)?;
        Some(Part { kept: Some(held.tree.clone()), ..part })
    }
}

fn prefix(uuid: &str) -> String {
    format!(".domain-{uuid}-")
}

/// The snapshots of a domain, by time: what lies beside its disks.
pub fn all(virsh: &Virsh, domain: &Domain) -> Result<Vec<Held>> {
    let paths = disks::paths(virsh, &domain.xml);
    let mut directories: Vec<PathBuf> = paths.iter().filter_map(|p| p.parent().map(Path::to_path_buf)).collect();
    directories.sort();
    directories.dedup();
    let mut found: Vec<Held> = Vec::new();
    for directory in directories {
        // A disk that lies in no pool has no snapshots beside it.
        if client::mount_at(&directory).ok().flatten().is_none() {
            continue;
        }
        for place in client::snapshots_beside(&directory, &prefix(&domain.uuid))? {
            found.push(read(place)?);
        }
    }
    found.sort_by(|a, b| (a.made, a.name()).cmp(&(b.made, b.name())));
    Ok(found)
}

/// One of them by its name.
pub fn find(virsh: &Virsh, domain: &Domain, name: &str) -> Result<Option<Held>> {
    Ok(all(virsh, domain)?.into_iter().find(|held| held.name() == name))
}

/// As [`find`], of one that must be there.
pub fn need(virsh: &Virsh, domain: &Domain, name: &str) -> Result<Held> {
    find(virsh, domain, name)?.ok_or_else(|| {
        Error::new(Kind::NotFound, format!("find snapshot {name:?} of domain {:?}", domain.name))
            .because("there is none beside its disks")
            .remedy(format!("clonefs domain snapshot list {}", domain.name))
    })
}

fn read(place: SnapshotName) -> Result<Held> {
    const DOING: &str = "read the snapshot of a domain";
    let path = place.place()?;
    let bad = |cause: String| Error::new(Kind::Damaged, DOING).at(&path).because(cause);
    let file = File::open(&path).context(DOING, &path)?;
    let look = file.metadata().context(DOING, &path)?;
    // It says what is defined as a machine, and which files are read: nobody else may have written that.
    let own = look.uid() == 0 || look.uid() == rustix::process::geteuid().as_raw();
    if !own || look.mode() & 0o022 != 0 {
        return Err(Error::new(Kind::Permission, DOING).at(&path).because("another user could have written it"));
    }
    let mut text = Vec::new();
    file.take(LARGEST).read_to_end(&mut text).context(DOING, &path)?;
    let version = |text: &[u8]| {
        let value: serde_json::Value = serde_json::from_slice(text).ok()?;
        value.get("format")?.as_u64()
    };
    if version(&text).is_some_and(|version| version > u64::from(FORMAT)) {
        return Err(Error::new(Kind::NewerFormat, DOING).at(&path).because("a newer clonefs made it"));
    }
    let record = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    let made = place.made().ok_or_else(|| bad("it does not say when it was made".into()))?;
    Ok(Held { place, made, record })
}
