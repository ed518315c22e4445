//! A tiny copy-on-write store with planted ordering bugs, to see that the machine finds them.
//!
//! One volume over a read-only parent: `parent`, `data` (block n at n * 4096) and `map.G`, a log of which blocks are in
//! `data`. A checkpoint writes the whole map to `map.G+1` and removes the older one. Without a bug it keeps the order
//! that a crash-safe store needs; each [`Bug`] breaks it in one place.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::files::Aligned;
use crate::stamp::{SECTOR, stamped};

/// Bytes in a block.
pub const BLOCK: u64 = 4096;
/// Sectors in a block.
const SECTORS: u64 = BLOCK / SECTOR as u64;

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Nothing: the machine must find nothing.
    None,
    /// fsync makes the map durable before the data.
    BitBeforeData,
    /// A write dirties the map at once, so write-back can take it to the disk before the data.
    BitDirtiedEarly,
    /// A checkpoint is renamed into place without having been synced.
    NoTempSync,
    /// A checkpoint's rename is taken for durable without a sync of the directory.
    NoDirSync,
    /// Data written with direct I/O is taken for durable without fdatasync.
    DirectUnsynced,
    /// A discarded block's hole is punched later, when the block may hold new data.
    DelayedPunch,
    /// Deepening writes the parent's bytes over what was written since it read them.
    DeepenOverwrites,
}

impl Bug {
    /// All, the sound store first.
    pub const ALL: [Bug; 8] = [
        Bug::None,
        Bug::BitBeforeData,
        Bug::BitDirtiedEarly,
        Bug::NoTempSync,
        Bug::NoDirSync,
        Bug::DirectUnsynced,
        Bug::DelayedPunch,
        Bug::DeepenOverwrites,
    ];

    /// A short name.
    pub fn name(self) -> &'static str {
        match self {
            Bug::None => "none",
            Bug::BitBeforeData => "bit-before-data",
            Bug::BitDirtiedEarly => "bit-dirtied-early",
            Bug::NoTempSync => "no-temp-sync",
            Bug::NoDirSync => "no-dir-sync",
            Bug::DirectUnsynced => "direct-unsynced",
            Bug::DelayedPunch => "delayed-punch",
            Bug::DeepenOverwrites => "deepen-overwrites",
        }
    }
}

/// Where the bytes of a block are, if not in the parent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Data = 1,
    Zero = 2,
}

/// A record of the map: block, place, checksum. A zeroed record ends the map.
const RECORD: usize = 12;
/// Bytes that a map is made with: records are written in place, no fsync has to make its size durable.
const MAP_SIZE: usize = 32 << 10;

fn encode(block: u32, place: Place) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..4].copy_from_slice(&block.to_le_bytes());
    record[4] = place as u8;
    let crc = crc32c::crc32c(&record[..8]);
    record[8..].copy_from_slice(&crc.to_le_bytes());
    record
}

fn decode(record: &[u8]) -> Option<(u32, Place)> {
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|n| record[at + n]));
    let place = match record.get(4)? {
        1 => Place::Data,
        2 => Place::Zero,
        _ => return None,
    };
    (record.len() == RECORD && word(8) == crc32c::crc32c(&record[..8])).then(|| (word(0), place))
}

/// An open store.
pub struct MiniStore {
    dir: PathBuf,
    bug: Bug,
    parent: File,
    data: File,
    direct: File,
    map: File,
    map_end: u64,
    generation: u32,
    places: BTreeMap<u32, Place>,
    /// Blocks whose record is not durable yet.
    fresh: BTreeMap<u32, Place>,
    late_punches: Vec<u32>,
}

impl MiniStore {
    /// Makes a store in the empty directory `dir`; its parent holds `parent`, a whole number of blocks. Durable when
    /// this returns.
    pub fn create(dir: &Path, parent: &[u8], bug: Bug) -> io::Result<MiniStore> {
        let new = |name: &str| OpenOptions::new().write(true).create_new(true).open(dir.join(name));
        let file = new("parent")?;
        file.write_all_at(parent, 0)?;
        file.sync_all()?;
        let data = new("data")?;
        data.set_len(parent.len() as u64)?;
        data.sync_all()?;
        let map = new("map.0")?;
        map.write_all_at(&[0; MAP_SIZE], 0)?;
        map.sync_all()?;
        File::open(dir)?.sync_all()?;
        MiniStore::open(dir, bug)
    }

    /// Opens a store, also after a crash: the newest map counts, a torn record ends it.
    pub fn open(dir: &Path, bug: Bug) -> io::Result<MiniStore> {
        let mut generation = None;
        for entry in std::fs::read_dir(dir)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("map.")?.parse::<u32>().ok());
            generation = generation.max(number);
        }
        let generation = generation.ok_or_else(|| io::Error::other("no map"))?;
        let rw = |name: &str, flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(dir.join(name));
        let map_name = format!("map.{generation}");
        let bytes = std::fs::read(dir.join(&map_name))?;
        let places: BTreeMap<u32, Place> = bytes.chunks(RECORD).map_while(decode).collect();
        let records = bytes.chunks(RECORD).map_while(decode).count() as u64;
        Ok(MiniStore {
            dir: dir.to_path_buf(),
            bug,
            parent: File::open(dir.join("parent"))?,
            data: rw("data", 0)?,
            direct: rw("data", libc::O_DIRECT)?,
            map: rw(&map_name, 0)?,
            map_end: records * RECORD as u64,
            generation,
            places,
            fresh: BTreeMap::new(),
            late_punches: Vec::new(),
        })
    }

    /// The whole volume.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.parent.metadata()?.len() as usize];
        self.parent.read_exact_at(&mut bytes, 0)?;
        for (&block, place) in &self.places {
            let at = block as usize * BLOCK as usize;
            let piece = &mut bytes[at..at + BLOCK as usize];
            match place {
                Place::Data => self.data.read_exact_at(piece, u64::from(block) * BLOCK)?,
                Place::Zero => piece.fill(0),
            }
        }
        Ok(bytes)
    }

    /// Writes a block.
    pub fn write(&mut self, block: u32, bytes: &[u8]) -> io::Result<()> {
        let bytes = Aligned::new(bytes);
        let direct = self.bug == Bug::DirectUnsynced || block % 4 == 3;
        let file = if direct { &self.direct } else { &self.data };
        file.write_all_at(bytes.get(), u64::from(block) * BLOCK)?;
        self.set(block, Place::Data)
    }

    /// Makes a block read as zeros.
    pub fn discard(&mut self, block: u32) -> io::Result<()> {
        if self.bug == Bug::DelayedPunch {
            self.late_punches.push(block);
        } else {
            self.punch(block)?;
        }
        self.set(block, Place::Zero)
    }

    /// Reads an absent block of the parent, to be handed to [`MiniStore::deepen`].
    pub fn fetch(&self, block: u32) -> io::Result<Option<Vec<u8>>> {
        if self.places.contains_key(&block) {
            return Ok(None);
        }
        let mut bytes = vec![0; BLOCK as usize];
        self.parent.read_exact_at(&mut bytes, u64::from(block) * BLOCK)?;
        Ok(Some(bytes))
    }

    /// Puts the parent's bytes into a block if it is still absent.
    pub fn deepen(&mut self, block: u32, bytes: &[u8]) -> io::Result<()> {
        if self.places.contains_key(&block) && self.bug != Bug::DeepenOverwrites {
            return Ok(());
        }
        self.data.write_all_at(bytes, u64::from(block) * BLOCK)?;
        self.set(block, Place::Data)
    }

    /// Makes everything durable; every so often by a checkpoint.
    pub fn sync(&mut self, checkpoint: bool) -> io::Result<()> {
        if !matches!(self.bug, Bug::BitBeforeData | Bug::DirectUnsynced) {
            self.data.sync_data()?;
        }
        if checkpoint {
            self.checkpoint()?;
        } else {
            if self.bug != Bug::BitDirtiedEarly {
                self.append()?;
            }
            self.map.sync_data()?;
        }
        self.fresh.clear();
        if self.bug == Bug::BitBeforeData {
            self.data.sync_data()?;
        }
        Ok(())
    }

    /// Punches what is still to be punched.
    pub fn settle(&mut self) -> io::Result<()> {
        std::mem::take(&mut self.late_punches).into_iter().try_for_each(|block| self.punch(block))
    }

    fn set(&mut self, block: u32, place: Place) -> io::Result<()> {
        if self.places.insert(block, place) != Some(place) {
            self.fresh.insert(block, place);
            if self.bug == Bug::BitDirtiedEarly {
                self.append()?;
            }
        }
        Ok(())
    }

    fn punch(&self, block: u32) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let offset = i64::from(block) * BLOCK as i64;
        // SAFETY: the descriptor is open during the call.
        let done = unsafe { libc::fallocate(self.data.as_raw_fd(), mode, offset, BLOCK as i64) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Appends the records of fresh blocks to the map.
    fn append(&mut self) -> io::Result<()> {
        let records: Vec<u8> = self.fresh.iter().flat_map(|(&block, &place)| encode(block, place)).collect();
        self.map.write_all_at(&records, self.map_end)?;
        self.map_end += records.len() as u64;
        if self.bug == Bug::BitDirtiedEarly {
            self.fresh.clear();
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> io::Result<()> {
        let mut records: Vec<u8> = self.places.iter().flat_map(|(&block, &place)| encode(block, place)).collect();
        let end = records.len() as u64;
        records.resize(MAP_SIZE, 0);
        let old = self.dir.join(format!("map.{}", self.generation));
        self.generation += 1;
        let new = self.dir.join(format!("map.{}", self.generation));
        let temp = self.dir.join("temp");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&temp)?;
        file.write_all_at(&records, 0)?;
        if self.bug != Bug::NoTempSync {
            file.sync_all()?;
        }
        std::fs::rename(&temp, &new)?;
        if self.bug != Bug::NoDirSync {
            File::open(&self.dir)?.sync_all()?;
        }
        std::fs::remove_file(old)?;
        (self.map, self.map_end) = (file, end);
        Ok(())
    }
}

/// The bytes of a block as volume 1 writes it in `version`.
pub fn block_bytes(block: u32, version: u64) -> Vec<u8> {
    stamped(1, u64::from(block) * SECTORS, SECTORS, version)
}
