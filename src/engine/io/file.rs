//! An open file of the real backing filesystem: [`File`] over system calls.

use super::File;
use super::around::Around;
use super::demands;
use super::direct::{Direct, tells_cached};
use super::sole;
use super::sys::{c_name, fstat, grow_buffer, retry, split_names, timespec};
use super::tree::{Tree, link_descriptor};
use super::types::{SetTime, Stat, Whence};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

/// So many bytes ahead the disk is told what will be read by somebody who reads a whole file.
const AHEAD: u64 = 8 << 20;

/// An open file of a [`super::HostFs`].
pub struct HostFile {
    fd: OwnedFd,
    /// For [`File::link_to`].
    tree: Arc<Tree>,
    direct: Direct,
    around: Around,
}

impl HostFile {
    /// The file that `fd` has open, in a tree.
    pub fn new(fd: OwnedFd, tree: Arc<Tree>) -> HostFile {
        HostFile { fd, tree, direct: Direct::default(), around: Around::default() }
    }

    fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn write_until(&self, data: &[u8], offset: u64, direct: bool) -> (usize, io::Result<()>) {
        let mut done = 0;
        if direct {
            match self.direct.write(self.fd.as_fd(), data, offset) {
                (written, Ok(())) => done = written,
                failed => return failed,
            }
        }
        while done < data.len() {
            let rest = &data[done..];
            let (from, len, at) = (rest.as_ptr().cast(), rest.len(), (offset + done as u64) as i64);
            // SAFETY: from and len describe the rest of `data`.
            match retry(|| unsafe { libc::pwrite(self.raw(), from, len, at) }) {
                Ok(0) => return (done, Err(io::Error::from_raw_os_error(libc::EIO))),
                Ok(written) => done += written as usize,
                Err(error) => return (done, Err(error)),
            }
        }
        (done, Ok(()))
    }
}

impl File for HostFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let rest = &mut buf[done..];
            let (data, len, at) = (rest.as_mut_ptr().cast(), rest.len(), (offset + done as u64) as i64);
            // SAFETY: data and len describe the rest of `buf`, which is ours to fill.
            match retry(|| unsafe { libc::pread(self.raw(), data, len, at) })? {
                0 => break,
                read => done += read as usize,
            }
        }
        Ok(done)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write_part(data, offset, false).1
    }

    fn write_part(&self, data: &[u8], offset: u64, direct: bool) -> (usize, io::Result<()>) {
        if direct {
            // Opened as ourselves: another user could not.
            self.direct.prepare(self.fd.as_fd());
        }
        let write = || Ok(self.write_until(data, offset, direct));
        self.tree.reserve.take(self.raw(), data.len() as u64, write).unwrap_or_else(|error| (0, Err(error)))
    }

    fn read_through(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        // What could not be written out is only in the cache, and must be read from there.
        if !self.around.fits(self.fd.as_fd()) && tells_cached().is_ok() {
            return self.read_direct(buf, offset);
        }
        let read = self.read_at(buf, offset)?;
        let next = offset + buf.len() as u64 + AHEAD;
        // SAFETY: the descriptor is open; the call reads nothing of ours.
        unsafe { libc::posix_fadvise(self.raw(), next as i64, buf.len() as i64, libc::POSIX_FADV_WILLNEED) };
        Ok(read)
    }

    fn read_around(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.around.read(self.fd.as_fd(), buf, offset) { Ok(buf.len()) } else { self.read_at(buf, offset) }
    }

    fn read_direct(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let done = self.direct.read(self.fd.as_fd(), buf, offset)?;
        // What is left is the end of the file, or what cannot be read so.
        if done == buf.len() { Ok(done) } else { Ok(done + self.read_at(&mut buf[done..], offset + done as u64)?) }
    }

    fn ring_fd(&self, direct: bool, offset: u64, len: usize) -> Option<Arc<OwnedFd>> {
        if direct { self.direct.for_ring(self.fd.as_fd(), offset, len) } else { None }
    }

    fn ring_failed(&self, error: &io::Error) {
        self.direct.ring_failed(error);
    }

    fn write_direct(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write_part(data, offset, true).1
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = i64::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        // SAFETY: the descriptor is open.
        retry(|| unsafe { libc::ftruncate(self.raw(), len) }).map(drop)
    }

    fn sync_data(&self) -> io::Result<()> {
        // SAFETY: the descriptor is open.
        let sync = || retry(|| unsafe { libc::fdatasync(self.raw()) }).map(drop);
        self.tree.turns.take(sync).inspect_err(|_| self.direct.distrust())
    }

    fn sync_all(&self) -> io::Result<()> {
        // SAFETY: the descriptor is open.
        let sync = || retry(|| unsafe { libc::fsync(self.raw()) }).map(drop);
        self.tree.turns.take(sync).inspect_err(|_| self.direct.distrust())
    }

    fn allocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        let too_big = |_| io::Error::from_raw_os_error(libc::EFBIG);
        let offset = i64::try_from(offset).map_err(too_big)?;
        let len = i64::try_from(len).map_err(too_big)?;
        // SAFETY: the descriptor is open.
        let allocate = || retry(|| unsafe { libc::fallocate(self.raw(), mode, offset, len) }).map(drop);
        self.tree.reserve.take(self.raw(), len as u64, allocate)
    }

    fn stat(&self) -> io::Result<Stat> {
        fstat(self.raw())
    }

    fn seek(&self, offset: u64, whence: Whence) -> io::Result<u64> {
        let whence = match whence {
            Whence::Data => libc::SEEK_DATA,
            Whence::Hole => libc::SEEK_HOLE,
        };
        let offset = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::ENXIO))?;
        // SAFETY: the descriptor is open. The file position it moves is used by nothing: all I/O here is positional.
        retry(|| unsafe { libc::lseek(self.raw(), offset, whence) }).map(|at| at as u64)
    }

    fn share_range(&self, source: &dyn File, from: u64, to: u64, len: u64) -> io::Result<()> {
        let src_fd = source.fd().ok_or_else(|| io::Error::from_raw_os_error(libc::EOPNOTSUPP))? as i64;
        let range = libc::file_clone_range { src_fd, src_offset: from, src_length: len, dest_offset: to };
        // SAFETY: range is a valid file_clone_range, and both descriptors are open during the call.
        retry(|| unsafe { libc::ioctl(self.raw(), libc::FICLONERANGE, &raw const range) }).map(drop)
    }

    fn link_to(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.tree.parent(path)?;
        link_descriptor(self.raw(), dir.as_raw_fd(), &name)
    }

    fn chmod(&self, mode: u32) -> io::Result<()> {
        // SAFETY: the descriptor is open.
        retry(|| unsafe { libc::fchmod(self.raw(), mode) }).map(drop)
    }

    fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        // SAFETY: the descriptor is open.
        retry(|| unsafe { libc::fchown(self.raw(), uid.unwrap_or(u32::MAX), gid.unwrap_or(u32::MAX)) }).map(drop)
    }

    fn set_times(&self, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        let times = [timespec(atime), timespec(mtime)];
        // SAFETY: the descriptor is open; times are two timespecs.
        retry(|| unsafe { libc::futimens(self.raw(), times.as_ptr()) }).map(drop)
    }

    fn get_xattr(&self, name: &OsString) -> io::Result<Vec<u8>> {
        let name = c_name(name)?;
        // SAFETY: name is NUL-terminated; buffer and length come as a pair.
        grow_buffer(|buf, len| unsafe { libc::fgetxattr(self.raw(), name.as_ptr(), buf, len) })
    }

    fn set_xattr(&self, name: &OsString, value: &[u8], flags: i32) -> io::Result<()> {
        let name = c_name(name)?;
        let (data, len) = (value.as_ptr().cast(), value.len());
        // SAFETY: name is NUL-terminated; data and len describe `value`.
        retry(|| unsafe { libc::fsetxattr(self.raw(), name.as_ptr(), data, len, flags) }).map(drop)
    }

    fn list_xattr(&self) -> io::Result<Vec<OsString>> {
        // SAFETY: buffer and length come as a pair.
        grow_buffer(|buf, len| unsafe { libc::flistxattr(self.raw(), buf.cast(), len) }).map(|l| split_names(&l))
    }

    fn remove_xattr(&self, name: &OsString) -> io::Result<()> {
        let name = c_name(name)?;
        // SAFETY: name is NUL-terminated.
        retry(|| unsafe { libc::fremovexattr(self.raw(), name.as_ptr()) }).map(drop)
    }

    fn project(&self) -> io::Result<u32> {
        demands::project(self.fd.as_fd())
    }

    fn set_project(&self, project: u32) -> io::Result<()> {
        demands::set_project(self.fd.as_fd(), project)
    }

    fn is_writable(&self) -> bool {
        sole::is_writable(self.fd.as_fd())
    }

    fn is_sole(&self) -> io::Result<bool> {
        self.direct.close();
        sole::is_sole(self.fd.as_fd())
    }

    fn fd(&self) -> Option<RawFd> {
        Some(self.raw())
    }
}

impl AsFd for HostFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_read_through_is_the_same_with_and_without_room_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..300_001u32).map(|i| (i * 7 % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let tree = Arc::new(Tree::new(OwnedFd::from(std::fs::File::open("/").unwrap())));
        let mut file = HostFile::new(std::fs::File::open(&path).unwrap().into(), tree);
        for around in [Around::default(), Around::too_large()] {
            file.around = around;
            // Out of the page cache: from there it would be read in any case.
            file.sync_all().unwrap();
            // SAFETY: the descriptor is open; the call touches no memory of ours.
            unsafe { libc::posix_fadvise(file.raw(), 0, 0, libc::POSIX_FADV_DONTNEED) };
            let mut room = Vec::new();
            let mut found = Vec::new();
            while let buf = super::super::aligned(&mut room, 65_536)
                && let read @ 1.. = file.read_through(buf, found.len() as u64).unwrap()
            {
                found.extend_from_slice(&buf[..read]);
            }
            assert!(found == bytes, "{} bytes", found.len());
        }
    }
}
