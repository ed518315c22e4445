//! Another boot of the machine, for all processes of this mount name space.
//!
//! A program can tell a crash of its own from one of the machine by the kernel's boot id. A power cut that is only
//! built, and mounted on the same machine a moment later, must not look like the former.

use std::path::{Path, PathBuf};

use clonefs::error::{Context, Result};

use crate::sys::Mount;

/// Where the kernel shows the id of this boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A boot id of our own, seen instead of the kernel's until this is dropped.
pub struct Boot {
    // Fields drop in this order: the mount goes before the file under it.
    _mount: Mount,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

impl Boot {
    /// Lays a new boot id over the kernel's. Needs a mount name space that may be changed, see [`crate::sys::isolate`].
    pub fn new() -> Result<Boot> {
        let dir = tempfile::Builder::new().prefix("crashdisk.").tempdir();
        let dir = dir.context("make directory in", std::env::temp_dir())?;
        let file = dir.path().join("boot_id");
        std::fs::write(&file, fresh()).context("write", &file)?;
        let mount = Mount::bind(&file, Path::new(BOOT_ID))?;
        Ok(Boot { _mount: mount, file, _dir: dir })
    }

    /// Another boot begins.
    pub fn next(&self) -> Result<()> {
        std::fs::write(&self.file, fresh()).context("write", &self.file)
    }
}

/// A random UUID, as the kernel writes it.
fn fresh() -> String {
    let (high, low) = (fastrand::u64(..), fastrand::u64(..));
    let group = |number: u64, shift: u32| number >> shift & 0xffff;
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}\n",
        high >> 32,
        group(high, 16),
        group(high, 0),
        group(low, 48),
        low << 16 >> 16
    )
}
