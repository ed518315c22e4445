//! `clonefs domain snapshot`.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::args_vm::{DomainArg, DomainSnapshotCommand, DomainSnapshotCreateArgs};
use super::failure::{Outcome, note};
use super::snapshot::date;
use super::table::{Align, Table};
use super::{interrupt, text};
use crate::error::Result;
use crate::units::format_size;
use crate::vm::snapshots::{self, Shown, SnapshotOptions};
use crate::vm::{Virsh, roll_back};

/// Runs one of the commands about snapshots of domains.
pub fn run(command: DomainSnapshotCommand) -> Outcome {
    match command {
        DomainSnapshotCommand::Create(args) => create(args),
        DomainSnapshotCommand::List { domain: DomainArg { domain, connect }, json } => {
            let found = snapshots::list(&Virsh::new(connect), &domain)?;
            if json { text::print_json(&found) } else { text::print(table(&found, text::on_terminal())) }
        }
        DomainSnapshotCommand::Show { domain: DomainArg { domain, connect }, name, xml, json } => {
            let found = snapshots::one(&Virsh::new(connect), &domain, &name)?;
            match (xml, json) {
                (true, _) => text::print(format!("{}\n", found.xml)),
                (_, true) => text::print_json(&found),
                _ => text::print(show(&found)),
            }
        }
        DomainSnapshotCommand::Rollback { domain: DomainArg { domain, connect }, name } => {
            interrupt::watch();
            let notes = roll_back(&Virsh::new(connect), &domain, &name, &|| check("roll the domain back"))?;
            notes.iter().for_each(|line| note(line));
            Ok(())
        }
        DomainSnapshotCommand::Remove { domain: DomainArg { domain, connect }, names } => {
            Ok(snapshots::remove(&Virsh::new(connect), &domain, &names)?)
        }
    }
}

fn check(doing: &'static str) -> Result<()> {
    interrupt::check(doing)
}

fn create(args: DomainSnapshotCreateArgs) -> Outcome {
    let DomainSnapshotCreateArgs { domain: DomainArg { domain, connect }, name, quiesce, skip, json } = args;
    let name = name.unwrap_or_else(now);
    interrupt::watch();
    let options = SnapshotOptions { name, quiesce, skip };
    let check = || check("make a snapshot of the domain");
    let (made, notes) = snapshots::create(&Virsh::new(connect), &domain, &options, &check)?;
    notes.iter().for_each(|line| note(line));
    if json { text::print_json(&made) } else { Ok(()) }
}

/// The time as a name: `2026-11-21T14:30:05Z`.
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    date(i64::try_from(since.as_secs()).unwrap_or(0)).replace(' ', "T")
}

fn table(found: &[Shown], terminal: bool) -> Vec<u8> {
    let mut table = Table::new(&[
        ("SNAPSHOT", Align::Left),
        ("MADE", Align::Left),
        ("SIZE", Align::Right),
        ("DISKS", Align::Left),
        ("STATE", Align::Left),
    ]);
    for snapshot in found {
        let size = snapshot.disks.iter().filter_map(|file| file.size).sum();
        let mut disks: Vec<&str> = snapshot.disks.iter().map(|file| &*file.disk).collect();
        disks.dedup();
        let cells = [date(snapshot.made), format_size(size), disks.join(","), state(snapshot).to_owned()];
        let cells = cells.map(String::into_bytes);
        table.row(std::iter::once(text::name(OsStr::new(&snapshot.name), terminal)).chain(cells).collect());
    }
    table.render()
}

/// What the domain was doing, or what is wrong.
fn state(snapshot: &Shown) -> &'static str {
    match snapshot {
        Shown { whole: false, .. } => "incomplete",
        Shown { quiesced: true, .. } => "quiesced",
        Shown { running: true, .. } => "running",
        _ => "shut off",
    }
}

fn show(snapshot: &Shown) -> String {
    let mut out = String::new();
    let path = |path: &Path| text::safe(path.as_os_str());
    // Writing to a String cannot fail.
    let _ = writeln!(out, "snapshot   {}", text::safe(OsStr::new(&snapshot.name)));
    let _ = writeln!(out, "domain     {}, {}", text::safe(OsStr::new(&snapshot.domain)), state(snapshot));
    let _ = writeln!(out, "made       {}", date(snapshot.made));
    for file in &snapshot.disks {
        let held = match (&file.snapshot, file.size) {
            (Some(_), Some(size)) => format_size(size),
            _ => "its snapshot is gone".into(),
        };
        let _ = writeln!(out, "{:<10} {} ({held})", text::safe(OsStr::new(&file.disk)), path(&file.path));
    }
    for file in &snapshot.files {
        let _ = writeln!(out, "with       {}", path(file));
    }
    for disk in &snapshot.others {
        let _ = writeln!(out, "without    {}", text::safe(OsStr::new(disk)));
    }
    out
}
