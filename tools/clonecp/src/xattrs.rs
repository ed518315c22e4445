//! Extended attributes and access control lists.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

use rustix::io::Errno;

use crate::node::Node;
use crate::quote::shell;
use crate::report::{Done, Failed, Report};
use crate::settings::Settings;
use crate::stat::Stat;

/// Who may do what, beyond the mode.
const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
/// The list that new files in a directory get.
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
/// The label of SELinux.
const CONTEXT: &[u8] = b"security.selinux";

/// Set-user-id, set-group-id and sticky.
pub const SPECIAL_BITS: u32 = 0o7000;

/// Copies extended attributes, ACLs left out: those go with the mode. An error only if the attributes were asked for
/// by name; what is said of failures depends on how they were asked for.
pub fn copy(from: Node, to: Node, s: &Settings, report: &Report) -> Done {
    let all_errors = s.attributes_only || s.preserve.need_xattr;
    let complain = |what: String, error: Errno| {
        let unsupported = matches!(error, Errno::OPNOTSUPP | Errno::NODATA);
        if all_errors || (!s.preserve.quiet_xattr && !unsupported) {
            report.os(what, &io::Error::from(error));
        }
    };
    let mut complete = true;
    let names = match from.list_xattrs() {
        Ok(names) => names,
        Err(Errno::NOSYS | Errno::OPNOTSUPP) => return Ok(()),
        Err(e) => {
            complain(format!("listing attributes of {}", shell(from.path())), e);
            complete = false;
            Vec::new()
        }
    };
    for name in names.iter().filter(|name| wanted(name, s)) {
        let quoted = shell(OsStr::from_bytes(name));
        let value = match from.xattr(name) {
            Ok(value) => value,
            Err(e) => {
                complain(format!("getting attribute {quoted} of {}", shell(from.path())), e);
                complete = false;
                continue;
            }
        };
        match to.set_xattr(name, &value) {
            Ok(()) => {}
            Err(e @ (Errno::OPNOTSUPP | Errno::NOSYS)) => {
                complain(format!("setting attributes for {}", shell(to.path())), e);
                complete = false;
                break;
            }
            Err(e) => {
                complain(format!("setting attribute {quoted} for {}", shell(to.path())), e);
                complete = false;
            }
        }
    }
    if complete || !s.preserve.need_xattr { Ok(()) } else { Err(Failed::Here) }
}

/// Gives `to` the mode and the ACLs of `from`.
pub fn copy_permissions(from: Node, to: Node, mode: u32) -> io::Result<()> {
    let directory = mode & libc::S_IFMT == libc::S_IFDIR;
    let mode = with_kept_bits(to, mode, directory)?;
    let access = acl(from, ACCESS_ACL)?;
    let default = if directory { acl(from, DEFAULT_ACL)? } else { None };
    match access {
        // The list first: the mode alone would give the owning group what belongs to the list's mask.
        Some(list) => {
            if let Err(e) = to.set_xattr(ACCESS_ACL, &list) {
                to.set_mode(mode)?;
                return Err(e.into());
            }
            to.set_mode(mode)?;
        }
        None => {
            drop_acl(to, ACCESS_ACL)?;
            to.set_mode(mode)?;
        }
    }
    match default {
        Some(list) => match to.set_xattr(DEFAULT_ACL, &list) {
            // A filesystem without ACLs: nobody gets more than the mode allows, and cp is quiet about it as well.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e.into()),
        },
        None if directory => drop_acl(to, DEFAULT_ACL)?,
        None => {}
    }
    Ok(())
}

/// Gives `to` this mode and no ACL.
pub fn set_permissions(to: Node, mode: u32, directory: bool) -> io::Result<()> {
    drop_acl(to, ACCESS_ACL)?;
    to.set_mode(with_kept_bits(to, mode, directory)?)
}

/// A directory keeps set-group-id and sticky where it has them (from the directory around it, or from before), unless
/// the mode has such bits of its own.
fn with_kept_bits(to: Node, mode: u32, directory: bool) -> io::Result<u32> {
    let kept = if directory && mode & SPECIAL_BITS == 0 { Stat::of(to.path())?.mode & SPECIAL_BITS } else { 0 };
    Ok(mode | kept)
}

fn acl(node: Node, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    match node.xattr(name) {
        Ok(list) => Ok(Some(list)),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(None),
        Err(e) => Err(e),
    }
}

fn drop_acl(node: Node, name: &[u8]) -> Result<(), Errno> {
    match node.remove_xattr(name) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
        Err(e) => Err(e),
    }
}

/// This attribute is one to copy.
fn wanted(name: &[u8], s: &Settings) -> bool {
    if name == CONTEXT {
        return s.preserve.xattr || s.preserve.context;
    }
    // The doors of a clonefs mount have names that a file elsewhere can carry as well. Set on the copy they would be
    // orders to the daemon, given by whoever made the source and carried out with the rights of whoever copies it.
    let reserved = name.starts_with(clonefs::protocol::PREFIX.as_bytes());
    s.preserve.xattr && !reserved && name != ACCESS_ACL && name != DEFAULT_ACL && !left_out(name)
}

/// `/etc/xattr.conf`, or what it usually says, excludes this attribute from copies.
fn left_out(name: &[u8]) -> bool {
    static PATTERNS: OnceLock<Vec<CString>> = OnceLock::new();
    let patterns = PATTERNS.get_or_init(|| match fs::read("/etc/xattr.conf") {
        Ok(text) => text.split(|&b| b == b'\n').filter_map(pattern).collect(),
        Err(_) => ["system.nfs4_acl", "system.nfs4acl", "trusted.SGI_*", "xfsroot.*", "security.evm", "afs.*"]
            .iter()
            .filter_map(|p| CString::new(*p).ok())
            .collect(),
    });
    let Ok(name) = CString::new(name) else { return true };
    // SAFETY: both are terminated strings that live until the call returns; `fnmatch` only reads them.
    patterns.iter().any(|p| unsafe { libc::fnmatch(p.as_ptr(), name.as_ptr(), 0) } == 0)
}

/// The pattern of one line of `xattr.conf`: every action that the file knows means that the attribute is not copied
/// as an attribute.
fn pattern(line: &[u8]) -> Option<CString> {
    let line = line.split(|&b| b == b'#').next()?;
    let mut words = line.split(|b| b.is_ascii_whitespace()).filter(|word| !word.is_empty());
    let pattern = words.next()?;
    matches!(words.next()?, b"skip" | b"permissions").then(|| CString::new(pattern).ok())?
}

#[cfg(test)]
mod tests {
    #[test]
    fn lines_of_the_configuration_are_patterns_and_actions() {
        let text = |line: &str| super::pattern(line.as_bytes()).map(|p| p.into_string().unwrap());
        assert_eq!(text("trusted.SGI_DMI_*\t\tskip\t\t# xfs"), Some("trusted.SGI_DMI_*".into()));
        assert_eq!(text("system.nfs4_acl permissions"), Some("system.nfs4_acl".into()));
        assert_eq!(text("# a comment skip"), None);
        assert_eq!(text("user.x"), None);
    }
}
