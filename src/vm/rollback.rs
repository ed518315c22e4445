//! A domain made again what a snapshot of it holds. What it is now is kept meanwhile, as snapshots of its disks and a
//! copy of the rest, so that a failure at any step leads back.

use std::path::{Path, PathBuf};

use super::libvirt_snapshot;
use super::parts::Tree;
use super::record::{self, Held};
use super::source::{Domain, Taking};
use super::undo::Undo;
use super::virsh::Virsh;
use crate::client::{self, SnapshotName};
use crate::engine::store::new_id;
use crate::error::{Context, Error, Kind, Result};

const VERB: &str = "roll back";

/// Rolls a domain that is shut off back to a snapshot: disks, definition, NVRAM, TPM. All or nothing. `check` is asked
/// before each step. Gives what should be said as well.
pub fn roll_back(virsh: &Virsh, domain: &str, name: &str, check: &dyn Fn() -> Result<()>) -> Result<Vec<String>> {
    let domain = Domain::find(virsh, domain, Taking { verb: VERB, live: true, quiesce: false })?;
    let doing = domain.doing(VERB);
    let state = if domain.paused { "it is paused, not shut off" } else { "it is running" };
    if domain.active() {
        return Err(Error::new(Kind::Busy, doing).because(state).remedy("shut it down first"));
    }
    let held = record::need(virsh, &domain, name)?;
    let images = images(&held, &doing)?;
    let mut back = Back {
        virsh,
        domain: &domain,
        safety: format!("before-{}", new_id()),
        images: Vec::new(),
        parts: Vec::new(),
        defined: false,
    };
    check()?;
    client::create_snapshots(&images, &back.safety)?;
    let done = back.forward(&held, &images, check);
    back.end(&images, done)?;
    let others = libvirt_snapshot::names(virsh, &domain)?;
    let note =
        format!("libvirt lists snapshots of its own ({}): those made since do not fit the disks", others.join(", "));
    Ok(if others.is_empty() { Vec::new() } else { vec![note] })
}

/// The images to roll back, once it is certain that what lies below them still is what it was: that may be others' too,
/// so it is not touched.
fn images(held: &Held, doing: &str) -> Result<Vec<PathBuf>> {
    let mut images = Vec::new();
    for (path, top) in held.record.files() {
        let snapshot = held.find(path)?;
        if !path.is_file() {
            return Err(Error::new(Kind::NotFound, doing.to_owned())
                .at(path)
                .because("this disk of it is gone")
                .remedy("domain clone --snapshot makes a new machine of the snapshot"));
        }
        if top {
            images.push(path.to_path_buf());
            continue;
        }
        let difference = client::diff(path, &snapshot, false, &mut |_, _| Ok(()))?;
        if difference.bytes() > 0 || difference.sizes[0] != difference.sizes[1] {
            return Err(Error::new(Kind::Changed, doing.to_owned())
                .at(path)
                .because("it lies below a disk, and was written to since the snapshot")
                .remedy("domain clone --snapshot makes a new machine of the snapshot"));
        }
    }
    Ok(images)
}

/// The way back from a rollback that did not succeed.
struct Back<'a> {
    virsh: &'a Virsh,
    domain: &'a Domain,
    /// Name of the snapshots of the images as they were before.
    safety: String,
    /// Images that were rolled back, or may have been.
    images: Vec<PathBuf>,
    parts: Vec<Exchanged>,
    defined: bool,
}

impl Back<'_> {
    fn forward(&mut self, held: &Held, images: &[PathBuf], check: &dyn Fn() -> Result<()>) -> Result<()> {
        for image in images {
            check()?;
            let done = client::roll_back(&held.snapshot_of(image));
            // Somebody has it open: then nothing was done to it, and nothing could be.
            if !matches!(&done, Err(error) if error.kind() == Kind::Busy) {
                self.images.push(image.clone());
            }
            done?;
        }
        self.domain.still_off(self.virsh)?;
        for part in &held.record.parts {
            check()?;
            self.parts.push(Exchanged::put(&part.tree, &part.path, self.virsh)?);
        }
        check()?;
        let mut definition = held.definition()?;
        if let Some(name) = definition.child_mut("name") {
            // It may have another since.
            name.set_text(&self.domain.name);
        }
        self.defined = true;
        self.virsh.define(&self.domain.doing(VERB), "define", &definition).map(drop)
    }

    /// Removes what was kept, or goes back to it.
    fn end(mut self, images: &[PathBuf], done: Result<()>) -> Result<()> {
        let Err(error) = done else {
            self.parts.drain(..).for_each(Exchanged::keep);
            self.forget(images);
            return Ok(());
        };
        match self.go_back() {
            Ok(()) => {
                self.forget(images);
                Err(error)
            }
            Err(back) => Err(Error::new(error.kind(), self.domain.doing(VERB))
                .because(format!("{error}; and what was done could not be undone: {back}"))
                .remedy(format!("its disks as they were are their snapshots @{}", self.safety))),
        }
    }

    fn go_back(&mut self) -> Result<()> {
        let mut result = Ok(());
        if self.defined {
            result = self.virsh.define("define the domain as it was", "define", &self.domain.xml).map(drop);
        }
        for part in self.parts.drain(..).rev() {
            result = result.and(part.take_back());
        }
        for image in &self.images {
            result = result.and(client::roll_back(&self.kept(image)));
        }
        result
    }

    fn kept(&self, image: &Path) -> SnapshotName {
        SnapshotName { volume: image.to_path_buf(), name: self.safety.clone() }
    }

    /// Best effort: what stays is listed with the snapshots, and does no harm.
    fn forget(&self, images: &[PathBuf]) {
        for image in images {
            let _ = client::remove_snapshot(&self.kept(image));
        }
    }
}

/// A part of a domain in whose place another was put; the first one lies beside it.
struct Exchanged {
    path: PathBuf,
    old: Option<PathBuf>,
}

impl Exchanged {
    fn put(tree: &Tree, path: &Path, virsh: &Virsh) -> Result<Exchanged> {
        let beside = |what: &str| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            path.with_file_name(format!(".{name}.{what}-{}", new_id()))
        };
        let (new, old) = (beside("new"), beside("old"));
        let mut undo = Undo::new(virsh);
        tree.write(&new, &mut undo)?;
        let there = path.symlink_metadata().is_ok();
        if there {
            std::fs::rename(path, &old).context("put aside", path)?;
        }
        let exchanged = Exchanged { path: path.to_path_buf(), old: there.then_some(old) };
        match std::fs::rename(&new, path).context("put in place", path) {
            Ok(()) => {
                undo.keep();
                Ok(exchanged)
            }
            Err(error) => exchanged.take_back().and(Err(error)),
        }
    }

    fn take_back(self) -> Result<()> {
        remove(&self.path);
        match &self.old {
            Some(old) => std::fs::rename(old, &self.path).context("put back", &self.path),
            None => Ok(()),
        }
    }

    fn keep(self) {
        if let Some(old) = &self.old {
            remove(old);
        }
    }
}

/// Best effort: one that stays does no harm, or the next step fails because of it and says so.
fn remove(path: &Path) {
    let is_dir = path.symlink_metadata().is_ok_and(|look| look.is_dir());
    let _ = if is_dir { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_part_is_exchanged_and_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let virsh = Virsh::default();
        let (path, model) = (dir.path().join("vars"), dir.path().join("model"));
        fs::write(&model, "then").unwrap();
        let tree = Tree::read(&model).unwrap();
        fs::write(&path, "now").unwrap();
        let names = || fs::read_dir(dir.path()).unwrap().count();

        Exchanged::put(&tree, &path, &virsh).unwrap().take_back().unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names()), ("now", 2));
        Exchanged::put(&tree, &path, &virsh).unwrap().keep();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names()), ("then", 2));
        // None was there: none is there after the way back.
        let other = dir.path().join("other");
        Exchanged::put(&tree, &other, &virsh).unwrap().take_back().unwrap();
        assert_eq!(names(), 2);
        assert!(Exchanged::put(&tree, &dir.path().join("none/vars"), &virsh).is_err());
    }
}
