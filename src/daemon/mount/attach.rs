//! Putting the filesystem into the tree: mount(2) where that is allowed, fusermount3 otherwise.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use libc::c_ulong;

use super::fusermount;
use super::options::{Access, Options};
use super::table::FS_TYPE;
use crate::daemon::fuse::Adapter;
use crate::engine::io::{effective_gid, effective_uid};
use crate::error::{Context, Error, Kind, Result};

/// Flags of the backing mount that a mount over it takes over: who could not run a setuid program there before must not
/// be able to now.
const INHERITED: c_ulong = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// A file that is open for writing keeps a mount from becoming read-only; one that was just closed is waited for.
const REMOUNT_TRIES: u32 = 50;
const REMOUNT_PAUSE: Duration = Duration::from_millis(10);

/// Flags of mount(2) for these options on a filesystem mounted with `backing` (as statvfs(3) shows them).
pub fn flags(options: &Options, backing: c_ulong) -> c_ulong {
    // `rw` cannot make a read-only filesystem writable.
    let kept = backing & INHERITED & !(options.cleared & !libc::MS_RDONLY);
    options.set | kept
}

/// `f_flag` of the filesystem of an open directory; its values are those of mount(2).
pub fn flags_of(directory: &OwnedFd) -> io::Result<c_ulong> {
    let mut status = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: status has room for a statvfs and is read only after success.
    if unsafe { libc::fstatvfs(directory.as_raw_fd(), status.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fstatvfs filled it.
    Ok(unsafe { status.assume_init() }.f_flag)
}

/// Who may use the mount.
pub fn access(options: &Options) -> Access {
    options.access.unwrap_or(if effective_uid() == 0 { Access::All } else { Access::Owner })
}

/// Mounts and shakes hands with the kernel. `source` is what the mount table will show.
pub fn attach(
    adapter: impl FnOnce() -> Result<Adapter>,
    source: &Path,
    mountpoint: &Path,
    flags: c_ulong,
    options: &Options,
) -> Result<Session<Adapter>> {
    let mut config = Config::default();
    config.n_threads = Some(options.threads.min(most_threads()));
    config.clone_fd = true;
    config.acl = match access(options) {
        Access::Owner => SessionACL::Owner,
        Access::OwnerAndRoot => SessionACL::RootAndOwner,
        Access::All => SessionACL::All,
    };
    let device = match mount_directly(source, mountpoint, flags, options) {
        // Only root may mount; fusermount3 does it for others, and opens the device for those who may not.
        Err(error) if effective_uid() != 0 && matches!(error.os_error(), Some(libc::EPERM | libc::EACCES)) => {
            fusermount::mount(source, mountpoint, flags, access(options))?
        }
        device => device?,
    };
    Session::from_fd(adapter()?, device, config.acl, config).map_err(|error| Error::io("mount", error).at(mountpoint))
}

fn mount_directly(source: &Path, mountpoint: &Path, flags: c_ulong, options: &Options) -> Result<OwnedFd> {
    let device = open_device()?;
    mount(&device, source, mountpoint, flags, access(options)).context("mount", mountpoint)?;
    Ok(device.into())
}

fn open_device() -> Result<File> {
    let path = "/dev/fuse";
    OpenOptions::new().read(true).write(true).open(path).map_err(|error| {
        let remedy = match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV) => {
                "the kernel lacks FUSE: `modprobe fuse`, or start the container with it"
            }
            _ => "allow access to the device",
        };
        Error::io("open", error).at(path).remedy(remedy)
    })
}

fn mount(device: &File, source: &Path, mountpoint: &Path, flags: c_ulong, access: Access) -> io::Result<()> {
    let c_path = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from);
    let c_text = |text: String| CString::new(text).map_err(io::Error::from);
    let other = if access == Access::Owner { "" } else { ",allow_other" };
    let data = c_text(format!(
        "fd={},rootmode={:o},user_id={},group_id={},default_permissions{other}",
        device.as_raw_fd(),
        libc::S_IFDIR,
        effective_uid(),
        effective_gid(),
    ))?;
    let (source, target, fs_type) = (c_path(source)?, c_path(mountpoint)?, c_text(FS_TYPE.to_owned())?);
    let (source, target, fs_type) = (source.as_ptr(), target.as_ptr(), fs_type.as_ptr());
    // SAFETY: all strings are NUL-terminated and live until the call returns.
    let result = unsafe { libc::mount(source, target, fs_type, flags, data.as_ptr().cast()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives a mount other flags.
pub fn remount(mountpoint: &Path, flags: c_ulong) -> Result<()> {
    let target = CString::new(mountpoint.as_os_str().as_bytes())
        .map_err(|e| Error::new(Kind::Invalid, "remount").at(mountpoint).because(e))?;
    let null = std::ptr::null();
    for attempt in 1.. {
        // ST_VALID (32) of statvfs(3) has the number of MS_REMOUNT, and the others above mean the same in both.
        // SAFETY: the path is NUL-terminated; a remount takes no source, and this one no type and no data.
        let result = unsafe { libc::mount(null, target.as_ptr(), null, flags | libc::MS_REMOUNT, null.cast()) };
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            _ if result == 0 => break,
            // The kernel tells us of a closed file after close(2) has returned, and counts it as open until then.
            Some(libc::EBUSY) if attempt < REMOUNT_TRIES => std::thread::sleep(REMOUNT_PAUSE),
            _ => return Err(error).context("remount", mountpoint),
        }
    }
    Ok(())
}

/// Fails early where a pool cannot be served at all.
pub fn check_directory(path: &Path) -> Result<()> {
    let meta = std::fs::metadata(path).context("mount", path)?;
    if meta.is_dir() {
        return Ok(());
    }
    Err(Error::new(Kind::Io, "mount").at(path).because(io::Error::from_raw_os_error(libc::ENOTDIR)))
}

/// Each thread takes a descriptor: an eighth of those that there are is enough for them.
fn most_threads() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / 8).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::mount::options;

    #[test]
    fn a_mount_is_not_more_generous_than_what_it_covers() {
        let backing = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_RELATIME;
        assert_eq!(flags(&options::parse("").unwrap(), backing), libc::MS_NOSUID | libc::MS_NODEV);
        assert_eq!(flags(&options::parse("suid").unwrap(), backing), libc::MS_NODEV);
        assert_eq!(flags(&options::parse("rw,noexec").unwrap(), libc::MS_RDONLY), libc::MS_RDONLY | libc::MS_NOEXEC);
    }
}
