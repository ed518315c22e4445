//! What of open files is kept for a server that takes the mount over: their numbers in the note, and descriptors of those
//! that have no name any more with the holder.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::NameTree;
use super::handle::Handle;
use crate::engine::io::{FileKey, FileKind, FileRef, Open, Stat};
use crate::engine::note::{HandleRecord, Note, Place, Places, Reason, maker, withdraw};
use crate::engine::volume::Volume;
use crate::error::Result;

/// Keeps open files beyond the life of this process.
pub trait Keeper: Send + Sync {
    /// Keeps a file that loses its last name.
    fn keep(&self, key: FileKey, file: &FileRef);
    /// It was closed.
    fn let_go(&self, key: FileKey);
}

/// The open handles in the note.
#[derive(Default)]
pub struct KeptHandles {
    note: OnceLock<Arc<Note>>,
    places: Mutex<(Places, HashMap<u64, Place>)>,
}

impl KeptHandles {
    /// Goes on with these handles of the note.
    pub fn open(&self, note: Arc<Note>, places: Places, known: HashMap<u64, Place>) {
        *self.places.lock() = (places, known);
        drop(self.note.set(note));
    }

    /// A handle was opened by the request that this thread works on; with flags and thread if it is no directory.
    pub fn add(&self, number: u64, node: u64, file: Option<(i32, u32)>) {
        let Some(note) = self.note.get() else { return };
        let (flags, pid) = file.unwrap_or_default();
        let directory = file.is_none();
        let record = HandleRecord { number, node, flags, pid, directory, pinned: false, by: maker() };
        let (places, known) = &mut *self.places.lock();
        match note.add_handle(places, &record) {
            Some(place) => drop(known.insert(number, place)),
            None => withdraw(Reason::Full),
        }
    }

    /// A handle was closed.
    pub fn remove(&self, number: u64) {
        let Some(note) = self.note.get() else { return };
        let (places, known) = &mut *self.places.lock();
        if let Some(place) = known.remove(&number) {
            note.remove_handle(places, place);
        }
    }

    /// A handle reads a point in time from now on, which no other server can show.
    pub fn pin(&self, number: u64) {
        if let (Some(note), Some(place)) = (self.note.get(), self.places.lock().1.get(&number)) {
            note.pin_handle(*place);
        }
    }
}

impl NameTree {
    /// Keeps everything that a server which takes the mount over will need in `note`, and files without a name with
    /// `keeper`. For the first server of a mount.
    pub fn keep(&self, note: &Arc<Note>, keeper: Box<dyn Keeper>) {
        self.table.lock().keep(note);
        self.handles.kept.open(note.clone(), Places::default(), HashMap::new());
        drop(self.keeper.set(keeper));
    }

    /// Another file is being put in the place of `key`, or was not.
    pub(super) fn swapping(&self, key: FileKey, swapping: bool) {
        let table = self.table.lock();
        if let Some(id) = table.find(key) {
            table.swapping(id, swapping);
        }
    }

    /// Before a file loses its last name: has it kept if it is open. Says whether it is.
    pub(super) fn keep_nameless(&self, path: &Path, stat: &Stat) -> bool {
        let Some(keeper) = self.keeper.get() else { return false };
        if stat.kind() != FileKind::File || stat.nlink > 1 || self.opened_as(stat.key).is_none() {
            return false;
        }
        // With a descriptor of its own: those of the volume cannot be asked for with names locked.
        let file = self.fs.open(path, Open::Write).or_else(|_| self.fs.open(path, Open::Read));
        let file = file.ok().filter(|file| file.stat().is_ok_and(|now| now.key == stat.key));
        file.inspect(|file| keeper.keep(stat.key, file)).is_some()
    }

    /// After it has lost the name, with no lock held: the same for one that was opened just then.
    pub(super) fn keep_opened(&self, stat: &Stat, kept: bool) {
        let (Some(keeper), false) = (self.keeper.get(), kept) else { return };
        if let Some(file) = self.opened_as(stat.key).and_then(|volume| volume.file()) {
            keeper.keep(stat.key, &file);
        }
    }

    fn opened_as(&self, key: FileKey) -> Option<Arc<Volume>> {
        let table = self.table.lock();
        let node = table.find(key).and_then(|id| table.node(id))?;
        node.open.as_ref().map(|open| open.volume.clone())
    }

    /// Pins an open handle to this moment, see [`NameTree::pin`]. From before that on no other server shows anything through
    /// it.
    pub fn pin_kept(&self, number: u64, handle: &Handle) -> Result<()> {
        self.handles.kept.pin(number);
        self.pin(handle)
    }

    /// The last handle of a file without a name was closed.
    pub(super) fn let_go_nameless(&self, key: FileKey) {
        if let Some(keeper) = self.keeper.get() {
            keeper.let_go(key);
        }
    }
}
