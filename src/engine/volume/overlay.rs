//! Reading and writing a volume whose own layer is not complete.
//!
//! Whole blocks go to the top layer without a look at the parent. A partial write to a block that is not present
//! reads the rest of it from the parent first, with the block locked (R3).

use std::ops::Range;
use std::sync::Arc;

use super::hot::Hot;
use super::ranges::Ranges;
use super::syncing::{Debts, Syncing};
use crate::engine::io::{FileRef, Fs, Whence};
use crate::engine::layer::Layer;
use crate::engine::layer::resolve::{Owner, Segment, resolve};
use crate::error::{Context, Error, Kind, Result};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::units::{BLOCK, Id, MAX_VOLUME, blocks};

/// A volume made of layers.
pub struct Overlay {
    /// Identity in the catalogue.
    pub id: Id,
    /// The stub, which carries name, owner, mode, times and attributes.
    pub stub: FileRef,
    /// Its own layer.
    pub top: Arc<Layer>,
    /// What of it is not durable besides its own layer.
    pub debts: Arc<Debts>,
    /// It is a snapshot, and never changes.
    pub snapshot: bool,
    /// Contents were changed since the stub's modification time was set.
    pub mtime_dirty: AtomicBool,
    /// Nothing was written to it since it was made empty: what is present is zeros. Then ranges can be shared into it.
    pub pristine: AtomicBool,
    /// A write has failed, and perhaps left bytes beyond the end: were the volume to grow, they would show.
    ragged: AtomicBool,
    /// Blocks being filled.
    pub ranges: Ranges,
    /// What was read from the parent a moment ago.
    pub hot: Hot,
}

/// Sets `punch` on a file, or writes zeros where the filesystem cannot punch holes.
pub fn punch(file: &FileRef, offset: u64, len: u64) -> std::io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    match file.allocate(mode, offset, len) {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => write_zeros(file, offset, len),
        other => other,
    }
}

fn write_zeros(file: &FileRef, offset: u64, len: u64) -> std::io::Result<()> {
    let end = (offset + len).min(file.stat()?.size);
    let zeros = [0u8; 64 << 10];
    let mut at = offset;
    while at < end {
        let step = (end - at).min(zeros.len() as u64);
        file.write_at(&zeros[..step as usize], at)?;
        at += step;
    }
    Ok(())
}

impl Overlay {
    /// A volume over `top`.
    pub fn new(id: Id, stub: FileRef, top: Arc<Layer>, pending: Vec<Arc<Layer>>, commit: u64) -> Overlay {
        // Where this fails nothing is known of the owner, and files stay whose they are.
        if let Ok(stat) = stub.stat() {
            top.set_owner(stat.uid, stat.gid);
        }
        Overlay {
            id,
            stub,
            top,
            debts: Arc::new(Debts {
                pending: Mutex::new(pending),
                commit: AtomicU64::new(commit),
                names_dirty: AtomicBool::new(commit > 0),
                directory: Mutex::new(None),
            }),
            snapshot: false,
            mtime_dirty: AtomicBool::new(false),
            pristine: AtomicBool::new(false),
            ragged: AtomicBool::new(false),
            ranges: Ranges::default(),
            hot: Hot::default(),
        }
    }

    /// Where each block of `range` is read from.
    pub fn layout(&self, range: Range<u64>) -> Vec<Segment> {
        let mut segments = Vec::with_capacity(2);
        let parent = self.top.parent();
        for (run, present) in self.top.runs(range.start, range.end) {
            if present {
                segments.push(Segment { blocks: run, owner: Owner::Layer(self.top.clone()) });
            } else {
                segments.extend(resolve(parent.as_ref(), self.top.overlap(), run));
            }
        }
        segments
    }

    /// Reads bytes as they are, up to the volume's size; returns how many.
    pub fn read(&self, offset: u64, buf: &mut [u8], direct: bool) -> Result<usize> {
        let size = self.top.size();
        if offset >= size {
            return Ok(0);
        }
        let len = (size - offset).min(buf.len() as u64) as usize;
        self.read_blocks(offset, &mut buf[..len], direct)?;
        Ok(len)
    }

    fn read_blocks(&self, offset: u64, buf: &mut [u8], direct: bool) -> Result<()> {
        let end = offset + buf.len() as u64;
        if self.top.has_all(offset / BLOCK, blocks(end)) {
            return if direct { self.top.read_direct(offset, buf) } else { self.top.read(offset, buf) };
        }
        self.hot.note(offset / BLOCK..blocks(end));
        read_segments(&self.layout(offset / BLOCK..blocks(end)), offset, buf)
    }

    /// Writes bytes from their beginning; the volume grows if they go past its end. Returns how many: fewer where a call
    /// failed on the way, an error if none. Bytes that are not counted are what they were.
    pub fn write(&self, offset: u64, data: &[u8], direct: bool) -> Result<usize> {
        let end = offset + data.len() as u64;
        if end > MAX_VOLUME {
            return Err(Error::new(Kind::TooLarge, "write"));
        }
        if data.is_empty() {
            return Ok(0);
        }
        self.pristine.store(false, Ordering::Release);
        self.mtime_dirty.store(true, Ordering::Release);
        let (first, last) = (offset / BLOCK, blocks(end));
        let file = self.top.data_for_writing()?;
        if self.top.has_all(first, last) {
            let (written, failed) = self.put(&file, offset, data, direct);
            self.top.grow_size(offset + written as u64);
            // After the write: a sync that came in between may not have seen it.
            self.top.touch(first, last);
            return if written > 0 { Ok(written) } else { failed.map(|()| 0) };
        }
        let _held = self.ranges.lock(first..last);
        let head = if self.top.has(first) { 0 } else { (offset % BLOCK) as usize };
        // The rest of the last block counts only up to the end of the volume; beyond that it is zeros by itself.
        let stop = (last * BLOCK).min(self.top.size().max(end));
        let tail = if self.top.has(last - 1) { 0 } else { (stop - end) as usize };
        let begin = offset - head as u64;
        let (written, failed) = if head == 0 && tail == 0 {
            self.put(&file, offset, data, direct)
        } else {
            let mut whole = vec![0; head + data.len() + tail];
            self.read_blocks(begin, &mut whole[..head], false)?;
            whole[head..head + data.len()].copy_from_slice(data);
            self.read_blocks(end, &mut whole[head + data.len()..], false)?;
            self.put(&file, begin, &whole, direct)
        };
        let reached = match failed {
            Ok(()) => end,
            Err(error) => match self.complete_below(begin + written as u64).min(end) {
                none if none <= offset => return Err(error),
                some => some,
            },
        };
        self.top.mark_and_grow(first, blocks(reached), reached);
        Ok((reached - offset) as usize)
    }

    /// Writes all bytes, or fails.
    fn write_all(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < data.len() {
            done += self.write(offset + done as u64, &data[done..], false)?;
        }
        Ok(())
    }

    /// Up to where what was written up to `reached`, and no further, is there: an absent block of which a part is missing
    /// stays absent.
    fn complete_below(&self, reached: u64) -> u64 {
        let block = reached / BLOCK;
        if self.top.has(block) { reached } else { block * BLOCK }
    }

    /// Puts bytes into the data file; returns how many, and why not all.
    fn put(&self, file: &FileRef, offset: u64, data: &[u8], direct: bool) -> (usize, Result<()>) {
        let (written, ended) = file.write_part(data, offset, direct);
        if ended.is_err() {
            self.ragged.store(true, Ordering::Release);
        }
        (written, ended.context("write layer data", crate::engine::store::data_path(self.top.file_id())))
    }

    /// Whether what a failed write has left must go before anything changes.
    pub fn is_ragged(&self) -> bool {
        self.ragged.load(Ordering::Acquire)
    }

    /// Cuts it off. The caller excludes all other I/O.
    pub fn cut_leftovers(&self) -> Result<()> {
        if self.is_ragged() {
            self.top.resize_data(self.top.size())?;
            self.ragged.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Makes `[offset, end)` read as zeros, and gives the space back unless `keep`. Does not change the size.
    pub fn zero(&self, offset: u64, end: u64, keep: bool) -> Result<()> {
        let size = self.top.size();
        let end = end.min(size);
        if offset >= end {
            return Ok(());
        }
        let first = blocks(offset);
        // At the end of the volume a part of a block is all of it.
        let last = if end == size { blocks(end) } else { end / BLOCK };
        if first >= last {
            // At most two blocks, neither of them whole.
            let bound = (first * BLOCK).clamp(offset, end);
            self.zero_bytes(offset, bound)?;
            return self.zero_bytes(bound, end);
        }
        self.zero_bytes(offset, first * BLOCK)?;
        self.zero_bytes((last * BLOCK).min(end), end)?;
        self.pristine.store(false, Ordering::Release);
        self.mtime_dirty.store(true, Ordering::Release);
        let file = self.top.data_for_writing()?;
        let _held = self.ranges.lock(first..last);
        // What lies behind the end of the volume, in the same block, can be somebody's who appends there just now; not
        // while it is absent, as then they need the range.
        let stop = if self.top.has(last - 1) { end.min(last * BLOCK) } else { last * BLOCK };
        let (at, len) = (first * BLOCK, stop - first * BLOCK);
        self.top.touch(first, last);
        let zeroed = if keep {
            let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
            file.allocate(mode, at, len.min(end - at))
        } else {
            punch(&file, at, len)
        };
        let path = || crate::engine::store::data_path(self.top.file_id());
        match zeroed {
            Err(e) if keep && e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                punch(&file, at, len).context("punch layer data", path())?
            }
            other => other.context("punch layer data", path())?,
        }
        self.top.mark(first, last);
        Ok(())
    }

    /// Writes zeros over a part of one block, unless it reads as zeros anyway.
    fn zero_bytes(&self, offset: u64, end: u64) -> Result<()> {
        if offset >= end {
            return Ok(());
        }
        let block = offset / BLOCK;
        let nowhere = matches!(self.layout(block..block + 1).as_slice(), [Segment { owner: Owner::Zero, .. }]);
        if nowhere { Ok(()) } else { self.write_all(offset, &vec![0; (end - offset) as usize]) }
    }

    /// Reserves space. Absent blocks stay absent.
    pub fn reserve(&self, offset: u64, end: u64, keep_size: bool) -> Result<()> {
        if end > MAX_VOLUME {
            return Err(Error::new(Kind::TooLarge, "allocate"));
        }
        let file = self.top.data_for_writing()?;
        let mode = if keep_size { libc::FALLOC_FL_KEEP_SIZE } else { 0 };
        self.top.set_dirty();
        file.allocate(mode, offset, end - offset)
            .context("allocate layer data", crate::engine::store::data_path(self.top.file_id()))?;
        if !keep_size {
            self.top.grow_size(end);
        }
        Ok(())
    }

    /// Sets the size. The caller excludes all other I/O.
    pub fn set_size(&self, size: u64, fs: &dyn Fs) -> Result<()> {
        if size > MAX_VOLUME {
            return Err(Error::new(Kind::TooLarge, "set size"));
        }
        let old = self.top.size();
        if size == old {
            return Ok(());
        }
        self.mtime_dirty.store(true, Ordering::Release);
        self.cut_leftovers()?;
        if size > old {
            self.top.resize_data(size)?;
            self.top.grow_size(size);
            return Ok(());
        }
        self.syncing().sync_names(fs)?;
        self.shrink(old, size)
    }

    /// The record of a shrink is durable before a byte goes (R10). Blocks beyond the new end become absent, and nothing
    /// of the parent can be seen there: growing again shows zeros. A failure leaves what was there.
    fn shrink(&self, old: u64, size: u64) -> Result<()> {
        let overlap = self.top.overlap();
        let kept = size / BLOCK;
        if !size.is_multiple_of(BLOCK) && !self.top.has(kept) && kept < overlap {
            // The last block is cut in the data file, so it must be there: all of it, for the case that this fails.
            let mut bytes = vec![0; (old - kept * BLOCK).min(BLOCK) as usize];
            self.read_blocks(kept * BLOCK, &mut bytes, false)?;
            let file = self.top.data_for_writing()?;
            self.put(&file, kept * BLOCK, &bytes, false).1?;
            self.top.mark(kept, kept + 1);
        }
        // What is cut off the last block must not stay in a copy of it that an adoption has made.
        self.top.touch(kept, blocks(size));
        let lost = self.top.shrink(size);
        if let Err(error) = self.top.flush() {
            self.top.grow_back(&lost, old, overlap);
            return Err(error);
        }
        self.top.resize_data(size)
    }

    /// Next data or hole, see [`crate::engine::io::File::seek`].
    pub fn seek(&self, offset: u64, whence: Whence) -> Result<u64> {
        let size = self.top.size();
        if offset >= size {
            return Err(Error::io("seek", std::io::Error::from_raw_os_error(libc::ENXIO)));
        }
        seek_segments(size, offset, whence, |range| self.layout(range))
    }

    /// What a sync that begins now has to make durable.
    pub fn syncing(&self) -> Syncing {
        Syncing { id: self.id, top: self.top.clone(), stub: self.stub.clone(), debts: self.debts.clone() }
    }

    /// The error to give if something that the volume shows may never become durable: a sync of its own layer has
    /// failed, or of one below that was not durable when it was cloned.
    pub fn check_latch(&self) -> Result<()> {
        self.top.check_latch()?;
        self.debts.pending.lock().iter().try_for_each(|layer| layer.check_latch())
    }

    /// Notes the layers whose sync has failed for good; whether there are any.
    pub fn note_failure(&self) -> bool {
        let pending = self.debts.pending.lock().clone();
        let failed: Vec<_> = pending.iter().chain([&self.top]).filter(|layer| layer.check_latch().is_err()).collect();
        failed.iter().for_each(|layer| layer.note_failure());
        !failed.is_empty()
    }

    /// Whether something is not durable.
    pub fn is_dirty(&self) -> bool {
        let debts = &self.debts;
        let owed = !debts.pending.lock().is_empty() || debts.directory.lock().is_some();
        owed || self.top.is_dirty() || debts.names_dirty.load(Ordering::Acquire)
    }
}

/// Reads `buf` at `offset` out of the segments that cover it.
pub fn read_segments(segments: &[Segment], offset: u64, buf: &mut [u8]) -> Result<()> {
    let end = offset + buf.len() as u64;
    for segment in segments {
        let from = (segment.blocks.start * BLOCK).max(offset);
        let to = (segment.blocks.end * BLOCK).min(end);
        if from >= to {
            continue;
        }
        let part = &mut buf[(from - offset) as usize..(to - offset) as usize];
        match &segment.owner {
            Owner::Zero => part.fill(0),
            Owner::Layer(layer) => layer.read(from, part)?,
        }
    }
    Ok(())
}

/// Finds data or a hole through the segments of a volume of `size` bytes.
pub fn seek_segments(
    size: u64,
    offset: u64,
    whence: Whence,
    layout: impl Fn(Range<u64>) -> Vec<Segment>,
) -> Result<u64> {
    /// Blocks looked at in one step: 256 MiB.
    const STEP: u64 = 1 << 16;
    let mut at = offset;
    while at < size {
        let first = at / BLOCK;
        for segment in layout(first..(first + STEP).min(blocks(size))) {
            let end = (segment.blocks.end * BLOCK).min(size);
            let from = at.max(segment.blocks.start * BLOCK);
            let found = match &segment.owner {
                Owner::Zero => (whence == Whence::Hole).then_some(from),
                Owner::Layer(layer) => match layer.data()? {
                    None => (whence == Whence::Hole).then_some(from),
                    // A hole there can be data that the disk has lost: whoever reads it is told.
                    Some(_) if layer.check_sound(segment.blocks.start, segment.blocks.end).is_err() => {
                        (whence == Whence::Data).then_some(from)
                    }
                    Some(data) => match data.seek(from, whence) {
                        Ok(pos) if pos < end => Some(pos.max(from)),
                        Ok(_) => None,
                        // Past the end of the data file: a hole up to the end of the volume.
                        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => (whence == Whence::Hole).then_some(from),
                        Err(e) => return Err(Error::io("seek layer data", e)),
                    },
                },
            };
            if let Some(found) = found {
                return Ok(found);
            }
            at = end;
        }
    }
    match whence {
        Whence::Hole => Ok(size),
        Whence::Data => Err(Error::io("seek", std::io::Error::from_raw_os_error(libc::ENXIO))),
    }
}
