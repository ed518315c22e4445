//! How each kind of change is made once: what it remembers when it begins, and how it is seen that it has happened.
//!
//! The kernel holds the directory of a name that is being changed, and the inode of attributes that are, until the request
//! is answered. So between the kill and the second coming of a request nobody else has changed the same.

use std::ffi::OsStr;

use super::Adapter;
use super::once::{Before, Once, Turn, answered};
use crate::engine::io::Rename;
use crate::engine::namespace::{Caller, Found, Handle, NameTree, WriteFlags};
use crate::error::Result;
use crate::protocol::{self, SnapshotAction, SnapshotRequest};

/// All of a file.
const WHOLE: std::ops::Range<u64> = 0..u64::MAX;

/// A name in a directory.
pub type Name<'a> = (u64, &'a OsStr);

impl Adapter {
    /// Makes something under a new name.
    pub(super) fn made(
        &self,
        turn: &Turn,
        name: Name<'_>,
        caller: &Caller,
        make: impl FnOnce() -> Result<Found>,
    ) -> Result<Found> {
        match turn.before() {
            Before::Done(result) => {
                answered(result)?;
                self.names.found_again(name.0, name.1)
            }
            before => {
                if !self.begin_new(turn, before, name, caller)? {
                    return make();
                }
                let result = make();
                turn.done(result.as_ref().map_or_else(|error| -i64::from(error.errno()), |_| 0));
                result
            }
        }
    }

    /// Makes and opens a file; gives its handle.
    pub(super) fn made_open(
        &self,
        turn: &Turn,
        name: Name<'_>,
        (flags, caller): (i32, &Caller),
        make: impl FnOnce() -> Result<(Found, u64)>,
    ) -> Result<(Found, u64)> {
        match turn.before() {
            Before::Done(result) => {
                let handle = answered(result)? as u64;
                let found = self.names.found_again(name.0, name.1)?;
                let handle = match self.names.open_of(handle, found.node) {
                    Ok(()) => handle,
                    Err(_) => self.names.open(found.node, flags, caller)?,
                };
                Ok((found, handle))
            }
            before => {
                if !self.begin_new(turn, before, name, caller)? {
                    return make();
                }
                let _making = turn.making();
                let result = make();
                turn.done(result.as_ref().map_or_else(|error| -i64::from(error.errno()), |(_, handle)| *handle as i64));
                result
            }
        }
    }

    /// Begins to make something under a name that is free; `false`: it is not, and nothing was begun. What a server before
    /// this one has made and told nobody of is taken back.
    fn begin_new(&self, turn: &Turn, before: Before, name: Name<'_>, caller: &Caller) -> Result<bool> {
        if !self.once.is_on() {
            return Ok(false);
        }
        if before != Before::New {
            self.names.take_back(name.0, name.1, caller)?;
        } else if self.names.is_there(name.0, name.1)? {
            return Ok(false);
        }
        turn.begin([0; 4]);
        Ok(true)
    }

    /// Opens something; gives its handle.
    pub(super) fn opened(&self, turn: &Turn, node: u64, open: impl FnOnce() -> Result<u64>) -> Result<u64> {
        if let Before::Done(result) = turn.before() {
            let handle = answered(result)? as u64;
            if self.names.open_of(handle, node).is_ok() {
                return Ok(handle);
            }
        }
        let _making = turn.making();
        turn.begin([0; 4]);
        let result = open();
        turn.done(result.as_ref().map_or_else(|error| -i64::from(error.errno()), |handle| *handle as i64));
        result
    }

    /// Takes a name away.
    pub(super) fn removed(&self, turn: &Turn, name: Name<'_>, remove: impl FnOnce() -> Result<()>) -> Result<()> {
        if turn.before() == Before::New && !self.begins_with(|names| names.is_there(name.0, name.1))? {
            return remove();
        }
        let happened = |_| {
            let gone = !self.names.is_there(name.0, name.1)?;
            gone.then(|| self.names.was_removed(name.0, name.1));
            Ok(gone.then_some(0))
        };
        turn.unless(happened, || remove().map(|()| 0)).map(drop)
    }

    /// Whether something is so that a change needs to begin at all; `false` where nothing is kept.
    fn begins_with(&self, so: impl FnOnce(&NameTree) -> Result<bool>) -> Result<bool> {
        if self.once.is_on() { so(&self.names) } else { Ok(false) }
    }

    /// Renames.
    pub(super) fn renamed(
        &self,
        turn: &Turn,
        from: Name<'_>,
        to: Name<'_>,
        how: Rename,
        caller: &Caller,
    ) -> Result<()> {
        let rename = || self.names.rename(from, to, how, caller);
        if turn.before() == Before::New && !self.begins_with(|names| names.is_there(from.0, from.1))? {
            return rename();
        }
        let keys = || [self.names.key_at(from.0, from.1), self.names.key_at(to.0, to.1)];
        let happened = |[dev, ino, other_dev, other_ino]: [u64; 4]| {
            let happened = match how {
                // One of both may have another file behind it by now, never both the other's.
                Rename::Exchange => {
                    let [old, new] = keys();
                    new == (dev, ino) || old == (other_dev, other_ino)
                }
                // Something is left under the old name.
                Rename::Whiteout => keys()[0] != (dev, ino),
                _ => !self.names.is_there(from.0, from.1)?,
            };
            if happened {
                self.names.was_renamed(from, to, how)?;
            }
            Ok(happened.then_some(0))
        };
        let [old, new] = keys();
        turn.with([old.0, old.1, new.0, new.1], happened, || rename().map(|()| 0)).map(drop)
    }
}

/// Writes to an open file; gives how many bytes. No other write to the same bytes begins before this one is noted as done.
pub fn written(
    once: &Once,
    turn: &Turn,
    handle: &Handle,
    (offset, data): (u64, &[u8]),
    how: WriteFlags,
) -> Result<usize> {
    let _order = once.order(handle.node, offset..offset.saturating_add(data.len() as u64));
    turn.again(|| handle.write(offset, data, how).map(|bytes| bytes as i64)).map(|bytes| bytes as usize)
}

/// Does what sets or allocates bytes of the whole file, with nothing written to it meanwhile; or, without `bytes`, what may be
/// done twice.
pub fn changed(once: &Once, turn: &Turn, node: u64, bytes: bool, change: impl FnOnce() -> Result<()>) -> Result<()> {
    if !bytes {
        return change();
    }
    let _order = once.order(node, WHOLE);
    turn.again(|| change().map(|()| 0)).map(drop)
}

/// Gives a file one more name.
pub fn linked(names: &NameTree, turn: &Turn, on: bool, id: u64, (parent, name): Name<'_>) -> Result<Found> {
    match turn.before() {
        Before::Done(result) => {
            answered(result)?;
            names.found_again(parent, name)
        }
        Before::New if !on || names.is_there(parent, name)? => names.link(id, parent, name),
        before => {
            let key = names.key_of(id);
            if before != Before::New && key != (0, 0) && names.key_at(parent, name) == key {
                turn.done(0);
                return names.lookup(parent, name);
            }
            turn.begin([0; 4]);
            let result = names.link(id, parent, name);
            turn.done(result.as_ref().map_or_else(|error| -i64::from(error.errno()), |_| 0));
            result
        }
    }
}

/// Sets an attribute, which can be a door.
pub fn attribute_set(
    (names, turn, on): (&NameTree, &Turn, bool),
    id: u64,
    (name, value, flags): (&OsStr, &[u8], i32),
    caller: &Caller,
) -> Result<()> {
    let set = || names.set_xattr(id, name, value, flags, caller).map(|()| 0);
    let create = flags & libc::XATTR_CREATE != 0;
    let has = || names.get_xattr(id, name, caller).is_ok();
    let snapshot = snapshot_of(name, value);
    let is_made = |snapshot: &str| names.has_snapshot(id, snapshot);
    if on && turn.before() == Before::New && (create && has() || snapshot.as_deref().is_some_and(is_made)) {
        return set().map(drop);
    }
    let happened = |_| match name.to_str().unwrap_or_default() {
        protocol::CLONE | protocol::CLONE_FROM if names.became_clone(id) => names.end_of_clone(id).map(|_| Some(0)),
        _ if snapshot.as_deref().is_some_and(is_made) || create && has() => Ok(Some(0)),
        _ => Ok(None),
    };
    turn.unless(happened, set).map(drop)
}

/// The name of the snapshot that is to be made by itself.
fn snapshot_of(name: &OsStr, value: &[u8]) -> Option<String> {
    let request: SnapshotRequest = (name == protocol::SNAPSHOT).then(|| serde_json::from_slice(value).ok())??;
    (matches!(request.action, SnapshotAction::Create) && request.group.is_none()).then_some(request.name)
}

/// Takes an attribute away.
pub fn attribute_removed(
    names: &NameTree,
    turn: &Turn,
    on: bool,
    id: u64,
    name: &OsStr,
    caller: &Caller,
) -> Result<()> {
    let remove = || names.remove_xattr(id, name).map(|()| 0);
    let missing = || names.get_xattr(id, name, caller).is_err_and(|error| error.errno() == libc::ENODATA);
    if !on || turn.before() == Before::New && missing() {
        return remove().map(drop);
    }
    turn.unless(|_| Ok(missing().then_some(0)), remove).map(drop)
}

/// Copies a range between open files.
pub fn copied(
    names: &NameTree,
    turn: &Turn,
    (from, offset_in): (&Handle, u64),
    (to, offset_out): (&Handle, u64),
    (length, caller): (u64, &Caller),
) -> Result<i64> {
    let copy = || names.copy_range((from, offset_in), (to, offset_out), length, caller).map(|copied| copied as i64);
    let whole = offset_in == 0 && offset_out == 0;
    let happened = |[size, ..]: [u64; 4]| {
        if !whole || size != 0 || !names.became_clone(to.node) {
            return Ok(None);
        }
        names.end_of_clone(to.node).map(|size| Some(size.min(length) as i64))
    };
    let size = to.volume.size().unwrap_or(u64::MAX);
    turn.with([size, 0, 0, 0], happened, copy)
}

/// Makes a file a clone by its handle.
pub fn cloned(names: &NameTree, turn: &Turn, to: &Handle, argument: &[u8], caller: &Caller) -> Result<()> {
    let happened = |_| match names.became_clone(to.node) {
        true => names.end_of_clone(to.node).map(|_| Some(0)),
        false => Ok(None),
    };
    turn.unless(happened, || names.clone_by_ioctl(to, argument, caller).map(|()| 0)).map(drop)
}
