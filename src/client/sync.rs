//! Making durable what was written: a file of a pool, or all of it. The kernel does not tell a FUSE filesystem of sync(2)
//! and syncfs(2), so there is a door for that.

use std::fs::File;
use std::path::Path;

use rustix::fs::{Mode, OFlags, XattrFlags, open, setxattr, syncfs};
use rustix::io::Errno;

use super::doors::{failed, not_here};
use super::xattr;
use crate::error::{Context, Result};
use crate::protocol;

/// Makes durable what was written so far to anything in the pool that the directory `path` lies in, names included. For
/// root and the user who mounted the pool.
pub fn sync_pool(path: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(path, flags, Mode::empty()).map_err(|e| failed("sync", path, e))?;
    // What programs have stored through mappings comes to the daemon with this, and no more than that.
    syncfs(&root).map_err(|e| failed("sync", path, e))?;
    setxattr(path, protocol::FLUSH, b"sync", XattrFlags::empty()).map_err(|e| match e {
        e if xattr::absent(e) => not_here("sync", path),
        Errno::PERM | Errno::ACCESS => failed("sync a whole pool", path, e)
            .remedy("root and the user who mounted it may do that; of a file that you can read: clonefs sync FILE"),
        e => failed("sync", path, e),
    })
}

/// Makes one file durable, with its name.
pub fn sync_file(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).context("sync", path)
}
