//! The table as a server before this one has left it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use super::super::mirror::Mirror;
use super::{Node, ROOT, Table};
use crate::engine::note::{LinkRecord, NodeRecord, Note};

/// What a server before was doing when it died.
pub struct UnderWay {
    /// Nodes whose backing file was being replaced.
    pub swapping: Vec<u64>,
    /// Names that renames were about to give.
    pub intended: Vec<LinkRecord>,
}

impl Node {
    /// Times that the kernel was told the number, less those that it forgot.
    pub fn lookups(&self) -> u64 {
        self.lookups
    }
}

impl Table {
    /// Keeps all of it in the note from now on, which holds nothing yet.
    pub fn keep(&mut self, note: &Arc<Note>) {
        let (mut mirror, ..) = Mirror::open(note.clone(), &mut false);
        mirror.counters(self.generation, self.made_up);
        for (id, node) in &self.nodes {
            mirror.made(*id, node);
            for (parent, name) in &node.links {
                mirror.linked(*parent, name, *id);
            }
        }
        self.mirror = Some(mirror);
    }

    /// Becomes what the note says. `None`: the note is damaged. What was under way is left to the caller.
    pub fn take_over(&mut self, note: &Arc<Note>) -> Option<UnderWay> {
        let mut damaged = false;
        let (mirror, nodes, links) = Mirror::open(note.clone(), &mut damaged);
        if damaged || !nodes.iter().any(|node| node.id == ROOT) {
            return None;
        }
        (self.generation, self.made_up) = note.counters();
        self.nodes.clear();
        self.by_key.clear();
        // A later node with the same key is the one that the file belongs to.
        let mut sorted: Vec<&NodeRecord> = nodes.iter().collect();
        sorted.sort_by_key(|node| node.generation);
        for node in sorted {
            let record = Node {
                generation: node.generation,
                kind: node.kind,
                key: node.file.key,
                birth: node.file.birth,
                open: None,
                gone: None,
                lookups: node.lookups,
                links: Vec::new(),
                children: HashMap::new(),
            };
            if !self.devices.contains(&node.file.key.dev) {
                self.devices.push(node.file.key.dev);
            }
            self.nodes.insert(node.id, record);
            if !node.gone {
                self.by_key.insert(node.file.key, node.id);
            }
        }
        let (intended, links): (Vec<LinkRecord>, Vec<LinkRecord>) = links.into_iter().partition(|link| link.intended);
        for link in links {
            if !self.nodes.contains_key(&link.node) || !self.nodes.contains_key(&link.parent) {
                continue;
            }
            let name: Arc<OsStr> = link.name.into();
            if let Some(former) = self.take((link.parent, &name)) {
                tracing::debug!("node {former} had the name {name:?} before");
            }
            if let Some(directory) = self.nodes.get_mut(&link.parent) {
                directory.children.insert(name.clone(), link.node);
            }
            if let Some(node) = self.nodes.get_mut(&link.node) {
                node.links.push((link.parent, name));
            }
        }
        self.mirror = Some(mirror);
        let swapping = nodes.iter().filter(|node| node.swapping).map(|node| node.id).collect();
        Some(UnderWay { swapping, intended })
    }

    /// A rename is about to give the node that has the name `from` the name `to`, and with `exchange` the other way round.
    pub fn intend(&mut self, from: (u64, &OsStr), to: (u64, &OsStr), exchange: bool) {
        if self.mirror.is_none() {
            return;
        }
        let (moved, other) = (self.child(from.0, from.1), self.child(to.0, to.1));
        let Some(mirror) = &mut self.mirror else { return };
        if let Some(moved) = moved {
            mirror.intend(to.0, to.1, moved);
        }
        if let Some(other) = other.filter(|_| exchange) {
            mirror.intend(from.0, from.1, other);
        }
    }

    /// The rename has ended, one way or the other.
    pub fn decided(&mut self) {
        if let Some(mirror) = &mut self.mirror {
            mirror.decided();
        }
    }

    /// A node was found under a name where a rename of the server before has put it: it has that name, and no other that
    /// leads elsewhere.
    pub fn found_at(&mut self, id: u64, name: (u64, &OsStr), leads: impl Fn(&Path) -> bool) {
        if self.child(name.0, name.1) == Some(id) || !self.nodes.contains_key(&id) {
            return;
        }
        let old: Vec<(u64, Arc<OsStr>)> = self.nodes.get(&id).map(|node| node.links.clone()).unwrap_or_default();
        for (parent, old) in old {
            if self.join(parent, &old).is_some_and(|path| !leads(&path)) {
                self.take((parent, &old));
            }
        }
        self.take(name);
        self.put(id, name);
    }

    /// Another file is being put in the place of the backing file of a node.
    pub fn swapping(&self, id: u64, swapping: bool) {
        if let Some(mirror) = &self.mirror {
            mirror.swapping(id, swapping);
        }
    }

    /// A node that was found to have another backing file, as the server before has put it there.
    pub fn found_key(&mut self, id: u64, file: crate::engine::io::FileId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let old = std::mem::replace(&mut node.key, file.key);
        node.birth = file.birth;
        if self.by_key.get(&old) == Some(&id) {
            self.by_key.remove(&old);
        }
        self.by_key.insert(file.key, id);
        if let Some(mirror) = &self.mirror {
            mirror.rekeyed(id, file);
        }
    }

    /// Status of a node without a name, for those who still hold it.
    pub fn set_gone(&mut self, id: u64, status: crate::engine::io::Stat) {
        if let Some(node) = self.nodes.get_mut(&id).filter(|node| node.links.is_empty()) {
            node.gone = Some(status);
        }
    }
}
