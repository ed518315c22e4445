//! Checksums of frozen layers: taken once in the background, compared when the pool is scrubbed.
//!
//! One CRC32C for each piece of 1 MiB, over the numbers and bytes of those of its blocks that are present and not all
//! zeros; so a hole and zeros are the same, and a hole where data was is not.
//!
//! ```text
//! FILE.sums   8 bytes "cfssums1" | u64 file | u64 number of pieces | u32 for each piece | u32 CRC32C of all before
//! FILE.bad    the same with magic "cfsbad_1": a u32 for each damaged piece, its number
//! ```

use crate::sync::atomic::Ordering;
use std::io;
use std::path::{Path, PathBuf};

use super::Layer;
use crate::engine::io::{Fs, Open, Whence};
use crate::engine::store::{bad_path, data_path, log, persist, sums_path};
use crate::error::{Context, Error, Kind, Result};
use crate::units::{BLOCK, Id, MAX_VOLUME, blocks};

/// Blocks in a piece.
pub const PIECE: u64 = 256;
const SUMS: &[u8; 8] = b"cfssums1";
const BAD: &[u8; 8] = b"cfsbad_1";
const FIXED: usize = 24;
/// No list is longer: a piece for each MiB of the largest volume.
const LIMIT: u64 = FIXED as u64 + MAX_VOLUME / (PIECE * BLOCK) * 4 + 16;

/// Number of pieces of a layer of `size` bytes.
pub fn pieces(size: u64) -> u64 {
    blocks(size).div_ceil(PIECE)
}

fn encode(magic: &[u8; 8], file: Id, words: &[u32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FIXED + words.len() * 4 + 4);
    bytes.extend_from_slice(magic);
    bytes.extend_from_slice(&file.0.to_le_bytes());
    bytes.extend_from_slice(&(words.len() as u64).to_le_bytes());
    words.iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// The words of a list, if it is whole and that of this file.
fn decode(magic: &[u8; 8], file: Id, bytes: &[u8]) -> Option<Vec<u32>> {
    let (body, crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    let whole = crc32c::crc32c(body).to_le_bytes() == crc && body.get(..8)? == magic;
    let words = body.get(FIXED..)?;
    let mine = body.get(8..16)? == file.0.to_le_bytes() && body.get(16..24)? == (words.len() as u64 / 4).to_le_bytes();
    (whole && mine).then(|| {
        let word = |chunk: &[u8]| chunk.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
        words.chunks_exact(4).map(word).collect()
    })
}

fn load(fs: &dyn Fs, path: &Path, magic: &[u8; 8], file: Id) -> io::Result<Option<Vec<u32>>> {
    match fs.open(path, Open::Read) {
        Ok(open) => Ok(decode(magic, file, &log::read_all(open.as_ref(), LIMIT)?)),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The checksums of a layer's file; `None` if there are none, or their own file is damaged.
pub fn read(fs: &dyn Fs, file: Id) -> Result<Option<Vec<u32>>> {
    load(fs, &sums_path(file), SUMS, file).context("read checksums", sums_path(file))
}

/// Writes them, durably.
pub fn write(fs: &dyn Fs, file: Id, sums: &[u32]) -> Result<()> {
    persist(fs, &sums_path(file), &encode(SUMS, file, sums))
}

/// Forgets the checksums of a file that is about to change; durably, if there were any.
pub fn forget(fs: &dyn Fs, file: Id) -> Result<()> {
    let mut any = false;
    for path in [sums_path(file), bad_path(file)] {
        match fs.unlink(&path) {
            Ok(()) => any = true,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(e) => return Err(Error::io("remove checksums", e).at(path)),
        }
    }
    let dir = sums_path(file).parent().map(PathBuf::from).unwrap_or_default();
    if any { fs.sync_dir(&dir).context("sync layers directory", dir) } else { Ok(()) }
}

impl Layer {
    /// The checksum of one piece, as the file is now. With `trust_holes` holes are not read.
    pub fn sum_piece(&self, piece: u64, trust_holes: bool) -> Result<u32> {
        let end = blocks(self.size());
        let range = (piece * PIECE).min(end)..((piece + 1) * PIECE).min(end);
        let mut buffer = vec![0; (PIECE * BLOCK) as usize];
        let mut crc = 0;
        for (run, present) in self.runs(range.start, range.end) {
            if !present || trust_holes && self.is_hole(run.start, run.end)? {
                continue;
            }
            let bytes = &mut buffer[..((run.end - run.start) * BLOCK) as usize];
            self.read_unchecked(run.start * BLOCK, bytes)?;
            for (number, block) in (run.start..).zip(bytes.chunks(BLOCK as usize)) {
                if block.iter().any(|byte| *byte != 0) {
                    crc = crc32c::crc32c_append(crc, &number.to_le_bytes());
                    crc = crc32c::crc32c_append(crc, block);
                }
            }
        }
        Ok(crc)
    }

    /// Whether the filesystem says that blocks `[start, end)` of the data file are one hole.
    fn is_hole(&self, start: u64, end: u64) -> Result<bool> {
        let Some(data) = self.data()? else { return Ok(true) };
        match data.seek(start * BLOCK, Whence::Data) {
            Ok(next) => Ok(next >= end * BLOCK),
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(true),
            Err(_) => Ok(false),
        }
    }

    /// Notes which pieces are damaged, durably: reading them gives EIO from now on.
    pub fn set_bad(&self, pieces: &[u32]) -> Result<()> {
        *self.bad.write() = pieces.to_vec();
        self.any_bad.store(!pieces.is_empty(), Ordering::Release);
        let file = self.file_id();
        persist(self.fs.as_ref(), &bad_path(file), &encode(BAD, file, pieces))
    }

    /// The damaged pieces that are known.
    pub fn bad(&self) -> Vec<u32> {
        self.bad.read().clone()
    }

    /// Reads the list of damaged pieces, when the layer is opened.
    pub(super) fn load_bad(&mut self, file: Id) -> Result<()> {
        let bad = load(self.fs.as_ref(), &bad_path(file), BAD, file).context("read damaged pieces", bad_path(file))?;
        *self.bad.get_mut() = bad.unwrap_or_default();
        *self.any_bad.get_mut() = !self.bad.get_mut().is_empty();
        Ok(())
    }

    /// Refuses blocks `[start, end)` if a scrub found one of their pieces damaged.
    pub fn check_sound(&self, start: u64, end: u64) -> Result<()> {
        if !self.any_bad.load(Ordering::Acquire) || start >= end {
            return Ok(());
        }
        let range = start / PIECE..=(end - 1) / PIECE;
        if !self.bad.read().iter().any(|piece| range.contains(&u64::from(*piece))) {
            return Ok(());
        }
        Err(Error::new(Kind::Damaged, "read layer data")
            .at(data_path(self.file_id()))
            .because("its bytes are not those that its checksum was taken of")
            .remedy("restore this file from a backup, then `clonefs scrub` again"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_back_and_no_damaged_one_is() {
        let words = [1, 0xdead_beef, 3];
        let bytes = encode(SUMS, Id(7), &words);
        assert_eq!(decode(SUMS, Id(7), &bytes).as_deref(), Some(&words[..]));
        assert_eq!(decode(SUMS, Id(8), &bytes), None);
        assert_eq!(decode(BAD, Id(7), &bytes), None);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(decode(SUMS, Id(7), &bad), None, "byte {at}");
            assert_eq!(decode(SUMS, Id(7), &bytes[..at]), None, "cut at {at}");
        }
    }
}
