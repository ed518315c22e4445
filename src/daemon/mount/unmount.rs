//! `clonefs unmount`: make everything durable, detach the mount, wait until its daemon is gone.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::holders;
use super::table::{self, Entry, FS_TYPE};
use crate::error::{Context, Error, Kind, Result};
use crate::protocol::{FLUSH, PoolStatus, STATUS};

/// How to unmount.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unmount {
    /// Take the mount out of the tree at once, whoever uses it, and do not wait for its daemon.
    pub lazy: bool,
    /// Give up after this time. What was begun goes on: the error says how far it came.
    pub timeout: Option<Duration>,
}

/// Time without a word: then it is said what is waited for, and again each time that changes.
const SILENCE: Duration = Duration::from_millis(1500);
/// How often whoever is waited for is looked up.
const LOOK: Duration = Duration::from_secs(1);

/// Unmounts the clonefs mount at `path`, which may also be the path of a pool that is mounted elsewhere. `say` is told what
/// is waited for once that takes more than two seconds.
///
/// Without `lazy` it returns when everything is durable and the daemon has ended. With `lazy` the mount is taken out of
/// the tree at once, and its daemon goes on until the last open file is closed; nobody waits for that.
///
/// # Errors
/// [`Kind::NotFound`]: no clonefs mount there. [`Kind::Busy`]: in use, or not done in time; the error names who is in the
/// way. A failed flush is reported after the unmount.
pub fn unmount(path: &Path, how: Unmount, say: &mut dyn FnMut(&str)) -> Result<()> {
    let entry = find(path)?;
    let (steps, heard) = channel();
    let work = {
        let entry = entry.clone();
        move || {
            let result = work(&entry, how.lazy, &steps);
            // Nobody listens any more: the time is over.
            let _ = steps.send(Heard::Done(result));
        }
    };
    // On a thread of its own, because any call on a mount whose daemon hangs may never return.
    std::thread::Builder::new().name("unmount".to_owned()).spawn(work).map_err(|e| Error::io("start a thread", e))?;
    let (begun, mut step, mut said) = (Instant::now(), Step::Ask, String::new());
    loop {
        let left = how.timeout.map_or(LOOK, |limit| limit.saturating_sub(begun.elapsed()));
        let silent = if said.is_empty() { SILENCE.saturating_sub(begun.elapsed()) } else { LOOK };
        match heard.recv_timeout(left.min(silent)) {
            Ok(Heard::Done(result)) => return result,
            Ok(Heard::Step(next)) => step = next,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::new(Kind::Io, "unmount").at(&entry.mountpoint).because("the work has ended early"));
            }
        }
        let over = how.timeout.is_some_and(|limit| begun.elapsed() >= limit);
        if !over && begun.elapsed() < SILENCE {
            continue;
        }
        let now = step.describe(&entry);
        if over {
            let error =
                Error::new(Kind::Busy, "unmount").at(&entry.mountpoint).because(format!("not done in time: {now}"));
            return Err(error.remedy("it goes on by itself; unmount again to wait for it"));
        }
        if now != said {
            say(&format!("unmount {:?}: {now}", entry.mountpoint));
            said = now;
        }
    }
}

/// What the thread that unmounts tells.
enum Heard {
    Step(Step),
    Done(Result<()>),
}

/// What it waits for.
#[derive(Clone, Copy)]
enum Step {
    /// An answer of the daemon.
    Ask,
    /// The daemon, which writes everything out.
    Flush,
    /// The kernel.
    Detach,
    /// The end of this process.
    End(u32),
}

impl Step {
    fn describe(self, entry: &Entry) -> String {
        let daemon = match self {
            Step::Ask => return "waiting for an answer of its daemon".to_owned(),
            Step::Flush => return "waiting until everything is durable".to_owned(),
            Step::Detach => return "waiting for the kernel to take it out of the tree".to_owned(),
            Step::End(daemon) => daemon,
        };
        let holders = holders::holders_of(entry);
        if holders.is_empty() {
            return format!(
                "it is out of the tree; waiting until its daemon, process {daemon}, has written everything out"
            );
        }
        let verb = if holders.len() == 1 { "holds" } else { "hold" };
        format!(
            "it is out of the tree, but its daemon, process {daemon}, goes on: {} still {verb} it",
            holders.join(", ")
        )
    }
}

fn work(entry: &Entry, lazy: bool, steps: &Sender<Heard>) -> Result<()> {
    let tell = |step| drop(steps.send(Heard::Step(step)));
    let mountpoint = &entry.mountpoint;
    if is_dead(mountpoint) {
        return detach(mountpoint, true);
    }
    let daemon = daemon_of(mountpoint);
    tell(Step::Flush);
    let flushed = flush(mountpoint);
    tell(Step::Detach);
    if let Err(error) = detach(mountpoint, lazy) {
        return Err(if error.kind() == Kind::Busy { busy(entry) } else { error });
    }
    if let (Some((pid, daemon)), false) = (daemon, lazy) {
        tell(Step::End(pid));
        wait_for_exit(&daemon).context("wait for the daemon of", mountpoint)?;
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
        let error = Error::new(Kind::NotFound, "unmount").at(&path);
        match holders::lingering(&path) {
            Some(lingering) => {
                error.because(format!("no clonefs mount here; {}", lingering.says())).remedy(lingering.remedy())
            }
            None => error.because("no clonefs mount here").remedy("`findmnt -t fuse.clonefs` lists them"),
        }
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
fn daemon_of(mountpoint: &Path) -> Option<(u32, OwnedFd)> {
    let status = status(mountpoint)?;
    // SAFETY: pidfd_open takes a pid and flags; no memory is passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, status.pid as libc::pid_t, 0) };
    // SAFETY: the call gave a new descriptor that nobody else owns.
    (fd >= 0).then(|| (status.pid, unsafe { OwnedFd::from_raw_fd(fd as i32) }))
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
    let users = holders::users_of(entry);
    let cause = if users.is_empty() { "in use".to_owned() } else { format!("in use by {}", users.join(", ")) };
    Error::new(Kind::Busy, "unmount")
        .at(&entry.mountpoint)
        .because(cause)
        .remedy("close its files and leave its directories, or unmount with --lazy")
}
