//! Stubs: the files that stand in the tree for volumes made of layers.
//!
//! A stub is known by its inode, to which `stubs/ID` is a second link that no user of the mount can make. An extended
//! attribute that the mount refuses to set says the same, for the case that the link is lost. The text in it is for
//! people who look at the pool without clonefs; nothing reads it.

use std::ffi::OsString;
use std::io;

use crate::engine::io::{File, SetTime};
use crate::engine::store::stub_path;
use crate::error::{Context, Result};
use crate::units::{Id, format_size};

/// Name of the attribute: `POOL-ID/VOLUME-ID`.
pub use crate::protocol::stub::ATTRIBUTE as XATTR;
/// No stub is larger than this, so larger files need not be asked for the attribute.
pub use crate::protocol::stub::LONGEST as MAX_STUB;
use crate::protocol::stub::TEXT;

/// Marks a file as the stub of a volume.
pub fn mark(file: &dyn File, pool: Id, volume: Id) -> Result<()> {
    let value = format!("{pool}/{volume}");
    file.set_xattr(&OsString::from(XATTR), value.as_bytes(), 0).context("mark stub", stub_path(volume))
}

/// Undoes [`mark`].
pub fn unmark(file: &dyn File) {
    let _ = file.remove_xattr(&OsString::from(XATTR));
}

/// What a file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// That it is a file like any other.
    None,
    /// That it is the stub of this volume of the pool.
    Ours(Id),
    /// That it is a stub, of another pool or of no volume at all.
    Foreign,
}

/// Reads the mark of a file.
pub fn mark_of(file: &dyn File, pool: Option<Id>) -> io::Result<Mark> {
    let value = match file.get_xattr(&OsString::from(XATTR)) {
        Ok(value) => value,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => return Ok(Mark::None),
        Err(e) => return Err(e),
    };
    Ok(Mark::parse(&value, pool))
}

impl Mark {
    /// What the value of the attribute says.
    pub fn parse(value: &[u8], pool: Option<Id>) -> Mark {
        let ids = std::str::from_utf8(value).ok().and_then(|text| text.split_once('/'));
        let ours = ids.filter(|(of, _)| pool.is_some_and(|pool| of.parse() == Ok(pool)));
        ours.and_then(|(_, volume)| volume.parse().ok()).map_or(Mark::Foreign, Mark::Ours)
    }
}

/// Writes the text. Its modification time stays.
pub fn describe(file: &dyn File, volume: Id, size: u64) -> io::Result<()> {
    let times = file.stat()?;
    let text = format!(
        "{TEXT}{volume}, {}\n\
         This is not the disk image itself. Its contents are in the directory .clonefs at the top of this tree.\n\
         Mount the tree with `clonefs mount` to use it, or to let it become an ordinary file (`clonefs deepen`).\n",
        format_size(size)
    );
    file.write_at(text.as_bytes(), 0)?;
    file.set_len(text.len() as u64)?;
    file.set_times(SetTime::At(times.atime), SetTime::At(times.mtime))
}

/// Whether the text is still to be written. A stub that was a file of zeros keeps that size until then.
pub fn lacks_text(file: &dyn File) -> bool {
    holds_text(file).is_ok_and(|holds| !holds)
}

/// Whether a file says of itself that it is a stub.
pub fn claims_to_be(file: &dyn File) -> bool {
    mark_of(file, None).is_ok_and(|mark| mark != Mark::None)
}

/// The volume of `pool` that a file says it is the stub of.
pub fn marked_as(file: &dyn File, pool: Id) -> Option<Id> {
    match mark_of(file, Some(pool)) {
        Ok(Mark::Ours(volume)) => Some(volume),
        _ => None,
    }
}

/// Whether a file holds the text of a stub, and nothing of a user's. A mark that could not be taken off a file does not
/// make a stub of what was written to the file later.
pub fn holds_text(file: &dyn File) -> io::Result<bool> {
    let size = file.stat()?.size;
    if size == 0 || size > MAX_STUB {
        return Ok(false);
    }
    let mut text = vec![0; MAX_STUB as usize];
    let len = file.read_at(&mut text, 0)?;
    Ok(text[..len].starts_with(TEXT.as_bytes()))
}

/// Gives `to` the owner, mode, attributes, ACLs and times of `from`; the mark of a stub stays where it is.
pub fn copy_attributes(from: &dyn File, to: &dyn File) -> io::Result<()> {
    let stat = from.stat()?;
    let have = to.stat()?;
    if (have.uid, have.gid) != (stat.uid, stat.gid) {
        to.chown(Some(stat.uid), Some(stat.gid))?;
    }
    let names = unsupported_as_empty(from.list_xattr())?;
    let old = unsupported_as_empty(to.list_xattr())?;
    remove_xattrs(to, old.iter().filter(|name| !names.contains(name)))?;
    match set_xattrs(from, to, &names) {
        // Old values of other lengths were in the way: ext4 has room for so many bytes of all together.
        Err(e) if is_full(&e) && !old.is_empty() => {
            remove_xattrs(to, old.iter())?;
            set_xattrs(from, to, &names)?;
            // What was durable before must not be gone after a crash that keeps the removal alone.
            to.sync_all()?;
        }
        other => other?,
    }
    // After chown and the ACLs, which both change it.
    to.chmod(stat.mode & 0o7777)?;
    to.set_times(SetTime::At(stat.atime), SetTime::At(stat.mtime))
}

/// Counts `to` for the project of `from`.
pub fn join_project(from: &dyn File, to: &dyn File) -> io::Result<()> {
    let project = from.project()?;
    if to.project()? == project { Ok(()) } else { to.set_project(project) }
}

fn remove_xattrs<'a>(to: &dyn File, mut names: impl Iterator<Item = &'a OsString>) -> io::Result<()> {
    names.by_ref().filter(|name| *name != XATTR).try_for_each(|name| match to.remove_xattr(name) {
        // It went with the owner.
        Err(e) if e.raw_os_error() == Some(libc::ENODATA) => Ok(()),
        other => skip_refused(name, other),
    })
}

fn set_xattrs(from: &dyn File, to: &dyn File, names: &[OsString]) -> io::Result<()> {
    names.iter().filter(|name| *name != XATTR).try_for_each(|name| {
        let value = from.get_xattr(name)?;
        skip_refused(name, to.set_xattr(name, &value, 0))
    })
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::E2BIG | libc::ERANGE))
}

fn unsupported_as_empty(names: io::Result<Vec<OsString>>) -> io::Result<Vec<OsString>> {
    match names {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
        other => other,
    }
}

/// Attributes of security modules are set by the kernel itself; it may refuse to have them copied.
fn skip_refused(name: &OsString, result: io::Result<()>) -> io::Result<()> {
    let label = name.to_string_lossy().starts_with("security.") && name != "security.capability";
    match result {
        Err(e) if label && matches!(e.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP)) => Ok(()),
        other => other,
    }
}
