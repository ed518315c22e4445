//! What the volumes below a directory take, one by one and added up: each file on disk counts once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{doors, walk};
use crate::error::Result;
use crate::protocol::{PoolStatus, VolumeUsage};
use crate::units::{BLOCK, blocks};

/// A regular file of a mount, with what it takes.
pub struct Used {
    /// Path below the directory that was walked; empty when that was itself a file.
    pub name: PathBuf,
    /// Its inode: several names can be one file.
    pub inode: u64,
    /// What it takes, or why that could not be read.
    pub usage: Result<VolumeUsage>,
}

/// Volumes taken together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Group {
    /// How many.
    pub volumes: u64,
    /// Their sizes.
    pub size: u64,
    /// Bytes on disk in files that nobody else reads: what comes free when all of them are deleted.
    pub own: u64,
    /// Bytes on disk in files that others read too.
    pub shared: u64,
    /// What deepening them would copy, at most.
    pub independence: u64,
    /// What they can still ask for when they are written to in full.
    pub demand: u64,
}

/// All that was looked at, and the filesystem below.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Total {
    /// The volumes.
    #[serde(flatten)]
    pub all: Group,
    /// Files whose usage could not be read.
    pub unknown: u64,
    /// Free bytes of the backing filesystem.
    pub free: u64,
    /// All its bytes.
    pub capacity: u64,
    /// What the volumes take and can still ask for, as a multiple of what they take and what is free. More than 1: there
    /// is not room for all of it.
    pub overcommit: f64,
}

/// What every regular file below `root` (or `root` itself) takes, sorted by path.
pub fn usage(root: &Path) -> Result<Vec<Used>> {
    walk::each(root, |name| {
        let path = walk::path_below(root, name);
        let inode = fs::symlink_metadata(&path).ok()?.ino();
        let used = |usage| Some(Used { name: name.to_path_buf(), inode, usage });
        match doors::usage(&path) {
            Ok(usage) => used(Ok(usage?)),
            // Deleted since its directory was read.
            Err(e) if e.os_error() == Some(libc::ENOENT) => None,
            Err(e) => used(Err(e)),
        }
    })
}

/// Adds volumes up by the group that `group_of` names. Each volume counts once, whatever its names, in the group of the
/// first of them.
pub fn by_group<K: Ord + Clone>(used: &[Used], group_of: impl Fn(&Used, &VolumeUsage) -> K) -> BTreeMap<K, Group> {
    let mut groups: BTreeMap<K, Group> = BTreeMap::new();
    let mut seen = HashSet::new();
    // For each file that several volumes read: its bytes, its readers, and how many of them are in each group.
    let mut pieces: HashMap<&str, (u64, u64, BTreeMap<K, u64>)> = HashMap::new();
    for (one, usage) in used.iter().filter_map(|one| Some((one, one.usage.as_ref().ok()?))) {
        if !seen.insert(one.inode) {
            continue;
        }
        let key = group_of(one, usage);
        let group = groups.entry(key.clone()).or_default();
        group.volumes += 1;
        group.size += usage.size;
        group.independence += usage.independence;
        group.own += usage.own;
        group.demand += (blocks(usage.size) * BLOCK).saturating_sub(writable(usage));
        for piece in usage.pieces.iter().filter(|piece| piece.readers > 1) {
            let entry = pieces.entry(&piece.id).or_insert_with(|| (piece.disk, piece.readers, BTreeMap::new()));
            *entry.2.entry(key.clone()).or_default() += 1;
        }
    }
    for (disk, readers, inside) in pieces.into_values() {
        for (key, count) in inside {
            let Some(group) = groups.get_mut(&key) else { continue };
            *(if count >= readers { &mut group.own } else { &mut group.shared }) += disk;
        }
    }
    groups
}

/// Bytes on disk that can be written to with nothing new: those of its own file, if nobody else reads that.
fn writable(usage: &VolumeUsage) -> u64 {
    usage.pieces.first().filter(|piece| piece.readers == 1).map_or(0, |piece| piece.disk)
}

impl Total {
    /// Adds everything up. `status` is that of the pool.
    pub fn of(used: &[Used], status: &PoolStatus) -> Total {
        let all = by_group(used, |_, _| ()).remove(&()).unwrap_or_default();
        let unknown = used.iter().filter(|one| one.usage.is_err()).count() as u64;
        let has = all.own + all.shared + status.free_bytes;
        let overcommit = if has == 0 { 0.0 } else { (all.own + all.shared + all.demand) as f64 / has as f64 };
        Total { all, unknown, free: status.free_bytes, capacity: status.total_bytes, overcommit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Piece;

    fn used(name: &str, inode: u64, uid: u32, pieces: &[(&str, u64, u64)]) -> Used {
        let piece = |(id, disk, readers): &(&str, u64, u64)| Piece { id: (*id).into(), disk: *disk, readers: *readers };
        let own = pieces.iter().filter(|p| p.2 == 1).map(|p| p.1).sum();
        let usage = VolumeUsage {
            uid,
            size: 1 << 20,
            own,
            pieces: pieces.iter().map(piece).collect(),
            ..VolumeUsage::default()
        };
        Used { name: name.into(), inode, usage: Ok(usage) }
    }

    #[test]
    fn what_is_shared_counts_once_and_belongs_to_those_who_alone_read_it() {
        let all = [
            used("a/base", 1, 0, &[("L", 1000, 3)]),
            used("a/one", 2, 0, &[("one", 10, 1), ("M", 100, 2), ("L", 1000, 3)]),
            used("a/one-again", 2, 0, &[("one", 10, 1), ("M", 100, 2), ("L", 1000, 3)]),
            used("b/two", 3, 7, &[("two", 20, 1), ("M", 100, 2), ("L", 1000, 3)]),
        ];
        let by_uid = by_group(&all, |_, usage| usage.uid);
        let figures = |group: &Group| (group.volumes, group.own, group.shared);
        assert_eq!(figures(&by_uid[&0]), (2, 10, 1100));
        assert_eq!(figures(&by_uid[&7]), (1, 20, 1100));
        let whole = by_group(&all, |_, _| ());
        assert_eq!(figures(&whole[&()]), (3, 1130, 0));
    }

    #[test]
    fn a_volume_that_others_read_can_be_written_in_full() {
        let all = [used("base", 1, 0, &[("L", 1 << 20, 2)]), used("clone", 2, 0, &[("c", 4096, 1), ("L", 1 << 20, 2)])];
        let whole = by_group(&all, |_, _| ());
        assert_eq!(whole[&()].demand, (1 << 20) + (1 << 20) - 4096);
    }
}
