//! Bugs planted into clonefs at its seam to the system: what it asks for is not done, or done too late. The code above
//! the seam is the real one, so what it would be without one of its steps is seen.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clonefs::engine::io::{
    DirEntry, File, FileRef, Fs, FsInfo, HostFs, Inode, InodeRef, Open, Rename, SetTime, Stat, Whence,
};
use parking_lot::Mutex;

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Nothing: the machine must find nothing.
    None,
    /// A sync makes the map of a layer durable before its data.
    BitBeforeData,
    /// No directory is synced.
    NoDirSync,
    /// What is written under `tmp` is renamed into place without having been synced.
    NoTempSync,
    /// Holes are punched at the next sync, when there may be new data.
    DelayedPunch,
    /// What background copying writes arrives once more some syncs later, over what was written since.
    DeepenOverwrites,
}

impl Bug {
    /// All, the sound code first.
    pub const ALL: [Bug; 6] =
        [Bug::None, Bug::BitBeforeData, Bug::NoDirSync, Bug::NoTempSync, Bug::DelayedPunch, Bug::DeepenOverwrites];

    /// A short name.
    pub fn name(self) -> &'static str {
        match self {
            Bug::None => "none",
            Bug::BitBeforeData => "bit-before-data",
            Bug::NoDirSync => "no-dir-sync",
            Bug::NoTempSync => "no-temp-sync",
            Bug::DelayedPunch => "delayed-punch",
            Bug::DeepenOverwrites => "deepen-overwrites",
        }
    }
}

/// So many syncs later a write of background copying comes again.
const SYNCS: u32 = 8;

/// Something that was asked for and is done later.
enum Late {
    Sync(FileRef),
    Punch { file: FileRef, mode: i32, offset: u64, len: u64 },
    Write { file: FileRef, offset: u64, data: Vec<u8>, syncs: u32 },
}

impl Late {
    /// One more sync has come. Whether it is to be done now.
    fn is_due(&mut self) -> bool {
        let Late::Write { syncs, .. } = self else { return true };
        *syncs = syncs.saturating_sub(1);
        *syncs == 0
    }

    fn happen(self) -> io::Result<()> {
        match self {
            Late::Sync(file) => file.sync_data(),
            Late::Punch { file, mode, offset, len } => file.allocate(mode, offset, len),
            Late::Write { file, offset, mut data, .. } => {
                // Deepening does not write beyond the end.
                data.truncate(file.stat()?.size.saturating_sub(offset) as usize);
                file.write_at(&data, offset)
            }
        }
    }
}

/// What the files of one filesystem share.
struct Fault {
    bug: Bug,
    late: Mutex<Vec<Late>>,
}

impl Fault {
    fn later(&self, what: Late) {
        self.late.lock().push(what);
    }

    fn settle(&self) -> io::Result<()> {
        let due: Vec<Late> = self.late.lock().extract_if(.., Late::is_due).collect();
        due.into_iter().try_for_each(Late::happen)
    }
}

/// Whether this thread is one of clonefs's own, which work in the background.
fn in_background() -> bool {
    std::thread::current().name().is_some_and(|name| name.starts_with("clonefs-"))
}

/// The host's filesystem with a bug.
pub struct PlantedFs {
    host: Arc<HostFs>,
    fault: Arc<Fault>,
}

impl PlantedFs {
    /// The tree below `root`.
    pub fn new(root: &Path, bug: Bug) -> io::Result<PlantedFs> {
        let fault = Fault { bug, late: Mutex::default() };
        Ok(PlantedFs { host: Arc::new(HostFs::open_dir(root)?), fault: Arc::new(fault) })
    }

    /// Does what was put off: to be called when a sync of a user's has returned, before that is announced.
    pub fn settle(&self) -> io::Result<()> {
        self.fault.settle()
    }
}

impl Fs for PlantedFs {
    fn find(&self, path: &Path) -> io::Result<InodeRef> {
        Ok(Arc::new(PlantedInode { held: self.host.find(path)?, bug: self.fault.bug }))
    }
    fn open(&self, path: &Path, how: Open) -> io::Result<FileRef> {
        let file = self.host.open(path, how)?;
        let (host, fault) = (self.host.clone(), self.fault.clone());
        Ok(Arc::new(PlantedFile { file, path: path.to_path_buf(), host, fault }))
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        if self.fault.bug == Bug::NoDirSync { Ok(()) } else { self.host.sync_dir(path) }
    }
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        self.host.stat(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.host.list(path)
    }
    fn mkdir(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.host.mkdir(path, mode)
    }
    fn mknod(&self, path: &Path, mode: u32, rdev: u64) -> io::Result<()> {
        self.host.mknod(path, mode, rdev)
    }
    fn symlink(&self, target: &Path, path: &Path) -> io::Result<()> {
        self.host.symlink(target, path)
    }
    fn readlink(&self, path: &Path) -> io::Result<PathBuf> {
        self.host.readlink(path)
    }
    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.host.unlink(path)
    }
    fn rmdir(&self, path: &Path) -> io::Result<()> {
        self.host.rmdir(path)
    }
    fn rename(&self, from: &Path, to: &Path, how: Rename) -> io::Result<()> {
        self.host.rename(from, to, how)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.host.link(from, to)
    }
    fn sync_fs(&self) -> io::Result<()> {
        self.host.sync_fs()
    }
    fn chmod(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.host.chmod(path, mode)
    }
    fn chown(&self, path: &Path, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        self.host.chown(path, uid, gid)
    }
    fn set_times(&self, path: &Path, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        self.host.set_times(path, atime, mtime)
    }
    fn get_xattr(&self, path: &Path, name: &OsString) -> io::Result<Vec<u8>> {
        self.host.get_xattr(path, name)
    }
    fn set_xattr(&self, path: &Path, name: &OsString, value: &[u8], flags: i32) -> io::Result<()> {
        self.host.set_xattr(path, name, value, flags)
    }
    fn list_xattr(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.host.list_xattr(path)
    }
    fn remove_xattr(&self, path: &Path, name: &OsString) -> io::Result<()> {
        self.host.remove_xattr(path, name)
    }
    fn info(&self) -> io::Result<FsInfo> {
        self.host.info()
    }
    fn instance(&self) -> Option<String> {
        self.host.instance()
    }
    fn root_fd(&self) -> Option<i32> {
        self.host.root_fd()
    }
}

/// Of what is held only names and attributes are changed; of the bugs it is the sync that matters here.
struct PlantedInode {
    held: InodeRef,
    bug: Bug,
}

impl Inode for PlantedInode {
    fn sync(&self) -> io::Result<()> {
        if self.bug == Bug::NoDirSync { Ok(()) } else { self.held.sync() }
    }
    fn at(&self, name: &OsStr) -> io::Result<InodeRef> {
        Ok(Arc::new(PlantedInode { held: self.held.at(name)?, bug: self.bug }))
    }
    fn stat(&self) -> io::Result<Stat> {
        self.held.stat()
    }
    fn chmod(&self, mode: u32) -> io::Result<()> {
        self.held.chmod(mode)
    }
    fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        self.held.chown(uid, gid)
    }
    fn set_times(&self, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        self.held.set_times(atime, mtime)
    }
    fn get_xattr(&self, name: &OsString) -> io::Result<Vec<u8>> {
        self.held.get_xattr(name)
    }
    fn set_xattr(&self, name: &OsString, value: &[u8], flags: i32) -> io::Result<()> {
        self.held.set_xattr(name, value, flags)
    }
    fn list_xattr(&self) -> io::Result<Vec<OsString>> {
        self.held.list_xattr()
    }
    fn remove_xattr(&self, name: &OsString) -> io::Result<()> {
        self.held.remove_xattr(name)
    }
    fn readlink(&self) -> io::Result<PathBuf> {
        self.held.readlink()
    }
    fn stat_at(&self, name: &OsStr) -> io::Result<Stat> {
        self.held.stat_at(name)
    }
    fn list(&self) -> io::Result<Vec<DirEntry>> {
        self.held.list()
    }
    fn create(&self, name: &OsStr, mode: u32) -> io::Result<FileRef> {
        self.held.create(name, mode)
    }
    fn mkdir(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        self.held.mkdir(name, mode)
    }
    fn mknod(&self, name: &OsStr, mode: u32, rdev: u64) -> io::Result<()> {
        self.held.mknod(name, mode, rdev)
    }
    fn symlink(&self, target: &Path, name: &OsStr) -> io::Result<()> {
        self.held.symlink(target, name)
    }
    fn unlink(&self, name: &OsStr) -> io::Result<()> {
        self.held.unlink(name)
    }
    fn rmdir(&self, name: &OsStr) -> io::Result<()> {
        self.held.rmdir(name)
    }
    fn rename(&self, name: &OsStr, to: &dyn Inode, new: &OsStr, how: Rename) -> io::Result<()> {
        self.held.rename(name, to, new, how)
    }
    fn link(&self, file: &dyn Inode, name: &OsStr) -> io::Result<()> {
        self.held.link(file, name)
    }
    fn may_be_kept(&self) -> bool {
        self.held.may_be_kept()
    }
    fn fd(&self) -> Option<i32> {
        self.held.fd()
    }
}

struct PlantedFile {
    file: FileRef,
    /// The name it was opened by.
    path: PathBuf,
    host: Arc<HostFs>,
    fault: Arc<Fault>,
}

impl PlantedFile {
    fn has(&self, bug: Bug) -> bool {
        self.fault.bug == bug
    }

    /// It is the `data` or the `map` of a layer.
    fn is_part(&self, part: &str) -> bool {
        self.path.starts_with(".clonefs/layers") && self.path.extension().is_some_and(|e| e == part)
    }

    /// It is under `tmp` and has not been renamed into place yet.
    fn is_temporary(&self) -> bool {
        let there = || Some(self.host.stat(&self.path).ok()?.key == self.file.stat().ok()?.key);
        self.path.starts_with(".clonefs/tmp") && there().unwrap_or(false)
    }

    fn sync(&self, sync: impl FnOnce(&dyn File) -> io::Result<()>) -> io::Result<()> {
        if self.has(Bug::NoTempSync) && self.is_temporary() {
            return Ok(());
        }
        if self.has(Bug::BitBeforeData) && self.is_part("data") && !in_background() {
            self.fault.later(Late::Sync(self.file.clone()));
            return Ok(());
        }
        sync(&*self.file)?;
        if self.has(Bug::BitBeforeData) && self.is_part("map") { self.fault.settle() } else { Ok(()) }
    }

    /// A write of background copying comes again later.
    fn again_later(&self, offset: u64, data: impl FnOnce() -> io::Result<Vec<u8>>) -> io::Result<()> {
        if self.has(Bug::DeepenOverwrites) && self.is_part("data") && in_background() {
            self.fault.later(Late::Write { file: self.file.clone(), offset, data: data()?, syncs: SYNCS });
        }
        Ok(())
    }
}

impl File for PlantedFile {
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(data, offset)?;
        self.again_later(offset, || Ok(data.to_vec()))
    }
    fn write_part(&self, data: &[u8], offset: u64, direct: bool) -> (usize, io::Result<()>) {
        let (done, ended) = self.file.write_part(data, offset, direct);
        (done, ended.and_then(|()| self.again_later(offset, || Ok(data.to_vec()))))
    }
    fn share_range(&self, source: &dyn File, from: u64, to: u64, len: u64) -> io::Result<()> {
        self.file.share_range(source, from, to, len)?;
        self.again_later(to, || {
            let mut data = vec![0; len as usize];
            let got = self.file.read_at(&mut data, to)?;
            data.truncate(got);
            Ok(data)
        })
    }
    fn allocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        if self.has(Bug::DelayedPunch) && mode & libc::FALLOC_FL_PUNCH_HOLE != 0 {
            self.fault.later(Late::Punch { file: self.file.clone(), mode, offset, len });
            return Ok(());
        }
        self.file.allocate(mode, offset, len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.sync(File::sync_data)
    }
    fn sync_all(&self) -> io::Result<()> {
        self.sync(File::sync_all)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn stat(&self) -> io::Result<Stat> {
        self.file.stat()
    }
    fn seek(&self, offset: u64, whence: Whence) -> io::Result<u64> {
        self.file.seek(offset, whence)
    }
    fn link_to(&self, path: &Path) -> io::Result<()> {
        self.file.link_to(path)
    }
    fn chmod(&self, mode: u32) -> io::Result<()> {
        self.file.chmod(mode)
    }
    fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        self.file.chown(uid, gid)
    }
    fn set_times(&self, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        self.file.set_times(atime, mtime)
    }
    fn get_xattr(&self, name: &OsString) -> io::Result<Vec<u8>> {
        self.file.get_xattr(name)
    }
    fn set_xattr(&self, name: &OsString, value: &[u8], flags: i32) -> io::Result<()> {
        self.file.set_xattr(name, value, flags)
    }
    fn list_xattr(&self) -> io::Result<Vec<OsString>> {
        self.file.list_xattr()
    }
    fn remove_xattr(&self, name: &OsString) -> io::Result<()> {
        self.file.remove_xattr(name)
    }
    fn fd(&self) -> Option<i32> {
        self.file.fd()
    }
}
