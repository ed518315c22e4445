//! What is on the simulated disk, and how a change that was not synced is applied to it, whole or in part.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::sync::Arc;

use clonefs::engine::io::Timestamp;

/// Bytes in a block of the simulated filesystem.
pub const BLOCK: u64 = 4096;
/// What a disk writes whole or not at all.
pub const SECTOR: usize = 512;
/// Number of the root directory.
pub const ROOT: u64 = 1;

/// Contents of a block.
pub type Block = Arc<[u8; BLOCK as usize]>;

/// Attributes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
}

/// A file or a directory.
#[derive(Clone)]
pub struct Node {
    pub attr: Attr,
    pub size: u64,
    pub blocks: BTreeMap<u64, Block>,
    /// Names, of a directory.
    pub entries: BTreeMap<OsString, u64>,
    /// Number of names.
    pub nlink: u64,
}

impl Node {
    pub fn new(mode: u32, now: Timestamp) -> Node {
        let attr = Attr { mode, uid: 0, gid: 0, atime: now, mtime: now, xattrs: BTreeMap::new() };
        Node { attr, size: 0, blocks: BTreeMap::new(), entries: BTreeMap::new(), nlink: 0 }
    }

    pub fn is_dir(&self) -> bool {
        self.attr.mode & libc::S_IFMT == libc::S_IFDIR
    }

    /// Cuts or grows the contents; what lies beyond the end is zeros.
    pub fn set_len(&mut self, len: u64) {
        self.size = len;
        let _ = self.blocks.split_off(&len.div_ceil(BLOCK));
        let tail = (len % BLOCK) as usize;
        if tail > 0
            && let Some(last) = self.blocks.get_mut(&(len / BLOCK))
            && last[tail..].iter().any(|&b| b != 0)
        {
            Arc::make_mut(last)[tail..].fill(0);
        }
    }
}

/// One entry of a directory that changes: where, what was there, what is there then.
#[derive(Clone, Debug)]
pub struct Entry {
    pub dir: u64,
    pub name: OsString,
    pub old: Option<u64>,
    pub new: Option<u64>,
}

/// A change that is not durable yet.
#[derive(Clone)]
pub enum Change {
    /// Sectors `mask` of a block, as the page was after the write.
    Write {
        ino: u64,
        block: u64,
        after: Block,
        mask: u8,
    },
    /// The size that a write past the end gives.
    Grow {
        ino: u64,
        size: u64,
    },
    SetLen {
        ino: u64,
        len: u64,
    },
    /// Whole blocks become holes.
    Punch {
        ino: u64,
        from: u64,
        to: u64,
    },
    Mtime {
        ino: u64,
        at: Timestamp,
    },
    Times {
        ino: u64,
        atime: Timestamp,
        mtime: Timestamp,
    },
    Mode {
        ino: u64,
        mode: u32,
    },
    Owner {
        ino: u64,
        uid: u32,
        gid: u32,
    },
    Xattr {
        ino: u64,
        name: OsString,
        value: Option<Vec<u8>>,
    },
    /// Entries that change together: both or neither.
    Names(Vec<Entry>),
}

impl Change {
    /// The file whose data it is.
    pub fn data_of(&self) -> Option<u64> {
        match self {
            Change::Write { ino, .. }
            | Change::Grow { ino, .. }
            | Change::SetLen { ino, .. }
            | Change::Punch { ino, .. } => Some(*ino),
            _ => None,
        }
    }

    /// The file whose attributes it changes.
    pub fn attr_of(&self) -> Option<u64> {
        match self {
            Change::Mtime { ino, .. }
            | Change::Times { ino, .. }
            | Change::Mode { ino, .. }
            | Change::Owner { ino, .. }
            | Change::Xattr { ino, .. } => Some(*ino),
            _ => None,
        }
    }

    /// Whether it changes a name in `dir`.
    pub fn names_in(&self, dir: u64) -> bool {
        matches!(self, Change::Names(entries) if entries.iter().any(|e| e.dir == dir))
    }

    /// Whether it gives or takes a name of `ino`.
    pub fn names_of(&self, ino: u64) -> bool {
        matches!(self, Change::Names(entries) if entries.iter().any(|e| e.new == Some(ino) || e.old == Some(ino)))
    }
}

/// All that is on the disk.
#[derive(Clone)]
pub struct Image {
    pub nodes: HashMap<u64, Arc<Node>>,
    /// Next inode number.
    pub next: u64,
    /// How often the machine was started.
    pub boot: u64,
    /// The simulated time, in ticks.
    pub clock: i64,
}

impl Image {
    /// An empty disk.
    pub fn empty() -> Image {
        let mut root = Node::new(libc::S_IFDIR | 0o755, Timestamp::default());
        root.nlink = 2;
        Image { nodes: HashMap::from([(ROOT, Arc::new(root))]), next: ROOT + 1, boot: 1, clock: 1_000_000 }
    }

    pub fn node(&mut self, ino: u64) -> Option<&mut Node> {
        self.nodes.get_mut(&ino).map(Arc::make_mut)
    }

    /// Applies a change; `keep` says which sectors of a write.
    pub fn apply(&mut self, change: &Change, keep: u8) {
        if let Change::Names(entries) = change {
            return entries.iter().for_each(|e| self.apply_entry(e));
        }
        let ino = change.data_of().or(change.attr_of()).unwrap_or_default();
        let Some(node) = self.node(ino) else { return };
        match change {
            Change::Write { block, after, mask, .. } => write_sectors(node, *block, after, mask & keep),
            Change::Grow { size, .. } => node.size = node.size.max(*size),
            Change::SetLen { len, .. } => node.set_len(*len),
            Change::Punch { from, to, .. } => {
                let gone: Vec<u64> = node.blocks.range(*from..*to).map(|(b, _)| *b).collect();
                gone.iter().for_each(|b| drop(node.blocks.remove(b)));
            }
            Change::Mtime { at, .. } => node.attr.mtime = *at,
            Change::Times { atime, mtime, .. } => (node.attr.atime, node.attr.mtime) = (*atime, *mtime),
            Change::Mode { mode, .. } => node.attr.mode = *mode,
            Change::Owner { uid, gid, .. } => (node.attr.uid, node.attr.gid) = (*uid, *gid),
            Change::Xattr { name, value: Some(value), .. } => {
                drop(node.attr.xattrs.insert(name.clone(), value.clone()))
            }
            Change::Xattr { name, value: None, .. } => drop(node.attr.xattrs.remove(name)),
            Change::Names(_) => {}
        }
    }

    fn apply_entry(&mut self, entry: &Entry) {
        let Some(dir) = self.node(entry.dir) else { return };
        match entry.new {
            Some(new) => drop(dir.entries.insert(entry.name.clone(), new)),
            // What is there may be another file, where an older change was lost.
            None if dir.entries.get(&entry.name).copied() == entry.old => drop(dir.entries.remove(&entry.name)),
            None => {}
        }
    }

    /// What a check of the disk does after a crash: counts names, drops files that have none, and cuts what lies
    /// beyond the ends of files.
    pub fn settle(&mut self) {
        let mut links: HashMap<u64, u64> = HashMap::from([(ROOT, 2)]);
        let mut todo = vec![ROOT];
        while let Some(dir) = todo.pop() {
            let Some(node) = self.nodes.get(&dir).cloned() else { continue };
            for ino in node.entries.values() {
                *links.entry(*ino).or_default() += 1;
                if links[ino] == 1 && self.nodes.get(ino).is_some_and(|n| n.is_dir()) {
                    todo.push(*ino);
                }
            }
        }
        self.nodes.retain(|ino, _| links.contains_key(ino));
        for (ino, count) in links {
            let Some(node) = self.nodes.get(&ino) else { continue };
            let beyond = node.blocks.keys().next_back().is_some_and(|b| (b + 1) * BLOCK > node.size);
            if node.nlink != count || beyond {
                let node = Arc::make_mut(self.nodes.get_mut(&ino).expect("it was just there"));
                node.nlink = count;
                node.set_len(node.size);
            }
        }
    }
}

fn write_sectors(node: &mut Node, block: u64, after: &Block, mask: u8) {
    if mask == u8::MAX {
        node.blocks.insert(block, after.clone());
    } else if mask != 0 {
        let to = Arc::make_mut(node.blocks.entry(block).or_insert_with(|| Arc::new([0; BLOCK as usize])));
        for sector in (0..8).filter(|s| mask & (1 << s) != 0) {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            to[range.clone()].copy_from_slice(&after[range]);
        }
    }
}
