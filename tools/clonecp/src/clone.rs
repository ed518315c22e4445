//! Clones: a destination that shares the source's blocks until one of the two is written.
//!
//! Two doors. On a clonefs mount the daemon is asked: a token read from the open source proves that we may read it, and
//! an ioctl on the open, empty destination hands it over. FICLONE never reaches a FUSE daemon. Everywhere else the
//! kernel is asked with FICLONE. The ioctls rather than the virtual attributes: an attribute of that name can be
//! planted in a file on any filesystem, and setting one there would look like success.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use clonefs::protocol::{CLONE_NO_COPY, IOC_CLONE, IOC_TOKEN};

use crate::stat::Stat;

/// A token of the daemon.
type Token = [u8; 16];

/// What [`IOC_CLONE`] takes.
#[repr(C)]
struct Request {
    token: Token,
    /// 0: the source's.
    size: u64,
    flags: u64,
}

const _: () = assert!(size_of::<Request>() == 32, "the size is part of the ioctl's number");

/// Makes the empty file `to` a clone of the file `from`; both with their attributes. On failure `to` is still empty.
pub fn clone(from: (&File, &Stat), to: (&File, &Stat)) -> io::Result<()> {
    // A driver might understand anything by our ioctls, and a token is for the mount that it came from.
    let perhaps = from.1.is_file() && to.1.is_file() && from.1.dev == to.1.dev;
    let (from, to) = (from.0, to.0);
    let refused = match if perhaps { ask_daemon(from, to) } else { None } {
        Some(Ok(())) => return Ok(()),
        Some(Err(e)) => Some(e),
        None => None,
    };
    // The daemon knows better why it does not work than FICLONE, which it never sees.
    rustix::fs::ioctl_ficlone(to, from).map_err(|e| refused.unwrap_or_else(|| e.into()))
}

/// Clones through the daemon. `None`: there is none behind this filesystem.
fn ask_daemon(from: &File, to: &File) -> Option<io::Result<()>> {
    let mut token: Token = [0; 16];
    // SAFETY: the number says that 16 bytes are written, which is what `token` has room for; `from` is open.
    let asked = unsafe { libc::ioctl(from.as_raw_fd(), libc::c_ulong::from(IOC_TOKEN), &raw mut token) };
    if asked != 0 {
        let error = io::Error::last_os_error();
        return if is_no_door(&error) { None } else { Some(Err(error)) };
    }
    let request = Request { token, size: 0, flags: CLONE_NO_COPY };
    // SAFETY: the number says that 32 bytes are read, which is what `request` has; `to` is open.
    let asked = unsafe { libc::ioctl(to.as_raw_fd(), libc::c_ulong::from(IOC_CLONE), &raw const request) };
    if asked == 0 {
        return Some(Ok(()));
    }
    let error = io::Error::last_os_error();
    // Should the answer to a clone that was made have been lost, what is copied next must not lie over it.
    Some(to.set_len(0).and(Err(error)))
}

/// Another filesystem's answer to an ioctl that it does not know.
fn is_no_door(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS | libc::EPERM))
}
