//! All volumes below a directory of a mount.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::doors;
use crate::error::{Context, Result};
use crate::protocol::VolumeInfo;

/// Files for which one more thread asks the daemon, and the most threads that do.
const PER_THREAD: usize = 256;
const MOST_THREADS: usize = 4;

/// A regular file of a mount.
pub struct Found {
    /// Path below the directory that was walked; empty when that was itself a file.
    pub name: PathBuf,
    /// Its state, or why that could not be read.
    pub info: Result<VolumeInfo>,
}

impl Found {
    /// Path to open it by.
    pub fn path(&self, root: &Path) -> PathBuf {
        path_below(root, &self.name)
    }
}

/// The state of every regular file below `root` (or of `root` itself), sorted by path. Other filesystems that are
/// mounted below, and directories that cannot be read, are left out.
pub fn volumes(root: &Path) -> Result<Vec<Found>> {
    each(root, |name| ask(root, name))
}

/// What `ask` says of the name of each regular file below `root`, in the order of the names. It is asked by several
/// threads where there are many.
pub(super) fn each<T: Send>(root: &Path, ask: impl Fn(&Path) -> Option<T> + Sync) -> Result<Vec<T>> {
    let top = fs::metadata(root).context("list", root)?;
    let mut names = Vec::new();
    if top.is_dir() {
        let entries = fs::read_dir(root).context("list", root)?;
        walk(entries, root, top.dev(), &mut names);
        names.sort_unstable();
    } else {
        names.push(PathBuf::new());
    }
    let threads = (names.len() / PER_THREAD).clamp(1, MOST_THREADS);
    let share = names.len().div_ceil(threads).max(1);
    let mut found = Vec::with_capacity(names.len());
    std::thread::scope(|scope| {
        let ask = &ask;
        let ask_all = |part: &[PathBuf]| part.iter().filter_map(|name| ask(name)).collect::<Vec<T>>();
        let parts: Vec<_> = names.chunks(share).map(|part| scope.spawn(move || ask_all(part))).collect();
        for part in parts {
            // A thread that panicked is a bug of ours: pass it on.
            found.extend(part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    });
    Ok(found)
}

/// Collects the names of regular files, directory by directory. No recursion: a tree can be deep.
fn walk(top: fs::ReadDir, root: &Path, device: u64, names: &mut Vec<PathBuf>) {
    let mut waiting = vec![(PathBuf::new(), top)];
    while let Some((dir, entries)) = waiting.pop() {
        let mut below = Vec::new();
        for entry in entries.flatten() {
            let name = dir.join(entry.file_name());
            match entry.file_type() {
                Ok(kind) if kind.is_file() => names.push(name),
                Ok(kind) if kind.is_dir() => below.push(name),
                _ => {}
            }
        }
        for name in below {
            let path = root.join(&name);
            let same = fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir() && m.dev() == device);
            if let (true, Ok(entries)) = (same, fs::read_dir(&path)) {
                waiting.push((name, entries));
            }
        }
    }
}

pub(super) fn path_below(root: &Path, name: &Path) -> PathBuf {
    if name.as_os_str().is_empty() { root.to_path_buf() } else { root.join(name) }
}

fn ask(root: &Path, name: &Path) -> Option<Found> {
    let found = |info| Found { name: name.to_path_buf(), info };
    match doors::info(&path_below(root, name)) {
        Ok(info) => info.map(|info| found(Ok(info))),
        // Deleted since its directory was read.
        Err(e) if e.os_error() == Some(libc::ENOENT) => None,
        Err(e) => Some(found(Err(e))),
    }
}
