//! Open directories: what is in them, entry by entry, and making that durable.

use std::ffi::OsStr;
use std::sync::Arc;

use super::caller::Caller;
use super::handle::DirHandle;
use super::listing::{FIRST, Window};
use super::tree::{Listed, is_hidden};
use super::{NameTree, TRIES, errno, snapshots};
use crate::engine::io::{DirEntry, FileKey, FileKind};
use crate::error::{Context, Result};

impl NameTree {
    /// Opens a directory.
    pub fn open_directory(&self, id: u64) -> Result<u64> {
        self.kind(id).map(|_| self.handles.add_directory(id))
    }

    /// Entries of an open directory from a position on, as many as `take` accepts; it gets each with the position after it.
    /// At position 0 the directory is read anew. Positions mean the same in every open of it, see `listing`.
    /// Which snapshots there are depends on `caller`.
    pub fn list(
        &self,
        number: u64,
        offset: u64,
        caller: &Caller,
        mut take: impl FnMut(u64, Listed) -> bool,
    ) -> Result<()> {
        let handle = self.handles.directory(number)?;
        let device = self.table.lock().device(handle.node);
        let mut window = self.window(&handle, offset.max(FIRST), offset == 0, caller)?;
        let (mut at, mut taken) = (offset, false);
        while let Some(entry) = dots(&handle, at) {
            at += 1;
            if !take(at, self.listed(&handle, device, entry)) {
                return Ok(());
            }
            taken = true;
        }
        at = at.max(FIRST);
        loop {
            for (position, entry) in window.entries_from(at) {
                if !take(position + 1, self.listed(&handle, device, entry.clone())) {
                    return Ok(());
                }
                taken = true;
            }
            // An answer with something in it is not the end: there will be another call.
            match window.end() {
                _ if taken => return Ok(()),
                Some(end) => at = end,
                None => {
                    handle.listing.lock().window = None;
                    return Ok(());
                }
            }
            window = self.window(&handle, at, false, caller)?;
        }
    }

    /// The names around a position: those that the handle had before, unless it begins anew, or else those that somebody
    /// has just read, if the handle begins in the middle.
    fn window(&self, handle: &DirHandle, at: u64, anew: bool, caller: &Caller) -> Result<Arc<Window>> {
        let mut listing = handle.listing.lock();
        listing.from_start |= anew;
        let held = listing.window.as_ref().filter(|window| !anew && window.covers(at)).cloned();
        if let Some(window) = held {
            return Ok(window);
        }
        let generation = self.table.lock().node(snapshots::real(handle.node)).map_or(0, |node| node.generation);
        let directory = (handle.node, generation);
        // What one user sees of the snapshots is nothing for another.
        let shared = !snapshots::is_here(handle.node);
        let others = if listing.from_start || !shared { None } else { self.recent.lock().find(directory, at) };
        let window = match others {
            Some(window) => window,
            None => {
                let total = listing.window.take().map_or(0, |window| window.total());
                let window = Arc::new(self.read_window(handle.node, at, total, caller)?);
                if shared {
                    self.recent.lock().keep(directory, &window);
                }
                window
            }
        };
        listing.window = Some(window.clone());
        Ok(window)
    }

    fn read_window(&self, node: u64, at: u64, total: usize, caller: &Caller) -> Result<Window> {
        if snapshots::is_here(node) {
            let listed = self.list_snapshots(node, caller)?;
            return Window::read(at, total, |offer| {
                listed.iter().for_each(|entry| offer(&entry.name, entry.ino, Some(entry.kind)));
                Ok(())
            });
        }
        let _namespace = self.namespace.read();
        // Removed while open: it is empty.
        let Ok(path) = self.path(node) else { return Window::read(at, total, |_| Ok(())) };
        let directory = self.directory(node)?;
        Window::read(at, total, |offer| {
            let mut each = |name: &OsStr, ino, kind| {
                if !is_hidden(node, name) {
                    offer(name, ino, kind);
                }
            };
            directory.visit(&mut each).context("list", &path)
        })
    }

    fn listed(&self, handle: &DirHandle, device: u64, entry: DirEntry) -> Listed {
        if snapshots::is_here(handle.node) {
            return Listed { name: entry.name, ino: entry.ino, kind: entry.kind.unwrap_or(FileKind::File) };
        }
        let table = self.table.lock();
        let ino = match entry.name.as_encoded_bytes() {
            b"." => table.shown(handle.node),
            b".." => table.shown(table.parent(handle.node)),
            _ => table.listed(handle.node, &entry.name, FileKey { dev: device, ino: entry.ino }),
        };
        drop(table);
        let kind = entry.kind.or_else(|| self.kind_of_entry(handle.node, &entry.name)).unwrap_or(FileKind::File);
        Listed { name: entry.name, ino, kind }
    }

    /// For filesystems that do not tell the kind in the directory.
    fn kind_of_entry(&self, directory: u64, name: &OsStr) -> Option<FileKind> {
        let _namespace = self.namespace.read();
        self.directory(directory).ok()?.stat_at(name).ok().map(|stat| stat.kind())
    }

    /// Closes a directory.
    pub fn release_directory(&self, number: u64) {
        self.handles.remove_directory(number);
    }

    /// Makes the names in a directory durable.
    pub fn sync_directory(&self, id: u64) -> Result<()> {
        // Without the namespace lock: a rename, and all that comes after it, would wait for the disk.
        for _ in 0..TRIES {
            // A removed directory has nothing left to make durable.
            let Ok(path) = self.path(id) else { return Ok(()) };
            match self.directory(id) {
                Ok(directory) => return directory.sync().context("make names durable in", &path),
                Err(error) if self.path(id).is_ok_and(|now| now == path) => return Err(error),
                Err(_) => {}
            }
        }
        Err(errno("follow a directory that is renamed all the time", libc::EBUSY))
    }
}

/// The first two entries of every directory but those of snapshots.
fn dots(handle: &DirHandle, at: u64) -> Option<DirEntry> {
    let name = match at {
        _ if snapshots::is_here(handle.node) => return None,
        0 => ".",
        1 => "..",
        _ => return None,
    };
    Some(DirEntry { name: name.into(), ino: handle.node, kind: Some(FileKind::Directory) })
}
