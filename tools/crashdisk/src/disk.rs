//! The disk: a FUSE mount with two files, `disk` (the contents) and `mark` (what is written there goes into the log).
//!
//! One thread serves all requests, so the order of the log is the order in which the kernel saw them done: a request is
//! in the log before its reply, and a flush is sent only after the writes that it has to cover were replied to.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use clonefs::error::{Context, Error, Result};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, MountOption,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use parking_lot::{Mutex, MutexGuard};

use crate::image::Image;
use crate::log::{LogWriter, Record};

const DISK: INodeNo = INodeNo(2);
const MARK: INodeNo = INodeNo(3);
const TTL: Duration = Duration::from_secs(3600);

/// Where the records of a disk go.
pub enum Sink {
    /// Nowhere.
    Off,
    /// Into memory.
    Memory(Vec<Record>),
    /// Into a log file.
    File(LogWriter),
}

/// What the serving thread and the owner of a disk share.
pub struct Contents {
    /// What the disk holds now.
    pub image: Image,
    /// Where records go.
    pub sink: Sink,
    /// First error of the sink; requests fail from then on.
    pub error: Option<Error>,
}

impl Contents {
    /// Logs a record, then applies it.
    fn take(&mut self, record: Record) -> std::result::Result<(), Errno> {
        if self.error.is_some() {
            return Err(Errno::EIO);
        }
        record.apply(&mut self.image);
        match &mut self.sink {
            Sink::Off => {}
            Sink::Memory(records) => records.push(record),
            Sink::File(log) => {
                if let Err(error) = log.append(&record) {
                    self.error = Some(error);
                    return Err(Errno::EIO);
                }
            }
        }
        Ok(())
    }
}

/// A mounted disk; unmounted when it is dropped.
pub struct Disk {
    contents: Arc<Mutex<Contents>>,
    mountpoint: PathBuf,
    session: Option<fuser::BackgroundSession>,
}

impl Disk {
    /// Mounts a disk that holds `image` on the directory `mountpoint`.
    pub fn mount(mountpoint: &Path, image: Image, sink: Sink) -> Result<Disk> {
        let contents = Arc::new(Mutex::new(Contents { image, sink, error: None }));
        let server = Server { contents: contents.clone() };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("crashdisk".into()), MountOption::Subtype("crashdisk".into())];
        let session = fuser::spawn_mount(server, mountpoint, &config).context("mount recorder disk", mountpoint)?;
        Ok(Disk { contents, mountpoint: mountpoint.to_path_buf(), session: Some(session) })
    }

    /// Path of the file that holds the disk's contents.
    pub fn file(&self) -> PathBuf {
        self.mountpoint.join("disk")
    }

    /// Path of the file that takes marks.
    pub fn mark_file(&self) -> PathBuf {
        self.mountpoint.join("mark")
    }

    /// Contents and log. The disk stands still while this is held.
    pub fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock()
    }

    /// Adds a mark to the log from inside.
    pub fn mark(&self, text: &str) -> Result<()> {
        let mut contents = self.contents();
        let _ = contents.take(Record::Mark(text.into()));
        contents.error.take().map_or(Ok(()), Err)
    }

    /// Stops logging and gives back what the log went to.
    pub fn stop_log(&self) -> Result<Sink> {
        let mut contents = self.contents();
        let sink = std::mem::replace(&mut contents.sink, Sink::Off);
        contents.error.take().map_or(Ok(sink), Err)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        crate::sys::detach(&self.mountpoint);
        if let Some(session) = self.session.take() {
            let _ = session.join();
        }
    }
}

struct Server {
    contents: Arc<Mutex<Contents>>,
}

impl Server {
    fn attr(&self, ino: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match ino {
            INodeNo::ROOT => (FileType::Directory, 0o755, 0),
            DISK => (FileType::RegularFile, 0o600, self.contents.lock().image.size()),
            MARK => (FileType::RegularFile, 0o622, 0),
            _ => return None,
        };
        Some(FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn take(&self, record: Record) -> std::result::Result<(), Errno> {
        self.contents.lock().take(record)
    }
}

/// Replies `ok` or the error.
fn finish(reply: ReplyEmpty, outcome: std::result::Result<(), Errno>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Server {
    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let ino = match name.to_str() {
            Some("disk") => DISK,
            Some("mark") => MARK,
            _ => return reply.error(Errno::ENOENT),
        };
        match self.attr(ino) {
            Some(attr) => reply.entry(&TTL, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    // A shell's `> mark` truncates; everything else stays as it is.
    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.attr(ino) {
            Some(attr) if ino != DISK || size.is_none_or(|size| size == attr.size) => reply.attr(&TTL, &attr),
            Some(_) => reply.error(Errno::EPERM),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // No page cache on this level: what the kernel writes is in the log at once, and the contents can be swapped.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if ino != DISK {
            return reply.data(&[]);
        }
        let contents = self.contents.lock();
        let room = contents.image.size().saturating_sub(offset).min(u64::from(size));
        let mut out = vec![0; room as usize];
        contents.image.read(offset, &mut out);
        drop(contents);
        reply.data(&out);
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let outcome = match ino {
            DISK => self.take(Record::write(offset, data)),
            _ => String::from_utf8_lossy(data)
                .lines()
                .filter(|line| !line.is_empty())
                .try_for_each(|line| self.take(Record::Mark(line.into()))),
        };
        match outcome {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        finish(reply, if ino == DISK { self.take(Record::Flush) } else { Ok(()) });
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let record = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            libc::FALLOC_FL_PUNCH_HOLE => Record::Discard { offset, len },
            libc::FALLOC_FL_ZERO_RANGE => Record::Zero { offset, len },
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        finish(reply, if ino == DISK { self.take(record) } else { Err(Errno::EINVAL) });
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (DISK, FileType::RegularFile, "disk"),
            (MARK, FileType::RegularFile, "mark"),
        ];
        for (next, (ino, kind, name)) in (1..).zip(entries).skip(offset as usize) {
            if reply.add(ino, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
