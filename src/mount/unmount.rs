//! `clonefs unmount`: make everything durable, detach the mount, wait until its daemon is gone.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use super::table::{self, Entry, FS_TYPE};
use crate::door::{FLUSH, PoolStatus, STATUS};
use crate::error::{Context, Error, Kind, Result};

/// Unmounts the clonefs mount at `path`, which may also be the path of a pool that is mounted elsewhere.
///
/// Without `lazy` it returns when everything is durable and the daemon has ended. With `lazy` the mount is taken out of
/// the tree at once, and its daemon goes on until the last open file is closed; nobody waits for that.
///
/// # Errors
/// [`Kind::NotFound`]: no clonefs mount there. [`Kind::Busy`]: in use; the error names the processes. A failed flush is
/// reported after the unmount.
pub fn unmount(path: &Path, lazy: bool) -> Result<()> {
    let entry = find(path)?;
    let mountpoint = entry.mountpoint.clone();
    if is_dead(&mountpoint) {
        return detach(&mountpoint, true);
    }
    let daemon = daemon_of(&mountpoint);
    let flushed = flush(&mountpoint);
    if let Err(error) = detach(&mountpoint, lazy) {
        return Err(if error.kind() == Kind::Busy { busy(&entry) } else { error });
    }
    if let (Some(daemon), false) = (daemon, lazy) {
        wait_for_exit(&daemon).context("wait for the daemon of", &mountpoint)?;
    }
    flushed
}

/// A mount whose daemon is gone answers with `ENOTCONN` whatever the kernel does not know by itself. It may know the
/// attributes of the root for a while, but never those of ours.
pub(super) fn is_dead(mountpoint: &Path) -> bool {
    let status = super::xattr::get(mountpoint, STATUS);
    status.is_err_and(|e| matches!(e.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)))
}

/// Takes the mount out of the tree: umount2(2), or fusermount3 for an ordinary user.
pub(super) fn detach(mountpoint: &Path, lazy: bool) -> Result<()> {
    let name = CString::new(mountpoint.as_os_str().as_bytes())
        .map_err(|e| Error::new(Kind::Invalid, "unmount").at(mountpoint).because(e))?;
    let flags = libc::UMOUNT_NOFOLLOW | if lazy { libc::MNT_DETACH } else { 0 };
    // SAFETY: name is NUL-terminated.
    if unsafe { libc::umount2(name.as_ptr(), flags) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EPERM) => with_fusermount(mountpoint, lazy),
        Some(libc::EBUSY) => Err(Error::new(Kind::Busy, "unmount").at(mountpoint)),
        _ => Err(error).context("unmount", mountpoint),
    }
}

fn with_fusermount(mountpoint: &Path, lazy: bool) -> Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(mountpoint);
    let output = command.output().map_err(|e| {
        Error::io("run fusermount3 to unmount", e)
            .at(mountpoint)
            .remedy("install the package fuse3, or unmount as root")
    })?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let kind = if message.to_lowercase().contains("busy") { Kind::Busy } else { Kind::Permission };
    Err(Error::new(kind, "unmount").at(mountpoint).because(message))
}

fn find(path: &Path) -> Result<Entry> {
    let path = table::absolute(table::without_prefix(path))?;
    let mounts = table::mounts()?;
    let ours = |entry: &&Entry| entry.fs_type == FS_TYPE;
    let here = mounts.iter().rev().find(|entry| entry.mountpoint == path);
    let found = here.filter(ours).or_else(|| mounts.iter().rev().filter(ours).find(|e| e.pool() == path));
    found.cloned().ok_or_else(|| {
        Error::new(Kind::NotFound, "unmount")
            .at(path)
            .because("no clonefs mount here")
            .remedy("`findmnt -t fuse.clonefs` lists them")
    })
}

/// Tells the daemon to make everything durable, so that a failure is heard before the mount is gone.
fn flush(mountpoint: &Path) -> Result<()> {
    let result = super::xattr::set(mountpoint, FLUSH, b"sync");
    match result {
        // Not allowed to ask (not the owner of the mount): the daemon flushes when it ends.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::EROFS)) => Ok(()),
        other => other.context("make everything durable in", mountpoint),
    }
}

/// What the daemon of a mount says of itself.
pub(super) fn status(mountpoint: &Path) -> Option<PoolStatus> {
    serde_json::from_slice(&super::xattr::get(mountpoint, STATUS).ok()?).ok()
}

/// The process that serves a mount, held so that its number cannot come to mean another.
fn daemon_of(mountpoint: &Path) -> Option<OwnedFd> {
    let status = status(mountpoint)?;
    // SAFETY: pidfd_open takes a pid and flags; no memory is passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, status.pid as libc::pid_t, 0) };
    // SAFETY: the call gave a new descriptor that nobody else owns.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn wait_for_exit(process: &OwnedFd) -> io::Result<()> {
    let mut poll = libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    loop {
        // SAFETY: poll is one valid pollfd.
        if unsafe { libc::poll(&raw mut poll, 1, -1) } >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn busy(entry: &Entry) -> Error {
    let users: Vec<String> = users_of(entry).iter().map(|(pid, name)| format!("{pid} ({name})")).collect();
    let cause = if users.is_empty() { "in use".to_owned() } else { format!("in use by process {}", users.join(", ")) };
    Error::new(Kind::Busy, "unmount")
        .at(&entry.mountpoint)
        .because(cause)
        .remedy("close its files and leave its directories, or unmount with --lazy")
}

/// Processes that keep a mount busy, with a file open or mapped or as a directory of theirs: number and name. Only
/// /proc is read: a look at the files themselves could hang on any other mount.
fn users_of(entry: &Entry) -> Vec<(u32, String)> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut users: Vec<(u32, String)> = processes
        .flatten()
        .filter_map(|process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            uses(&process.path(), entry).then(|| {
                let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                (pid, name.trim().escape_debug().to_string())
            })
        })
        .collect();
    users.sort();
    users
}

fn uses(process: &Path, entry: &Entry) -> bool {
    let inside = |link: &str| std::fs::read_link(process.join(link)).is_ok_and(|to| to.starts_with(&entry.mountpoint));
    ["cwd", "root", "exe"].into_iter().any(inside) || has_open(process, entry) || has_mapped(process, entry)
}

fn has_open(process: &Path, entry: &Entry) -> bool {
    let Ok(descriptors) = std::fs::read_dir(process.join("fdinfo")) else { return false };
    let id = entry.id.to_string();
    descriptors.flatten().any(|descriptor| {
        let info = std::fs::read_to_string(descriptor.path()).unwrap_or_default();
        info.lines().filter_map(|line| line.strip_prefix("mnt_id:")).any(|value| value.trim() == id)
    })
}

fn has_mapped(process: &Path, entry: &Entry) -> bool {
    let device = format!("{:02x}:{:02x}", libc::major(entry.dev), libc::minor(entry.dev));
    let maps = std::fs::read(process.join("maps")).unwrap_or_default();
    String::from_utf8_lossy(&maps).lines().any(|line| line.split(' ').nth(3) == Some(&device))
}
