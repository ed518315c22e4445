//! Operations on names: look up, list, make, remove, rename, link, open.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::attributes::Attributes;
use super::caller::{CAP_FSETID, Caller};
use super::handle::Handles;
use super::{HIDDEN, NameTree, ROOT, errno, snapshots, stale};
use crate::engine::events::{Event, What};
use crate::engine::io::{FileKind, InodeRef, Rename, Stat};
use crate::engine::volume::Volume;
use crate::error::{Context, Error, Kind, Result};

/// A file that the kernel is told about; it counts as one lookup.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Number of its node.
    pub node: u64,
    /// Generation of the number.
    pub generation: u64,
    /// Its status.
    pub attributes: Attributes,
}

/// How to make a file.
#[derive(Clone, Copy, Debug)]
pub struct Creation {
    /// Type and permission bits, before the umask.
    pub mode: u32,
    /// The caller's umask.
    pub umask: u32,
    /// Device number of a device file.
    pub rdev: u64,
    /// Who makes it, and owns it then.
    pub caller: Caller,
}

/// One entry of a directory.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its name.
    pub name: OsString,
    /// `st_ino` of the file.
    pub ino: u64,
    /// What it is.
    pub kind: FileKind,
}

impl NameTree {
    /// The file that has a name.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Found> {
        if is_hidden(parent, name) {
            return Err(errno("look up", libc::ENOENT).at(name));
        }
        if snapshots::is_here(parent) {
            return self.lookup_snapshot(parent, name);
        }
        if self.is_snapshots(parent, name) {
            return self.snapshots_root();
        }
        let namespace = self.namespace.read();
        let directory = self.directory_lock(parent).read();
        let (holder, path) = (self.directory(parent)?, self.join(parent, name)?);
        let stat = match holder.stat_at(name).map_err(|error| self.unless_gone(parent, &holder, error)) {
            Ok(stat) => stat,
            Err(error) => {
                if error.raw_os_error() == Some(libc::ENOENT) {
                    self.table.lock().detach(parent, name);
                }
                return Err(error).context("look up", &path);
            }
        };
        let (node, generation) = {
            let mut table = self.table.lock();
            let id = table.enter(parent, name, stat.id(), stat.kind());
            (id, table.node(id).map_or(0, |node| node.generation))
        };
        drop((directory, namespace));
        self.found(node, generation, &path, stat)
    }

    /// Completes what is told to the kernel. Where that fails, the lookup is taken back.
    pub(super) fn found(&self, node: u64, generation: u64, path: &Path, backing: Stat) -> Result<Found> {
        let described = self.described(path, backing);
        let attributes = if backing.kind() != FileKind::File || self.is_still(node, None, backing.key) {
            described.map(|stat| Attributes { ino: node, stat, private: false })
        } else {
            self.honest_attributes(node)
        };
        match attributes {
            Ok(attributes) => Ok(Found { node, generation, attributes }),
            Err(error) => {
                self.forget(node, 1);
                Err(error)
            }
        }
    }

    /// Makes and opens a regular file.
    ///
    /// # Errors
    /// If the name exists and `flags` do not have `O_EXCL`, `ESTALE`: the kernel then looks again, finds the file and
    /// opens it by [`NameTree::open`], after a check of permissions that a new file does not need.
    pub fn create(&self, parent: u64, name: &OsStr, how: &Creation, flags: i32) -> Result<(Found, u64)> {
        let (node, generation, path, volume) = self.make_file(parent, name, how, flags & libc::O_EXCL != 0)?;
        let stat = volume.file().ok_or_else(stale)?.stat().context("look at", &path)?;
        let found = self.found(node, generation, &path, stat)?;
        // Never past the daemon: a new file can become a clone.
        match self.add_handle(node, volume, flags, &how.caller, &mut None) {
            Ok((handle, _)) => Ok((found, handle)),
            Err(error) => {
                self.forget(node, 1);
                Err(error)
            }
        }
    }

    fn make_file(
        &self,
        parent: u64,
        name: &OsStr,
        how: &Creation,
        exclusive: bool,
    ) -> Result<(u64, u64, PathBuf, Arc<Volume>)> {
        match self.make_file_once(parent, name, how, exclusive) {
            Err(error) if error.is_out_of_files() => {
                self.pool.flush_quietly();
                self.make_file_once(parent, name, how, exclusive)
            }
            other => other,
        }
    }

    fn make_file_once(
        &self,
        parent: u64,
        name: &OsStr,
        how: &Creation,
        exclusive: bool,
    ) -> Result<(u64, u64, PathBuf, Arc<Volume>)> {
        self.check_new_name(parent, name)?;
        let namespace = self.namespace.read();
        let lock = self.directory_lock(parent).write();
        let (directory, path) = (self.directory(parent)?, self.join(parent, name)?);
        let mode = self.masked(&directory, how) & 0o7777;
        let file = self.act_to_make(&how.caller, || directory.create(name, mode)).map_err(|error| {
            let retry = error.raw_os_error() == Some(libc::EEXIST) && !exclusive;
            if retry { stale() } else { Error::io("create", self.unless_gone(parent, &directory, error)) }.at(&path)
        })?;
        let stat = file.stat().context("look at", &path)?;
        let (node, generation) = {
            let mut table = self.table.lock();
            let id = table.enter_new(parent, name, stat.id(), stat.kind());
            (id, table.node(id).map_or(0, |node| node.generation))
        };
        drop((lock, namespace));
        let volume = self.made(&directory, self.pool.created(&path, file)).inspect_err(|_| self.forget(node, 1))?;
        let _asking = how.caller.asks();
        self.pool.events().tell(Event::new(What::Created, &path));
        Ok((node, generation, path, volume))
    }

    /// The mode after the umask. A default ACL of the directory takes the place of the umask, see acl(5). Whoever is not in
    /// the group that a file gets from its directory gives nobody the rights of that group: newer kernels see to it before
    /// they ask us.
    fn masked(&self, directory: &InodeRef, how: &Creation) -> u32 {
        let mut mode = how.mode & !(how.umask & 0o777);
        if mode != how.mode && directory.get_xattr(&"system.posix_acl_default".into()).is_ok() {
            mode = how.mode;
        }
        let group = libc::S_ISGID | libc::S_IXGRP;
        if mode & group == group
            && FileKind::from_mode(mode) != FileKind::Directory
            && let Ok(stat) = directory.stat()
            && stat.mode & libc::S_ISGID != 0
            && !how.caller.in_group(stat.gid)
            && !how.caller.capable(CAP_FSETID)
        {
            mode &= !libc::S_ISGID;
        }
        mode
    }

    /// Makes a directory, a device, a FIFO, a socket or (not opened) a regular file, by the type bits of the mode.
    pub fn make(&self, parent: u64, name: &OsStr, how: &Creation) -> Result<Found> {
        if FileKind::from_mode(how.mode) == FileKind::File {
            let (node, generation, path, volume) = self.make_file(parent, name, how, true)?;
            let stat = volume.file().ok_or_else(stale)?.stat().context("look at", &path)?;
            return self.found(node, generation, &path, stat);
        }
        self.make_named(parent, name, how, |directory| {
            let mode = self.masked(directory, how);
            if FileKind::from_mode(how.mode) == FileKind::Directory {
                directory.mkdir(name, mode & 0o7777)
            } else {
                directory.mknod(name, mode, how.rdev)
            }
        })
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, parent: u64, name: &OsStr, target: &Path, caller: Caller) -> Result<Found> {
        let how = Creation { mode: libc::S_IFLNK | 0o777, umask: 0, rdev: 0, caller };
        self.make_named(parent, name, &how, |directory| directory.symlink(target, name))
    }

    fn make_named(
        &self,
        parent: u64,
        name: &OsStr,
        how: &Creation,
        make: impl FnOnce(&InodeRef) -> std::io::Result<()>,
    ) -> Result<Found> {
        self.check_new_name(parent, name)?;
        let namespace = self.namespace.read();
        let lock = self.directory_lock(parent).write();
        let (directory, path) = (self.directory(parent)?, self.join(parent, name)?);
        let made = self.act_to_make(&how.caller, || make(&directory));
        made.map_err(|error| self.unless_gone(parent, &directory, error)).context("create", &path)?;
        // What has the name now: nothing is done to it, so it may as well be something else.
        let stat = directory.stat_at(name).context("look at", &path)?;
        if stat.kind() != FileKind::from_mode(how.mode) {
            return Err(stale().at(path));
        }
        let (node, generation) = {
            let mut table = self.table.lock();
            let id = table.enter_made(parent, name, stat.id(), stat.kind());
            (id, table.node(id).map_or(0, |node| node.generation))
        };
        drop((lock, namespace));
        self.made(&directory, Ok(()))?;
        self.found(node, generation, &path, stat)
    }

    /// After a change in `directory`: it shows its own times again, and it is durable now if the mount is so.
    fn made<T>(&self, directory: &InodeRef, result: Result<T>) -> Result<T> {
        if self.times.is_any()
            && let Ok(stat) = directory.stat()
        {
            self.times.changed(stat.key);
        }
        if self.settings.sync_directories {
            directory.sync().context("make names durable in", "a directory")?;
        }
        result
    }

    /// Removes a name that is not a directory's.
    pub fn unlink(&self, parent: u64, name: &OsStr, caller: &Caller) -> Result<()> {
        if is_hidden(parent, name) {
            return Err(errno("remove", libc::ENOENT).at(name));
        }
        if snapshots::is_here(parent) {
            return self.unlink_snapshot(parent, name, caller);
        }
        let namespace = self.namespace.read();
        let lock = self.directory_lock(parent).write();
        let (directory, path) = (self.directory(parent)?, self.join(parent, name)?);
        // Held, so that the backing filesystem frees its blocks (which can take seconds) when this is dropped, and not
        // while we hold locks.
        let held = directory.at(name).context("remove", &path)?;
        let stat = held.stat().context("remove", &path)?;
        // What holds no bytes yet has none to lose.
        if self.pool.policies().is_protected(&path) && self.described(&path, stat)?.size > 0 {
            self.check_free("remove", &path)?;
        }
        self.act_on_names(caller, &[&directory], &[stat], || directory.unlink(name)).context("remove", &path)?;
        self.table.lock().removed(parent, name, stat);
        drop((lock, namespace));
        self.lost_name(&path, &stat, None);
        drop(held);
        self.made(&directory, Ok(()))
    }

    fn lost_name(&self, path: &Path, stat: &Stat, to: Option<&Path>) {
        if stat.kind() == FileKind::File {
            let why = to.map(|other| format!("{other:?} was renamed over it"));
            self.pool.events().tell(Event { why, ..Event::new(What::Deleted, path) });
            self.pool.removed(stat.key);
        }
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: u64, name: &OsStr, caller: &Caller) -> Result<()> {
        if is_hidden(parent, name) {
            return Err(errno("remove directory", libc::ENOENT).at(name));
        }
        self.check_changeable(parent)?;
        let namespace = self.namespace.read();
        let lock = self.directory_lock(parent).write();
        let (directory, path) = (self.directory(parent)?, self.join(parent, name)?);
        self.check_free_below("remove directory", &path)?;
        let stat = directory.stat_at(name).context("remove directory", &path)?;
        self.act_on_names(caller, &[&directory], &[stat], || directory.rmdir(name))
            .context("remove directory", &path)?;
        self.lost_directory(parent, name);
        self.table.lock().removed(parent, name, stat);
        drop((lock, namespace));
        self.made(&directory, Ok(()))
    }

    /// A directory that is removed is not held any longer: it would keep its place on the disk.
    fn lost_directory(&self, parent: u64, name: &OsStr) {
        let table = self.table.lock();
        if let Some(id) = table.child(parent, name)
            && let Some(node) = table.node(id)
        {
            self.let_go(id, node.generation);
        }
    }

    /// Renames.
    pub fn rename(&self, from: (u64, &OsStr), to: (u64, &OsStr), how: Rename, caller: &Caller) -> Result<()> {
        if is_hidden(from.0, from.1) {
            return Err(errno("rename", libc::ENOENT).at(from.1));
        }
        if snapshots::is_here(from.0) || snapshots::is_here(to.0) {
            return self.rename_snapshot(from, to, caller);
        }
        self.check_new_name(to.0, to.1)?;
        let namespace = self.namespace.write();
        let (old, new) = (self.join(from.0, from.1)?, self.join(to.0, to.1)?);
        let (from_dir, to_dir) = (self.directory(from.0)?, self.directory(to.0)?);
        let source = from_dir.stat_at(from.1).context("rename", &old)?;
        let held = match to_dir.at(to.1) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => None,
            other => Some(other.context("rename", &new)?),
        };
        let there = held.as_ref().map(|held| held.stat()).transpose().context("rename", &new)?;
        self.check_free_below("rename", &old)?;
        if there.is_some() {
            self.check_free_below("rename over", &new)?;
        }
        let target = there.filter(|_| matches!(how, Rename::Replace | Rename::Whiteout));
        let objects: Vec<Stat> = [Some(source), there].into_iter().flatten().collect();
        let rename = || from_dir.rename(from.1, &*to_dir, to.1, how);
        let renamed = match how {
            // It is made, and belongs to whoever asks for it.
            Rename::Whiteout => self.act_to_make(caller, rename),
            _ => self.act_on_names(caller, &[&from_dir, &to_dir], &objects, rename),
        };
        renamed.context("rename", &old)?;
        // Two names of one file: rename(2) does nothing then, and says that it succeeded.
        let same = target.is_some_and(|target| target.key == source.key);
        if !same {
            if target.is_some_and(|target| target.kind() == FileKind::Directory) {
                self.lost_directory(to.0, to.1);
            }
            let mut table = self.table.lock();
            match how {
                Rename::Exchange => table.exchanged(from, to),
                _ => table.renamed(from, to, target),
            }
        }
        let exchanged = there.as_ref().filter(|_| how == Rename::Exchange);
        if !same && let Err(error) = self.pool.paths_follow((&old, &source), (&new, exchanged)) {
            tracing::warn!("what is said of {old:?} stays under that name: {error}");
        }
        drop(namespace);
        if let Some(target) = target.filter(|_| !same) {
            self.lost_name(&new, &target, Some(&old));
        }
        drop(held);
        self.made(&from_dir, Ok(()))?;
        if from.0 == to.0 { Ok(()) } else { self.made(&to_dir, Ok(())) }
    }

    /// Gives a file one more name. It can wait for clones of the file that are being made: not for a FUSE thread.
    pub fn link(&self, id: u64, parent: u64, name: &OsStr) -> Result<Found> {
        self.check_new_name(parent, name)?;
        self.check_changeable(id)?;
        // Under another name it could be written to.
        self.check_file_free("link", id)?;
        let volume = if self.kind(id)? == FileKind::File { Some(self.volume(id)?) } else { None };
        let _naming = volume.as_ref().map(|volume| volume.naming().write());
        volume.as_ref().map_or(Ok(()), |volume| self.pool.before_link(volume))?;
        let namespace = self.namespace.read();
        let lock = self.directory_lock(parent).write();
        let (directory, path) = (self.directory(parent)?, self.join(parent, name)?);
        let (file, _, stat) = self.object(id)?;
        directory.link(&*file, name).context("link", &path)?;
        // One more name, and another time of the last change: if that cannot be looked at, it is there all the same.
        let stat = file.stat().unwrap_or(stat);
        let (node, generation) = {
            let mut table = self.table.lock();
            let id = table.enter(parent, name, stat.id(), stat.kind());
            (id, table.node(id).map_or(0, |node| node.generation))
        };
        drop((lock, namespace));
        self.made(&directory, Ok(())).inspect_err(|_| self.forget(node, 1))?;
        self.found(node, generation, &path, stat)
    }

    /// Target of a symbolic link.
    pub fn readlink(&self, id: u64) -> Result<PathBuf> {
        let _namespace = self.namespace.read();
        let (link, path, _) = self.object(id)?;
        link.readlink().context("read link", &path)
    }

    /// Open handles by number.
    pub fn handles(&self) -> &Handles {
        &self.handles
    }

    /// Whether something can be made under a name, or moved there.
    fn check_new_name(&self, parent: u64, name: &OsStr) -> Result<()> {
        self.check_changeable(parent)?;
        let reserved = if is_hidden(parent, name) {
            "it is reserved for the pool's own files"
        } else if self.is_snapshots(parent, name) {
            "snapshots are seen there"
        } else {
            return Ok(());
        };
        Err(Error::new(Kind::Permission, "use the name").at(name).because(reserved))
    }

    pub(super) fn join(&self, parent: u64, name: &OsStr) -> Result<PathBuf> {
        self.table.lock().join(parent, name).ok_or_else(stale)
    }
}

/// The pool's own directory does not exist for users.
pub(super) fn is_hidden(parent: u64, name: &OsStr) -> bool {
    parent == ROOT && name == HIDDEN
}
