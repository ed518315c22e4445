//! The one directory in which everything is made, and which is gone at the end.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::failure::{During, Failure, Outcome};
use crate::run;

/// A directory of our own below the user's.
pub struct Work {
    dir: Option<TempDir>,
}

impl Work {
    /// Makes it, and sees that files can be made in it.
    pub fn new(parent: &Path) -> Outcome<Work> {
        let meta = std::fs::metadata(parent).during("look at", parent)?;
        if !meta.is_dir() {
            return Err(Failure::line(format!("{parent:?} is not a directory")));
        }
        let parent = parent.canonicalize().during("look at", parent)?;
        let dir = TempDir::with_prefix_in("clonebench-", &parent).during("make a directory in", &parent)?;
        Ok(Work { dir: Some(dir) })
    }

    /// A directory for one row, removed with what is in it when it is dropped.
    pub fn area(&self) -> Outcome<Work> {
        Ok(Work { dir: Some(TempDir::with_prefix_in("row-", self.path()).during("make a directory in", self.path())?) })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new(""), TempDir::path)
    }

    /// Path of something in it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Makes a directory in it.
    pub fn make_dir(&self, name: &str) -> Outcome<PathBuf> {
        let path = self.at(name);
        std::fs::create_dir(&path).during("make directory", &path)?;
        Ok(path)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let Some(dir) = self.dir.take() else { return };
        // Nothing is removed through a mount that could not be taken down.
        let below = mounts_below(dir.path());
        for mount in below.iter().rev() {
            run::finish(run::command("umount").arg("-l").arg(mount));
        }
        let left = mounts_below(dir.path());
        if left.is_empty() {
            let path = dir.path().to_owned();
            if let Err(error) = dir.close() {
                eprintln!("clonebench: cannot remove {path:?}: {error}");
            }
        } else {
            eprintln!("clonebench: still mounted, so it stays: {:?}", dir.keep());
        }
    }
}

/// Mount points below a directory, outer ones first.
fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let mounts = clonefs::daemon::mount::table::mounts().unwrap_or_default();
    mounts.into_iter().map(|mount| mount.mountpoint).filter(|path| path.starts_with(dir)).collect()
}
