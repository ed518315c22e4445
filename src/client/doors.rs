//! The doors of a mounted pool, called: one function for each virtual attribute that the command line uses.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{XattrFlags, setxattr};
use rustix::io::Errno;
use serde::de::DeserializeOwned;

use super::{mounts, xattr};
use crate::engine::events::log::{Cursor, Page};
use crate::engine::policy::{Listing, Patch, Setting};
use crate::engine::pool::check::Report;
use crate::error::{Error, Kind, Result};
use crate::protocol::{self, CloneRequest, DeepenRequest, GroupRequest, Level, PoolStatus, VolumeInfo, VolumeUsage};

/// All about one volume. `None` for a file that does not lie on a clonefs mount.
pub fn info(path: &Path) -> Result<Option<VolumeInfo>> {
    match xattr::get(path, protocol::INFO) {
        Ok(json) => decode("read the state of", path, &json).map(Some),
        Err(e) if xattr::absent(e) => Ok(None),
        Err(e) => Err(failed("read the state of", path, e)),
    }
}

/// The same for an open file.
pub fn info_of(file: impl AsFd, path: &Path) -> Result<VolumeInfo> {
    let json = xattr::fget(file, OsStr::new(protocol::INFO)).map_err(|e| failed("read the state of", path, e))?;
    decode("read the state of", path, &json)
}

/// What one volume takes. `None` for a file that does not lie on a clonefs mount.
pub fn usage(path: &Path) -> Result<Option<VolumeUsage>> {
    match xattr::get(path, protocol::USAGE) {
        Ok(json) => decode("read the usage of", path, &json).map(Some),
        Err(e) if xattr::absent(e) => Ok(None),
        Err(e) => Err(failed("read the usage of", path, e)),
    }
}

/// The settings that hold for a path, by name.
pub fn policy(path: &Path) -> Result<BTreeMap<String, Setting>> {
    match xattr::get(path, protocol::POLICY) {
        Ok(json) => decode("read the policy of", path, &json),
        Err(e) if xattr::absent(e) => Err(not_here("read the policy of", path)),
        Err(e) => Err(failed("read the policy of", path, e)),
    }
}

/// All policies of the pool that the directory `path` lies in.
pub fn policies(path: &Path) -> Result<Listing> {
    match xattr::get(path, protocol::POLICIES) {
        Ok(json) => decode("read the policies of", path, &json),
        Err(e) if xattr::absent(e) => Err(not_here("read the policies of", path)),
        Err(e) => Err(failed("read the policies of", path, e)),
    }
}

/// Changes settings of a path.
pub fn set_policy(path: &Path, patch: &Patch) -> Result<()> {
    let json = encode("set a policy for", path, patch)?;
    setxattr(path, protocol::POLICY, &json, XattrFlags::empty()).map_err(|e| match e {
        e if xattr::absent(e) => not_here("set a policy for", path),
        Errno::PERM | Errno::ACCESS => {
            failed("set a policy for", path, e).remedy("root and the user who mounted the pool may do that")
        }
        Errno::BUSY => Error::new(Kind::Busy, "protect")
            .at(path)
            .because("it, or a file below it, is open for writing")
            .remedy("shut the machine down that uses it, then try again"),
        Errno::INVAL => failed("set a policy for", path, e)
            .remedy("a rate is for the whole pool only, and paths with policies must be UTF-8"),
        Errno::IO => failed("set a policy for", path, e).remedy("clonefs policy list says what is wrong with the file"),
        e => failed("set a policy for", path, e),
    })
}

/// Some events of the pool that the directory `path` lies in, from a place on.
pub fn events(path: &Path, from: Cursor) -> Result<Page> {
    match xattr::get(path, &format!("{}.{from}", protocol::EVENTS)) {
        Ok(json) => decode("read the events of", path, &json),
        Err(e) if xattr::absent(e) => Err(not_here("read the events of", path)),
        Err(e) => Err(failed("read the events of", path, e)),
    }
}

/// State of the pool that the directory `path` lies in. `None` if it does not lie on a clonefs mount.
pub fn status(path: &Path) -> Result<Option<PoolStatus>> {
    match xattr::get(path, protocol::STATUS) {
        Ok(json) => decode("read the status of", path, &json).map(Some),
        Err(e) if xattr::absent(e) => Ok(None),
        Err(e) => Err(failed("read the status of", path, e)),
    }
}

/// What a check of the pool finds while it is served; `root` is the root of its mount.
pub fn check(root: &Path) -> Result<Report> {
    match xattr::get(root, protocol::CHECK) {
        Ok(json) => decode("check", root, &json),
        Err(e @ (Errno::PERM | Errno::ACCESS)) => {
            Err(failed("check", root, e).remedy("root and the user who mounted the pool may do that"))
        }
        Err(e) => Err(failed("check", root, e)),
    }
}

/// Begins to compare all frozen layers of the pool with their checksums; `root` is the root of its mount.
pub fn scrub(root: &Path) -> Result<()> {
    setxattr(root, protocol::SCRUB, b"start", XattrFlags::empty()).map_err(|e| match e {
        e if xattr::absent(e) => not_here("scrub", root),
        Errno::PERM | Errno::ACCESS => {
            failed("scrub", root, e).remedy("root and the user who mounted the pool may do that")
        }
        e => failed("scrub", root, e),
    })
}

/// Starts, pauses or resumes background work: of one volume, or of the whole pool when `path` is a directory.
pub fn deepen(path: &Path, request: &DeepenRequest) -> Result<()> {
    let json = encode("deepen", path, request)?;
    setxattr(path, protocol::DEEPEN, &json, XattrFlags::empty()).map_err(|e| match e {
        e if xattr::absent(e) => not_here("deepen", path),
        Errno::PERM | Errno::ACCESS if path.is_dir() => {
            failed("change background work of the pool", path, e).remedy("only root may do that for a whole pool")
        }
        e => failed("deepen", path, e),
    })
}

/// A token that stands for the open file as the source of a clone.
pub fn token(source: impl AsFd, path: &Path) -> Result<String> {
    match xattr::fget(source, OsStr::new(protocol::TOKEN)) {
        Ok(token) => Ok(xattr::text(token)),
        Err(e) => Err(clone_failed(path, e)),
    }
}

/// Makes the empty open file a clone.
pub fn clone(target: impl AsFd, request: &CloneRequest, source: &Path) -> Result<()> {
    let json = encode("clone", source, request)?;
    xattr::fset(target, OsStr::new(protocol::CLONE), &json).map_err(|e| clone_failed(source, e))
}

/// Carries out the requests of a group, of which the open file is a member. `what` stands for it in messages.
pub fn carry_out(member: impl AsFd, request: &GroupRequest, what: &Path) -> Result<()> {
    let json = encode("clone a group", what, request)?;
    xattr::fset(member, OsStr::new(protocol::GROUP), &json).map_err(|e| clone_failed(what, e))
}

/// The error for a file that should lie on a clonefs mount and does not.
pub fn not_here(operation: &'static str, path: &Path) -> Error {
    let error = Error::new(Kind::Unsupported, operation).at(path);
    let here = "not on a mounted pool";
    match (mounts::mount_over(path), crate::daemon::mount::lingering(path)) {
        (Some(mount), _) => {
            error.because(here).remedy(format!("its pool is mounted: use its path below {:?}", mount.mountpoint))
        }
        (None, Some(lingering)) => error.because(format!("{here}; {}", lingering.says())).remedy(lingering.remedy()),
        (None, None) => error.because(here).remedy("mount its directory first: clonefs mount DIRECTORY"),
    }
}

/// What a refused clone of `source` means, by the errno that the doors promise.
fn clone_failed(source: &Path, error: Errno) -> Error {
    let (kind, cause, remedy) = match error {
        Errno::XDEV => {
            (Kind::CrossPool, "source and clone are not in the same pool", "cp copies from one pool to another")
        }
        Errno::FBIG => (Kind::TooLarge, "the clone would be larger than a volume can be", "give a smaller --size"),
        Errno::NOBUFS => (
            Kind::TooMany,
            "as many requests wait to be carried out as are kept for one user, or for all users together",
            "clone fewer files in one group, or wait until the other groups are done",
        ),
        Errno::BUSY => return busy(source),
        Errno::NOSPC => return no_room(source, error),
        Errno::IO => (Kind::Io, "it cannot be read in full", "see clonefs status and clonefs check"),
        Errno::INVAL => (
            Kind::Invalid,
            "it is larger than the clone now, or the new file was written meanwhile",
            "try again, with a larger --size if one was given",
        ),
        Errno::OPNOTSUPP => return cannot_clone(source),
        Errno::PERM => return failed("clone", source, error).remedy("if it is immutable or append-only: chattr -i -a"),
        e => return failed("clone", source, e),
    };
    Error::new(kind, "clone").at(source).because(cause).remedy(remedy)
}

/// Somebody writes to it where clonefs does not see it.
fn busy(source: &Path) -> Error {
    let error = Error::new(Kind::Busy, "clone").at(source);
    match info(source).ok().flatten().and_then(|info| info.cannot_clone) {
        Some(why) => error.because(why),
        None => error
            .because("a process has it open for writing past clonefs: since before the mount, or with passthrough")
            .remedy("see clonefs status, close it there and try again"),
    }
}

/// The filesystem is full, or so full that the pool refuses clones.
fn no_room(source: &Path, error: Errno) -> Error {
    let Some(space) = status_beside(source).map(|status| status.space).filter(|s| s.level == Level::RefuseClones)
    else {
        return failed("clone", source, error);
    };
    let mark = space.refuse_clones.unwrap_or_default();
    Error::new(Kind::NoSpace, "clone")
        .at(source)
        .because(format!("the filesystem is {}% full, and clones are refused at {mark}", space.used_percent))
        .remedy("delete what is not needed, or raise the watermark refuse-clones")
}

/// Status of the pool that a file lies in.
fn status_beside(file: &Path) -> Option<PoolStatus> {
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    status(dir).ok().flatten()
}

/// The pool's own reason why nothing can be cloned in it.
fn cannot_clone(source: &Path) -> Error {
    let why = status_beside(source).and_then(|status| status.cannot_clone);
    let why = why.unwrap_or_else(|| "it cannot be cloned here".to_owned());
    Error::new(Kind::Unsupported, "clone").at(source).because(why).remedy("cp copies it")
}

/// An errno of a call on a path of the mount; a mount without a daemon gets its remedy here.
pub fn failed(operation: &'static str, path: &Path, error: Errno) -> Error {
    let built = Error::io(operation, error.into()).at(path);
    match error {
        Errno::NOTCONN => {
            built.remedy("the daemon of this mount has died: clonefs unmount it and mount the pool again")
        }
        _ => built,
    }
}

fn encode(operation: &'static str, path: &Path, value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::new(Kind::Invalid, operation).at(path).because(e))
}

fn decode<T: DeserializeOwned>(operation: &'static str, path: &Path, json: &[u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|e| {
        Error::new(Kind::Unsupported, operation)
            .at(path)
            .because(format!("the daemon's answer is not understood: {e}"))
            .remedy("daemon and command are of different versions: unmount and mount again")
    })
}
