//! Mounting for an ordinary user: fusermount3 does it, and hands the device over through a socket.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use libc::c_ulong;

use super::options::Access;
use super::table::FS_TYPE;
use crate::error::{Error, Kind, Result};

/// Where fusermount3 looks for the number of its end of the socket.
const SOCKET_VARIABLE: &str = "_FUSE_COMMFD";

/// Mounts, and returns the device that requests come through.
pub fn mount(source: &Path, mountpoint: &Path, flags: c_ulong, access: Access) -> Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| Error::io("talk to fusermount3", e))?;
    let number = theirs.as_raw_fd();
    let mut command = Command::new("fusermount3");
    command.arg("-o").arg(words(source, flags, access).join(",")).arg("--").arg(mountpoint);
    command.env(SOCKET_VARIABLE, number.to_string()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // SAFETY: between fork and exec only fcntl is called, on a descriptor that is open.
    unsafe { command.pre_exec(move || keep_on_exec(number)) };
    let child = command
        .spawn()
        .map_err(|e| Error::io("run fusermount3", e).remedy("install the package fuse3, or mount as root"))?;
    drop(theirs);
    let device = receive(&ours);
    let output = child.wait_with_output().map_err(|e| Error::io("wait for fusermount3", e))?;
    match device {
        Ok(device) if output.status.success() => Ok(device),
        _ => Err(refused(&String::from_utf8_lossy(&output.stderr), mountpoint)),
    }
}

fn refused(message: &str, mountpoint: &Path) -> Error {
    let error = Error::new(Kind::Permission, "mount").at(mountpoint).because(message.trim().to_owned());
    if message.contains("user_allow_other") {
        error.remedy("only root can allow others, or let users do so by user_allow_other in /etc/fuse.conf")
    } else {
        error.remedy("an ordinary user needs a mount point of his own, and fusermount3 with its setuid bit")
    }
}

fn words(source: &Path, flags: c_ulong, access: Access) -> Vec<String> {
    // Options are split at commas that have no backslash before them.
    let name = source.to_string_lossy().replace('\\', "\\\\").replace(',', "\\,");
    let kind = FS_TYPE.trim_start_matches("fuse.");
    let mut words = vec![format!("fsname={name}"), format!("subtype={kind}"), "default_permissions".to_owned()];
    let known = [
        (libc::MS_RDONLY, "ro"),
        (libc::MS_NOSUID, "nosuid"),
        (libc::MS_NODEV, "nodev"),
        (libc::MS_NOEXEC, "noexec"),
        (libc::MS_NOATIME, "noatime"),
        (libc::MS_SYNCHRONOUS, "sync"),
        (libc::MS_DIRSYNC, "dirsync"),
    ];
    words.extend(known.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, word)| (*word).to_owned()));
    words.extend((access != Access::Owner).then(|| "allow_other".to_owned()));
    words
}

fn keep_on_exec(descriptor: RawFd) -> io::Result<()> {
    // SAFETY: fcntl with these arguments touches no memory.
    if unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Receives one descriptor, as SCM_RIGHTS of unix(7).
fn receive(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = 0u8;
    let mut data = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // Aligned as a cmsghdr must be, and large enough for one with a descriptor.
    let mut control = [0u64; 8];
    // SAFETY: all zeros is a valid msghdr.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message points to live buffers of the lengths it says.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: recvmsg has filled the message in; the macros stay within its control buffer.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null() || (*header).cmsg_level != libc::SOL_SOCKET || (*header).cmsg_type != libc::SCM_RIGHTS {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        let descriptor = libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned();
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_the_path_reaches_fusermount_as_one() {
        let words = words(Path::new("/a,b\\c"), libc::MS_RDONLY, Access::All);
        assert_eq!(words[0], "fsname=/a\\,b\\\\c");
        assert!(words.contains(&"ro".to_owned()) && words.contains(&"allow_other".to_owned()));
    }
}
