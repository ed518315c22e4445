//! `.snapshots` at the root of the mount: for each directory of the tree one of the same name, with the same owner, mode
//! and ACL, that holds the snapshots of the volumes in it as `VOLUME@NAME`. So the kernel itself checks who comes to a
//! snapshot: whoever may search the volume's directory, and could read the volume when the snapshot was made. And whoever
//! may remove the volume from its directory may remove its snapshots.
//!
//! It is reached by name and not listed. If the pool has something of its own called `.snapshots`, that is what is seen.
//!
//! The node of a directory here is the node of the real one with one more bit. A snapshot is a node like any file's, whose
//! path is that of its stub.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::attributes::Attributes;
use super::caller::Caller;
use super::doors::{administrators_only, bad_request};
use super::tree::{Found, Listed};
use super::{HIDDEN, NameTree, ROOT, errno};
use crate::engine::events::{Event, What};
use crate::engine::io::FileKind;
use crate::engine::pool::snapshot::NAME;
use crate::engine::store::record::VolumeRecord;
use crate::engine::store::{SNAPSHOTS, snapshot_path};
use crate::error::{Context, Error, Kind, Result};
use crate::protocol::{SnapshotAction, SnapshotInfo, SnapshotRequest};
use crate::units::Id;

/// Marks the nodes of its directories. No other number has it.
const BIT: u64 = 1 << 63;

/// Whether a node is a directory of snapshots.
pub fn is_here(node: u64) -> bool {
    node & BIT != 0
}

/// The node of the directory of the tree that a directory of snapshots stands for; any other node is itself.
pub fn real(node: u64) -> u64 {
    node & !BIT
}

/// Volume and name in `VOLUME@NAME`.
fn parts(name: &OsStr) -> Option<(&str, &str)> {
    name.to_str()?.rsplit_once('@').filter(|(volume, _)| !volume.is_empty())
}

/// As users write it.
fn shown(volume: &Path, name: &str) -> String {
    format!("{}@{name}", volume.display())
}

/// What is only read.
pub(super) fn read_only(operation: &'static str) -> Error {
    Error::new(Kind::ReadOnly, operation)
        .because("snapshots are read-only")
        .remedy("clone it: clonefs clone VOL@NAME DST")
}

impl NameTree {
    /// Whether this name is the directory of all snapshots.
    pub(super) fn is_snapshots(&self, parent: u64, name: &OsStr) -> bool {
        parent == ROOT && name == NAME && self.fs.stat(Path::new(NAME)).is_err()
    }

    /// Whether what is known of a name can be out of date at once, as others than the kernel change it.
    pub fn is_transient(&self, parent: u64, name: &OsStr) -> bool {
        is_here(parent) || (parent == ROOT && name == NAME)
    }

    /// Refuses to change what belongs to snapshots.
    pub(super) fn check_changeable(&self, node: u64) -> Result<()> {
        let is_stub = || self.stubs.get().is_some_and(|stubs| self.table.lock().parent(node) == *stubs);
        if is_here(node) || is_stub() { Err(read_only("change")) } else { Ok(()) }
    }

    /// The root of all snapshots.
    pub(super) fn snapshots_root(&self) -> Result<Found> {
        let generation = self.table.lock().node(ROOT).map_or(0, |node| node.generation);
        Ok(Found { node: ROOT | BIT, generation, attributes: self.snapshots_attributes(ROOT | BIT)? })
    }

    /// Those of the directory it stands for.
    pub(super) fn snapshots_attributes(&self, node: u64) -> Result<Attributes> {
        let attributes = self.honest_attributes(real(node))?;
        Ok(Attributes { ino: node, ..attributes })
    }

    /// As [`NameTree::lookup`], for a caller: a snapshot of which the directory is gone is not for everybody.
    pub fn lookup_by(&self, parent: u64, name: &OsStr, caller: &Caller) -> Result<Found> {
        if is_here(parent)
            && let Some(id) = self.snapshot_of(parent, name)?
        {
            self.check_reach(parent, id, caller).map_err(|error| error.at(name))?;
        }
        self.lookup(parent, name)
    }

    fn check_reach(&self, parent: u64, id: Id, caller: &Caller) -> Result<()> {
        let refused = || errno("come to a snapshot of a directory that is gone", libc::EACCES);
        if self.may_reach(parent, id, caller) { Ok(()) } else { Err(refused()) }
    }

    /// Whether a caller who may search a directory may come to a snapshot that has its path: the directory must be the one
    /// that the volume was in, not another one that was made under its name.
    fn may_reach(&self, parent: u64, id: Id, caller: &Caller) -> bool {
        if caller.is_administrator() {
            return true;
        }
        let snapshot = self.pool.store().catalogue().volume(id).and_then(|record| record.snapshot.clone());
        let directory = {
            let table = self.table.lock();
            table.node(real(parent)).and_then(|node| Some((table.path(real(parent))?, node.key)))
        };
        let (Some(snapshot), Some((path, key))) = (snapshot, directory) else { return false };
        let owner = || self.fs.stat(&snapshot_path(id)).is_ok_and(|stat| stat.uid == caller.uid);
        self.pool.belongs(&snapshot, &path, key) || owner()
    }

    /// What a name in a directory of snapshots is.
    pub(super) fn lookup_snapshot(&self, parent: u64, name: &OsStr) -> Result<Found> {
        if let Some(id) = self.snapshot_of(parent, name)? {
            return self.found_snapshot(id, name);
        }
        if real(parent) == ROOT && (name == HIDDEN || name == NAME) {
            return Err(errno("look up", libc::ENOENT).at(name));
        }
        let found = self.lookup(real(parent), name)?;
        if found.attributes.stat.kind() != FileKind::Directory {
            self.forget(found.node, 1);
            return Err(errno("look up", libc::ENOENT).at(name));
        }
        let attributes = Attributes { ino: found.node | BIT, ..found.attributes };
        Ok(Found { node: found.node | BIT, attributes, ..found })
    }

    fn snapshot_of(&self, parent: u64, name: &OsStr) -> Result<Option<Id>> {
        let Some((volume, snapshot)) = parts(name) else { return Ok(None) };
        let path = self.join(real(parent), OsStr::new(volume))?;
        Ok(self.pool.find_snapshot(&path, snapshot))
    }

    fn found_snapshot(&self, id: Id, name: &OsStr) -> Result<Found> {
        let path = snapshot_path(id);
        let namespace = self.namespace.read();
        let stat = self.fs.stat(&path).context("look up", name)?;
        let stubs = self.stubs_node()?;
        let (node, generation) = {
            let mut table = self.table.lock();
            let node = table.enter(stubs, OsStr::new(&id.to_string()), stat.id(), stat.kind());
            (node, table.node(node).map_or(0, |node| node.generation))
        };
        drop(namespace);
        self.found(node, generation, &path, stat)
    }

    /// The node of the directory of stubs, which users never come to.
    fn stubs_node(&self) -> Result<u64> {
        if let Some(node) = self.stubs.get() {
            return Ok(*node);
        }
        let (hidden, stubs) = (Path::new(HIDDEN), Path::new(SNAPSHOTS));
        let key = |path: &Path| self.fs.stat(path).map(|stat| stat.key).context("look at directory", path);
        let keys = (key(hidden)?, key(stubs)?);
        let mut table = self.table.lock();
        // Never forgotten: nobody but us was told of them.
        let hidden = table.enter(ROOT, OsStr::new(HIDDEN), keys.0, FileKind::Directory);
        let name = stubs.file_name().unwrap_or_default();
        Ok(*self.stubs.get_or_init(|| table.enter(hidden, name, keys.1, FileKind::Directory)))
    }

    /// Removes a snapshot by its name. The kernel has checked that the caller may remove files of this directory.
    pub(super) fn unlink_snapshot(&self, parent: u64, name: &OsStr, caller: &Caller) -> Result<()> {
        let id = self.snapshot_of(parent, name)?.ok_or_else(|| errno("remove snapshot", libc::ENOENT).at(name))?;
        self.check_reach(parent, id, caller).map_err(|error| error.at(name))?;
        self.check_snapshot_free(parent, name)?;
        let mut result = Ok(());
        self.removing_snapshot(id, &mut || result = self.pool.remove_snapshot(id));
        result
    }

    /// Does `work`, which removes a snapshot, and forgets its name if that has succeeded.
    pub(super) fn removing_snapshot(&self, id: Id, work: &mut dyn FnMut()) {
        let path = snapshot_path(id);
        let _namespace = self.namespace.write();
        let before = self.fs.stat(&path);
        work();
        if let (Some(stubs), Ok(stat), true) = (self.stubs.get(), before, self.fs.stat(&path).is_err()) {
            self.table.lock().removed(*stubs, OsStr::new(&id.to_string()), stat);
        }
    }

    /// Snapshots of what is protected are removed by their schedule alone.
    fn check_snapshot_free(&self, parent: u64, name: &OsStr) -> Result<()> {
        let Some((volume, _)) = parts(name) else { return Ok(()) };
        self.check_free("remove a snapshot of", &self.join(real(parent), OsStr::new(volume))?)
    }

    /// Gives a snapshot another name: of the same volume, and one that is free.
    pub(super) fn rename_snapshot(&self, from: (u64, &OsStr), to: (u64, &OsStr), caller: &Caller) -> Result<()> {
        if !is_here(from.0) || !is_here(to.0) {
            return Err(Error::new(Kind::CrossPool, "rename").at(from.1).because("a snapshot stays where it is"));
        }
        let id = self.snapshot_of(from.0, from.1)?.ok_or_else(|| errno("rename snapshot", libc::ENOENT).at(from.1))?;
        self.check_reach(from.0, id, caller).map_err(|error| error.at(from.1))?;
        let refuse = |why| Err(Error::new(Kind::Invalid, "rename snapshot").at(to.1).because(why));
        let Some((volume, name)) = parts(to.1) else { return refuse("a snapshot is called VOLUME@NAME") };
        if from.0 != to.0 || parts(from.1).map(|(volume, _)| volume) != Some(volume) {
            return refuse("a snapshot stays one of its volume");
        }
        self.pool.rename_snapshot(id, name)
    }

    /// What a directory of snapshots holds: those of its volumes, and directories in which there are more.
    pub(super) fn list_snapshots(&self, node: u64, caller: &Caller) -> Result<Vec<Listed>> {
        let directory = self.path(real(node))?;
        let Some(directory) = directory.to_str().map(str::to_owned) else { return Ok(Vec::new()) };
        let mut names: Vec<(String, Option<Id>)> = {
            let catalogue = self.pool.store().catalogue();
            let (records, directories) = catalogue.snapshots_in(&directory);
            let named = |record: &VolumeRecord| {
                let snapshot = record.snapshot.as_ref()?;
                let file = Path::new(&snapshot.of).file_name()?;
                Some((format!("{}@{}", file.to_string_lossy(), snapshot.name), Some(record.id)))
            };
            let records = records.into_iter().filter_map(named);
            records.chain(directories.into_iter().map(|name| (name, None))).collect()
        };
        names.sort();
        names.retain(|(_, id)| id.is_none_or(|id| self.may_reach(node, id, caller)));
        let listed = |(name, id): (String, Option<Id>)| {
            let place = id.map_or_else(|| PathBuf::from(&directory).join(&name), snapshot_path);
            let key = self.fs.stat(&place).ok()?.key;
            let (ino, kind) = match id {
                Some(_) => (key.ino, FileKind::File),
                None => (key.ino | BIT, FileKind::Directory),
            };
            Some(Listed { name: name.into(), ino, kind })
        };
        Ok(names.into_iter().filter_map(listed).collect())
    }

    /// What a snapshot says of itself.
    pub(super) fn describe_snapshot(&self, node: u64) -> Result<SnapshotInfo> {
        let none = || errno("read a virtual attribute", libc::ENODATA);
        let path = self.path(node)?;
        let id: Id =
            path.strip_prefix(SNAPSHOTS).ok().and_then(Path::to_str).and_then(|id| id.parse().ok()).ok_or_else(none)?;
        let catalogue = self.pool.store().catalogue();
        let snapshot = catalogue.volume(id).and_then(|record| record.snapshot.clone()).ok_or_else(none)?;
        Ok(SnapshotInfo {
            volume: snapshot.of,
            name: snapshot.name,
            made: snapshot.made,
            scheduled: snapshot.scheduled,
        })
    }

    /// Makes a snapshot of a volume, now or with its group, or goes back to one.
    pub(super) fn snapshot(&self, node: u64, value: &[u8], caller: &Caller) -> Result<()> {
        let request: SnapshotRequest = serde_json::from_slice(value).map_err(|e| bad_request("make a snapshot", e))?;
        let (volume, path) = (self.volume(node)?, self.path(node)?);
        match request.action {
            SnapshotAction::Create => {
                self.pool.check_place()?;
                crate::engine::pool::snapshot::check_name(&path, &request.name)?;
                if let Some(group) = request.group {
                    return self.join_snapshots(group, volume, path, request.name, caller);
                }
                self.pool.create_snapshots(&[(volume, path)], &request.name, None)
            }
            SnapshotAction::Rollback => {
                let id = self
                    .pool
                    .find_snapshot(&path, &request.name)
                    .ok_or_else(|| Error::new(Kind::NotFound, "roll back").at(shown(&path, &request.name)))?;
                // It shows those who may read the volume now what it was then: that is for the owner of both to say.
                let owners = [snapshot_path(id), path.clone()].map(|path| self.fs.stat(&path).map(|stat| stat.uid));
                if owners.iter().any(|owner| owner.as_ref().ok() != Some(&caller.uid)) {
                    administrators_only("roll back another user's volume", caller)?;
                }
                self.check_volume_free("roll back", node)?;
                self.pool.roll_back(&volume, id)?;
                self.pool.events().tell(Event::new(What::RolledBack, &path).from(shown(&path, &request.name)));
                self.rewound(node);
                Ok(())
            }
        }
    }

    /// Goes back to what a volume was when it was made as a clone.
    pub(super) fn reset(&self, node: u64, value: &[u8], caller: &Caller) -> Result<()> {
        if value != b"origin" {
            return Err(bad_request("reset", "the value is not \"origin\""));
        }
        let owner = self.honest_attributes(node)?.stat.uid;
        if caller.uid != owner {
            administrators_only("reset another user's volume", caller)?;
        }
        let who = (!caller.is_administrator()).then_some(caller.uid);
        self.check_volume_free("reset", node)?;
        let volume = self.volume(node)?;
        self.pool.reset(&volume, who)?;
        self.pool.events().tell(Event::new(What::Reset, volume.path()));
        self.rewound(node);
        Ok(())
    }

    /// The kernel must forget the pages and the size that a volume had.
    fn rewound(&self, node: u64) {
        if let Some(kernel) = self.kernel.get() {
            kernel.flush_pages(node);
        }
        self.attributes_changed(node);
    }
}
