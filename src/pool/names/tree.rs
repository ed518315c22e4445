//! Operations on names: look up, list, make, remove, rename, link, open.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::attributes::Attributes;
use super::caller::{Caller, effective_gid, effective_uid};
use super::handle::Handles;
use super::{HIDDEN, NameTree, ROOT, errno, snapshots, stale};
use crate::error::{Context, Error, Kind, Result};
use crate::events::{Event, What};
use crate::io::{FileKind, FileRef, Open, Rename, Stat};
use crate::volume::Volume;

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
        let path = self.join(parent, name)?;
        let stat = match self.fs.stat(&path) {
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
            let id = table.enter(parent, name, stat.key, stat.kind());
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
        let (directory, path) = (self.path(parent)?, self.join(parent, name)?);
        let mode = self.masked(&directory, how) & 0o7777;
        let file = self.fs.open(&path, Open::CreateNew(mode)).map_err(|error| {
            let retry = error.raw_os_error() == Some(libc::EEXIST) && !exclusive;
            if retry { stale() } else { Error::io("create", error) }.at(&path)
        })?;
        let stat = self.give_file(&directory, &file, mode, how).or_else(|error| {
            // Not left behind half made; if even that fails, it is an empty file of the daemon's user.
            drop(self.fs.unlink(&path));
            Err(error).context("give a new file to its owner", &path)
        })?;
        let (node, generation) = self.enter_new(parent, name, stat);
        drop((lock, namespace));
        let volume = self.made(&directory, self.pool.created(&path, file)).inspect_err(|_| self.forget(node, 1))?;
        let _asking = how.caller.asks();
        self.pool.events().tell(Event::new(What::Created, &path));
        Ok((node, generation, path, volume))
    }

    fn enter_new(&self, parent: u64, name: &OsStr, stat: Stat) -> (u64, u64) {
        let mut table = self.table.lock();
        let id = table.enter_new(parent, name, stat.key, stat.kind());
        (id, table.node(id).map_or(0, |node| node.generation))
    }

    /// Gives a new open file to the caller.
    fn give_file(&self, directory: &Path, file: &FileRef, mode: u32, how: &Creation) -> std::io::Result<Stat> {
        let stat = file.stat()?;
        if effective_uid() != 0 {
            return Ok(stat);
        }
        let (uid, gid) = self.owners(directory, stat, how)?;
        if uid.is_none() && gid.is_none() {
            return Ok(stat);
        }
        file.chown(uid, gid)?;
        // The change of owner cleared them; the kernel has checked that the caller may set them.
        if mode & (libc::S_ISUID | libc::S_ISGID) != 0 {
            file.chmod(stat.mode & 0o7777 | mode & (libc::S_ISUID | libc::S_ISGID))?;
        }
        file.stat()
    }

    /// Owner and group that a file just made by root has to get. The backing filesystem has chosen the group where the
    /// directory is setgid (or the filesystem is mounted with `grpid`).
    fn owners(&self, directory: &Path, stat: Stat, how: &Creation) -> std::io::Result<(Option<u32>, Option<u32>)> {
        let inherited = stat.gid != effective_gid() || self.fs.stat(directory)?.mode & libc::S_ISGID != 0;
        let uid = (stat.uid != how.caller.uid).then_some(how.caller.uid);
        let gid = (!inherited && stat.gid != how.caller.gid).then_some(how.caller.gid);
        Ok((uid, gid))
    }

    /// The mode after the umask. A default ACL of the directory takes the place of the umask, see acl(5).
    fn masked(&self, directory: &Path, how: &Creation) -> u32 {
        let masked = how.mode & !(how.umask & 0o777);
        if masked == how.mode || self.fs.get_xattr(directory, &"system.posix_acl_default".into()).is_ok() {
            return how.mode;
        }
        masked
    }

    /// Makes a directory, a device, a FIFO, a socket or (not opened) a regular file, by the type bits of the mode.
    pub fn make(&self, parent: u64, name: &OsStr, how: &Creation) -> Result<Found> {
        if FileKind::from_mode(how.mode) == FileKind::File {
            let (node, generation, path, volume) = self.make_file(parent, name, how, true)?;
            let stat = volume.file().ok_or_else(stale)?.stat().context("look at", &path)?;
            return self.found(node, generation, &path, stat);
        }
        self.make_named(parent, name, how, |directory, path| {
            let mode = self.masked(directory, how);
            if FileKind::from_mode(how.mode) == FileKind::Directory {
                self.fs.mkdir(path, mode & 0o7777)
            } else {
                self.fs.mknod(path, mode, how.rdev)
            }
        })
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, parent: u64, name: &OsStr, target: &Path, caller: Caller) -> Result<Found> {
        let how = Creation { mode: libc::S_IFLNK | 0o777, umask: 0, rdev: 0, caller };
        self.make_named(parent, name, &how, |_, path| self.fs.symlink(target, path))
    }

    fn make_named(
        &self,
        parent: u64,
        name: &OsStr,
        how: &Creation,
        make: impl FnOnce(&Path, &Path) -> std::io::Result<()>,
    ) -> Result<Found> {
        self.check_new_name(parent, name)?;
        let namespace = self.namespace.read();
        let lock = self.directory_lock(parent).write();
        let (directory, path) = (self.path(parent)?, self.join(parent, name)?);
        make(&directory, &path).context("create", &path)?;
        let stat = self.give_named(&directory, &path, how).or_else(|error| {
            let is_dir = FileKind::from_mode(how.mode) == FileKind::Directory;
            drop(if is_dir { self.fs.rmdir(&path) } else { self.fs.unlink(&path) });
            Err(error).context("give a new file to its owner", &path)
        })?;
        let (node, generation) = self.enter_new(parent, name, stat);
        drop((lock, namespace));
        self.made(&directory, Ok(()))?;
        self.found(node, generation, &path, stat)
    }

    fn give_named(&self, directory: &Path, path: &Path, how: &Creation) -> std::io::Result<Stat> {
        let stat = self.fs.stat(path)?;
        if effective_uid() != 0 {
            return Ok(stat);
        }
        let (uid, gid) = self.owners(directory, stat, how)?;
        if uid.is_none() && gid.is_none() {
            return Ok(stat);
        }
        self.fs.chown(path, uid, gid)?;
        let ids = how.mode & (libc::S_ISUID | libc::S_ISGID);
        if ids != 0 && !matches!(stat.kind(), FileKind::Directory | FileKind::Symlink) {
            self.fs.chmod(path, stat.mode & 0o7777 | ids)?;
        }
        self.fs.stat(path)
    }

    /// After a change in `directory`: it shows its own times again, and it is durable now if the mount is so.
    fn made<T>(&self, directory: &Path, result: Result<T>) -> Result<T> {
        if self.times.is_any()
            && let Ok(stat) = self.fs.stat(directory)
        {
            self.times.changed(stat.key);
        }
        if self.settings.sync_directories {
            self.fs.sync_dir(directory).context("make names durable in", directory)?;
        }
        result
    }

    /// Removes a name that is not a directory's.
    pub fn unlink(&self, parent: u64, name: &OsStr) -> Result<()> {
        if is_hidden(parent, name) {
            return Err(errno("remove", libc::ENOENT).at(name));
        }
        if snapshots::is_here(parent) {
            return self.unlink_snapshot(parent, name);
        }
        let namespace = self.namespace.read();
        let lock = self.directory_lock(parent).write();
        let (directory, path) = (self.path(parent)?, self.join(parent, name)?);
        let stat = self.fs.stat(&path).context("remove", &path)?;
        // What holds no bytes yet has none to lose.
        if self.pool.policies().is_protected(&path) && self.described(&path, stat)?.size > 0 {
            self.check_free("remove", &path)?;
        }
        let held = self.hold(&path, &stat);
        self.fs.unlink(&path).context("remove", &path)?;
        self.table.lock().removed(parent, name, stat);
        drop((lock, namespace));
        self.lost_name(&path, &stat, None);
        drop(held);
        self.made(&directory, Ok(()))
    }

    /// Keeps a file that is about to lose its last name, so that the backing filesystem frees its blocks (which can take
    /// seconds) when this is dropped, and not while we hold locks.
    fn hold(&self, path: &Path, stat: &Stat) -> Option<FileRef> {
        let last = stat.kind() == FileKind::File && stat.nlink == 1;
        last.then(|| self.fs.open(path, Open::Read).ok()).flatten()
    }

    fn lost_name(&self, path: &Path, stat: &Stat, to: Option<&Path>) {
        if stat.kind() == FileKind::File {
            let why = to.map(|other| format!("{other:?} was renamed over it"));
            self.pool.events().tell(Event { why, ..Event::new(What::Deleted, path) });
            self.pool.removed(stat.key);
        }
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: u64, name: &OsStr) -> Result<()> {
        if is_hidden(parent, name) {
            return Err(errno("remove directory", libc::ENOENT).at(name));
        }
        self.check_changeable(parent)?;
        let namespace = self.namespace.read();
        let lock = self.directory_lock(parent).write();
        let (directory, path) = (self.path(parent)?, self.join(parent, name)?);
        self.check_free_below("remove directory", &path)?;
        let stat = self.fs.stat(&path).context("remove directory", &path)?;
        self.fs.rmdir(&path).context("remove directory", &path)?;
        self.table.lock().removed(parent, name, stat);
        drop((lock, namespace));
        self.made(&directory, Ok(()))
    }

    /// Renames.
    pub fn rename(&self, from: (u64, &OsStr), to: (u64, &OsStr), how: Rename) -> Result<()> {
        if is_hidden(from.0, from.1) {
            return Err(errno("rename", libc::ENOENT).at(from.1));
        }
        if snapshots::is_here(from.0) || snapshots::is_here(to.0) {
            return self.rename_snapshot(from, to);
        }
        self.check_new_name(to.0, to.1)?;
        let namespace = self.namespace.write();
        let (old, new) = (self.join(from.0, from.1)?, self.join(to.0, to.1)?);
        let source = self.fs.stat(&old).context("rename", &old)?;
        let there = self.there(&new).context("rename", &new)?;
        self.check_free_below("rename", &old)?;
        if there.is_some() {
            self.check_free_below("rename over", &new)?;
        }
        let target = there.filter(|_| how == Rename::Replace);
        let held = target.and_then(|stat| self.hold(&new, &stat));
        self.fs.rename(&old, &new, how).context("rename", &old)?;
        // Two names of one file: rename(2) does nothing then, and says that it succeeded.
        let same = target.is_some_and(|target| target.key == source.key);
        if !same {
            let mut table = self.table.lock();
            match how {
                Rename::Exchange => table.exchanged(from, to),
                Rename::Replace | Rename::NoReplace => table.renamed(from, to, target),
            }
        }
        let directories = (self.path(from.0)?, self.path(to.0)?);
        let exchanged = there.as_ref().filter(|_| how == Rename::Exchange);
        if !same && let Err(error) = self.pool.paths_follow((&old, &source), (&new, exchanged)) {
            tracing::warn!("what is said of {old:?} stays under that name: {error}");
        }
        drop(namespace);
        if let Some(target) = target.filter(|_| !same) {
            self.lost_name(&new, &target, Some(&old));
        }
        drop(held);
        self.made(&directories.0, Ok(()))?;
        if from.0 == to.0 { Ok(()) } else { self.made(&directories.1, Ok(())) }
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
        let (directory, path) = (self.path(parent)?, self.join(parent, name)?);
        let (old, stat) = self.verified(id)?;
        self.fs.link(&old, &path).context("link", &path)?;
        // One more name, and another time of the last change: if that cannot be looked at, it is there all the same.
        let stat = self.fs.stat(&path).ok().filter(|now| now.key == stat.key).unwrap_or(stat);
        let (node, generation) = {
            let mut table = self.table.lock();
            let id = table.enter(parent, name, stat.key, stat.kind());
            (id, table.node(id).map_or(0, |node| node.generation))
        };
        drop((lock, namespace));
        self.made(&directory, Ok(())).inspect_err(|_| self.forget(node, 1))?;
        self.found(node, generation, &path, stat)
    }

    /// Target of a symbolic link.
    pub fn readlink(&self, id: u64) -> Result<PathBuf> {
        let _namespace = self.namespace.read();
        let (path, _) = self.verified(id)?;
        self.fs.readlink(&path).context("read link", &path)
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
