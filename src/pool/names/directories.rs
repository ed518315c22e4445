//! Open directories: what is in them, entry by entry, and making that durable.

use std::ffi::OsStr;

use super::caller::Caller;
use super::handle::DirHandle;
use super::tree::{Listed, is_hidden};
use super::{NameTree, TRIES, errno, snapshots};
use crate::error::{Context, Result};
use crate::io::{DirEntry, FileKey, FileKind};

impl NameTree {
    /// Opens a directory.
    pub fn open_directory(&self, id: u64) -> Result<u64> {
        self.kind(id).map(|_| self.handles.add_directory(id))
    }

    /// Entries of an open directory from `offset` on, as many as `take` accepts; it gets each with its offset. At offset
    /// 0 the directory is read anew.
    pub fn list(
        &self,
        number: u64,
        offset: u64,
        caller: &Caller,
        mut take: impl FnMut(u64, Listed) -> bool,
    ) -> Result<()> {
        let handle = self.handles.directory(number)?;
        if snapshots::is_here(handle.node) {
            let listed = self.list_snapshots(handle.node, caller)?;
            for (at, entry) in (1..).zip(listed).skip(offset as usize) {
                if !take(at, entry) {
                    break;
                }
            }
            return Ok(());
        }
        let mut entries = handle.entries.lock();
        if offset == 0 {
            *entries = self.read_directory(&handle)?;
        }
        let (mut at, device) = (offset, self.table.lock().device(handle.node));
        while let Some(entry) = dots(&handle, at).or_else(|| entries.get(at as usize - 2).cloned()) {
            at += 1;
            if !take(at, self.listed(&handle, device, entry)) {
                break;
            }
        }
        Ok(())
    }

    fn read_directory(&self, handle: &DirHandle) -> Result<Vec<DirEntry>> {
        let _namespace = self.namespace.read();
        let path = match self.path(handle.node) {
            Ok(path) => path,
            // Removed while open: it is empty.
            Err(_) => return Ok(Vec::new()),
        };
        let mut entries = self.directory(handle.node)?.list().context("list", &path)?;
        entries.retain(|entry| !is_hidden(handle.node, &entry.name));
        Ok(entries)
    }

    fn listed(&self, handle: &DirHandle, device: u64, entry: DirEntry) -> Listed {
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

/// The first two entries of every directory.
fn dots(handle: &DirHandle, at: u64) -> Option<DirEntry> {
    let name = match at {
        0 => ".",
        1 => "..",
        _ => return None,
    };
    Some(DirEntry { name: name.into(), ino: handle.node, kind: Some(FileKind::Directory) })
}
