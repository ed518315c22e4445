//! Extended attributes. Real ones belong to the backing filesystem; those with the prefix of [`crate::protocol`] are ours.
//!
//! Who may read or set an attribute was checked by the kernel before the request came here, by the rules of its name
//! space: permission bits and ACLs for `user.`, ownership for ACLs, CAP_SYS_ADMIN for `trusted.`, the security modules
//! for `security.`. Only the list of names is not filtered there: a filesystem leaves out what the caller may not see.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;

use super::caller::{CAP_FSETID, CAP_SYS_ADMIN, Caller};
use super::{NameTree, Target, errno, snapshots};
use crate::error::{Error, Kind, Result};
use crate::protocol;

const ACCESS_ACL: &str = "system.posix_acl_access";
const DEFAULT_ACL: &str = "system.posix_acl_default";

/// Whether setting an attribute can wait for the kernel's own write-back, so that a FUSE thread must not do it.
pub fn set_may_wait(name: &OsStr) -> bool {
    is_ours(name)
}

/// Whether setting an attribute asks for something that is refused while the file is open.
pub fn set_wants_closed(name: &OsStr, value: &[u8]) -> bool {
    match name.to_str().unwrap_or_default() {
        protocol::RESET => true,
        protocol::SNAPSHOT => serde_json::from_slice(value).is_ok_and(|request: protocol::SnapshotRequest| {
            matches!(request.action, protocol::SnapshotAction::Rollback)
        }),
        protocol::RESIZE => serde_json::from_slice(value).is_ok_and(|request: protocol::ResizeRequest| request.shrink),
        _ => false,
    }
}

/// Whether reading an attribute can take long, or is done with the caller's rights. What is ours is: it is put together
/// from files and tables that can be large, and nobody's reads and writes may wait for it.
pub fn get_takes_long(name: &OsStr) -> bool {
    is_ours(name)
}

pub(super) fn is_ours(name: &OsStr) -> bool {
    name.as_bytes().starts_with(protocol::PREFIX.as_bytes())
}

impl NameTree {
    /// Whether a regular file has open handles.
    pub fn is_open(&self, id: u64) -> bool {
        self.table.lock().node(id).is_some_and(|node| node.open.is_some())
    }

    /// Value of an attribute.
    pub fn get_xattr(&self, id: u64, name: &OsStr, caller: &Caller) -> Result<Vec<u8>> {
        let id = snapshots::real(id);
        if is_ours(name) {
            return self.get_door(id, name, caller);
        }
        let name = name.to_owned();
        let value = self.with_target(id, "read an attribute of", |target| target.get_xattr(&name));
        value.map_err(|error| match error.os_error() {
            // The kernel asks for ACLs whenever it checks permissions, and takes any other error for a failure.
            Some(libc::EOPNOTSUPP) if is_acl(&name) => errno("read an ACL", libc::ENODATA),
            _ => error,
        })
    }

    /// Sets an attribute; `flags` are those of setxattr(2).
    pub fn set_xattr(&self, id: u64, name: &OsStr, value: &[u8], flags: i32, caller: &Caller) -> Result<()> {
        self.check_changeable(id)?;
        if is_ours(name) {
            return self.set_door(id, name, value, caller);
        }
        self.directory_changed(id);
        let name = name.to_owned();
        let set = || {
            self.with_target(id, "set an attribute of", |target| {
                target.set_xattr(&name, value, flags)?;
                if name == ACCESS_ACL { drop_group_id(&target, caller) } else { Ok(()) }
            })
        };
        if name == "security.capability" {
            self.unless_past(id, "give privileges to", set)?;
        } else {
            set()?;
        }
        if name.as_bytes().starts_with(b"security.") {
            self.privileges_may_have_changed(id);
        }
        Ok(())
    }

    /// Removes an attribute.
    pub fn remove_xattr(&self, id: u64, name: &OsStr) -> Result<()> {
        self.check_changeable(id)?;
        if is_ours(name) {
            return Err(Error::new(Kind::Permission, "remove a virtual attribute"));
        }
        self.directory_changed(id);
        let name = name.to_owned();
        self.with_target(id, "remove an attribute of", |target| target.remove_xattr(&name))
    }

    /// Names of the attributes that the caller may see, each ended by a NUL.
    pub fn list_xattr(&self, id: u64, caller: &Caller) -> Result<Vec<u8>> {
        let id = snapshots::real(id);
        let mut names = self.with_target(id, "list the attributes of", |target| match target.list_xattr() {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
            other => other,
        })?;
        names.retain(|name| !is_ours(name));
        let is_trusted = |name: &OsString| name.as_bytes().starts_with(b"trusted.");
        if names.iter().any(is_trusted) && !caller.capable(CAP_SYS_ADMIN) {
            names.retain(|name| !is_trusted(name));
        }
        Ok(names.iter().flat_map(|name| name.as_bytes().iter().copied().chain([0])).collect())
    }
}

fn is_acl(name: &OsStr) -> bool {
    name == ACCESS_ACL || name == DEFAULT_ACL
}

/// Setting an ACL sets the group's permissions; whoever is not in the group may not keep setgid on the file then.
/// The backing filesystem cannot see that: it is the daemon who asks it.
fn drop_group_id(target: &Target, caller: &Caller) -> io::Result<()> {
    let stat = target.stat()?;
    let keeps = stat.mode & libc::S_ISGID == 0 || caller.in_group(stat.gid) || caller.capable(CAP_FSETID);
    if keeps { Ok(()) } else { target.chmod(stat.mode & 0o7777 & !libc::S_ISGID) }
}

impl Target {
    fn get_xattr(&self, name: &OsString) -> io::Result<Vec<u8>> {
        match self {
            Target::Open(file) => file.get_xattr(name),
            Target::Held(file) => file.get_xattr(name),
        }
    }

    fn set_xattr(&self, name: &OsString, value: &[u8], flags: i32) -> io::Result<()> {
        match self {
            Target::Open(file) => file.set_xattr(name, value, flags),
            Target::Held(file) => file.set_xattr(name, value, flags),
        }
    }

    fn list_xattr(&self) -> io::Result<Vec<OsString>> {
        match self {
            Target::Open(file) => file.list_xattr(),
            Target::Held(file) => file.list_xattr(),
        }
    }

    fn remove_xattr(&self, name: &OsString) -> io::Result<()> {
        match self {
            Target::Open(file) => file.remove_xattr(name),
            Target::Held(file) => file.remove_xattr(name),
        }
    }
}
