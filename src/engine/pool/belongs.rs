//! Which directory a snapshot belongs to: the one that its volume was in, and no other that has its name later.
//!
//! Who may come to a snapshot follows from that directory. Its name is not enough to know it by: whoever makes a directory
//! of the name of one that is gone would come to what was in it. Nor is its inode number, which filesystems use again at
//! once. So it gets a random identity in an attribute that users of the mount neither see nor set, and that so goes into
//! no copy that is made through the mount. A snapshot of which the directory is gone, or cannot have that attribute, is
//! its owner's and the administrator's alone. The root cannot go, and needs none.

use std::ffi::OsString;
use std::path::Path;

use super::Pool;
use crate::engine::io::{FileKey, Inode};
use crate::engine::store::record::{Change, Snapshot, VolumeRecord};
use crate::engine::store::{new_id, snapshot_path};
use crate::engine::volume::Volume;
use crate::error::{Context, Result};

/// Name of the attribute.
const XATTR: &str = "user.clonefs.directory";
/// Bytes of its value: two identities in hexadecimal digits, which nobody guesses.
const LEN: usize = 32;
/// A volume can be renamed, or get another file, while we look.
const TRIES: usize = 3;

/// The mark of a directory that is held.
fn mark_of(directory: &dyn Inode) -> Option<String> {
    let value = directory.get_xattr(&OsString::from(XATTR)).ok()?;
    String::from_utf8(value).ok().filter(|text| text.len() == LEN)
}

fn is_root(directory: &Path) -> bool {
    directory.as_os_str().is_empty()
}

/// The directory of a volume.
pub(super) fn above(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

impl Pool {
    /// Its mark, set if there is none. `None`: it cannot have one.
    fn marked(&self, directory: &dyn Inode) -> Option<String> {
        let known = mark_of(directory);
        if known.is_some() || self.options.read_only {
            return known;
        }
        let new = format!("{}{}", new_id(), new_id());
        // If somebody else was faster, it is theirs.
        let _ = directory.set_xattr(&OsString::from(XATTR), new.as_bytes(), libc::XATTR_CREATE);
        let mark = mark_of(directory)?;
        // Durable before the record that names it; if that fails, and the power goes, the snapshot is its owner's alone.
        let _ = directory.sync();
        Some(mark)
    }

    /// What a directory is marked with.
    pub(super) fn mark_of_directory(&self, path: &Path) -> Option<String> {
        if is_root(path) { None } else { mark_of(self.env.fs.find(path).ok()?.as_ref()) }
    }

    /// As [`Pool::mark_of_directory`], and marks it if it is not.
    pub(super) fn mark_directory(&self, path: &Path) -> Option<String> {
        if is_root(path) { None } else { self.marked(self.env.fs.find(path).ok()?.as_ref()) }
    }

    /// The mark of the directory that a volume is in, which is set if need be.
    pub(super) fn mark_above(&self, volume: &Volume, path: &Path) -> Option<String> {
        let name = path.file_name().filter(|_| !is_root(above(path)))?;
        for _ in 0..TRIES {
            let directory = self.env.fs.find(above(path)).ok()?;
            if directory.stat_at(name).is_ok_and(|stat| stat.key == volume.key()) {
                return self.marked(directory.as_ref());
            }
        }
        None
    }

    /// Whether a snapshot belongs to the directory that is at `path` and is the file `key`, so that whoever may search
    /// that may come to it.
    pub fn belongs(&self, snapshot: &Snapshot, path: &Path, key: FileKey) -> bool {
        if is_root(path) {
            return true;
        }
        let Some(wanted) = &snapshot.directory else { return false };
        let Ok(directory) = self.env.fs.find(path) else { return false };
        directory.stat().is_ok_and(|stat| stat.key == key) && mark_of(directory.as_ref()).as_ref() == Some(wanted)
    }

    /// A file or directory was renamed: the snapshots of what it is, or holds, follow. With `exchanged` the other's too.
    /// A snapshot whose name is taken at its new place gets a number. Those that are left from a directory that is gone
    /// stay where they are.
    pub fn snapshots_follow(&self, from: &Path, to: &Path, exchanged: bool) -> Result<()> {
        let ways = [(from, to), (to, from)].map(|(from, to)| Some((from.to_str()?, to.to_str()?)));
        let ways = ways.into_iter().flatten().take(if exchanged { 2 } else { 1 });
        let any = |(from, _): &(&str, &str)| {
            let catalogue = self.env.store.catalogue();
            catalogue.snapshots_of(from).chain(catalogue.snapshots_below(from)).next().is_some()
        };
        let ways: Vec<Move<'_>> = ways.filter(any).map(|way| Move::new(self, way)).collect();
        if ways.is_empty() {
            return Ok(());
        }
        let _ops = self.ops.lock();
        self.env.store.commit_with(|catalogue| {
            let mut changes = Vec::new();
            let mut taken: Vec<(String, String)> = Vec::new();
            for way in &ways {
                for record in catalogue.snapshots_of(way.from).chain(catalogue.snapshots_below(way.from)) {
                    let Some(snapshot) = record.snapshot.as_ref().and_then(|snapshot| way.moved(snapshot)) else {
                        continue;
                    };
                    let is_free = |name: &str| {
                        let there = !exchanged && catalogue.snapshot(&snapshot.of, name).is_some();
                        !there && !taken.iter().any(|(path, taken)| *path == snapshot.of && taken == name)
                    };
                    let numbered = (2..).map(|n| format!("{}-{n}", snapshot.name));
                    let name = std::iter::once(snapshot.name.clone()).chain(numbered).find(|name| is_free(name));
                    let Some(name) = name else { continue };
                    taken.push((snapshot.of.clone(), name.clone()));
                    let snapshot = Some(Snapshot { name, ..snapshot });
                    changes.push(Change::Volume(VolumeRecord { snapshot, ..record.clone() }));
                }
            }
            changes
        })?;
        Ok(())
    }

    /// For the start: snapshots that were made by a version that did not note where they belong. The directory that has
    /// the name now is taken for theirs, unless a stranger can have made it.
    pub(super) fn bind_old_snapshots(&self) -> Result<()> {
        let nested = |record: &&VolumeRecord| {
            let snapshot = record.snapshot.as_ref();
            snapshot.is_some_and(|snapshot| snapshot.directory.is_none() && snapshot.of.contains('/'))
        };
        let old: Vec<VolumeRecord> = {
            let catalogue = self.env.store.catalogue();
            catalogue.snapshots_below("").filter(nested).cloned().collect()
        };
        let mut changes = Vec::new();
        for record in old {
            let Some(snapshot) = &record.snapshot else { continue };
            let of = Path::new(&snapshot.of);
            let owner = |path: &Path| self.env.fs.stat(path).ok().map(|stat| stat.uid);
            let Some(mine) = owner(&snapshot_path(record.id)) else { continue };
            let theirs = [owner(above(of)), owner(of)];
            if theirs[0] != Some(0) && !theirs.contains(&Some(mine)) {
                continue;
            }
            let Some(mark) = self.mark_directory(above(of)) else { continue };
            let snapshot = Some(Snapshot { directory: Some(mark), ..snapshot.clone() });
            changes.push(Change::Volume(VolumeRecord { snapshot, ..record.clone() }));
        }
        if changes.is_empty() { Ok(()) } else { self.env.store.commit(changes).map(drop) }
    }

    /// For the start: a snapshot has no privileges, also one that was made by a version that left it some.
    pub(super) fn strip_snapshot(&self, record: &VolumeRecord, mode: u32) -> Result<()> {
        if record.snapshot.is_none() || self.options.read_only {
            return Ok(());
        }
        let path = snapshot_path(record.id);
        let ids = libc::S_ISUID | libc::S_ISGID;
        if mode & ids != 0 {
            self.env.fs.chmod(&path, mode & 0o7777 & !ids).context("take privileges off", &path)?;
        }
        match self.env.fs.remove_xattr(&path, &super::snapshot::CAPABILITY.into()) {
            Err(e) if !matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP | libc::EPERM)) => {
                Err(e).context("take privileges off", &path)
            }
            _ => Ok(()),
        }
    }
}

/// What was renamed, and the marks of the directories concerned.
struct Move<'a> {
    from: &'a str,
    to: &'a str,
    /// Of the directories that it was in and is in.
    left: Option<String>,
    entered: Option<String>,
    /// Of what was renamed, if that is a directory.
    own: Option<String>,
}

impl<'a> Move<'a> {
    fn new(pool: &Pool, (from, to): (&'a str, &'a str)) -> Move<'a> {
        let left = pool.mark_of_directory(above(Path::new(from)));
        let files = pool.env.store.catalogue().snapshots_of(from).next().is_some();
        let entered = files.then(|| pool.mark_directory(above(Path::new(to)))).flatten();
        Move { from, to, left, entered, own: pool.mark_of_directory(Path::new(to)) }
    }

    /// What becomes of a snapshot at or below the old path; `None`: it stays.
    fn moved(&self, snapshot: &Snapshot) -> Option<Snapshot> {
        let below = &snapshot.of[self.from.len()..];
        let of = format!("{}{below}", self.to);
        let directory = match below {
            "" => &self.left,
            below if below.matches('/').count() == 1 => &self.own,
            _ => &snapshot.directory,
        };
        if snapshot.directory.is_some() && snapshot.directory != *directory {
            return None;
        }
        let directory = if below.is_empty() { self.entered.clone() } else { snapshot.directory.clone() };
        Some(Snapshot { of, directory, ..snapshot.clone() })
    }
}
