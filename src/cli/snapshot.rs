//! `clonefs snapshot`, `clonefs reset` and `clonefs resize`.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::args_life::{NewSize, ResetArgs, ResizeArgs, SnapshotCommand, SnapshotCreateArgs, SnapshotListArgs};
use super::failure::{Failure, Outcome, note};
use super::table::{Align, Table};
use super::{place, text};
use crate::client::{self, FoundSnapshot, SnapshotName};
use crate::error::{Context, Error, Kind, Result};
use crate::protocol::ResizeRequest;
use crate::units::{MAX_VOLUME, format_size};

/// How every qcow2 image begins.
const QCOW2: [u8; 4] = *b"QFI\xfb";

/// Runs one of the commands about snapshots.
pub fn snapshot(command: SnapshotCommand) -> Outcome {
    match command {
        SnapshotCommand::Create(args) => create(&args),
        SnapshotCommand::List(args) => list(&args),
        SnapshotCommand::Rollback { snapshot } => Ok(client::roll_back(&SnapshotName::parse(&snapshot)?)?),
        SnapshotCommand::Remove { snapshots } => {
            let names = snapshots.iter().map(|s| SnapshotName::parse(s)).collect::<Result<Vec<_>>>()?;
            // Before the first is gone: all of them are there.
            names.iter().try_for_each(|name| name.find().map(drop))?;
            Ok(names.iter().try_for_each(client::remove_snapshot)?)
        }
        SnapshotCommand::Rename { snapshot, name } => {
            Ok(client::rename_snapshot(&SnapshotName::parse(&snapshot)?, &name)?)
        }
    }
}

fn create(args: &SnapshotCreateArgs) -> Outcome {
    let (volumes, name) = named(&args.snapshots)?;
    let mut files = Vec::new();
    for volume in volumes {
        if args.recursive && volume.is_dir() {
            let found = client::volumes(&volume)?;
            if found.is_empty() {
                note(&format!("{volume:?} has no files"));
            }
            files.extend(found.iter().map(|found| found.path(&volume)));
        } else {
            files.push(volume);
        }
    }
    client::create_snapshots(&files, &name)?;
    if !args.json {
        return Ok(());
    }
    let row = |file: &PathBuf| {
        let snapshot = SnapshotName { volume: file.clone(), name: name.clone() };
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Ok(Made { volume: text(file), name: name.clone(), path: text(&snapshot.place()?) })
    };
    text::print_json(&files.iter().map(row).collect::<Result<Vec<_>>>()?)
}

/// What was made, as JSON.
#[derive(Serialize)]
struct Made {
    volume: String,
    name: String,
    path: String,
}

/// The volumes, and the one name that their snapshots get. `a.img b.img@n` stands for `a.img@n b.img@n`.
fn named(words: &[PathBuf]) -> Outcome<(Vec<PathBuf>, String)> {
    let Some(last) = words.last() else { return Err(Failure::Usage("name what to take snapshots of".into())) };
    let name = SnapshotName::parse(last)?.name;
    let volume = |word: &PathBuf| match SnapshotName::parse(word) {
        Ok(snapshot) if snapshot.name == name => Ok(snapshot.volume),
        // A file whose own name has an @.
        _ if word.exists() => Ok(word.clone()),
        Ok(_) => Err(Failure::Usage("the snapshots of one command have one name".into())),
        Err(_) => Ok(word.clone()),
    };
    Ok((words.iter().map(volume).collect::<Outcome<Vec<_>>>()?, name))
}

/// One snapshot, as JSON.
#[derive(Serialize)]
struct Row<'a> {
    volume: String,
    name: &'a str,
    path: String,
    size: u64,
    /// Seconds since the epoch; `null` where the caller may not read it.
    made: Option<i64>,
    scheduled: Option<bool>,
}

fn list(args: &SnapshotListArgs) -> Outcome {
    let root = match &args.path {
        // Of a volume that is gone there may be snapshots still.
        Some(path) if !path.exists() => path.clone(),
        path => place::resolve(path.as_deref())?,
    };
    let found = client::snapshots(&root)?;
    if args.json {
        let above = if root.is_dir() { root.clone() } else { root.parent().unwrap_or(Path::new("")).to_path_buf() };
        let mount = client::mount_at(if above.as_os_str().is_empty() { Path::new(".") } else { &above })?;
        let mount = mount.map(|mount| mount.mountpoint).unwrap_or_default();
        return text::print_json(&found.iter().map(|snapshot| row(&mount, snapshot)).collect::<Vec<_>>());
    }
    text::print(table(&found, text::on_terminal()))
}

fn row<'a>(mount: &Path, snapshot: &'a FoundSnapshot) -> Row<'a> {
    let file = format!("{}@{}", snapshot.volume.display(), snapshot.name);
    Row {
        volume: snapshot.volume.to_string_lossy().into_owned(),
        name: &snapshot.name,
        path: mount.join(".snapshots").join(file).to_string_lossy().into_owned(),
        size: snapshot.size,
        made: snapshot.info.as_ref().map(|info| info.made),
        scheduled: snapshot.info.as_ref().map(|info| info.scheduled),
    }
}

fn table(found: &[FoundSnapshot], terminal: bool) -> Vec<u8> {
    let columns = [("SNAPSHOT", Align::Left), ("SIZE", Align::Right), ("MADE", Align::Left), ("BY", Align::Left)];
    let mut table = Table::new(&columns);
    for snapshot in found {
        let name = format!("{}@{}", snapshot.volume.display(), snapshot.name);
        let made = snapshot.info.as_ref().map_or("-".into(), |info| date(info.made));
        let by = snapshot.info.as_ref().map_or("-", |info| if info.scheduled { "schedule" } else { "hand" });
        let cells = [format_size(snapshot.size), made, by.to_owned()].map(String::into_bytes);
        table.row(std::iter::once(text::name(OsStr::new(&name), terminal)).chain(cells).collect());
    }
    table.render()
}

/// A time as `2026-11-21 14:30:05Z`.
pub fn date(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 0000-03-01, in eras of 400 years: February, which varies, comes last in a year.
    let day = days + 719_468;
    let (era, day) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    format!("{year}-{month:02}-{of_month:02} {:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Makes clones again what they were.
pub fn reset(args: &ResetArgs) -> Outcome {
    Ok(args.volumes.iter().try_for_each(|volume| client::reset(volume))?)
}

/// Gives a volume another size, and says what is left to do.
pub fn resize(args: &ResizeArgs) -> Outcome {
    let now = std::fs::metadata(&args.volume).context("find volume", &args.volume)?.len();
    let NewSize { bytes, more } = args.size;
    let size = if more { now.saturating_add(bytes) } else { bytes };
    if size > MAX_VOLUME {
        return Err(Error::new(Kind::TooLarge, "resize")
            .at(&args.volume)
            .remedy("a volume has at most 16T less 4K")
            .into());
    }
    refuse_format(&args.volume)?;
    client::resize(&args.volume, &ResizeRequest { size, shrink: args.shrink })?;
    if size == now {
        return Ok(());
    }
    let from_to = format!("{:?}: {} instead of {}", args.volume, format_size(size), format_size(now));
    let next = if size < now {
        "Whatever lay beyond is gone: its partitions and filesystems must have been made smaller before.".to_owned()
    } else {
        grown(&std::fs::canonicalize(&args.volume).unwrap_or(args.volume.clone()), size)
    };
    text::print(format!("{from_to}\n{next}\n"))
}

/// What is left to do for a volume that grew to `size` bytes.
fn grown(volume: &Path, size: u64) -> String {
    let volume = crate::daemon::mount::quoted(volume);
    format!(
        "A machine that runs on it sees this after `virsh blockresize DOMAIN {volume} --size {size}B`, others when they start.\n\
         Then, in the guest: growpart /dev/vda 1, and resize2fs /dev/vda1 (ext4) or xfs_growfs / (xfs)."
    )
}

/// The size of a disk in an image format is written inside of it.
fn refuse_format(path: &Path) -> Result<()> {
    let mut magic = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    if read.is_ok() && magic == QCOW2 {
        return Err(Error::new(Kind::Unsupported, "resize")
            .at(path)
            .because("it is a qcow2 image, whose disk has a size of its own")
            .remedy("qemu-img resize, or virsh blockresize while it is in use"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        assert_eq!(date(0), "1970-01-01 00:00:00Z");
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00Z");
        assert_eq!(date(1_795_271_405), "2026-11-21 14:30:05Z");
        assert_eq!(date(-1), "1969-12-31 23:59:59Z");
        assert_eq!(date(4_107_542_400), "2100-03-01 00:00:00Z");
    }

    #[test]
    fn one_name_holds_for_all_snapshots_of_a_command() {
        let words = |words: &[&str]| named(&words.iter().map(PathBuf::from).collect::<Vec<_>>());
        let (volumes, name) = words(&["/x/a.img", "/x/b.img@n"]).unwrap();
        assert_eq!((volumes, name.as_str()), (vec!["/x/a.img".into(), "/x/b.img".into()], "n"));
        assert!(words(&["/x/a.img@m", "/x/b.img@n"]).is_err());
        assert!(words(&["/x/a.img"]).is_err());
    }
}
