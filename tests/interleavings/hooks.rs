//! The host's filesystem with traps: at the first call of a kind something else begins, or the call fails.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use clonefs::engine::io::{DirEntry, File, FileRef, Fs, FsInfo, HostFs, InodeRef, Open, Rename, SetTime, Stat, Whence};

/// A call that a trap can wait for; the path is the one the file was opened by.
pub enum Call<'a> {
    Create,
    Open(&'a Path),
    Write(&'a Path),
    Allocate(&'a Path),
    Sync(&'a Path),
    SyncDir(&'a Path),
    /// The whole filesystem has just been synced.
    SyncedFs,
}

/// Tells the call that a trap waits for from others.
pub type Which = fn(&Call<'_>) -> bool;

struct Armed {
    which: Which,
    act: Box<dyn FnOnce() -> io::Result<()> + Send>,
}

/// What a torn write fails with.
#[derive(Debug)]
struct Torn(i32);

impl std::fmt::Display for Torn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "torn, error {}", self.0)
    }
}

impl std::error::Error for Torn {}

/// Where traps are laid, one at a time.
#[derive(Default)]
pub struct Hooks {
    armed: Mutex<Option<Armed>>,
}

/// A trap that was laid. It must be asked for in the end, or a test would hold because nothing happened.
#[must_use]
pub struct Trap {
    hooks: Arc<Hooks>,
    begun: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Hooks {
    fn call(&self, call: Call<'_>) -> io::Result<()> {
        let met = self.armed.lock().unwrap().take_if(|armed| (armed.which)(&call));
        met.map_or(Ok(()), |armed| (armed.act)())
    }

    fn arm(self: &Arc<Self>, which: Which, act: impl FnOnce() -> io::Result<()> + Send + 'static) {
        let old = self.armed.lock().unwrap().replace(Armed { which, act: Box::new(act) });
        assert!(old.is_none(), "a second trap while the first one waits");
    }

    /// The first call that is `which` fails with `errno`.
    pub fn fail(self: &Arc<Self>, which: Which, errno: i32) -> Trap {
        self.arm(which, move || Err(io::Error::from_raw_os_error(errno)));
        Trap { hooks: self.clone(), begun: Arc::default() }
    }

    /// The first write that is `which` writes half of its bytes and fails with `errno`.
    pub fn tear(self: &Arc<Self>, which: Which, errno: i32) -> Trap {
        self.arm(which, move || Err(io::Error::other(Torn(errno))));
        Trap { hooks: self.clone(), begun: Arc::default() }
    }

    /// Before the first call that is `which`, `work` begins on a thread of its own, see [`begin`].
    pub fn meanwhile(self: &Arc<Self>, which: Which, work: impl FnOnce() + Send + 'static) -> Trap {
        self.meanwhile_then(which, work, Ok(()))
    }

    /// The same, and the call fails with `errno`.
    pub fn fail_meanwhile(self: &Arc<Self>, which: Which, errno: i32, work: impl FnOnce() + Send + 'static) -> Trap {
        self.meanwhile_then(which, work, Err(io::Error::from_raw_os_error(errno)))
    }

    /// The first call that is `which` goes on only when `work`, on a thread of its own, has ended; a call that is still
    /// waiting after a minute fails, and the work with it: what it needed is held by whoever made the call.
    pub fn stall_for(self: &Arc<Self>, which: Which, work: impl FnOnce() + Send + 'static) -> Trap {
        let begun: Arc<Mutex<Option<JoinHandle<()>>>> = Arc::default();
        let trap = Trap { hooks: self.clone(), begun: begun.clone() };
        self.arm(which, move || {
            let (tell, told) = mpsc::channel::<()>();
            *begun.lock().unwrap() = Some(thread::spawn(move || {
                work();
                drop(tell);
            }));
            match told.recv_timeout(Duration::from_secs(60)) {
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("the work waits for the call that it is done beside"),
                _ => Ok(()),
            }
        });
        trap
    }

    fn meanwhile_then(
        self: &Arc<Self>,
        which: Which,
        work: impl FnOnce() + Send + 'static,
        result: io::Result<()>,
    ) -> Trap {
        let begun: Arc<Mutex<Option<JoinHandle<()>>>> = Arc::default();
        let trap = Trap { hooks: self.clone(), begun: begun.clone() };
        self.arm(which, move || {
            *begun.lock().unwrap() = Some(begin(work));
            result
        });
        trap
    }
}

impl Trap {
    /// Whether the call has come.
    pub fn is_sprung(&self) -> bool {
        self.hooks.armed.lock().unwrap().is_none()
    }

    /// The call must have come; waits for what began with it.
    pub fn sprung(self) {
        assert!(self.is_sprung(), "the call that the trap waits for never came");
        self.join();
    }

    /// The same where another trap was laid by what began.
    pub fn join(self) {
        if let Some(thread) = self.begun.lock().unwrap().take() {
            thread.join().expect("what was done meanwhile");
        }
    }

    /// Takes the trap away, whether the call has come or not.
    pub fn lifted(self) {
        self.hooks.armed.lock().unwrap().take();
    }
}

/// Begins `work` on a thread of its own, and returns when it is done or sleeps: it has gone as far as the locks of the
/// caller let it.
pub fn begin(work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let (tell, told) = mpsc::channel();
    let thread = thread::spawn(move || {
        tell.send(std::fs::read_link("/proc/thread-self").expect("/proc")).expect("somebody who waits");
        work();
    });
    let stat = Path::new("/proc").join(told.recv().expect("a thread that runs")).join("stat");
    while !thread.is_finished() && !sleeps(&stat) {
        thread::yield_now();
    }
    thread
}

/// Whether the thread with this `stat` file sleeps, see proc(5). One that has ended does not.
fn sleeps(stat: &Path) -> bool {
    std::fs::read_to_string(stat).is_ok_and(|line| line.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S')))
}

/// The filesystem.
pub struct HookedFs {
    pub host: HostFs,
    pub hooks: Arc<Hooks>,
}

struct HookedFile {
    file: FileRef,
    path: PathBuf,
    hooks: Arc<Hooks>,
}

impl Fs for HookedFs {
    fn find(&self, path: &Path) -> io::Result<InodeRef> {
        self.host.find(path)
    }
    fn open(&self, path: &Path, how: Open) -> io::Result<FileRef> {
        if matches!(how, Open::CreateNew(_)) {
            self.hooks.call(Call::Create)?;
        }
        self.hooks.call(Call::Open(path))?;
        let file = self.host.open(path, how)?;
        Ok(Arc::new(HookedFile { file, path: path.to_path_buf(), hooks: self.hooks.clone() }))
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.hooks.call(Call::SyncDir(path))?;
        self.host.sync_dir(path)
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
        self.host.sync_fs()?;
        self.hooks.call(Call::SyncedFs)
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
}

impl File for HookedFile {
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write_part(data, offset, false).1
    }
    fn write_part(&self, data: &[u8], offset: u64, direct: bool) -> (usize, io::Result<()>) {
        if let Err(error) = self.hooks.call(Call::Write(&self.path)) {
            let Some(Torn(errno)) = error.get_ref().and_then(|cause| cause.downcast_ref()) else {
                return (0, Err(error));
            };
            // What was written is not told, as by a disk that fails in the middle.
            let _ = self.file.write_part(&data[..data.len() / 2], offset, direct);
            return (0, Err(io::Error::from_raw_os_error(*errno)));
        }
        self.file.write_part(data, offset, direct)
    }
    fn allocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        self.hooks.call(Call::Allocate(&self.path))?;
        self.file.allocate(mode, offset, len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.hooks.call(Call::Sync(&self.path))?;
        self.file.sync_data()
    }
    fn sync_all(&self) -> io::Result<()> {
        self.hooks.call(Call::Sync(&self.path))?;
        self.file.sync_all()
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
    fn share_range(&self, source: &dyn File, from: u64, to: u64, len: u64) -> io::Result<()> {
        self.file.share_range(source, from, to, len)
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
