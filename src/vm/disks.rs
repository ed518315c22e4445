//! The disks of a domain: which are cloned, which stay, which go, and how that is written into the clone's XML.

use std::path::{Path, PathBuf};

use super::image::{self, Layer};
use super::pools;
use super::record::Held;
use super::rewrite::renamed;
use super::virsh::Virsh;
use super::xml::Element;
use crate::error::{Error, Kind, Result};

/// What the user wants of one disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskRule {
    /// Which: `vda`.
    pub target: String,
    /// Where its clone goes: `POOL/NAME` or a path; `{}` in it stands for the name of the new domain.
    pub place: Option<String>,
    /// Size of the clone in bytes.
    pub size: Option<u64>,
    /// The clone has no such disk.
    pub skip: bool,
    /// The clone has the same disk as the source.
    pub share: bool,
}

/// What to do with a kind of disks that is not cloned by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Both machines have it.
    Share,
    /// The clone does not have it: it can be attached later.
    Skip,
    /// It is cloned like any other disk.
    Clone,
}

/// What to do with all disks.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Rules for single disks; they go first.
    pub rules: Vec<DiskRule>,
    /// Disks that are marked as shareable.
    pub shared: Policy,
    /// Block and network devices (LUNs) that are not read-only. `None`: shared, with a warning.
    pub luns: Option<Policy>,
}

/// What becomes of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It stays as it is in the clone's XML.
    Keep,
    /// It stays, and source and clone could both write to it.
    KeepWritable,
    /// The clone does not have it.
    Drop,
    /// Its files are cloned.
    Clone(Files),
}

/// Files to be cloned for one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The image and what lies below it, as it is.
    pub from: Vec<Layer>,
    /// libvirt pool of a disk that is named by pool and volume.
    pub pool: Option<String>,
    /// Size of the clone.
    pub size: Option<u64>,
    /// Where the user wants it.
    pub place: Option<String>,
    /// Internal snapshot of which it is to be the state.
    pub snapshot: Option<String>,
    /// Where the files are read, if not at their own places: in snapshots.
    pub read_at: Option<Vec<PathBuf>>,
}

impl Files {
    /// These files as they are.
    pub fn new(from: Vec<Layer>) -> Files {
        Files { from, pool: None, size: None, place: None, snapshot: None, read_at: None }
    }

    /// Where file `number` is read.
    pub fn read_at(&self, number: usize) -> &Path {
        self.read_at.as_ref().and_then(|places| places.get(number)).unwrap_or(&self.from[number].path)
    }
}

/// A disk of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its name in the guest: `vda`.
    pub target: String,
    /// What becomes of it.
    pub action: Action,
    /// What it is, for people: a path, or a kind.
    pub shown: String,
}

/// Decides for every disk of a domain; with `held` for what that holds of them.
pub fn plan(virsh: &Virsh, domain: &Element, options: &DiskOptions, held: Option<&Held>) -> Result<Vec<Disk>> {
    let elements: Vec<&Element> = elements(domain).collect();
    for rule in &options.rules {
        if !elements.iter().any(|disk| target(disk) == rule.target) {
            let names: Vec<String> = elements.iter().map(|disk| target(disk)).collect();
            return Err(Error::new(Kind::NotFound, format!("find disk {}", rule.target))
                .because("the domain has no such disk")
                .remedy(if names.is_empty() {
                    "it has none at all".into()
                } else {
                    format!("it has {}", names.join(", "))
                }));
        }
    }
    elements.into_iter().map(|disk| decide(virsh, disk, options, held)).collect()
}

/// The disks in a definition.
pub fn elements(domain: &Element) -> impl Iterator<Item = &Element> {
    domain.child("devices").into_iter().flat_map(Element::elements).filter(|e| e.name() == "disk")
}

/// Format of a disk's image.
pub fn format(disk: &Element) -> String {
    disk.child("driver").and_then(|d| d.get("type")).map_or("raw".into(), |f| f.into_owned())
}

/// Name of a disk in the guest.
pub fn target(disk: &Element) -> String {
    disk.child("target").and_then(|t| t.get("dev")).unwrap_or_default().into_owned()
}

fn decide(virsh: &Virsh, disk: &Element, options: &DiskOptions, held: Option<&Held>) -> Result<Disk> {
    let name = target(disk);
    let rule = options.rules.iter().find(|rule| rule.target == name);
    let shown = describe(disk);
    let done = |action| Ok(Disk { target: name.clone(), action, shown: shown.clone() });
    let wanted = rule.is_some_and(|r| r.place.is_some() || r.size.is_some());
    let has = |flag: &str| disk.child(flag).is_some();
    if rule.is_some_and(|r| r.skip) {
        return done(Action::Drop);
    }
    let kind = disk.get("type").unwrap_or_default().into_owned();
    let read_only = has("readonly") || disk.is("device", "cdrom");
    if rule.is_some_and(|r| r.share) || (read_only && !wanted) || disk.child("source").is_none() {
        return done(if read_only || disk.child("source").is_none() { Action::Keep } else { Action::KeepWritable });
    }
    let (place, size) = rule.map(|r| (r.place.clone(), r.size)).unwrap_or_default();
    if let Some(files) = held.map(|held| held.disk(disk)).transpose()?.flatten() {
        return done(Action::Clone(Files { size, place, ..files }));
    }
    let source = Source::find(virsh, disk, &kind)?;
    match source {
        Source::File { .. } if has("shareable") && !wanted && options.shared == Policy::Share => done(Action::Keep),
        Source::File { .. } if has("shareable") && !wanted && options.shared == Policy::Skip => done(Action::Drop),
        Source::File { .. } if held.is_some() => Err(not_held(&name)),
        Source::File { path, pool } => {
            let from = image::chain(&path, &format(disk))?;
            done(Action::Clone(Files { pool, size, place, ..Files::new(from) }))
        }
        Source::Other if wanted => Err(Error::new(Kind::Unsupported, format!("clone disk {name}"))
            .because(format!("it is {shown}, not a file"))
            .remedy(format!("--disk {name}=share or --disk {name}=skip"))),
        Source::Other if options.luns == Some(Policy::Skip) => done(Action::Drop),
        Source::Other if has("shareable") || options.luns == Some(Policy::Share) => done(Action::Keep),
        Source::Other => done(Action::KeepWritable),
    }
}

/// A disk that a snapshot does not hold cannot be of its time.
pub fn not_held(target: &str) -> Error {
    Error::new(Kind::Invalid, format!("clone disk {target}"))
        .because("the snapshot does not hold it")
        .remedy(format!("--disk {target}=skip leaves it out"))
}

/// Where the files of a domain's disks lie, as far as that can be told.
pub fn paths(virsh: &Virsh, domain: &Element) -> Vec<PathBuf> {
    let sources = elements(domain).filter_map(|disk| disk.child("source"));
    let path = |source: &Element| match (source.get("file"), source.get("pool"), source.get("volume")) {
        (Some(file), ..) => Some(PathBuf::from(file.into_owned())),
        (_, Some(pool), Some(volume)) => pools::volume_path(virsh, &pool, &volume).ok(),
        _ => None,
    };
    sources.filter_map(path).collect()
}

enum Source {
    File {
        path: PathBuf,
        pool: Option<String>,
    },
    /// A block or network device, a directory, a disk of another process.
    Other,
}

impl Source {
    fn find(virsh: &Virsh, disk: &Element, kind: &str) -> Result<Source> {
        let text = |name: &str| disk.child("source").and_then(|s| s.get(name)).map(|v| v.into_owned());
        let (path, pool) = match kind {
            "file" => (text("file").map(PathBuf::from), None),
            "volume" => {
                let (Some(pool), Some(volume)) = (text("pool"), text("volume")) else { return Ok(Source::Other) };
                (Some(pools::volume_path(virsh, &pool, &volume)?), Some(pool))
            }
            _ => (None, None),
        };
        let Some(path) = path else { return Ok(Source::Other) };
        let look =
            std::fs::metadata(&path).map_err(|e| Error::io(format!("look at disk {}", target(disk)), e).at(&path))?;
        Ok(if look.is_file() { Source::File { path, pool } } else { Source::Other })
    }
}

/// A disk in a few words.
fn describe(disk: &Element) -> String {
    let source = disk.child("source");
    let text = |name: &str| source.and_then(|s| s.get(name)).map(|v| v.into_owned());
    let kind = disk.get("type").unwrap_or_default().into_owned();
    match kind.as_str() {
        _ if source.is_none() => "empty".into(),
        "file" => text("file").unwrap_or_default(),
        "block" => format!("the block device {}", text("dev").unwrap_or_default()),
        "volume" => format!("{}/{}", text("pool").unwrap_or_default(), text("volume").unwrap_or_default()),
        "network" => format!("a network disk ({})", text("protocol").unwrap_or_default()),
        _ => format!("a disk of type {kind}"),
    }
}

/// Path of the clone of a disk's image for the domain `new`, and its libvirt pool if it is named by that.
pub fn place(virsh: &Virsh, files: &Files, target: &str, old: &str, new: &str) -> Result<(PathBuf, Option<String>)> {
    let from = &files.from[0].path;
    match files.place.as_deref().map(|place| place.replace("{}", new)) {
        None => Ok((from.with_file_name(file_name(from, target, old, new)), files.pool.clone())),
        Some(path) if path.starts_with('/') => Ok((PathBuf::from(path), None)),
        Some(place) => {
            let named = place.split_once('/').filter(|(_, name)| pools::check_name(name).is_ok());
            let (pool, name) = named.ok_or_else(|| {
                Error::new(Kind::Invalid, format!("place disk {target}"))
                    .because(format!("{place:?} is neither POOL/NAME nor an absolute path"))
            })?;
            Ok((pools::directory(virsh, pool)?.join(name), files.pool.as_ref().map(|_| pool.to_owned())))
        }
    }
}

/// Name of the clone's file: the source's with the name of the new domain in place of the old one's, else the new name
/// and the disk's.
fn file_name(from: &Path, target: &str, old: &str, new: &str) -> String {
    let file = from.file_name().unwrap_or_default().to_string_lossy();
    if let Some(name) = renamed(&file, old, new) {
        return name;
    }
    match file.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() && extension.len() <= 6 => format!("{new}-{target}.{extension}"),
        _ => format!("{new}-{target}"),
    }
}

/// Path of the clone of a file below an image, `number` files down.
pub fn place_below(image: &Path, from: &Path, number: usize) -> PathBuf {
    let stem = image.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let extension = from.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    image.with_file_name(format!("{stem}-below{number}{extension}"))
}

/// Writes into the clone's XML what becomes of its disks. `places` are the new images, by the disk's name.
pub fn rewrite(domain: &mut Element, disks: &[Disk], places: &[(String, PathBuf, Option<String>)]) {
    let Some(devices) = domain.child_mut("devices") else { return };
    let dropped = |name: &str| disks.iter().any(|d| d.target == name && d.action == Action::Drop);
    devices.remove(|e| e.name() == "disk" && dropped(&target(e)));
    for disk in devices.elements_mut().filter(|e| e.name() == "disk") {
        let name = target(disk);
        let Some((_, path, pool)) = places.iter().find(|(disk, ..)| *disk == name) else { continue };
        // The files below are read from the image itself, which names the clone's own.
        disk.remove(|e| e.name() == "backingStore" && e.elements().next().is_some());
        let by_volume = disk.is("type", "volume");
        let Some(source) = disk.child_mut("source") else { continue };
        match pool {
            Some(pool) if by_volume => {
                source.set("pool", pool);
                source.set("volume", &path.file_name().unwrap_or_default().to_string_lossy());
            }
            _ => {
                source.unset("pool");
                source.unset("volume");
                source.unset("mode");
                source.set("file", &path.to_string_lossy());
                disk.set("type", "file");
            }
        }
    }
}
