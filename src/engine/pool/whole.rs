//! Clones that are no overlays: the whole of a file shared by the filesystem below, or copied.

use std::path::PathBuf;
use std::sync::Arc;

use super::Pool;
use super::clone::again;
use super::copy::copy_bytes;
use super::target::check_target;
use crate::engine::volume::plain::Plain;
use crate::engine::volume::{State, Volume};
use crate::error::{Context, Error, Kind, Result};

/// Each attempt fails only if the file grows at that very moment.
const SHARE_TRIES: u32 = 16;

/// Has the backing filesystem share the whole of a file that is written to past the daemon. It writes out what the kernel
/// caches, mappings included, and holds up all writes meanwhile: this is one moment of the file.
pub(super) fn share_whole(source: &Volume, gate: &State, empty: &Plain, size: Option<u64>) -> Result<()> {
    let State::Plain(plain) = gate else { return source.check_not_bypassed("clone") };
    plain.check_latch().map_err(|e| e.at(source.path()))?;
    let shared = share_all(plain, empty).and_then(|len| match size {
        Some(size) if size < len => {
            Err(Error::new(Kind::Invalid, "clone").because(format!("{size} bytes is less than the source has")))
        }
        Some(size) => empty.file.set_len(size).context("set size", source.path()),
        None => Ok(()),
    });
    let refused =
        |e: &Error| matches!(e.os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL | libc::EXDEV | libc::ENOTTY));
    if shared.as_ref().is_err_and(refused) {
        // There are no reflinks here.
        return source.check_not_bypassed("clone");
    }
    empty.touch();
    shared.inspect_err(|_| drop(empty.file.set_len(0))).map_err(|e| e.at(source.path()))
}

/// Shares all bytes of one file with another, empty one; returns how many.
///
/// The length is named: asked for "all", xfs of some kernels stops where the disk is full and calls that success.
fn share_all(from: &Plain, to: &Plain) -> Result<u64> {
    let size = |plain: &Plain| Ok(plain.file.stat().context("look at file", "")?.size);
    for attempt in 1.. {
        let len = size(from)?;
        if len > 0 {
            match to.file.share_range(from.file.as_ref(), 0, 0, len) {
                // An end within a block must be that of the file: it may just have grown.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) && attempt < SHARE_TRIES && size(from)? != len => {
                    continue;
                }
                shared => shared.context("share the blocks of", "")?,
            }
        }
        return if size(to)? == len { Ok(len) } else { Err(Error::io("share the blocks of", short())) };
    }
    Err(Error::io("share the blocks of", short()))
}

fn short() -> std::io::Error {
    std::io::Error::from_raw_os_error(libc::EIO)
}

impl Pool {
    /// Makes `target`, an empty file, a copy of a plain file as it is at one moment of this call. Writes to that one file
    /// wait meanwhile; reads, and all other files, go on. Slow, and correct.
    pub(super) fn copy_whole(&self, source: &Arc<Volume>, target: &Arc<Volume>, size: Option<u64>) -> Result<()> {
        let name: PathBuf = source.path();
        let _switching = source.switching().lock();
        let (from, _still) = match &*source.gate().write() {
            State::Plain(plain) if plain.shared.is_none() => {
                plain.check_latch().map_err(|e| e.at(&name))?;
                source.check_not_bypassed("clone")?;
                (plain.file.clone(), plain.hold_still())
            }
            // It was just cloned or frozen by somebody else.
            _ => return Err(again()),
        };
        let len = from.stat().context("look at source", &name)?.size;
        let size = size.unwrap_or(len);
        if size < len {
            return Err(Error::new(Kind::Invalid, "clone").because(format!("{size} bytes is less than the source has")));
        }
        let gate = target.gate().write();
        let (empty, _) = check_target(target, &gate, 1, false)?;
        let result = copy_bytes(from.as_ref(), empty.file.as_ref(), len)
            .and_then(|()| empty.file.set_len(size).context("set size", &name));
        empty.touch();
        if result.is_err() {
            let _ = empty.file.set_len(0);
        }
        result
    }
}
