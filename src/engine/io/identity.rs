//! Another user's identity towards the filesystem, on one thread.
//!
//! A file that is made with the identity of its owner-to-be belongs to that owner from the start: there is no moment in
//! which it is root's, and no change of owner that could hit something else. A name that is removed with the caller's
//! identity is one that the caller could have removed.

use std::io;

/// What the thread may still do as the other user, beside what that user may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Powers(u64);

const CAP_DAC_OVERRIDE: u64 = 1 << 1;
const CAP_DAC_READ_SEARCH: u64 = 1 << 2;
const CAP_FSETID: u64 = 1 << 4;
const CAP_MKNOD: u64 = 1 << 27;

impl Powers {
    /// To write to open files: which privilege bits a write takes away was decided by the kernel above us, which knows all
    /// groups of the writer.
    pub const WRITE: Powers = Powers(CAP_FSETID);
    /// Nothing more.
    pub const NONE: Powers = Powers(0);
    /// To change names: in whatever directory, as permissions were checked by the kernel above us, which knows all groups
    /// of the caller; not against the rule of sticky directories, which the filesystem below checks on what it removes.
    pub const NAMES: Powers = Powers(CAP_DAC_OVERRIDE | CAP_DAC_READ_SEARCH);
    /// To make files: with the setgid bit, and devices, as that was checked too.
    pub const MAKE: Powers = Powers(Powers::NAMES.0 | CAP_FSETID | CAP_MKNOD);
}

/// Runs `work` on this thread with the user and group of somebody else for what it does to filesystems. Where the daemon
/// is not root it can only act as itself, and where the other user is root there is nothing to change but the group.
///
/// # Errors
/// When the kernel does not let this process act as that user; `work` has not run then.
pub fn acting_as<T>(uid: u32, gid: u32, powers: Powers, work: impl FnOnce() -> T) -> io::Result<T> {
    let Some(taken) = Taken::take(uid, gid)? else { return Ok(work()) };
    if uid != 0 && powers != Powers::NONE {
        raise(powers)?;
    }
    let result = work();
    drop(taken);
    Ok(result)
}

/// The identity that this thread has for now; dropped, also by a panic, it has its own again.
struct Taken {
    uid: u32,
    gid: u32,
}

impl Taken {
    /// `None`: this thread acts as that user anyway, or cannot act as anybody else.
    fn take(uid: u32, gid: u32) -> io::Result<Option<Taken>> {
        if !is_root() {
            return Ok(None);
        }
        let (old_gid, old_uid) = (set(libc::SYS_setfsgid, gid), set(libc::SYS_setfsuid, uid));
        let taken = Taken { uid: old_uid, gid: old_gid };
        // The calls tell of no error. Asked with an id that cannot be, they say what is.
        let is = (set(libc::SYS_setfsuid, u32::MAX), set(libc::SYS_setfsgid, u32::MAX));
        if is != (uid, gid) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        Ok((old_uid != uid || old_gid != gid).then_some(taken))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // Back to user 0, the kernel gives the capabilities back that have to do with filesystems.
        set(libc::SYS_setfsuid, self.uid);
        set(libc::SYS_setfsgid, self.gid);
        if set(libc::SYS_setfsuid, u32::MAX) != self.uid {
            // A thread with a stranger's rights must not serve anyone else.
            tracing::error!("cannot get back the daemon's own identity");
            std::process::abort();
        }
    }
}

/// setfsuid(2) or setfsgid(2), which change one thread only; returns what was set before.
fn set(number: libc::c_long, id: u32) -> u32 {
    // SAFETY: both calls take one number, touch no memory and always return the former id.
    unsafe { libc::syscall(number, id) as u32 }
}

/// Whether this process is root, of the machine or of a user namespace.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// The group that this process acts as: to change it beside the user would cost as much once more.
pub fn own_group() -> u32 {
    // SAFETY: getegid takes nothing and cannot fail.
    unsafe { libc::getegid() }
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Effective capabilities of this thread.
pub fn effective_capabilities() -> io::Result<u64> {
    get().map(|data| u64::from(data[0].effective) | u64::from(data[1].effective) << 32)
}

fn get() -> io::Result<[Data; 2]> {
    // _LINUX_CAPABILITY_VERSION_3: two sets of 32 bits each.
    let mut header = Header { version: 0x2008_0522, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: header and data are what capget(2) wants for this version.
    match unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) } {
        0 => Ok(data),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the effective capabilities of this thread to those of `mask` that are permitted to it.
pub fn set_effective_capabilities(mask: u64) -> io::Result<()> {
    let mut data = get()?;
    data[0].effective = data[0].permitted & mask as u32;
    data[1].effective = data[1].permitted & (mask >> 32) as u32;
    let mut header = Header { version: 0x2008_0522, pid: 0 };
    // SAFETY: header and data are what capset(2) wants for this version.
    match unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn raise(powers: Powers) -> io::Result<()> {
    set_effective_capabilities(effective_capabilities()? | powers.0)
}

/// User that this daemon runs as.
pub fn effective_uid() -> u32 {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Group that this daemon runs as.
pub fn effective_gid() -> u32 {
    // SAFETY: getegid takes nothing and cannot fail.
    unsafe { libc::getegid() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// Whether there is something to test; and what this thread is.
    fn root() -> bool {
        let root = is_root();
        if !root {
            eprintln!("SKIPPED: needs root");
        }
        root
    }

    fn now() -> (u32, u32, u64) {
        (set(libc::SYS_setfsuid, u32::MAX), set(libc::SYS_setfsgid, u32::MAX), effective_capabilities().unwrap())
    }

    #[test]
    fn what_is_made_as_another_user_belongs_to_that_user_also_where_only_the_daemon_may_write() {
        if !root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let (path, before) = (dir.path().join("made"), now());
        acting_as(1234, 5678, Powers::MAKE, || std::fs::create_dir(&path)).unwrap().unwrap();
        let made = std::fs::metadata(&path).unwrap();
        assert_eq!((made.uid(), made.gid()), (1234, 5678));
        assert_eq!(now(), before);
        // Without powers the directory is closed to that user.
        let refused = acting_as(1234, 5678, Powers::NONE, || std::fs::create_dir(dir.path().join("no"))).unwrap();
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EACCES));
    }

    #[test]
    fn the_rule_of_sticky_directories_holds() {
        if !root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o1777)).unwrap();
        let path = dir.path().join("of-root");
        std::fs::write(&path, "x").unwrap();
        let removed = acting_as(1234, 1234, Powers::NAMES, || std::fs::remove_file(&path)).unwrap();
        assert_eq!(removed.unwrap_err().raw_os_error(), Some(libc::EPERM));
        acting_as(0, 0, Powers::NAMES, || std::fs::remove_file(&path)).unwrap().unwrap();
    }

    #[test]
    fn a_panic_leaves_no_identity_behind() {
        if !root() {
            return;
        }
        let before = now();
        let result = catch_unwind(AssertUnwindSafe(|| acting_as(1234, 1234, Powers::MAKE, || panic!("on purpose"))));
        assert!(result.is_err());
        assert_eq!(now(), before);
    }
}
