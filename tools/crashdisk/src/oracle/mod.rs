//! The oracle: what each file may hold after a power cut, from the marks before it.
//!
//! A workload announces each change before it makes it and says `done` when the call has returned. One thread at a time
//! changes a volume. The marks (numbers are decimal, sectors have 512 bytes, names have no spaces):
//!
//! ```text
//! create V NAME               an empty file NAME is about to be made; it is volume V from now on
//! write V FIRST COUNT VERSION sectors are about to be written, stamped with V, their number and VERSION
//! zero V FIRST COUNT          a range is about to be punched or zeroed
//! size V SECTORS              the file is about to be cut or grown
//! clone S D NAME SECTORS      D is about to become a clone of S under NAME, with that size
//! rename V NAME               V is about to be renamed, perhaps over another
//! unlink V                    V is about to be unlinked
//! done V                      the change of V that was announced last has returned
//! synced V                    an fsync of V has returned
//! dirsync / dirsynced         an fsync of the directory is about to start / has returned
//! ```
//!
//! Other marks are ignored. Promises: a sector holds what an announced change put there, and nothing older than the last
//! change that was done before the last `synced`. A clone holds what its source held when it was made: what was done
//! before it, nothing announced after it. A volume that was never synced may be missing or empty, but not wrong. A name
//! leads to what it led to at the last `dirsynced` or was renamed to since.

mod judge;

use std::collections::{BTreeMap, BTreeSet};

use crate::stamp::Content;

/// Contents and names as the marks tell them.
#[derive(Clone, Debug, Default)]
pub struct History {
    volumes: BTreeMap<u32, Volume>,
    names: BTreeMap<String, Name>,
    /// Files that are nothing but files of the filesystem below.
    plain: BTreeSet<String>,
}

/// What was announced for one volume, oldest first.
#[derive(Clone, Debug, Default)]
struct Volume {
    changes: Vec<Change>,
    /// Changes before this one have returned.
    done: usize,
    /// Changes before this one are durable.
    durable: usize,
    /// It was synced once, so it exists.
    synced: bool,
    /// Where it is being cloned from, until that is done.
    source: Option<u32>,
    /// Sectors that it was made with, and the number of changes that it was made with: a clone has its source's.
    born: (u64, usize),
    /// Someone was about to unlink it or to rename another over it.
    doomed: bool,
    /// The name it was made under.
    first_name: String,
    /// The name it has now.
    name: String,
    /// Names whose last holder waits for `done`.
    renaming: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
struct Change {
    what: What,
    /// It happened while the clone that inherits it was made, so it may be in it or not, for ever.
    perhaps: bool,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Write { first: u64, count: u64, content: Content },
    Size { sectors: u64 },
}

impl What {
    /// What it leaves in `sector`, if it touches it. A new size leaves zeros behind the end: what is grown back reads
    /// as zeros.
    fn leaves(&self, sector: u64) -> Option<Content> {
        match *self {
            What::Write { first, count, content } => (first..first + count).contains(&sector).then_some(content),
            What::Size { sectors } => (sector >= sectors).then_some(Content::Zero),
        }
    }
}

/// Who held a name, oldest first; `None` is nobody.
#[derive(Clone, Debug)]
struct Name {
    holders: Vec<Option<u32>>,
    done: usize,
    syncing: usize,
    /// Index of the holder at the last sync; older ones must not come back.
    durable: usize,
}

impl Default for Name {
    fn default() -> Name {
        Name { holders: vec![None], done: 0, syncing: 0, durable: 0 }
    }
}

impl History {
    /// Reads marks, oldest first. A mark that does not fit those before it is an error of the workload.
    pub fn read<'a>(marks: impl IntoIterator<Item = &'a str>) -> Result<History, String> {
        let mut history = History::default();
        for mark in marks {
            let words: Vec<&str> = mark.split(' ').collect();
            history.take(&words).map_err(|why| format!("mark {mark:?}: {why}"))?;
        }
        Ok(history)
    }

    fn take(&mut self, words: &[&str]) -> Result<(), String> {
        match *words {
            ["create", v, name] => self.create(number(v)?, name, Volume::default()),
            ["write", v, first, count, version] => {
                let (volume, version) = (number(v)?, number(version)?);
                let content = Content::Stamp { volume, version };
                self.change(volume, What::Write { first: number(first)?, count: number(count)?, content })
            }
            ["zero", v, first, count] => {
                let what = What::Write { first: number(first)?, count: number(count)?, content: Content::Zero };
                self.change(number(v)?, what)
            }
            ["size", v, sectors] => self.change(number(v)?, What::Size { sectors: number(sectors)? }),
            ["clone", s, d, name, sectors] => self.clone_volume(number(s)?, number(d)?, name, number(sectors)?),
            ["rename", v, name] => {
                let v = number(v)?;
                let old = std::mem::replace(&mut self.volume(v)?.name, name.to_string());
                self.doom(name);
                self.hold(&old, v, None)?;
                self.hold(name, v, Some(v))
            }
            ["unlink", v] => {
                let v = number(v)?;
                let name = self.volume(v)?.name.clone();
                self.doom(&name);
                self.hold(&name, v, None)
            }
            ["done", v] => self.done(number(v)?),
            ["synced", v] => self.synced(number(v)?),
            ["dirsync"] => {
                self.names.values_mut().for_each(|name| name.syncing = name.done);
                Ok(())
            }
            ["dirsynced"] => {
                self.names.values_mut().for_each(|name| name.durable = name.durable.max(name.syncing));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn volume(&mut self, v: u32) -> Result<&mut Volume, String> {
        self.volumes.get_mut(&v).ok_or_else(|| format!("no volume {v}"))
    }

    fn create(&mut self, v: u32, name: &str, mut volume: Volume) -> Result<(), String> {
        volume.first_name = name.to_string();
        volume.name = name.to_string();
        if self.volumes.insert(v, volume).is_some() {
            return Err(format!("volume {v} exists"));
        }
        self.hold(name, v, Some(v))
    }

    /// `holder` is about to get `name`, by a change of `v`.
    fn hold(&mut self, name: &str, v: u32, holder: Option<u32>) -> Result<(), String> {
        self.names.entry(name.to_string()).or_default().holders.push(holder);
        self.volume(v)?.renaming.push(name.to_string());
        Ok(())
    }

    /// Who holds `name` now is about to lose it.
    fn doom(&mut self, name: &str) {
        let holder = self.names.get(name).and_then(|name| *name.holders.last()?);
        if let Some(volume) = holder.and_then(|v| self.volumes.get_mut(&v)) {
            volume.doomed = true;
        }
    }

    fn change(&mut self, v: u32, what: What) -> Result<(), String> {
        self.volume(v)?.changes.push(Change { what, perhaps: false });
        Ok(())
    }

    fn clone_volume(&mut self, s: u32, d: u32, name: &str, sectors: u64) -> Result<(), String> {
        let source = self.volume(s)?;
        let clone = Volume {
            done: source.done,
            // What the source may still lose, the clone may have lost too, until it is synced itself.
            durable: source.durable,
            source: Some(s),
            born: (sectors, 0),
            ..Volume::default()
        };
        self.create(d, name, clone)
    }

    /// The changes of a volume; while it is being cloned, all that was announced for its source by now.
    fn changes(&self, volume: &Volume) -> Vec<Change> {
        let Some(source) = volume.source.and_then(|s| self.volumes.get(&s)) else { return volume.changes.clone() };
        let mut changes = source.changes.clone();
        changes.iter_mut().skip(volume.done).for_each(|change| change.perhaps = true);
        changes
    }

    fn done(&mut self, v: u32) -> Result<(), String> {
        let changes = self.changes(self.volumes.get(&v).ok_or_else(|| format!("no volume {v}"))?);
        let volume = self.volume(v)?;
        if volume.source.take().is_some() {
            volume.born.1 = changes.len();
        }
        volume.changes = changes;
        volume.done = volume.changes.len();
        for name in std::mem::take(&mut volume.renaming) {
            let name = self.names.entry(name).or_default();
            name.done = name.holders.len() - 1;
        }
        Ok(())
    }

    fn synced(&mut self, v: u32) -> Result<(), String> {
        let volume = self.volume(v)?;
        volume.durable = volume.done;
        volume.synced = true;
        // The fsync of a new file makes its name durable too; that of a renamed one promises nothing about the name.
        let name = volume.first_name.clone();
        let name = self.names.entry(name).or_default();
        let made = name.holders.iter().position(|&holder| holder == Some(v));
        name.durable = name.durable.max(made.unwrap_or(0));
        Ok(())
    }

    /// Says which files are nothing but files of the filesystem below. Their growth may be half done: xfs zeroes the rest
    /// of the old last block first, and may be cut off when the file ends there.
    pub fn set_plain(&mut self, names: BTreeSet<String>) {
        self.plain = names;
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number"))
}

#[cfg(test)]
mod tests;
