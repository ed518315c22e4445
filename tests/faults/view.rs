//! What a tree of names shows, all of it.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use clonefs::engine::io::{FileKind, Timestamp};
use clonefs::engine::namespace::{Caller, Handle, NameTree, ROOT};
use clonefs::error::{Error, Kind, Result};

use crate::common::world::WRONG;

/// The one who looks.
const ROOT_USER: Caller = Caller { uid: 0, gid: 0, pid: 0 };
/// The time that is set by those who set one.
pub const STAMP: Timestamp = Timestamp { seconds: 77, nanos: 0 };

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub kind: FileKind,
    mode: u32,
    owner: (u32, u32),
    links: u64,
    stamped: bool,
    note: Option<Vec<u8>>,
    pub bytes: Vec<u8>,
}

/// Files by path.
pub type View = BTreeMap<String, Seen>;

/// All files, as a walk through the tree finds them. What is looked up is forgotten again.
pub fn look(names: &NameTree) -> Result<View> {
    let mut view = View::new();
    walk(names, ROOT, "", &mut view)?;
    Ok(view)
}

fn walk(names: &NameTree, directory: u64, path: &str, view: &mut View) -> Result<()> {
    let number = names.open_directory(directory)?;
    let mut entries = Vec::new();
    let listed = names.list(number, 0, &ROOT_USER, |_, entry| {
        entries.push(entry.name);
        true
    });
    names.release_directory(number);
    listed?;
    for name in entries.into_iter().filter(|name| name != "." && name != "..") {
        let path = format!("{path}{}", name.to_string_lossy());
        let node = names.lookup(directory, &name)?.node;
        let seen = look_at(names, node);
        if seen.as_ref().is_ok_and(|seen| seen.kind == FileKind::Directory) {
            walk(names, node, &format!("{path}/"), view)?;
        }
        names.forget(node, 1);
        view.insert(path, seen?);
    }
    Ok(())
}

/// One file, by its node.
pub fn look_at(names: &NameTree, node: u64) -> Result<Seen> {
    let stat = names.attributes(node)?.stat;
    let kind = stat.kind();
    let mut bytes = Vec::new();
    let mut note = None;
    if stat.nlink > 0 {
        note = names.get_xattr(node, OsStr::new("user.note"), &ROOT_USER).ok();
    }
    if kind == FileKind::File && stat.nlink > 0 {
        let number = names.open(node, libc::O_RDONLY, &ROOT_USER)?;
        let handle = names.handles().get(number)?;
        let read = bytes_of(&handle);
        names.release(number);
        bytes = read?;
        if bytes.len() as u64 != stat.size {
            let cause = format!("{WRONG}: {} bytes are shown, and {} read", stat.size, bytes.len());
            return Err(Error::new(Kind::Invalid, "read").because(cause));
        }
    }
    let links = if kind == FileKind::Directory { 0 } else { stat.nlink };
    let stamped = stat.mtime == STAMP;
    Ok(Seen { kind, mode: stat.mode, owner: (stat.uid, stat.gid), links, stamped, note, bytes })
}

/// What an open file reads.
pub fn bytes_of(handle: &Handle) -> Result<Vec<u8>> {
    let mut bytes = vec![0xaa; 64 << 10];
    let got = handle.read(0, &mut bytes)?;
    bytes.truncate(got);
    Ok(bytes)
}
