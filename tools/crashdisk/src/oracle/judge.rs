//! What was found after a power cut, judged by the marks before it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::{Change, History, What};
use crate::stamp::{Content, SECTOR, read_stamp};

/// The most that filesystems map as one.
const BLOCK: u64 = 4096;

impl History {
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
