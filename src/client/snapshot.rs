//! Snapshots through the mount: `VOLUME@NAME` is the file `VOLUME@NAME` in the volume's directory below `.snapshots`.

use std::ffi::OsStr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{RenameFlags, XattrFlags, renameat_with, setxattr};
use rustix::io::Errno;

use super::{doors, mounts, xattr};
use crate::engine::pool::snapshot::check_name;
use crate::engine::store::new_id;
use crate::error::{Error, Kind, Result};
use crate::protocol::{self, GroupRequest, ResizeRequest, SnapshotAction, SnapshotInfo, SnapshotRequest};

/// Name of the directory of all snapshots, at the root of a mount.
const SNAPSHOTS: &str = ".snapshots";

/// `VOLUME@NAME` as a user writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotName {
    /// Path of the volume.
    pub volume: PathBuf,
    /// Name of the snapshot.
    pub name: String,
}

/// A snapshot that was found.
#[derive(Clone, Debug)]
pub struct FoundSnapshot {
    /// Path of its volume below the root of the mount.
    pub volume: PathBuf,
    /// Its name.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// What it says of itself; `None` where the caller may not read it.
    pub info: Option<SnapshotInfo>,
}

impl SnapshotName {
    /// Takes `VOLUME@NAME` apart. The path of the snapshot itself, below `.snapshots`, is as good.
    pub fn parse(text: &Path) -> Result<SnapshotName> {
        let SnapshotName { volume, name } = Self::split(text)?;
        let volume = volume_of_place(&volume).unwrap_or(volume);
        Ok(SnapshotName { volume, name })
    }

    fn split(text: &Path) -> Result<SnapshotName> {
        let wrong = |why: &'static str| {
            Err(Error::new(Kind::Invalid, "find snapshot").at(text).because(why).remedy("write VOLUME@NAME"))
        };
        let Some(file) = text.file_name() else { return wrong("it does not name a snapshot") };
        let Some((volume, name)) = file.to_str().and_then(|file| file.rsplit_once('@')) else {
            return wrong("it does not name a snapshot");
        };
        if volume.is_empty() {
            return wrong("it does not name a volume");
        }
        check_name(Path::new(volume), name)?;
        Ok(SnapshotName { volume: text.with_file_name(volume), name: name.to_owned() })
    }

    /// Where the snapshot is in its mount.
    pub fn place(&self) -> Result<PathBuf> {
        let directory = directory_of(&self.volume)?;
        let mut file = self.volume.file_name().unwrap_or_default().to_owned();
        file.push("@");
        file.push(&self.name);
        Ok(directory.join(file))
    }

    /// As [`SnapshotName::place`], of one that must be there.
    pub fn find(&self) -> Result<PathBuf> {
        let place = self.place()?;
        match std::fs::symlink_metadata(&place) {
            Ok(_) => Ok(place),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(self.missing()),
            Err(e) => Err(Error::io("find snapshot", e).at(self.shown())),
        }
    }

    /// When it was made, in seconds since the epoch; `None` if it is not there or the caller may not read it.
    pub fn made(&self) -> Option<i64> {
        let json = xattr::get(&self.place().ok()?, protocol::SNAPSHOT).ok()?;
        serde_json::from_slice(&json).ok().map(|info: SnapshotInfo| info.made)
    }

    fn shown(&self) -> PathBuf {
        PathBuf::from(format!("{}@{}", self.volume.display(), self.name))
    }

    fn missing(&self) -> Error {
        Error::new(Kind::NotFound, "find snapshot").at(self.shown()).remedy("clonefs snapshot list shows what there is")
    }
}

/// The directory of snapshots for the directory that a volume is in.
fn directory_of(volume: &Path) -> Result<PathBuf> {
    let parent = volume.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    snapshots_below(parent)
}

fn snapshots_below(directory: &Path) -> Result<PathBuf> {
    // The directory of the volume may be gone, and the snapshots there still.
    let gone = |path: &Path| std::fs::symlink_metadata(path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
    let there =
        directory.ancestors().find(|path| !path.as_os_str().is_empty() && !gone(path)).unwrap_or(Path::new("."));
    let lost = directory.strip_prefix(there).unwrap_or(directory);
    let mount = mounts::mount_at(there)?.ok_or_else(|| doors::not_here("find snapshots of", directory))?;
    let full = there.canonicalize().map_err(|e| Error::io("find the path of", e).at(there))?;
    let below = full.strip_prefix(&mount.mountpoint).unwrap_or(Path::new(""));
    let place = mount.mountpoint.join(SNAPSHOTS).join(below);
    Ok(if lost.as_os_str().is_empty() { place } else { place.join(lost) })
}

/// The path of the volume for that of its snapshot, without the name of that; `None` for any other path.
fn volume_of_place(place: &Path) -> Option<PathBuf> {
    let directory = place.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = directory.canonicalize().ok()?;
    if !directory.components().any(|part| part.as_os_str() == SNAPSHOTS) {
        return None;
    }
    let root = mounts::mount_at(&directory).ok()??.mountpoint;
    let below = directory.strip_prefix(root.join(SNAPSHOTS)).ok()?;
    Some(root.join(below).join(place.file_name()?))
}

/// What a path that a user gave as the source of a clone stands for: itself, or the snapshot that it names.
pub fn file_or_snapshot(path: &Path) -> Result<PathBuf> {
    let named = path.file_name().and_then(OsStr::to_str).is_some_and(|file| file.contains('@'));
    let missing = std::fs::symlink_metadata(path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
    if named && missing { SnapshotName::parse(path)?.find() } else { Ok(path.to_path_buf()) }
}

/// Makes snapshots of one name of all these volumes: all of one moment, durable, all or none.
pub fn create_snapshots(volumes: &[PathBuf], name: &str) -> Result<()> {
    for volume in volumes {
        check_name(volume, name)?;
        check_volume(volume)?;
    }
    let Some((last, _)) = volumes.split_last() else { return Ok(()) };
    let group = (volumes.len() > 1).then(|| format!("{}{}", new_id(), new_id()));
    for volume in volumes {
        let request = SnapshotRequest { action: SnapshotAction::Create, name: name.to_owned(), group: group.clone() };
        set(volume, protocol::SNAPSHOT, &request).map_err(|e| refused("make snapshot of", volume, name, e))?;
    }
    let Some(group) = group else { return Ok(()) };
    let request = GroupRequest { group, members: volumes.len() };
    set(last, protocol::GROUP, &request).map_err(|e| refused("make snapshots with", last, name, e))
}

/// Makes the volume what its snapshot is.
pub fn roll_back(snapshot: &SnapshotName) -> Result<()> {
    check_volume(&snapshot.volume)?;
    snapshot.find()?;
    let request = SnapshotRequest { action: SnapshotAction::Rollback, name: snapshot.name.clone(), group: None };
    set(&snapshot.volume, protocol::SNAPSHOT, &request)
        .map_err(|e| refused("roll back", &snapshot.volume, &snapshot.name, e))
}

/// Makes a volume what it was when it was made as a clone.
pub fn reset(volume: &Path) -> Result<()> {
    check_volume(volume)?;
    setxattr(volume, protocol::RESET, b"origin", XattrFlags::empty()).map_err(|e| match e {
        e if xattr::absent(e) && !is_here(volume) => doors::not_here("reset", volume),
        Errno::OPNOTSUPP => Error::new(Kind::Unsupported, "reset")
            .at(volume)
            .because("what it was cloned from is not below it any more: it is no clone, or independent by now")
            .remedy("make clones that are to be reset with --no-deepen, and keep their source"),
        Errno::PERM => doors::failed("reset", volume, e).remedy(
            "its owner, who also made it, and root may do that, unless a policy protects it: clonefs policy get",
        ),
        e => refused("reset", volume, "", e),
    })
}

/// Gives a volume another size.
pub fn resize(volume: &Path, request: &ResizeRequest) -> Result<()> {
    check_volume(volume)?;
    set(volume, protocol::RESIZE, request).map_err(|e| match e {
        Errno::INVAL => Error::new(Kind::Invalid, "resize")
            .at(volume)
            .because("it is larger than that")
            .remedy("--shrink cuts off what lies beyond"),
        e => refused("resize", volume, "", e),
    })
}

/// Removes a snapshot.
pub fn remove_snapshot(snapshot: &SnapshotName) -> Result<()> {
    let place = snapshot.find()?;
    std::fs::remove_file(&place).map_err(|e| Error::io("remove snapshot", e).at(snapshot.shown()))
}

/// Gives a snapshot another name.
pub fn rename_snapshot(snapshot: &SnapshotName, name: &str) -> Result<()> {
    check_name(&snapshot.volume, name)?;
    let from = snapshot.find()?;
    let to = SnapshotName { volume: snapshot.volume.clone(), name: name.to_owned() };
    let place = to.place()?;
    let cwd = rustix::fs::CWD;
    renameat_with(cwd, &from, cwd, &place, RenameFlags::NOREPLACE)
        .map_err(|e| refused("rename snapshot to", &snapshot.volume, name, e))
}

/// The snapshots of a volume, or of all volumes below a directory that the caller may search; by path, then by time.
pub fn snapshots(path: &Path) -> Result<Vec<FoundSnapshot>> {
    let directory = path.is_dir();
    let top = if directory { snapshots_below(path)? } else { directory_of(path)? };
    let of = (!directory).then(|| path.file_name().and_then(OsStr::to_str).unwrap_or_default().to_owned());
    let root = mounts::mount_at(&top)?.map(|mount| mount.mountpoint.join(SNAPSHOTS)).unwrap_or_default();
    let mut found = Vec::new();
    let mut waiting = vec![top];
    while let Some(directory) = waiting.pop() {
        // What the caller may not read, or what was removed meanwhile, is left out.
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let (place, name) = (entry.path(), entry.file_name());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.extend(of.is_none().then_some(place));
                continue;
            }
            let Some((volume, name)) = name.to_str().and_then(|name| name.rsplit_once('@')) else { continue };
            if of.as_ref().is_none_or(|of| of == volume)
                && let Ok(meta) = entry.metadata()
            {
                let info =
                    xattr::get(&place, protocol::SNAPSHOT).ok().and_then(|json| serde_json::from_slice(&json).ok());
                let below = directory.strip_prefix(&root).unwrap_or(Path::new(""));
                found.push(FoundSnapshot { volume: below.join(volume), name: name.to_owned(), size: meta.len(), info });
            }
        }
    }
    let made = |snapshot: &FoundSnapshot| snapshot.info.as_ref().map_or(0, |info| info.made);
    found.sort_by(|a, b| (&a.volume, made(a), &a.name).cmp(&(&b.volume, made(b), &b.name)));
    Ok(found)
}

/// The snapshots in one directory of volumes whose names begin with `prefix`, also of such as are gone.
pub fn snapshots_beside(directory: &Path, prefix: &str) -> Result<Vec<SnapshotName>> {
    let entries = match std::fs::read_dir(snapshots_below(directory)?) {
        Ok(entries) => entries,
        // No directory of snapshots before the first of them.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("look for snapshots in", e).at(directory)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let file = entry.map_err(|e| Error::io("look for snapshots in", e).at(directory))?.file_name();
        let parts = file.to_str().filter(|file| file.starts_with(prefix)).and_then(|file| file.rsplit_once('@'));
        found
            .extend(parts.map(|(volume, name)| SnapshotName { volume: directory.join(volume), name: name.to_owned() }));
    }
    Ok(found)
}

fn set(path: &Path, name: &str, request: &impl serde::Serialize) -> rustix::io::Result<()> {
    let json = serde_json::to_vec(request).map_err(|_| Errno::INVAL)?;
    setxattr(path, name, &json, XattrFlags::empty())
}

fn is_here(path: &Path) -> bool {
    mounts::mount_at(path).is_ok_and(|mount| mount.is_some())
}

/// What is no regular file of a pool.
fn check_volume(path: &Path) -> Result<()> {
    let kind = std::fs::metadata(path).map_err(|e| Error::io("find volume", e).at(path))?.file_type();
    let why = match kind {
        _ if kind.is_file() => return if is_here(path) { Ok(()) } else { Err(doors::not_here("find volume", path)) },
        _ if kind.is_dir() => "it is a directory",
        _ if kind.is_block_device() || kind.is_char_device() => "it is a device",
        _ => "it is not a regular file",
    };
    Err(Error::new(Kind::Invalid, "find volume").at(path).because(why).remedy("name a disk image in a mounted pool"))
}

/// What a refusal means, by the errno that the doors promise.
fn refused(operation: &'static str, volume: &Path, name: &str, error: Errno) -> Error {
    let (kind, cause, remedy) = match error {
        Errno::EXIST => {
            let taken = format!("a snapshot called {name:?} exists, or the pool has its own {SNAPSHOTS:?}");
            return Error::new(Kind::Exists, operation).at(volume).because(taken).remedy("choose another name");
        }
        Errno::BUSY => (Kind::Busy, "it is open", "shut down what uses it first"),
        Errno::NOBUFS => (
            Kind::TooMany,
            "as many requests wait to be carried out as are kept for one user, or for all users together",
            "name fewer volumes in one command, or wait until the other groups are done",
        ),
        Errno::OPNOTSUPP => {
            let cause = "it has several names, or cannot be shared where it is, or the pool cannot clone";
            (Kind::Unsupported, cause, "see clonefs events and status")
        }
        Errno::FBIG => (Kind::TooLarge, "a volume cannot be that large", "give a smaller size"),
        Errno::PERM => {
            let remedy = "its owner and root may do that, unless a policy protects it: clonefs policy get";
            (Kind::Permission, "it is another user's, or protected", remedy)
        }
        e => return doors::failed(operation, volume, e),
    };
    Error::new(kind, operation).at(volume).because(cause).remedy(remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_named_by_volume_and_name() {
        let parse = |text: &str| SnapshotName::parse(Path::new(text));
        let is = |text: &str, volume: &str, name: &str| {
            assert_eq!(parse(text).unwrap(), SnapshotName { volume: volume.into(), name: name.into() });
        };
        is("vm.img@one", "vm.img", "one");
        is("/a@b/c@d.img@e", "/a@b/c@d.img", "e");
        let error = |text: &str| parse(text).unwrap_err().to_string();
        assert!(error("vm.img").contains("VOLUME@NAME"));
        assert!(error("@x").contains("does not name a volume"));
        assert!(error("vm.img@").contains("empty"));
        assert!(error("a@b/vm.img").contains("VOLUME@NAME"));
        assert!(error(&format!("vm.img@{}", "x".repeat(249))).contains("256 bytes of at most 255"));
        assert!(parse(&format!("vm.img@{}", "x".repeat(248))).is_ok());
        assert!(error("vm.img@a\nb").contains("'\\n'"));
    }
}
