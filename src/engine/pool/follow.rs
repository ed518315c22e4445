//! Where volumes are: their paths follow renames, so that policies find them and the status names them as they are called.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Weak;

use super::Pool;
use crate::engine::io::{FileKey, FileKind, Stat};
use crate::engine::store::DIR;
use crate::engine::store::record::{Change, VolumeRecord};
use crate::error::Result;
use crate::units::Id;

/// Where volumes were seen that their records have elsewhere.
pub(super) type Seen = HashMap<Id, PathBuf>;

/// `path`, which is `from` or lies below it, after that was renamed to `to`.
fn moved(path: &Path, from: &Path, to: &Path) -> Option<PathBuf> {
    let rest = path.strip_prefix(from).ok()?;
    Some(if rest.as_os_str().is_empty() { to.to_path_buf() } else { to.join(rest) })
}

impl Pool {
    /// A file or directory was renamed: the snapshots and the records of what it is, or holds, follow. `there`: what the two
    /// exchanged their names with.
    pub fn paths_follow(&self, (from, it): (&Path, &Stat), (to, there): (&Path, Option<&Stat>)) -> Result<()> {
        let followed = self.snapshots_follow(from, to, there.is_some());
        let all = it.kind() == FileKind::Directory || there.is_some_and(|stat| stat.kind() == FileKind::Directory);
        let moved = |path: &Path| moved(path, from, to).or_else(|| there.and_then(|_| moved(path, to, from)));
        let ids: Option<Vec<Id>> = {
            let mut tables = self.tables.lock();
            for (_, path) in tables.seen.iter_mut() {
                if let Some(now) = moved(path) {
                    *path = now;
                }
            }
            let one = [Some(it), there].into_iter().flatten().filter_map(|stat| tables.stubs.get(&stat.key)).copied();
            if all { None } else { Some(one.collect()) }
        };
        if ids.as_ref().is_none_or(|ids| !ids.is_empty()) {
            self.move_live(&moved);
            self.move_records(ids, &moved)?;
        }
        followed
    }

    fn move_live(&self, moved: &dyn Fn(&Path) -> Option<PathBuf>) {
        let live: Vec<_> = self.tables.lock().by_id.values().filter_map(Weak::upgrade).collect();
        for volume in live {
            if let Some(now) = moved(&volume.path()) {
                volume.set_path(&now);
            }
        }
    }

    /// Of these volumes, or of all. A hint, and so not made durable for its own sake.
    fn move_records(&self, ids: Option<Vec<Id>>, moved: &dyn Fn(&Path) -> Option<PathBuf>) -> Result<()> {
        let _ops = self.ops.lock();
        let change = |record: &VolumeRecord| {
            let path = moved(Path::new(&record.path)).filter(|_| record.snapshot.is_none())?;
            let path = path.to_string_lossy().into_owned();
            Some(Change::Volume(VolumeRecord { path, ..record.clone() }))
        };
        self.env.store.commit_with(|catalogue| match ids {
            Some(ids) => ids.into_iter().filter_map(|id| change(catalogue.volume(id)?)).collect(),
            None => catalogue.volumes().filter_map(change).collect(),
        })?;
        Ok(())
    }

    /// A file was come to by this path: if it is a volume that its record has elsewhere, that is remembered.
    pub(super) fn saw(&self, key: FileKey, path: &Path) {
        let mut tables = self.tables.lock();
        let Some(id) = tables.stubs.get(&key).copied().filter(|_| !path.starts_with(DIR)) else { return };
        let elsewhere = self.env.store.catalogue().volume(id).is_some_and(|record| Path::new(&record.path) != path);
        if !elsewhere {
            tables.seen.remove(&id);
        } else if tables.seen.get(&id).is_none_or(|seen| seen != path) {
            tables.seen.insert(id, path.to_path_buf());
            drop(tables);
            if !self.policies.is_empty() {
                // Others may hold there.
                self.wake_background();
            }
        }
    }

    /// Where a volume is now, as far as that is known.
    pub(super) fn present_path(&self, record: &VolumeRecord) -> PathBuf {
        let tables = self.tables.lock();
        if let Some(seen) = tables.seen.get(&record.id) {
            return seen.clone();
        }
        let live = tables.by_id.get(&record.id).and_then(Weak::upgrade);
        drop(tables);
        let path = live.map(|volume| volume.path()).filter(|path| !path.starts_with(DIR));
        path.unwrap_or_else(|| PathBuf::from(&record.path))
    }

    /// Has the records say where volumes were seen.
    pub(super) fn note_places(&self) {
        let seen = std::mem::take(&mut self.tables.lock().seen);
        if seen.is_empty() {
            return;
        }
        let _ops = self.ops.lock();
        let noted = self.env.store.commit_with(|catalogue| {
            let change = |(id, path): (&Id, &PathBuf)| {
                let record = catalogue.volume(*id).filter(|record| record.snapshot.is_none())?;
                let path = path.to_string_lossy().into_owned();
                Some(Change::Volume(VolumeRecord { path, ..record.clone() }))
            };
            seen.iter().filter_map(change).collect()
        });
        if let Err(error) = noted {
            tracing::warn!("cannot note where volumes are: {error}");
        }
    }
}
