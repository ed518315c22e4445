//! What the disks of a domain lack.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::super::disks;
use super::super::virsh::Virsh;
use super::super::xml::Element;
use super::user::Qemu;
use super::{Chart, pool};
use crate::client;
use crate::error::Result;

pub(super) fn examine(chart: &mut Chart, virsh: &Virsh, name: &str, user: &Option<Qemu>) -> Result<()> {
    let xml = virsh.xml(&format!("look at domain {name:?}"), &["dumpxml", "--inactive", "--domain", name])?;
    let mut pools = BTreeSet::new();
    for disk in disks::elements(&xml) {
        let file = disk.child("source").and_then(|s| s.get("file")).map(|f| PathBuf::from(f.into_owned()));
        let Some(file) = file else { continue };
        pools.extend(one(chart, name, disk, &file, user));
    }
    for dir in pools {
        pool::examine(chart, virsh, &dir, user)?;
    }
    Ok(())
}

/// Looks at a disk in a file; gives the directory that it lies in if that is on a mount.
fn one(chart: &mut Chart, domain: &str, disk: &Element, file: &Path, user: &Option<Qemu>) -> Option<PathBuf> {
    let target = disks::target(disk);
    let edit = |what: &str| format!("virsh edit {domain}: {what} in the <driver> of {target}");
    if let Err(e) = fs::metadata(file) {
        chart.problem(
            "disk",
            format!("{target}: {file:?}: {e}"),
            "mount its pool, or take the disk out of the definition",
        );
        return None;
    }
    let mounted = client::mount_at(file).ok().flatten();
    if mounted.is_none() && is_stub(file) {
        chart.problem(
            "disk",
            format!("{target}: {file:?} is the stub of an overlay: its pool is not mounted"),
            "clonefs mount its directory, before libvirt starts",
        );
        return None;
    }
    match &mounted {
        Some(_) => chart.ok("disk", format!("{target}: {file:?} lies in a mounted pool")),
        None => chart.advice(
            "disk",
            format!("{target}: {file:?} lies in no mounted pool: its clones are copies"),
            "move it into one, and name it there",
        ),
    }
    if disk.child("readonly").is_none() {
        driver(chart, &target, disk, &edit);
    }
    let format = disk.child("driver").and_then(|d| d.get("type")).map_or("raw".into(), |f| f.into_owned());
    if format == "raw" && starts_with(file, b"QFI\xfb") {
        chart.advice(
            "format",
            format!("{target} is raw for libvirt, but holds a qcow2 image: the guest sees the image's own bytes"),
            edit("type='qcow2'"),
        );
    }
    if mounted.is_none() {
        pool::way(chart, file, user);
    }
    mounted.and(file.parent().map(Path::to_path_buf))
}

/// How qemu uses the disk.
fn driver(chart: &mut Chart, target: &str, disk: &Element, edit: &dyn Fn(&str) -> String) {
    let option =
        |name: &str| disk.child("driver").and_then(|d| d.get(name)).map(|v| v.into_owned()).unwrap_or_default();
    let (cache, io, discard) = (option("cache"), option("io"), option("discard"));
    match (cache.as_str(), io.as_str()) {
        ("unsafe", _) => chart.advice(
            "cache",
            format!("{target} ignores what the guest syncs: it is lost when the host crashes"),
            edit("cache='none'"),
        ),
        ("none" | "directsync", _) => chart.ok("cache", format!("{target}: {cache}")),
        (_, "native") => chart.problem(
            "cache",
            format!("{target} has io='native' without cache='none': it does not start"),
            edit("cache='none'"),
        ),
        _ => chart.advice(
            "cache",
            format!("{target} is cached twice, in the guest and here"),
            edit("cache='none' io='native'"),
        ),
    }
    match discard.as_str() {
        "unmap" => chart.ok("discard", format!("{target}: what the guest trims comes free")),
        _ => chart.advice(
            "discard",
            format!("{target} does not pass on what the guest trims: the space stays in use"),
            edit("discard='unmap'"),
        ),
    }
}

fn starts_with(file: &Path, magic: &[u8; 4]) -> bool {
    let mut start = [0; 4];
    fs::File::open(file).and_then(|mut f| f.read_exact(&mut start)).is_ok() && start == *magic
}

fn is_stub(file: &Path) -> bool {
    fs::File::open(file).is_ok_and(|file| crate::protocol::stub::is_stub(file).unwrap_or(false))
}
