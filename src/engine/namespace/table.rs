//! The node table: which number stands for which file, and under which names it is known. Pure bookkeeping, no I/O.
//!
//! The number of a node is also the `st_ino` that users see: the inode number of the backing file when the node was
//! made. It stays with the node when the backing file is replaced (a shared file is frozen, a deepened one becomes
//! plain). When another live node has the number already, or the file lies on another device than the root, the number
//! is made up; so two files never show the same one, and most numbers can be found again from the disk alone.
//! A number may come back after its node was forgotten, always with another generation.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;

use super::handle::OpenFile;
use crate::engine::io::{FileId, FileKey, FileKind, Stat, Timestamp};

/// Number of the root node, fixed by the FUSE protocol.
pub const ROOT: u64 = 1;
/// Numbers above this one are made up by a counter. They are positive for those who take them for signed.
const MADE_UP: u64 = 1 << 62;
/// Numbers from here on are those of files on other devices: 14 bits of device index, 47 bits of inode number.
const FOREIGN: u64 = 1 << 61;
const FOREIGN_INO_BITS: u32 = 47;

/// A file or directory that the kernel knows.
pub struct Node {
    /// Distinguishes this node from earlier ones with the same number.
    pub generation: u64,
    /// What it is; never changes.
    pub kind: FileKind,
    /// The backing file.
    pub key: FileKey,
    /// When that was made, if it is known.
    pub birth: Option<Timestamp>,
    /// A regular file with open handles.
    pub open: Option<OpenFile>,
    /// Last status of a file that lost its last known name, for those who still hold it.
    pub gone: Option<Stat>,
    /// Times that the kernel was told the number, less those that it forgot.
    lookups: u64,
    /// Directory and name, the one seen last at the end.
    links: Vec<(u64, Arc<OsStr>)>,
    /// Known entries of a directory.
    children: HashMap<Arc<OsStr>, u64>,
}

impl Node {
    /// Which file it is.
    pub fn id(&self) -> FileId {
        FileId { key: self.key, birth: self.birth }
    }
}

/// All nodes.
pub struct Table {
    nodes: HashMap<u64, Node>,
    by_key: HashMap<FileKey, u64>,
    /// Devices seen, the root's first.
    devices: Vec<u64>,
    made_up: u64,
    generation: u64,
}

/// A name: its directory and the name in it.
type Name<'a> = (u64, &'a OsStr);

impl Table {
    /// A table that knows the root directory only.
    pub fn new(root: FileKey) -> Table {
        let devices = vec![root.dev];
        let mut table = Table { nodes: HashMap::new(), by_key: HashMap::new(), devices, made_up: 0, generation: 0 };
        table.insert(ROOT, root.into(), FileKind::Directory);
        table
    }

    /// The node with this number.
    pub fn node(&self, id: u64) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// The node with this number, to change it.
    pub fn node_mut(&mut self, id: u64) -> Option<&mut Node> {
        self.nodes.get_mut(&id)
    }

    /// The node of a backing file.
    pub fn find(&self, key: FileKey) -> Option<u64> {
        self.by_key.get(&key).copied()
    }

    /// The node known under a name.
    pub fn child(&self, parent: u64, name: &OsStr) -> Option<u64> {
        self.nodes.get(&parent)?.children.get(name).copied()
    }

    /// Records that a name is a file, and that the kernel is told so once; returns its number.
    pub fn enter(&mut self, parent: u64, name: &OsStr, file: impl Into<FileId>, kind: FileKind) -> u64 {
        let file = file.into();
        let known = self.find(file.key).filter(|id| self.may_be(*id, file, kind, (parent, name)));
        let id = known.unwrap_or_else(|| self.make(file, kind));
        if let Some(node) = self.nodes.get_mut(&id) {
            node.birth = file.birth.or(node.birth);
        }
        self.name(id, (parent, name));
        id
    }

    /// As [`Table::enter`] for a file that was just made: a node that has the same key is of an older file.
    pub fn enter_new(&mut self, parent: u64, name: &OsStr, file: impl Into<FileId>, kind: FileKind) -> u64 {
        let id = self.make(file.into(), kind);
        self.name(id, (parent, name));
        id
    }

    /// The same where the file was found under its name after it was made: another one may have got the name meanwhile.
    /// What was made at the same moment as a known node is that one.
    pub fn enter_made(&mut self, parent: u64, name: &OsStr, file: FileId, kind: FileKind) -> u64 {
        let known = self.find(file.key).and_then(|id| self.node(id));
        if file.birth.is_some() && known.is_some_and(|node| node.birth == file.birth) {
            return self.enter(parent, name, file, kind);
        }
        self.enter_new(parent, name, file, kind)
    }

    /// The kernel forgot the number `count` times.
    pub fn forget(&mut self, id: u64, count: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups = node.lookups.saturating_sub(count);
            self.collect(id);
        }
    }

    /// A name was found to be no more, or to be of another file.
    pub fn detach(&mut self, parent: u64, name: &OsStr) {
        if let Some(id) = self.take((parent, name)) {
            self.collect(id);
            self.collect(parent);
        }
    }

    /// A file lost a name for good; `status` is what it was like. Without a known name and without an open handle its
    /// inode number may come back as another file, so the key no longer leads here.
    pub fn removed(&mut self, parent: u64, name: &OsStr, status: Stat) {
        let Some(id) = self.take((parent, name)) else { return };
        if let Some(node) = self.nodes.get_mut(&id).filter(|node| node.links.is_empty()) {
            node.gone = Some(Stat { nlink: 0, ..status });
            if node.open.is_none() {
                self.unkey(id);
            }
        }
        self.collect(id);
        self.collect(parent);
    }

    /// A file moved to another name, and `replaced` is what had that name before.
    pub fn renamed(&mut self, from: Name<'_>, to: Name<'_>, replaced: Option<Stat>) {
        let moved = self.take(from);
        match replaced {
            Some(status) => self.removed(to.0, to.1, status),
            None => self.detach(to.0, to.1),
        }
        if let Some(id) = moved {
            self.put(id, to);
        }
        self.collect(from.0);
    }

    /// Two files swapped their names.
    pub fn exchanged(&mut self, one: Name<'_>, two: Name<'_>) {
        let (first, second) = (self.take(one), self.take(two));
        if let Some(id) = first {
            self.put(id, two);
        }
        if let Some(id) = second {
            self.put(id, one);
        }
    }

    /// The backing file of a node was replaced; returns the node.
    pub fn rekey(&mut self, old: FileKey, new: impl Into<FileId>) -> Option<u64> {
        let new = new.into();
        let id = self.by_key.remove(&old)?;
        let node = self.nodes.get_mut(&id)?;
        (node.key, node.birth) = (new.key, new.birth);
        self.by_key.insert(new.key, id);
        Some(id)
    }

    /// The last handle of a node was closed.
    pub fn closed(&mut self, id: u64) {
        if self.nodes.get(&id).is_some_and(|node| node.links.is_empty()) {
            self.unkey(id);
        }
        self.collect(id);
    }

    /// Path of a node below the root; `None` when it has no name left.
    pub fn path(&self, id: u64) -> Option<PathBuf> {
        match self.nodes.get(&id)?.links.last() {
            None => (id == ROOT).then(PathBuf::new),
            Some((parent, name)) => self.join(*parent, name),
        }
    }

    /// Paths of a node under all its known names, the one seen last first.
    pub fn paths(&self, id: u64) -> Vec<PathBuf> {
        let Some(node) = self.nodes.get(&id) else { return Vec::new() };
        node.links.iter().rev().filter_map(|(parent, name)| self.join(*parent, name)).collect()
    }

    /// Directory and name of a node that has one.
    pub fn place(&self, id: u64) -> Option<(u64, Arc<OsStr>)> {
        self.nodes.get(&id)?.links.last().cloned()
    }

    /// Directories and names of a node, the one seen last first.
    pub fn places(&self, id: u64) -> Vec<(u64, Arc<OsStr>)> {
        let Some(node) = self.nodes.get(&id) else { return Vec::new() };
        node.links.iter().rev().cloned().collect()
    }

    /// Path of `name` in the directory `parent`.
    pub fn join(&self, parent: u64, name: &OsStr) -> Option<PathBuf> {
        let mut names = vec![name];
        let mut at = parent;
        while at != ROOT {
            let (parent, name) = self.nodes.get(&at)?.links.last()?;
            names.push(name);
            at = *parent;
        }
        names.reverse();
        let mut path = OsString::with_capacity(names.iter().map(|name| name.len() + 1).sum());
        for (index, name) in names.into_iter().enumerate() {
            if index > 0 {
                path.push("/");
            }
            path.push(name);
        }
        Some(path.into())
    }

    /// The directory that holds a directory; the root's is the root.
    pub fn parent(&self, id: u64) -> u64 {
        self.nodes.get(&id).and_then(|node| node.links.last()).map_or(ROOT, |(parent, _)| *parent)
    }

    /// The `st_ino` of a node.
    pub fn shown(&self, id: u64) -> u64 {
        if id == ROOT { self.root_shows() } else { id }
    }

    /// The `st_ino` that an entry of a directory listing has, or would have after a lookup.
    pub fn listed(&self, parent: u64, name: &OsStr, key: FileKey) -> u64 {
        if let Some(id) = self.child(parent, name).or_else(|| self.find(key)) {
            return self.shown(id);
        }
        let number = self.natural(key);
        if self.is_free(number) { number } else { MADE_UP | key.ino }
    }

    /// Nodes that are open for writing.
    pub fn open_for_writing(&self) -> Vec<u64> {
        let writes = |node: &Node| node.open.as_ref().is_some_and(|open| open.writers > 0);
        self.nodes.iter().filter(|(_, node)| writes(node)).map(|(id, _)| *id).collect()
    }

    /// Device that the entries of a directory listing are on, for [`Table::listed`].
    pub fn device(&self, id: u64) -> u64 {
        self.nodes.get(&id).map_or(0, |node| node.key.dev)
    }

    /// A new node, which takes the key over from an older one.
    fn make(&mut self, file: FileId, kind: FileKind) -> u64 {
        let key = file.key;
        if !self.devices.contains(&key.dev) {
            self.devices.push(key.dev);
        }
        let mut id = self.natural(key);
        while !self.is_free(id) {
            self.made_up += 1;
            id = MADE_UP | self.made_up;
        }
        self.insert(id, file, kind);
        id
    }

    fn insert(&mut self, id: u64, FileId { key, birth }: FileId, kind: FileKind) {
        // The kernel keeps 32 bits of it.
        self.generation = (self.generation + 1) & u64::from(u32::MAX);
        let node = Node {
            generation: self.generation,
            kind,
            key,
            birth,
            open: None,
            gone: None,
            lookups: 0,
            links: Vec::new(),
            children: HashMap::new(),
        };
        self.nodes.insert(id, node);
        self.by_key.insert(key, id);
    }

    /// Whether the file that was found under `name` can be this node, whose key it has. A directory has one name only: a
    /// second one is a bind mount (which the kernel must see as another directory) or the trace of a move made without us.
    fn may_be(&self, id: u64, file: FileId, kind: FileKind, name: Name<'_>) -> bool {
        let same = |node: &&Node| node.kind == kind && node.id().is(file);
        let Some(node) = self.nodes.get(&id).filter(same) else { return false };
        kind != FileKind::Directory || self.child(name.0, name.1) == Some(id) || (node.links.is_empty() && id != ROOT)
    }

    /// The number that a file has by itself: the inode number, moved out of the way on another device.
    fn natural(&self, key: FileKey) -> u64 {
        match self.devices.iter().position(|dev| *dev == key.dev) {
            Some(0) => key.ino,
            Some(index) if index < (1 << 14) && key.ino >> FOREIGN_INO_BITS == 0 => {
                FOREIGN | (index as u64) << FOREIGN_INO_BITS | key.ino
            }
            _ => MADE_UP,
        }
    }

    fn is_free(&self, number: u64) -> bool {
        number > ROOT && number != MADE_UP && number != self.root_shows() && !self.nodes.contains_key(&number)
    }

    fn root_shows(&self) -> u64 {
        self.nodes.get(&ROOT).map_or(ROOT, |root| root.key.ino)
    }

    /// Gives a node a name and counts that the kernel is told of it. Another node under that name loses it.
    fn name(&mut self, id: u64, name: Name<'_>) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups += 1;
        }
        if self.child(name.0, name.1) != Some(id) {
            let former = self.take(name);
            self.put(id, name);
            if let Some(former) = former {
                self.collect(former);
            }
        }
    }

    /// Takes a name off the node that has it, and leaves the node there even if nobody holds it.
    fn take(&mut self, (parent, name): Name<'_>) -> Option<u64> {
        let id = self.nodes.get_mut(&parent)?.children.remove(name)?;
        let node = self.nodes.get_mut(&id)?;
        node.links.retain(|(dir, link)| *dir != parent || **link != *name);
        Some(id)
    }

    /// Gives a node a name that no other has.
    fn put(&mut self, id: u64, (parent, name): Name<'_>) {
        let name: Arc<OsStr> = name.into();
        let Some(directory) = self.nodes.get_mut(&parent) else { return };
        directory.children.insert(name.clone(), id);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.links.push((parent, name));
            node.gone = None;
        }
    }

    /// The key of a node no longer leads to it.
    fn unkey(&mut self, id: u64) {
        if let Some(node) = self.nodes.get(&id)
            && self.by_key.get(&node.key) == Some(&id)
        {
            self.by_key.remove(&node.key);
        }
    }

    /// Drops a node that nobody holds, and then the directories that it alone kept.
    fn collect(&mut self, id: u64) {
        let mut queue = vec![id];
        while let Some(id) = queue.pop() {
            let Some(node) = self.nodes.get(&id) else { continue };
            if id == ROOT || node.lookups > 0 || node.open.is_some() || !node.children.is_empty() {
                continue;
            }
            self.unkey(id);
            for (parent, name) in self.nodes.remove(&id).map(|node| node.links).unwrap_or_default() {
                if let Some(directory) = self.nodes.get_mut(&parent) {
                    directory.children.remove(&name);
                    queue.push(parent);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
