//! What a disk that lies leaves undone. Some lies stand for a step that the code above would have forgotten: what it
//! would be without that step is then seen.

use std::collections::BTreeSet;

use super::{Lie, State};

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
