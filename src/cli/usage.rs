//! `clonefs usage`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::args::{By, UsageArgs};
use super::failure::Outcome;
use super::table::{Align, Table};
use super::{place, text};
use crate::client::{self, Group, Total, Used};
use crate::error::Context;
use crate::protocol::VolumeUsage;
use crate::units::format_size;

/// Shows what the volumes below a directory take.
pub fn usage(args: UsageArgs) -> Outcome {
    let root = place::resolve(args.path.as_deref())?;
    let used = client::usage(&root)?;
    let directory = if root.is_dir() { root.clone() } else { parent_of(&root) };
    let status = client::status(&directory)?.ok_or_else(|| client::not_here("read the status of", &directory))?;
    let total = Total::of(&used, &status);
    let groups = args.by.map(|by| groups(&used, by));
    if args.json {
        let root = std::path::absolute(&root).context("find the path of", &root)?;
        return text::print_json(&Report::new(&root, &used, groups.as_deref(), &total));
    }
    let terminal = text::on_terminal();
    let mut out = match &groups {
        Some(groups) => group_table(groups, args.by == Some(By::Uid), terminal),
        None => volume_table(&root, &used, terminal),
    };
    out.extend(summary(&total).into_bytes());
    text::print(out)
}

fn parent_of(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new(".")).to_path_buf()
}

/// Groups by name, in order.
fn groups(used: &[Used], by: By) -> Vec<(String, Group)> {
    match by {
        By::Uid => {
            let groups = client::by_group(used, |_, usage| usage.uid);
            groups.into_iter().map(|(uid, group)| (uid.to_string(), group)).collect()
        }
        By::Tree => {
            let groups = client::by_group(used, |one, _| match one.name.components().count() {
                // Files of the directory itself.
                0 | 1 => PathBuf::from("."),
                _ => PathBuf::from(one.name.components().next().map(|c| c.as_os_str().to_owned()).unwrap_or_default()),
            });
            groups.into_iter().map(|(tree, group)| (tree.to_string_lossy().into_owned(), group)).collect()
        }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    volumes: Option<Vec<Row>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    groups: Option<Vec<Sum<'a>>>,
    total: &'a Total,
}

#[derive(Serialize)]
struct Row {
    name: String,
    path: String,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Figures {
    Known { uid: u32, size: u64, present: u64, own: u64, shared: u64, freed: u64, independence: u64 },
    Unknown { error: String },
}

#[derive(Serialize)]
struct Sum<'a> {
    name: &'a str,
    #[serde(flatten)]
    figures: &'a Group,
}

impl<'a> Report<'a> {
    fn new(root: &Path, used: &[Used], groups: Option<&'a [(String, Group)]>, total: &'a Total) -> Report<'a> {
        let sum = |(name, figures): &'a (String, Group)| Sum { name, figures };
        Report {
            volumes: groups.is_none().then(|| used.iter().map(|one| Row::new(root, one)).collect()),
            groups: groups.map(|groups| groups.iter().map(sum).collect()),
            total,
        }
    }
}

impl Row {
    fn new(root: &Path, used: &Used) -> Row {
        let path = if used.name.as_os_str().is_empty() { root.to_path_buf() } else { root.join(&used.name) };
        let figures = match &used.usage {
            Ok(VolumeUsage { uid, size, present, own, shared, freed, independence, .. }) => Figures::Known {
                uid: *uid,
                size: *size,
                present: *present,
                own: *own,
                shared: *shared,
                freed: *freed,
                independence: *independence,
            },
            Err(error) => Figures::Unknown { error: error.to_string() },
        };
        let name = if used.name.as_os_str().is_empty() { root } else { &used.name };
        Row { name: name.to_string_lossy().into_owned(), path: path.to_string_lossy().into_owned(), figures }
    }
}

fn volume_table(root: &Path, used: &[Used], terminal: bool) -> Vec<u8> {
    const COLUMNS: [(&str, Align); 7] = [
        ("NAME", Align::Left),
        ("SIZE", Align::Right),
        ("PRESENT", Align::Right),
        ("OWN", Align::Right),
        ("SHARED", Align::Right),
        ("FREED", Align::Right),
        ("TO COPY", Align::Right),
    ];
    let mut table = Table::new(&COLUMNS);
    for one in used {
        let name = if one.name.as_os_str().is_empty() { root } else { &one.name };
        let mut row = vec![text::name(name.as_os_str(), terminal)];
        match &one.usage {
            Ok(usage) => {
                let VolumeUsage { size, present, own, shared, freed, independence, .. } = *usage;
                row.extend([size, present, own, shared, freed, independence].map(|n| format_size(n).into_bytes()));
            }
            Err(_) => row.extend(std::iter::repeat_n(b"-".to_vec(), 6)),
        }
        table.row(row);
    }
    table.render()
}

fn group_table(groups: &[(String, Group)], by_uid: bool, terminal: bool) -> Vec<u8> {
    let columns = [
        (if by_uid { "UID" } else { "TREE" }, Align::Left),
        ("VOLUMES", Align::Right),
        ("SIZE", Align::Right),
        ("OWN", Align::Right),
        ("SHARED", Align::Right),
        ("TO COPY", Align::Right),
        ("DEMAND", Align::Right),
    ];
    let mut table = Table::new(&columns);
    for (name, group) in groups {
        let mut row = vec![text::name(name.as_ref(), terminal), group.volumes.to_string().into_bytes()];
        let figures = [group.size, group.own, group.shared, group.independence, group.demand];
        row.extend(figures.map(|bytes| format_size(bytes).into_bytes()));
        table.row(row);
    }
    table.render()
}

fn summary(total: &Total) -> String {
    let Group { volumes, size, own, shared, independence, demand } = total.all;
    let mut out = format!(
        "\n{} of {} take {} on disk; {} of {} free\n",
        text::count(volumes, "volume"),
        format_size(size),
        format_size(own + shared),
        format_size(total.free),
        format_size(total.capacity),
    );
    // Writing to a String cannot fail.
    let _ = writeln!(out, "to make all of them independent: {} at most", format_size(independence));
    let _ = write!(out, "to write all of them in full: {}", format_size(demand));
    if demand > total.free {
        let _ = write!(out, ", which is {} more than is free: OVERCOMMITTED", format_size(demand - total.free));
    }
    let _ = writeln!(out, " ({:.2} times what there is)", total.overcommit);
    if total.unknown > 0 {
        let _ = writeln!(out, "not counted, as they may not be read: {}", text::count(total.unknown, "file"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_when_there_is_not_room_for_all() {
        let all =
            Group { volumes: 3, size: 30 << 30, own: 4 << 30, shared: 0, independence: 2 << 30, demand: 26 << 30 };
        let roomy = Total { all, unknown: 0, free: 40 << 30, capacity: 50 << 30, overcommit: 0.68 };
        let text = summary(&roomy);
        assert!(text.contains("3 volumes of 30G take 4G on disk; 40G of 50G free"), "{text}");
        assert!(!text.contains("OVERCOMMITTED"), "{text}");
        let text = summary(&Total { free: 10 << 30, unknown: 1, ..roomy });
        assert!(text.contains("16G more than is free: OVERCOMMITTED") && text.contains("1 file"), "{text}");
    }
}
