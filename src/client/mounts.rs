//! Which clonefs mount a path or an open file lies on. The kernel is asked and not the daemon, so that a mount whose
//! daemon has died is found as well.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::daemon::mount::table;
pub use crate::daemon::mount::table::Entry as Mount;
use crate::error::{Context, Error, Kind, Result};

/// All clonefs mounts that this process can see, in the order in which they were mounted.
pub fn mounts() -> Result<Vec<Mount>> {
    Ok(table::mounts()?.into_iter().filter(|m| m.fs_type == table::FS_TYPE).collect())
}

/// The clonefs mount that `path` lies on; `None` when it lies elsewhere.
pub fn mount_at(path: &Path) -> Result<Option<Mount>> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => mount_of(&fd),
        // The root of a mount whose daemon has died cannot even be opened: its name is all there is.
        Err(Errno::NOTCONN) => {
            let path = std::path::absolute(path).context("find the path of", path)?;
            let above = mounts()?.into_iter().filter(|m| path.starts_with(&m.mountpoint));
            Ok(above.max_by_key(|m| m.mountpoint.as_os_str().len()))
        }
        Err(e) => Err(Error::io("open", e.into()).at(path)),
    }
}

/// The mount of the pool that `path` lies in without being reached through that mount; `None` if there is none or it
/// cannot be told.
pub fn mount_over(path: &Path) -> Option<Mount> {
    let path = path.canonicalize().ok()?;
    mounts().ok()?.into_iter().rev().find(|m| path.starts_with(m.pool()))
}

/// The clonefs mount that an open file lies on.
pub fn mount_of(file: &impl AsFd) -> Result<Option<Mount>> {
    let name = format!("/proc/self/fdinfo/{}", file.as_fd().as_raw_fd());
    let text = fs::read_to_string(&name).context("find the mount of an open file", &name)?;
    let id = text.lines().find_map(|l| l.strip_prefix("mnt_id:")).and_then(|id| id.trim().parse::<u64>().ok());
    let id = id.ok_or_else(|| Error::new(Kind::Unsupported, "find the mount of an open file").at(&name))?;
    Ok(mounts()?.into_iter().find(|m| m.id == id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_outside_of_any_pool_have_no_mount() {
        assert_eq!(mount_at(Path::new("/proc/self")).unwrap(), None);
        assert_eq!(mount_over(Path::new("/proc")), None);
        let error = mount_at(Path::new("/no/such/place")).unwrap_err();
        assert_eq!(error.os_error(), Some(libc::ENOENT));
    }
}
