//! Taking over what a server before this one had open, and looking into what it had begun.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::caller::Caller;
use super::handle::{Handle, OpenFile, is_plain_reader, opens_for_writing};
use super::kept::Keeper;
use super::tree::Found;
use super::ways::Ways;
use super::{NameTree, errno, stale};
use crate::engine::io::{FileKey, FileKind, Rename, Stat};
use crate::engine::note::{HandleRecord, Note, Slots};
use crate::engine::volume::{State, Volume};
use crate::error::{Context, Error, Kind, Result};

/// Files that have lost their last name and are open, with the descriptors that a holder has kept.
pub type Nameless = HashMap<FileKey, OwnedFd>;

/// Each server counts its handles from its own number, shifted by so many bits: none is ever used again.
const HANDLES: u32 = 40;

impl NameTree {
    /// Becomes what the server before was: nodes, their names, open handles. For a tree that nobody uses yet.
    ///
    /// # Errors
    /// The note is damaged, or a file that is open cannot be opened for want of descriptors or memory. A file that is not
    /// what it was is no error of the whole: its handles give `EBADF` from now on.
    pub fn take_over(
        &self,
        note: &Arc<Note>,
        slots: &Slots,
        mut nameless: Nameless,
        keeper: Box<dyn Keeper>,
    ) -> Result<()> {
        let damaged = || Error::new(Kind::Damaged, "take the mount over").because("its note is damaged");
        let under_way = self.table.lock().take_over(note).ok_or_else(damaged)?;
        for id in under_way.swapping {
            self.find_swapped(id)?;
        }
        for link in under_way.intended {
            self.find_renamed(link.node, (link.parent, &link.name))?;
        }
        self.table.lock().decided();
        let mut wrong = false;
        let (handles, places) = note.handles(&mut wrong);
        if wrong {
            return Err(damaged());
        }
        let known = handles.iter().map(|(place, handle)| (handle.number, *place)).collect();
        self.handles.kept.open(note.clone(), places, known);
        self.handles.number_from(note.begun() << HANDLES);
        for (_, handle) in &handles {
            if slots.was_cut_off(handle.by) {
                // Nobody was told of it: the request comes again, and opens another one.
                self.handles.kept.remove(handle.number);
            } else if handle.directory {
                self.handles.add_directory_again(handle.number, handle.node);
            } else {
                self.open_again(handle, &mut nameless)?;
            }
        }
        for (key, _) in nameless {
            keeper.let_go(key);
        }
        drop(self.keeper.set(keeper));
        Ok(())
    }

    /// The key of a node whose backing file was just being replaced.
    fn find_swapped(&self, id: u64) -> Result<()> {
        let Ok(path) = self.path(id) else { return Ok(()) };
        if let Some(stat) = self.there(&path).context("look at", &path)?
            && stat.kind() == FileKind::File
        {
            self.table.lock().found_key(id, stat.id());
        }
        Ok(())
    }

    /// Where a node is that was just being renamed.
    fn find_renamed(&self, id: u64, name: (u64, &OsStr)) -> Result<()> {
        let Some(key) = self.table.lock().node(id).map(|node| node.key) else { return Ok(()) };
        let Ok(path) = self.join(name.0, name.1) else { return Ok(()) };
        let is_there = self.there(&path).context("look at", &path)?.is_some_and(|stat| stat.key == key);
        if is_there {
            let leads = |path: &Path| self.fs.stat(path).is_ok_and(|stat| stat.key == key);
            self.table.lock().found_at(id, name, leads);
        }
        Ok(())
    }

    fn open_again(&self, handle: &HandleRecord, nameless: &mut Nameless) -> Result<()> {
        if handle.pinned {
            tracing::warn!(
                "a handle of node {} showed a point in time that is lost: it can only be closed",
                handle.node
            );
            return Ok(());
        }
        let open = {
            let table = self.table.lock();
            table.node(handle.node).and_then(|node| node.open.as_ref()).map(|open| open.volume.clone())
        };
        let volume = match open.map_or_else(|| self.volume_again(handle.node, nameless), Ok) {
            Ok(volume) => volume,
            Err(error) if error.is_scarcity() || error.is_out_of_files() => return Err(error),
            Err(error) => {
                tracing::error!("a handle of node {} can only be closed: {error}", handle.node);
                return Ok(());
            }
        };
        let writes = opens_for_writing(handle.flags);
        volume.open_handle(writes);
        let mut table = self.table.lock();
        let Some(node) = table.node_mut(handle.node) else { return Ok(()) };
        let open = node.open.get_or_insert_with(|| OpenFile {
            volume,
            handles: 0,
            writers: 0,
            plain_readers: Vec::new(),
            privileges: Arc::default(),
            ways: Ways::None,
        });
        open.handles += 1;
        open.writers += u32::from(writes);
        if is_plain_reader(handle.flags) {
            open.plain_readers.push(handle.pid);
        }
        open.ways.open(|| None);
        let again = Handle::new(handle.node, open, handle.flags, handle.pid);
        drop(table);
        self.handles.add_again(handle.number, again);
        Ok(())
    }

    /// The volume of a node that was open, under whatever name, or none.
    fn volume_again(&self, id: u64, nameless: &mut Nameless) -> Result<Arc<Volume>> {
        let (key, paths) = {
            let table = self.table.lock();
            (table.node(id).ok_or_else(stale)?.key, table.paths(id))
        };
        for path in &paths {
            if self.there(path).context("look at", path)?.is_some_and(|stat| stat.key == key) {
                return self.pool.volume(key, path);
            }
        }
        let path = paths.into_iter().next().unwrap_or_default();
        let (volume, stat) = self.pool.nameless(key, &path, nameless.remove(&key))?;
        let mut table = self.table.lock();
        table.set_gone(id, Stat { nlink: 0, ..stat });
        table.found_key(id, stat.id());
        Ok(volume)
    }

    // ---- what had been begun ---------------------------------------------------------------------------------------

    /// Whether a name is there.
    pub fn is_there(&self, parent: u64, name: &OsStr) -> Result<bool> {
        if super::snapshots::is_here(parent) {
            return self.lookup(parent, name).map(|found| self.forget(found.node, 1)).map(|()| true).or_else(absent);
        }
        Ok(self.there_at(parent, name)?.is_some())
    }

    /// Status of what has a path; `None`: nothing. Not to know what is there is not the same.
    fn there(&self, path: &Path) -> std::io::Result<Option<Stat>> {
        match self.fs.stat(path) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            other => other.map(Some),
        }
    }

    /// The same of what has a name in a directory.
    fn there_at(&self, parent: u64, name: &OsStr) -> Result<Option<Stat>> {
        match self.directory(parent)?.stat_at(name) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            other => other.map(Some).context("look at", name),
        }
    }

    /// The backing file under a name, as two numbers; zeros for none.
    pub fn key_at(&self, parent: u64, name: &OsStr) -> (u64, u64) {
        let stat = self.there_at(parent, name).ok().flatten();
        stat.map_or((0, 0), |stat| (stat.key.dev, stat.key.ino))
    }

    /// The backing file of a node, as two numbers; zeros for none.
    pub fn key_of(&self, node: u64) -> (u64, u64) {
        self.table.lock().node(node).map_or((0, 0), |node| (node.key.dev, node.key.ino))
    }

    /// Removes what a server before this one has made under a name and told nobody of: the request comes again.
    pub fn take_back(&self, parent: u64, name: &OsStr, caller: &Caller) -> Result<()> {
        let _namespace = self.namespace.read();
        let _directory = self.directory_lock(parent).write();
        let (directory, path) = (self.directory(parent)?, self.join(parent, name)?);
        let Some(stat) = self.there_at(parent, name)? else { return Ok(()) };
        // With the rights of whoever it was made for, and it alone: what holds something is somebody's.
        let remove = || match stat.kind() {
            FileKind::Directory => directory.rmdir(name),
            FileKind::File if stat.size > 0 || stat.nlink > 1 => Err(std::io::Error::from_raw_os_error(libc::EEXIST)),
            _ => directory.unlink(name),
        };
        self.act_on_names(caller, &[&directory], &[stat], remove).context("take back", &path)?;
        let mut table = self.table.lock();
        let node = table.child(parent, name);
        table.removed(parent, name, stat);
        if let Some(node) = node {
            table.forget(node, 1);
        }
        Ok(())
    }

    /// The file under a name, of which a server before this one has counted that the kernel is told.
    pub fn found_again(&self, parent: u64, name: &OsStr) -> Result<Found> {
        let found = self.lookup(parent, name)?;
        self.forget(found.node, 1);
        Ok(found)
    }

    /// A name that a server before this one has removed.
    pub fn was_removed(&self, parent: u64, name: &OsStr) {
        if !super::snapshots::is_here(parent) {
            self.table.lock().detach(parent, name);
        }
    }

    /// Names that a server before this one has changed: what comes after that is done here.
    pub fn was_renamed(&self, from: (u64, &OsStr), to: (u64, &OsStr), how: Rename) -> Result<()> {
        if super::snapshots::is_here(from.0) {
            return Ok(());
        }
        let _namespace = self.namespace.write();
        let (old, new): (PathBuf, PathBuf) = (self.join(from.0, from.1)?, self.join(to.0, to.1)?);
        let it = self.there_at(to.0, to.1)?;
        let key = it.map(|stat| stat.key);
        {
            let mut table = self.table.lock();
            if let Some(id) = key.and_then(|key| table.find(key)) {
                let leads = |path: &Path| self.fs.stat(path).is_ok_and(|stat| Some(stat.key) == key);
                table.found_at(id, to, leads);
            }
        }
        if how == Rename::Exchange {
            return Ok(());
        }
        if how != Rename::Whiteout {
            self.table.lock().detach(from.0, from.1);
        }
        if let Some(it) = it
            && let Err(error) = self.pool.paths_follow((&old, &it), (&new, None))
        {
            tracing::warn!("what is said of {old:?} stays under that name: {error}");
        }
        Ok(())
    }

    /// Whether a file is a clone by now, which it was not when a request to make it one began.
    pub fn became_clone(&self, node: u64) -> bool {
        let Ok(volume) = self.volume(node) else { return false };
        let is_clone = matches!(&*volume.gate().read(), State::Overlay(overlay) if overlay.top.parent().is_some());
        is_clone && volume.size().is_ok_and(|size| size > 0)
    }

    /// Ends what a server before this one has begun when it made a file a clone.
    pub fn end_of_clone(&self, node: u64) -> Result<u64> {
        let volume = self.volume(node)?;
        volume.sync(false)?;
        self.grown(node, &volume)?;
        volume.size()
    }

    /// Whether a snapshot that a request wants to make is there.
    pub fn has_snapshot(&self, node: u64, name: &str) -> bool {
        self.path(node).is_ok_and(|path| self.pool.find_snapshot(&path, name).is_some())
    }

    /// Fails unless a handle is one of this node.
    pub fn open_of(&self, number: u64, node: u64) -> Result<()> {
        let of = match self.handles.get(number) {
            Ok(handle) => handle.node,
            Err(_) => self.handles.directory(number)?.node,
        };
        if of == node { Ok(()) } else { Err(errno("use a handle of another file", libc::EBADF)) }
    }
}

fn absent(error: Error) -> Result<bool> {
    if error.errno() == libc::ENOENT { Ok(false) } else { Err(error) }
}
