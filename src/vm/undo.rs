//! What has been made so far, to be taken back unless all goes well. Only what was made here is ever removed: a file by
//! its inode, a domain by the UUID that was chosen here.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::virsh::Virsh;

enum Step {
    File { path: PathBuf, id: (u64, u64) },
    Directory { path: PathBuf, id: (u64, u64) },
    Defined { uuid: String },
    Started { uuid: String },
}

/// Takes back what was recorded, last first, when it is dropped without [`Undo::keep`].
pub struct Undo<'a> {
    virsh: &'a Virsh,
    steps: Vec<Step>,
}

impl<'a> Undo<'a> {
    /// Nothing so far.
    pub fn new(virsh: &'a Virsh) -> Undo<'a> {
        Undo { virsh, steps: Vec::new() }
    }

    /// This file was made.
    pub fn file(&mut self, path: &Path) {
        if let Some(id) = identity(path) {
            self.steps.push(Step::File { path: path.to_path_buf(), id });
        }
    }

    /// This directory was made, and all that is in it.
    pub fn directory(&mut self, path: &Path) {
        if let Some(id) = identity(path) {
            self.steps.push(Step::Directory { path: path.to_path_buf(), id });
        }
    }

    /// The domain with this UUID was defined.
    pub fn defined(&mut self, uuid: &str) {
        self.steps.push(Step::Defined { uuid: uuid.to_owned() });
    }

    /// The domain with this UUID was started, or may have been.
    pub fn started(&mut self, uuid: &str) {
        self.steps.push(Step::Started { uuid: uuid.to_owned() });
    }

    /// All went well: nothing is taken back.
    pub fn keep(mut self) {
        self.steps.clear();
    }

    // Best effort throughout: the error that led here is the one to report.
    fn take_back(&self, step: &Step) {
        match step {
            Step::File { path, id } if identity(path) == Some(*id) => {
                let _ = std::fs::remove_file(path);
            }
            Step::Directory { path, id } if identity(path) == Some(*id) => {
                let _ = std::fs::remove_dir_all(path);
            }
            Step::File { .. } | Step::Directory { .. } => {}
            Step::Defined { uuid } => {
                let _ = self.virsh.run_long("take the new domain back", &["undefine", "--domain", uuid, "--nvram"]);
            }
            Step::Started { uuid } => {
                let _ = self.virsh.run_long("stop the new domain", &["destroy", "--domain", uuid]);
            }
        }
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        for step in std::mem::take(&mut self.steps).iter().rev() {
            self.take_back(step);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_what_was_made_is_removed_and_only_if_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs, tree) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("c"));
        fs::write(&ours, "x").unwrap();
        fs::write(&theirs, "x").unwrap();
        fs::create_dir(&tree).unwrap();
        let virsh = Virsh::default();
        let mut undo = Undo::new(&virsh);
        undo.file(&ours);
        undo.file(&theirs);
        undo.directory(&tree);
        fs::write(tree.join("later"), "x").unwrap();
        // Somebody else put another file in the place of the second.
        fs::write(dir.path().join("new"), "y").unwrap();
        fs::rename(dir.path().join("new"), &theirs).unwrap();
        drop(undo);
        assert!(!ours.exists() && !tree.exists());
        assert_eq!(fs::read(&theirs).unwrap(), b"y");
        let mut undo = Undo::new(&virsh);
        undo.file(&theirs);
        undo.keep();
        assert!(theirs.exists());
    }
}
