//! Open files and directories. A handle holds nothing that could not be made again from its node and its open flags,
//! except the point in time of a pinned one.

use crate::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::OnceLock;

use crate::sync::{Mutex, RwLock};

use super::caller::Caller;
use super::errno;
use super::listing::Window;
use super::ways::{Past, Ways};
use crate::engine::io::{FileRef, Read, Ring, Whence};
use crate::engine::volume::{Pinned, Volume};
use crate::error::{Context, Result};

/// What a node knows of its open handles.
pub struct OpenFile {
    /// The file.
    pub volume: Arc<Volume>,
    /// Number of handles.
    pub handles: u32,
    /// Number of handles open for writing.
    pub writers: u32,
    /// Threads that opened it for nothing but reading and wait for their bytes: `O_RDONLY` without `O_NONBLOCK`.
    pub plain_readers: Vec<u32>,
    /// Privileges that writing must take away.
    pub privileges: Arc<Privileges>,
    /// How the handles reach the bytes.
    pub ways: Ways<Past>,
}

/// What is known of setuid and setgid bits and capabilities of an open file, so that not every write has to look.
#[derive(Default)]
pub struct Privileges(AtomicU8);

const NO_IDS: u8 = 1;
const NO_CAPABILITIES: u8 = 2;

impl Privileges {
    /// A call that can set privileges was let through: the next write looks again.
    pub fn may_have_changed(&self) {
        self.0.store(0, Ordering::SeqCst);
    }

    /// Before bytes of `volume` change: takes file capabilities away, and the setuid and setgid bits that `writer` may not
    /// keep, if there is one.
    ///
    /// The kernel does this by itself for what the daemon writes to a plain file; the bytes of an overlay go to another
    /// file than the one that carries its attributes.
    pub(super) fn drop_for_write(&self, volume: &Volume, writer: Option<&Caller>) -> Result<()> {
        let wanted = NO_CAPABILITIES | if writer.is_some() { NO_IDS } else { 0 };
        if self.0.load(Ordering::SeqCst) & wanted == wanted {
            return Ok(());
        }
        // Under the volume's gate: no other file takes the place of this one with the privileges that it has now.
        let dropped = volume.with_file(|file| {
            drop_capabilities(file)?;
            writer.map_or(Ok(false), |writer| drop_ids(file, writer))
        });
        let gone = dropped.context("take the privileges off a file that is written to", volume.path())?;
        // What one writer may keep, the next one may not.
        self.0.fetch_or(if gone { wanted } else { NO_CAPABILITIES }, Ordering::SeqCst);
        Ok(())
    }
}

fn drop_capabilities(file: &FileRef) -> io::Result<()> {
    let name = "security.capability".into();
    match file.get_xattr(&name) {
        Ok(_) => file.remove_xattr(&name),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Whether none are left.
fn drop_ids(file: &FileRef, writer: &Caller) -> io::Result<bool> {
    let stat = file.stat()?;
    let mode = stat.mode & 0o7777;
    let mut kept = mode & !libc::S_ISUID;
    // Without execution by the group, setgid is no privilege, and stays where a member of the group writes.
    if mode & libc::S_ISGID != 0 && (mode & libc::S_IXGRP != 0 || !writer.in_group(stat.gid)) {
        kept &= !libc::S_ISGID;
    }
    if kept != mode {
        file.chmod(kept)?;
    }
    Ok(kept & (libc::S_ISUID | libc::S_ISGID) == 0)
}

/// How a write came in.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteFlags {
    /// A writer that may not keep setuid and setgid bits.
    pub kill_ids: Option<Caller>,
    /// The kernel writes out what was stored through a mapping.
    pub cached: bool,
    /// `O_SYNC` or `O_DSYNC`, from the open, the mount or the write itself.
    pub sync: i32,
}

/// An open regular file.
pub struct Handle {
    /// Its node.
    pub node: u64,
    /// The file.
    pub volume: Arc<Volume>,
    /// Flags of the open.
    pub flags: i32,
    /// Thread that opened it.
    pub pid: u32,
    pub(super) privileges: Arc<Privileges>,
    pinned: OnceLock<Pinned>,
}

impl Handle {
    pub(super) fn new(node: u64, open: &OpenFile, flags: i32, pid: u32) -> Handle {
        let (volume, privileges) = (open.volume.clone(), open.privileges.clone());
        Handle { node, volume, flags, pid, privileges, pinned: OnceLock::new() }
    }

    /// Open for reading.
    pub fn can_read(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_WRONLY
    }

    /// Open for writing, and not pinned to a point in time.
    pub fn can_write(&self) -> bool {
        opens_for_writing(self.flags) && self.pinned.get().is_none()
    }

    /// Its reads and writes go past the page cache, as it was opened with O_DIRECT.
    fn is_direct(&self) -> bool {
        self.flags & libc::O_DIRECT != 0
    }

    /// Reads until `buf` is full or the file ends; returns the number of bytes read.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        match self.pinned.get() {
            Some(pinned) => pinned.read(offset, buf),
            None => self.volume.read_as(offset, buf, self.is_direct()),
        }
    }

    /// Prepares to read exactly `len` bytes through `ring`; `None` if [`Handle::read`] must do it.
    pub fn read_beside(&self, ring: &Ring, offset: u64, len: usize) -> Option<Read> {
        if self.is_direct() && self.pinned.get().is_none() { self.volume.read_beside(ring, offset, len) } else { None }
    }

    /// Writes `data` from its beginning, see [`Volume::write_part`]; returns how many bytes. What the kernel writes out of
    /// its cache is written as a whole, or fails: it asks for no count.
    pub fn write(&self, offset: u64, data: &[u8], how: WriteFlags) -> Result<usize> {
        self.check_writable()?;
        self.privileges.drop_for_write(&self.volume, how.kill_ids.as_ref())?;
        let written = if how.cached {
            self.volume.write_all(offset, data, self.is_direct())?;
            data.len()
        } else {
            self.volume.write_part(offset, data, self.is_direct())?
        };
        self.sync_as_opened(how.sync)?;
        Ok(written)
    }

    /// fallocate(2).
    pub fn allocate(&self, mode: i32, offset: u64, len: u64, kill_ids: Option<&Caller>) -> Result<()> {
        self.check_writable()?;
        self.privileges.drop_for_write(&self.volume, kill_ids)?;
        self.volume.allocate(mode, offset, len)?;
        self.sync_as_opened(self.flags)
    }

    /// What `O_SYNC` and `O_DSYNC` in `flags` promise.
    pub fn sync_as_opened(&self, flags: i32) -> Result<()> {
        // O_SYNC is O_DSYNC and one more bit.
        match flags & libc::O_SYNC {
            0 => Ok(()),
            libc::O_SYNC => self.volume.sync(false),
            _ => self.volume.sync(true),
        }
    }

    /// fsync(2) or fdatasync(2).
    pub fn sync(&self, data_only: bool) -> Result<()> {
        self.volume.sync(data_only)
    }

    /// Next data or hole.
    pub fn seek(&self, offset: u64, whence: Whence) -> Result<u64> {
        match self.pinned.get() {
            Some(pinned) => pinned.seek(offset, whence),
            None => self.volume.seek(offset, whence),
        }
    }

    /// From now on this handle reads that point in time, unless it reads an earlier one already.
    pub(super) fn pin_to(&self, moment: Pinned) {
        drop(self.pinned.set(moment));
    }

    /// The handle reads a point in time.
    pub fn is_pinned(&self) -> bool {
        self.pinned.get().is_some()
    }

    pub(super) fn check_writable(&self) -> Result<()> {
        if self.can_write() {
            Ok(())
        } else {
            Err(errno("write to a handle that is not open for writing", libc::EBADF))
        }
    }
}

/// Whether open flags ask for writing.
pub fn opens_for_writing(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

/// Whether open flags are those of a program that wants the bytes now, see [`OpenFile::plain_readers`].
pub fn is_plain_reader(flags: i32) -> bool {
    !opens_for_writing(flags) && flags & libc::O_NONBLOCK == 0
}

/// An open directory.
pub struct DirHandle {
    /// Its node.
    pub node: u64,
    /// What is known of its names.
    pub listing: Mutex<Listing>,
}

/// How far an open directory has been read.
#[derive(Default)]
pub struct Listing {
    /// The names around the position that was read last.
    pub window: Option<Arc<Window>>,
    /// It was read from the start, so that every name must be shown that was there then.
    pub from_start: bool,
}

/// All open handles by the number that the kernel has for them.
#[derive(Default)]
pub struct Handles {
    next: AtomicU64,
    files: RwLock<HashMap<u64, Arc<Handle>>>,
    directories: RwLock<HashMap<u64, Arc<DirHandle>>>,
}

impl Handles {
    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Adds an open file.
    pub fn add(&self, handle: Handle) -> u64 {
        let number = self.number();
        self.files.write().insert(number, Arc::new(handle));
        number
    }

    /// The open file of a number.
    pub fn get(&self, number: u64) -> Result<Arc<Handle>> {
        self.files.read().get(&number).cloned().ok_or_else(|| errno("use a closed handle", libc::EBADF))
    }

    /// Removes an open file.
    pub fn remove(&self, number: u64) -> Option<Arc<Handle>> {
        self.files.write().remove(&number)
    }

    /// Adds an open directory.
    pub fn add_directory(&self, node: u64) -> u64 {
        let number = self.number();
        self.directories.write().insert(number, Arc::new(DirHandle { node, listing: Mutex::default() }));
        number
    }

    /// The open directory of a number.
    pub fn directory(&self, number: u64) -> Result<Arc<DirHandle>> {
        self.directories.read().get(&number).cloned().ok_or_else(|| errno("use a closed directory", libc::EBADF))
    }

    /// Removes an open directory.
    pub fn remove_directory(&self, number: u64) {
        self.directories.write().remove(&number);
    }
}
