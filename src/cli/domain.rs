//! `clonefs domain` and `clonefs pool`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::args_vm::{DomainCloneArgs, DomainCommand, PoolCommand, PoolDefineArgs};
use super::failure::{Failure, Outcome, note};
use super::progress::{Meter, Unit};
use super::template::Template;
use super::{interrupt, text};
use crate::client::WaitProgress;
use crate::error::{Context, Error, Kind, Result};
use crate::vm::{Customize, DiskOptions, Observer, Options, Plan, Virsh, pools};

/// Larger is no text that somebody wrote for cloud-init.
const LARGEST_TEXT: u64 = 1 << 20;

/// Does what is said about domains.
pub fn domain(command: DomainCommand) -> Outcome {
    match command {
        DomainCommand::Clone(args) => clone(args),
        DomainCommand::Snapshot(command) => super::domain_snapshot::run(command),
    }
}

/// Does what is said about libvirt pools.
pub fn pool(command: PoolCommand) -> Outcome {
    let PoolCommand::Define(PoolDefineArgs { name, path, autostart, connect }) = command;
    pools::check_name(&name).map_err(Failure::Usage)?;
    let virsh = Virsh::new(connect);
    let full = pools::define(&virsh, &name, &path, autostart)?;
    if autostart {
        note(&format!(
            "libvirt starts this pool by itself: see to it that {full:?} is mounted before (systemctl enable clonefs@, see docs/domain.md)"
        ));
    }
    Ok(())
}

fn clone(args: DomainCloneArgs) -> Outcome {
    let names = names(&args)?;
    if names.len() > 1 && args.disks.iter().any(|rule| rule.place.as_ref().is_some_and(|place| !place.contains("{}"))) {
        return Err(Failure::Usage(
            "--disk with --count takes a place with {} in it, for the name of each clone".into(),
        ));
    }
    let options = Options {
        names,
        mode: args.mode.into(),
        live: args.live,
        quiesce: args.quiesce,
        snapshot: args.snapshot,
        disks: DiskOptions { rules: args.disks, shared: args.shared.into(), luns: args.luns.map(Into::into) },
        no_copy: args.no_copy,
        tpm: args.tpm.into(),
        start: args.start,
        customize: Customize {
            hostname: args.hostname,
            user_data: args.user_data.as_deref().map(read_text).transpose()?,
            meta_data: args.meta_data.as_deref().map(read_text).transpose()?,
            command: args.customize,
        },
    };
    interrupt::watch();
    let virsh = Virsh::new(args.connect);
    let plan = Plan::make(&virsh, &args.domain, &options)?;
    plan.notes.iter().for_each(|line| note(line));
    if args.dry_run {
        return text::print(plan.diff());
    }
    let made = plan.run(&mut Watcher::default())?;
    if args.json { text::print_json(&made) } else { Ok(()) }
}

fn names(args: &DomainCloneArgs) -> Outcome<Vec<String>> {
    let Some(count) = args.count else { return Ok(vec![args.name.clone()]) };
    let template = Template::parse(OsStr::new(&args.name)).map_err(Failure::Usage)?;
    Ok((1..=count).map(|n| template.name(n).to_string_lossy().into_owned()).collect())
}

fn read_text(path: &Path) -> Result<String> {
    let look = std::fs::metadata(path).context("look at", path)?;
    if look.len() > LARGEST_TEXT {
        return Err(Error::new(Kind::TooLarge, "read").at(path).because("it is no text for cloud-init"));
    }
    std::fs::read_to_string(path).context("read", path)
}

/// Shows progress, and stops the work on a signal.
#[derive(Default)]
struct Watcher {
    copying: Option<(PathBuf, Meter)>,
    deepening: Option<Meter>,
}

impl Observer for Watcher {
    fn copying(&mut self, file: &Path, done: u64, total: u64) -> Result<()> {
        if self.copying.as_ref().is_none_or(|(shown, _)| shown != file) {
            let label = format!("copying {}", text::safe(file.as_os_str()));
            self.copying = Some((file.to_path_buf(), Meter::new(label, Unit::Bytes)));
        }
        if let Some((_, meter)) = &mut self.copying {
            meter.update(done, total);
        }
        interrupt::check("copy")
    }

    fn deepening(&mut self, state: WaitProgress) -> Result<()> {
        self.copying = None;
        self.deepening
            .get_or_insert_with(|| Meter::new("making independent", Unit::Bytes))
            .update(state.done, state.total);
        interrupt::check("wait for clones to become independent")
    }

    fn check(&mut self) -> Result<()> {
        self.copying = None;
        interrupt::check("clone the domain")
    }
}
