//! The simulated store as the seam sees it.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clonefs::engine::io::{
    DirEntry, File, FileKind, FileRef, Fs, FsInfo, InodeRef, Open, Rename, SetTime, Stat, Timestamp, Whence,
};
use parking_lot::{Mutex, MutexGuard};

use super::crash::{Capture, Crash, Moment};
use super::held::SimInode;
use super::image::{BLOCK, Change, Entry, Image};
use super::{Call, Fault, Options, Shared, State, errno};
use crate::common::rng::Rng;

/// A simulated filesystem.
pub struct SimFs {
    state: Shared,
}

/// One of its files, open.
struct SimFile {
    state: Shared,
    ino: u64,
    writable: bool,
}

/// Counts a call, takes the images that are wanted before it, and says whether it is to fail.
fn enter<'a>(
    state: &'a Shared,
    call: Call,
    what: impl FnOnce(&State) -> String,
) -> Result<MutexGuard<'a, State>, (MutexGuard<'a, State>, Fault)> {
    // Where schedules are searched, each call is a place where another thread may go on, as each atomic is.
    #[cfg(shuttle)]
    shuttle::sync::atomic::AtomicBool::new(false).load(shuttle::sync::atomic::Ordering::SeqCst);
    let mut guard = state.lock();
    if guard.capture.is_some() || guard.log.is_some() {
        let what = what(&guard);
        if call != Call::Read {
            guard.capture(&what);
        }
        let number = guard.calls + 1;
        if let Some(log) = &mut guard.log {
            log.push(format!("{number}: {what}"));
        }
    }
    guard.calls += 1;
    match guard.due_fault() {
        Some(fault) => Err((guard, fault)),
        None => Ok(guard),
    }
}

/// The same for calls of which nothing is done when they fail.
pub fn plain(state: &Shared, call: Call, what: impl FnOnce(&State) -> String) -> io::Result<MutexGuard<'_, State>> {
    enter(state, call, what).map_err(|(_, fault)| errno(fault.errno))
}

impl SimFs {
    /// An empty filesystem.
    pub fn new(options: Options) -> Arc<SimFs> {
        SimFs::from_image(Image::empty(), options)
    }

    /// One that has what `image` has, all of it durable.
    pub fn from_image(image: Image, options: Options) -> Arc<SimFs> {
        Arc::new(SimFs { state: Arc::new(Mutex::new(State::new(image, options))) })
    }

    /// What a crash now would leave.
    pub fn crash(&self, crash: Crash, rng: &mut Rng) -> Image {
        self.state.lock().crash(crash, rng)
    }

    /// From now on takes images before each call that changes something: one of a killed daemon, and `each` of a
    /// machine that stops.
    pub fn start_capture(&self, rng: Rng, each: u64) {
        self.state.lock().capture = Some(Capture { rng, each, moments: Vec::new() });
    }

    /// The images taken, and one more set of this moment.
    pub fn stop_capture(&self) -> (Vec<Moment>, Vec<Moment>) {
        let mut state = self.state.lock();
        let during = state.capture.as_mut().map(|c| std::mem::take(&mut c.moments)).unwrap_or_default();
        state.capture("the end");
        let after = state.capture.take().map(|c| c.moments).unwrap_or_default();
        (during, after)
    }

    /// Number of calls so far.
    pub fn calls(&self) -> u64 {
        self.state.lock().calls
    }

    /// Makes calls fail; counts calls from 1 again.
    pub fn set_fault(&self, fault: Option<Fault>) {
        let mut state = self.state.lock();
        (state.calls, state.failed, state.fault) = (0, 0, fault);
    }

    /// How many calls have failed on demand since.
    pub fn failed(&self) -> u64 {
        self.state.lock().failed
    }

    /// Keeps a list of calls.
    pub fn start_log(&self) {
        self.state.lock().log = Some(Vec::new());
    }

    /// The list.
    pub fn take_log(&self) -> Vec<String> {
        self.state.lock().log.take().unwrap_or_default()
    }

    /// Changes switches.
    pub fn options(&self, edit: impl FnOnce(&mut Options)) {
        edit(&mut self.state.lock().options);
    }

    /// Blocks in use.
    pub fn used(&self) -> u64 {
        self.state.lock().used()
    }

    fn create(&self, path: &Path, mode: u32, call: &'static str) -> io::Result<(MutexGuard<'_, State>, u64)> {
        let mut state = plain(&self.state, Call::Name, |_| format!("{call} {}", path.display()))?;
        let (dir, name) = state.parent(path)?;
        if state.entry(dir, &name).is_some() {
            return Err(errno(libc::EEXIST));
        }
        let ino = state.make(mode);
        state.rename(vec![Entry { dir, name, old: None, new: Some(ino) }]);
        Ok((state, ino))
    }
}

/// Opens a file.
pub fn handle(shared: &Shared, state: &mut State, ino: u64, writable: bool) -> FileRef {
    *state.open.entry(ino).or_default() += 1;
    Arc::new(SimFile { state: shared.clone(), ino, writable })
}

fn time(old: Timestamp, new: SetTime, now: Timestamp) -> Timestamp {
    match new {
        SetTime::Keep => old,
        SetTime::Now => now,
        SetTime::At(at) => at,
    }
}

/// The change that utimensat(2) makes.
pub fn times(state: &State, ino: u64, atime: SetTime, mtime: SetTime) -> io::Result<Change> {
    let now = Timestamp { seconds: state.now.clock, nanos: 0 };
    let attr = &state.node(ino)?.attr;
    Ok(Change::Times { ino, atime: time(attr.atime, atime, now), mtime: time(attr.mtime, mtime, now) })
}

impl Fs for SimFs {
    fn find(&self, path: &Path) -> io::Result<InodeRef> {
        let mut state = plain(&self.state, Call::Read, |_| format!("hold {}", path.display()))?;
        let ino = state.lookup(path)?;
        Ok(SimInode::hold(&self.state, &mut state, ino))
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<FileRef> {
        if let Open::CreateNew(mode) = how {
            let (mut state, ino) = self.create(path, libc::S_IFREG | mode & 0o7777, "create")?;
            return Ok(handle(&self.state, &mut state, ino, true));
        }
        let mut state = plain(&self.state, Call::Read, |_| format!("open {}", path.display()))?;
        let ino = state.lookup(path)?;
        if state.stat(ino)?.kind() != FileKind::File {
            return Err(errno(libc::EINVAL));
        }
        state.labels.insert(ino, path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        Ok(handle(&self.state, &mut state, ino, how == Open::Write))
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let state = plain(&self.state, Call::Read, |_| format!("stat {}", path.display()))?;
        state.stat(state.lookup(path)?)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let state = plain(&self.state, Call::Read, |_| format!("list {}", path.display()))?;
        let dir = state.lookup(path)?;
        let entries = &state.node(dir)?.entries;
        Ok(entries.iter().map(|(name, ino)| DirEntry { name: name.clone(), ino: *ino, kind: None }).collect())
    }

    fn mkdir(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.create(path, libc::S_IFDIR | mode, "mkdir").map(drop)
    }

    fn mknod(&self, path: &Path, mode: u32, _rdev: u64) -> io::Result<()> {
        self.create(path, mode, "mknod").map(drop)
    }

    fn symlink(&self, _target: &Path, _path: &Path) -> io::Result<()> {
        Err(errno(libc::EOPNOTSUPP))
    }

    fn readlink(&self, _path: &Path) -> io::Result<PathBuf> {
        Err(errno(libc::EINVAL))
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut state = plain(&self.state, Call::Name, |_| format!("unlink {}", path.display()))?;
        let (dir, name) = state.parent(path)?;
        let old = Some(state.entry(dir, &name).ok_or_else(|| errno(libc::ENOENT))?);
        state.rename(vec![Entry { dir, name, old, new: None }]);
        Ok(())
    }

    fn rmdir(&self, path: &Path) -> io::Result<()> {
        self.unlink(path)
    }

    fn rename(&self, from: &Path, to: &Path, how: Rename) -> io::Result<()> {
        let mut state = plain(&self.state, Call::Name, |_| format!("rename {} to {}", from.display(), to.display()))?;
        let ((from_dir, from_name), (to_dir, to_name)) = (state.parent(from)?, state.parent(to)?);
        if state.options.stuck && from.starts_with(".clonefs") && !to.starts_with(".clonefs") {
            return Err(errno(libc::EXDEV));
        }
        state.move_name((from_dir, &from_name), (to_dir, &to_name), how)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = plain(&self.state, Call::Name, |_| format!("link {} to {}", from.display(), to.display()))?;
        let ino = state.lookup(from)?;
        let (dir, name) = state.parent(to)?;
        if state.entry(dir, &name).is_some() {
            return Err(errno(libc::EEXIST));
        }
        state.rename(vec![Entry { dir, name, old: None, new: Some(ino) }]);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = plain(&self.state, Call::Sync, |_| format!("sync directory {}", path.display()))?;
        let dir = state.lookup(path)?;
        state.sync_dir(dir);
        Ok(())
    }

    fn sync_fs(&self) -> io::Result<()> {
        let mut state = plain(&self.state, Call::Sync, |_| "sync filesystem".into())?;
        state.sync_fs();
        Ok(())
    }

    fn chmod(&self, path: &Path, mode: u32) -> io::Result<()> {
        let mut state = plain(&self.state, Call::Attr, |_| format!("chmod {}", path.display()))?;
        let ino = state.lookup(path)?;
        state.set_attr(ino, |a| Change::Mode { ino, mode: a.mode & libc::S_IFMT | mode & 0o7777 })
    }

    fn chown(&self, path: &Path, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let mut state = plain(&self.state, Call::Attr, |_| format!("chown {}", path.display()))?;
        let ino = state.lookup(path)?;
        state.set_attr(ino, |a| Change::Owner { ino, uid: uid.unwrap_or(a.uid), gid: gid.unwrap_or(a.gid) })
    }

    fn set_times(&self, path: &Path, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        let mut state = plain(&self.state, Call::Attr, |_| format!("set times of {}", path.display()))?;
        let change = times(&state, state.lookup(path)?, atime, mtime)?;
        state.change(change);
        Ok(())
    }

    fn get_xattr(&self, path: &Path, name: &OsString) -> io::Result<Vec<u8>> {
        let state = plain(&self.state, Call::Read, |_| format!("getxattr {}", path.display()))?;
        let node = state.node(state.lookup(path)?)?;
        node.attr.xattrs.get(name).cloned().ok_or_else(|| errno(libc::ENODATA))
    }

    fn set_xattr(&self, path: &Path, name: &OsString, value: &[u8], _flags: i32) -> io::Result<()> {
        let mut state = plain(&self.state, Call::Attr, |_| format!("setxattr {}", path.display()))?;
        let ino = state.lookup(path)?;
        state.change(Change::Xattr { ino, name: name.clone(), value: Some(value.to_vec()) });
        Ok(())
    }

    fn list_xattr(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let state = plain(&self.state, Call::Read, |_| format!("listxattr {}", path.display()))?;
        Ok(state.node(state.lookup(path)?)?.attr.xattrs.keys().cloned().collect())
    }

    fn remove_xattr(&self, path: &Path, name: &OsString) -> io::Result<()> {
        let mut state = plain(&self.state, Call::Attr, |_| format!("removexattr {}", path.display()))?;
        let ino = state.lookup(path)?;
        state.change(Change::Xattr { ino, name: name.clone(), value: None });
        Ok(())
    }

    fn info(&self) -> io::Result<FsInfo> {
        let state = plain(&self.state, Call::Read, |_| "statfs".into())?;
        let blocks = state.options.space.unwrap_or(1 << 30);
        let free = blocks.saturating_sub(state.used());
        let magic = if state.options.reflink { 0x5846_5342 } else { 0xef53 };
        let (block_size, files, files_free, name_max) = (BLOCK, 1 << 20, 1 << 20, 255);
        Ok(FsInfo { magic, block_size, blocks, free, available: free, files, files_free, name_max })
    }

    fn instance(&self) -> Option<String> {
        Some(self.boot_id())
    }

    fn boot_id(&self) -> String {
        format!("boot-{}", self.state.lock().now.boot)
    }
}

impl SimFile {
    fn enter(&self, call: Call, what: &'static str) -> io::Result<MutexGuard<'_, State>> {
        plain(&self.state, call, |s| format!("{what} {}", s.called(self.ino)))
    }

    fn writable(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(errno(libc::EBADF)) }
    }

    fn sync(&self, attributes: bool) -> io::Result<()> {
        match enter(&self.state, Call::Sync, |s| format!("sync {}", s.called(self.ino))) {
            Ok(mut state) => {
                state.sync_file(self.ino, attributes);
                Ok(())
            }
            Err((mut state, fault)) => {
                if !fault.dead {
                    state.sync_failed(self.ino);
                }
                Err(errno(fault.errno))
            }
        }
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if let Some(count) = state.open.get_mut(&self.ino) {
            *count -= 1;
        }
        state.forget_unused(self.ino);
    }
}

impl File for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let state =
            plain(&self.state, Call::Read, |s| format!("read {} {} at {offset}", s.called(self.ino), buf.len()))?;
        state.read(self.ino, buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write_part(data, offset, false).1
    }

    fn write_part(&self, data: &[u8], offset: u64, _direct: bool) -> (usize, io::Result<()>) {
        if let Err(error) = self.writable() {
            return (0, Err(error));
        }
        let what = |s: &State| format!("write {} {} at {offset}", s.called(self.ino), data.len());
        match enter(&self.state, Call::Data, what) {
            Ok(mut state) => state.write(self.ino, data, offset),
            Err((mut state, fault)) => {
                let mut done = 0;
                if fault.short {
                    // Up to the middle, and in whole sectors.
                    let end = (offset + data.len() as u64 / 2) & !511;
                    done = state.write(self.ino, &data[..end.saturating_sub(offset) as usize], offset).0;
                }
                (done, Err(errno(fault.errno)))
            }
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.writable()?;
        plain(&self.state, Call::Data, |s| format!("set length {} {len}", s.called(self.ino)))?.set_len(self.ino, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync(false)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync(true)
    }

    fn allocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        self.writable()?;
        let what = |s: &State| format!("allocate {} {mode} {offset} {len}", s.called(self.ino));
        plain(&self.state, Call::Data, what)?.allocate(self.ino, mode, offset, len)
    }

    fn stat(&self) -> io::Result<Stat> {
        self.enter(Call::Read, "stat")?.stat(self.ino)
    }

    fn seek(&self, offset: u64, whence: Whence) -> io::Result<u64> {
        self.enter(Call::Read, "seek")?.seek(self.ino, offset, whence == Whence::Data)
    }

    fn share_range(&self, source: &dyn File, from: u64, to: u64, len: u64) -> io::Result<()> {
        self.writable()?;
        if !self.state.lock().options.reflink {
            return Err(errno(libc::EOPNOTSUPP));
        }
        let mut bytes = vec![0; len as usize];
        let got = source.read_at(&mut bytes, from)?;
        let what = |s: &State| format!("share {} {len} at {to}", s.called(self.ino));
        plain(&self.state, Call::Data, what)?.write(self.ino, &bytes[..got], to).1
    }

    fn link_to(&self, path: &Path) -> io::Result<()> {
        let what = |s: &State| format!("link {} to {}", s.called(self.ino), path.display());
        let mut state = plain(&self.state, Call::Name, what)?;
        let (dir, name) = state.parent(path)?;
        if state.entry(dir, &name).is_some() {
            return Err(errno(libc::EEXIST));
        }
        if state.node(self.ino)?.nlink == 0 {
            return Err(errno(libc::ENOENT));
        }
        state.rename(vec![Entry { dir, name, old: None, new: Some(self.ino) }]);
        Ok(())
    }

    fn chmod(&self, mode: u32) -> io::Result<()> {
        let ino = self.ino;
        self.enter(Call::Attr, "chmod")?
            .set_attr(ino, |a| Change::Mode { ino, mode: a.mode & libc::S_IFMT | mode & 0o7777 })
    }

    fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        let ino = self.ino;
        self.enter(Call::Attr, "chown")?.set_attr(ino, |a| Change::Owner {
            ino,
            uid: uid.unwrap_or(a.uid),
            gid: gid.unwrap_or(a.gid),
        })
    }

    fn set_times(&self, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        let mut state = self.enter(Call::Attr, "set times")?;
        let change = times(&state, self.ino, atime, mtime)?;
        state.change(change);
        Ok(())
    }

    fn get_xattr(&self, name: &OsString) -> io::Result<Vec<u8>> {
        let state = self.enter(Call::Read, "getxattr")?;
        state.node(self.ino)?.attr.xattrs.get(name).cloned().ok_or_else(|| errno(libc::ENODATA))
    }

    fn set_xattr(&self, name: &OsString, value: &[u8], _flags: i32) -> io::Result<()> {
        let mut state = self.enter(Call::Attr, "setxattr")?;
        state.change(Change::Xattr { ino: self.ino, name: name.clone(), value: Some(value.to_vec()) });
        Ok(())
    }

    fn list_xattr(&self) -> io::Result<Vec<OsString>> {
        let state = self.enter(Call::Read, "listxattr")?;
        Ok(state.node(self.ino)?.attr.xattrs.keys().cloned().collect())
    }

    fn remove_xattr(&self, name: &OsString) -> io::Result<()> {
        let mut state = self.enter(Call::Attr, "removexattr")?;
        if !state.node(self.ino)?.attr.xattrs.contains_key(name) {
            return Err(errno(libc::ENODATA));
        }
        state.change(Change::Xattr { ino: self.ino, name: name.clone(), value: None });
        Ok(())
    }
}
