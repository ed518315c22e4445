//! What of the node table is kept in the note, for a server that takes the mount over.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Arc;

use super::table::Node;
use crate::engine::io::FileId;
use crate::engine::note::{LinkRecord, NodeRecord, Note, Place, Places, Reason, withdraw};

/// Writes each change of the table into the note. Where there is no room the mount is not taken over any more.
pub struct Mirror {
    note: Arc<Note>,
    nodes: HashMap<u64, Place>,
    free_nodes: Places,
    links: HashMap<u64, HashMap<Arc<OsStr>, Place>>,
    free_links: Places,
    order: u64,
    /// Names that the rename under way is about to give.
    intended: Vec<Place>,
}

impl Mirror {
    /// Goes on with what is in the note. Gives nodes and links as they are there; `damaged` says that not all of it is as it
    /// was written.
    pub fn open(note: Arc<Note>, damaged: &mut bool) -> (Mirror, Vec<NodeRecord>, Vec<LinkRecord>) {
        let (nodes, free_nodes) = note.nodes(damaged);
        let (mut links, free_links) = note.links(damaged);
        links.sort_by_key(|(_, link)| link.order);
        let (intended, links): (Vec<_>, Vec<_>) = links.into_iter().partition(|(_, link)| link.intended);
        let mut mirror = Mirror {
            note,
            nodes: nodes.iter().map(|(place, node)| (node.id, *place)).collect(),
            free_nodes,
            links: HashMap::new(),
            free_links,
            order: links.last().map_or(0, |(_, link)| link.order),
            intended: intended.iter().map(|(place, _)| *place).collect(),
        };
        for (place, link) in &links {
            // A name that was given to another node before the old record went: the later one counts.
            if let Some(old) = mirror.links.entry(link.parent).or_default().insert(link.name.as_os_str().into(), *place)
            {
                mirror.note.remove_link(&mut mirror.free_links, old);
            }
        }
        let nodes = nodes.into_iter().map(|(_, node)| node).collect();
        (mirror, nodes, links.into_iter().chain(intended).map(|(_, link)| link).collect())
    }

    /// The last generation and the last made-up number.
    pub fn counters(&self, generation: u64, made_up: u64) {
        self.note.set_counters(generation, made_up);
    }

    /// A node was made.
    pub fn made(&mut self, id: u64, node: &Node) {
        let record = NodeRecord {
            id,
            generation: node.generation,
            kind: node.kind,
            file: node.id(),
            lookups: node.lookups(),
            swapping: false,
            gone: node.gone.is_some(),
        };
        match self.note.add_node(&mut self.free_nodes, &record) {
            Some(place) => drop(self.nodes.insert(id, place)),
            None => withdraw(Reason::Full),
        }
    }

    /// The kernel was told of it, or has forgotten.
    pub fn lookups(&self, id: u64, count: u64) {
        if let Some(place) = self.nodes.get(&id) {
            self.note.set_lookups(*place, count);
        }
    }

    /// Another file is its backing file.
    pub fn rekeyed(&self, id: u64, file: FileId) {
        if let Some(place) = self.nodes.get(&id) {
            self.note.set_key(*place, file);
        }
    }

    /// Another file is being put in the place of its backing file.
    pub fn swapping(&self, id: u64, swapping: bool) {
        if let Some(place) = self.nodes.get(&id) {
            self.note.set_swapping(*place, swapping);
        }
    }

    /// It has lost its last name, or has one again.
    pub fn gone(&self, id: u64, gone: bool) {
        if let Some(place) = self.nodes.get(&id) {
            self.note.set_gone(*place, gone);
        }
    }

    /// It is known no more.
    pub fn dropped(&mut self, id: u64) {
        if let Some(place) = self.nodes.remove(&id) {
            self.note.remove_node(&mut self.free_nodes, place);
        }
        self.links.remove(&id);
    }

    /// A name leads to it.
    pub fn linked(&mut self, parent: u64, name: &Arc<OsStr>, id: u64) {
        match self.link(parent, name, id, false) {
            Some(place) => {
                if let Some(old) = self.links.entry(parent).or_default().insert(name.clone(), place) {
                    self.note.remove_link(&mut self.free_links, old);
                }
            }
            None => withdraw(Reason::Full),
        }
    }

    fn link(&mut self, parent: u64, name: &OsStr, node: u64, intended: bool) -> Option<Place> {
        self.order += 1;
        let record = LinkRecord { parent, node, name: name.to_owned(), order: self.order, intended };
        self.note.add_link(&mut self.free_links, &record)
    }

    /// A rename is about to give the name to it. Where the server dies then, the next one looks where the file is.
    pub fn intend(&mut self, parent: u64, name: &OsStr, id: u64) {
        match self.link(parent, name, id, true) {
            Some(place) => self.intended.push(place),
            None => withdraw(Reason::Full),
        }
    }

    /// The rename has ended.
    pub fn decided(&mut self) {
        for place in std::mem::take(&mut self.intended) {
            self.note.remove_link(&mut self.free_links, place);
        }
    }

    /// The name leads nowhere.
    pub fn unlinked(&mut self, parent: u64, name: &OsStr) {
        if let Some(place) = self.links.get_mut(&parent).and_then(|names| names.remove(name)) {
            self.note.remove_link(&mut self.free_links, place);
        }
    }
}
