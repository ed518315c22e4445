//! The life of one file of the pool: read, write, discard, truncate, sync.
//!
//! A volume is a plain file (calls go straight through), a plain file with clones (the first write freezes it), or an
//! overlay of layers. It changes from one to the other under its gate, while it is open: handles look the state up at
//! every call, so none of them ever sees an old one.

mod beside;
pub mod bypass;
mod durable;
mod env;
pub mod fill;
pub mod hot;
pub mod overlay;
pub mod pinned;
pub mod plain;
pub mod ranges;
pub mod syncing;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine::io::{FileKey, FileRef, Timestamp, Whence};
use crate::error::{Context, Error, Kind, Result};
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{Mutex, RwLock, RwLockWriteGuard};

pub use env::{Env, Foreground, Hooks};
use overlay::{Overlay, punch};
pub use pinned::Pinned;
use plain::Plain;

/// What a volume is at this moment.
pub enum State {
    /// An ordinary file.
    Plain(Plain),
    /// Layers.
    Overlay(Overlay),
    /// Its metadata cannot be used.
    Broken {
        /// The stub.
        stub: FileRef,
        /// What is wrong.
        why: String,
    },
}

/// One file of the pool.
pub struct Volume {
    /// Lock order among the gates of several volumes: smaller first.
    pub serial: u64,
    /// It never changes.
    snapshot: bool,
    env: Arc<Env>,
    /// Held shared while it is cloned, pinned or rolled back, exclusively while it gets one more name: the pool must see
    /// either one name or both. Taken before all others, of several volumes the one with the smaller serial first.
    naming: RwLock<()>,
    /// Held by what replaces its backing file, from start to end. Taken before the names' lock and the gate.
    switching: Mutex<()>,
    /// Held shared by every read and write, exclusively by what changes the state. Taken before the pool's locks.
    gate: Arc<RwLock<State>>,
    key: Mutex<FileKey>,
    /// Where it was last seen, relative to the pool.
    path: Mutex<PathBuf>,
    handles: AtomicUsize,
    writers: AtomicUsize,
    /// Number of holders of a way past the daemon for writing, see [`bypass`].
    bypasses: AtomicUsize,
    /// Somebody may still hold a way past the daemon that it does not know of.
    lingering: AtomicBool,
    /// Time of the last write that the stub does not carry yet.
    mtime: Mutex<Option<Timestamp>>,
}

/// Shorter writes go through the page cache also for who asks for direct ones: where the file has a hole, the filesystem
/// lets direct writes go only one after another, and each waits for the disk.
const DIRECT_WRITE: usize = 64 << 10;

/// Holds both gates exclusively. Gates are always taken in the order of their volumes' serials.
pub fn both_gates<'a>(
    one: &'a Volume,
    other: &'a Volume,
) -> (RwLockWriteGuard<'a, State>, RwLockWriteGuard<'a, State>) {
    if one.serial < other.serial {
        let held = one.gate.write();
        (held, other.gate.write())
    } else {
        let held = other.gate.write();
        (one.gate.write(), held)
    }
}

static SERIAL: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);

impl Volume {
    /// The volume whose attributes are those of the file `key`, last seen at `path`.
    pub fn new(env: Arc<Env>, key: FileKey, path: &Path, state: State) -> Arc<Volume> {
        let lingering =
            env.past.load(Ordering::Acquire) && matches!(&state, State::Plain(plain) if plain.shared.is_none());
        Arc::new(Volume {
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            snapshot: matches!(&state, State::Overlay(overlay) if overlay.snapshot),
            env,
            naming: RwLock::new(()),
            switching: Mutex::new(()),
            gate: Arc::new(RwLock::new(state)),
            key: Mutex::new(key),
            path: Mutex::new(path.to_path_buf()),
            handles: AtomicUsize::new(0),
            writers: AtomicUsize::new(0),
            bypasses: AtomicUsize::new(0),
            lingering: AtomicBool::new(lingering),
            mtime: Mutex::new(None),
        })
    }

    /// Identity of the backing file that carries its attributes now.
    pub fn key(&self) -> FileKey {
        *self.key.lock()
    }

    /// Sets it, when another file has taken the place of the old one.
    pub fn set_key(&self, key: FileKey) {
        *self.key.lock() = key;
    }

    /// Whether it is a snapshot, which never changes.
    pub fn is_snapshot(&self) -> bool {
        self.snapshot
    }

    /// Where it was last seen.
    pub fn path(&self) -> PathBuf {
        self.path.lock().clone()
    }

    /// Remembers from now on what is read of it, for as long as it is an overlay.
    pub fn track_hot(&self) {
        if let State::Overlay(overlay) = &*self.gate.read() {
            overlay.hot.track(true);
        }
    }

    /// Notes where it is.
    pub fn set_path(&self, path: &Path) {
        *self.path.lock() = path.to_path_buf();
    }

    /// Held shared while it is cloned, exclusively while it gets one more name.
    pub fn naming(&self) -> &RwLock<()> {
        &self.naming
    }

    /// Held by what replaces its backing file, from start to end.
    pub fn switching(&self) -> &Mutex<()> {
        &self.switching
    }

    /// Whether a change would have to wait for the pool now, as the file is frozen first or being copied.
    pub fn asks_first(&self) -> bool {
        self.gate.try_read().is_some_and(|state| matches!(&*state, State::Plain(plain) if plain.asks_first()))
    }

    /// The gate, for operations of the pool.
    pub fn gate(&self) -> &RwLock<State> {
        &self.gate
    }

    /// The backing file that carries its attributes.
    pub fn file(&self) -> Option<FileRef> {
        Some(match &*self.gate.read() {
            State::Plain(plain) => plain.file.clone(),
            State::Overlay(overlay) => overlay.stub.clone(),
            State::Broken { stub, .. } => stub.clone(),
        })
    }

    /// Runs `work` on the backing file that carries its attributes, which cannot be replaced meanwhile.
    pub fn with_file<T>(&self, work: impl FnOnce(&FileRef) -> T) -> T {
        match &*self.gate.read() {
            State::Plain(plain) => work(&plain.file),
            State::Overlay(overlay) => work(&overlay.stub),
            State::Broken { stub, .. } => work(stub),
        }
    }

    /// Changes its owner and group. Its data goes along, and is first: that is what a quota can refuse.
    pub fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        match &*self.gate.read() {
            State::Plain(plain) => plain.file.chown(uid, gid),
            State::Broken { stub, .. } => stub.chown(uid, gid),
            State::Overlay(overlay) => {
                let old = overlay.stub.stat()?;
                let give =
                    |uid, gid| overlay.top.give_to(uid, gid).map_err(|e| io::Error::from_raw_os_error(e.errno()));
                give(uid.unwrap_or(old.uid), gid.unwrap_or(old.gid))?;
                overlay.stub.chown(uid, gid).inspect_err(|_| drop(give(old.uid, old.gid)))
            }
        }
    }

    /// Counts an open handle.
    pub fn open_handle(&self, write: bool) {
        self.handles.fetch_add(1, Ordering::AcqRel);
        if write {
            self.writers.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Counts it closed. After the last one an unlinked volume is removed.
    pub fn close_handle(self: &Arc<Self>, write: bool) {
        if write {
            self.writers.fetch_sub(1, Ordering::AcqRel);
        }
        if self.handles.fetch_sub(1, Ordering::AcqRel) == 1
            && let Ok(hooks) = self.env.hooks()
        {
            hooks.closed(self);
        }
    }

    /// Number of open handles.
    pub fn handles(&self) -> usize {
        self.handles.load(Ordering::Acquire)
    }

    /// Number of open handles that can write.
    pub fn writers(&self) -> usize {
        self.writers.load(Ordering::Acquire)
    }

    fn broken(why: &str) -> Error {
        Error::new(Kind::Damaged, "use volume").because(why.to_owned())
    }

    /// Size in bytes.
    pub fn size(&self) -> Result<u64> {
        match &*self.gate.read() {
            State::Plain(plain) => Ok(plain.file.stat().context("look at file", self.path())?.size),
            State::Overlay(overlay) => Ok(overlay.top.size()),
            State::Broken { why, .. } => Err(Volume::broken(why)),
        }
    }

    /// Reads up to the end of the file; returns how many bytes.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.read_as(offset, buf, false)
    }

    /// The same; with `direct`, what nobody shares is read past the page cache. What clones share is read through it, so
    /// that all of them have it in memory once.
    pub fn read_as(&self, offset: u64, buf: &mut [u8], direct: bool) -> Result<usize> {
        let _request = Foreground::begin(&*self.env.foreground);
        let mut once = || match &*self.gate.read() {
            State::Plain(plain) => {
                let read = match (&plain.shared, direct) {
                    (Some(_), _) => plain.file.read_around(buf, offset),
                    (None, true) => plain.file.read_direct(buf, offset),
                    (None, false) => plain.file.read_at(buf, offset),
                };
                read.map_err(|e| Error::io("read", e).at(self.path()))
            }
            State::Overlay(overlay) => overlay.read(offset, buf, direct),
            State::Broken { why, .. } => Err(Volume::broken(why)),
        };
        self.with_relief(&mut once)
    }

    /// Tries again, once, after descriptors were given back.
    fn with_relief<T>(&self, attempt: &mut dyn FnMut() -> Result<T>) -> Result<T> {
        match attempt() {
            Err(error) if error.is_out_of_files() => {
                self.env.hooks()?.relieve();
                attempt()
            }
            other => other,
        }
    }

    /// Runs `change` with the gate held shared, after a plain file with clones was frozen.
    fn change<T>(self: &Arc<Self>, change: impl Fn(&State) -> Result<T>) -> Result<T> {
        self.with_relief(&mut || self.change_once(&change))
    }

    fn change_once<T>(self: &Arc<Self>, change: impl Fn(&State) -> Result<T>) -> Result<T> {
        self.writable()?;
        let _request = Foreground::begin(&*self.env.foreground);
        loop {
            let gate = self.gate.read();
            match &*gate {
                State::Plain(plain) if plain.asks_first() => {}
                State::Broken { why, .. } => return Err(Volume::broken(why)),
                State::Overlay(overlay) if overlay.is_ragged() => {
                    drop(gate);
                    if let State::Overlay(overlay) = &*self.gate.write() {
                        overlay.cut_leftovers()?;
                    }
                    continue;
                }
                state => {
                    let result = change(state);
                    drop(gate);
                    self.keep_if_unheld();
                    return result;
                }
            }
            drop(gate);
            self.env.hooks()?.before_change(self)?;
        }
    }

    /// A change without a handle (truncate(2) by path): nobody's close will have it kept until it is synced.
    fn keep_if_unheld(self: &Arc<Self>) {
        if self.handles() == 0
            && let Ok(hooks) = self.env.hooks()
        {
            hooks.closed(self);
        }
    }

    fn writable(&self) -> Result<()> {
        if self.snapshot {
            return Err(Error::new(Kind::ReadOnly, "write").at(self.path()).because("it is a snapshot"));
        }
        if self.env.read_only { Err(Error::new(Kind::ReadOnly, "write").at(self.path())) } else { Ok(()) }
    }

    /// Its contents change now.
    pub(crate) fn note_write(&self) {
        *self.mtime.lock() = Some(Timestamp::now());
    }

    /// Writes all of `data`, or fails; the file grows if it goes past the end.
    pub fn write(self: &Arc<Self>, offset: u64, data: &[u8]) -> Result<()> {
        self.write_all(offset, data, false)
    }

    /// The same; with `direct`, what is long goes past the page cache.
    pub fn write_all(self: &Arc<Self>, offset: u64, data: &[u8], direct: bool) -> Result<()> {
        let mut done = self.write_part(offset, data, direct)?;
        while done < data.len() {
            // What stopped it is what the next attempt says.
            done += self.write_part(offset + done as u64, &data[done..], direct)?;
        }
        Ok(())
    }

    /// Writes `data` from its beginning, as write(2) does; returns how many bytes: fewer where the disk got full on the
    /// way, an error if none. Bytes that are not counted are what they were.
    pub fn write_part(self: &Arc<Self>, offset: u64, data: &[u8], direct: bool) -> Result<usize> {
        let direct = direct && data.len() >= DIRECT_WRITE;
        self.change(|state| match state {
            State::Plain(plain) => {
                plain.touch_with(data);
                match plain.file.write_part(data, offset, direct) {
                    (0, Err(error)) => Err(Error::io("write", error).at(self.path())),
                    (written, _) => Ok(written),
                }
            }
            State::Overlay(overlay) => {
                self.note_write();
                overlay.write(offset, data, direct)
            }
            State::Broken { why, .. } => Err(Volume::broken(why)),
        })
    }

    /// fallocate(2) for the modes 0, KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE.
    pub fn allocate(self: &Arc<Self>, mode: i32, offset: u64, len: u64) -> Result<()> {
        let (keep, hole, zero) = (libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE);
        if mode & !(keep | hole | zero) != 0 || mode & (hole | zero) == hole | zero || mode & (hole | keep) == hole {
            return Err(Error::new(Kind::Unsupported, "allocate").at(self.path()));
        }
        let end = offset.checked_add(len).filter(|_| len > 0);
        let end = end.ok_or_else(|| Error::new(Kind::Invalid, "allocate").at(self.path()))?;
        self.change(|state| match state {
            State::Plain(plain) => {
                // Whatever it does, it makes nothing but zeros: what holds nothing still does.
                plain.durability.set_dirty();
                plain.file.allocate(mode, offset, len).context("allocate", self.path())
            }
            State::Overlay(overlay) => {
                if mode & (hole | zero) == 0 {
                    return overlay.reserve(offset, end, mode & keep != 0);
                }
                self.note_write();
                let grow = mode & keep == 0 && end > overlay.top.size();
                overlay.zero(offset, end, mode & zero != 0)?;
                // Beyond the old end there is nothing to zero: new bytes read as zeros.
                if grow { overlay.reserve(offset, end, false) } else { Ok(()) }
            }
            State::Broken { why, .. } => Err(Volume::broken(why)),
        })
    }

    /// Sets the size; new bytes read as zeros.
    pub fn set_size(self: &Arc<Self>, size: u64) -> Result<()> {
        self.set_size_if(size, &|_| Ok(()))
    }

    /// The same, if `may` has nothing against it; it gets the size that there is, which cannot change meanwhile.
    pub fn set_size_if(self: &Arc<Self>, size: u64, may: &dyn Fn(u64) -> Result<()>) -> Result<()> {
        self.writable()?;
        loop {
            let gate = self.gate.write();
            let now = match &*gate {
                State::Plain(plain) => plain.file.stat().context("look at file", self.path())?.size,
                State::Overlay(overlay) => overlay.top.size(),
                State::Broken { why, .. } => return Err(Volume::broken(why)),
            };
            may(now)?;
            match &*gate {
                State::Plain(plain) if plain.asks_first() => {}
                State::Plain(plain) => {
                    // Of what goes past us nobody hears that it is written to again.
                    let pristine = (plain.pristine.load(Ordering::Acquire) || size == 0) && !self.is_bypassed();
                    plain.touch();
                    plain.file.set_len(size).context("set size", self.path())?;
                    // An empty file holds nothing; what it grows by is zeros.
                    plain.pristine.store(pristine, Ordering::Release);
                    return Ok(());
                }
                State::Overlay(overlay) => {
                    self.note_write();
                    let result = overlay.set_size(size, self.env.fs.as_ref());
                    drop(gate);
                    self.keep_if_unheld();
                    return result;
                }
                State::Broken { why, .. } => return Err(Volume::broken(why)),
            }
            drop(gate);
            self.env.hooks()?.before_change(self)?;
        }
    }

    /// Next data or hole at or after `offset`; `ENXIO` past the end.
    pub fn seek(&self, offset: u64, whence: Whence) -> Result<u64> {
        match &*self.gate.read() {
            State::Plain(plain) => plain.file.seek(offset, whence).context("seek", self.path()),
            State::Overlay(overlay) => overlay.seek(offset, whence),
            State::Broken { why, .. } => Err(Volume::broken(why)),
        }
    }

    /// Zeroes a range of a plain file by punching it; for tests and the pool.
    pub fn punch_plain(file: &FileRef, offset: u64, len: u64) -> std::io::Result<()> {
        punch(file, offset, len)
    }
}
