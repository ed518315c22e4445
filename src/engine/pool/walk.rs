//! Looking for files in the whole tree, where nothing else says where they are.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use super::Pool;
use crate::engine::io::{FileKey, FileKind};
use crate::engine::store::{DIR, STUBS};
use crate::error::{Context, Result};

/// Most volumes that are looked for at a start.
const MOST: usize = 256;

impl Pool {
    /// Looks for a file: for a volume that was renamed without clonefs, or by a directory's rename.
    pub(super) fn find_by_walk(&self, key: FileKey) -> Option<PathBuf> {
        self.find_all(&HashSet::from([key]), 1).pop()
    }

    /// Regular files at or below a path; none if nothing is there now.
    pub fn files_below(&self, root: &Path) -> Result<BTreeSet<PathBuf>> {
        let mut files = BTreeSet::new();
        let mut directories = match self.env.fs.stat(root).map(|stat| stat.kind()) {
            Ok(FileKind::Directory) => vec![root.to_path_buf()],
            Ok(FileKind::File) => return Ok(BTreeSet::from([root.to_path_buf()])),
            _ => return Ok(files),
        };
        while let Some(directory) = directories.pop() {
            let entries = match self.env.fs.list(&directory) {
                // Removed meanwhile.
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => continue,
                other => other.context("list", &directory)?,
            };
            for entry in entries {
                let path = directory.join(&entry.name);
                let kind = entry.kind.or_else(|| self.env.fs.stat(&path).ok().map(|stat| stat.kind()));
                match kind {
                    Some(FileKind::Directory) if path != Path::new(DIR) => directories.push(path),
                    Some(FileKind::File) if !crate::engine::policy::is_draft(&path) => drop(files.insert(path)),
                    _ => {}
                }
            }
        }
        Ok(files)
    }

    /// Paths of these files, until `most` are found.
    fn find_all(&self, keys: &HashSet<FileKey>, most: usize) -> Vec<PathBuf> {
        let numbers: HashSet<u64> = keys.iter().map(|key| key.ino).collect();
        let mut found = Vec::new();
        let mut directories = vec![PathBuf::new()];
        while let Some(directory) = directories.pop() {
            // Removed meanwhile, or not ours to read.
            let Ok(entries) = self.env.fs.list(&directory) else { continue };
            for entry in entries {
                let path = directory.join(&entry.name);
                if directory.as_os_str().is_empty() && entry.name == DIR {
                    continue;
                }
                let kind = match entry.kind {
                    Some(kind) => kind,
                    None => match self.env.fs.stat(&path) {
                        Ok(stat) => stat.kind(),
                        Err(_) => continue,
                    },
                };
                if kind == FileKind::Directory {
                    directories.push(path);
                } else if numbers.contains(&entry.ino) && self.env.fs.stat(&path).is_ok_and(|s| keys.contains(&s.key)) {
                    found.push(path);
                    if found.len() >= most {
                        return found;
                    }
                }
            }
        }
        found
    }

    /// Names the volumes whose records are lost: their stubs are in the tree, and nothing says what they stand for.
    pub(super) fn name_lost_volumes(&self) -> Result<()> {
        let mut lost = HashSet::new();
        for entry in self.env.fs.list(Path::new(STUBS)).context("list stubs", STUBS)? {
            let stat = self.env.fs.stat(&Path::new(STUBS).join(&entry.name));
            let named = stat.ok().filter(|stat| stat.nlink > 1).map(|stat| stat.key);
            lost.extend(named.filter(|key| !self.tables.lock().stubs.contains_key(key)));
        }
        if lost.is_empty() {
            return Ok(());
        }
        for path in self.find_all(&lost, MOST) {
            let problem = "its record is damaged; it gives EIO".to_owned();
            self.add_trouble(path.to_string_lossy(), problem, "run `clonefs check --repair` on the unmounted pool");
        }
        Ok(())
    }
}
