//! What one call has already copied and made, so that hard links stay hard links and nothing is done twice.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::names;
use crate::stat::Stat;

/// The files that one call has come across.
#[derive(Default)]
pub struct Seen {
    /// Where a source file went, and directories that were made, by device and inode.
    copies: HashMap<(u64, u64), PathBuf>,
    /// Operands copied so far; kept only if there are several.
    operands: Option<HashMap<(u64, u64), Vec<PathBuf>>>,
    /// What was made for operands.
    made: HashSet<(PathBuf, u64, u64)>,
}

impl Seen {
    /// For a call with `count` sources.
    pub fn new(count: usize) -> Seen {
        Seen { operands: (count > 1).then(HashMap::new), ..Seen::default() }
    }

    /// Notes that the file of `stat` goes to `destination`, and gives the place it went to before, if it did.
    pub fn copied(&mut self, stat: &Stat, destination: &Path) -> Option<PathBuf> {
        if let Some(earlier) = self.copies.get(&stat.id()) {
            return Some(earlier.clone());
        }
        self.copies.insert(stat.id(), destination.to_path_buf());
        None
    }

    /// Where the file of `stat` went.
    pub fn copy_of(&self, stat: &Stat) -> Option<PathBuf> {
        self.copies.get(&stat.id()).cloned()
    }

    /// The copy of this file came to nothing.
    pub fn forget(&mut self, stat: &Stat) {
        self.copies.remove(&stat.id());
    }

    /// Notes an operand; was it there before, under the same name?
    pub fn operand_again(&mut self, name: &Path, stat: &Stat) -> bool {
        let Some(operands) = &mut self.operands else { return false };
        let names = operands.entry(stat.id()).or_default();
        let again = names.iter().any(|earlier| names::same(earlier, name));
        if !again {
            names.push(name.to_path_buf());
        }
        again
    }

    /// Notes what was made for an operand.
    pub fn made(&mut self, name: &Path) {
        if self.operands.is_some()
            && let Ok(stat) = Stat::of_link(name)
        {
            self.made.insert((name.to_path_buf(), stat.dev, stat.ino));
        }
    }

    /// This destination was made for an earlier operand.
    pub fn just_made(&self, name: &Path, stat: &Stat) -> bool {
        self.made.contains(&(name.to_path_buf(), stat.dev, stat.ino))
    }
}
