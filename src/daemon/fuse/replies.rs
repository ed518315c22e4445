//! Replies: what the name tree said, in the words of the kernel.

use std::time::Duration;

use fuser::{
    Errno, FileAttr, FileHandle, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyWrite, ReplyXattr,
};

use super::convert::{absent, attr, file_type};
use super::{Adapter, Lifetimes};
use crate::engine::io::FileKind;
use crate::engine::namespace::{Attributes, Caller, Found, Handle, Listed, NameTree};
use crate::error::{Error, Result};

impl Adapter {
    pub(super) fn reply_entry(&self, result: Result<Found>, reply: ReplyEntry) {
        match result {
            Ok(found) => reply_found(&found, &self.lifetimes, reply),
            Err(error) => reply.error(code("name", &error)),
        }
    }

    /// Runs `work` with the open file `handle` and replies with what it says.
    pub(super) fn with_handle(
        &self,
        name: &str,
        handle: FileHandle,
        reply: ReplyEmpty,
        work: impl FnOnce(&Handle) -> Result<()>,
    ) {
        reply_empty(name, self.names.handles().get(handle.0).and_then(|handle| work(&handle)), reply);
    }

    /// One entry for READDIRPLUS, which looks it up too; says whether there was room for it.
    pub(super) fn add_plus(
        &self,
        directory: u64,
        offset: u64,
        entry: &Listed,
        caller: &Caller,
        reply: &mut ReplyDirectoryPlus,
    ) -> bool {
        let short = self.names.is_transient(directory, &entry.name);
        let lifetime = if short { Duration::ZERO } else { self.lifetimes.attributes };
        let named = |ino| FileAttr { ino: INodeNo(ino), ..absent(file_type(entry.kind)) };
        if entry.name == "." || entry.name == ".." {
            // Never taken for a lookup by the kernel.
            return !reply.add(INodeNo(entry.ino), offset, &entry.name, &lifetime, &named(entry.ino), Generation(0));
        }
        // Removed since the directory was read: left out, as a later reader would.
        let Ok(found) = self.names.lookup_by(directory, &entry.name, caller) else { return true };
        let (attributes, generation) = (attr(&found.attributes), Generation(found.generation));
        let lifetime = trusted(lifetime, &found.attributes);
        let full = reply.add(attributes.ino, offset, &entry.name, &lifetime, &attributes, generation);
        if full {
            self.names.forget(found.node, 1);
        }
        !full
    }
}

/// How long the kernel may trust these attributes, which are good for `lifetime` in general. What one caller alone is to see
/// must not be kept for others. Nor must the mode of a program that runs as somebody else: the daemon takes setuid and setgid
/// off when the file is written to, and the kernel would go on to run it as its owner.
pub(super) fn trusted(lifetime: Duration, attributes: &Attributes) -> Duration {
    let privileged = attributes.stat.kind() == FileKind::File && attributes.stat.mode & 0o6000 != 0;
    if attributes.private || privileged { Duration::ZERO } else { lifetime }
}

pub(super) fn reply_attributes(names: &NameTree, id: INodeNo, lifetime: Duration, reply: ReplyAttr) {
    reply_with(names.attributes(id.0), lifetime, reply);
}

pub(super) fn reply_with(result: Result<Attributes>, lifetime: Duration, reply: ReplyAttr) {
    match result {
        Ok(attributes) => reply.attr(&trusted(lifetime, &attributes), &attr(&attributes)),
        Err(error) => reply.error(code("getattr", &error)),
    }
}

pub(super) fn reply_written(result: Result<usize>, reply: ReplyWrite) {
    match result {
        Ok(written) => reply.written(written as u32),
        Err(error) => reply.error(code("write", &error)),
    }
}

pub(super) fn reply_found(found: &Found, lifetimes: &Lifetimes, reply: ReplyEntry) {
    let (attributes, generation) = (attr(&found.attributes), Generation(found.generation));
    let lifetime = trusted(lifetimes.attributes, &found.attributes);
    reply.entry_with_ttls(&lifetime, &lifetimes.names, &attributes, generation);
}

/// The errno of an error. Unusual ones are logged: the caller sees a number only.
pub(super) fn code(request: &str, error: &Error) -> Errno {
    match error.errno() {
        libc::EIO | libc::EUCLEAN | libc::ENOTCONN => tracing::error!("{request}: {error}"),
        _ => tracing::debug!("{request}: {error}"),
    }
    Errno::from_i32(error.errno())
}

pub(super) fn reply_empty(name: &str, result: Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(code(name, &error)),
    }
}

/// Replies with a value or its length, as getxattr(2) and listxattr(2) want it.
pub(super) fn reply_xattr(name: &str, result: Result<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(code(name, &error)),
    }
}

/// Flags of every open that comes to the daemon: each read and write comes here, writes of one file in parallel.
pub(super) fn open_flags() -> FopenFlags {
    FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
}
