//! `clonefs scrub`, with the exit codes of fsck.

use std::thread::sleep;
use std::time::Duration;

use super::args::ScrubArgs;
use super::check::{DAMAGED, NOT_CHECKED};
use super::failure::{Failure, Outcome, note};
use super::progress::{Meter, Unit};
use super::{interrupt, place, text};
use crate::client::doors;
use crate::error::{Kind, Result};
use crate::protocol::ScrubStatus;

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Scrubs a mounted pool.
pub fn scrub(args: ScrubArgs) -> Outcome {
    let status = run(&args).map_err(|e| match e.kind() {
        Kind::Interrupted => Failure::Error(e),
        _ => Failure::Code(NOT_CHECKED, e),
    })?;
    let Some(status) = status else { return Ok(()) };
    if args.json {
        text::print_json(&status)?;
    } else {
        text::print(describe(&status, text::on_terminal()))?;
    }
    if status.damaged.is_empty() { Ok(()) } else { Err(Failure::Exit(DAMAGED)) }
}

/// `None`: it goes on by itself.
fn run(args: &ScrubArgs) -> Result<Option<ScrubStatus>> {
    let place = place::resolve(args.path.as_deref())?;
    let root = if place.is_dir() { place } else { place.parent().map(Into::into).unwrap_or_default() };
    let look = || Ok(doors::status(&root)?.and_then(|status| status.scrub).unwrap_or_default());
    let before = look()?;
    doors::scrub(&root)?;
    if args.no_wait {
        return Ok(None);
    }
    interrupt::watch();
    let mut meter = Meter::new("scrubbing", Unit::Bytes);
    loop {
        let status = look()?;
        // One that was under way already has the number that it had.
        if !status.running && (status.runs > before.runs || before.running) {
            return Ok(Some(status));
        }
        meter.update(status.done.min(status.total), status.total);
        interrupt::check("scrub").inspect_err(|_| note("scrubbing goes on in the background"))?;
        sleep(PAUSE);
    }
}

fn describe(status: &ScrubStatus, terminal: bool) -> Vec<u8> {
    let mut out = Vec::new();
    for damage in &status.damaged {
        for (line, end) in [(&damage.path, ": "), (&damage.problem, "\n    "), (&damage.remedy, "\n")] {
            out.extend(text::name(line.as_ref(), terminal));
            out.extend_from_slice(end.as_bytes());
        }
    }
    let found = match status.damaged.len() {
        0 => "nothing damaged".to_owned(),
        count => text::count(count as u64, "damaged layer"),
    };
    let compared = text::count(status.compared, "layer");
    let summed = match status.summed {
        0 => String::new(),
        count => format!("; checksums taken of {}, to be compared next time", text::count(count, "layer")),
    };
    out.extend(format!("{found}: {compared} compared{summed}\n").into_bytes());
    out
}
