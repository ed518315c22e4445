//! What a clone inherits besides its bytes, by the rules of `cp -p`: owner and group as far as the caller may give
//! them, mode, ACL and extended attributes.
//!
//! When the owner or group cannot be given, the caller's own stay, and then neither set-user-ID and set-group-ID bits
//! nor file capabilities are: they would let anybody run the source owner's program as the caller, or the reverse.
//! Labels that say where and by whom a file is *used* (SELinux, IMA, the owners that libvirt remembers) belong to the
//! source's place and not to its contents; the clone keeps those that its own place gave it.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Gid, Mode, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::xattr;
use crate::protocol;

const ACL: &str = "system.posix_acl_access";
const DEFAULT_ACL: &str = "system.posix_acl_default";
const CAPABILITY: &str = "security.capability";

/// Attributes of a file or directory that a copy can be given.
pub struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    times: Timestamps,
    acl: Option<Vec<u8>>,
    default_acl: Option<Vec<u8>>,
    capability: Option<Vec<u8>>,
    others: Vec<(OsString, Vec<u8>)>,
}

/// What [`Attributes::apply`] does besides.
#[derive(Clone, Copy, Default)]
pub struct Apply {
    /// The file may have been born with an ACL from its directory, which must go.
    pub drop_acl: bool,
    /// Give it the source's times too.
    pub times: bool,
}

impl Attributes {
    /// Reads the attributes of an open file. What the caller may not read is left out.
    pub fn read(file: impl AsFd, stat: &Stat) -> rustix::io::Result<Attributes> {
        let file = file.as_fd();
        let optional = |name: &str| match xattr::fget(file, OsStr::new(name)) {
            Ok(value) => Ok(Some(value)),
            Err(e) if xattr::absent(e) || matches!(e, Errno::PERM | Errno::ACCESS) => Ok(None),
            Err(e) => Err(e),
        };
        let mut others = Vec::new();
        for name in xattr::flist(file)? {
            if let (true, Some(name_text)) = (travels(&name), name.to_str()) {
                others.extend(optional(name_text)?.map(|value| (name, value)));
            }
        }
        let directory = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        Ok(Attributes {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            times: times(stat),
            acl: optional(ACL)?,
            default_acl: if directory { optional(DEFAULT_ACL)? } else { None },
            capability: optional(CAPABILITY)?,
            others,
        })
    }

    /// Gives them to an open file, which so far only the caller can open. The mode comes last, so that at no time
    /// somebody can open it who could not open the source.
    pub fn apply(&self, file: impl AsFd, how: Apply) -> rustix::io::Result<()> {
        let file = file.as_fd();
        let same_owner = self.give_owner(file)?;
        for (name, value) in &self.others {
            match xattr::fset(file, name, value) {
                // As cp: what takes a privilege is given as far as the caller has it.
                Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) if !name.as_bytes().starts_with(b"user.") => {}
                result => result?,
            }
        }
        if let (true, Some(capability)) = (same_owner, &self.capability) {
            match xattr::fset(file, OsStr::new(CAPABILITY), capability) {
                Err(Errno::PERM | Errno::OPNOTSUPP) => {}
                result => result?,
            }
        }
        self.give_acl(file, how.drop_acl)?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(kept_mode(self.mode, same_owner)))?;
        if how.times {
            rustix::fs::futimens(file, &self.times)?;
        }
        Ok(())
    }

    /// Gives owner and group as far as possible; tells whether both are now those of the source.
    fn give_owner(&self, file: impl AsFd) -> rustix::io::Result<bool> {
        let file = file.as_fd();
        let is_now = |stat: &Stat| stat.st_uid == self.uid && stat.st_gid == self.gid;
        if is_now(&rustix::fs::fstat(file)?) {
            return Ok(true);
        }
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        match rustix::fs::fchown(file, Some(uid), Some(gid)) {
            Err(Errno::PERM | Errno::INVAL) => {
                // As cp: at least the group, where the caller is a member of it.
                let _ = rustix::fs::fchown(file, None, Some(gid));
            }
            result => result?,
        }
        // Asked again: a mount may map or squash owners and still report success.
        Ok(is_now(&rustix::fs::fstat(file)?))
    }

    fn give_acl(&self, file: impl AsFd, drop_acl: bool) -> rustix::io::Result<()> {
        let file = file.as_fd();
        match &self.acl {
            Some(acl) => xattr::fset(file, OsStr::new(ACL), acl)?,
            None if drop_acl => remove(file, ACL)?,
            None => {}
        }
        match &self.default_acl {
            Some(acl) => xattr::fset(file, OsStr::new(DEFAULT_ACL), acl),
            None if drop_acl => remove(file, DEFAULT_ACL),
            None => Ok(()),
        }
    }
}

/// The mode of a clone: without set-user-ID, set-group-ID and sticky bit where the owner could not be kept.
pub fn kept_mode(mode: u32, same_owner: bool) -> u32 {
    mode & if same_owner { 0o7777 } else { 0o777 }
}

/// Access and modification time of a status.
pub fn times(stat: &Stat) -> Timestamps {
    let spec = |seconds: i64, nanos: u64| Timespec { tv_sec: seconds, tv_nsec: nanos as _ };
    Timestamps {
        last_access: spec(stat.st_atime as _, stat.st_atime_nsec as _),
        last_modification: spec(stat.st_mtime as _, stat.st_mtime_nsec as _),
    }
}

fn remove(file: impl AsFd, name: &str) -> rustix::io::Result<()> {
    match rustix::fs::fremovexattr(file, name) {
        Err(e) if xattr::absent(e) || e == Errno::ACCESS => Ok(()),
        result => result,
    }
}

/// Whether an attribute of this name goes with the contents. ACLs and capabilities are handled apart.
fn travels(name: &OsStr) -> bool {
    const USED_BY_OTHERS: [&[u8]; 2] = [b"trusted.libvirt.", b"trusted.overlay."];
    let name = name.as_bytes();
    if name.starts_with(b"user.") {
        return !name.starts_with(protocol::PREFIX.as_bytes());
    }
    name.starts_with(b"trusted.") && !USED_BY_OTHERS.iter().any(|p| name.starts_with(p))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn pair() -> (tempfile::TempDir, File, File) {
        let dir = tempfile::tempdir().unwrap();
        let source = File::create(dir.path().join("source")).unwrap();
        let target = File::create(dir.path().join("target")).unwrap();
        (dir, source, target)
    }

    fn read(file: &File) -> Attributes {
        Attributes::read(file, &rustix::fs::fstat(file).unwrap()).unwrap()
    }

    #[test]
    fn mode_and_user_attributes_are_inherited_times_only_if_asked() {
        let (_dir, source, target) = pair();
        source.set_permissions(std::fs::Permissions::from_mode(0o640)).unwrap();
        xattr::fset(&source, OsStr::new("user.note"), b"hello").unwrap();
        xattr::fset(&source, OsStr::new("user.clonefs.fake"), b"no").unwrap();
        source.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000)).unwrap();
        read(&source).apply(&target, Apply::default()).unwrap();
        assert_eq!(target.metadata().unwrap().mode() & 0o7777, 0o640);
        assert_eq!(xattr::fget(&target, OsStr::new("user.note")).unwrap(), b"hello");
        assert!(xattr::fget(&target, OsStr::new("user.clonefs.fake")).is_err());
        assert_ne!(target.metadata().unwrap().mtime(), 1000);
        read(&source).apply(&target, Apply { times: true, ..Apply::default() }).unwrap();
        assert_eq!(target.metadata().unwrap().mtime(), 1000);
    }

    #[test]
    fn special_bits_stay_only_with_the_source_owner() {
        assert_eq!(kept_mode(0o6755, true), 0o6755);
        assert_eq!(kept_mode(0o7751, false), 0o751);
    }

    #[test]
    fn labels_of_a_place_do_not_travel() {
        for name in ["security.selinux", "security.ima", "trusted.libvirt.security.dac", "user.clonefs.id", "system.x"]
        {
            assert!(!travels(OsStr::new(name)), "{name}");
        }
        assert!(travels(OsStr::new("user.mime_type")) && travels(OsStr::new("trusted.md5")));
    }
}
