//! Who asks: the credentials of the process behind a request, and work done in its name.

use std::io;
use std::path::PathBuf;

use crate::engine::events::{Asker, Asking};
use crate::engine::io::{effective_capabilities, set_effective_capabilities};
use crate::engine::io::{effective_gid, effective_uid};
use crate::error::{Error, Kind, Result};

/// Do to files what only their owners may.
pub const CAP_FOWNER: u32 = 3;
/// Change owners at will.
pub const CAP_FSETID: u32 = 4;
/// Administration; shows `trusted.*` attributes.
pub const CAP_SYS_ADMIN: u32 = 21;

/// The process that made a request. Only user and group come with the request; the rest is read from /proc when it is
/// needed, which is rare. The thread waits for our reply, so its entry is there; where it is not (a process of another
/// pid namespace has number 0), the answer is the one that gives fewer rights.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// User for permission checks (fsuid).
    pub uid: u32,
    /// Group for permission checks (fsgid).
    pub gid: u32,
    /// Thread that made the call, 0 when it cannot be seen from here.
    pub pid: u32,
}

impl Caller {
    /// Root, or the user that this daemon runs as.
    pub fn is_administrator(&self) -> bool {
        self.uid == 0 || self.uid == effective_uid()
    }

    /// Events of this thread are in its name until the result is dropped.
    pub fn asks(&self) -> Asking {
        Asker { uid: self.uid, pid: self.pid }.asks()
    }

    /// Whether it has a capability that counts on the whole machine. Capabilities of other users than root may come from
    /// a user namespace of their own and do not count.
    pub fn capable(&self, capability: u32) -> bool {
        self.uid == 0 && self.capabilities() >> capability & 1 == 1
    }

    /// Whether it has a capability over files of that user and group, in its own user namespace: the rule by which the
    /// kernel lets the root of a container do to the container's files what their owners may.
    pub fn has_over(&self, capability: u32, uid: u32, gid: u32) -> bool {
        let maps = |file: &str, id: u32| {
            let map = std::fs::read_to_string(format!("/proc/{}/{file}", self.pid)).unwrap_or_default();
            map.lines().any(|line| {
                let mut numbers = line.split_whitespace().filter_map(|number| number.parse::<u64>().ok());
                let (_, outside, count) = (numbers.next(), numbers.next(), numbers.next());
                outside.zip(count).is_some_and(|(first, count)| (first..first + count).contains(&u64::from(id)))
            })
        };
        self.capabilities() >> capability & 1 == 1 && maps("uid_map", uid) && maps("gid_map", gid)
    }

    /// Whether it belongs to a group.
    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups().contains(&gid)
    }

    /// What a link in its directory of /proc says; empty where that cannot be told.
    pub fn link(&self, name: &str) -> PathBuf {
        std::fs::read_link(format!("/proc/{}/{name}", self.pid)).unwrap_or_default()
    }

    /// The program that it runs.
    pub fn executable(&self) -> PathBuf {
        self.link("exe")
    }

    /// Its command line, words ended by NULs. That is memory of the process: the call takes as long as whatever is mapped
    /// there.
    pub fn arguments(&self) -> Vec<u8> {
        std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default()
    }

    /// Runs `work` on this thread with the user, the groups and (for root) the capabilities of the caller, so that the
    /// kernel checks permissions as if the caller did it. Not for a thread that others wait for: it makes system calls
    /// that change credentials of this thread alone.
    ///
    /// # Errors
    /// [`Kind::Permission`] when this daemon may not act for that user; else what `work` returns.
    pub fn act<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if effective_uid() != 0 {
            return if self.uid == effective_uid() {
                work()
            } else {
                Err(Error::new(Kind::Permission, "act for another user")
                    .remedy("only a mount made by root can check the permissions of other users"))
            };
        }
        let disguise = Disguise::put_on(self).map_err(|e| Error::io("take on the caller's credentials", e))?;
        let result = work();
        drop(disguise);
        result
    }

    /// Somebody without any rights of their own.
    pub fn stranger() -> Caller {
        /// `nobody` and `nogroup`, as the kernel's overflow ids.
        const NOBODY: u32 = 65534;
        // No process has this number, so there are no groups and no capabilities to be found.
        Caller { uid: NOBODY, gid: NOBODY, pid: 0 }
    }

    fn groups(&self) -> Vec<u32> {
        let groups = self.status_field("Groups:");
        groups.iter().flat_map(|line| line.split_whitespace()).filter_map(|gid| gid.parse().ok()).collect()
    }

    fn capabilities(&self) -> u64 {
        self.status_field("CapEff:").and_then(|mask| u64::from_str_radix(&mask, 16).ok()).unwrap_or(0)
    }

    fn status_field(&self, name: &str) -> Option<String> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        status.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
    }
}

/// Credentials of another process on this thread; dropped, they are taken off.
struct Disguise {
    groups: Vec<libc::gid_t>,
    gid: u32,
    capabilities: u64,
}

/// Changes one thread only: the functions of libc of the same names change all threads of the process.
fn raw(number: libc::c_long, arguments: [u64; 3]) -> io::Result<i64> {
    // SAFETY: used for setgroups, getgroups, setresuid and setresgid only, with a pointer to a live array of the length
    // that goes with it, or with plain numbers.
    let result = unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2]) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn set_groups(groups: &[libc::gid_t]) -> io::Result<()> {
    raw(libc::SYS_setgroups, [groups.len() as u64, groups.as_ptr() as u64, 0]).map(drop)
}

/// The effective group or user; `u32::MAX` leaves the others as they are.
fn set_effective(number: libc::c_long, id: u32) -> io::Result<()> {
    raw(number, [u64::from(u32::MAX), u64::from(id), u64::from(u32::MAX)]).map(drop)
}

impl Disguise {
    fn put_on(caller: &Caller) -> io::Result<Disguise> {
        let count = raw(libc::SYS_getgroups, [0, 0, 0])?;
        let mut groups = vec![0; count as usize];
        raw(libc::SYS_getgroups, [groups.len() as u64, groups.as_mut_ptr() as u64, 0])?;
        let disguise = Disguise { groups, gid: effective_gid(), capabilities: effective_capabilities()? };
        let capabilities = if caller.uid == 0 { caller.capabilities() } else { 0 };
        set_groups(&caller.groups())?;
        set_effective(libc::SYS_setresgid, caller.gid)?;
        // Leaving user 0 clears the effective capabilities, and coming back gives them back from the permitted ones.
        set_effective(libc::SYS_setresuid, caller.uid)?;
        if caller.uid == 0 {
            set_effective_capabilities(capabilities)?;
        }
        Ok(disguise)
    }

    fn take_off(&self) -> io::Result<()> {
        set_effective(libc::SYS_setresuid, 0)?;
        set_effective_capabilities(self.capabilities)?;
        set_effective(libc::SYS_setresgid, self.gid)?;
        set_groups(&self.groups)
    }
}

impl Drop for Disguise {
    fn drop(&mut self) {
        if let Err(error) = self.take_off() {
            // A thread with a stranger's rights must not serve anyone else.
            tracing::error!("cannot get back the daemon's own credentials: {error}");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> Caller {
        // SAFETY: gettid takes nothing and cannot fail.
        let pid = unsafe { libc::gettid() } as u32;
        Caller { uid: effective_uid(), gid: effective_gid(), pid }
    }

    #[test]
    fn this_process_is_known_by_its_entry_in_proc() {
        assert!(me().in_group(effective_gid()));
        assert_eq!(me().executable(), std::env::current_exe().unwrap());
        assert_eq!(Caller { pid: 0, ..me() }.executable(), std::path::Path::new(""));
        assert!(!Caller { pid: 0, ..me() }.capable(CAP_FSETID));
    }

    #[test]
    fn work_for_another_user_has_that_users_rights_and_no_more() {
        if effective_uid() != 0 {
            eprintln!("SKIPPED: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "x").unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(&secret, Some(0), Some(4321)).unwrap();
        let read = || std::fs::read(&secret).map_err(|e| Error::io("read", e));
        let errno = |uid, gid| Caller { uid, gid, pid: 0 }.act(read).err().and_then(|e| e.os_error());
        assert_eq!(errno(1234, 1234), Some(libc::EACCES));
        assert_eq!(errno(1234, 4321), None);
        // Root without capabilities is root by number only: here it owns the file, so it still can read it.
        assert_eq!(errno(0, 0), None);
        std::os::unix::fs::chown(&secret, Some(77), Some(77)).unwrap();
        assert_eq!(errno(0, 0), Some(libc::EACCES));
        assert!(me().act(read).is_ok());
        assert!(read().is_ok());
        assert_eq!((effective_uid(), effective_gid()), (0, 0));
    }
}
