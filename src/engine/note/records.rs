//! Tables of the note: open handles, nodes, and the names of nodes.
//!
//! A record is written body first, then its state word. What changes later is one word each, so that a kill leaves the
//! old or the new.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::atomic::Ordering;

use super::{AT_HANDLES, AT_LINKS, AT_NODES, HANDLES, LINKS, NODES, Note, Word};
use crate::engine::io::{FileId, FileKey, FileKind, Timestamp};

/// State of a record that counts; its upper half is a checksum of what never changes.
const LIVE: u64 = 1;
/// Bits of a node's state.
const SECOND_KEY: u64 = 2;
const SWAPPING: u64 = 4;
const GONE: u64 = 8;
/// Bit of a link's state: it is about to be made, by a rename.
const INTENDED: u64 = 2;

/// Which record of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(u32);

/// Free records of one table, as one server knows them.
#[derive(Default)]
pub struct Places {
    free: Vec<u32>,
    used: u32,
}

/// Which table.
#[derive(Clone, Copy)]
enum Table {
    Handles,
    Nodes,
    Links,
}

impl Table {
    fn limits(self) -> (u64, u64, u64, Word) {
        match self {
            Table::Handles => (AT_HANDLES, HANDLES.0, HANDLES.1, Word::UsedHandles),
            Table::Nodes => (AT_NODES, NODES.0, NODES.1, Word::UsedNodes),
            Table::Links => (AT_LINKS, LINKS.0, LINKS.1, Word::UsedLinks),
        }
    }

    fn at(self, place: Place) -> u64 {
        let (start, _, length, _) = self.limits();
        start + u64::from(place.0) * length
    }
}

/// An open file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandleRecord {
    /// The number that the kernel has for it.
    pub number: u64,
    /// Its node.
    pub node: u64,
    /// Flags of the open.
    pub flags: i32,
    /// Thread that opened it.
    pub pid: u32,
    /// It is a directory.
    pub directory: bool,
    /// It reads a point in time.
    pub pinned: bool,
    /// The request that opened it.
    pub by: u64,
}

/// What the kernel knows under a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// The number.
    pub id: u64,
    /// Its generation.
    pub generation: u64,
    /// What it is.
    pub kind: FileKind,
    /// The backing file.
    pub file: FileId,
    /// Times that the kernel was told the number.
    pub lookups: u64,
    /// Another file was just being put in the place of the backing file.
    pub swapping: bool,
    /// It has lost its last name for good.
    pub gone: bool,
}

/// A name of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkRecord {
    /// The directory.
    pub parent: u64,
    /// The node.
    pub node: u64,
    /// The name in the directory.
    pub name: OsString,
    /// Later names have higher ones.
    pub order: u64,
    /// A rename was about to give this name to the node.
    pub intended: bool,
}

impl Places {
    fn take(&mut self, note: &Note, table: Table) -> Option<Place> {
        if let Some(place) = self.free.pop() {
            return Some(Place(place));
        }
        let (_, count, _, used) = table.limits();
        if u64::from(self.used) >= count {
            return None;
        }
        self.used += 1;
        note.set(used, self.used.into());
        Some(Place(self.used - 1))
    }

    fn give(&mut self, place: Place) {
        self.free.push(place.0);
    }
}

impl Note {
    fn live(&self, table: Table) -> (Vec<Place>, Places) {
        let (_, count, _, used) = table.limits();
        let used = self.get(used).min(count) as u32;
        let is_live = |place: &Place| self.word(table.at(*place)).load(Ordering::Acquire) & LIVE != 0;
        let (live, free): (Vec<Place>, Vec<Place>) = (0..used).map(Place).partition(is_live);
        (live, Places { free: free.into_iter().rev().map(|place| place.0).collect(), used })
    }

    fn clear(&self, table: Table, place: Place) {
        self.word(table.at(place)).store(0, Ordering::Release);
    }

    /// Adds an open handle; `None` if there is no room.
    pub fn add_handle(&self, places: &mut Places, handle: &HandleRecord) -> Option<Place> {
        let place = places.take(self, Table::Handles)?;
        let at = Table::Handles.at(place);
        let body = [handle.number, handle.node, handle.flags as u32 as u64, handle.pid.into(), handle.by];
        for (index, word) in body.into_iter().enumerate() {
            self.word(at + 1 + index as u64).store(word, Ordering::Relaxed);
        }
        self.word(at + 6).store(u64::from(handle.directory), Ordering::Relaxed);
        self.word(at + 7).store(u64::from(handle.pinned), Ordering::Relaxed);
        self.word(at).store(LIVE | sum(&body[..4]), Ordering::Release);
        Some(place)
    }

    /// The handle reads a point in time from now on.
    pub fn pin_handle(&self, place: Place) {
        self.word(Table::Handles.at(place) + 7).store(1, Ordering::Release);
    }

    /// The handle was closed.
    pub fn remove_handle(&self, places: &mut Places, place: Place) {
        self.clear(Table::Handles, place);
        places.give(place);
    }

    /// All open handles, and what is free. A damaged record is named in `damaged`.
    pub fn handles(&self, damaged: &mut bool) -> (Vec<(Place, HandleRecord)>, Places) {
        let (live, places) = self.live(Table::Handles);
        let read = |place: Place| {
            let at = Table::Handles.at(place);
            let word = |index: u64| self.word(at + index).load(Ordering::Relaxed);
            *damaged |= word(0) != LIVE | sum(&[word(1), word(2), word(3), word(4)]);
            let (flags, pid) = (word(3) as u32 as i32, word(4) as u32);
            let (directory, pinned) = (word(6) != 0, word(7) != 0);
            (place, HandleRecord { number: word(1), node: word(2), flags, pid, directory, pinned, by: word(5) })
        };
        (live.into_iter().map(read).collect(), places)
    }

    /// Adds a node; `None` if there is no room.
    pub fn add_node(&self, places: &mut Places, node: &NodeRecord) -> Option<Place> {
        let place = places.take(self, Table::Nodes)?;
        let at = Table::Nodes.at(place);
        let kind = u64::from(mode_of(node.kind));
        for (index, word) in [(1, node.id), (2, node.generation << 32 | kind), (3, node.lookups)] {
            self.word(at + index).store(word, Ordering::Relaxed);
        }
        self.set_file(at + 4, node.file);
        self.word(at).store(LIVE | sum(&[node.id, node.generation << 32 | kind]), Ordering::Release);
        Some(place)
    }

    /// So often the kernel was told of the node.
    pub fn set_lookups(&self, place: Place, lookups: u64) {
        self.word(Table::Nodes.at(place) + 3).store(lookups, Ordering::Release);
    }

    /// Another file is being put in the place of the node's backing file.
    pub fn set_swapping(&self, place: Place, swapping: bool) {
        let word = self.word(Table::Nodes.at(place));
        let state = word.load(Ordering::Relaxed);
        word.store(if swapping { state | SWAPPING } else { state & !SWAPPING }, Ordering::Release);
    }

    fn set_file(&self, at: u64, file: FileId) {
        let birth = file.birth.map_or((0, u64::MAX), |birth| (birth.seconds as u64, birth.nanos.into()));
        for (word, at) in [file.key.dev, file.key.ino, birth.0, birth.1].into_iter().zip(at..) {
            self.word(at).store(word, Ordering::Relaxed);
        }
    }

    fn file_at(&self, at: u64) -> FileId {
        let word = |index: u64| self.word(at + index).load(Ordering::Relaxed);
        let birth = Timestamp { seconds: word(2) as i64, nanos: word(3) as u32 };
        FileId { key: FileKey { dev: word(0), ino: word(1) }, birth: (word(3) != u64::MAX).then_some(birth) }
    }

    /// It was put there.
    pub fn set_key(&self, place: Place, file: FileId) {
        let at = Table::Nodes.at(place);
        let state = self.word(at).load(Ordering::Relaxed);
        self.set_file(at + if state & SECOND_KEY != 0 { 4 } else { 8 }, file);
        self.word(at).store((state ^ SECOND_KEY) & !SWAPPING, Ordering::Release);
    }

    /// The node has no name any more, and will have none, or has one again.
    pub fn set_gone(&self, place: Place, gone: bool) {
        let word = self.word(Table::Nodes.at(place));
        let state = word.load(Ordering::Relaxed);
        word.store(if gone { state | GONE } else { state & !GONE }, Ordering::Release);
    }

    /// The kernel has forgotten the node.
    pub fn remove_node(&self, places: &mut Places, place: Place) {
        self.clear(Table::Nodes, place);
        places.give(place);
    }

    /// All nodes, and what is free.
    pub fn nodes(&self, damaged: &mut bool) -> (Vec<(Place, NodeRecord)>, Places) {
        let (live, places) = self.live(Table::Nodes);
        let read = |place: Place| {
            let at = Table::Nodes.at(place);
            let word = |index: u64| self.word(at + index).load(Ordering::Relaxed);
            let state = word(0);
            *damaged |= state >> 32 != sum(&[word(1), word(2)]) >> 32;
            let record = NodeRecord {
                id: word(1),
                generation: word(2) >> 32,
                kind: FileKind::from_mode(word(2) as u32),
                file: self.file_at(at + if state & SECOND_KEY != 0 { 8 } else { 4 }),
                lookups: word(3),
                swapping: state & SWAPPING != 0,
                gone: state & GONE != 0,
            };
            (place, record)
        };
        (live.into_iter().map(read).collect(), places)
    }

    /// Adds a name of a node; `None` if there is no room, also for a name that is too long to be one.
    pub fn add_link(&self, places: &mut Places, link: &LinkRecord) -> Option<Place> {
        let (parent, node, order, bytes) = (link.parent, link.node, link.order, link.name.as_bytes());
        if bytes.len() > 256 {
            return None;
        }
        let place = places.take(self, Table::Links)?;
        let at = Table::Links.at(place);
        self.word(at + 1).store(parent, Ordering::Relaxed);
        self.word(at + 2).store(node, Ordering::Relaxed);
        self.word(at + 3).store(order << 16 | bytes.len() as u64, Ordering::Relaxed);
        self.set_bytes(at + 4, bytes);
        let intended = if link.intended { INTENDED } else { 0 };
        self.word(at).store(LIVE | intended | sum_of_name(parent, node, bytes), Ordering::Release);
        Some(place)
    }

    /// The name is no more.
    pub fn remove_link(&self, places: &mut Places, place: Place) {
        self.clear(Table::Links, place);
        places.give(place);
    }

    /// All names, and what is free.
    pub fn links(&self, damaged: &mut bool) -> (Vec<(Place, LinkRecord)>, Places) {
        let (live, places) = self.live(Table::Links);
        let read = |place: Place| {
            let at = Table::Links.at(place);
            let word = |index: u64| self.word(at + index).load(Ordering::Relaxed);
            let length = (word(3) & 0xffff).min(256) as usize;
            let name = self.bytes(at + 4, length);
            *damaged |= word(0) & !INTENDED != LIVE | sum_of_name(word(1), word(2), &name);
            let (name, intended) = (OsString::from_vec(name), word(0) & INTENDED != 0);
            (place, LinkRecord { parent: word(1), node: word(2), name, order: word(3) >> 16, intended })
        };
        (live.into_iter().map(read).collect(), places)
    }
}

/// File type bits of a kind.
fn mode_of(kind: FileKind) -> u32 {
    match kind {
        FileKind::File => libc::S_IFREG,
        FileKind::Directory => libc::S_IFDIR,
        FileKind::Symlink => libc::S_IFLNK,
        FileKind::Fifo => libc::S_IFIFO,
        FileKind::Socket => libc::S_IFSOCK,
        FileKind::CharDevice => libc::S_IFCHR,
        FileKind::BlockDevice => libc::S_IFBLK,
    }
}

/// Checksum of words, in the upper half of a state.
fn sum(words: &[u64]) -> u64 {
    let bytes = words.iter().fold(0, |sum, word| crc32c::crc32c_append(sum, &word.to_le_bytes()));
    u64::from(bytes) << 32
}

fn sum_of_name(parent: u64, node: u64, name: &[u8]) -> u64 {
    let head = (sum(&[parent, node]) >> 32) as u32;
    u64::from(crc32c::crc32c_append(head, name)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> LinkRecord {
        LinkRecord { parent: 1, node: 12, name: name.into(), order: 4, intended: true }
    }

    #[test]
    fn what_was_added_is_found_again() {
        let note = Note::create().unwrap();
        let (mut handles, mut nodes, mut links) = (Places::default(), Places::default(), Places::default());
        let handle = HandleRecord {
            number: 7,
            node: 12,
            flags: libc::O_RDWR | libc::O_DIRECT,
            pid: 9,
            directory: false,
            pinned: false,
            by: 1 << 62,
        };
        let first = note.add_handle(&mut handles, &handle).unwrap();
        let second = note.add_handle(&mut handles, &HandleRecord { number: 8, ..handle }).unwrap();
        note.remove_handle(&mut handles, first);
        note.pin_handle(second);
        let birth = Some(Timestamp { seconds: -5, nanos: 7 });
        let (file, new) = (FileId::from(FileKey { dev: 1, ino: 2 }), FileId { key: FileKey { dev: 1, ino: 3 }, birth });
        let node =
            NodeRecord { id: 12, generation: 3, kind: FileKind::File, file, lookups: 1, swapping: false, gone: false };
        let place = note.add_node(&mut nodes, &node).unwrap();
        note.set_lookups(place, 5);
        note.set_swapping(place, true);
        assert!(note.nodes(&mut false).0[0].1.swapping);
        note.set_key(place, new);
        let link = named("a name of its own");
        note.add_link(&mut links, &link).unwrap();
        let mut damaged = false;
        let found = note.handles(&mut damaged).0;
        assert_eq!(found, [(second, HandleRecord { number: 8, pinned: true, ..handle })]);
        let (found, _) = note.nodes(&mut damaged);
        assert_eq!(found, [(place, NodeRecord { file: new, lookups: 5, ..node })]);
        let found = note.links(&mut damaged).0;
        assert_eq!(found[0].1, link);
        assert!(!damaged);
    }

    #[test]
    fn a_place_that_was_given_back_is_used_again_also_by_the_next_server() {
        let note = Note::create().unwrap();
        let mut places = Places::default();
        let add = |places: &mut Places, name: &str| note.add_link(places, &named(name)).unwrap();
        let (one, two) = (add(&mut places, "one"), add(&mut places, "two"));
        note.remove_link(&mut places, one);
        let (live, mut places) = note.links(&mut false);
        assert_eq!(live.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [two]);
        assert_eq!(add(&mut places, "three"), one);
    }

    #[test]
    fn a_changed_record_is_seen() {
        let note = Note::create().unwrap();
        let place = note.add_link(&mut Places::default(), &named("name")).unwrap();
        note.word(Table::Links.at(place) + 2).store(3, Ordering::Relaxed);
        let mut damaged = false;
        note.links(&mut damaged);
        assert!(damaged);
    }
}
