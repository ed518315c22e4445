//! Pools above and below a directory. Whoever serves the directory as a pool would serve their files as well, and take
//! their stubs for files.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::table::{self, FS_TYPE};
use crate::engine::store::{DIR, POOL};
use crate::error::{Error, Kind, Result};

/// How long a mount looks for other pools below its directory.
const SEARCH: Duration = Duration::from_secs(2);

/// Whether a directory is a pool: it has the metadata of one.
pub fn is_pool(directory: &Path) -> bool {
    match fs::symlink_metadata(directory.join(POOL)) {
        Ok(_) => true,
        // Others may not look into it.
        Err(e) if e.raw_os_error() == Some(libc::EACCES) => {
            fs::symlink_metadata(directory.join(DIR)).is_ok_and(|meta| meta.is_dir())
        }
        Err(_) => false,
    }
}

/// The pool that `directory`, an absolute path without symbolic links, lies in.
pub fn above(directory: &Path) -> Option<PathBuf> {
    let device = fs::metadata(directory).ok()?.dev();
    let same = |path: &&Path| fs::metadata(path).is_ok_and(|meta| meta.dev() == device);
    directory.ancestors().skip(1).take_while(same).find(|path| is_pool(path)).map(Path::to_path_buf)
}

/// The first pool that is found below `directory`, an absolute path without symbolic links, within `limit`. Other
/// filesystems that are mounted there are not looked into.
pub fn below(directory: &Path, limit: Duration) -> Option<PathBuf> {
    let mounts = table::mounts().unwrap_or_default();
    let inside = |path: &Path| path != directory && path.starts_with(directory);
    if let Some(mounted) = mounts.iter().find(|entry| entry.fs_type == FS_TYPE && inside(entry.pool())) {
        return Some(mounted.pool().to_path_buf());
    }
    let until = Instant::now() + limit;
    let mut waiting = vec![directory.to_path_buf()];
    while let Some(here) = waiting.pop() {
        if here != directory && is_pool(&here) {
            return Some(here);
        }
        if Instant::now() > until {
            tracing::warn!("{directory:?} is too large to be searched for pools that lie in it");
            return None;
        }
        for entry in fs::read_dir(&here).into_iter().flatten().flatten() {
            let path = entry.path();
            let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if directory && entry.file_name() != DIR && !mounts.iter().any(|mount| mount.mountpoint == path) {
                waiting.push(path);
            }
        }
    }
    None
}

/// Refuses what would serve the files of another pool, its stubs as files among them. A pool stays one whatever was put
/// into it since: its clones must be reachable.
pub(super) fn refuse(pool: &Path) -> Result<()> {
    let no = |cause: String, other: &Path| {
        let remedy = format!("mount {other:?} itself");
        Err(Error::new(Kind::Invalid, "mount").at(pool).because(cause).remedy(remedy))
    };
    if is_pool(pool) {
        if let Some(other) = below(pool, SEARCH) {
            tracing::warn!(
                "the pool {other:?} lies in this one: its stubs are shown as files here, and are not to be used"
            );
        }
        return Ok(());
    }
    if let Some(other) = above(pool) {
        return no(format!("it lies in the pool {other:?}, and has stubs of it in place of files"), &other);
    }
    match below(pool, SEARCH) {
        Some(other) => no(format!("the pool {other:?} lies in it: two daemons would serve its files"), &other),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn pools_above_and_below_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let at = |path: &str| root.join(path);
        fs::create_dir_all(at("a/b/pool/.clonefs")).unwrap();
        fs::create_dir_all(at("a/b/pool/inside/deep")).unwrap();
        fs::create_dir_all(at("a/other/.clonefs")).unwrap();
        assert_eq!(below(&root, LONG), None, "an empty directory of that name makes no pool");
        fs::write(at("a/b/pool").join(POOL), "{}").unwrap();
        assert!(is_pool(&at("a/b/pool")) && !is_pool(&at("a")));
        assert_eq!(below(&root, LONG), Some(at("a/b/pool")));
        assert_eq!(below(&at("a/b/pool"), LONG), None);
        assert_eq!(above(&at("a/b/pool/inside/deep")), Some(at("a/b/pool")));
        assert_eq!(above(&at("a/b/pool")), None);
    }
}
