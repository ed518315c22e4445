//! Whether a file is open or mapped anywhere else.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::sys::retry;

/// Which signal tells of a lease that somebody waits for (fcntl(2)).
const F_SETSIG: libc::c_int = 10;

/// Whether the descriptor can be written through.
pub fn is_writable(file: BorrowedFd) -> bool {
    // SAFETY: the descriptor is open; the call reads its flags.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    flags != -1 && flags & libc::O_ACCMODE == libc::O_RDWR
}

/// Whether nobody else has the file open. The kernel grants a write lease for such a file only, and it counts all of them:
/// descriptors of any process, also those that only mappings hold, and the backing files of FUSE passthrough, which
/// /proc does not show. The lease is given back at once; who opens the file meanwhile waits that long.
pub fn is_sole(file: BorrowedFd) -> io::Result<bool> {
    let fd = file.as_raw_fd();
    // Who opens it meanwhile has us told by a signal. This one is ignored unless somebody asks for it; the usual one kills.
    // SAFETY: the descriptor is open; no pointers are passed.
    retry(|| unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGURG) })?;
    // SAFETY: as above.
    match retry(|| unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_WRLCK) }) {
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => return Ok(false),
        Err(error) => return Err(error),
    }
    // SAFETY: as above.
    retry(|| unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) })?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_file_is_sole_until_somebody_else_opens_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        assert!(is_writable(file.as_fd()) && is_sole(file.as_fd()).unwrap());
        for write in [false, true] {
            let other = File::options().read(true).write(write).open(&path).unwrap();
            assert!(!is_sole(file.as_fd()).unwrap());
            assert_eq!(is_writable(other.as_fd()), write);
            drop(other);
            assert!(is_sole(file.as_fd()).unwrap());
        }
    }
}
