//! `clonefs diff`.

use std::path::Path;

use serde::Serialize;

use super::args_life::DiffArgs;
use super::failure::Outcome;
use super::progress::{Meter, Unit};
use super::{interrupt, text};
use crate::client::{self, Difference};
use crate::units::format_size;

/// What differs, as JSON.
#[derive(Serialize)]
struct Report {
    one: Side,
    other: Side,
    /// Bytes that differ.
    bytes: u64,
    extents: Vec<Extent>,
    /// The bytes were compared; if not, some of them can be the same.
    compared: bool,
}

#[derive(Serialize)]
struct Side {
    path: String,
    size: u64,
}

#[derive(Serialize)]
struct Extent {
    offset: u64,
    length: u64,
}

/// Prints what differs between two volumes.
pub fn diff(args: &DiffArgs) -> Outcome {
    interrupt::watch();
    let (one, other) = (client::file_or_snapshot(&args.one)?, client::file_or_snapshot(&args.other)?);
    let mut meter = Meter::new("comparing", Unit::Bytes);
    let found = client::diff(&one, &other, args.maps_only, &mut |done, total| {
        meter.update(done, total);
        interrupt::check("compare")
    })?;
    drop(meter);
    if args.json {
        return text::print_json(&report(args, &found));
    }
    let mut lines = String::new();
    for (offset, len) in &found.extents {
        lines.push_str(&format!("{offset} {len}\n"));
    }
    let [a, b] = found.sizes;
    if a != b {
        lines.push_str(&format!("sizes: {} and {}\n", format_size(a), format_size(b)));
    }
    let count = text::count(found.extents.len() as u64, "extent");
    lines.push_str(&format!("{} in {count}\n", format_size(found.bytes())));
    text::print(lines)
}

fn report(args: &DiffArgs, found: &Difference) -> Report {
    let side = |path: &Path, size| Side { path: path.to_string_lossy().into_owned(), size };
    Report {
        one: side(&args.one, found.sizes[0]),
        other: side(&args.other, found.sizes[1]),
        bytes: found.bytes(),
        extents: found.extents.iter().map(|(offset, length)| Extent { offset: *offset, length: *length }).collect(),
        compared: !args.maps_only,
    }
}
