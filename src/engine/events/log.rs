//! The log of events: files of JSON lines in `.clonefs`, numbered, of which the last two are kept.
//!
//! A crash can tear the last line, or leave zeros after it: what is no JSON is passed over, and a log that does not end
//! with a newline gets one before the next line. A place in the log is the number of a file and an offset in it, and
//! stays what it is until the file is removed.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Event;
use crate::engine::io::{FileRef, Fs, Open};
use crate::engine::store::DIR;
use crate::error::{Context, Error, Kind, Result};

/// A file that has so many bytes is followed by another one.
const LARGEST: u64 = 4 << 20;
/// So many files are kept.
const KEPT: u64 = 2;
/// Bytes that are read at once: as many lines as an attribute can hold, with what is written around them.
const PAGE: usize = 40 << 10;

/// A place in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// Number of the file.
    pub file: u64,
    /// Offset in it.
    pub offset: u64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.file, self.offset)
    }
}

impl FromStr for Cursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Cursor> {
        let parts = text.split_once('-').and_then(|(file, offset)| Some((file.parse().ok()?, offset.parse().ok()?)));
        let bad = || Error::new(Kind::Invalid, "read events").because(format!("{text:?} is no place in the log"));
        parts.map(|(file, offset)| Cursor { file, offset }).ok_or_else(bad)
    }
}

impl Serialize for Cursor {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Cursor, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Some events in a row.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Page {
    /// Them, oldest first.
    pub events: Vec<Event>,
    /// Where to go on.
    pub next: Cursor,
    /// There is more to be read now.
    pub more: bool,
    /// Events between the place that was asked for and these are not kept any more.
    #[serde(default)]
    pub gap: bool,
}

/// The log, open for appending.
pub struct Log {
    fs: Arc<dyn Fs>,
    open: Option<(FileRef, Cursor)>,
    largest: u64,
    unsynced: bool,
}

fn path(number: u64) -> PathBuf {
    PathBuf::from(format!("{DIR}/events.{number:06}.jsonl"))
}

/// Numbers of the files there are, in order.
fn numbers(fs: &dyn Fs) -> std::io::Result<Vec<u64>> {
    let number = |name: &str| name.strip_prefix("events.")?.strip_suffix(".jsonl")?.parse().ok();
    let entries = fs.list(std::path::Path::new(DIR))?;
    let mut found: Vec<u64> = entries.iter().filter_map(|entry| entry.name.to_str().and_then(number)).collect();
    found.sort_unstable();
    Ok(found)
}

impl Log {
    /// The log of a pool; nothing is looked at yet.
    pub fn new(fs: Arc<dyn Fs>) -> Log {
        Log { fs, open: None, largest: LARGEST, unsynced: false }
    }

    /// Appends whole lines.
    ///
    /// # Errors
    /// Nothing of it counts then, but some of it can be there.
    pub fn append(&mut self, lines: &[u8]) -> Result<()> {
        if self.open.as_ref().is_some_and(|(_, end)| end.offset >= self.largest) {
            self.sync();
            self.open = None;
        }
        let opened = match self.open.take() {
            Some(open) => Ok(open),
            None => self.open_last(),
        };
        let (file, mut end) = opened.context("open the log of events", DIR)?;
        // After a failure the file is opened again, and a torn line is ended.
        file.write_at(lines, end.offset).context("write the log of events", path(end.file))?;
        end.offset += lines.len() as u64;
        self.unsynced = true;
        self.open = Some((file, end));
        Ok(())
    }

    /// The last file, or a new one where that is full; older ones are removed.
    fn open_last(&self) -> std::io::Result<(FileRef, Cursor)> {
        let numbers = numbers(self.fs.as_ref())?;
        let last = numbers.last().copied().unwrap_or(0);
        let mut end = Cursor { file: last, offset: 0 };
        let mut file = None;
        if last > 0 {
            let old = self.fs.open(&path(last), Open::Write)?;
            end.offset = old.stat()?.size;
            file = Some(old).filter(|_| end.offset < self.largest);
        }
        let file = match file {
            Some(file) => file,
            None => {
                end = Cursor { file: last + 1, offset: 0 };
                self.fs.open(&path(last + 1), Open::CreateNew(0o600))?
            }
        };
        for old in numbers.into_iter().filter(|number| number + KEPT <= end.file) {
            let _ = self.fs.unlink(&path(old));
        }
        let mut newest = [b'\n'];
        if end.offset > 0 {
            file.read_at(&mut newest, end.offset - 1)?;
        }
        if newest != [b'\n'] {
            file.write_at(b"\n", end.offset)?;
            end.offset += 1;
        }
        Ok((file, end))
    }

    /// Makes it durable, as far as that is possible.
    pub fn sync(&mut self) {
        if let Some((file, _)) = self.open.as_ref().filter(|_| self.unsynced) {
            let _ = file.sync_data();
            self.unsynced = false;
        }
    }
}

/// Some events from a place on.
///
/// # Errors
/// The log cannot be read. That there is none is no error.
pub fn read(fs: &dyn Fs, from: Cursor) -> Result<Page> {
    let numbers = match numbers(fs) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(Page { next: from, ..Page::default() }),
        other => other.context("look for the log of events in", DIR)?,
    };
    let Some(oldest) = numbers.first().copied() else { return Ok(Page { next: from, ..Page::default() }) };
    let gap = from.file > 0 && from.file < oldest;
    let mut at = if from.file < oldest { Cursor { file: oldest, offset: 0 } } else { from };
    while numbers.contains(&at.file) {
        let file = fs.open(&path(at.file), Open::Read).context("open the log of events", path(at.file))?;
        let mut bytes = vec![0; PAGE];
        let got = file.read_at(&mut bytes, at.offset).context("read the log of events", path(at.file))?;
        let ended = at.file < *numbers.last().unwrap_or(&at.file);
        let whole = match bytes[..got].iter().rposition(|byte| *byte == b'\n') {
            Some(last) => last + 1,
            // A line that is longer than any event, or a torn one at the end of a file that is complete.
            None if got == PAGE || ended => got,
            None => 0,
        };
        if whole == 0 && ended {
            at = Cursor { file: at.file + 1, offset: 0 };
            continue;
        }
        let lines = bytes[..whole].split(|byte| *byte == b'\n');
        let events = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
        at.offset += whole as u64;
        return Ok(Page { events, next: at, more: whole > 0, gap });
    }
    Ok(Page { next: at, gap, ..Page::default() })
}

#[cfg(test)]
mod tests {
    use super::super::What;
    use super::*;
    use crate::engine::io::HostFs;

    fn line(name: &str) -> Vec<u8> {
        let mut line = serde_json::to_vec(&Event::new(What::Created, name)).unwrap();
        line.push(b'\n');
        line
    }

    fn all(fs: &dyn Fs) -> (Vec<String>, bool) {
        let (mut found, mut cursor, mut gap) = (Vec::new(), Cursor::default(), false);
        loop {
            let page = read(fs, cursor).unwrap();
            found.extend(page.events.into_iter().map(|event| event.path));
            (cursor, gap) = (page.next, gap | page.gap);
            if !page.more {
                return (found, gap);
            }
        }
    }

    fn pool() -> (tempfile::TempDir, Arc<dyn Fs>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(DIR)).unwrap();
        let fs: Arc<dyn Fs> = Arc::new(HostFs::open_dir(dir.path()).unwrap());
        (dir, fs)
    }

    #[test]
    fn every_torn_end_is_passed_over_and_the_log_goes_on() {
        let torn = line("torn");
        for cut in 0..torn.len() {
            for zeros in [0, 5] {
                let (dir, fs) = pool();
                Log::new(fs.clone()).append(&line("first")).unwrap();
                let file = dir.path().join(path(1));
                let mut bytes = std::fs::read(&file).unwrap();
                bytes.extend_from_slice(&torn[..cut]);
                bytes.extend(std::iter::repeat_n(0, zeros));
                std::fs::write(&file, bytes).unwrap();
                // Whole but for its newline, it counts.
                let expect = if cut + 1 == torn.len() && zeros == 0 {
                    vec!["first", "torn", "next"]
                } else {
                    vec!["first", "next"]
                };
                assert_eq!(all(fs.as_ref()).0, ["first"], "cut {cut}");
                Log::new(fs.clone()).append(&line("next")).unwrap();
                assert_eq!(all(fs.as_ref()).0, expect, "cut {cut}");
            }
        }
    }

    #[test]
    fn old_files_go_and_the_size_is_bounded() {
        let (dir, fs) = pool();
        let mut log = Log { largest: 1000, ..Log::new(fs.clone()) };
        let size = line("0000").len() as u64;
        for number in 0..200 {
            log.append(&line(&format!("{number:04}"))).unwrap();
        }
        let files: Vec<u64> =
            std::fs::read_dir(dir.path().join(DIR)).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).collect();
        assert_eq!(files.len() as u64, KEPT);
        assert!(files.iter().all(|len| *len < 1000 + size), "{files:?}");
        let (found, gap) = all(fs.as_ref());
        assert!(found.len() > 10 && !gap);
        assert_eq!(found.last().map(String::as_str), Some("0199"));
        assert!(found.is_sorted());
        // Somebody who had read the first file only is told that there is something missing.
        let page = read(fs.as_ref(), Cursor { file: 1, offset: 100 }).unwrap();
        assert!(page.gap && page.events[0].path == found[0]);
        // The files go on where they were after a restart.
        Log { largest: 1000, ..Log::new(fs.clone()) }.append(&line("0200")).unwrap();
        assert_eq!(all(fs.as_ref()).0.last().map(String::as_str), Some("0200"));
    }

    #[test]
    fn places_survive_as_text() {
        let cursor = Cursor { file: 3, offset: 77 };
        assert_eq!(cursor.to_string().parse::<Cursor>().unwrap(), cursor);
        for bad in ["", "3", "3-", "-7", "3-x", "3-7-1", "99999999999999999999-0"] {
            assert_eq!(bad.parse::<Cursor>().err().map(|e| e.kind()), Some(Kind::Invalid), "{bad}");
        }
    }

    #[test]
    fn a_pool_without_a_log_has_no_events() {
        let dir = tempfile::tempdir().unwrap();
        let fs = HostFs::open_dir(dir.path()).unwrap();
        assert!(all(&fs).0.is_empty());
    }
}
