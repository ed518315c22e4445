//! Flags of the commands for virtual machines.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};

use super::args::volume_size;
use super::examples;
use crate::vm::{DiskRule, Mode, Policy, TpmPolicy};

#[derive(Debug, Subcommand)]
pub enum DomainCommand {
    /// Clone a domain with its disks: at once, also while it runs
    Clone(DomainCloneArgs),
    /// Snapshots of a domain: all its disks at one moment, and what else it was then
    #[command(subcommand)]
    Snapshot(DomainSnapshotCommand),
}

#[derive(Debug, Subcommand)]
pub enum DomainSnapshotCommand {
    /// Make a snapshot, also while the domain runs: at once, whatever the size of its disks
    #[command(after_help = examples::DOMAIN_SNAPSHOT_CREATE)]
    Create(DomainSnapshotCreateArgs),
    /// List the snapshots of a domain
    #[command(after_help = examples::DOMAIN_SNAPSHOT_LIST)]
    List {
        #[command(flatten)]
        domain: DomainArg,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what a snapshot of a domain holds
    #[command(after_help = examples::DOMAIN_SNAPSHOT_SHOW)]
    Show {
        #[command(flatten)]
        domain: DomainArg,
        /// The snapshot
        name: String,
        /// Print the domain's XML of that time
        #[arg(long, conflicts_with = "json")]
        xml: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a domain that is shut off again what a snapshot of it holds
    #[command(after_help = examples::DOMAIN_SNAPSHOT_ROLLBACK)]
    Rollback {
        #[command(flatten)]
        domain: DomainArg,
        /// The snapshot
        name: String,
    },
    /// Remove snapshots of a domain
    #[command(visible_alias = "rm", after_help = examples::DOMAIN_SNAPSHOT_REMOVE)]
    Remove {
        #[command(flatten)]
        domain: DomainArg,
        /// The snapshots
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// Which domain, and where.
#[derive(Debug, Args)]
pub struct DomainArg {
    /// The domain: name, UUID or number
    pub domain: String,
    /// URI of libvirt [default: that of virsh]
    #[arg(short = 'c', long, value_name = "URI")]
    pub connect: Option<String>,
}

#[derive(Debug, Args)]
pub struct DomainSnapshotCreateArgs {
    #[command(flatten)]
    pub domain: DomainArg,
    /// Name of the snapshot [default: the time]
    pub name: Option<String>,
    /// Let the guest agent freeze its filesystems around that
    #[arg(long)]
    pub quiesce: bool,
    /// Leave a disk out: vdb
    #[arg(long, value_name = "DISK")]
    pub skip: Vec<String>,
    /// Print what was made as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Define and start a libvirt directory pool over a directory of a mounted clonefs pool
    Define(PoolDefineArgs),
}

#[derive(Debug, Args)]
#[command(after_help = examples::DOMAIN_CLONE)]
pub struct DomainCloneArgs {
    /// The domain to clone: name, UUID or number
    pub domain: String,
    /// Name of the clone; with --count a name such as 'vm{}'
    #[arg(value_name = "NEWNAME")]
    pub name: String,
    /// How its disks relate to the source's
    #[arg(long, value_enum, default_value = "clone")]
    pub mode: ModeArg,
    /// Clone it while it runs: its disks as they are at one instant
    #[arg(long)]
    pub live: bool,
    /// Let its guest agent freeze its filesystems around that
    #[arg(long, requires = "live")]
    pub quiesce: bool,
    /// Clone what this snapshot of the domain holds
    #[arg(long, value_name = "SNAPSHOT", conflicts_with = "live")]
    pub snapshot: Option<String>,
    /// Where the clone of a disk goes, its size, or that it is left out or shared: vda=POOL/NAME,size=40G or
    /// vdb=skip or vdc=share; {} stands for the new name
    #[arg(long = "disk", value_name = "DISK=WHAT", value_parser = disk_rule)]
    pub disks: Vec<DiskRule>,
    /// What becomes of disks that are marked as shareable
    #[arg(long, value_enum, default_value = "share", value_name = "POLICY")]
    pub shared: SharedArg,
    /// What becomes of block and network disks [default: share, with a warning, and not with --start]
    #[arg(long, value_enum, value_name = "POLICY")]
    pub luns: Option<LunArg>,
    /// What becomes of the state of an emulated TPM
    #[arg(long, value_enum, default_value = "copy", value_name = "POLICY")]
    pub tpm: TpmArg,
    /// Fail rather than copy a disk that lies in no pool
    #[arg(long)]
    pub no_copy: bool,
    /// Make N clones; {} in the name becomes 1 to N, {:03} gives 001, 002, ...
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub count: Option<u32>,
    /// Start the clones
    #[arg(long)]
    pub start: bool,
    /// Host name in a cloud-init seed; {} stands for the new name
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// user-data for a cloud-init seed
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub user_data: Option<PathBuf>,
    /// meta-data for a cloud-init seed; its instance-id is replaced by a new one
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub meta_data: Option<PathBuf>,
    /// Shell command to run on each clone's disks before it is defined
    #[arg(long, value_name = "COMMAND")]
    pub customize: Option<String>,
    /// Only print how the XML of the clones would differ
    #[arg(short = 'n', long, conflicts_with = "json")]
    pub dry_run: bool,
    /// Print what was made as JSON
    #[arg(long)]
    pub json: bool,
    /// URI of libvirt [default: that of virsh]
    #[arg(short = 'c', long, value_name = "URI")]
    pub connect: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = examples::POOL_DEFINE)]
pub struct PoolDefineArgs {
    /// Name of the libvirt pool
    pub name: String,
    /// Directory on the mount
    #[arg(value_hint = ValueHint::DirPath)]
    pub path: PathBuf,
    /// Start it with libvirt. The mount must be there before: see docs/domain.md
    #[arg(long)]
    pub autostart: bool,
    /// URI of libvirt [default: that of virsh]
    #[arg(short = 'c', long, value_name = "URI")]
    pub connect: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = examples::DOCTOR)]
pub struct DoctorArgs {
    /// A directory, or the name of a domain; this host alone when left out
    #[arg(value_name = "POOL|DOMAIN", value_hint = ValueHint::DirPath)]
    pub patient: Option<String>,
    /// Print only what is not well
    #[arg(short, long)]
    pub quiet: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// URI of libvirt [default: that of virsh]
    #[arg(short = 'c', long, value_name = "URI")]
    pub connect: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ModeArg {
    /// Usable at once; made independent in the background, as the pool does it
    Clone,
    /// Usable at once; needs the source's blocks until somebody deepens it
    Linked,
    /// Independent before the domain is defined
    Copy,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Mode {
        match mode {
            ModeArg::Clone => Mode::Clone,
            ModeArg::Linked => Mode::Linked,
            ModeArg::Copy => Mode::Copy,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SharedArg {
    /// The clone has the same disk
    Share,
    /// The clone does not have it
    Skip,
    /// It is cloned
    Clone,
}

impl From<SharedArg> for Policy {
    fn from(policy: SharedArg) -> Policy {
        match policy {
            SharedArg::Share => Policy::Share,
            SharedArg::Skip => Policy::Skip,
            SharedArg::Clone => Policy::Clone,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LunArg {
    /// The clone has the same disk
    Share,
    /// The clone does not have it: attach another one to it later
    Skip,
}

impl From<LunArg> for Policy {
    fn from(policy: LunArg) -> Policy {
        match policy {
            LunArg::Share => Policy::Share,
            LunArg::Skip => Policy::Skip,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum TpmArg {
    /// The clone can open what the source has locked with it
    Copy,
    /// The clone has a new one
    New,
}

impl From<TpmArg> for TpmPolicy {
    fn from(policy: TpmArg) -> TpmPolicy {
        match policy {
            TpmArg::Copy => TpmPolicy::Copy,
            TpmArg::New => TpmPolicy::New,
        }
    }
}

/// `vda=POOL/NAME,size=40G`, `vda=skip`, `vda=share`.
fn disk_rule(text: &str) -> Result<DiskRule, String> {
    const FORM: &str = "write DISK=POOL/NAME, DISK=size=40G, DISK=skip or DISK=share, with commas between";
    let (target, words) = text.split_once('=').filter(|(t, w)| !t.is_empty() && !w.is_empty()).ok_or(FORM)?;
    let mut rule = DiskRule { target: target.to_owned(), ..DiskRule::default() };
    for word in words.split(',') {
        match word.split_once('=') {
            None if word == "skip" => rule.skip = true,
            None if word == "share" => rule.share = true,
            Some(("size", size)) if rule.size.is_none() => rule.size = Some(volume_size(size)?),
            None if word.contains('/') && rule.place.is_none() => rule.place = Some(word.to_owned()),
            _ => return Err(format!("{word:?} is not understood: {FORM}")),
        }
    }
    let cloned = rule.place.is_some() || rule.size.is_some();
    if [rule.skip, rule.share, cloned].iter().filter(|set| **set).count() > 1 {
        return Err(format!("{text:?} says two things at once: {FORM}"));
    }
    Ok(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_for_disks_are_read() {
        let rule = disk_rule("vda=fast/web.qcow2,size=40G").unwrap();
        assert_eq!(
            (rule.target.as_str(), rule.place.as_deref(), rule.size),
            ("vda", Some("fast/web.qcow2"), Some(40 << 30))
        );
        assert!(disk_rule("vdb=skip").unwrap().skip && disk_rule("sda=share").unwrap().share);
        assert_eq!(disk_rule("vda=size=1M").unwrap().size, Some(1 << 20));
        assert_eq!(disk_rule("vda=/srv/a b").unwrap().place.as_deref(), Some("/srv/a b"));
    }

    #[test]
    fn rules_that_make_no_sense_are_refused() {
        for bad in [
            "",
            "vda",
            "vda=",
            "=skip",
            "vda=name",
            "vda=skip,share",
            "vda=skip,size=1G",
            "vda=a/b,c/d",
            "vda=size=x",
            "vda=sizes=1G",
        ] {
            assert!(disk_rule(bad).is_err(), "{bad}");
        }
    }
}
