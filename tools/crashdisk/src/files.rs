//! The calls that a workload makes on its files, and the ordinary way to make them: through a directory.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clonefs::error::{Context, Result};

/// How a clone is to be made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cloning {
    /// Size in bytes, where it is larger than the source's.
    pub size: Option<u64>,
    /// It is durable when the call returns.
    pub durable: bool,
    /// It stays an overlay until [`Files::deepen`].
    pub no_deepen: bool,
}

/// Files of one directory, by name. Offsets and lengths are in bytes.
pub trait Files: Send {
    /// Makes an empty file.
    fn create(&self, name: &str) -> Result<()>;
    /// Writes; `direct`: past the page cache, then in whole blocks of 4 KiB.
    fn write(&self, name: &str, offset: u64, bytes: &[u8], direct: bool) -> Result<()>;
    /// Writes into a file of `len` bytes through a shared mapping, and leaves it to the kernel when to hand it on.
    fn write_mapped(&self, name: &str, len: u64, offset: u64, bytes: &[u8]) -> Result<()>;
    /// Makes a range read as zeros, by a hole or not.
    fn zero(&self, name: &str, offset: u64, len: u64, hole: bool) -> Result<()>;
    /// Cuts or grows a file.
    fn set_size(&self, name: &str, size: u64) -> Result<()>;
    /// fsync.
    fn sync(&self, name: &str) -> Result<()>;
    /// Renames, perhaps over another file.
    fn rename(&self, from: &str, to: &str) -> Result<()>;
    /// Unlinks.
    fn unlink(&self, name: &str) -> Result<()>;
    /// fsync of the directory.
    fn sync_names(&self) -> Result<()>;
    /// Makes the new file `to` a clone of `from`.
    fn clone_file(&self, from: &str, to: &str, how: Cloning) -> Result<()>;
    /// Has a clone deepened.
    fn deepen(&self, name: &str) -> Result<()>;
}

/// A directory as any program sees it. A clone is a copy there.
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// The files of `path`.
    pub fn new(path: &Path) -> Directory {
        Directory { path: path.to_path_buf() }
    }

    /// Path of `name`.
    pub fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn open(&self, name: &str, flags: i32) -> Result<File> {
        let path = self.at(name);
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path).context("open", &path)
    }
}

impl Files for Directory {
    fn create(&self, name: &str) -> Result<()> {
        let path = self.at(name);
        OpenOptions::new().write(true).create_new(true).open(&path).context("create", &path).map(drop)
    }

    fn write(&self, name: &str, offset: u64, bytes: &[u8], direct: bool) -> Result<()> {
        let file = self.open(name, if direct { libc::O_DIRECT } else { 0 })?;
        file.write_all_at(Aligned::new(bytes).get(), offset).context("write", self.at(name))
    }

    fn write_mapped(&self, name: &str, len: u64, offset: u64, bytes: &[u8]) -> Result<()> {
        let file = self.open(name, 0)?;
        write_through_mapping(&file, len as usize, offset as usize, bytes).context("map", self.at(name))
    }

    fn zero(&self, name: &str, offset: u64, len: u64, hole: bool) -> Result<()> {
        let file = self.open(name, 0)?;
        let kind = if hole { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE };
        let mode = kind | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the descriptor is open during the call.
        let done = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, len as i64) };
        let done = if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) };
        done.context("zero", self.at(name))
    }

    fn set_size(&self, name: &str, size: u64) -> Result<()> {
        self.open(name, 0)?.set_len(size).context("truncate", self.at(name))
    }

    fn sync(&self, name: &str) -> Result<()> {
        self.open(name, 0)?.sync_all().context("sync", self.at(name))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        std::fs::rename(self.at(from), self.at(to)).context("rename", self.at(from))
    }

    fn unlink(&self, name: &str) -> Result<()> {
        std::fs::remove_file(self.at(name)).context("unlink", self.at(name))
    }

    fn sync_names(&self) -> Result<()> {
        File::open(&self.path).and_then(|dir| dir.sync_all()).context("sync directory", &self.path)
    }

    fn clone_file(&self, from: &str, to: &str, how: Cloning) -> Result<()> {
        std::fs::copy(self.at(from), self.at(to)).context("copy", self.at(to))?;
        how.size.map_or(Ok(()), |size| self.set_size(to, size))?;
        if how.durable { self.sync(to) } else { Ok(()) }
    }

    fn deepen(&self, _name: &str) -> Result<()> {
        Ok(())
    }
}

/// Maps the first `len` bytes of a file and copies `bytes` to `at`, which lies within them.
///
/// A process of its own does it. A thread that waits for a page of the mapping can hold the lock of its address space,
/// and the thread that serves the recorder disk, from which the page comes in the end, needs the lock of its own.
fn write_through_mapping(file: &File, len: usize, at: usize, bytes: &[u8]) -> std::io::Result<()> {
    assert!(at + bytes.len() <= len);
    // SAFETY: the child makes system calls and copies memory, which the child of a process with threads may do, and ends.
    let child = unsafe { libc::fork() };
    match child {
        -1 => return Err(std::io::Error::last_os_error()),
        // SAFETY: this is the child; the arguments are checked above.
        0 => unsafe { store_and_exit(file.as_raw_fd(), len, at, bytes) },
        _ => {}
    }
    let mut status = 0;
    // SAFETY: `child` is our child and is waited for once.
    while unsafe { libc::waitpid(child, &mut status, 0) } < 0 {
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    match libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)) {
        Some(0) => Ok(()),
        Some(errno) => Err(std::io::Error::from_raw_os_error(errno)),
        None => Err(std::io::Error::other("the process that stored through the mapping was ended")),
    }
}

/// Stores through a mapping and ends the process with the errno, or 0.
///
/// # Safety
/// To be called in a child of fork only. `at + bytes.len()` is at most `len`.
unsafe fn store_and_exit(file: libc::c_int, len: usize, at: usize, bytes: &[u8]) -> ! {
    let (rights, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping at a place of the kernel's choice; the range that is written lies in it. The file is not cut
    // meanwhile: one thread at a time changes a volume. Nothing here takes a lock or allocates.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let map = libc::mmap(std::ptr::null_mut(), len, rights, flags, file, 0);
        if map == libc::MAP_FAILED {
            libc::_exit(*libc::__errno_location());
        }
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), map.cast::<u8>().add(at), bytes.len());
        libc::munmap(map, len);
        libc::_exit(0)
    }
}

/// Bytes at an address that direct I/O takes.
pub(crate) struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    const ALIGNMENT: usize = 4096;

    pub(crate) fn new(data: &[u8]) -> Aligned {
        let mut bytes = vec![0; data.len() + Aligned::ALIGNMENT];
        let start = bytes.as_ptr().align_offset(Aligned::ALIGNMENT);
        bytes[start..start + data.len()].copy_from_slice(data);
        Aligned { bytes, start, len: data.len() }
    }

    pub(crate) fn get(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}
