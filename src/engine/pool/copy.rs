//! Copying ranges between files of the pool: shared where the ranges allow it, copied where they do not.

use crate::sync::atomic::Ordering;
use std::sync::Arc;

use super::clone::ATTEMPTS;
use super::{CloneOptions, Pool};
use crate::engine::io::{File, Whence};
use crate::engine::volume::{State, Volume, both_gates};
use crate::error::{Error, Kind, Result};
use crate::units::{BLOCK, MAX_VOLUME, blocks};

/// Ranges below this are copied: it is quicker, and the copy needs no other file.
const SHARE_MIN: u64 = 128 << 10;
/// Copied in one call at most; the caller asks again for the rest.
const COPY_MOST: u64 = 16 << 20;
/// Copied at once.
const PIECE: usize = 1 << 20;

/// Copies the first `len` bytes of one file to another, keeping holes.
pub(super) fn copy_bytes(from: &dyn File, to: &dyn File, len: u64) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < len {
        at = match from.seek(at, Whence::Data) {
            Ok(data) => data,
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => break,
            Err(_) => at,
        };
        let want = (len.saturating_sub(at)).min(PIECE as u64) as usize;
        let got = from.read_at(&mut buffer[..want], at).map_err(|e| Error::io("read", e))?;
        if got == 0 {
            break;
        }
        to.write_at(&buffer[..got], at).map_err(|e| Error::io("write", e))?;
        at += got as u64;
    }
    Ok(())
}

impl Pool {
    /// Copies at most `len` bytes of `source` at `from` to `target` at `to`; returns how many, 0 at the source's end. Fewer
    /// than could be copied if the disk got full on the way, an error if none. What is not counted is what it was.
    /// Equal offsets on block bounds into a file that holds nothing there are shared and cost nothing.
    pub fn copy_range(
        self: &Arc<Self>,
        source: &Arc<Volume>,
        from: u64,
        target: &Arc<Volume>,
        to: u64,
        len: u64,
    ) -> Result<u64> {
        let same = Arc::ptr_eq(source, target);
        for _ in 0..ATTEMPTS {
            let size = source.size()?;
            let len = len.min(size.saturating_sub(from));
            if len == 0 {
                return Ok(0);
            }
            if same && from < to.saturating_add(len) && to < from.saturating_add(len) {
                return Err(Error::new(Kind::Invalid, "copy range").at(source.path()).because("the ranges overlap"));
            }
            let whole_blocks = from.is_multiple_of(BLOCK) && ((from + len).is_multiple_of(BLOCK) || from + len == size);
            if same || from != to || !whole_blocks || len < SHARE_MIN || self.check_can_clone().is_err() {
                break;
            }
            match self.share_range(source, target, from, len, size) {
                Ok(0) => break,
                Ok(shared) => return Ok(shared),
                // Its size changed: so much less, or more, is to be copied.
                Err(_) if source.size()? != size => {}
                // What cannot be shared can be copied; a source that is damaged cannot.
                Err(e)
                    if matches!(
                        e.kind(),
                        Kind::Damaged | Kind::Latched | Kind::Changed | Kind::ReadOnly | Kind::NoSpace
                    ) =>
                {
                    return Err(e);
                }
                Err(_) => break,
            }
        }
        self.copy_physically(source, from, target, to, len)
    }

    /// Shares the range if it can; 0 if not.
    fn share_range(
        self: &Arc<Self>,
        source: &Arc<Volume>,
        target: &Arc<Volume>,
        from: u64,
        len: u64,
        size: u64,
    ) -> Result<u64> {
        if source.is_bypassed() || target.is_bypassed() {
            return Ok(0);
        }
        self.dissolve_empty(target)?;
        let begun = match &*target.gate().read() {
            State::Plain(plain) if plain.shared.is_none() && plain.pristine.load(Ordering::Acquire) => false,
            State::Overlay(overlay) if overlay.pristine.load(Ordering::Acquire) => true,
            _ => return Ok(0),
        };
        if !begun {
            let whole = from == 0 && len == size;
            let options = CloneOptions { no_copy: true, over_zeros: true, ..CloneOptions::default() };
            if whole {
                self.clone_volume(source, target, &CloneOptions { exactly: Some(size), ..options })?;
                return Ok(len);
            }
            // It keeps its size, and shows nothing of the source yet.
            self.clone_volume(source, target, &CloneOptions { size: Some(0), visible: Some(0), ..options })?;
        }
        self.share_more(source, target, from, len)
    }

    /// Shares one more range into an overlay that holds nothing but shared ranges and zeros.
    fn share_more(&self, source: &Arc<Volume>, target: &Arc<Volume>, from: u64, len: u64) -> Result<u64> {
        self.flush_cached(source);
        let (mut source_gate, target_gate) = both_gates(source, target);
        let State::Overlay(overlay) = &*target_gate else { return Ok(0) };
        let Some(parent) = overlay.top.parent().filter(|_| overlay.pristine.load(Ordering::Acquire)) else {
            return Ok(0);
        };
        // The source must still be what the target's parent shows.
        let unchanged = match &mut *source_gate {
            State::Plain(plain) => plain.shared.as_ref().is_some_and(|l| Arc::ptr_eq(l, &parent)),
            State::Overlay(source) => {
                source.top.is_empty()
                    && source.top.parent().is_some_and(|l| Arc::ptr_eq(&l, &parent))
                    && source.top.overlap() >= blocks(from + len).min(blocks(parent.size()))
            }
            State::Broken { .. } => false,
        };
        let end = from + len;
        let (first, last) = (from / BLOCK, blocks(end));
        // Beyond the parent's end the source shows zeros, and so does what lies beyond the overlap.
        let shown = last.min(blocks(parent.size()));
        if !unchanged || end > MAX_VOLUME || from >= parent.size() {
            return Ok(0);
        }
        let top = &overlay.top;
        let overlap = top.overlap();
        if end > top.size() {
            overlay.cut_leftovers()?;
            top.resize_data(end)?;
            top.grow_size(end);
        }
        if shown > overlap {
            if first > overlap {
                // What lies between stays zeros: present, without data.
                top.data_for_writing()?;
                top.mark(overlap, first);
            }
            top.set_overlap(shown);
        }
        if top.present_below(last) > top.present_below(first) {
            top.clear(first, last);
        }
        overlay.mtime_dirty.store(true, Ordering::Release);
        target.note_write();
        Ok(len)
    }

    fn copy_physically(&self, source: &Arc<Volume>, from: u64, target: &Arc<Volume>, to: u64, len: u64) -> Result<u64> {
        let len = len.min(COPY_MOST);
        let mut buffer = vec![0; PIECE.min(len as usize)];
        let mut done = 0;
        while done < len {
            let want = (len - done).min(buffer.len() as u64) as usize;
            let piece = source.read(from + done, &mut buffer[..want]).and_then(|got| {
                let written = if got == 0 { 0 } else { target.write_part(to + done, &buffer[..got], false)? };
                Ok((written, written < want))
            });
            match piece {
                Ok((written, last)) => {
                    done += written as u64;
                    if last {
                        break;
                    }
                }
                // What was copied is told; what stopped it is what the next call says.
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}
