//! QEMU's image locks: is a virtual machine writing to this image? Programs of QEMU that open a file take shared
//! locks on single bytes of it, one per permission they use and one per permission they do not share with others.

use std::fs::File;
use std::os::fd::AsRawFd;

/// The byte whose lock means "I write".
const WRITES: i64 = 100 + 1;
/// The byte whose lock means "nobody else may write".
const UNSHARED_WRITES: i64 = 200 + 1;

/// What the locks say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody writes, or the filesystem has no locks.
    Quiet,
    /// A program of QEMU has it open for writing.
    Written,
}

/// Says for as long as `file` is open that nobody may write, and whether somebody does.
pub fn lock(file: &File) -> State {
    // In this order: a writer that starts between the two calls sees our lock, one that started before is seen.
    let _ = call(file, libc::F_OFD_SETLK, libc::F_RDLCK, UNSHARED_WRITES);
    match call(file, libc::F_OFD_GETLK, libc::F_WRLCK, WRITES) {
        Some(found) if found != libc::F_UNLCK => State::Written,
        _ => State::Quiet,
    }
}

/// One lock call on one byte; the type that it leaves in the structure.
fn call(file: &File, command: i32, kind: i32, byte: i64) -> Option<i32> {
    let mut lock = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: byte,
        l_len: 1,
        l_pid: 0, // must be 0 for locks of open file descriptions
    };
    // SAFETY: the structure is valid for the time of the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    (result == 0).then_some(lock.l_type.into())
}
