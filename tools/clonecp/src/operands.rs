//! Which of the words is the destination, and what each source is called there.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::backup;
use crate::copier::Copier;
use crate::names;
use crate::quote::shell;
use crate::report::{Done, Failed, Report, reason, say};
use crate::settings::{Backup, Operands, Settings};
use crate::stat::Stat;
use crate::usage::mistake;

/// Where everything goes.
enum Place {
    /// Into this directory.
    Into(PathBuf),
    /// One source, to this very name.
    To(PathBuf),
}

/// Copies all sources and goes on after failures.
pub fn copy_all(settings: &Settings, mut operands: Operands, report: &Report) -> Done {
    let place = place(&mut operands)?;
    let strip = |name: &OsStr| {
        let path = Path::new(name);
        if operands.strip_slashes { names::without_slashes(path).to_path_buf() } else { path.to_path_buf() }
    };
    match place {
        Place::To(name) => {
            if operands.parents {
                return Err(mistake("with --parents, the destination must be a directory"));
            }
            // Nothing is stripped here: cp does not either.
            copy_one(settings, report, Path::new(&operands.names[0]), &name)
        }
        Place::Into(directory) => {
            let mut copier = Copier::new(settings, report, operands.names.len());
            let mut result = Ok(());
            for name in &operands.names {
                result = copy_into(&mut copier, &strip(name), &directory, operands.parents).and(result);
            }
            result
        }
    }
}

/// Takes the destination off the operands and finds out what it is.
fn place(operands: &mut Operands) -> Done<Place> {
    let needed = if operands.target.is_some() { 1 } else { 2 };
    if operands.names.len() < needed {
        return Err(match operands.names.first() {
            None => mistake("missing file operand"),
            Some(first) => mistake(format_args!("missing destination file operand after {}", shell(first))),
        });
    }
    if operands.no_target_directory {
        if operands.target.is_some() {
            say("cannot combine --target-directory (-t) and --no-target-directory (-T)");
            return Err(Failed::Here);
        }
        if let Some(extra) = operands.names.get(2) {
            return Err(mistake(format_args!("extra operand {}", shell(extra))));
        }
    }
    if let Some(target) = operands.target.take() {
        let target = PathBuf::from(target);
        return match directory(&target) {
            Ok(()) => Ok(Place::Into(target)),
            Err(e) => Err(unusable("target directory", &target, &e)),
        };
    }
    let Some(last) = operands.names.pop().map(PathBuf::from) else { return Err(mistake("missing file operand")) };
    if operands.no_target_directory {
        return Ok(Place::To(last));
    }
    match directory(&last) {
        Ok(()) => Ok(Place::Into(last)),
        Err(e) if operands.names.len() > 1 => Err(unusable("target", &last, &e)),
        Err(_) => Ok(Place::To(last)),
    }
}

fn unusable(what: &str, path: &Path, error: &io::Error) -> Failed {
    say(format_args!("{what} {}: {}", shell(path), reason(error)));
    Failed::Here
}

/// It is a directory, or why it is not.
fn directory(path: &Path) -> io::Result<()> {
    if Stat::of(path)?.is_dir() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENOTDIR)) }
}

/// Copies a source to exactly this name.
fn copy_one(settings: &Settings, report: &Report, source: &Path, name: &Path) -> Done {
    // With --force and --backup a file can be copied onto itself: that makes a backup of it.
    let itself = settings.force
        && settings.backup != Backup::None
        && source == name
        && Stat::of(name).is_ok_and(|stat| stat.is_file());
    if !itself {
        return Copier::new(settings, report, 1).copy_operand(source, name, false);
    }
    let (kept, _) = backup::name_for(name, settings).map_err(|e| report.at("cannot backup", name, &e))?;
    let settings = Settings { backup: Backup::None, ..settings.clone() };
    Copier::new(&settings, report, 1).copy_operand(source, &kept, false)
}

/// Copies a source into a directory, under its own name or its whole path.
fn copy_into(copier: &mut Copier, source: &Path, target: &Path, parents: bool) -> Done {
    if parents {
        let path = names::without_slashes(source);
        let (made, free) = copier.make_parents(target, path)?;
        let result = copier.copy_operand(source, &names::join(target, path.as_os_str()), free);
        return copier.finish_parents(&made).and(result);
    }
    let name = names::last(source);
    // What is above a directory has no name that could be used here: its contents go straight into the target.
    let name = if name.as_bytes() == b".." { OsStr::new(".") } else { name };
    let destination = names::join(target, name);
    copier.copy_operand(source, &destination, false)
}
