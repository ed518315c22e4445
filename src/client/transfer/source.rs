//! The file that is read: opened once, pinned where it can be, and from then on known by its descriptor alone.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;

use crate::error::{Error, Kind, Result};
use crate::protocol;

/// How often a volume whose size changes while it is pinned is tried again.
const PIN_ATTEMPTS: u32 = 16;

/// A run of bytes of one nature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Holds data; otherwise it is a hole and reads as zeros.
    pub data: bool,
    /// First byte after it.
    pub end: u64,
}

/// A regular file open for reading, of a size that is fixed here.
#[derive(Debug)]
pub struct Source {
    file: File,
    path: PathBuf,
    size: u64,
    mode: u32,
    id: (u64, u64),
    allocated: u64,
    hold: Hold,
}

/// What keeps the bytes from changing while they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// The descriptor is pinned.
    Pin,
    /// It lies in a pool that is mounted read-only.
    ReadOnly,
    /// Nothing.
    None,
}

/// What fstat says of the file, asked of the server of a network or FUSE filesystem and not of a cache.
struct Status {
    size: u64,
    mode: u32,
    links: u32,
    id: (u64, u64),
    allocated: u64,
}

impl Source {
    /// Opens `path` and pins it where it lies on a clonefs mount. `operation` is for errors.
    pub fn open(path: &Path, operation: &'static str) -> Result<Source> {
        for _ in 0..PIN_ATTEMPTS {
            let file = open_regular(path, operation)?;
            let io = |e: Errno| Error::io(operation, e.into()).at(path);
            let before = status(&file).map_err(io)?;
            let hold = pin(&file).map_err(|e| cannot_pin(e, before.links, operation).at(path))?;
            if hold != Hold::Pin {
                settle(&file).map_err(io)?;
                refuse_stub(&file, operation, path)?;
            }
            let after = status(&file).map_err(io)?;
            let source = Source {
                file,
                path: path.to_path_buf(),
                size: after.size,
                mode: after.mode,
                id: after.id,
                allocated: after.allocated,
                hold,
            };
            if hold != Hold::Pin || (before.size == after.size && source.has_its_size()) {
                return Ok(source);
            }
        }
        let cause = "its size changes all the time";
        Err(Error::new(Kind::Busy, operation).at(path).because(cause).remedy("try again when nothing resizes it"))
    }

    /// Whether the bytes end exactly at `size`. The size that the kernel knows is that of the live volume, not that
    /// of the pinned one: a volume that grew and shrank around the pin is found here.
    fn has_its_size(&self) -> bool {
        let mut byte = [0u8];
        let last = self.size == 0 || matches!(self.file.read_at(&mut byte, self.size - 1), Ok(1));
        // An error of reading is no question of size; it comes up again, with its own message, when the byte is read.
        last && matches!(self.file.read_at(&mut byte, self.size), Ok(0) | Err(_))
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Permission bits.
    pub fn mode(&self) -> u32 {
        self.mode & 0o777
    }

    /// Device and inode, which name the file.
    pub fn id(&self) -> (u64, u64) {
        self.id
    }

    /// Bytes that it occupies on disk.
    pub fn allocated(&self) -> u64 {
        self.allocated
    }

    /// The descriptor shows one moment, whatever is written to the file.
    pub fn is_pinned(&self) -> bool {
        self.hold == Hold::Pin
    }

    /// All that is read from it is of one moment.
    pub fn is_one_moment(&self) -> bool {
        self.hold != Hold::None
    }

    /// The descriptor.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Fills `buffer` from `offset`; what lies past the end is zeros. A file that became shorter is an error: zeros in
    /// place of its bytes would be a lie.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let inside = self.size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (mut rest, padding) = buffer.split_at_mut(inside);
        padding.fill(0);
        let mut at = offset;
        while !rest.is_empty() {
            match self.file.read_at(rest, at) {
                Ok(0) => return Err(self.shorter(at)),
                Ok(n) => {
                    rest = &mut rest[n..];
                    at += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Whether the file became shorter than it was when it was opened. A pinned one cannot.
    fn is_shorter(&self) -> io::Result<bool> {
        Ok(!self.is_pinned() && (rustix::fs::fstat(&self.file)?.st_size as u64) < self.size)
    }

    fn shorter(&self, end: u64) -> io::Error {
        let cause = format!("the file ended at byte {end} while it was read, though it had {}", self.size);
        io::Error::new(io::ErrorKind::UnexpectedEof, cause)
    }

    /// The run that begins at `offset`, which is below the size. A filesystem that does not know holes has none.
    pub fn extent(&self, offset: u64) -> io::Result<Extent> {
        let end_of = |result: rustix::io::Result<u64>| match result {
            Ok(at) if at >= offset => Ok(Some(at.min(self.size))),
            Err(Errno::NXIO) => Ok(None),
            Ok(_) | Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(Some(offset)),
            Err(e) => Err(io::Error::from(e)),
        };
        match end_of(rustix::fs::seek(&self.file, SeekFrom::Data(offset)))? {
            None if self.is_shorter()? => Err(self.shorter(rustix::fs::fstat(&self.file)?.st_size as u64)),
            None => Ok(Extent { data: false, end: self.size }),
            Some(data) if data > offset => Ok(Extent { data: false, end: data }),
            Some(_) => {
                let end = end_of(rustix::fs::seek(&self.file, SeekFrom::Hole(offset)))?.unwrap_or(self.size);
                Ok(Extent { data: true, end: if end > offset { end } else { self.size } })
            }
        }
    }
}

/// The text that stands for an overlay in a pool that is not mounted is not its disk.
fn refuse_stub(file: &File, operation: &'static str, path: &Path) -> Result<()> {
    if !protocol::stub::is_stub(file).map_err(|e| Error::io(operation, e).at(path))? {
        return Ok(());
    }
    Err(Error::new(Kind::Unsupported, operation)
        .at(path)
        .because("it is the stub of an overlay, seen without clonefs: a few lines of text, not the disk")
        .remedy("mount its pool and name it there"))
}

/// Whether `file` lies on a clonefs mount.
pub fn on_clonefs(file: &File) -> bool {
    rustix::fs::fgetxattr(file, protocol::STATE, &mut [0u8; 64]).is_ok()
}

/// Opens a regular file for reading; never waits for the other end of a FIFO and never opens a device.
fn open_regular(path: &Path, operation: &'static str) -> Result<File> {
    let explain = |e: Errno| match e {
        Errno::NOENT => Error::new(Kind::NotFound, operation).at(path),
        e => Error::io(operation, e.into()).at(path),
    };
    regular(rustix::fs::stat(path).map_err(explain)?.st_mode, path, operation)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(explain)?);
    regular(rustix::fs::fstat(&file).map_err(explain)?.st_mode, path, operation)?;
    Ok(file)
}

fn regular(mode: u32, path: &Path, operation: &'static str) -> Result<()> {
    let what = match rustix::fs::FileType::from_raw_mode(mode) {
        rustix::fs::FileType::RegularFile => return Ok(()),
        rustix::fs::FileType::Directory => "it is a directory",
        rustix::fs::FileType::BlockDevice => "it is a block device",
        _ => "it is not a regular file",
    };
    Err(Error::new(Kind::Invalid, operation).at(path).because(what).remedy("name a disk image file"))
}

fn status(file: &File) -> rustix::io::Result<Status> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    let st = rustix::fs::statx(file, "", flags, StatxFlags::BASIC_STATS)?;
    Ok(Status {
        size: st.stx_size,
        mode: st.stx_mode.into(),
        links: st.stx_nlink,
        id: (u64::from(st.stx_dev_major) << 32 | u64::from(st.stx_dev_minor), st.stx_ino),
        allocated: st.stx_blocks * 512,
    })
}

/// Pins the descriptor where that can be.
fn pin(file: &File) -> rustix::io::Result<Hold> {
    // SAFETY: IOC_PIN is a valid number and takes no argument, so the kernel touches no memory of ours.
    let request = unsafe { rustix::ioctl::NoArg::<{ protocol::IOC_PIN }>::new() };
    // SAFETY: as above.
    match unsafe { rustix::ioctl::ioctl(file, request) } {
        Ok(()) => Ok(Hold::Pin),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) if !on_clonefs(file) => Ok(Hold::None),
        Err(Errno::ROFS) => Ok(Hold::ReadOnly),
        // A pool on a filesystem where nothing can be cloned.
        Err(Errno::OPNOTSUPP) if rustix::fs::fstat(file)?.st_nlink == 1 => Ok(Hold::None),
        Err(e) => Err(e),
    }
}

fn cannot_pin(e: Errno, links: u32, operation: &'static str) -> Error {
    if e == Errno::OPNOTSUPP && links > 1 {
        let cause = "it has several names, so that it cannot be held at one moment";
        return Error::new(Kind::Unsupported, operation).because(cause).remedy("clone it, and take the clone");
    }
    let remedy = match e {
        Errno::BUSY => "something has it open in a way that excludes a snapshot: close that, then try again",
        _ => "see clonefs status for what is wrong with this volume",
    };
    Error::io(operation, e.into()).remedy(remedy)
}

/// Writes out what is only in memory: filesystems have reported such data as holes.
fn settle(file: &File) -> rustix::io::Result<()> {
    match rustix::fs::fdatasync(file) {
        // Read-only filesystems and those that cannot sync have nothing to write out.
        Err(Errno::INVAL | Errno::ROFS | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        result => result,
    }
}
