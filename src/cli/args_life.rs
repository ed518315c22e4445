//! Raw flags of the commands about the life of a volume: snapshots, reset, resize, diff.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use super::args::volume_size;
use super::examples;

#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Make snapshots, all of one moment: read-only, at once, whatever their size
    #[command(after_help = examples::SNAPSHOT_CREATE)]
    Create(SnapshotCreateArgs),
    /// List the snapshots of a volume, or of all volumes below a directory
    #[command(after_help = examples::SNAPSHOT_LIST)]
    List(SnapshotListArgs),
    /// Make a volume again what a snapshot of it is
    #[command(after_help = examples::SNAPSHOT_ROLLBACK)]
    Rollback {
        /// The snapshot
        #[arg(value_name = "VOL@NAME")]
        snapshot: PathBuf,
    },
    /// Remove snapshots
    #[command(visible_alias = "rm", after_help = examples::SNAPSHOT_REMOVE)]
    Remove {
        /// The snapshots
        #[arg(required = true, value_name = "VOL@NAME")]
        snapshots: Vec<PathBuf>,
    },
    /// Give a snapshot another name
    #[command(after_help = examples::SNAPSHOT_RENAME)]
    Rename {
        /// The snapshot
        #[arg(value_name = "VOL@NAME")]
        snapshot: PathBuf,
        /// Its new name, without @
        #[arg(value_name = "NEW")]
        name: String,
    },
}

#[derive(Debug, Args)]
pub struct SnapshotCreateArgs {
    /// Volumes, or with -r directories, with the name of the snapshot: the last name holds for those before it that
    /// have none
    #[arg(required = true, value_name = "VOL@NAME")]
    pub snapshots: Vec<PathBuf>,
    /// Take directories for all volumes below them
    #[arg(short, long)]
    pub recursive: bool,
    /// All of one moment, which they are anyhow
    #[arg(short, long, hide = true)]
    pub group: bool,
    /// Print what was made as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct SnapshotListArgs {
    /// Volume or directory [default: the mount that the current directory is on]
    #[arg(value_hint = ValueHint::AnyPath)]
    pub path: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::RESET)]
pub struct ResetArgs {
    /// Clones that nobody has open
    #[arg(required = true, value_name = "VOL", value_hint = ValueHint::FilePath)]
    pub volumes: Vec<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = examples::DIFF)]
pub struct DiffArgs {
    /// A volume or a snapshot
    #[arg(value_name = "A", value_hint = ValueHint::FilePath)]
    pub one: PathBuf,
    /// Another one of the same pool
    #[arg(value_name = "B", value_hint = ValueHint::FilePath)]
    pub other: PathBuf,
    /// Read nothing: what was written counts as different, also if it is the same
    #[arg(long)]
    pub maps_only: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::RESIZE)]
pub struct ResizeArgs {
    /// The volume
    #[arg(value_name = "VOL", value_hint = ValueHint::FilePath)]
    pub volume: PathBuf,
    /// Its new size, such as 40G; +10G for so much more
    #[arg(value_name = "SIZE", allow_negative_numbers = true)]
    pub size: NewSize,
    /// The new size may be smaller; what lies beyond is lost. Nobody may have the volume open
    #[arg(long)]
    pub shrink: bool,
}

/// A size, or how much more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewSize {
    pub bytes: u64,
    pub more: bool,
}

impl std::str::FromStr for NewSize {
    type Err = String;

    fn from_str(text: &str) -> Result<NewSize, String> {
        match text.strip_prefix('+') {
            Some(more) => Ok(NewSize { bytes: volume_size(more)?, more: true }),
            None => Ok(NewSize { bytes: volume_size(text)?, more: false }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_absolute_or_more() {
        assert_eq!("4K".parse(), Ok(NewSize { bytes: 4096, more: false }));
        assert_eq!("+1M".parse(), Ok(NewSize { bytes: 1 << 20, more: true }));
        assert!(
            "+".parse::<NewSize>().is_err() && "17P".parse::<NewSize>().is_err() && "-1".parse::<NewSize>().is_err()
        );
    }
}
