//! From a node to what it stands for on the disk, held. The kernel has checked permissions on the file that it knows by
//! the node's number; whoever can write to the backing directory can meanwhile have given the name to another one. So a
//! directory is held and looked at before a name in it is used, and a file before it is changed.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

use super::caller::{CAP_FOWNER, Caller};
use super::{NameTree, stale};
use crate::engine::io::effective_gid;
use crate::engine::io::{InodeRef, Powers, Stat, acting_as};
use crate::error::{Context, Result};

/// Directories held at the same time, at most.
const MOST: usize = 256;

/// The directories that are in use, by number and generation of their nodes. Those that were used last are kept.
#[derive(Default)]
pub struct Directories {
    young: HashMap<(u64, u64), InodeRef>,
    old: HashMap<(u64, u64), InodeRef>,
}

impl Directories {
    fn get(&mut self, node: (u64, u64)) -> Option<InodeRef> {
        if let Some(directory) = self.young.get(&node) {
            return Some(directory.clone());
        }
        let directory = self.old.remove(&node)?;
        self.keep(node, directory.clone());
        Some(directory)
    }

    fn keep(&mut self, node: (u64, u64), directory: InodeRef) {
        if self.young.len() >= MOST / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(node, directory);
    }

    fn forget(&mut self, node: (u64, u64)) {
        self.young.remove(&node);
        self.old.remove(&node);
    }
}

impl NameTree {
    /// The directory of a node, held: the one that the kernel knows by this number.
    pub(super) fn directory(&self, id: u64) -> Result<InodeRef> {
        let (path, known, generation) = {
            let table = self.table.lock();
            let node = table.node(id).ok_or_else(stale)?;
            if let Some(directory) = self.in_use.lock().get((id, node.generation)) {
                return Ok(directory);
            }
            (table.path(id).ok_or_else(stale)?, node.id(), node.generation)
        };
        let directory = self.fs.find(&path).context("look at directory", &path)?;
        let stat = directory.stat().context("look at directory", &path)?;
        if !stat.id().is(known) || stat.mode & libc::S_IFMT != libc::S_IFDIR {
            // Another one was put there without us. The kernel looks the name up again when it hears ESTALE.
            return Err(stale().at(path));
        }
        if directory.may_be_kept() {
            self.in_use.lock().keep((id, generation), directory.clone());
        }
        Ok(directory)
    }

    /// A directory is no more, or is not needed: it is not held any longer.
    pub(super) fn let_go(&self, id: u64, generation: u64) {
        self.in_use.lock().forget((id, generation));
    }

    /// What `error` of a call in a directory means if that was removed without us: the node leads nowhere.
    pub(super) fn unless_gone(&self, id: u64, directory: &InodeRef, error: io::Error) -> io::Error {
        let removed = || directory.stat().is_ok_and(|stat| stat.nlink == 0);
        if error.raw_os_error() == Some(libc::ENOENT) && removed() {
            if let Some(generation) = self.table.lock().node(id).map(|node| node.generation) {
                self.let_go(id, generation);
            }
            return io::Error::from_raw_os_error(libc::ESTALE);
        }
        error
    }

    /// What a node is of, held, with its path and status. Call it with `namespace` shared.
    pub(super) fn object(&self, id: u64) -> Result<(InodeRef, PathBuf, Stat)> {
        let place = self.table.lock().place(id);
        let (path, object) = match place {
            None => {
                let path = self.path(id)?;
                (path.clone(), self.fs.find(&path).context("look at", path)?)
            }
            Some((parent, name)) => {
                let path = self.join(parent, &name)?;
                (path.clone(), self.directory(parent)?.at(&name).context("look at", path)?)
            }
        };
        let stat = object.stat().context("look at", &path)?;
        self.check_same(id, &stat).map_err(|error| error.at(&path))?;
        Ok((object, path, stat))
    }

    /// Path and backing status of a node, after a look that the path still leads to it. Call it with `namespace` shared.
    pub(super) fn verified(&self, id: u64) -> Result<(PathBuf, Stat)> {
        let place = self.table.lock().place(id);
        let Some((parent, name)) = place else { return self.object(id).map(|(_, path, stat)| (path, stat)) };
        let path = self.join(parent, &name)?;
        let stat = self.directory(parent)?.stat_at(&name).context("look at", &path)?;
        self.check_same(id, &stat).map_err(|error| error.at(&path))?;
        Ok((path, stat))
    }

    fn check_same(&self, id: u64, stat: &Stat) -> Result<()> {
        let table = self.table.lock();
        let node = table.node(id).ok_or_else(stale)?;
        // Else another file was put there without us. The kernel looks the name up again when it hears ESTALE.
        if stat.id().is(node.id()) && stat.kind() == node.kind { Ok(()) } else { Err(stale()) }
    }

    /// Takes names away with the rights of the caller, for whom the kernel has checked permissions by the files that it
    /// knew: what has the names now may be another user's, and a sticky directory keeps it. `objects` are held under the
    /// names. Whoever has the right of an owner by a user namespace of its own acts as that owner.
    pub(super) fn act_on_names<T>(
        &self,
        caller: &Caller,
        directories: &[&InodeRef],
        objects: &[Stat],
        work: impl Fn() -> io::Result<T>,
    ) -> io::Result<T> {
        let refused =
            |result: &io::Result<T>| result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EPERM));
        // The owner decides nowhere else, and to change identities costs as much as the removal.
        if caller.uid == 0 || !directories.iter().any(|directory| is_sticky(directory)) {
            return work();
        }
        let group = effective_gid();
        let result = acting_as(caller.uid, group, Powers::NAMES, &work)?;
        if !refused(&result) {
            return result;
        }
        let Some(owner) = objects.iter().map(|stat| stat.uid).find(|uid| *uid != caller.uid) else { return result };
        let may = |stat: &Stat| caller.has_over(CAP_FOWNER, stat.uid, stat.gid);
        if objects.iter().all(may) { acting_as(owner, group, Powers::NAMES, &work)? } else { result }
    }

    /// Makes something with the identity of the caller, to whom it then belongs.
    pub(super) fn act_to_make<T>(&self, caller: &Caller, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        acting_as(caller.uid, caller.gid, Powers::MAKE, work)?
    }
}

/// One that cannot be looked at may be.
fn is_sticky(directory: &InodeRef) -> bool {
    directory.stat().map_or(true, |stat| stat.mode & libc::S_ISVTX != 0)
}
