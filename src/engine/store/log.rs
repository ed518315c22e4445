//! An append-only log of checksummed records: the form of the pool's journal and of every layer's map.
//!
//! ```text
//! header   8 bytes magic | u64 salt | u32 CRC32C of both | u32 zero
//! record   u32 "rec1" | u32 payload length | u64 sequence | u64 durable | u32 CRC32C | payload | zeros to a multiple of 8
//! ```
//!
//! Numbers are little-endian. A record's CRC covers salt, sequence, durable, length and payload, so that a record of
//! another log, or of this one at another place, never verifies. Sequences start at 1 and grow by 1. `durable` is the
//! last sequence that was known to be on disk when the record was written.
//!
//! A log ends at the first record that does not verify: appends that a crash cut short, or that reached the disk in
//! another order than they were made. Everything before it counts. But if a later record says that the bad one was on
//! disk already, bytes have changed since: damage, and the log is refused.

use crate::sync::atomic::{AtomicU64, Ordering};
use std::io;

use crate::engine::io::{File, FileRef};

/// Bytes of the header.
pub const HEADER: u64 = 24;
const FRAME: usize = 28;
const RECORD: u32 = u32::from_le_bytes(*b"rec1");
/// Largest payload: more than any record needs, small enough to read a hostile length safely.
pub const MAX_PAYLOAD: usize = 1 << 30;

/// What a log holds.
#[derive(Debug, Default)]
pub struct Scan {
    /// Payloads of the records, in order, as ranges of the bytes scanned.
    pub records: Vec<std::ops::Range<usize>>,
    /// Length of the valid part in bytes, where the next record goes. 0: not even the header is there.
    pub valid: u64,
    /// There are bytes other than zeros after the valid part.
    pub torn: bool,
    /// How many records are known to have been on disk, because a later one says so, and where the last of them ends.
    durable: (u64, u64),
}

/// Why a log cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub enum Flaw {
    /// The header verifies, but is that of another file.
    Foreign,
    /// The header does not verify, although records follow.
    Header,
    /// A record that was on disk does not verify any more; its offset.
    Middle(u64),
}

impl std::fmt::Display for Flaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Flaw::Foreign => f.write_str("the header is that of another file"),
            Flaw::Header => f.write_str("the header does not verify"),
            Flaw::Middle(at) => {
                write!(f, "the record at byte {at} does not verify, and was written long before the last one")
            }
        }
    }
}

impl std::error::Error for Flaw {}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn record_crc(salt: u64, sequence: u64, durable: u64, payload: &[u8]) -> u32 {
    let mut crc = crc32c::crc32c(&salt.to_le_bytes());
    crc = crc32c::crc32c_append(crc, &sequence.to_le_bytes());
    crc = crc32c::crc32c_append(crc, &durable.to_le_bytes());
    crc = crc32c::crc32c_append(crc, &(payload.len() as u32).to_le_bytes());
    crc32c::crc32c_append(crc, payload)
}

/// The header of a log of this kind.
pub fn header(magic: &[u8; 8], salt: u64) -> [u8; HEADER as usize] {
    let mut bytes = [0; HEADER as usize];
    bytes[..8].copy_from_slice(magic);
    bytes[8..16].copy_from_slice(&salt.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..16]);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The salt in the header, if that is one of this kind.
pub fn salt(bytes: &[u8], magic: &[u8; 8]) -> Option<u64> {
    let salt = u64_at(bytes, 8)?;
    (bytes.get(..HEADER as usize)? == header(magic, salt)).then_some(salt)
}

/// One record, ready to be appended.
pub fn encode(salt: u64, sequence: u64, durable: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FRAME + payload.len() + 8);
    bytes.extend_from_slice(&RECORD.to_le_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&durable.to_le_bytes());
    bytes.extend_from_slice(&record_crc(salt, sequence, durable, payload).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// A record that verifies.
struct Record {
    sequence: u64,
    durable: u64,
    payload: std::ops::Range<usize>,
    /// Where the next one begins.
    next: usize,
}

/// The record at `at`, if it verifies.
fn record_at(bytes: &[u8], at: usize, salt: u64) -> Option<Record> {
    if u32_at(bytes, at)? != RECORD {
        return None;
    }
    let len = u32_at(bytes, at + 4)? as usize;
    let (sequence, durable) = (u64_at(bytes, at + 8)?, u64_at(bytes, at + 16)?);
    let crc = u32_at(bytes, at + 24)?;
    let start = at + FRAME;
    let payload = start..start.checked_add(len)?;
    let verifies = len <= MAX_PAYLOAD && record_crc(salt, sequence, durable, bytes.get(payload.clone())?) == crc;
    verifies.then(|| Record { sequence, durable, payload, next: (FRAME + len).next_multiple_of(8) + at })
}

/// Reads a log out of `bytes`.
pub fn scan(bytes: &[u8], magic: &[u8; 8], salt: u64) -> Result<Scan, Flaw> {
    let head = bytes.get(..HEADER as usize);
    if head != Some(&header(magic, salt)) {
        let verifies = head.is_some_and(|h| u32_at(h, 16) == Some(crc32c::crc32c(&h[..16])));
        if verifies {
            return Err(Flaw::Foreign);
        }
        let any = find_record(bytes, 0, salt, 0);
        return if any { Err(Flaw::Header) } else { Ok(Scan { torn: !bytes.is_empty(), ..Scan::default() }) };
    }
    let mut scan = Scan { valid: HEADER, ..Scan::default() };
    let mut at = HEADER as usize;
    let (mut ends, mut durable) = (Vec::new(), 0);
    while let Some(record) = record_at(bytes, at, salt) {
        if record.sequence != scan.records.len() as u64 + 1 {
            return Err(Flaw::Middle(at as u64));
        }
        scan.records.push(record.payload);
        // The padding of the last record may be cut off by a crash; nothing in it matters.
        at = record.next;
        scan.valid = at as u64;
        ends.push(scan.valid);
        durable = record.durable.max(durable);
    }
    let known = ends.get(durable.saturating_sub(1) as usize).filter(|_| durable > 0);
    scan.durable = known.map_or((0, 0), |end| (durable, *end));
    let rest = bytes.get(at..).unwrap_or_default();
    scan.torn = rest.iter().any(|&b| b != 0);
    if scan.torn && find_record(bytes, at, salt, scan.records.len() as u64 + 1) {
        return Err(Flaw::Middle(at as u64));
    }
    Ok(scan)
}

/// Whether a record at or after `from` verifies, and says that `sequence` was durable. Records start at multiples of 8.
fn find_record(bytes: &[u8], from: usize, salt: u64, sequence: u64) -> bool {
    let mut places = (from.next_multiple_of(8)..bytes.len()).step_by(8);
    places.any(|at| record_at(bytes, at, salt).is_some_and(|r| r.durable >= sequence))
}

/// All records that verify, wherever they are, by sequence; and whether one is missing between them. For a log that
/// [`scan`] refuses.
pub fn salvage(bytes: &[u8], salt: u64) -> (Vec<std::ops::Range<usize>>, bool) {
    let mut found: Vec<(u64, std::ops::Range<usize>)> = Vec::new();
    let mut at = 0;
    while at + FRAME <= bytes.len() {
        match record_at(bytes, at, salt) {
            Some(record) => {
                at = record.next;
                found.push((record.sequence, record.payload));
            }
            None => at += 8,
        }
    }
    let gap = found.iter().enumerate().any(|(number, (sequence, _))| *sequence != number as u64 + 1);
    (found.into_iter().map(|(_, payload)| payload).collect(), gap)
}

/// A log open for appending. The caller decides when it is synced.
pub struct Log {
    file: FileRef,
    salt: u64,
    tail: u64,
    sequence: u64,
    /// Last record that is known to be durable.
    durable: AtomicU64,
    /// Up to here the disk has the log for certain; what follows another daemon has written, and may not have synced.
    certain: u64,
    /// Space is reserved up to here.
    reserved: u64,
    /// An append failed half-way: the tail may hold part of a record, and only a new file can follow.
    broken: bool,
}

/// Space is reserved ahead in steps of this many bytes, so that a sync or a deletion works on a full disk.
pub const RESERVE: u64 = 64 << 10;

impl Log {
    /// Starts a log in an empty file. Not durable until synced.
    pub fn create(file: FileRef, magic: &[u8; 8], salt: u64, reserve: u64) -> io::Result<Log> {
        // KEEP_SIZE: the end of the file stays the end of the log. A filesystem that cannot reserve just does not.
        let reserved = if file.allocate(libc::FALLOC_FL_KEEP_SIZE, 0, reserve).is_ok() { reserve } else { u64::MAX };
        file.write_at(&header(magic, salt), 0)?;
        let (tail, durable) = (HEADER, AtomicU64::new(0));
        Ok(Log { file, salt, tail, sequence: 0, durable, certain: tail, reserved, broken: false })
    }

    /// Goes on after the valid part of a scanned log. A torn end is cut off and the cut made durable first (R4).
    pub fn resume(file: FileRef, salt: u64, scan: &Scan) -> io::Result<Log> {
        // Setting the size that it has would give back what is reserved behind it.
        if scan.torn || file.stat()?.size != scan.valid {
            file.set_len(scan.valid)?;
        }
        if scan.torn {
            file.sync_data()?;
        }
        let (sequence, tail) = (scan.records.len() as u64, scan.valid);
        let (durable, certain) = scan.durable;
        let durable = AtomicU64::new(durable);
        Ok(Log { file, salt, tail, sequence, durable, certain, reserved: tail, broken: false })
    }

    /// Appends one record; not durable until [`Log::file`] is synced. After a failure the log takes no more.
    pub fn append(&mut self, payload: &[u8]) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if payload.len() > MAX_PAYLOAD {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        self.write_again()?;
        let bytes = encode(self.salt, self.sequence + 1, self.durable.load(Ordering::Acquire), payload);
        let end = self.tail + bytes.len() as u64;
        if end > self.reserved {
            let want = end + RESERVE;
            let from = self.reserved.min(self.tail);
            match self.file.allocate(libc::FALLOC_FL_KEEP_SIZE, from, want - from) {
                Ok(()) => self.reserved = want,
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => self.reserved = u64::MAX,
                Err(_) => {} // A nearly full disk may still have room for this one record.
            }
        }
        if let Err(error) = self.file.write_at(&bytes, self.tail) {
            // Take the half-written record back; if even that fails, nothing may follow it.
            self.broken = self.file.set_len(self.tail).is_err();
            return Err(error);
        }
        self.tail = end;
        // A failed sync of what this one wrote is known, and ends its use.
        self.certain = end;
        self.sequence += 1;
        Ok(())
    }

    /// Writes the end of a log that was resumed once more, unless that has been done; `true`: it has to be synced now. If
    /// the last sync of the daemon before failed, the kernel shows what it appended and will never write it (R14): what
    /// is appended would come to stand behind a gap, and what rests on the last record would be lost with it.
    pub fn write_again(&mut self) -> io::Result<bool> {
        let uncertain = self.certain < self.tail;
        if uncertain {
            let mut bytes = vec![0; (self.tail - self.certain) as usize];
            let got = self.file.read_at(&mut bytes, self.certain)?;
            self.file.write_at(&bytes[..got], self.certain)?;
            self.certain = self.tail;
        }
        Ok(uncertain)
    }

    /// Notes that the file was synced after record `sequence` had been appended.
    pub fn synced(&self, sequence: u64) {
        self.durable.fetch_max(sequence, Ordering::AcqRel);
    }

    /// Whether nothing can be appended any more.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Number of records appended so far.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Length in bytes.
    pub fn end(&self) -> u64 {
        self.tail
    }

    /// The file, to sync it without holding a lock on the log.
    pub fn file(&self) -> &FileRef {
        &self.file
    }
}

/// Reads a whole file of metadata. Files larger than `limit` bytes are refused rather than loaded.
pub fn read_all(file: &dyn File, limit: u64) -> io::Result<Vec<u8>> {
    let size = file.stat()?.size;
    if size > limit {
        return Err(io::Error::other(format!("{size} bytes is more than this file can have ({limit})")));
    }
    let mut bytes = vec![0; size as usize];
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const MAGIC: &[u8; 8] = b"test-log";

    fn sample() -> Vec<u8> {
        let mut bytes = header(MAGIC, 7).to_vec();
        for (i, text) in ["one", "two", "a third, longer record"].iter().enumerate() {
            bytes.extend(encode(7, i as u64 + 1, i as u64, text.as_bytes()));
        }
        bytes
    }

    #[test]
    fn every_cut_gives_a_prefix() {
        let whole = sample();
        let mut seen = 0;
        for cut in 0..=whole.len() {
            let scan = scan(&whole[..cut], MAGIC, 7).expect("a cut is never damage");
            assert!(scan.records.len() >= seen);
            seen = scan.records.len();
        }
        assert_eq!(seen, 3);
    }

    #[test]
    fn every_flipped_byte_is_seen_or_gives_a_prefix() {
        let whole = sample();
        let texts: Vec<_> = scan(&whole, MAGIC, 7).unwrap().records.iter().map(|r| whole[r.clone()].to_vec()).collect();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            if let Ok(scan) = scan(&bytes, MAGIC, 7) {
                for (record, text) in scan.records.iter().zip(&texts) {
                    assert_eq!(&bytes[record.clone()], text, "flipping byte {at} changed a record unseen");
                }
            }
        }
    }

    /// Each append wrote the record before it once more, over bytes that were durable.
    #[test]
    fn only_what_another_daemon_has_written_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let fs = crate::engine::io::HostFs::open_dir(dir.path()).unwrap();
        let file =
            crate::engine::io::Fs::open(&fs, Path::new("log"), crate::engine::io::Open::CreateNew(0o600)).unwrap();
        let mut log = Log::create(file.clone(), MAGIC, 7, RESERVE).unwrap();
        log.append(b"one").unwrap();
        log.append(b"two").unwrap();
        assert!(!log.write_again().unwrap());
        let bytes = read_all(file.as_ref(), 1 << 20).unwrap();
        let found = scan(&bytes, MAGIC, 7).unwrap();
        let mut log = Log::resume(file, 7, &found).unwrap();
        assert!(log.write_again().unwrap(), "whether it was synced is not known");
        assert!(!log.write_again().unwrap());
        log.append(b"three").unwrap();
        assert!(!log.write_again().unwrap());
    }

    #[test]
    fn damage_in_the_middle_is_refused() {
        let mut bytes = sample();
        bytes[HEADER as usize + FRAME] ^= 1;
        assert_eq!(scan(&bytes, MAGIC, 7).unwrap_err(), Flaw::Middle(HEADER));
    }

    #[test]
    fn what_was_never_synced_may_be_there_in_part() {
        let mut bytes = header(MAGIC, 7).to_vec();
        bytes.extend(encode(7, 1, 0, b"synced"));
        let end = bytes.len();
        bytes.extend(encode(7, 2, 1, b"lost"));
        bytes.extend(encode(7, 3, 1, b"written before the one above"));
        bytes[end + FRAME] ^= 1;
        let scan = scan(&bytes, MAGIC, 7).expect("the second record was never durable");
        assert_eq!((scan.records.len(), scan.valid, scan.torn), (1, end as u64, true));
    }

    #[test]
    fn a_log_of_another_layer_is_refused() {
        assert_eq!(scan(&sample(), MAGIC, 8).unwrap_err(), Flaw::Foreign);
    }
}
