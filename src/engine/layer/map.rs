//! The map of a layer on disk: which blocks are present, how far the parent can be seen, how large the volume is.
//!
//! A map is a [`crate::engine::store::log`] with the layer's file id as salt. Payload of a record, little-endian:
//!
//! ```text
//! u64 size in bytes | u64 overlap in blocks | u32 flags | u32 length of A | A | B
//! ```
//!
//! A and B are roaring bitmaps in the portable format (RoaringFormatSpec): blocks that became present, and blocks that
//! became absent. Flag 1: the record replaces everything before it. Replayed in order, records give the presence.

use std::sync::Arc;

use roaring::RoaringBitmap;

use crate::engine::io::{Fs, Open, Rename};
use crate::engine::store::log::{self, Log};
use crate::engine::store::{map_path, tmp_path};
use crate::error::{Context, Error, Kind, Result};
use crate::units::Id;

const MAGIC: &[u8; 8] = b"cfsmap01";
const FLAG_REPLACE: u32 = 1;
const FIXED: usize = 24;
/// Largest map that is read: 2^32 blocks take at most 512 MiB of bitmap, and a log is rewritten at twice its content.
const LIMIT: u64 = 2 << 30;
/// A log is rewritten when it is longer than this and than twice what it would be.
const REWRITE: u64 = 256 << 10;

/// What a map says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Presence {
    /// Blocks that the layer has.
    pub present: RoaringBitmap,
    /// Size of the volume in bytes and visible blocks of the parent, where a record gives them.
    pub extent: Option<(u64, u64)>,
}

/// One change of a map.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// Size of the volume in bytes.
    pub size: u64,
    /// Visible blocks of the parent.
    pub overlap: u64,
    /// Blocks that became present.
    pub added: RoaringBitmap,
    /// Blocks that became absent.
    pub cleared: RoaringBitmap,
    /// Everything before this counts no more.
    pub replace: bool,
}

impl Delta {
    fn encode(&self) -> std::io::Result<Vec<u8>> {
        let added = self.added.serialized_size();
        let mut bytes = Vec::with_capacity(FIXED + added + self.cleared.serialized_size());
        bytes.extend_from_slice(&self.size.to_le_bytes());
        bytes.extend_from_slice(&self.overlap.to_le_bytes());
        bytes.extend_from_slice(&if self.replace { FLAG_REPLACE } else { 0 }.to_le_bytes());
        bytes.extend_from_slice(&(added as u32).to_le_bytes());
        self.added.serialize_into(&mut bytes)?;
        self.cleared.serialize_into(&mut bytes)?;
        Ok(bytes)
    }

    fn decode(bytes: &[u8]) -> std::result::Result<Delta, String> {
        let fixed = bytes.get(..FIXED).ok_or("a record is too short")?;
        let number = |at: usize, len: usize| {
            fixed[at..at + len].iter().rev().fold(0u64, |value, &byte| value << 8 | byte as u64)
        };
        let (flags, len) = (number(16, 4) as u32, number(20, 4) as usize);
        let (added, cleared) = bytes[FIXED..].split_at_checked(len).ok_or("a bitmap is cut off")?;
        let bitmap = |bytes: &[u8]| RoaringBitmap::deserialize_from(bytes).map_err(|e| e.to_string());
        Ok(Delta {
            size: number(0, 8),
            overlap: number(8, 8),
            added: bitmap(added)?,
            cleared: bitmap(cleared)?,
            replace: flags & FLAG_REPLACE != 0,
        })
    }

    fn apply(self, presence: &mut Presence) {
        if self.replace {
            presence.present.clear();
        }
        presence.present |= self.added;
        presence.present -= self.cleared;
        presence.extent = Some((self.size, self.overlap));
    }
}

/// Reads a map from the bytes of its file. For the decoder's own tests and fuzzing.
pub fn decode(bytes: &[u8], file: Id) -> std::result::Result<(Presence, log::Scan), String> {
    let scan = log::scan(bytes, MAGIC, file.0).map_err(|flaw| flaw.to_string())?;
    let mut presence = Presence::default();
    for record in &scan.records {
        Delta::decode(&bytes[record.clone()])?.apply(&mut presence);
    }
    Ok((presence, scan))
}

/// The map of the layer whose files are called `file`; `None` if there is no such file.
pub fn read(fs: &dyn Fs, file: Id) -> Result<Option<(Presence, log::Scan)>> {
    let path = map_path(file);
    let handle = match fs.open(&path, Open::Read) {
        Ok(handle) => handle,
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(e) => return Err(Error::io("open map", e).at(path)),
    };
    let bytes = log::read_all(handle.as_ref(), LIMIT).context("read map", &path)?;
    decode(&bytes, file).map(Some).map_err(|why| {
        Error::new(Kind::Damaged, "read map").at(path).because(why).remedy("see `clonefs check` for what can be done")
    })
}

/// The same, for a map of which at least so many records have been durable: if there are fewer it is damaged, as what
/// it said would be lost without a word.
pub fn read_known(fs: &dyn Fs, file: Id, least: u64) -> Result<Option<(Presence, log::Scan)>> {
    let found = read(fs, file)?;
    let records = found.as_ref().map_or(0, |(_, scan)| scan.records.len() as u64);
    if records < least {
        return Err(Error::new(Kind::Damaged, "read map")
            .at(map_path(file))
            .because(format!("it has {records} records and had {least} at least"))
            .remedy("restore it from a backup, or delete the volume"));
    }
    Ok(found)
}

/// A map that is open for appending.
pub struct Map {
    fs: Arc<dyn Fs>,
    file: Id,
    log: Log,
}

impl Map {
    /// Starts an empty map. Its name is durable after a sync of the layers directory.
    pub fn create(fs: &Arc<dyn Fs>, file: Id) -> std::io::Result<Map> {
        let path = map_path(file);
        let handle = match fs.open(&path, Open::CreateNew(0o600)) {
            // Left by an attempt that failed half-way, on a full disk perhaps: there was no map before it.
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                let old = fs.open(&path, Open::Write)?;
                old.set_len(0)?;
                old
            }
            other => other?,
        };
        let log = Log::create(handle, MAGIC, file.0, log::RESERVE)?;
        Ok(Map { fs: fs.clone(), file, log })
    }

    /// Goes on with an existing one.
    pub fn resume(fs: &Arc<dyn Fs>, file: Id, scan: &log::Scan) -> std::io::Result<Map> {
        let handle = fs.open(&map_path(file), Open::Write)?;
        let log = if scan.valid == 0 {
            handle.set_len(0)?;
            Log::create(handle, MAGIC, file.0, log::RESERVE)?
        } else {
            Log::resume(handle, file.0, scan)?
        };
        Ok(Map { fs: fs.clone(), file, log })
    }

    /// Appends a change. What it calls present must be durable already (R1, R2).
    pub fn append(&mut self, delta: &Delta) -> std::io::Result<()> {
        self.log.append(&delta.encode()?)
    }

    /// Makes what was appended durable.
    pub fn sync(&self) -> std::io::Result<()> {
        self.log.file().sync_data()?;
        self.log.synced(self.log.sequence());
        Ok(())
    }

    /// Makes durable what another daemon has appended, if that is not certain. Whoever writes to a block again relies on
    /// the record that names it.
    pub fn assure(&mut self) -> std::io::Result<()> {
        match self.log.write_again() {
            Ok(false) => Ok(()),
            Ok(true) => self.sync(),
            // A full disk that copies on write must not make every sync fail; the next one tries again.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Number of its records.
    pub fn records(&self) -> u64 {
        self.log.sequence()
    }

    /// Whether the log is so much longer than its content that a rewrite is worth it.
    pub fn rewrite_due(&self, present: &RoaringBitmap) -> bool {
        self.log.end() > REWRITE && self.log.end() > 2 * present.serialized_size() as u64
    }

    /// Replaces the log by one record with all that is durable. A crash leaves the old log or the new one; nothing may
    /// be appended before the caller has synced the layers directory. After a failure the old log goes on.
    pub fn rewrite(&mut self, whole: Delta) -> std::io::Result<()> {
        self.log = Map::replace(&self.fs, self.file, whole)?.log;
        Ok(())
    }

    /// The same for a map that is not open, or of which there is none.
    pub fn replace(fs: &Arc<dyn Fs>, file: Id, whole: Delta) -> std::io::Result<Map> {
        let temporary = tmp_path();
        let handle = fs.open(&temporary, Open::CreateNew(0o600))?;
        let made = (|| {
            let mut log = Log::create(handle, MAGIC, file.0, log::RESERVE)?;
            log.append(&Delta { replace: true, ..whole }.encode()?)?;
            log.file().sync_data()?;
            log.synced(log.sequence());
            fs.rename(&temporary, &map_path(file), Rename::Replace)?;
            Ok(Map { fs: fs.clone(), file, log })
        })();
        made.inspect_err(|_| {
            let _ = fs.unlink(&temporary);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_what_it_was_given() {
        let mut added = RoaringBitmap::new();
        added.insert_range(5..70_000);
        let delta = Delta { size: 1 << 40, overlap: 77, added, cleared: [9].into(), replace: true };
        let back = Delta::decode(&delta.encode().unwrap()).unwrap();
        let mut presence = Presence { present: [1].into(), extent: None };
        back.apply(&mut presence);
        assert!(!presence.present.contains(1) && !presence.present.contains(9) && presence.present.contains(69_999));
        assert_eq!(presence.extent, Some((1 << 40, 77)));
    }

    #[test]
    fn no_bytes_make_the_decoder_panic() {
        let bytes = Delta { added: [1, 5, 9].into(), ..Delta::default() }.encode().unwrap();
        for cut in 0..bytes.len() {
            assert!(Delta::decode(&bytes[..cut]).is_err());
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[cut] ^= 1 << bit;
                let _ = Delta::decode(&bad);
            }
        }
    }
}
