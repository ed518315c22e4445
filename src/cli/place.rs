//! Which mounted pool, or which place in it, a command is about.

use std::path::{Path, PathBuf};

use crate::client::{self, Mount, mount_at, mount_over, mounts};
use crate::error::{Error, Kind, Result};

/// The directory or volume to look at: the path that was given, or the root of the mount that the current directory is
/// on. A path in a pool that is mounted elsewhere stands for that in its mount.
pub fn resolve(path: Option<&Path>) -> Result<PathBuf> {
    match path {
        None => match mount_at(Path::new("."))? {
            Some(mount) => Ok(mount.mountpoint),
            None => Err(nowhere()),
        },
        Some(path) if mount_at(path)?.is_some() => Ok(path.to_path_buf()),
        Some(path) => through_mount(path).ok_or_else(|| client::not_here("find the pool of", path)),
    }
}

/// The path in a mount of what `path` names in the pool itself.
fn through_mount(path: &Path) -> Option<PathBuf> {
    let mount = mount_over(path)?;
    let full = path.canonicalize().ok()?;
    let below = full.strip_prefix(mount.pool()).ok()?;
    Some(if below.as_os_str().is_empty() { mount.mountpoint } else { mount.mountpoint.join(below) })
}

/// As [`resolve`], for what concerns whole pools: without a path, and outside of all pools, it is all of them.
pub fn resolve_all(path: Option<&Path>) -> Result<Vec<PathBuf>> {
    if path.is_none() && mount_at(Path::new("."))?.is_none() {
        let points: Vec<PathBuf> = mounts()?.into_iter().map(|m| m.mountpoint).collect();
        return if points.is_empty() { Err(nowhere()) } else { Ok(points) };
    }
    Ok(vec![resolve(path)?])
}

/// The pool that is mounted at exactly `mountpoint`, as the mount table has it.
pub fn pool_at(mountpoint: &Path) -> String {
    let mounts = mounts().unwrap_or_default();
    let mount = mounts.iter().rev().find(|mount| mount.mountpoint == mountpoint);
    mount.map(|mount| mount.pool().to_string_lossy().into_owned()).unwrap_or_default()
}

/// Whether `path` is the root of a mount, and so stands for the pool.
pub fn is_root(path: &Path) -> Result<bool> {
    let Some(Mount { mountpoint, .. }) = mount_at(path)? else { return Ok(false) };
    Ok(path.canonicalize().is_ok_and(|path| path == mountpoint))
}

fn nowhere() -> Error {
    let points: Vec<String> = mounts().unwrap_or_default().iter().map(|m| format!("{:?}", m.mountpoint)).collect();
    let remedy = match points.is_empty() {
        true => "no pool is mounted: clonefs mount DIRECTORY".to_owned(),
        false => format!("name one of these: {}", points.join(", ")),
    };
    Error::new(Kind::Unsupported, "find the pool of the current directory")
        .because("not on a mounted pool")
        .remedy(remedy)
}
