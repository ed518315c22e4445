//! Clones of what a libvirt snapshot of a domain holds.

use std::path::Path;

use super::disks::{self, Action, Disk};
use super::image;
use super::source::Domain;
use super::virsh::Virsh;
use super::xml::Element;
use crate::error::{Error, Kind, Result};

/// What a snapshot holds of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The disk's name in the guest.
    pub target: String,
    /// Name of the snapshot inside of the image; `None` where the image was left as it was and another lies over it.
    pub internal: Option<String>,
}

/// Names of the snapshots of a domain.
pub fn names(virsh: &Virsh, domain: &Domain) -> Result<Vec<String>> {
    let doing = format!("look for snapshots of domain {:?}", domain.name);
    let list = virsh.run(&doing, &["snapshot-list", "--name", "--domain", &domain.uuid])?;
    Ok(list.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// The definition of a domain when a snapshot was taken, and what that holds of its disks.
pub fn find(virsh: &Virsh, domain: &Domain, name: &str) -> Result<(Element, Vec<Kept>)> {
    let doing = format!("look for snapshot {name:?} of domain {:?}", domain.name);
    let arguments = ["snapshot-dumpxml", "--domain", &domain.uuid, "--snapshotname", name, "--security-info"];
    let snapshot = virsh.xml(&doing, &arguments)?;
    let refuse = |cause: &str| Error::new(Kind::Unsupported, doing.clone()).because(cause.to_owned());
    let definition = snapshot.child("inactiveDomain").or_else(|| snapshot.child("domain"));
    let mut definition = definition.ok_or_else(|| refuse("it does not say what the domain was"))?.clone();
    rename(&mut definition);
    let mut kept = Vec::new();
    for disk in snapshot.child("disks").into_iter().flat_map(Element::elements) {
        let target = disk.get("name").unwrap_or_default().into_owned();
        match disk.get("snapshot").as_deref() {
            Some("internal") => kept.push(Kept { target, internal: Some(name.to_owned()) }),
            Some("external") => kept.push(Kept { target, internal: None }),
            _ => {}
        }
    }
    if kept.is_empty() {
        return Err(refuse("it holds no disk"));
    }
    Ok((definition, kept))
}

/// Makes `<inactiveDomain>` a `<domain>`, and forgets what only a running domain has.
fn rename(definition: &mut Element) {
    if definition.name() != "domain" {
        definition.rename("domain");
    }
    for device in definition.child_mut("devices").into_iter().flat_map(Element::elements_mut) {
        if let Some(source) = device.child_mut("source") {
            source.unset("index");
        }
        device.remove(|e| e.name() == "alias" && e.get("name").is_some_and(|n| !n.starts_with("ua-")));
    }
}

/// Sets what each disk is a clone of. A disk that the snapshot does not hold cannot be of its time.
pub fn apply(domain: &Domain, disks: &mut [Disk], kept: &[Kept]) -> Result<()> {
    for disk in disks {
        let Action::Clone(files) = &mut disk.action else { continue };
        let found = kept.iter().find(|kept| kept.target == disk.target);
        let found = found.ok_or_else(|| disks::not_held(&disk.target))?;
        if found.internal.is_none() {
            still_below(domain, &disk.target, &files.from[0].path)?;
        }
        files.snapshot.clone_from(&found.internal);
    }
    Ok(())
}

/// An external snapshot is the file that lay at the top then. It holds what it held only while another lies over it: a
/// block commit, or a return to it, writes into it.
fn still_below(domain: &Domain, target: &str, kept: &Path) -> Result<()> {
    let disk = disks::elements(&domain.xml).find(|disk| disks::target(disk) == target);
    let file = disk.and_then(|d| Some((d.child("source")?.get("file")?.into_owned(), disks::format(d))));
    let chain = file.map(|(file, format)| image::chain(Path::new(&file), &format)).transpose()?.unwrap_or_default();
    if chain.iter().skip(1).any(|layer| layer.path == kept) {
        return Ok(());
    }
    Err(Error::new(Kind::Changed, format!("clone disk {target}"))
        .at(kept)
        .because("it no longer lies below the disk, so it may hold what was written after the snapshot")
        .remedy("clone the domain as it is now"))
}
