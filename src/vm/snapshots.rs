//! Snapshots of domains: made, listed, removed. `record` says what they are, `rollback` goes back to one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::disks::{self, Action, Disk, DiskOptions, DiskRule, Policy};
use super::firmware::{self, TpmPolicy};
use super::freeze::{Frozen, Hold};
use super::parts::{Part, Tree};
use super::record::{self, Held, HeldDisk, HeldFile, HeldPart, Record};
use super::source::{Domain, Taking};
use super::undo::Undo;
use super::virsh::Virsh;
use crate::client::{self, SnapshotName};
use crate::error::{Error, Kind, Result};

/// How a snapshot of a domain is made.
#[derive(Clone, Debug, Default)]
pub struct SnapshotOptions {
    /// Its name.
    pub name: String,
    /// The guest agent freezes its filesystems meanwhile.
    pub quiesce: bool,
    /// Disks that are left out.
    pub skip: Vec<String>,
}

/// A snapshot of a domain, as it is printed.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    /// The domain's name then.
    pub domain: String,
    /// The snapshot's.
    pub name: String,
    /// When it was made, in seconds since the epoch.
    pub made: i64,
    /// The domain ran.
    pub running: bool,
    /// Its guest agent held its filesystems still.
    pub quiesced: bool,
    /// All of it is still there.
    pub whole: bool,
    /// What is held of its disks.
    pub disks: Vec<ShownFile>,
    /// Disks that are not held.
    pub others: Vec<String>,
    /// Other files that are held: NVRAM, TPM state.
    pub files: Vec<PathBuf>,
    /// For how long the domain was suspended for it, in milliseconds; `None` if it was not, or that was long ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspended_ms: Option<f64>,
    /// Its definition.
    #[serde(skip)]
    pub xml: String,
}

/// A file that is held.
#[derive(Clone, Debug, Serialize)]
pub struct ShownFile {
    /// Name of the disk in the guest.
    pub disk: String,
    /// Where the file was.
    pub path: PathBuf,
    /// Its snapshot; `None` if that is gone.
    pub snapshot: Option<PathBuf>,
    /// Size in bytes.
    pub size: Option<u64>,
}

/// Makes a snapshot of all disks of a domain as of one moment, with what else the domain is. All or nothing. `check` is
/// asked before each step: an error from it stops the work. Gives what should be said as well.
pub fn create(
    virsh: &Virsh,
    domain: &str,
    options: &SnapshotOptions,
    check: &dyn Fn() -> Result<()>,
) -> Result<(Shown, Vec<String>)> {
    const VERB: &str = "make a snapshot of";
    let domain = Domain::find(virsh, domain, Taking { verb: VERB, live: true, quiesce: options.quiesce })?;
    let doing = domain.doing(VERB);
    let taken = |cause: &str| {
        let error = Error::new(Kind::Exists, doing.clone()).because(format!("{cause} is called {:?}", options.name));
        Err(error.remedy("choose another name"))
    };
    if record::find(virsh, &domain, &options.name)?.is_some() {
        return taken("another one");
    }
    if super::libvirt_snapshot::names(virsh, &domain)?.contains(&options.name) {
        return taken("one of libvirt's");
    }
    let skip = |target: &String| DiskRule { target: target.clone(), skip: true, ..DiskRule::default() };
    let rules = options.skip.iter().map(skip).collect();
    let all = disks::plan(virsh, &domain.xml, &DiskOptions { rules, shared: Policy::Share, luns: None }, None)?;
    let (held, others) = split(&all);
    let mut record = Record::new(&domain, options.quiesce, held, others);
    let directory = one_pool(&record, &doing)?;
    let parts = parts(virsh, &domain)?;
    check()?;

    let mut undo = Undo::new(virsh);
    let running = domain.active() && !domain.paused;
    let hold = Hold { suspend: running && !parts.is_empty(), quiesce: options.quiesce };
    let frozen = Frozen::begin(virsh, &domain.uuid, hold)?;
    let hold_part = |part: &Part| {
        Ok(HeldPart { what: part.what.to_owned(), path: part.from.clone(), tree: Tree::read(&part.from)? })
    };
    record.parts = parts.iter().map(hold_part).collect::<Result<_>>()?;
    check()?;
    let file = record.write(&directory, &domain.uuid, &mut undo)?;
    let mut volumes: Vec<PathBuf> = record.files().into_iter().map(|(path, _)| path.to_path_buf()).collect();
    volumes.push(file.clone());
    client::create_snapshots(&volumes, &options.name)?;
    let named = |volume: &PathBuf| SnapshotName { volume: volume.clone(), name: options.name.clone() };
    for volume in &volumes {
        undo.file(&named(volume).place()?);
    }
    let suspended = frozen.end()?;
    // A signal had to wait until now.
    check()?;
    still_the_same(virsh, &domain, &doing)?;
    let held = record::need(virsh, &domain, &options.name)?;
    undo.keep();
    // The snapshot of it is all that is wanted; a file that cannot be removed does no harm.
    let _ = std::fs::remove_file(&file);
    let notes = all.iter().filter(|disk| disk.action == Action::KeepWritable);
    let notes = notes.map(|disk| format!("{} is {}, which is not in the snapshot", disk.target, disk.shown));
    Ok((Shown { suspended_ms: suspended.map(milliseconds), ..show(&held) }, notes.collect()))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The disks whose files are held, and the names of the others.
fn split(disks: &[Disk]) -> (Vec<HeldDisk>, Vec<String>) {
    let (mut held, mut others) = (Vec::new(), Vec::new());
    for disk in disks {
        match &disk.action {
            Action::Clone(files) => {
                let file =
                    |layer: &super::image::Layer| HeldFile { path: layer.path.clone(), format: layer.format.clone() };
                held.push(HeldDisk { disk: disk.target.clone(), files: files.from.iter().map(file).collect() });
            }
            _ => others.push(disk.target.clone()),
        }
    }
    (held, others)
}

/// All files must lie in one pool, or there is no one moment for them. Gives the directory of the first.
fn one_pool(record: &Record, doing: &str) -> Result<PathBuf> {
    let mut pool = None;
    for (path, _) in record.files() {
        let refuse = |cause: &'static str, remedy: String| {
            Err(Error::new(Kind::CrossPool, doing.to_owned()).at(path).because(cause).remedy(remedy))
        };
        let disk = record.disks.iter().find(|disk| disk.files.iter().any(|file| file.path == path));
        let skip = disk.map_or_else(String::new, |disk| format!(", or leave it out: --skip {}", disk.disk));
        match (client::mount_at(path)?, &pool) {
            (None, _) => return refuse("it lies in no mounted pool", format!("move it into one{skip}")),
            (Some(mount), None) => pool = Some(mount.id),
            (Some(mount), Some(id)) if mount.id != *id => {
                return refuse("it lies in another pool than the disk before it", format!("move it there{skip}"));
            }
            _ => {}
        }
    }
    let first = record.disks.first().and_then(|disk| disk.files.first()).and_then(|file| file.path.parent());
    first
        .map(Path::to_path_buf)
        .ok_or_else(|| Error::new(Kind::Invalid, doing.to_owned()).because("it has no disk in a file that is its own"))
}

/// Its NVRAM and TPM state, as far as they are there.
fn parts(virsh: &Virsh, domain: &Domain) -> Result<Vec<Part>> {
    let (mut xml, ids) = (domain.xml.clone(), (&*domain.name, &*domain.uuid));
    let mut parts = firmware::rewrite(&mut xml, ids, ids, TpmPolicy::Copy, virsh)?;
    parts.retain(Part::is_there);
    Ok(parts)
}

/// Another definition, or a start, while the snapshot was made: then its parts may not belong together.
fn still_the_same(virsh: &Virsh, domain: &Domain, doing: &str) -> Result<()> {
    domain.still_off(virsh)?;
    if Domain::look(virsh, &domain.uuid, doing)?.xml == domain.xml {
        return Ok(());
    }
    Err(Error::new(Kind::Busy, doing.to_owned()).because("its definition was changed meanwhile").remedy("try again"))
}

/// The snapshots of a domain, by time.
pub fn list(virsh: &Virsh, domain: &str) -> Result<Vec<Shown>> {
    let domain = look(virsh, domain)?;
    Ok(record::all(virsh, &domain)?.iter().map(show).collect())
}

/// One snapshot of a domain.
pub fn one(virsh: &Virsh, domain: &str, name: &str) -> Result<Shown> {
    Ok(show(&record::need(virsh, &look(virsh, domain)?, name)?))
}

/// Removes snapshots of a domain. One that is named and not there is an error, and then none is removed.
pub fn remove(virsh: &Virsh, domain: &str, names: &[String]) -> Result<()> {
    let domain = look(virsh, domain)?;
    let held = names.iter().map(|name| record::need(virsh, &domain, name)).collect::<Result<Vec<_>>>()?;
    for held in &held {
        for (path, _) in held.record.files() {
            // What is gone already, or is another's by now, is not of this snapshot.
            if held.find(path).is_ok() {
                client::remove_snapshot(&held.snapshot_of(path))?;
            }
        }
        // Last: as long as it is there, this can be done again.
        client::remove_snapshot(&held.place)?;
    }
    Ok(())
}

fn look(virsh: &Virsh, domain: &str) -> Result<Domain> {
    Domain::look(virsh, domain, &format!("look for snapshots of domain {domain:?}"))
}

fn show(held: &Held) -> Shown {
    let file = |disk: &HeldDisk, file: &HeldFile| {
        let snapshot = held.find(&file.path).ok();
        let size = snapshot.as_ref().and_then(|place| std::fs::metadata(place).ok()).map(|look| look.len());
        ShownFile { disk: disk.disk.clone(), path: file.path.clone(), snapshot, size }
    };
    let record = &held.record;
    let disks: Vec<ShownFile> =
        record.disks.iter().flat_map(|disk| disk.files.iter().map(|each| file(disk, each))).collect();
    Shown {
        domain: record.domain.clone(),
        name: held.name().to_owned(),
        made: held.made,
        running: record.running,
        quiesced: record.quiesced,
        whole: disks.iter().all(|file| file.snapshot.is_some()),
        disks,
        others: record.others.clone(),
        files: record.parts.iter().map(|part| part.path.clone()).collect(),
        suspended_ms: None,
        xml: record.xml.clone(),
    }
}
