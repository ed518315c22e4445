//! Which states a power cut can leave: the model of the disk.
//!
//! A disk with a volatile cache that honours flushes: at a cut after K records, all before the last flush among them is
//! on the medium. Of what came later each write may be there, not be there, or be there in some of its sectors, whatever
//! became of the others.

use std::fmt;
use std::str::FromStr;

use clonefs::error::{Error, Kind};
use fastrand::Rng;

use crate::image::Image;
use crate::log::{Log, Record};

/// What becomes of the writes since the last flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All are on the medium.
    All,
    /// None is.
    None,
    /// Each one is or is not.
    Subset,
    /// Each sector of each one is or is not.
    Torn,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::All => "all",
            Mode::None => "none",
            Mode::Subset => "subset",
            Mode::Torn => "torn",
        })
    }
}

/// Which modes a replay uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modes {
    /// This one for every state.
    Only(Mode),
    /// One of the four at random for each state, subsets and torn writes more often.
    Mixed,
}

impl FromStr for Modes {
    type Err = String;
    fn from_str(text: &str) -> Result<Modes, String> {
        Ok(match text {
            "all" => Modes::Only(Mode::All),
            "none" => Modes::Only(Mode::None),
            "subset" => Modes::Only(Mode::Subset),
            "torn" => Modes::Only(Mode::Torn),
            "mixed" => Modes::Mixed,
            _ => return Err(format!("{text:?} is not a mode: all, none, subset, torn or mixed")),
        })
    }
}

impl fmt::Display for Modes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Modes::Only(mode) => mode.fmt(f),
            Modes::Mixed => f.write_str("mixed"),
        }
    }
}

/// One power cut: fully determined by the log, the seed, the number and the modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Number among the states of its seed.
    pub id: u32,
    /// It happens after this many records of the log.
    pub point: usize,
    /// What becomes of unflushed writes.
    pub mode: Mode,
    /// Seed of the choice of writes and sectors.
    pub seed: u64,
}

impl Cut {
    /// The `id`th cut of `seed` among records `start..=end`, which must not be an empty range.
    ///
    /// Two in five lie just before a flush, where most is in flight; one in five just behind a mark, where a promise is
    /// youngest; the others anywhere.
    pub fn draw(records: &[Record], (start, end): (usize, usize), seed: u64, id: u32, modes: Modes) -> Cut {
        let mut rng = Rng::with_seed(mix(seed, u64::from(id)));
        let anywhere = rng.usize(start..=end);
        // Looks for the nearest record of the wanted sort, from a random place on.
        let near = |wanted: fn(&Record) -> bool, behind: usize| {
            let order = (anywhere..end).chain(start..anywhere);
            order.into_iter().find(|&n| records.get(n).is_some_and(wanted)).map_or(anywhere, |n| n + behind)
        };
        let point = match rng.u8(..5) {
            0 | 1 => near(|r| matches!(r, Record::Flush), 0),
            2 => near(|r| matches!(r, Record::Mark(_)), 1),
            _ => anywhere,
        };
        let mixed = [Mode::All, Mode::None, Mode::Subset, Mode::Subset, Mode::Subset, Mode::Torn, Mode::Torn];
        let drawn = mixed[rng.usize(..mixed.len())];
        let mode = if let Modes::Only(mode) = modes { mode } else { drawn };
        Cut { id, point, mode, seed: rng.u64(..) }
    }

    /// Index behind the last flush before the cut: all records before it are on the medium.
    pub fn durable(&self, records: &[Record]) -> usize {
        records[..self.point].iter().rposition(|r| matches!(r, Record::Flush)).map_or(0, |n| n + 1)
    }

    /// Changes `image`, which holds the durable records, to what the medium holds after the cut.
    pub fn finish(&self, records: &[Record], sector: u64, image: &mut Image) {
        let mut rng = Rng::with_seed(self.seed);
        // Few lost and few kept are both worth seeing: the share differs from state to state.
        let kept = 0.05 + 0.9 * rng.f64();
        for record in &records[self.durable(records)..self.point] {
            match self.mode {
                Mode::None => return,
                Mode::All => record.apply(image),
                Mode::Subset if record.range().is_some() && rng.f64() < kept => record.apply(image),
                Mode::Subset => {}
                Mode::Torn => tear(record, sector, kept, &mut rng, image),
            }
        }
    }
}

/// The superblock of ext4: two sectors with one checksum, which it writes at once and does not mount without.
const SUPERBLOCK: std::ops::Range<u64> = 1024..2048;

/// Applies each sector of a record or not; one record in two stays whole.
fn tear(record: &Record, sector: u64, kept: f64, rng: &mut Rng, image: &mut Image) {
    let Some((offset, len)) = record.range() else { return };
    if rng.bool() {
        if rng.f64() < kept {
            record.apply(image);
        }
        return;
    }
    let mut at = offset;
    while at < offset + len {
        let end = (at / sector + 1) * sector;
        let next = if SUPERBLOCK.contains(&at) { end.max(SUPERBLOCK.end) } else { end };
        let piece = next.min(offset + len) - at;
        if rng.f64() < kept {
            match record {
                Record::Write { data, .. } => {
                    let from = (at - offset) as usize;
                    image.write(at, &data[from..from + piece as usize]);
                }
                _ => image.zero(at, piece),
            }
        }
        at += piece;
    }
}

/// A seed for each number.
fn mix(seed: u64, id: u64) -> u64 {
    let mut rng = Rng::with_seed(seed);
    rng.u64(..).wrapping_add(id.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// What the disk holds after a cut; for one state. A replay of many moves one base along instead.
pub fn image_after(log: &Log, cut: &Cut, sector: u64) -> Result<Image, Error> {
    if cut.point > log.records.len() {
        return Err(Error::new(Kind::Invalid, "cut behind the end of the log"));
    }
    let mut image = Image::new(log.header.size);
    log.records[..cut.durable(&log.records)].iter().for_each(|r| r.apply(&mut image));
    cut.finish(&log.records, sector, &mut image);
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Header;

    /// Two rounds of: four writes of 8 sectors, a flush.
    fn log() -> Log {
        let header = Header { size: 1 << 20, filesystem: "none".into(), options: String::new() };
        let mut records = Vec::new();
        for round in 0..2u64 {
            for n in 0..4u64 {
                records.push(Record::write(n * 8192, &[(1 + n + 4 * round) as u8; 4096]));
            }
            records.push(Record::Flush);
        }
        Log { header, records }
    }

    fn sectors(image: &Image) -> Vec<u8> {
        let mut bytes = vec![0; 32768];
        image.read(0, &mut bytes);
        assert!(bytes.chunks(512).all(|s| s.iter().all(|&b| b == s[0])), "a sector is mixed");
        bytes.chunks(512).map(|s| s[0]).collect()
    }

    fn after(point: usize, mode: Mode, seed: u64) -> Vec<u8> {
        sectors(&image_after(&log(), &Cut { id: 0, point, mode, seed }, 512).unwrap())
    }

    #[test]
    fn what_was_flushed_is_always_there() {
        for seed in 0..50 {
            for mode in [Mode::All, Mode::None, Mode::Subset, Mode::Torn] {
                for point in 5..=10 {
                    let seen = after(point, mode, seed);
                    for n in 0..4 {
                        let both = [1 + n as u8, 5 + n as u8];
                        assert!(seen[n * 16..n * 16 + 8].iter().all(|s| both.contains(s)), "{mode} {point} {seed}");
                    }
                }
                assert!(after(10, mode, seed) == after(10, Mode::All, 0), "all is flushed at the end");
            }
        }
    }

    #[test]
    fn modes_do_what_they_say() {
        assert_eq!(after(9, Mode::None, 1), after(5, Mode::All, 1));
        assert_eq!(after(9, Mode::All, 1), after(10, Mode::All, 1));
        let whole = |seen: &[u8]| (0..4).all(|n| seen[n * 16..n * 16 + 8].iter().all(|&s| s == seen[n * 16]));
        let subsets: std::collections::HashSet<_> = (0..200).map(|seed| after(9, Mode::Subset, seed)).collect();
        assert!(subsets.len() == 16 && subsets.iter().all(|s| whole(s)), "{} subsets", subsets.len());
        assert!((0..50).filter(|&seed| !whole(&after(9, Mode::Torn, seed))).count() > 25);
    }

    #[test]
    fn the_superblock_is_never_torn() {
        let (log, mut cut_off) = (log(), false);
        for seed in 0..200 {
            let cut = Cut { id: 0, point: 9, mode: Mode::Torn, seed };
            let seen = sectors(&image_after(&log, &cut, 512).unwrap());
            assert_eq!(seen[2], seen[3], "seed {seed}");
            cut_off |= seen[1] != seen[2] || seen[3] != seen[4];
        }
        assert!(cut_off, "its neighbours are torn off");
    }

    #[test]
    fn the_same_seed_gives_the_same_states() {
        let log = log();
        let draw = |seed, id| Cut::draw(&log.records, (0, 10), seed, id, Modes::Mixed);
        assert!((0..100).all(|id| draw(7, id) == draw(7, id)));
        assert!((0..100).any(|id| draw(7, id) != draw(8, id)));
        let points: std::collections::HashSet<_> = (0..500).map(|id| draw(7, id).point).collect();
        assert_eq!(points.len(), 11, "every point is reached");
    }
}
