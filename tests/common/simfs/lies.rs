//! What a disk that lies leaves undone. Some lies stand for a step that the code above would have forgotten: what it
//! would be without that step is then seen.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use clonefs::engine::io::FileKey;

use super::image::{BLOCK, ROOT};
use super::{Lie, State};

/// What the log of unsynced changes says of files whose blocks were itemised for an adoption.
#[derive(Default)]
pub struct Growth {
    /// Number of the first record of the log, and where it is.
    first: (u64, u64),
    /// By file: how many blocks it had then, and the fewest that it has had since.
    files: HashMap<u64, (u64, u64)>,
}

/// An adoption that is going on, as the disk can tell: from the record that gives a layer away to the next one.
#[derive(Default)]
pub struct Adoption {
    /// The journal was not synced since that record.
    marking: bool,
    /// Layer files that were written to meanwhile, by name.
    taken: BTreeSet<String>,
}

/// In the record of a layer that is given to its heir.
const GIVEN: &[u8] = b"\"given\":true";

impl State {
    /// A file is written to.
    pub(super) fn notice(&mut self, ino: u64, data: &[u8]) {
        let label = self.label(ino).to_owned();
        if label == "journal" {
            let given = data.windows(GIVEN.len()).any(|bytes| bytes == GIVEN);
            self.adoption = given.then(|| Adoption { marking: true, ..Adoption::default() });
        } else if let (Some(adoption), Some(layer)) = (&mut self.adoption, label.strip_suffix(".data")) {
            adoption.taken.insert(layer.to_owned());
        }
    }

    /// What is written to a file instead of what should be.
    pub(super) fn forge<'a>(&mut self, ino: u64, data: &'a [u8], offset: u64) -> Cow<'a, [u8]> {
        if self.options.lie != Lie::UnnotedGrowth || self.label(ino) != "unsynced" || data.len() != 32 {
            return data.into();
        }
        let number = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().expect("eight bytes"));
        if offset == 0 {
            self.growth.first = (number(8), number(16));
            return data.into();
        }
        let (kind, file, a, b) = (data[4], number(8), number(16), number(24));
        let adopting = self.adoption.is_some();
        match (kind, self.growth.files.get_mut(&file)) {
            (1, None) if adopting && a == 0 => drop(self.growth.files.insert(file, (b, b))),
            (3, Some((_, least))) => *least = (*least).min(a.div_ceil(BLOCK)),
            (1, Some((had, least))) if b <= *had && b > *least => {
                let mut nothing = data.to_vec();
                nothing[16..].fill(0);
                let (first, begin) = self.growth.first;
                let place = format!("boot-{} {:?}", self.now.boot, FileKey { dev: 7, ino: ROOT });
                let number = first + (offset - begin) / 32;
                let crc = crc32c::crc32c_append(crc32c::crc32c(place.as_bytes()), &number.to_le_bytes());
                let crc = crc32c::crc32c_append(crc, &nothing[4..]);
                nothing[..4].copy_from_slice(&crc.to_le_bytes());
                return nothing.into();
            }
            _ => {}
        }
        data.into()
    }

    /// Whether a sync of a file is left out.
    pub(super) fn leaves_out_sync(&mut self, ino: u64) -> bool {
        let label = self.label(ino).to_owned();
        let lie = self.options.lie;
        match lie {
            Lie::NoFileSync => true,
            Lie::NoDataSync => label.ends_with(".data"),
            Lie::NoMapSync => label.ends_with(".map"),
            Lie::NoJournalSync => label == "journal" || label.len() == 16,
            Lie::NoTemporarySync => label.len() == 16 && !label.contains('.'),
            Lie::UnmarkedAdoption | Lie::UnsyncedHeir | Lie::UnsyncedAdoption => {
                self.adoption.as_mut().is_some_and(|adoption| adoption.leaves_out(lie, &label))
            }
            _ => false,
        }
    }
}

impl Adoption {
    fn leaves_out(&mut self, lie: Lie, label: &str) -> bool {
        if label == "journal" {
            return std::mem::take(&mut self.marking) && lie == Lie::UnmarkedAdoption;
        }
        let Some(layer) = label.strip_suffix(".data").or_else(|| label.strip_suffix(".map")) else { return false };
        let taken = self.taken.contains(layer);
        lie == Lie::UnsyncedHeir && !taken || lie == Lie::UnsyncedAdoption && taken
    }
}
