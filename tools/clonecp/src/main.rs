//! `clonecp`: cp for people who clone disk images.
//!
//! Options, messages and exit statuses are those of GNU cp 9.1. What is its own is [`clone`]: a copy on a clonefs mount
//! is a clone made by the daemon, in an instant; elsewhere FICLONE is tried, then the kernel's copying, then reading
//! and writing. `args` and `usage` read the command line, `resolve` decides what it means (`settings`), `operands`
//! finds the destination; `copier` takes each file through its steps: `existing` and `same` look at the destination,
//! `directory`, `regular` (`clone`, `data`) and `special` make the copy, `attributes`, `xattrs` and `parents` finish
//! it.

mod args;
mod attributes;
mod backup;
mod clone;
mod copier;
mod data;
mod directory;
mod existing;
mod names;
mod node;
mod operands;
mod parents;
mod progress;
mod quote;
mod regular;
mod report;
mod resolve;
mod same;
mod seen;
mod settings;
mod special;
mod stat;
mod usage;
mod xattrs;

use std::ffi::OsString;
use std::process::ExitCode;

use crate::report::{Done, PROGRAM, Report};

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let program = words.next().unwrap_or_else(|| OsString::from(PROGRAM));
    match run(program, words.collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(program: OsString, words: Vec<OsString>) -> Done {
    let Some(words) = args::parse(program, &words)? else { return Ok(()) };
    let (settings, operands) = resolve::resolve(words)?;
    let report = Report::new();
    let result = operands::copy_all(&settings, operands, &report);
    if report.finish() { result } else { Err(report::Failed::Here) }
}
