//! A file whose attributes are read or set: by descriptor where there is one, else by name.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, fchown, lchown};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, futimens, utimensat};
use rustix::io::Errno;

use crate::stat::{MODE_BITS, Stat, Time};

/// A file and how it is reached.
#[derive(Clone, Copy)]
pub enum Node<'a> {
    /// Open.
    Open(&'a File, &'a Path),
    /// By its name, which is not a symbolic link's.
    Named(&'a Path),
    /// A symbolic link itself.
    Link(&'a Path),
}

impl<'a> Node<'a> {
    /// Its name, for messages.
    pub fn path(&self) -> &'a Path {
        match self {
            Node::Open(_, path) | Node::Named(path) | Node::Link(path) => path,
        }
    }

    /// Sets the times of access and modification.
    pub fn set_times(&self, stat: &Stat) -> io::Result<()> {
        let spec = |time: Time| Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds };
        let times = Timestamps { last_access: spec(stat.atime), last_modification: spec(stat.mtime) };
        match self {
            Node::Open(file, _) => futimens(file, &times)?,
            Node::Named(path) => utimensat(CWD, *path, &times, AtFlags::empty())?,
            Node::Link(path) => utimensat(CWD, *path, &times, AtFlags::SYMLINK_NOFOLLOW)?,
        }
        Ok(())
    }

    /// Sets owner (unless `None`) and group.
    pub fn set_owner(&self, uid: Option<u32>, gid: u32) -> io::Result<()> {
        match self {
            Node::Open(file, _) => fchown(file, uid, Some(gid)),
            Node::Named(path) | Node::Link(path) => lchown(path, uid, Some(gid)),
        }
    }

    /// Sets the permission bits. A symbolic link has none.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        let permissions = Permissions::from_mode(mode & MODE_BITS);
        match self {
            Node::Open(file, _) => file.set_permissions(permissions),
            Node::Named(path) => fs::set_permissions(path, permissions),
            Node::Link(_) => Ok(()),
        }
    }

    /// Names of the extended attributes that it lists.
    pub fn list_xattrs(&self) -> Result<Vec<Vec<u8>>, Errno> {
        let list = whole(|buffer| match self {
            Node::Open(file, _) => rustix::fs::flistxattr(file, buffer),
            Node::Named(path) => rustix::fs::listxattr(*path, buffer),
            Node::Link(path) => rustix::fs::llistxattr(*path, buffer),
        })?;
        Ok(list.split(|&b| b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
    }

    /// Value of an extended attribute.
    pub fn xattr(&self, name: &[u8]) -> Result<Vec<u8>, Errno> {
        whole(|buffer| match self {
            Node::Open(file, _) => rustix::fs::fgetxattr(file, name, buffer),
            Node::Named(path) => rustix::fs::getxattr(*path, name, buffer),
            Node::Link(path) => rustix::fs::lgetxattr(*path, name, buffer),
        })
    }

    /// Sets an extended attribute.
    pub fn set_xattr(&self, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        let flags = rustix::fs::XattrFlags::empty();
        match self {
            Node::Open(file, _) => rustix::fs::fsetxattr(file, name, value, flags),
            Node::Named(path) => rustix::fs::setxattr(*path, name, value, flags),
            Node::Link(path) => rustix::fs::lsetxattr(*path, name, value, flags),
        }
    }

    /// Takes an extended attribute away.
    pub fn remove_xattr(&self, name: &[u8]) -> Result<(), Errno> {
        match self {
            Node::Open(file, _) => rustix::fs::fremovexattr(file, name),
            Node::Named(path) => rustix::fs::removexattr(*path, name),
            Node::Link(path) => rustix::fs::lremovexattr(*path, name),
        }
    }
}

/// Reads something of unknown length: with more room each time until it fits.
fn whole(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 512];
    loop {
        match read(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            // The kernel's own limit is 64 KiB.
            Err(Errno::RANGE) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 4, 0),
            Err(e) => return Err(e),
        }
    }
}
