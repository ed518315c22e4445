//! What a clone of a domain will be, before anything is made: names, files, XML. Everything that can be refused is
//! refused here.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use similar::TextDiff;

use super::customize::{self, Customize};
use super::disks::{self, Action, Disk, DiskOptions, Files};
use super::firmware::{self, TpmPolicy};
use super::freeze::Hold;
use super::identity::{self, Macs};
use super::image::Layer;
use super::libvirt_snapshot;
use super::parts::Part;
use super::pools;
use super::record::{self, Held};
use super::rewrite::{self, Identity};
use super::source::{Domain, Taking};
use super::virsh::Virsh;
use super::xml::Element;
use crate::client::{self, Directory, Target};
use crate::error::{Error, Kind, Result};

/// How a clone's disks relate to the source's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Overlays, which the pool makes independent in the background.
    Clone,
    /// Overlays that stay so until somebody deepens them.
    Linked,
    /// Independent before the domain is defined.
    Copy,
}

/// How to clone a domain.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names of the clones.
    pub names: Vec<String>,
    /// How the disks relate.
    pub mode: Mode,
    /// The source may be running.
    pub live: bool,
    /// Its guest agent freezes its filesystems meanwhile.
    pub quiesce: bool,
    /// Clone the state that was kept under this name.
    pub snapshot: Option<String>,
    /// What becomes of the disks.
    pub disks: DiskOptions,
    /// Fail rather than copy a disk that lies in no pool.
    pub no_copy: bool,
    /// What becomes of an emulated TPM's state.
    pub tpm: TpmPolicy,
    /// Start the clones.
    pub start: bool,
    /// What is changed in them.
    pub customize: Customize,
}

/// A file to be made.
#[derive(Clone, Debug)]
pub struct NewFile {
    /// What it is made of.
    pub from: PathBuf,
    /// Where, and its format.
    pub to: Layer,
    /// By reading and writing: it leaves or enters the pool.
    pub copied: bool,
}

/// The image of a disk to be made.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// The disk's name in the guest.
    pub disk: String,
    /// The image, and what lies below it.
    pub files: Vec<NewFile>,
    /// Size in bytes, if not the source's.
    pub size: Option<u64>,
    /// Internal snapshot to go back to.
    pub snapshot: Option<String>,
}

/// A domain to be made.
#[derive(Clone, Debug)]
pub struct NewDomain {
    /// Who it is.
    pub identity: Identity,
    /// Its definition.
    pub xml: Element,
    /// Its images.
    pub images: Vec<NewImage>,
    /// Its NVRAM and TPM.
    pub parts: Vec<Part>,
    /// Its cloud-init seed.
    pub seed: Option<PathBuf>,
}

/// Everything that will be done.
#[derive(Debug)]
pub struct Plan<'a> {
    pub(super) virsh: &'a Virsh,
    pub(super) options: &'a Options,
    /// The source.
    pub domain: Domain,
    /// What is taken of it: its definition, or that of a snapshot.
    pub(super) from: Element,
    /// The snapshot that it is taken of, if that is one of ours.
    pub(super) held: Option<Held>,
    /// Its disks and what becomes of them.
    pub disks: Vec<Disk>,
    /// What will be made.
    pub clones: Vec<NewDomain>,
    /// What the user should know before.
    pub notes: Vec<String>,
}

impl<'a> Plan<'a> {
    /// Looks at everything, changes nothing.
    pub fn make(virsh: &'a Virsh, source: &str, options: &'a Options) -> Result<Plan<'a>> {
        // What a snapshot holds does not change while the machine runs.
        let live = options.live || options.snapshot.is_some();
        let domain = Domain::find(virsh, source, Taking { verb: "clone", live, quiesce: options.quiesce })?;
        check_names(virsh, &options.names)?;
        let held = options.snapshot.as_ref().map(|name| record::find(virsh, &domain, name)).transpose()?.flatten();
        let (from, disks) = match (&options.snapshot, &held) {
            (Some(name), Some(_)) if libvirt_snapshot::names(virsh, &domain)?.contains(name) => {
                return Err(Error::new(Kind::Invalid, format!("clone domain {:?}", domain.name))
                    .because(format!("libvirt and clonefs both have a snapshot {name:?} of it"))
                    .remedy("remove one of them"));
            }
            (_, Some(held)) => {
                let from = held.definition()?;
                let disks = disks::plan(virsh, &from, &options.disks, Some(held))?;
                (from, disks)
            }
            (Some(name), None) => {
                let (from, kept) = libvirt_snapshot::find(virsh, &domain, name)?;
                let mut disks = disks::plan(virsh, &from, &options.disks, None)?;
                libvirt_snapshot::apply(&domain, &mut disks, &kept)?;
                (from, disks)
            }
            (None, None) => (domain.xml.clone(), disks::plan(virsh, &domain.xml, &options.disks, None)?),
        };
        let mut plan = Plan { virsh, options, domain, from, held, disks, clones: Vec::new(), notes: Vec::new() };
        plan.check_shared()?;
        let mut macs = Macs::in_use(virsh)?;
        for name in &options.names {
            let clone = plan.new_domain(name, &mut macs)?;
            plan.clones.push(clone);
        }
        plan.check_files()?;
        let mut seen = HashSet::new();
        plan.notes.retain(|note| seen.insert(note.clone()));
        Ok(plan)
    }

    /// How the first clone's XML differs from the source's.
    pub fn diff(&self) -> String {
        let old = format!("{}\n", self.from);
        self.clones
            .iter()
            .map(|clone| {
                let new = format!("{}\n", clone.xml);
                TextDiff::from_lines(&old, &new)
                    .unified_diff()
                    .header(&self.domain.name, &clone.identity.name)
                    .to_string()
            })
            .collect()
    }

    /// What has to be held still while the disks are cloned.
    pub fn hold(&self) -> Hold {
        let running = self.domain.active() && !self.domain.paused && self.options.snapshot.is_none();
        let first = self.clones.first();
        let many = first.is_some_and(|c| c.images.iter().map(|i| i.files.len()).sum::<usize>() + c.parts.len() > 1);
        Hold { suspend: running && many, quiesce: running && self.options.quiesce }
    }

    /// Disks that both machines could write to.
    fn check_shared(&mut self) -> Result<()> {
        for disk in self.disks.iter().filter(|d| d.action == Action::KeepWritable) {
            let explicit = self.options.disks.rules.iter().any(|r| r.target == disk.target && r.share);
            if explicit {
                continue;
            }
            let both = format!("{} is {}, which source and clone both write to", disk.target, disk.shown);
            if self.options.start {
                return Err(Error::new(Kind::Invalid, "start the clone")
                    .because(both)
                    .remedy(format!("--disk {0}=skip leaves it out, --disk {0}=share takes the risk", disk.target)));
            }
            self.notes.push(format!("{both}: never run both at once (--disk {}=skip leaves it out)", disk.target));
        }
        Ok(())
    }

    fn new_domain(&mut self, name: &str, macs: &mut Macs) -> Result<NewDomain> {
        let identity = Identity { name: name.to_owned(), uuid: identity::new_uuid()? };
        let mut xml = self.from.clone();
        self.notes.extend(rewrite::rewrite(&mut xml, &identity, macs)?);
        // In a snapshot it may have had another.
        let old = self.from.child("name").map_or_else(|| self.domain.name.clone(), Element::text);
        let ids = (&*self.domain.uuid, &*identity.uuid);
        let parts = firmware::rewrite(&mut xml, (&old, ids.0), (name, ids.1), self.options.tpm, self.virsh)?;
        let parts = match &self.held {
            Some(held) => parts.into_iter().filter_map(|part| held.part(part)).collect(),
            None => parts.into_iter().filter(Part::is_there).collect(),
        };
        let mut images: Vec<NewImage> = Vec::new();
        let mut places = Vec::new();
        for disk in self.disks.clone() {
            let Action::Clone(files) = &disk.action else { continue };
            // Two disks on one file stay two disks on one file.
            let same = images.iter().find(|image| image.files[0].from == files.read_at(0));
            if let Some(image) = same {
                places.push((disk.target, image.files[0].to.path.clone(), None));
                continue;
            }
            let (path, pool) = disks::place(self.virsh, files, &disk.target, &old, name)?;
            images.push(self.new_image(&disk.target, files, &path)?);
            places.push((disk.target, path, pool));
        }
        disks::rewrite(&mut xml, &self.disks, &places);
        let seed = self.seed(&mut xml, &images, name)?;
        Ok(NewDomain { identity, xml, images, parts, seed })
    }

    fn new_image(&mut self, disk: &str, files: &Files, path: &Path) -> Result<NewImage> {
        let mut made = Vec::new();
        for (number, layer) in files.from.iter().enumerate() {
            let to = if number == 0 { path.to_path_buf() } else { disks::place_below(path, &layer.path, number) };
            let from = files.read_at(number).to_path_buf();
            let copied = self.is_copied(&from, &to)?;
            made.push(NewFile { from, to: Layer { path: to, format: layer.format.clone() }, copied });
        }
        Ok(NewImage { disk: disk.to_owned(), files: made, size: files.size, snapshot: files.snapshot.clone() })
    }

    /// Whether a file has to be copied, because it does not stay in the pool that it is in.
    fn is_copied(&mut self, from: &Path, to: &Path) -> Result<bool> {
        let dir = to.parent().unwrap_or(Path::new("/"));
        let same =
            client::mount_at(from)?.is_some_and(|m| client::mount_at(dir).ok().flatten().is_some_and(|d| d.id == m.id));
        if same {
            return Ok(false);
        }
        let doing = "clone disk";
        let cause = match client::mount_at(from)? {
            None => "it lies in no mounted pool",
            Some(_) => "its clone is to lie outside of its pool",
        };
        let refuse = |kind, remedy: &'static str| Err(Error::new(kind, doing).at(from).because(cause).remedy(remedy));
        if self.options.no_copy {
            return refuse(Kind::CrossPool, "without --no-copy it is copied");
        }
        if self.domain.active() && self.options.snapshot.is_none() {
            return refuse(
                Kind::Busy,
                "a copy of a running machine's disk would be torn: shut it down, or move the disk into a pool",
            );
        }
        self.notes.push(format!("{from:?}: {cause}, so it is copied"));
        Ok(true)
    }

    fn seed(&mut self, xml: &mut Element, images: &[NewImage], name: &str) -> Result<Option<PathBuf>> {
        let customize = &self.options.customize;
        if !customize.wants_seed() {
            return Ok(None);
        }
        customize.hostname(name)?;
        let first = images.first().ok_or_else(|| {
            Error::new(Kind::Invalid, "write the cloud-init seed").because("no disk is cloned that it could lie beside")
        })?;
        let path = first.files[0].to.path.with_file_name(format!("{name}-seed.img"));
        customize::attach(xml, &path);
        Ok(Some(path))
    }

    /// All files that will be made can be: their names are free and differ.
    fn check_files(&self) -> Result<()> {
        let mut seen = HashSet::new();
        for clone in &self.clones {
            let images = clone.images.iter().flat_map(|image| &image.files).map(|file| &file.to.path);
            for path in images.chain(&clone.seed) {
                if !seen.insert(path) {
                    return Err(Error::new(Kind::Exists, "create")
                        .at(path)
                        .because("two clones or disks would have this file"));
                }
                target(path)?.check()?;
            }
            clone.parts.iter().try_for_each(Part::check)?;
        }
        Ok(())
    }
}

/// The place of a new file.
pub(super) fn target(path: &Path) -> Result<Target> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::new(Kind::Invalid, "create").at(path).because("it is no name for a file"))?;
    let dir = Directory::open_anywhere(path.parent().unwrap_or(Path::new("/")))?;
    Ok(Target { dir, name: name.to_owned(), replace: false })
}

fn check_names(virsh: &Virsh, names: &[String]) -> Result<()> {
    let taken: HashSet<String> = virsh.domains()?.into_iter().collect();
    let mut seen = HashSet::new();
    for name in names {
        let refuse = |kind, cause: String| Err(Error::new(kind, format!("define domain {name:?}")).because(cause));
        if let Err(cause) = pools::check_name(name) {
            return refuse(Kind::Invalid, cause);
        }
        if taken.contains(name) {
            return refuse(Kind::Exists, "a domain has this name".into())
                .map_err(|e| e.remedy("choose another, or virsh undefine it"));
        }
        if !seen.insert(name) {
            return refuse(Kind::Exists, "two clones would have this name".into());
        }
    }
    Ok(())
}
