//! What can still be known of damaged metadata, and putting it in order: the store's half of `clonefs check --repair`.
//!
//! | damaged | known | not known |
//! |---|---|---|
//! | `pool.json` | all, if a stub says which pool it belongs to | |
//! | a line of the catalogue | all other records | that record |
//! | the first line of the catalogue | all records that verify | whether there were more |
//! | a record of the journal | what the others say | which volumes the missing one was about: all become doubtful |

use std::sync::Arc;

use super::catalogue::{self, Catalogue};
use super::log::{self, Flaw};
use super::record::Change;
use super::recover::{self, read};
use super::{CATALOGUE, FORMAT, Inner, JOURNAL, JOURNAL_MAGIC, PoolFile};
use crate::engine::io::Fs;
use crate::error::{Context, Kind, Result};
use crate::units::Id;

/// What was read.
#[derive(Default)]
pub struct Salvaged {
    /// Identity of the pool, if that is known; `None` also where there is no pool.
    pub pool: Option<Id>,
    /// All records that verify.
    pub catalogue: Catalogue,
    /// What could not be read. Empty: nothing is damaged.
    pub lost: Vec<String>,
    /// A change of records is missing, so that those that are there may be out of date.
    pub doubtful: bool,
    generation: u64,
}

/// Reads all that can be read. Fails if the disk does, or if the pool is of a newer version.
pub fn salvage(fs: &dyn Fs) -> Result<Salvaged> {
    let mut found = Salvaged::default();
    let mut pool_file = false;
    match recover::read_pool_file(fs) {
        Ok(file) => {
            pool_file = file.is_some();
            found.pool = file.map(|file| file.id);
        }
        Err(error) if error.kind() == Kind::Damaged => found.lost.push(error.to_string()),
        Err(error) => return Err(error),
    }
    let lines = read(fs, CATALOGUE).context("read catalogue", CATALOGUE)?;
    let journal = read(fs, JOURNAL).context("read journal", JOURNAL)?;
    // A pool that was being made when the machine stopped has no record yet; it is made again when it is needed.
    if !pool_file && found.lost.is_empty() {
        match recover::pool_file_lost(fs)? {
            None => return Ok(found),
            Some(why) => found.lost.push(why),
        }
    }
    found.read_catalogue(lines);
    found.read_journal(journal);
    Ok(found)
}

impl Salvaged {
    fn read_catalogue(&mut self, lines: Option<Vec<u8>>) {
        let Some(lines) = lines else {
            return self.lost.push(format!("{CATALOGUE}: it is missing"));
        };
        let checkpoint = catalogue::decode(&lines, FORMAT).unwrap_or_else(|why| {
            self.lost.push(format!("{CATALOGUE}: {why}"));
            catalogue::salvage(&lines)
        });
        self.lost.extend(checkpoint.damage.iter().map(|d| format!("{CATALOGUE}: {d}")));
        self.generation = checkpoint.generation;
        self.catalogue = checkpoint.catalogue;
    }

    fn read_journal(&mut self, bytes: Option<Vec<u8>>) {
        let Some(bytes) = bytes else {
            self.doubtful = true;
            return self.lost.push(format!("{JOURNAL}: it is missing"));
        };
        let own = log::salt(&bytes, JOURNAL_MAGIC);
        // Without a generation from the catalogue, the journal's own header says which one it is of; its changes are
        // whole records, so it does no harm to apply those that the catalogue has already.
        let generation = if self.generation > 0 { self.generation } else { own.unwrap_or(0) };
        self.generation = generation.max(own.map_or(0, |salt| salt + 1));
        let records = match log::scan(&bytes, JOURNAL_MAGIC, generation) {
            Ok(scan) => scan.records,
            Err(Flaw::Foreign) if own.is_some_and(|salt| salt < generation) => return,
            Err(flaw) => {
                self.lost.push(format!("{JOURNAL}: {flaw}"));
                let (records, gap) = log::salvage(&bytes, generation);
                // With a header that cannot be read nothing says how many records there were; in a journal without a
                // gap only the end can be missing, as after a crash.
                self.doubtful |= gap || records.is_empty() || own != Some(generation);
                records
            }
        };
        for record in records {
            match serde_json::from_slice::<Vec<Change>>(&bytes[record.clone()]) {
                Ok(changes) => changes.into_iter().for_each(|change| self.catalogue.apply(change)),
                Err(why) => {
                    self.doubtful = true;
                    self.lost.push(format!("{JOURNAL}: byte {}: {why}", record.start));
                }
            }
        }
    }

    /// Writes what was read as the new metadata of the pool `id`. The old files must have been kept before.
    pub fn write(self, fs: &Arc<dyn Fs>, id: Id) -> Result<()> {
        let mut inner = Inner { catalogue: self.catalogue, generation: self.generation, ..Inner::empty() };
        recover::write_checkpoint(fs.as_ref(), &mut inner)?;
        recover::write_pool_file(fs.as_ref(), &PoolFile { id, ..PoolFile::new() })
    }
}
