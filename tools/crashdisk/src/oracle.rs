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

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use crate::stamp::{Content, SECTOR, read_stamp};

/// Contents and names as the marks tell them.
#[derive(Clone, Debug, Default)]
pub struct History {
    volumes: BTreeMap<u32, Volume>,
    names: BTreeMap<String, Name>,
    /// Files that are nothing but files of the filesystem below.
    plain: BTreeSet<String>,
}

/// The most that filesystems map as one.
const BLOCK: u64 = 4096;

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

    /// Names that were ever used.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// Judges what `name` leads to: `bytes` of a file, or `None` for no file. Gives the volumes that it can be.
    pub fn check_name(&self, name: &str, bytes: Option<&[u8]>) -> Result<Vec<u32>, String> {
        let known = self.names.get(name).ok_or_else(|| format!("{name}: nobody made this file"))?;
        let holders = &known.holders[known.durable..];
        let Some(bytes) = bytes else {
            return if holders.contains(&None) { Ok(Vec::new()) } else { Err(format!("{name}: missing")) };
        };
        let (mut fits, mut complaint) = (Vec::new(), "nothing may have this name".to_string());
        for v in holders.iter().flatten() {
            match self.check_volume(*v, bytes, self.plain.contains(name)) {
                Ok(()) => fits.push(*v),
                Err(why) => complaint = why,
            }
        }
        if fits.is_empty() { Err(format!("{name}: {complaint}")) } else { Ok(fits) }
    }

    /// Judges `bytes` as the contents of volume `v`, a plain file or not.
    fn check_volume(&self, v: u32, bytes: &[u8], plain: bool) -> Result<(), String> {
        let volume = self.volumes.get(&v).ok_or_else(|| format!("no volume {v}"))?;
        let changes = self.changes(volume);
        let (sectors, own) = volume.born;
        let durable = volume.durable.saturating_sub(own);
        let sizes = allowed(&changes[own..], durable, sectors, |what| match *what {
            // Its source's sizes are not its own: it is made with the right one.
            What::Size { sectors } if volume.source.is_none() => Some(sectors),
            _ => None,
        });
        let size = bytes.len() as u64;
        let empty = size == 0 && !volume.synced;
        let sizes: Vec<u64> = sizes.iter().map(|sectors| sectors * SECTOR as u64).collect();
        let growing = |old: &u64| old.next_multiple_of(BLOCK) == size && sizes.iter().any(|new| *new > size);
        let known = sizes.contains(&size) || plain && sizes.iter().any(growing);
        if !empty && !known {
            return Err(format!("volume {v} has {size} bytes, but may have {sizes:?}"));
        }
        for (sector, bytes) in (0..).zip(bytes.chunks(SECTOR)) {
            let found = read_stamp(bytes, sector);
            let contents = allowed(&changes, volume.durable, Content::Zero, |what| what.leaves(sector));
            if !contents.contains(&found) {
                let may: Vec<String> = contents.iter().map(|c| c.to_string()).collect();
                let may = may.join(" or ");
                return Err(format!("volume {v}, sector {sector}: {found}, but may hold {may}"));
            }
        }
        Ok(())
    }

    /// Judges all files of a directory, hidden ones and directories left out: those that must be there are, none is
    /// wrong, none is strange, and no volume is there under two names.
    pub fn check_dir(&self, dir: &Path) -> Result<(), String> {
        let found = read_files(dir).map_err(|(name, error)| format!("read {}: {error}", name.display()))?;
        self.check_files(&found)
    }

    /// The same of files that were read in another way, by name.
    pub fn check_files(&self, found: &BTreeMap<String, Vec<u8>>) -> Result<(), String> {
        let mut places: BTreeMap<u32, &str> = BTreeMap::new();
        let mut seen = Vec::new();
        for name in self.names().chain(found.keys().map(String::as_str).filter(|n| !self.names.contains_key(*n))) {
            let bytes = found.get(name).map(Vec::as_slice);
            let fits = self.check_name(name, bytes)?;
            seen.extend_from_slice(&fits);
            // Files without a stamp, and clones that still equal their source, can be more than one volume.
            if let ([volume], true) = (&fits[..], bytes.is_some_and(|bytes| bytes.iter().any(|&b| b != 0)))
                && let Some(other) = places.insert(*volume, name)
            {
                return Err(format!("volume {volume} is there twice: {other} and {name}"));
            }
        }
        let lost = self.volumes.iter().find(|(v, volume)| volume.synced && !volume.doomed && !seen.contains(v));
        lost.map_or(Ok(()), |(v, volume)| Err(format!("volume {v} ({}) was synced and is nowhere", volume.name)))
    }
}

/// Contents of the files in `dir` that are not hidden; with an error, the path concerned.
fn read_files(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>, (PathBuf, io::Error)> {
    let mut files = BTreeMap::new();
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |error| (path, error)
    };
    for entry in std::fs::read_dir(dir).map_err(failed(dir))? {
        let path = entry.map_err(failed(dir))?.path();
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        if !name.starts_with('.') && !path.symlink_metadata().map_err(failed(&path))?.is_dir() {
            let bytes = std::fs::read(&path).map_err(failed(&path))?;
            files.insert(name, bytes);
        }
    }
    Ok(files)
}

/// Everything that may be seen of a list of changes of which those before `durable` have happened and any of the others
/// may have: `first` is what was there before them, `effect` what a change leaves.
fn allowed<T: PartialEq>(changes: &[Change], durable: usize, first: T, effect: impl Fn(&What) -> Option<T>) -> Vec<T> {
    let mut seen = Vec::new();
    for (index, change) in changes.iter().enumerate().rev() {
        if let Some(value) = effect(&change.what) {
            if !seen.contains(&value) {
                seen.push(value);
            }
            if index < durable && !change.perhaps {
                return seen;
            }
        }
    }
    seen.push(first);
    seen
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stamp::stamped;

    fn history(marks: &str) -> History {
        History::read(marks.lines()).unwrap()
    }

    /// A file of 16 sectors: `(first, count, volume, version)` each, zeros between.
    fn file(parts: &[(u64, u64, u32, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; 16 * SECTOR];
        for &(first, count, volume, version) in parts {
            let at = first as usize * SECTOR;
            bytes[at..at + count as usize * SECTOR].copy_from_slice(&stamped(volume, first, count, version));
        }
        bytes
    }

    const BASE: &str = "create 1 a\ndone 1\nsize 1 16\ndone 1\nwrite 1 0 16 1\ndone 1\nsynced 1\n";

    #[test]
    fn what_was_synced_is_the_oldest_that_may_be_seen() {
        let history = history(&format!("{BASE}write 1 0 8 2\ndone 1\nsynced 1\nwrite 1 0 8 3\ndone 1\nwrite 1 4 1 4"));
        let good = |parts: &[_]| history.check_name("a", Some(&file(parts)));
        assert_eq!(good(&[(0, 8, 1, 2), (8, 8, 1, 1)]), Ok(vec![1]));
        assert_eq!(good(&[(0, 8, 1, 3), (8, 8, 1, 1)]), Ok(vec![1]));
        assert_eq!(good(&[(0, 4, 1, 2), (4, 1, 1, 4), (5, 3, 1, 3), (8, 8, 1, 1)]), Ok(vec![1]));
        let old = good(&[(0, 8, 1, 2), (0, 1, 1, 1), (8, 8, 1, 1)]).unwrap_err();
        assert!(old.contains("sector 0: version 1 of volume 1, but may hold version 3"), "{old}");
        assert!(good(&[(0, 8, 1, 2), (8, 7, 1, 1)]).is_err(), "zeros for data");
        assert!(good(&[(0, 8, 1, 2), (8, 8, 2, 1)]).is_err(), "another volume's bytes");
        assert!(good(&[(0, 8, 1, 5), (8, 8, 1, 1)]).is_err(), "a version that was never written");
        assert!(history.check_name("a", None).is_err(), "synced, so it exists");
        assert!(history.check_name("a", Some(&[])).is_err(), "synced, so it has its size");
        assert!(history.check_name("b", Some(&[])).is_err(), "nobody made it");
    }

    #[test]
    fn growth_of_a_plain_file_alone_may_be_half_done() {
        let mut history = history("create 1 a\ndone 1\nsize 1 12\ndone 1\nsynced 1\nsize 1 40\ndone 1");
        let fits =
            |history: &History, sectors: usize| history.check_name("a", Some(&vec![0; sectors * SECTOR])).is_ok();
        assert!(
            fits(&history, 12) && fits(&history, 40) && !fits(&history, 16),
            "a volume of layers has its size in a map"
        );
        history.set_plain(BTreeSet::from(["a".to_owned()]));
        assert!(fits(&history, 12) && fits(&history, 16) && fits(&history, 40));
        assert!(!fits(&history, 8) && !fits(&history, 24) && !fits(&history, 48));
    }

    #[test]
    fn what_was_never_synced_may_be_missing_or_empty_but_not_wrong() {
        let history = history("create 1 a\ndone 1\nsize 1 16\ndone 1\nwrite 1 0 16 1\ndone 1");
        for fine in [None, Some(vec![]), Some(file(&[])), Some(file(&[(3, 5, 1, 1)]))] {
            assert!(history.check_name("a", fine.as_deref()).is_ok());
        }
        assert!(history.check_name("a", Some(&[0; 512])).is_err(), "a size that it never had");
        assert!(history.check_name("a", Some(&[1; 16 * 512])).is_err(), "garbage");
    }

    #[test]
    fn what_was_cut_off_reads_as_zeros_when_it_grows_back() {
        let history = history(&format!("{BASE}size 1 8\ndone 1\nsize 1 16\ndone 1\nsynced 1"));
        assert!(history.check_name("a", Some(&file(&[(0, 8, 1, 1)]))).is_ok());
        let stale = history.check_name("a", Some(&file(&[(0, 9, 1, 1)]))).unwrap_err();
        assert!(stale.contains("sector 8: version 1 of volume 1, but may hold zeros"), "{stale}");
        assert!(history.check_name("a", Some(&file(&[(0, 8, 1, 1)])[..8 * SECTOR])).is_err(), "it was grown again");
    }

    #[test]
    fn a_clone_holds_what_its_source_held_then() {
        let marks = format!(
            "{BASE}write 1 0 4 2\ndone 1\nclone 1 2 b 16\nwrite 1 4 4 3\ndone 1\ndone 2\nwrite 1 8 4 4\ndone 1\nsynced 1\n"
        );
        let check = |marks: &str, parts: &[_]| history(marks).check_name("b", Some(&file(parts))).map(|_| ());
        let base = (0, 16, 1, 1);
        assert!(check(&marks, &[base]).is_ok(), "not synced: it may have lost what its source had not synced");
        assert!(check(&marks, &[base, (0, 4, 1, 2), (4, 4, 1, 3)]).is_ok(), "written during the clone");
        assert!(check(&marks, &[base, (8, 4, 1, 4)]).is_err(), "written after the clone");
        let synced = format!("{marks}synced 2");
        assert!(check(&synced, &[base]).is_err(), "done before the clone");
        assert!(check(&synced, &[base, (0, 4, 1, 2)]).is_ok());
        let changed = format!("{marks}write 2 4 2 5\ndone 2\nsynced 2\nsize 2 12\n");
        assert!(check(&changed, &[base, (0, 4, 1, 2), (4, 2, 2, 5)]).is_ok());
        assert!(check(&changed, &[base, (0, 4, 1, 2), (4, 4, 1, 3), (4, 2, 2, 5)]).is_ok());
        assert!(check(&changed, &[base, (0, 4, 1, 2), (4, 4, 1, 3)]).is_err(), "its own write is lost");
        let all = [base, (0, 4, 1, 2), (4, 4, 1, 3), (8, 4, 1, 4)];
        assert!(history(&changed).check_name("a", Some(&file(&all))).is_ok());
        let source = history(&changed).check_name("a", Some(&file(&[&all[..], &[(4, 2, 2, 5)]].concat()))).unwrap_err();
        assert!(source.contains("version 5 of volume 2"), "the source sees the clone's write: {source}");
    }

    #[test]
    fn a_larger_clone_has_its_size_and_zeros() {
        let marks = "create 1 a\ndone 1\nsize 1 8\ndone 1\nwrite 1 0 8 1\ndone 1\nsynced 1\nclone 1 2 b 16\ndone 2\n";
        let history = history(marks);
        assert!(history.check_name("b", Some(&file(&[(0, 8, 1, 1)]))).is_ok());
        assert!(history.check_name("b", Some(&file(&[(0, 8, 1, 1)])[..8 * SECTOR])).is_err());
    }

    #[test]
    fn names_lead_where_they_led_or_where_they_were_changed_to() {
        let both = format!("{BASE}create 2 b\ndone 2\nsize 2 16\ndone 2\nwrite 2 0 16 9\ndone 2\nsynced 2\n");
        let (one, two) = (file(&[(0, 16, 1, 1)]), file(&[(0, 16, 2, 9)]));
        let before = history(&format!("{both}dirsync\ndirsynced\nrename 2 a\ndone 2\n"));
        assert_eq!(before.check_name("a", Some(&one)), Ok(vec![1]));
        assert_eq!(before.check_name("a", Some(&two)), Ok(vec![2]));
        assert!(before.check_name("a", None).is_err());
        assert!(before.check_name("b", None).is_ok() && before.check_name("b", Some(&two)).is_ok());
        let after = history(&format!("{both}rename 2 a\ndone 2\ndirsync\ndirsynced\n"));
        assert!(after.check_name("a", Some(&one)).is_err(), "renamed over, and the directory was synced");
        assert!(after.check_name("b", Some(&two)).is_err());
        let late = history(&format!("{both}dirsync\nunlink 1\ndone 1\ndirsynced\n"));
        assert!(late.check_name("a", Some(&one)).is_ok() && late.check_name("a", None).is_ok());
    }

    #[test]
    fn a_directory_is_judged_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        let history = history(&format!("{BASE}rename 1 c\ndone 1\n"));
        let lost = history.check_dir(dir.path()).unwrap_err();
        assert!(lost.contains("volume 1 (c) was synced and is nowhere"), "{lost}");
        put("c", &file(&[(0, 16, 1, 1)]));
        put(".hidden", b"x");
        assert_eq!(history.check_dir(dir.path()), Ok(()));
        put("a", &file(&[(0, 16, 1, 1)]));
        assert!(history.check_dir(dir.path()).unwrap_err().contains("twice"));
        std::fs::remove_file(dir.path().join("a")).unwrap();
        put("stranger", b"");
        assert!(history.check_dir(dir.path()).unwrap_err().contains("stranger: nobody made this file"));
    }

    #[test]
    fn marks_that_make_no_sense_are_refused() {
        for bad in ["write 1 0 1 1", "create x a", "create 1 a\ncreate 1 b", "done 7", "clone 1 2 b 8"] {
            assert!(History::read(bad.lines()).is_err(), "{bad}");
        }
        assert!(History::read(["my own mark", "writes are fun"]).is_ok());
    }
}
