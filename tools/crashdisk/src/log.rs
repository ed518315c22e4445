//! The log of a recorded disk: every write, flush, discard and mark, in the one order in which they happened.
//!
//! The file is a line of magic, a line of JSON ([`Header`]), then records: kind (u8), three zero bytes, CRC32C of the
//! record without this field (u32), offset (u64), length (u64), and for writes and marks the bytes. Little-endian.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use clonefs::error::{Context, Error, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::image::Image;

const MAGIC: &str = "crashdisk log 1\n";
const FIXED: usize = 24;
/// Largest write that FUSE can send, and then some; larger lengths in a log are damage.
const MAX_PAYLOAD: u64 = 64 << 20;

/// The mark before the workload's first; crash points lie after it.
pub const START: &str = "crashdisk: start";
/// The mark after the workload's last; crash points lie before it.
pub const END: &str = "crashdisk: end";

/// What happened to the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Bytes were written.
    Write {
        /// Place on the disk in bytes.
        offset: u64,
        /// The bytes.
        data: Box<[u8]>,
    },
    /// Zeros were written: a zero-range request, or a write of nothing but zeros.
    Zero {
        /// Place on the disk in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A range was discarded; it reads as zeros afterwards.
    Discard {
        /// Place on the disk in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Everything before this record is durable.
    Flush,
    /// The workload said something. Marks touch nothing; what they are for is their place in the order.
    Mark(String),
}

impl Record {
    /// A write of `data`, kept as zeros where it is nothing else.
    pub fn write(offset: u64, data: &[u8]) -> Record {
        if data.iter().all(|&b| b == 0) {
            Record::Zero { offset, len: data.len() as u64 }
        } else {
            Record::Write { offset, data: data.into() }
        }
    }

    /// Changes `image` as this record changed the disk.
    pub fn apply(&self, image: &mut Image) {
        match self {
            Record::Write { offset, data } => image.write(*offset, data),
            Record::Zero { offset, len } | Record::Discard { offset, len } => image.zero(*offset, *len),
            Record::Flush | Record::Mark(_) => {}
        }
    }

    /// The range that it changes, in bytes; `None` for flushes and marks.
    pub fn range(&self) -> Option<(u64, u64)> {
        match self {
            Record::Write { offset, data } => Some((*offset, data.len() as u64)),
            Record::Zero { offset, len } | Record::Discard { offset, len } => Some((*offset, *len)),
            Record::Flush | Record::Mark(_) => None,
        }
    }

    fn encode(&self) -> ([u8; FIXED], &[u8]) {
        let (kind, offset, len, payload): (u8, u64, u64, &[u8]) = match self {
            Record::Write { offset, data } => (1, *offset, data.len() as u64, data),
            Record::Zero { offset, len } => (2, *offset, *len, &[]),
            Record::Discard { offset, len } => (3, *offset, *len, &[]),
            Record::Flush => (4, 0, 0, &[]),
            Record::Mark(text) => (5, 0, text.len() as u64, text.as_bytes()),
        };
        let mut fixed = [0; FIXED];
        fixed[0] = kind;
        fixed[8..16].copy_from_slice(&offset.to_le_bytes());
        fixed[16..24].copy_from_slice(&len.to_le_bytes());
        let crc = checksum(&fixed, payload);
        fixed[4..8].copy_from_slice(&crc.to_le_bytes());
        (fixed, payload)
    }
}

/// CRC of a record, its own field taken as zero.
fn checksum(fixed: &[u8; FIXED], payload: &[u8]) -> u32 {
    let mut head = *fixed;
    head[4..8].fill(0);
    crc32c::crc32c_append(crc32c::crc32c(&head), payload)
}

/// What is known about the disk besides its records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Size of the disk in bytes.
    pub size: u64,
    /// Filesystem on it: `ext4`, `xfs` or `btrfs`.
    pub filesystem: String,
    /// Options that it was mounted with, and is to be mounted with again.
    pub options: String,
}

/// A whole log in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The disk.
    pub header: Header,
    /// What happened to it, oldest first.
    pub records: Vec<Record>,
}

impl Log {
    /// Reads a log. One that was cut off (the recorder was killed) or damaged is an error: its crash states would be
    /// states that no power cut can leave.
    pub fn open(path: &Path) -> Result<Log> {
        let file = File::open(path).context("open log", path)?;
        let mut input = BufReader::with_capacity(1 << 20, file);
        let damaged = |why: String| Error::new(Kind::Damaged, "read log").at(path).because(why).remedy("record again");
        let mut line = Vec::new();
        (&mut input).take(MAGIC.len() as u64).read_to_end(&mut line).context("read log", path)?;
        if line != MAGIC.as_bytes() {
            return Err(damaged("not a crashdisk log".into()));
        }
        line.clear();
        (&mut input).take(4096).read_until(b'\n', &mut line).context("read log", path)?;
        let header = serde_json::from_slice(&line).map_err(|e| damaged(format!("header: {e}")))?;
        let mut records = Vec::new();
        while let Some(record) =
            read_record(&mut input).map_err(|e| damaged(format!("record {}: {e}", records.len())))?
        {
            records.push(record);
        }
        if !records.iter().any(|r| matches!(r, Record::Mark(text) if text == END)) {
            return Err(damaged("the recording did not come to its end".into()));
        }
        Ok(Log { header, records })
    }

    /// Index of the first record that belongs to the workload, and of the mark behind its last.
    pub fn workload(&self) -> (usize, usize) {
        let find = |mark: &str| self.records.iter().position(|r| matches!(r, Record::Mark(text) if text == mark));
        (find(START).map_or(0, |n| n + 1), find(END).unwrap_or(self.records.len()))
    }

    /// The workload's marks among the first `point` records.
    pub fn marks(&self, point: usize) -> Vec<&str> {
        let (start, end) = self.workload();
        let reach = &self.records[start.min(point)..end.min(point)];
        reach.iter().filter_map(|r| if let Record::Mark(text) = r { Some(text.as_str()) } else { None }).collect()
    }
}

/// The next record, `None` at the end of the file.
fn read_record(input: &mut impl BufRead) -> std::result::Result<Option<Record>, String> {
    let mut fixed = [0; FIXED];
    if input.fill_buf().map_err(|e| e.to_string())?.is_empty() {
        return Ok(None);
    }
    let cut = |e: std::io::Error| match e.kind() {
        ErrorKind::UnexpectedEof => "cut off".to_string(),
        _ => e.to_string(),
    };
    input.read_exact(&mut fixed).map_err(cut)?;
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| fixed[at + n]));
    let (kind, offset, len) = (fixed[0], number(8), number(16));
    let mut payload = Vec::new();
    if matches!(kind, 1 | 5) {
        if len > MAX_PAYLOAD {
            return Err(format!("impossible length {len}"));
        }
        payload.resize(len as usize, 0);
        input.read_exact(&mut payload).map_err(cut)?;
    }
    if checksum(&fixed, &payload).to_le_bytes() != fixed[4..8] {
        return Err("bad checksum".into());
    }
    Ok(Some(match kind {
        1 => Record::Write { offset, data: payload.into() },
        2 => Record::Zero { offset, len },
        3 => Record::Discard { offset, len },
        4 => Record::Flush,
        5 => Record::Mark(String::from_utf8_lossy(&payload).into_owned()),
        _ => return Err(format!("unknown kind {kind}")),
    }))
}

/// Writes a log, record by record.
pub struct LogWriter {
    path: PathBuf,
    out: BufWriter<File>,
}

impl LogWriter {
    /// Starts a log at `path`; one that is there is replaced.
    pub fn create(path: &Path, header: &Header) -> Result<LogWriter> {
        let file = File::create(path).context("create log", path)?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        let json = serde_json::to_string(header).map_err(|e| Error::new(Kind::Invalid, "write log").because(e))?;
        writeln!(out, "{MAGIC}{json}").context("write log", path)?;
        Ok(LogWriter { path: path.to_path_buf(), out })
    }

    /// Appends one record.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        let (fixed, payload) = record.encode();
        self.out.write_all(&fixed).and_then(|()| self.out.write_all(payload)).context("write log", &self.path)
    }

    /// Hands everything to the system.
    pub fn finish(mut self) -> Result<()> {
        self.out.flush().context("write log", &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Log {
        let header = Header { size: 1 << 20, filesystem: "ext4".into(), options: "commit=1".into() };
        let mark = |text: &str| Record::Mark(text.into());
        let records = vec![
            Record::write(0, b"mkfs"),
            mark(START),
            Record::write(4096, &[1; 5000]),
            mark("one"),
            Record::Flush,
            Record::write(512, &[0; 512]),
            Record::Discard { offset: 0, len: 4096 },
            mark("two"),
            mark(END),
        ];
        Log { header, records }
    }

    fn save(log: &Log, path: &Path) {
        let mut writer = LogWriter::create(path, &log.header).unwrap();
        log.records.iter().for_each(|r| writer.append(r).unwrap());
        writer.finish().unwrap();
    }

    #[test]
    fn a_log_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = sample();
        save(&log, &path);
        assert_eq!(Log::open(&path).unwrap(), log);
        assert_eq!(log.workload(), (2, 8));
        assert_eq!(log.marks(4), ["one"]);
        assert_eq!(log.marks(8), ["one", "two"]);
        assert_eq!(log.records[5], Record::Zero { offset: 512, len: 512 });
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        save(&sample(), &path);
        let bytes = std::fs::read(&path).unwrap();
        let records_start = bytes.len() - sample().records.iter().map(|r| FIXED + r.encode().1.len()).sum::<usize>();
        for at in (0..bytes.len()).step_by(7) {
            std::fs::write(&path, &bytes[..at]).unwrap();
            assert!(Log::open(&path).is_err(), "cut at {at}");
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x20;
            std::fs::write(&path, &flipped).unwrap();
            // A flip in the header can leave valid JSON; the records are under the checksum.
            assert!(Log::open(&path).is_err() || (MAGIC.len()..records_start).contains(&at), "flip at {at}");
        }
    }
}
