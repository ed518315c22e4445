//! Keeping the file that was there: `name~`, `name.~1~`.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::names;
use crate::settings::{Backup, Settings};
use crate::stat::Stat;

/// Renames `path` out of the way and says what it is called now. `None`: there was nothing.
pub fn put_aside(path: &Path, settings: &Settings) -> io::Result<Option<PathBuf>> {
    loop {
        let (name, numbered) = name_for(path, settings)?;
        let renamed = if numbered { rename_to_free(path, &name) } else { fs::rename(path, &name) };
        match renamed {
            Ok(()) => return Ok(Some(name)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            // Somebody took the number in between.
            Err(e) if numbered && e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
}

/// The name that a backup of `path` would get now, and whether it is a numbered one.
pub fn name_for(path: &Path, settings: &Settings) -> io::Result<(PathBuf, bool)> {
    let path = names::without_slashes(path);
    let highest = match settings.backup {
        Backup::Numbered => Some(highest_number(path)?.unwrap_or(0)),
        Backup::Existing => highest_number(path)?,
        Backup::Simple | Backup::None => None,
    };
    Ok(match highest {
        Some(number) => (names::with_suffix(path, OsStr::new(&format!(".~{}~", number.saturating_add(1)))), true),
        None => (names::with_suffix(path, &settings.suffix), false),
    })
}

/// Making a simple backup of `destination` would overwrite `source`.
pub fn would_destroy(source: &Path, source_stat: &Stat, destination: &Path, settings: &Settings) -> bool {
    let simple = names::with_suffix(names::without_slashes(destination), &settings.suffix);
    settings.backup != Backup::Numbered
        && names::last(source) == names::last(&simple)
        && Stat::of(&simple).is_ok_and(|stat| stat.id() == source_stat.id())
}

/// The highest number of a backup of `path`.
fn highest_number(path: &Path) -> io::Result<Option<u64>> {
    let base = names::last(path).as_bytes();
    let entries = match fs::read_dir(names::parent(path)) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut highest = None;
    for entry in entries {
        let name = entry?.file_name();
        let number = name.as_bytes().strip_prefix(base).and_then(|rest| {
            let digits = rest.strip_prefix(b".~")?.strip_suffix(b"~")?;
            let starts_well = digits.first().is_some_and(|&b| (b'1'..=b'9').contains(&b));
            if starts_well { std::str::from_utf8(digits).ok()?.parse::<u64>().ok() } else { None }
        });
        highest = highest.max(number);
    }
    Ok(highest)
}

/// Renames without replacing anything; where the filesystem cannot promise that, looks first.
fn rename_to_free(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => match fs::symlink_metadata(to) {
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => fs::rename(from, to),
        },
        Err(e) => Err(e.into()),
    }
}
