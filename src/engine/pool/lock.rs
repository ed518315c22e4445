//! One daemon a pool, which ends with the process whatever happens to it.
//!
//! Two locks say so. That on `.clonefs`, which only its owner can open, is the one that counts between daemons of this
//! version. Older ones, and pools that have no `.clonefs` yet, know the lock on the pool's root directory alone. Whoever
//! may read that directory can take it: one that belongs to a stranger's process is passed over, and taken when the
//! stranger lets go of it, so that an older daemon finds it taken.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, openat};
use rustix::io::Errno;

use super::elsewhere::{Kinds, key_of};
use crate::engine::io::effective_uid;
use crate::engine::io::{FileKey, Fs};
use crate::engine::store::{DIR, check_owner};
use crate::error::{Context, Error, Kind, Result};
use crate::sync::atomic::{AtomicBool, Ordering};

/// How often it is tried to get the lock that a stranger has.
const AGAIN: Duration = Duration::from_millis(500);
/// Whoever has a lock may let go of it, or pass it on, while we look.
const LOOKS: usize = 3;

/// The locks, until this is dropped.
pub(super) struct Held {
    /// On `.clonefs`, where there is one.
    inside: Option<OwnedFd>,
    /// On the root directory; this is one of several descriptors of one lock.
    root: Option<Arc<OwnedFd>>,
    /// It is no longer wanted.
    ended: Arc<AtomicBool>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Not left to the closing of the descriptors: a child that was just forked can have them for a moment more.
        for fd in self.inside.iter().chain(self.root.as_deref()) {
            let _ = flock(fd, FlockOperation::Unlock);
        }
    }
}

/// What came of trying to take a lock.
#[derive(PartialEq, Eq)]
enum Try {
    Taken,
    /// Somebody else has it.
    Refused,
    /// The filesystem has no locks (some network ones): serving it is worth more than the check.
    Impossible,
}

fn try_lock(fd: impl AsFd, how: FlockOperation) -> Try {
    match flock(fd, how) {
        Ok(()) => Try::Taken,
        Err(Errno::WOULDBLOCK) => Try::Refused,
        Err(_) => Try::Impossible,
    }
}

/// Takes the locks, or says who has them. A simulated filesystem has none.
///
/// # Errors
/// [`Kind::Locked`]: another daemon serves the pool. [`Kind::Permission`]: `.clonefs` is a stranger's.
pub(super) fn acquire(fs: &dyn Fs) -> Result<Held> {
    let mut held = Held { inside: None, root: None, ended: Arc::default() };
    let Some(root) = fs.root_fd() else { return Ok(held) };
    // SAFETY: fs keeps its root directory open for as long as it lives, and the borrow ends in this function.
    let root = unsafe { BorrowedFd::borrow_raw(root) };
    held.inside = lock_inside(root)?;
    let own = root.try_clone_to_owned().map_err(|e| Error::io("open pool", e))?;
    held.root = Some(Arc::new(own));
    let mut looks = 0;
    while try_lock(root, FlockOperation::NonBlockingLockExclusive) == Try::Refused {
        looks += 1;
        match holder(root) {
            Holder::Strangers => {
                settle_with_strangers(fs, root, &mut held)?;
                break;
            }
            Holder::Nobody if looks < LOOKS => std::thread::sleep(Duration::from_millis(20)),
            Holder::Nobody => return Err(locked("another process")),
            Holder::Daemon(pid) => return Err(locked(&format!("process {pid}"))),
        }
    }
    Ok(held)
}

fn locked(who: &str) -> Error {
    Error::new(Kind::Locked, "open pool")
        .because(format!("{who} serves it"))
        .remedy("`clonefs unmount` it first, or work through its mount")
}

/// Takes the lock on `.clonefs`, if there is one, after a look at whose it is.
fn lock_inside(root: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inside = match openat(root, DIR, flags, Mode::empty()) {
        Ok(inside) => inside,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return Err(Error::new(Kind::Damaged, "open pool").at(DIR).because("it is no directory"));
        }
        // What follows says the same of each file that it wants.
        Err(Errno::ACCESS) => return Ok(None),
        Err(error) => return Err(Error::io("open pool", error.into()).at(DIR)),
    };
    let look = |fd: BorrowedFd<'_>| fstat(fd).map_err(|e| Error::io("look at", e.into()).at(DIR));
    let (whose, above) = (look(inside.as_fd())?, look(root)?);
    check_owner((whose.st_uid, whose.st_mode), above.st_uid, effective_uid())?;
    match try_lock(&inside, FlockOperation::NonBlockingLockExclusive) {
        Try::Refused => Err(locked(&match holder(inside.as_fd()) {
            Holder::Daemon(pid) => format!("process {pid}"),
            _ => "another process".to_owned(),
        })),
        _ => Ok(Some(inside)),
    }
}

/// Strangers have the lock on the root directory. What excludes other daemons of this version is the lock inside; older
/// ones are excluded by any lock on the root directory, which is taken as soon as it can be.
fn settle_with_strangers(fs: &dyn Fs, root: BorrowedFd<'_>, held: &mut Held) -> Result<()> {
    if held.inside.is_none() {
        match fs.mkdir(Path::new(DIR), 0o700) {
            Err(e) if e.raw_os_error() == Some(libc::EROFS) => return Ok(()),
            Err(e) if e.raw_os_error() != Some(libc::EEXIST) => {
                return Err(e).context("make metadata directory", DIR);
            }
            _ => held.inside = lock_inside(root)?,
        }
    }
    if try_lock(root, FlockOperation::NonBlockingLockShared) != Try::Refused {
        return Ok(());
    }
    tracing::warn!("another user's process has a lock on the pool's directory; it is passed over");
    let (Some(own), ended) = (held.root.clone(), held.ended.clone()) else { return Ok(()) };
    let wait = move || {
        while !ended.load(Ordering::Acquire)
            && try_lock(own.as_ref(), FlockOperation::NonBlockingLockShared) == Try::Refused
        {
            std::thread::sleep(AGAIN);
        }
        if ended.load(Ordering::Acquire) {
            let _ = flock(own.as_ref(), FlockOperation::Unlock);
        }
    };
    let thread = std::thread::Builder::new().name("clonefs-lock".into()).spawn(wait);
    thread.map(drop).map_err(|e| Error::io("start background thread", e))
}

/// Who has a lock on a directory.
#[derive(Debug, PartialEq, Eq)]
enum Holder {
    /// Nobody that can be seen.
    Nobody,
    /// Only processes that other users started.
    Strangers,
    /// One of root, of our own user, or of the directory's owner.
    Daemon(u32),
}

/// Looks for the processes that hold a lock on a directory: those whose descriptors of it have one (whoever took it), and
/// the one that took it (its descriptor can be on its way to another process). A stranger could start a set-user-ID
/// program that inherits the lock: its real user tells.
fn holder(directory: BorrowedFd<'_>) -> Holder {
    let Ok(stat) = fstat(directory) else { return Holder::Nobody };
    let key = FileKey { dev: stat.st_dev, ino: stat.st_ino };
    let ours = [0, effective_uid(), stat.st_uid];
    let mut strangers = false;
    let certain = with_lock(key).into_iter().map(|pid| (pid, true));
    for (pid, certain) in certain.chain(took_lock(key.ino).into_iter().map(|pid| (pid, false))) {
        match real_user(pid) {
            Some(uid) if ours.contains(&uid) && (certain || may_have_open(pid, key)) => return Holder::Daemon(pid),
            Some(uid) if !ours.contains(&uid) => strangers = true,
            _ => {}
        }
    }
    if strangers { Holder::Strangers } else { Holder::Nobody }
}

/// Processes with a descriptor of a directory through which it is locked.
fn with_lock(key: FileKey) -> Vec<u32> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        for fd in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let Some(fd) = fd.file_name().to_str().map(str::to_owned) else { continue };
            let info = || std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
            let locked = |line: &str| line.starts_with("lock:") && line.contains("FLOCK");
            if key_of(&format!("/proc/{pid}/fd/{fd}"), Kinds::Directories) == Some(key) && info().lines().any(locked) {
                found.push(pid);
            }
        }
    }
    found
}

/// Processes that took a lock on an inode of this number, from /proc/locks: `1: FLOCK ADVISORY WRITE PID
/// MAJOR:MINOR:INODE 0 EOF`. The device there is not always the one that stat(2) shows (btrfs has one for each
/// subvolume), so a process of ours is named only if it has the directory open.
fn took_lock(inode: u64) -> Vec<u32> {
    let inode = format!(":{inode}");
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let pid = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let candidate = fields.get(1) == Some(&"FLOCK") && fields.get(5).is_some_and(|file| file.ends_with(&inode));
        candidate.then(|| fields[4].parse().ok()).flatten()
    };
    locks.lines().filter_map(pid).collect()
}

/// Whether a process has a directory open, as far as that can be seen.
fn may_have_open(pid: u32, directory: FileKey) -> bool {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return true };
    descriptors.flatten().any(|descriptor| {
        let meta = std::fs::metadata(descriptor.path());
        meta.is_ok_and(|meta| meta.dev() == directory.dev && meta.ino() == directory.ino)
    })
}

/// The user that started a process.
fn real_user(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    users.split_whitespace().next()?.parse().ok()
}
