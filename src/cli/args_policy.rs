//! Raw flags of `clonefs policy`.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, ValueHint};

use super::examples;
use crate::engine::policy::KEYS;
use crate::engine::policy::value::{CloneName, Order, Pattern, Rate, Schedule, When};

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Show the settings that hold for a path, and where they come from
    Get(PolicyGetArgs),
    /// Set something for a volume, a tree or the pool, and for all that lies below
    Set(PolicySetArgs),
    /// Inherit settings again
    Unset(PolicyUnsetArgs),
    /// Show all settings of the pool
    List(PolicyListArgs),
}

#[derive(Debug, Args)]
#[command(after_help = examples::POLICY_GET)]
pub struct PolicyGetArgs {
    /// Volume, directory, or the mount point for the pool [default: the mount that the current directory is on]
    #[arg(value_hint = ValueHint::AnyPath)]
    pub path: Option<PathBuf>,
    /// Only this setting, and only its value; exit code 1 if it is not set
    #[arg(long, value_name = "SETTING", value_parser = PossibleValuesParser::new(KEYS))]
    pub key: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = examples::POLICY_SET)]
pub struct PolicySetArgs {
    /// Volume, directory, or the mount point for the pool
    #[arg(value_hint = ValueHint::AnyPath)]
    pub path: PathBuf,
    /// When volumes are deepened: auto, idle, manual, or by a time, such as "by 2026-12-01T06:00:00Z" or "by 12h"
    #[arg(long, value_name = "WHEN")]
    pub deepen: Option<When>,
    /// Which blocks are copied first: from the front, or hot, those that were read a moment ago
    #[arg(long, value_name = "ORDER")]
    pub order: Option<Order>,
    /// Volumes stay overlays: they are not deepened, also when asked for
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub keep_linked: Option<bool>,
    /// Files are neither deleted nor overwritten nor renamed, by nobody
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub protect: Option<bool>,
    /// Limit of background copying in bytes a second, such as 200M; 0 for none. For the whole pool only
    #[arg(long, value_name = "BYTES")]
    pub rate: Option<Rate>,
    /// Name of a clone that was given none: {name} is the source's, {stem} and {ext} its parts
    #[arg(long, value_name = "TEMPLATE")]
    pub clone_name: Option<CloneName>,
    /// Pattern that names must match which clonefs clone makes, such as '*.img'
    #[arg(long, value_name = "PATTERN")]
    pub names: Option<Pattern>,
    /// Snapshots that are taken and kept, such as hourly=24,daily=7,weekly=4
    #[arg(long, value_name = "SCHEDULE")]
    pub snapshots: Option<Schedule>,
}

#[derive(Debug, Args)]
#[command(after_help = examples::POLICY_UNSET)]
pub struct PolicyUnsetArgs {
    /// Volume, directory, or the mount point for the pool
    #[arg(value_hint = ValueHint::AnyPath)]
    pub path: PathBuf,
    /// Settings; all of this path when left out
    #[arg(value_name = "SETTING", value_parser = PossibleValuesParser::new(KEYS))]
    pub keys: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = examples::POLICY_LIST)]
pub struct PolicyListArgs {
    /// Any path of the pool [default: the mount that the current directory is on]
    #[arg(value_hint = ValueHint::AnyPath)]
    pub path: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
