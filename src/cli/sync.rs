//! `clonefs sync`.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::failure::{Outcome, note};
use super::{examples, place};
use crate::client::{mounts, sync_file, sync_pool};

#[derive(Debug, Args)]
#[command(after_help = examples::SYNC)]
pub struct SyncArgs {
    /// Mounted pools or directories in them, each of which stands for its whole pool, or files [default: all pools that
    /// are mounted]
    #[arg(value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub paths: Vec<PathBuf>,
}

/// Makes durable what was written. One that fails does not keep it from the others.
pub fn sync(args: SyncArgs) -> Outcome {
    let all = args.paths.is_empty();
    let paths = if all { mounts()?.into_iter().map(|mount| mount.mountpoint).collect() } else { args.paths };
    let mut failed = None;
    for path in paths {
        let synced = place::resolve(Some(&path)).and_then(|place| match place.is_file() {
            true => sync_file(&place),
            false => sync_pool(&place),
        });
        if let Err(error) = synced
            && let Some(before) = failed.replace(error)
        {
            note(&before.to_string());
        }
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}
