//! One daemon a pool: a lock on the pool's root directory, which ends with the process whatever happens to it.

use crate::error::{Error, Kind, Result};
use std::os::unix::fs::MetadataExt;

use crate::io::{FileKey, Fs};

/// Takes the lock, or says who has it. A simulated filesystem has none.
pub fn acquire(fs: &dyn Fs) -> Result<()> {
    let Some(fd) = fs.root_fd() else { return Ok(()) };
    // SAFETY: fd is the open descriptor of the pool's root directory.
    if unsafe { libc::flock(fd, libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::EWOULDBLOCK) {
        // A filesystem without locks (some network ones): serving it is worth more than the check.
        return Ok(());
    }
    let holder = holder(fs).map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
    Err(Error::new(Kind::Locked, "open pool")
        .because(format!("{holder} serves it"))
        .remedy("`clonefs unmount` it first, or work through its mount"))
}

/// Lets go of the lock.
pub fn release(fs: &dyn Fs) {
    if let Some(fd) = fs.root_fd() {
        // SAFETY: fd is the open descriptor of the pool's root directory.
        unsafe { libc::flock(fd, libc::LOCK_UN) };
    }
}

/// The process that holds the lock, from /proc/locks: `1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF`. The device
/// there is not always the one that stat(2) shows (btrfs has one for each subvolume), so the inode number makes a
/// candidate, and an open descriptor of the directory the answer.
fn holder(fs: &dyn Fs) -> Option<u32> {
    let root = fs.stat(std::path::Path::new("")).ok()?.key;
    let inode = format!(":{}", root.ino);
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let candidate = fields.get(1) == Some(&"FLOCK") && fields.get(5).is_some_and(|file| file.ends_with(&inode));
        let pid = candidate.then(|| fields[4].parse().ok())??;
        has_open(pid, root).then_some(pid)
    })
}

fn has_open(pid: u32, root: FileKey) -> bool {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.flatten().any(|descriptor| {
        let meta = std::fs::metadata(descriptor.path());
        meta.is_ok_and(|meta| meta.dev() == root.dev && meta.ino() == root.ino)
    })
}
