//! The file of policies, and the copy of the last one that could be read.

use std::path::Path;

use super::Set;
use crate::engine::io::{FileKey, Fs, Open, Timestamp};
use crate::engine::store::{self, log};
use crate::error::Result;

/// Where it is.
pub const PATH: &str = ".clonefs/policy.json";
/// The last one that was in force.
const LAST_GOOD: &str = ".clonefs/policy.last-good.json";
/// Version of the file.
pub const FORMAT: u32 = 1;
/// Longest file that is read.
const LONGEST: u64 = 16 << 20;

/// Tells one state of the file from another.
pub type Stamp = (FileKey, u64, Timestamp, Timestamp);

/// `None`: there is no file.
pub fn stamp(fs: &dyn Fs) -> std::io::Result<Option<Stamp>> {
    match fs.stat(Path::new(PATH)) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        other => other.map(|stat| Some((stat.key, stat.size, stat.mtime, stat.ctime))),
    }
}

fn read(fs: &dyn Fs, path: &str) -> std::io::Result<Option<Vec<u8>>> {
    let file = match fs.open(Path::new(path), Open::Read) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        other => other?,
    };
    log::read_all(file.as_ref(), LONGEST).map(Some)
}

fn understand(bytes: &[u8]) -> std::result::Result<Set, String> {
    // Its message has the line and the column.
    let set: Set = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    set.check().map(|()| set)
}

/// The policies in the file; none if there is no file.
///
/// # Errors
/// What is wrong, with line and column where that can be said.
pub fn load(fs: &dyn Fs) -> std::result::Result<Set, String> {
    let named = |why: String| format!("{PATH}: {why}");
    match read(fs, PATH) {
        Ok(Some(bytes)) => understand(&bytes).map_err(named),
        Ok(None) => Ok(Set { format: FORMAT, ..Set::default() }),
        Err(e) => Err(named(e.to_string())),
    }
}

/// The last policies that were in force.
pub fn last_good(fs: &dyn Fs) -> Option<Set> {
    understand(&read(fs, LAST_GOOD).ok()??).ok()
}

fn text(set: &Set) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(set).unwrap_or_default();
    text.push(b'\n');
    text
}

/// Replaces the file, in one step and durably.
pub fn save(fs: &dyn Fs, set: &Set) -> Result<()> {
    store::persist(fs, Path::new(PATH), &text(set))
}

/// Remembers the policies as the last good ones. Failing to costs only that.
pub fn keep(fs: &dyn Fs, set: &Set) {
    let bytes = text(set);
    let known = read(fs, LAST_GOOD).ok().flatten();
    // A pool that never had any gets no file.
    let unchanged = known.as_ref().map_or(set.policies.is_empty(), |known| *known == bytes);
    if !unchanged && let Err(error) = store::persist(fs, Path::new(LAST_GOOD), &bytes) {
        tracing::warn!("cannot keep a copy of the policies: {error}");
    }
}
