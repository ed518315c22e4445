//! Raw flags, as they stand on the command line. Nothing is decided here that needs a look at a file.

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use super::args_life::{DiffArgs, ResetArgs, ResizeArgs, SnapshotCommand};
use super::args_policy::PolicyCommand;
use super::args_vm::{DoctorArgs, DomainCommand, PoolCommand};
use super::examples;
use crate::client::transfer::{Compression, ExportFormat, ImportFormat};
use crate::units::{MAX_VOLUME, format_size, parse_size};

/// Instant copy-on-write clones of disk images in any Linux directory, which end as ordinary files.
#[derive(Debug, Parser)]
#[command(name = "clonefs", version, about, after_help = examples::CLONEFS, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mount a directory of disk images, in place or at another mount point
    Mount(MountArgs),
    /// Finish all writes, stop background work at a durable point, and unmount
    #[command(visible_alias = "umount")]
    Unmount(UnmountArgs),
    /// Make the pool's hidden directory now instead of on the first clone
    Init(InitArgs),
    /// Clone files: at once, whatever their size
    Clone(CloneArgs),
    /// Make, list, remove and return to snapshots
    #[command(subcommand, after_help = examples::SNAPSHOT)]
    Snapshot(SnapshotCommand),
    /// Make clones again what they were when they were made, at once
    Reset(ResetArgs),
    /// Give a volume another size, while it is in use
    Resize(ResizeArgs),
    /// Show where two volumes or snapshots differ
    Diff(DiffArgs),
    /// Make overlays independent of the files they were cloned from
    Deepen(DeepenArgs),
    /// Stop background work at the next durable point, until resumed
    Pause(PathsArgs),
    /// Go on with background work that was paused
    Resume(PathsArgs),
    /// Wait until volumes are independent
    Wait(PathsArgs),
    /// List the volumes below a directory
    List(ListArgs),
    /// Show the state of a mounted pool and its background work
    Status(StatusArgs),
    /// Show which volumes share blocks with which
    Tree(TreeArgs),
    /// Show what volumes take on disk, alone and with others, and what they can still ask for
    Usage(UsageArgs),
    /// Show what happened in a pool: clones, deletions, refusals, failures, and who asked
    Events(EventsArgs),
    /// Settings of pools, trees and volumes: when to deepen, what to protect, names of clones
    #[command(subcommand, after_help = examples::POLICY)]
    Policy(PolicyCommand),
    /// Print figures about mounted pools for Prometheus
    Metrics(MetricsArgs),
    /// Write a volume, as it is at this moment, to an image file
    Export(ExportArgs),
    /// Make a volume from an image file
    Import(ImportArgs),
    /// Look for damage in a pool, mounted or not
    Check(CheckArgs),
    /// Make durable what was written, as sync(1) does for other filesystems
    Sync(super::sync::SyncArgs),
    /// Compare what clones share with checksums, to find what a disk has changed
    Scrub(ScrubArgs),
    /// Clone libvirt domains
    #[command(subcommand, after_help = examples::DOMAIN)]
    Domain(DomainCommand),
    /// Make libvirt storage pools
    #[command(subcommand, after_help = examples::POOL)]
    Pool(PoolCommand),
    /// Look for what keeps virtual machines from running on a pool, and say how to mend it
    Doctor(DoctorArgs),
    /// Print the completion script for a shell
    #[command(after_help = examples::COMPLETIONS)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages to a directory
    #[command(after_help = examples::MAN)]
    Man {
        /// Directory for the pages; it is made if it does not exist
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
#[command(after_help = examples::MOUNT)]
pub struct MountArgs {
    /// Directory with the images, as a path or as the mount table shows it (clonefs:/srv/images)
    #[arg(value_hint = ValueHint::DirPath)]
    pub pool: PathBuf,
    /// Where to mount it; over the pool itself when left out
    #[arg(value_hint = ValueHint::DirPath)]
    pub mountpoint: Option<PathBuf>,
    /// Mount options, separated by commas: ro, allow_other, default_permissions, suid, dev, noatime, engine=io_uring, ...
    #[arg(short = 'o', long = "options", value_name = "OPTS", action = clap::ArgAction::Append)]
    pub options: Vec<String>,
    /// Stay in the foreground, with messages on standard error
    #[arg(short, long)]
    pub foreground: bool,
    /// Mount read-only
    #[arg(short, long)]
    pub read_only: bool,
    /// Let other users use the mount (needs user_allow_other in /etc/fuse.conf unless root mounts)
    #[arg(long)]
    pub allow_other: bool,
    /// Deepen clones in the background by itself, or only when told to [default: auto]
    #[arg(long, value_enum, value_name = "WHEN")]
    pub deepen: Option<DeepenPolicy>,
    /// Limit background copying to so many bytes a second, such as 200M; 0 for no limit [default: 0]
    #[arg(long, value_name = "BYTES", value_parser = parse_size, allow_negative_numbers = true)]
    pub rate: Option<u64>,
    /// Threads that serve requests [default: 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeepenPolicy {
    Auto,
    Manual,
}

#[derive(Debug, Args)]
#[command(after_help = examples::UNMOUNT)]
pub struct UnmountArgs {
    /// The mount point, or the pool
    #[arg(value_hint = ValueHint::DirPath)]
    pub path: PathBuf,
    /// Detach it now, and finish when the last file in it is closed
    #[arg(short, long)]
    pub lazy: bool,
    /// Give up after this time (30s, 5m), and say who is in the way
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Option<std::time::Duration>,
}

#[derive(Debug, Args)]
#[command(after_help = examples::INIT)]
pub struct InitArgs {
    /// Directory with the images
    #[arg(value_hint = ValueHint::DirPath)]
    pub pool: PathBuf,
}

#[derive(Debug, Args)]
#[command(
    after_help = examples::CLONE,
    override_usage = "clonefs clone [OPTIONS] SRC [DST]\n       clonefs clone [OPTIONS] SRC... DIR/\n       \
                      clonefs clone [OPTIONS] SRC --count N 'NAME{}'\n       clonefs clone [OPTIONS] --group SRC... NEWDIR"
)]
pub struct CloneArgs {
    /// Files to clone, then the name of the clone or an existing directory. Without a destination the clone of FILE
    /// is FILE-clone (then FILE-clone-2, ...) beside it, and its name is printed
    #[arg(required = true, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub paths: Vec<PathBuf>,
    /// Size of the clone, not below the source's, such as 40G; the rest reads as zeros
    #[arg(long, value_name = "SIZE", value_parser = volume_size, allow_negative_numbers = true)]
    pub size: Option<u64>,
    /// Wait until the clone is independent
    #[arg(short, long, conflicts_with = "no_deepen")]
    pub wait: bool,
    /// Leave the clone an overlay until clonefs deepen
    #[arg(long)]
    pub no_deepen: bool,
    /// Return only when the clone is durable
    #[arg(long)]
    pub sync: bool,
    /// Replace an existing file, atomically
    #[arg(short, long)]
    pub force: bool,
    /// Clone directory trees
    #[arg(short, long, alias = "archive", conflicts_with = "size")]
    pub recursive: bool,
    /// Clone all files as of one moment, into a new directory that appears when it is complete; durable, and all or
    /// nothing. With -r every tree is cloned as of one moment by itself
    #[arg(short, long, conflicts_with_all = ["count", "recursive", "size", "force"])]
    pub group: bool,
    /// Make N clones; {} in the destination becomes 1 to N, {:03} gives 001, 002, ...
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub count: Option<u32>,
    /// Print what was made as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::DEEPEN)]
pub struct DeepenArgs {
    /// Volumes, or directories for all volumes below them
    #[arg(required = true, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub paths: Vec<PathBuf>,
    /// Wait until they are independent
    #[arg(short, long)]
    pub wait: bool,
    /// From now on limit background copying of the pool to so many bytes a second, such as 200M; 0 for no limit
    #[arg(long, value_name = "BYTES", value_parser = parse_size, allow_negative_numbers = true)]
    pub rate: Option<u64>,
    /// Copy bytes even where the backing filesystem could share them
    #[arg(long)]
    pub physical: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::PATHS)]
pub struct PathsArgs {
    /// Volumes, or directories for all volumes below them
    #[arg(required = true, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub paths: Vec<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = examples::LIST)]
pub struct ListArgs {
    /// Directory or volume [default: the mount that the current directory is on]
    #[arg(value_hint = ValueHint::AnyPath)]
    pub path: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::STATUS)]
pub struct StatusArgs {
    /// Any directory of the mount, or the pool [default: the mount that the current directory is on, else all mounts]
    #[arg(value_hint = ValueHint::DirPath)]
    pub path: Option<PathBuf>,
    /// Print JSON; with --watch one line a second
    #[arg(long)]
    pub json: bool,
    /// Go on and show it every second
    #[arg(short, long)]
    pub watch: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::TREE)]
pub struct TreeArgs {
    /// Directory or volume [default: the mount that the current directory is on]
    #[arg(value_hint = ValueHint::AnyPath)]
    pub path: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = examples::USAGE)]
pub struct UsageArgs {
    /// Directory or volume [default: the mount that the current directory is on]
    #[arg(value_hint = ValueHint::AnyPath)]
    pub path: Option<PathBuf>,
    /// Add up by owner, or by the directories below PATH
    #[arg(long, value_enum, value_name = "WHAT")]
    pub by: Option<By>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    Uid,
    Tree,
}

#[derive(Debug, Args)]
#[command(after_help = examples::EVENTS)]
pub struct EventsArgs {
    /// A mounted pool, or one that is not mounted [default: the mount that the current directory is on]
    #[arg(value_hint = ValueHint::DirPath)]
    pub path: Option<PathBuf>,
    /// Go on and show each event as it happens
    #[arg(short, long)]
    pub follow: bool,
    /// Only events since this time: 90s, 2h, 3d before now, or 2026-11-21, 2026-11-21T13:00:00Z in UTC
    #[arg(long, value_name = "TIME", value_parser = super::events::since)]
    pub since: Option<std::time::SystemTime>,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::METRICS)]
pub struct MetricsArgs {
    /// A mounted pool [default: the mount that the current directory is on, else all mounts]
    #[arg(value_hint = ValueHint::DirPath)]
    pub path: Option<PathBuf>,
    /// Write them to this file, in one step, instead of standard output
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// Add what the volumes take, for which each of them is looked at
    #[arg(long)]
    pub usage: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::EXPORT)]
pub struct ExportArgs {
    /// The volume
    #[arg(value_name = "VOL", value_hint = ValueHint::FilePath)]
    pub volume: PathBuf,
    /// Image to write
    #[arg(value_name = "OUT", value_hint = ValueHint::FilePath)]
    pub out: PathBuf,
    /// Format of the image; vmdk is the streamOptimized kind
    #[arg(long, value_parser = word::<ExportFormat>(&["raw", "qcow2", "vmdk"]))]
    pub format: ExportFormat,
    /// Compress the clusters of a qcow2 image
    #[arg(long, value_name = "METHOD", value_parser = word::<Compression>(&["zstd", "zlib"]))]
    pub compress: Option<Compression>,
    /// Cluster size of a qcow2 image [default: 64K]
    #[arg(long, value_name = "SIZE", value_parser = cluster_size)]
    pub cluster_size: Option<u64>,
    /// Replace an existing file, atomically
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::IMPORT)]
pub struct ImportArgs {
    /// Image to read
    #[arg(value_hint = ValueHint::FilePath)]
    pub image: PathBuf,
    /// Volume to make, in a mounted pool
    #[arg(value_name = "DST", value_hint = ValueHint::FilePath)]
    pub target: PathBuf,
    /// Format of the image [default: by the extension of its name; never by its contents]
    #[arg(long, value_parser = word::<ImportFormat>(&["raw", "qcow2", "vmdk", "vhdx", "vdi"]))]
    pub format: Option<ImportFormat>,
    /// Replace an existing file, atomically
    #[arg(short, long)]
    pub force: bool,
    /// Read the backing file and external data file that the image names: only for images that you trust
    #[arg(long)]
    pub allow_backing: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::CHECK)]
pub struct CheckArgs {
    /// The pool [default: the mount that the current directory is on]
    #[arg(value_hint = ValueHint::DirPath)]
    pub pool: Option<PathBuf>,
    /// Repair what can be repaired; the old metadata is kept in .clonefs/lost. Only while nobody has the pool mounted
    #[arg(long)]
    pub repair: bool,
    /// Take this volume as it is, although it was changed without clonefs or its record may be out of date
    #[arg(long, value_name = "FILE", requires = "repair", value_hint = ValueHint::FilePath)]
    pub accept: Vec<PathBuf>,
    /// Print what was found as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::SCRUB)]
pub struct ScrubArgs {
    /// A mounted pool, or a path in it [default: the mount that the current directory is on]
    #[arg(value_hint = ValueHint::AnyPath)]
    pub path: Option<PathBuf>,
    /// Do not wait for the end; `clonefs status` shows what was found
    #[arg(long)]
    pub no_wait: bool,
    /// Print what was found as JSON
    #[arg(long)]
    pub json: bool,
}

/// A size that a volume can have.
pub(super) fn volume_size(text: &str) -> Result<u64, String> {
    let size = parse_size(text)?;
    if size > MAX_VOLUME {
        return Err(format!(
            "{text} is more than a volume can have, which is {} bytes ({})",
            MAX_VOLUME,
            format_size(MAX_VOLUME)
        ));
    }
    Ok(size)
}

/// A cluster size that qcow2 knows.
fn cluster_size(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        size if size.is_power_of_two() && (512..=2 << 20).contains(&size) => Ok(size),
        _ => Err(format!("{text} is not a cluster size: it must be a power of two from 512 to 2M")),
    }
}

/// One of these words, which `T` understands; help and completions list them.
fn word<T>(words: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = String> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(words).try_map(|word: String| word.parse::<T>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Cli, String> {
        Cli::try_parse_from(words).map_err(|e| e.to_string())
    }

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn sizes_are_checked_when_they_are_read() {
        let error = |size: &str| parse(&["clonefs", "clone", "a", "b", "--size", size]).unwrap_err();
        assert!(error("many").contains("write a number"), "{}", error("many"));
        assert!(error("17P").contains("more than a volume can have"), "{}", error("17P"));
        assert!(parse(&["clonefs", "clone", "a", "b", "--size", "40G"]).is_ok());
        for bad in ["3K", "256", "4M", "0"] {
            assert!(parse(&["clonefs", "export", "a", "b", "--format", "qcow2", "--cluster-size", bad]).is_err());
        }
    }

    #[test]
    fn the_template_of_many_clones_may_stand_before_or_after_the_count() {
        for words in [["clone", "a", "--count", "3", "vm{}.img"], ["clone", "--count", "3", "a", "vm{}.img"]] {
            let cli = parse(&[&["clonefs"], &words[..]].concat()).unwrap();
            let Command::Clone(clone) = cli.command else { panic!("not clone") };
            assert_eq!((clone.count, clone.paths.len()), (Some(3), 2));
        }
    }
}
