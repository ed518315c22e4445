//! Copying bytes: by the kernel where it will, holes left out where they should be.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use rustix::fs::{Advice, FallocateFlags, SeekFrom as RawSeek, copy_file_range, fadvise, fallocate, seek};
use rustix::io::Errno;

use crate::progress::Progress;
use crate::quote::shell;
use crate::report::{Done, Report};
use crate::settings::{Reflink, Settings, Sparse};
use crate::stat::Stat;

/// Bytes in one read and one write: what a FUSE filesystem takes in one request.
const BUFFER: usize = 1 << 20;
/// Bytes that the kernel is asked to copy at once, so that progress can be shown and Ctrl-C works in between.
const PIECE: usize = 64 << 20;
/// Zeros are left out in units of this size, which is the block size of nearly every filesystem.
const UNIT: usize = 4096;
/// One such unit.
static ZEROS: [u8; UNIT] = [0; UNIT];

/// One copy under way. Both files are read and written where they stand, so neither needs to be seekable unless there
/// are holes.
pub struct Data<'a> {
    from: (&'a File, &'a Path),
    to: (&'a File, &'a Path),
    report: &'a Report,
    progress: Progress<'a>,
    /// The kernel may copy (and may share blocks in doing so).
    by_kernel: bool,
    /// Zeros become holes.
    find_zeros: bool,
    /// Space that the filesystem allocated ahead is given back where there are holes.
    give_back: bool,
    /// Holes of the source become holes.
    keep_holes: bool,
    /// The source has holes that the filesystem tells of.
    extents: bool,
    /// Where the last hole ends, if nothing was written after it: the file must be made that long in the end.
    open_end: Option<u64>,
    buffer: Vec<u8>,
}

impl<'a> Data<'a> {
    /// Prepares to copy `from` to the empty (or not regular) file `to`.
    pub fn new(
        from: (&'a File, &'a Path, &Stat),
        to: (&'a File, &'a Path, &Stat),
        settings: &Settings,
        report: &'a Report,
    ) -> Data<'a> {
        let sparse = from.2.is_sparse();
        let extents = sparse && matches!(seek(from.0, RawSeek::Data(0)), Ok(_) | Err(Errno::NXIO));
        // Asking has moved it.
        let extents = extents && seek(from.0, RawSeek::Start(0)).is_ok();
        let holes = to.2.is_file() && settings.sparse != Sparse::Never;
        // A file that has holes may have zeros where there could be more.
        let find_zeros = holes && (settings.sparse == Sparse::Always || sparse);
        Data {
            from: (from.0, from.1),
            to: (to.0, to.1),
            report,
            progress: Progress::new(from.1, from.2.size),
            by_kernel: settings.reflink != Reflink::Never && !find_zeros,
            find_zeros,
            give_back: settings.sparse == Sparse::Always,
            keep_holes: holes,
            extents,
            open_end: None,
            buffer: Vec::new(),
        }
    }

    /// Copies everything.
    pub fn copy(mut self) -> Done {
        // Only a hint: files that do not take it are read all the same.
        let _ = fadvise(self.from.0, 0, None, Advice::Sequential);
        if self.extents {
            self.copy_extents()?;
        } else {
            self.copy_range(u64::MAX)?;
        }
        match self.open_end {
            Some(size) => self.to.0.set_len(size).map_err(|e| self.extend_failed(&e)),
            None => Ok(()),
        }
    }

    /// Copies what is between the holes.
    fn copy_extents(&mut self) -> Done {
        let mut end = 0;
        while let Some((begin, next_hole)) = self.next_extent(end)? {
            if begin < end || next_hole <= begin {
                // No sense in that: read everything that is left.
                self.seek_source(end)?;
                return self.copy_range(u64::MAX);
            }
            self.hole(begin - end)?;
            self.seek_source(begin)?;
            self.copy_range(next_hole - begin)?;
            end = next_hole;
        }
        let size = (&mut &*self.from.0).seek(SeekFrom::End(0)).map_err(|e| self.read_failed(&e))?;
        self.hole(size.saturating_sub(end))
    }

    /// The first run of data at or after `place`, as the filesystem tells it; `None` if there is none.
    fn next_extent(&self, place: u64) -> Done<Option<(u64, u64)>> {
        let found = seek(self.from.0, RawSeek::Data(place))
            .and_then(|begin| seek(self.from.0, RawSeek::Hole(begin)).map(|hole| (begin, hole)));
        match found {
            Ok(extent) => Ok(Some(extent)),
            Err(Errno::NXIO) => Ok(None),
            Err(e) => Err(self.read_failed(&e.into())),
        }
    }

    /// Copies up to `length` bytes, fewer if the source ends.
    fn copy_range(&mut self, length: u64) -> Done {
        let copied = if self.by_kernel { self.copy_by_kernel(length)? } else { 0 };
        // If the kernel says at once that there is nothing, that need not be so: the files of /proc have contents that
        // only reading shows.
        if copied == 0 || !self.by_kernel { self.copy_by_hand(length - copied) } else { Ok(()) }
    }

    /// Has the kernel copy, as far as it will. It is not asked again if it refuses.
    fn copy_by_kernel(&mut self, length: u64) -> Done<u64> {
        let mut copied = 0;
        while copied < length {
            let piece = usize::try_from(length - copied).map_or(PIECE, |rest| rest.min(PIECE));
            match copy_file_range(self.from.0, None, self.to.0, None, piece) {
                Ok(0) => break,
                Ok(bytes) => {
                    copied += bytes as u64;
                    self.open_end = None;
                    self.progress.advance(bytes as u64);
                }
                Err(Errno::INTR) => {}
                // Whatever it is, it comes again by hand, and then it is known which of the two files it is about.
                Err(_) => {
                    self.by_kernel = false;
                    break;
                }
            }
        }
        Ok(copied)
    }

    /// Reads and writes.
    fn copy_by_hand(&mut self, length: u64) -> Done {
        let mut left = length;
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.is_empty() {
            buffer = vec![0; BUFFER];
        }
        while left > 0 {
            let room = usize::try_from(left).map_or(BUFFER, |left| left.min(BUFFER));
            let bytes = self.fill(&mut buffer[..room])?;
            if bytes == 0 {
                break;
            }
            self.write(&buffer[..bytes])?;
            left -= bytes as u64;
        }
        self.buffer = buffer;
        Ok(())
    }

    /// Reads once; with zeros to be found, until `room` is full, so that blocks stay whole.
    fn fill(&self, room: &mut [u8]) -> Done<usize> {
        let mut filled = 0;
        while filled < room.len() {
            match (&mut &*self.from.0).read(&mut room[filled..]) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.read_failed(&e)),
            }
            if !self.find_zeros {
                break;
            }
        }
        Ok(filled)
    }

    /// Writes, or leaves out what is zero.
    fn write(&mut self, bytes: &[u8]) -> Done {
        if !self.find_zeros {
            return self.put(bytes);
        }
        let end_of = |begin: usize| (begin + UNIT).min(bytes.len());
        let is_zero = |begin: usize| bytes[begin..end_of(begin)] == ZEROS[..end_of(begin) - begin];
        let mut begin = 0;
        while begin < bytes.len() {
            let zero = is_zero(begin);
            let mut end = end_of(begin);
            while end < bytes.len() && is_zero(end) == zero {
                end = end_of(end);
            }
            if zero {
                self.hole((end - begin) as u64)?
            } else {
                self.put(&bytes[begin..end])?
            }
            begin = end;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Done {
        (&mut &*self.to.0).write_all(bytes).map_err(|e| self.write_failed(&e))?;
        self.open_end = None;
        self.progress.advance(bytes.len() as u64);
        Ok(())
    }

    /// Leaves `length` bytes out of the destination, or writes zeros where holes are not wanted.
    fn hole(&mut self, length: u64) -> Done {
        if length == 0 {
            return Ok(());
        }
        if !self.keep_holes {
            let zeros = vec![0; BUFFER];
            let mut left = length;
            while left > 0 {
                let bytes = usize::try_from(left).map_or(BUFFER, |left| left.min(BUFFER));
                self.put(&zeros[..bytes])?;
                left -= bytes as u64;
            }
            return Ok(());
        }
        let step = i64::try_from(length).map_err(|_| self.write_failed(&Errno::FBIG.into()))?;
        let end = (&mut &*self.to.0).seek(SeekFrom::Current(step)).map_err(|e| self.write_failed(&e))?;
        if self.give_back {
            // Not every filesystem can, and it is only about space.
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = fallocate(self.to.0, mode, end - length, length);
        }
        self.open_end = Some(end);
        self.progress.advance(length);
        Ok(())
    }

    fn seek_source(&self, place: u64) -> Done {
        seek(self.from.0, RawSeek::Start(place)).map(|_| ()).map_err(|e| self.read_failed(&e.into()))
    }

    fn read_failed(&self, error: &io::Error) -> crate::report::Failed {
        self.report.os(format_args!("error reading {}", shell(self.from.1)), error)
    }

    fn write_failed(&self, error: &io::Error) -> crate::report::Failed {
        self.report.os(format_args!("error writing {}", shell(self.to.1)), error)
    }

    fn extend_failed(&self, error: &io::Error) -> crate::report::Failed {
        self.report.os(format_args!("failed to extend {}", shell(self.to.1)), error)
    }
}
