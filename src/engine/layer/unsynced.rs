//! What was written and not synced, for the next daemon, should this one be killed (R16).
//!
//! The bytes themselves are in the kernel's cache of the data files and outlive the process; which blocks they are is
//! known to the process alone until a map says so. So each change of what a layer has is noted in one file,
//! `.clonefs/unsynced`, by a plain write that nobody syncs. It outlives the process in the same cache. After a power
//! loss, or once the filesystem was unmounted, it counts for nothing: every record carries the boot and the mount that
//! it was made under in its checksum.
//!
//! ```text
//! header   8 bytes magic | u64 number of the first record that counts | u64 its offset | u32 CRC32C | u32 zero
//! record   u32 CRC32C | u32 kind | u64 file | u64 a | u64 b
//! ```
//!
//! The CRC covers the place that the log belongs to (see [`Fs::instance`]) and, of a record, its number. Replaying all
//! records over any later state of the maps gives the state after the last record: the last word on a block counts, and
//! a block without one is as its map says. So a record may be dropped only when its change is in a map, and a record
//! that cannot be written makes the whole log count for nothing.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::span;
use crate::engine::io::{FileRef, Fs, Open};
use crate::engine::store::{UNSYNCED, log};
use crate::error::{Context, Result};
use crate::sync::Mutex;
use crate::units::{Id, blocks};

const MAGIC: &[u8; 8] = b"cfsunsy1";
/// Bytes of the header, and of each record.
const SIZE: u64 = 32;
/// Dropped records are overwritten from this length on.
const LONG: u64 = 1 << 20;
/// A log of this length was not dropped from for want of successful syncs; it begins anew, and forgets.
const LIMIT: u64 = 1 << 28;

/// A change of what a layer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Blocks `[start, end)` are present.
    Present(u64, u64),
    /// They are absent.
    Absent(u64, u64),
    /// The size in bytes, beyond which nothing is present, and how many blocks of the parent can be seen.
    Extent(u64, u64),
    /// A sync has failed: what of it is in the file nobody knows.
    Failed,
}

impl Change {
    fn fields(self) -> (u32, u64, u64) {
        match self {
            Change::Present(start, end) => (1, start, end),
            Change::Absent(start, end) => (2, start, end),
            Change::Extent(size, overlap) => (3, size, overlap),
            Change::Failed => (4, 0, 0),
        }
    }

    fn from_fields(kind: u32, a: u64, b: u64) -> Option<Change> {
        Some(match kind {
            1 => Change::Present(a, b),
            2 => Change::Absent(a, b),
            3 => Change::Extent(a, b),
            4 => Change::Failed,
            _ => return None,
        })
    }
}

/// The log of a pool that is being served. All methods may be called from any thread.
pub struct Unsynced {
    fs: Arc<dyn Fs>,
    /// Lock order: last of all.
    state: Mutex<State>,
}

enum State {
    /// Nothing was noted yet.
    Fresh,
    Open(Log),
    /// It cannot be kept here.
    Off,
    /// A change could not be noted, and the log could not be made to count for nothing: no map may be appended to.
    Stale,
}

struct Log {
    file: FileRef,
    place: u32,
    /// Number of the next record, and where it goes.
    next: u64,
    end: u64,
    /// Number of the first record that counts.
    first: u64,
}

impl Unsynced {
    /// A log that begins with the first change.
    pub fn new(fs: Arc<dyn Fs>) -> Unsynced {
        Unsynced { fs, state: Mutex::new(State::Fresh) }
    }

    /// Notes a change of the layer whose files are called `file`. Where that fails nothing is noted any more: a kill
    /// then costs what was not synced, as a power loss does.
    pub fn note_with(&self, file: Id, change: impl FnOnce() -> Change) {
        let mut state = self.state.lock();
        if matches!(*state, State::Fresh) {
            *state = match self.create() {
                Ok(Some(open)) => State::Open(open),
                Ok(None) => State::Off,
                Err(error) => {
                    tracing::warn!("what is not synced will be lost if the daemon is killed: {UNSYNCED}: {error}");
                    self.remove();
                    State::Off
                }
            };
        }
        let State::Open(open) = &mut *state else { return };
        let noted = if open.end >= LIMIT { open.drop_to(open.next) } else { Ok(()) };
        if let Err(error) = noted.and_then(|()| open.append(file, change())) {
            tracing::warn!("what is not synced will be lost if the daemon is killed: {UNSYNCED}: {error}");
            *state = State::Stale;
            let _ = self.give_up(&mut state);
        }
    }

    /// To be called before a map is appended to: fails while the log holds something that would be replayed over the
    /// map although it is not the last word.
    pub fn check(&self) -> Result<()> {
        self.give_up(&mut self.state.lock()).context("give up the log of unsynced writes", UNSYNCED)
    }

    fn give_up(&self, state: &mut State) -> io::Result<()> {
        if matches!(state, State::Stale) {
            match self.fs.unlink(Path::new(UNSYNCED)) {
                Err(e) if e.raw_os_error() != Some(libc::ENOENT) => return Err(e),
                _ => *state = State::Off,
            }
        }
        Ok(())
    }

    /// The number of the next record: what was noted before it can be dropped once it is in the maps.
    pub fn position(&self) -> u64 {
        match &*self.state.lock() {
            State::Open(open) => open.next,
            _ => 0,
        }
    }

    /// Drops what was noted before `position`, because maps have it.
    pub fn drop_before(&self, position: u64) {
        let mut state = self.state.lock();
        if let State::Open(open) = &mut *state
            && position > open.first
            && let Err(error) = open.drop_to(position)
        {
            // Too much is noted, which does no harm.
            tracing::debug!("cannot shorten {UNSYNCED}: {error}");
        }
    }

    /// Removes the log, for the end of a daemon that has made everything durable.
    pub fn close(&self) {
        let mut state = self.state.lock();
        if let State::Open(_) = std::mem::replace(&mut *state, State::Off) {
            self.remove();
        }
    }

    fn remove(&self) {
        match self.fs.unlink(Path::new(UNSYNCED)) {
            Err(e) if e.raw_os_error() != Some(libc::ENOENT) => tracing::warn!("cannot remove {UNSYNCED}: {e}"),
            _ => {}
        }
    }

    fn create(&self) -> io::Result<Option<Log>> {
        let Some(place) = place(self.fs.as_ref())? else { return Ok(None) };
        let path = Path::new(UNSYNCED);
        let file = match self.fs.open(path, Open::CreateNew(0o600)) {
            // One that could not be removed.
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                self.fs.unlink(path)?;
                self.fs.open(path, Open::CreateNew(0o600))?
            }
            other => other?,
        };
        let open = Log { file, place, next: 1, end: SIZE, first: 1 };
        open.write_header(1, SIZE)?;
        Ok(Some(open))
    }
}

impl Log {
    fn append(&mut self, file: Id, change: Change) -> io::Result<()> {
        self.file.write_at(&encode(self.place, self.next, file, change), self.end)?;
        self.next += 1;
        self.end += SIZE;
        Ok(())
    }

    fn write_header(&self, first: u64, offset: u64) -> io::Result<()> {
        let mut bytes = [0; SIZE as usize];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&first.to_le_bytes());
        bytes[16..24].copy_from_slice(&offset.to_le_bytes());
        let crc = crc32c::crc32c_append(self.place, &bytes[..24]);
        bytes[24..28].copy_from_slice(&crc.to_le_bytes());
        self.file.write_at(&bytes, 0)
    }

    /// Makes record `first` the first that counts.
    fn drop_to(&mut self, first: u64) -> io::Result<()> {
        let rest = (self.next - first) * SIZE;
        let offset = self.end - rest;
        // What counts moves to the beginning, if it does not overwrite itself, and is then read from there.
        let to = if self.end > LONG && SIZE + rest <= offset || rest == 0 { SIZE } else { offset };
        if to < offset {
            let mut bytes = vec![0; rest as usize];
            self.file.read_at(&mut bytes, offset)?;
            self.file.write_at(&bytes, to)?;
        }
        self.write_header(first, to)?;
        self.first = first;
        let long = self.end > LONG;
        self.end = to + rest;
        // Space alone; records that are left behind the end have other numbers than those that could count.
        if long && to == SIZE {
            let _ = self.file.set_len(self.end);
        }
        Ok(())
    }
}

/// What goes into every checksum; `None`: it cannot be told here whether the machine or the mount is still the same.
fn place(fs: &dyn Fs) -> io::Result<Option<u32>> {
    let root = fs.stat(Path::new(""))?.key;
    Ok(fs.instance().map(|instance| crc32c::crc32c(format!("{instance} {root:?}").as_bytes())))
}

fn encode(place: u32, number: u64, file: Id, change: Change) -> [u8; SIZE as usize] {
    let (kind, a, b) = change.fields();
    let mut bytes = [0; SIZE as usize];
    bytes[4..8].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&file.0.to_le_bytes());
    bytes[16..24].copy_from_slice(&a.to_le_bytes());
    bytes[24..].copy_from_slice(&b.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(place, &number.to_le_bytes()), &bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn number_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn crc_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// What changed in one layer.
#[derive(Debug, Default)]
pub struct Changes {
    /// Blocks that are present, whatever its map says.
    pub present: RoaringBitmap,
    /// Blocks that are absent.
    pub absent: RoaringBitmap,
    /// From this block on, what its map says counts no more: the volume ended there once.
    pub cut: Option<u64>,
    /// Size and overlap.
    pub extent: Option<(u64, u64)>,
    /// Nothing of this counts.
    pub failed: bool,
}

impl Changes {
    /// What is present after these changes of a layer whose map says `before`.
    pub fn over(&self, before: &RoaringBitmap) -> RoaringBitmap {
        let mut after = before - &self.absent;
        after.remove_range(span(self.cut.unwrap_or(u64::MAX), u64::MAX));
        after | &self.present
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Present(start, end) => {
                self.present.insert_range(span(start, end));
                self.absent.remove_range(span(start, end));
            }
            Change::Absent(start, end) => {
                self.absent.insert_range(span(start, end));
                self.present.remove_range(span(start, end));
            }
            Change::Extent(size, overlap) => {
                let end = blocks(size);
                self.present.remove_range(span(end, u64::MAX));
                self.absent.remove_range(span(end, u64::MAX));
                self.cut = Some(self.cut.map_or(end, |cut| cut.min(end)));
                self.extent = Some((size, overlap));
            }
            Change::Failed => self.failed = true,
        }
    }
}

/// What a killed daemon has left; empty if nothing, or nothing that counts. It stays there until [`discard`].
pub fn read(fs: &dyn Fs) -> Result<HashMap<Id, Changes>> {
    let path = Path::new(UNSYNCED);
    let file = match fs.open(path, Open::Read) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(HashMap::new()),
        other => other.context("open the log of unsynced writes", path)?,
    };
    let Some(place) = place(fs).context("look at pool", "")? else { return Ok(HashMap::new()) };
    let bytes = log::read_all(file.as_ref(), 2 * LIMIT).context("read the log of unsynced writes", path)?;
    Ok(decode(&bytes, place))
}

/// Reads a log from the bytes of its file. For the decoder's own tests and fuzzing.
pub fn decode(bytes: &[u8], place: u32) -> HashMap<Id, Changes> {
    let mut found: HashMap<Id, Changes> = HashMap::new();
    let Some(first) = first_record(bytes, place) else { return found };
    let mut records = first.records.chunks_exact(SIZE as usize).zip(first.number..);
    for (record, number) in records.by_ref() {
        match read_record(record, place, number) {
            Some((file, change)) => found.entry(file).or_default().apply(change),
            None => break,
        }
    }
    // Without its middle a log does not have the last word on every block.
    if records.any(|(record, number)| read_record(record, place, number).is_some()) {
        tracing::warn!("{UNSYNCED} is damaged; what was not synced when the daemon was killed is lost");
        found.clear();
    }
    found
}

struct First<'a> {
    number: u64,
    records: &'a [u8],
}

fn first_record(bytes: &[u8], place: u32) -> Option<First<'_>> {
    let fixed = bytes.get(..24).filter(|fixed| fixed.starts_with(MAGIC))?;
    if crc_at(bytes, 24)? != crc32c::crc32c_append(place, fixed) {
        return None;
    }
    let offset = usize::try_from(number_at(fixed, 16)?).ok()?;
    Some(First { number: number_at(fixed, 8)?, records: bytes.get(offset..)? })
}

fn read_record(record: &[u8], place: u32, number: u64) -> Option<(Id, Change)> {
    let file = Id(number_at(record, 8)?);
    let change = Change::from_fields(crc_at(record, 4)?, number_at(record, 16)?, number_at(record, 24)?)?;
    (encode(place, number, file, change) == record).then_some((file, change))
}

/// Removes what a killed daemon has left.
pub fn discard(fs: &dyn Fs) -> Result<()> {
    let path = Path::new(UNSYNCED);
    match fs.unlink(path) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other.context("remove the log of unsynced writes", path),
    }
}
