//! In which order the names of a directory are listed, and at which positions.
//!
//! A position follows from the name alone. So it is valid in every open of the directory, after the daemon was started
//! again, and whatever else is made, removed or renamed there, also by background work, which puts other files under the
//! same names: who reads on at a position gets each name that stays once. The backing filesystem's own positions would not
//! do: btrfs gives a name another one whenever the file under it is replaced.
//!
//! Names come in the order of a checksum of them. A listing of any length needs no more memory than a window of that
//! order: one pass over the directory finds the next so many names from a position on.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::io::{DirEntry, FileKind};

/// Bits below the checksum in a position: they tell names apart that have the same one.
const TIE_BITS: u32 = 12;
const TIES: u64 = 1 << TIE_BITS;
/// Bits of the checksum. A position is never negative for those who take it for signed.
const SUM_BITS: u32 = 50;
/// Names in a window, at least (and up to twice as many), and the part of the directory's names that one has.
const ROOM: usize = 32 << 10;
const PART: usize = 16;

/// The first position of a name; those before it are for `.` and `..`.
pub const FIRST: u64 = TIES;

/// What takes an entry: name, inode number, and kind if it is known.
pub type Offer<'a> = dyn FnMut(&OsStr, u64, Option<FileKind>) + 'a;

/// Consecutive names of a directory.
pub struct Window {
    /// Positions, rising, and what is there.
    entries: Vec<(u64, DirEntry)>,
    /// It has all names from the first position to before the second one; `None`: to the end.
    from: u64,
    to: Option<u64>,
    /// Names in the whole directory.
    total: usize,
    taken: Instant,
    /// How long it took to find them.
    took: Duration,
}

impl Window {
    /// The names from `from` on among those that `visit` gives to its argument, as many as there is room for. `room` is for
    /// a directory of which nothing is known.
    pub fn read<E>(from: u64, total: usize, visit: impl FnOnce(&mut Offer<'_>) -> Result<(), E>) -> Result<Window, E> {
        let taken = Instant::now();
        let mut choice = Choice::new(from, ROOM.max(total / PART));
        visit(&mut |name, ino, kind| choice.offer(checksum(name), name, ino, kind))?;
        let (entries, to, total) = choice.end();
        Ok(Window { entries, from, to, total, taken, took: taken.elapsed() })
    }

    /// Whether it tells what is at a position.
    pub fn covers(&self, at: u64) -> bool {
        at >= self.from && self.to.is_none_or(|to| at < to)
    }

    /// What is listed from a position on, each with its position.
    pub fn entries_from(&self, at: u64) -> &[(u64, DirEntry)] {
        &self.entries[self.entries.partition_point(|(position, _)| *position < at)..]
    }

    /// Where the next window begins; `None`: it is the last one.
    pub fn end(&self) -> Option<u64> {
        self.to
    }

    /// Names in the whole directory.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Whether it may be shown to others than those who had it read: for ten times as long as it took to read it, so
    /// that who opens a directory anew for each piece does not read all of it each time.
    fn is_fresh(&self) -> bool {
        self.taken.elapsed() < self.took * 10
    }
}

/// The checksum that orders names: FNV-1a, mixed once more so that its upper bits depend on all of a short name. Never 0.
/// It may not change, as others remember positions.
fn checksum(name: &OsStr) -> u64 {
    let sum = name
        .as_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mixed = (sum ^ sum >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ mixed >> 29) >> (u64::BITS - SUM_BITS)).max(1)
}

/// The first names in order among those that are offered.
struct Choice {
    from: u64,
    room: usize,
    found: Vec<(u64, DirEntry)>,
    /// Those with this checksum and larger ones are left out.
    bound: Option<u64>,
    total: usize,
}

impl Choice {
    fn new(from: u64, room: usize) -> Choice {
        Choice { from: from >> TIE_BITS, room, found: Vec::new(), bound: None, total: 0 }
    }

    fn offer(&mut self, sum: u64, name: &OsStr, ino: u64, kind: Option<FileKind>) {
        self.total += 1;
        if sum < self.from || self.bound.is_some_and(|bound| sum >= bound) {
            return;
        }
        self.found.push((sum, DirEntry { name: name.to_owned(), ino, kind }));
        if self.found.len() >= 2 * self.room {
            self.cut();
        }
    }

    /// Leaves about as many as there is room for. Names with the same checksum stay together.
    fn cut(&mut self) {
        let (_, (middle, _), _) = self.found.select_nth_unstable_by_key(self.room, |(sum, _)| *sum);
        let mut bound = *middle;
        if self.found.iter().all(|(sum, _)| *sum >= bound) {
            bound += 1;
        }
        self.found.retain(|(sum, _)| *sum < bound);
        self.bound = Some(bound);
    }

    /// Names with their positions, where the ones that were left out begin, and how many were offered.
    fn end(mut self) -> (Vec<(u64, DirEntry)>, Option<u64>, usize) {
        self.found.sort_unstable_by(|one, two| (one.0, &one.1.name).cmp(&(two.0, &two.1.name)));
        let (mut last, mut tie) = (0, 0);
        for (sum, _) in &mut self.found {
            tie = if *sum == last { (tie + 1).min(TIES - 1) } else { 0 };
            last = *sum;
            *sum = last << TIE_BITS | tie;
        }
        (self.found, self.bound.map(|bound| bound << TIE_BITS), self.total)
    }
}

/// Which directory: its node, and the generation of that.
pub type Directory = (u64, u64);

/// Windows that were read a moment ago, for those who open a directory anew for each piece that they read, as servers do.
#[derive(Default)]
pub struct Recent(VecDeque<(Directory, Arc<Window>)>);

impl Recent {
    /// Names that are kept in all.
    const MOST: usize = 1 << 18;
    /// What is read faster is not worth it.
    const LEAST: Duration = Duration::from_millis(1);

    /// One that has this position.
    pub fn find(&mut self, directory: Directory, at: u64) -> Option<Arc<Window>> {
        self.0.retain(|(_, window)| window.is_fresh());
        let found = self.0.iter().rev().find(|(of, window)| *of == directory && window.covers(at));
        found.map(|(_, window)| window.clone())
    }

    /// Adds one.
    pub fn keep(&mut self, directory: Directory, window: &Arc<Window>) {
        self.0.retain(|(_, window)| window.is_fresh());
        if window.took >= Self::LEAST {
            self.0.push_back((directory, window.clone()));
        }
        let mut names: usize = self.0.iter().map(|(_, window)| window.entries.len()).sum();
        while names > Self::MOST
            && let Some((_, oldest)) = self.0.pop_front()
        {
            names -= oldest.entries.len();
        }
    }
}

#[cfg(test)]
#[path = "listing_tests.rs"]
mod tests;
