//! Deepening one volume, step by step: a block is copied in only if it is still absent.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use crate::sync::Mutex;

use super::overlay::{Overlay, punch};
use crate::engine::io::{FileRef, Whence, aligned};
use crate::engine::layer::Layer;
use crate::engine::layer::resolve::{Owner, resolve};
use crate::engine::store::data_path;
use crate::error::{Context, Result};
use crate::units::{BLOCK, blocks};

/// What one step did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Where the next step begins, in blocks; `None`: nothing visible in the parent is absent any more.
    pub next: Option<u64>,
    /// Bytes that were copied (holes and shared blocks count as none).
    pub copied: u64,
    /// Blocks that became present.
    pub blocks: u64,
}

/// How to deepen.
#[derive(Clone, Copy, Debug)]
pub struct Filling {
    /// Bytes to copy in one step, about.
    pub most: u64,
    /// Share blocks with the parent's file where the filesystem can.
    pub share: bool,
    /// The filesystem tells holes of a file that does not change reliably (R12 has the ones that do not).
    pub trust_holes: bool,
    /// Allocate room before each write: the filesystem lets direct writes into a hole go one after another.
    pub allocate: bool,
}

/// Blocks looked at in one step: 256 MiB.
const CHUNK: u64 = 1 << 16;
/// Blocks read at once: 1 MiB.
const PIECE: u64 = 256;
/// So many pieces are copied at the same time: one is read while another is written, and one more.
const COPIERS: usize = 3;

/// Blocks to be copied from a layer.
struct Piece {
    layer: Arc<Layer>,
    blocks: Range<u64>,
}

thread_local! {
    /// Room for a piece, one for each thread that copies.
    static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Where the hole that `offset` lies in ends; `None` if it lies in data.
fn hole_end(file: &FileRef, offset: u64) -> Option<u64> {
    match file.seek(offset, Whence::Data) {
        Ok(data) => (data > offset).then_some(data),
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Some(u64::MAX),
        Err(_) => None,
    }
}

/// Whether all bytes are zero.
fn is_zero(bytes: &[u8]) -> bool {
    // SAFETY: every bit pattern is a valid u64.
    let (head, words, tail) = unsafe { bytes.align_to::<u64>() };
    head.iter().chain(tail).all(|&b| b == 0) && words.iter().all(|&w| w == 0)
}

impl Overlay {
    /// Last block, exclusive, that the parent can show.
    pub fn visible_end(&self) -> u64 {
        self.top.overlap().min(blocks(self.top.size()))
    }

    /// Copies in absent blocks, the first ones at or after block `from`, until `how.most` bytes were copied or a chunk
    /// of them is done. Not durable until the next flush.
    pub fn fill_absent(&self, from: u64, how: &Filling) -> Result<Filled> {
        self.fill_within(from..self.visible_end(), how)
    }

    /// As [`Overlay::fill_absent`], of what was read last and is absent still; `None`: there is nothing of that kind.
    pub fn fill_hot(&self, how: &Filling) -> Result<Option<Filled>> {
        while let Some(part) = self.hot.take() {
            let part = part.start..part.end.min(self.visible_end());
            if !part.is_empty() && self.top.next_absent(part.start, part.end).is_some() {
                return self.fill_within(part, how).map(Some);
            }
        }
        Ok(None)
    }

    fn fill_within(&self, range: Range<u64>, how: &Filling) -> Result<Filled> {
        let Some(run) = self.top.next_absent(range.start, range.end) else { return Ok(Filled::default()) };
        let run = run.start..run.end.min(run.start + CHUNK);
        let _held = self.ranges.lock(run.clone());
        let mut filled = Filled { next: Some(run.end), ..Filled::default() };
        let pieces = self.fill_without_copying(run, how, &mut filled)?;
        self.copy_pieces(&pieces, how)?;
        Ok(filled)
    }

    /// Makes holes of what reads as zeros, shares what can be shared, and gives what has to be copied.
    fn fill_without_copying(&self, run: Range<u64>, how: &Filling, filled: &mut Filled) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        // What a guest wrote before the lock is not touched: it is present now.
        let mut at = run.start;
        while let Some(absent) = self.top.next_absent(at, run.end) {
            at = absent.end;
            let parent = self.top.parent();
            for segment in resolve(parent.as_ref(), self.top.overlap(), absent) {
                let mut rest = segment.blocks.clone();
                while !rest.is_empty() {
                    if filled.copied >= how.most {
                        filled.next = Some(rest.start);
                        return Ok(pieces);
                    }
                    let listed = pieces.len();
                    let done = match &segment.owner {
                        Owner::Zero => self.fill_zero(rest.clone())?,
                        Owner::Layer(layer) => self.fill_from(layer, &rest, how, &mut pieces)?,
                    };
                    filled.blocks += done - rest.start;
                    rest.start = done;
                    filled.copied += pieces[listed..].iter().map(|piece| self.bytes_of(&piece.blocks)).sum::<u64>();
                }
            }
        }
        Ok(pieces)
    }

    /// Zeros must be made: the data file can hold leftovers of writes that a crash took back.
    fn fill_zero(&self, range: Range<u64>) -> Result<u64> {
        let file = self.top.data_for_writing()?;
        let len = (range.end - range.start) * BLOCK;
        punch(&file, range.start * BLOCK, len).context("punch layer data", data_path(self.top.file_id()))?;
        self.top.mark(range.start, range.end);
        Ok(range.end)
    }

    /// Bytes of blocks: the last one may end with the volume.
    fn bytes_of(&self, blocks: &Range<u64>) -> u64 {
        (blocks.end * BLOCK).min(self.top.size()) - blocks.start * BLOCK
    }

    /// Fills the first part of `range` if no byte of it need be copied, and else adds it to `pieces`; returns where that
    /// part ends.
    fn fill_from(&self, layer: &Arc<Layer>, range: &Range<u64>, how: &Filling, pieces: &mut Vec<Piece>) -> Result<u64> {
        let data = layer.data()?;
        if let Some(hole) = data.filter(|_| how.trust_holes).and_then(|data| hole_end(&data, range.start * BLOCK)) {
            let end = (hole / BLOCK).min(range.end);
            if end > range.start {
                // It can be data that the disk has lost.
                layer.check_sound(range.start, end)?;
                return self.fill_zero(range.start..end);
            }
        }
        if how.share && self.share_from(layer, range)? {
            self.top.mark(range.start, range.end);
            return Ok(range.end);
        }
        let blocks = range.start..range.end.min(range.start + PIECE);
        let end = blocks.end;
        pieces.push(Piece { layer: layer.clone(), blocks });
        Ok(end)
    }

    /// Copies all of them, several at a time where that is of use. After an error those that were copied are present.
    fn copy_pieces(&self, pieces: &[Piece], how: &Filling) -> Result<()> {
        let failed = Mutex::new(None);
        self.top.fs().each(COPIERS, pieces.len(), &|index| {
            let failed_before = failed.lock().is_some();
            if !failed_before && let Err(error) = self.copy_piece(&pieces[index], how) {
                failed.lock().get_or_insert(error);
            }
        });
        failed.into_inner().map_or(Ok(()), Err)
    }

    fn copy_piece(&self, Piece { layer, blocks }: &Piece, how: &Filling) -> Result<()> {
        let (start, len) = (blocks.start * BLOCK, self.bytes_of(blocks));
        let mut room = ROOM.take();
        let bytes = aligned(&mut room, len as usize);
        layer.read_through(start, bytes)?;
        self.put_filled(start, bytes, how)?;
        ROOM.set(room);
        self.top.mark(blocks.start, blocks.end);
        Ok(())
    }

    /// Writes what was read from the parent: data past the page cache, as nobody has asked for it and the next sync
    /// then has little left to do; zeros as holes.
    fn put_filled(&self, start: u64, bytes: &[u8], how: &Filling) -> Result<()> {
        let file = self.top.data_for_writing()?;
        let path = || data_path(self.top.file_id());
        let mut at = 0;
        while at < bytes.len() {
            let zero = |i: usize| is_zero(&bytes[i..(i + BLOCK as usize).min(bytes.len())]);
            let kind = zero(at);
            let mut to = at;
            while to < bytes.len() && zero(to) == kind {
                to = (to + BLOCK as usize).min(bytes.len());
            }
            let offset = start + at as u64;
            if kind {
                punch(&file, offset, ((to - at) as u64).next_multiple_of(BLOCK)).context("punch layer data", path())?;
            } else {
                if how.allocate {
                    // Where it fails, the write says what is wrong, or does without.
                    drop(file.allocate(libc::FALLOC_FL_KEEP_SIZE, offset, (to - at) as u64));
                }
                file.write_direct(&bytes[at..to], offset).context("write layer data", path())?;
            }
            at = to;
        }
        Ok(())
    }

    /// Shares blocks of a parent's file; `false` where the filesystem cannot.
    fn share_from(&self, layer: &Layer, range: &Range<u64>) -> Result<bool> {
        let Some(source) = layer.data()? else { return Ok(false) };
        layer.check_sound(range.start, range.end)?;
        let from = range.start * BLOCK;
        // The last block of a source that ends within it can only be shared with a file that ends there too. What its
        // file has beyond is a write that a crash took back, and nobody's.
        let end = (range.end * BLOCK).min(self.top.size());
        if end > layer.size() || end > source.stat().context("look at layer data", data_path(layer.file_id()))?.size {
            return Ok(false);
        }
        let file = self.top.data_for_writing()?;
        Ok(file.share_range(source.as_ref(), from, from, end - from).is_ok())
    }

    /// Punches what is absent and not visible in the parent, so that the data file is what the volume shows.
    pub fn clean_absent(&self) -> Result<()> {
        let file = self.top.data_for_writing()?;
        let mut at = 0;
        let end = blocks(self.top.size());
        while let Some(found) = self.top.next_absent(at, end) {
            let chunk = found.start..found.end.min(found.start + CHUNK);
            let _held = self.ranges.lock(chunk.clone());
            at = chunk.start;
            // What a guest wrote between the look above and the lock is present now, and stays.
            while let Some(run) = self.top.next_absent(at, chunk.end) {
                let (offset, len) = (run.start * BLOCK, (run.end - run.start) * BLOCK);
                punch(&file, offset, len).context("punch layer data", data_path(self.top.file_id()))?;
                self.top.mark(run.start, run.end);
                at = run.end;
            }
            at = chunk.end;
        }
        Ok(())
    }
}
