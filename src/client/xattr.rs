//! Extended attributes of paths and open files, with buffers that grow as needed.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr, getxattr};
use rustix::io::Errno;

/// Largest value or list that the kernel gives (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const LARGEST: usize = 64 << 10;

/// Value of an attribute of what `path` names, through symbolic links.
pub fn get(path: &Path, name: &str) -> rustix::io::Result<Vec<u8>> {
    growing(|buffer| getxattr(path, name, buffer))
}

/// Value of an attribute of an open file.
pub fn fget(file: impl AsFd, name: &OsStr) -> rustix::io::Result<Vec<u8>> {
    growing(|buffer| fgetxattr(file.as_fd(), name, buffer))
}

/// Sets an attribute of an open file.
pub fn fset(file: impl AsFd, name: &OsStr, value: &[u8]) -> rustix::io::Result<()> {
    fsetxattr(file, name, value, XattrFlags::empty())
}

/// Names of the attributes of an open file; none where the filesystem has no attributes.
pub fn flist(file: impl AsFd) -> rustix::io::Result<Vec<OsString>> {
    names(growing(|buffer| flistxattr(file.as_fd(), buffer)))
}

/// Whether an error says that there is no such attribute, or that there are none on this filesystem.
pub fn absent(error: Errno) -> bool {
    matches!(error, Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS)
}

fn names(list: rustix::io::Result<Vec<u8>>) -> rustix::io::Result<Vec<OsString>> {
    match list {
        Ok(list) => {
            let split = list.split(|&b| b == 0).filter(|n| !n.is_empty());
            Ok(split.map(|n| OsStr::from_bytes(n).to_owned()).collect())
        }
        Err(e) if absent(e) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Calls with a buffer that fits nearly always, and once more with the largest one where it does not.
fn growing(mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0u8; 2048];
    loop {
        match call(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < LARGEST => buffer.resize(LARGEST, 0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// An attribute's value as text for a message.
pub fn text(value: Vec<u8>) -> String {
    OsString::from_vec(value).to_string_lossy().into_owned()
}
