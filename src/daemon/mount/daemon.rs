//! Leaving a process in the background that goes on serving, and telling its caller how the start went.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::error::{Error, Kind, Result};

/// Kinds by their number on the pipe.
const KINDS: [Kind; 17] = [
    Kind::Io,
    Kind::Invalid,
    Kind::NotFound,
    Kind::Exists,
    Kind::Permission,
    Kind::Busy,
    Kind::Unsupported,
    Kind::TooLarge,
    Kind::ReadOnly,
    Kind::CrossPool,
    Kind::Damaged,
    Kind::Changed,
    Kind::Latched,
    Kind::NewerFormat,
    Kind::Locked,
    Kind::Interrupted,
    Kind::NoSpace,
];
/// First byte on the pipe when all is well.
const STARTED: u8 = b'+';

/// Tells whoever started the daemon that it serves.
pub struct Ready(Option<File>);

impl Ready {
    /// For work in the foreground: nobody waits.
    pub fn nobody() -> Ready {
        Ready(None)
    }

    /// The start has succeeded. A daemon lets go of its terminal here.
    pub fn tell(&mut self) {
        if let Some(mut pipe) = self.0.take() {
            drop(pipe.write_all(&[STARTED]));
            redirect(&[libc::STDERR_FILENO]);
        }
    }

    /// Closes whatever the caller had open besides the standard streams: a pipe that somebody reads to its end, or a lock,
    /// must not be held for as long as the daemon lives.
    fn close_all_others(&self) {
        let Some(pipe) = &self.0 else { return };
        let pipe = pipe.as_raw_fd() as u32;
        let first = libc::STDERR_FILENO as u32 + 1;
        // SAFETY: no value of this process owns any of these descriptors: only the pipe was opened since it began. (An
        // empty range, or a kernel without the call, is an error that changes nothing.)
        unsafe {
            libc::syscall(libc::SYS_close_range, first, pipe - 1, 0);
            libc::syscall(libc::SYS_close_range, pipe + 1, u32::MAX, 0);
        }
    }

    fn fail(&mut self, error: &Error) {
        if let Some(mut pipe) = self.0.take() {
            let kind = KINDS.iter().position(|kind| *kind == error.kind()).unwrap_or(0) as u8;
            drop(pipe.write_all(&[&[kind], error.to_string().as_bytes()].concat()));
        }
    }
}

/// Runs `work` in a new process, and returns when that is ready or has failed. Call it while there is one thread.
///
/// # Errors
/// What `work` fails with before it is ready.
pub fn daemonise(work: impl FnOnce(&mut Ready) -> Result<()>) -> Result<()> {
    let (mut reader, writer) = pipe().map_err(|e| Error::io("start a daemon", e))?;
    // SAFETY: this process has one thread (the caller promises), so the child may do whatever the parent could.
    match unsafe { libc::fork() } {
        -1 => Err(Error::io("start a daemon", io::Error::last_os_error())),
        0 => {
            drop(reader);
            std::process::exit(in_child(Ready(Some(writer)), work))
        }
        child => {
            drop(writer);
            let mut answer = Vec::new();
            reader.read_to_end(&mut answer).map_err(|e| Error::io("wait for the daemon", e))?;
            understand(&answer, child)
        }
    }
}

fn in_child(mut ready: Ready, work: impl FnOnce(&mut Ready) -> Result<()>) -> i32 {
    // SAFETY: setsid and chdir touch no memory of ours.
    unsafe {
        libc::setsid();
        // So that the daemon keeps no other filesystem busy.
        libc::chdir(c"/".as_ptr());
    }
    redirect(&[libc::STDIN_FILENO, libc::STDOUT_FILENO]);
    ready.close_all_others();
    match work(&mut ready) {
        Ok(()) => 0,
        Err(error) => {
            ready.fail(&error);
            1
        }
    }
}

fn understand(answer: &[u8], child: libc::pid_t) -> Result<()> {
    match answer.split_first() {
        Some((&STARTED, _)) => Ok(()),
        Some((&kind, text)) => {
            let kind = KINDS.get(usize::from(kind)).copied().unwrap_or(Kind::Io);
            Err(Error::new(kind, "mount").because(String::from_utf8_lossy(text).into_owned()))
        }
        None => {
            let mut status = 0;
            // SAFETY: status is a valid place for the result; child is ours and was not waited for yet.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            let how = if libc::WIFSIGNALED(status) {
                format!("the daemon was killed by signal {} before the mount was there", libc::WTERMSIG(status))
            } else {
                "the daemon ended before the mount was there".to_owned()
            };
            Err(Error::new(Kind::Io, "mount").because(how))
        }
    }
}

fn pipe() -> io::Result<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: ends has room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both descriptors are new and owned by nobody else.
    Ok(unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) })
}

/// Points descriptors at /dev/null.
fn redirect(descriptors: &[i32]) {
    let path: &CStr = c"/dev/null";
    // SAFETY: path is NUL-terminated.
    let null = unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if null < 0 {
        return;
    }
    // SAFETY: the descriptor was just opened and is owned by nobody else.
    let null = unsafe { OwnedFd::from_raw_fd(null) };
    for &descriptor in descriptors {
        // SAFETY: both are descriptors of this process; the standard streams are owned by no value.
        unsafe { libc::dup2(null.as_raw_fd(), descriptor) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_daemon_arrives_with_its_kind_and_text() {
        let error = Error::new(Kind::Locked, "open pool").at("/p").because("process 7 serves it");
        let (mut reader, writer) = pipe().unwrap();
        Ready(Some(writer)).fail(&error);
        let mut answer = Vec::new();
        reader.read_to_end(&mut answer).unwrap();
        let arrived = understand(&answer, 0).unwrap_err();
        assert_eq!(arrived.kind(), Kind::Locked);
        assert!(arrived.to_string().contains("process 7 serves it"), "{arrived}");
    }

    #[test]
    fn every_kind_can_be_told() {
        // A kind that is missing here would arrive as an I/O error.
        for kind in KINDS {
            assert_eq!(KINDS.iter().filter(|other| **other == kind).count(), 1);
        }
    }
}
