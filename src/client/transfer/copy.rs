//! Copying raw bytes: holes stay holes, and long runs of zeros become holes.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::output::{Output, write_error};
use super::source::Source;
use super::{Cancel, Progress, interrupted};
use crate::error::{Error, Result};

/// Bytes that are read at once.
const CHUNK: u64 = 1 << 20;
/// Zeros become a hole in units of this many bytes. Shorter runs are written: a file cut into more pieces than that
/// is slower to read than the zeros are to store.
const HOLE: usize = 64 << 10;
/// How much is written before the disk is told to begin with it, so that the sync at the end is short.
const WRITE_BEHIND: u64 = 64 << 20;

static ZEROS: [u8; HOLE] = [0; HOLE];

/// Makes the empty `output` share the blocks of `source`, as they are at this moment, and returns its size. `None`
/// where the filesystem cannot; nothing is changed then.
pub fn reflink(source: &Source, output: &Output) -> Option<u64> {
    // Whatever the reason for a failure is: copying either works, or fails with the better message.
    rustix::fs::ioctl_ficlone(output.file(), source.file()).ok()?;
    output.file().metadata().ok().map(|m| m.len())
}

/// Copies all of `source` into the empty `output`.
pub fn copy(
    source: &Source,
    output: &Output,
    cancel: &Cancel,
    progress: &mut dyn Progress,
    operation: &'static str,
) -> Result<()> {
    let read_error = |e| Error::io(operation, e).at(source.path());
    let write_error = |e| write_error(e, output.path(), operation);
    let size = source.size();
    output.file().set_len(size).map_err(write_error)?;
    let mut buffer = vec![0u8; CHUNK as usize];
    let mut written = WriteBehind::default();
    let mut at = 0;
    while at < size {
        let extent = source.extent(at).map_err(read_error)?;
        if !extent.data {
            at = extent.end;
        }
        while at < extent.end {
            if cancel.is_set() {
                return Err(interrupted(operation, output.path()));
            }
            // Up to the next multiple of CHUNK, so that runs of zeros are found where they lie.
            let end = extent.end.min((at / CHUNK + 1) * CHUNK);
            let piece = &mut buffer[..(end - at) as usize];
            source.read_at(piece, at).map_err(read_error)?;
            write_data(output.file(), piece, at).map_err(write_error)?;
            written.advance(output.file(), end);
            at = end;
            progress.update(at, size);
        }
        if cancel.is_set() {
            return Err(interrupted(operation, output.path()));
        }
        progress.update(at, size);
    }
    Ok(())
}

/// Writes what is not zeros.
fn write_data(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    let mut start = 0;
    while start < bytes.len() {
        let zero = is_zero(&bytes[start..(start + HOLE).min(bytes.len())]);
        let mut end = (start + HOLE).min(bytes.len());
        while end < bytes.len() && is_zero(&bytes[end..(end + HOLE).min(bytes.len())]) == zero {
            end = (end + HOLE).min(bytes.len());
        }
        if !zero {
            file.write_all_at(&bytes[start..end], offset + start as u64)?;
        }
        start = end;
    }
    Ok(())
}

fn is_zero(bytes: &[u8]) -> bool {
    // Comparing with zeros is one memcmp, which is far faster than a loop that can stop at each byte.
    bytes == &ZEROS[..bytes.len()]
}

/// Starts write-back of finished parts.
#[derive(Default)]
struct WriteBehind {
    started: u64,
}

impl WriteBehind {
    /// All below `end` has been written to the page cache.
    fn advance(&mut self, file: &File, end: u64) {
        if end - self.started < WRITE_BEHIND {
            return;
        }
        let (from, len) = (self.started as i64, (end - self.started) as i64);
        // SAFETY: takes no memory of ours. It is a hint: errors of write-back come up again in the sync at the end.
        unsafe { libc::sync_file_range(file.as_raw_fd(), from, len, libc::SYNC_FILE_RANGE_WRITE) };
        self.started = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_left_out_and_nothing_else_is() {
        let file = tempfile::tempfile().unwrap();
        let mut bytes = vec![0u8; 5 * HOLE + 100];
        bytes[HOLE] = 1;
        bytes[3 * HOLE - 1] = 2;
        bytes[5 * HOLE + 99] = 3;
        file.set_len(bytes.len() as u64 + 7).unwrap();
        write_data(&file, &bytes, 7).unwrap();
        let mut back = vec![9u8; bytes.len()];
        file.read_exact_at(&mut back, 7).unwrap();
        assert!(back == bytes);
    }
}
