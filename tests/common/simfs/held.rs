//! Files that are held, as the seam sees them.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clonefs::engine::io::{DirEntry, FileRef, Inode, InodeRef, Rename, SetTime, Stat};
use parking_lot::MutexGuard;

use super::calls::{handle, plain, times};
use super::image::{Change, Entry};
use super::{Call, Shared, State, errno};

/// A held file. It is not forgotten before this is dropped, as if it were open.
pub struct SimInode {
    state: Shared,
    ino: u64,
}

impl SimInode {
    pub fn hold(shared: &Shared, state: &mut State, ino: u64) -> InodeRef {
        *state.open.entry(ino).or_default() += 1;
        Arc::new(SimInode { state: shared.clone(), ino })
    }

    fn enter(&self, call: Call, what: &str, name: &OsStr) -> io::Result<MutexGuard<'_, State>> {
        plain(&self.state, call, |s| format!("{what} {} in {}", name.display(), s.called(self.ino)))
    }

    fn entry(&self, state: &State, name: &OsStr) -> io::Result<u64> {
        state.entry(self.ino, name).ok_or_else(|| errno(libc::ENOENT))
    }

    fn make(&self, name: &OsStr, mode: u32, what: &str) -> io::Result<(MutexGuard<'_, State>, u64)> {
        let mut state = self.enter(Call::Name, what, name)?;
        if state.entry(self.ino, name).is_some() {
            return Err(errno(libc::EEXIST));
        }
        let ino = state.make(mode);
        state.rename(vec![Entry { dir: self.ino, name: name.to_owned(), old: None, new: Some(ino) }]);
        Ok((state, ino))
    }
}

impl Drop for SimInode {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if let Some(count) = state.open.get_mut(&self.ino) {
            *count -= 1;
        }
        state.forget_unused(self.ino);
    }
}

impl Inode for SimInode {
    fn stat(&self) -> io::Result<Stat> {
        plain(&self.state, Call::Read, |s| format!("stat {}", s.called(self.ino)))?.stat(self.ino)
    }

    fn chmod(&self, mode: u32) -> io::Result<()> {
        let ino = self.ino;
        let mut state = plain(&self.state, Call::Attr, |s| format!("chmod {}", s.called(ino)))?;
        state.set_attr(ino, |a| Change::Mode { ino, mode: a.mode & libc::S_IFMT | mode & 0o7777 })
    }

    fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let ino = self.ino;
        let mut state = plain(&self.state, Call::Attr, |s| format!("chown {}", s.called(ino)))?;
        state.set_attr(ino, |a| Change::Owner { ino, uid: uid.unwrap_or(a.uid), gid: gid.unwrap_or(a.gid) })
    }

    fn set_times(&self, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        let mut state = plain(&self.state, Call::Attr, |s| format!("set times of {}", s.called(self.ino)))?;
        let change = times(&state, self.ino, atime, mtime)?;
        state.change(change);
        Ok(())
    }

    fn get_xattr(&self, name: &OsString) -> io::Result<Vec<u8>> {
        let state = plain(&self.state, Call::Read, |s| format!("getxattr {}", s.called(self.ino)))?;
        state.node(self.ino)?.attr.xattrs.get(name).cloned().ok_or_else(|| errno(libc::ENODATA))
    }

    fn set_xattr(&self, name: &OsString, value: &[u8], _flags: i32) -> io::Result<()> {
        let mut state = plain(&self.state, Call::Attr, |s| format!("setxattr {}", s.called(self.ino)))?;
        state.change(Change::Xattr { ino: self.ino, name: name.clone(), value: Some(value.to_vec()) });
        Ok(())
    }

    fn list_xattr(&self) -> io::Result<Vec<OsString>> {
        let state = plain(&self.state, Call::Read, |s| format!("listxattr {}", s.called(self.ino)))?;
        Ok(state.node(self.ino)?.attr.xattrs.keys().cloned().collect())
    }

    fn remove_xattr(&self, name: &OsString) -> io::Result<()> {
        let mut state = plain(&self.state, Call::Attr, |s| format!("removexattr {}", s.called(self.ino)))?;
        state.change(Change::Xattr { ino: self.ino, name: name.clone(), value: None });
        Ok(())
    }

    fn readlink(&self) -> io::Result<PathBuf> {
        Err(errno(libc::EINVAL))
    }

    fn at(&self, name: &OsStr) -> io::Result<InodeRef> {
        let mut state = self.enter(Call::Read, "hold", name)?;
        let ino = self.entry(&state, name)?;
        Ok(SimInode::hold(&self.state, &mut state, ino))
    }

    fn stat_at(&self, name: &OsStr) -> io::Result<Stat> {
        let state = self.enter(Call::Read, "stat", name)?;
        state.stat(self.entry(&state, name)?)
    }

    fn list(&self) -> io::Result<Vec<DirEntry>> {
        let state = plain(&self.state, Call::Read, |s| format!("list {}", s.called(self.ino)))?;
        let entries = &state.node(self.ino)?.entries;
        Ok(entries.iter().map(|(name, ino)| DirEntry { name: name.clone(), ino: *ino, kind: None }).collect())
    }

    fn sync(&self) -> io::Result<()> {
        plain(&self.state, Call::Sync, |s| format!("sync directory {}", s.called(self.ino)))?.sync_dir(self.ino);
        Ok(())
    }

    fn create(&self, name: &OsStr, mode: u32) -> io::Result<FileRef> {
        let (mut state, ino) = self.make(name, libc::S_IFREG | mode & 0o7777, "create")?;
        Ok(handle(&self.state, &mut state, ino, true))
    }

    fn mkdir(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        self.make(name, libc::S_IFDIR | mode, "mkdir").map(drop)
    }

    fn mknod(&self, name: &OsStr, mode: u32, _rdev: u64) -> io::Result<()> {
        self.make(name, mode, "mknod").map(drop)
    }

    fn symlink(&self, _target: &Path, _name: &OsStr) -> io::Result<()> {
        Err(errno(libc::EOPNOTSUPP))
    }

    fn unlink(&self, name: &OsStr) -> io::Result<()> {
        let mut state = self.enter(Call::Name, "unlink", name)?;
        let old = Some(self.entry(&state, name)?);
        state.rename(vec![Entry { dir: self.ino, name: name.to_owned(), old, new: None }]);
        Ok(())
    }

    fn rmdir(&self, name: &OsStr) -> io::Result<()> {
        self.unlink(name)
    }

    fn rename(&self, name: &OsStr, to: &dyn Inode, new: &OsStr, how: Rename) -> io::Result<()> {
        let to = to.stat()?.key.ino;
        let mut state = self.enter(Call::Name, "rename", name)?;
        state.move_name((self.ino, name), (to, new), how)
    }

    fn link(&self, file: &dyn Inode, name: &OsStr) -> io::Result<()> {
        let ino = file.stat()?.key.ino;
        let mut state = self.enter(Call::Name, "link", name)?;
        if state.entry(self.ino, name).is_some() {
            return Err(errno(libc::EEXIST));
        }
        state.rename(vec![Entry { dir: self.ino, name: name.to_owned(), old: None, new: Some(ino) }]);
        Ok(())
    }
}

impl State {
    /// renameat2(2).
    pub fn move_name(&mut self, from: (u64, &OsStr), to: (u64, &OsStr), how: Rename) -> io::Result<()> {
        let moved = self.entry(from.0, from.1).ok_or_else(|| errno(libc::ENOENT))?;
        let there = self.entry(to.0, to.1);
        let back = match (how, there) {
            (Rename::NoReplace, Some(_)) => return Err(errno(libc::EEXIST)),
            (Rename::Exchange, None) => return Err(errno(libc::ENOENT)),
            (Rename::Exchange, there) => there,
            (Rename::Whiteout, _) => return Err(errno(libc::EINVAL)),
            _ if there == Some(moved) => return Ok(()),
            _ => None,
        };
        self.rename(vec![
            Entry { dir: to.0, name: to.1.to_owned(), old: there, new: Some(moved) },
            Entry { dir: from.0, name: from.1.to_owned(), old: Some(moved), new: back },
        ]);
        Ok(())
    }
}
