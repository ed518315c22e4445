//! `clonefs deepen`, `pause`, `resume` and `wait`.

use std::path::{Path, PathBuf};

use super::args::{DeepenArgs, PathsArgs};
use super::failure::{Outcome, note};
use super::progress::{Meter, Unit};
use super::{interrupt, place, text};
use crate::client::{self, until_independent, volumes};
use crate::error::{Error, Kind, Result};
use crate::protocol::{DeepenAction, DeepenRequest, VolumeState};

/// Starts deepening, and waits for it if asked.
pub fn deepen(args: DeepenArgs) -> Outcome {
    let request = DeepenRequest { action: DeepenAction::Start, rate: args.rate, physical: args.physical };
    let mut targets = overlays(&args.paths)?;
    if targets.is_empty() && args.rate.is_some() {
        // Nothing to start, but the limit is the pool's: any of its files takes it.
        targets.extend(any_volume(&args.paths)?);
    }
    targets.iter().try_for_each(|path| client::deepen(path, &request))?;
    if args.wait { wait_for(&targets) } else { Ok(()) }
}

/// Stops background work.
pub fn pause(args: PathsArgs) -> Outcome {
    pause_or_resume(&args.paths, DeepenAction::Pause)
}

/// Goes on with background work.
pub fn resume(args: PathsArgs) -> Outcome {
    pause_or_resume(&args.paths, DeepenAction::Resume)
}

/// Waits until volumes are independent.
pub fn wait(args: PathsArgs) -> Outcome {
    wait_for(&overlays(&args.paths)?)
}

/// All paths are looked at first, so that a wrong one changes nothing. The root of a mount is the whole pool, with the
/// volumes that are yet to come.
fn pause_or_resume(paths: &[PathBuf], action: DeepenAction) -> Outcome {
    let mut targets = Vec::new();
    for path in paths {
        let place = place::resolve(Some(path))?;
        if place::is_root(&place)? {
            targets.push(place);
        } else {
            targets.extend(overlays(std::slice::from_ref(path))?);
        }
    }
    let request = DeepenRequest { action, rate: None, physical: false };
    targets.iter().try_for_each(|path| client::deepen(path, &request))?;
    Ok(())
}

/// The first volume among `paths` or below them.
fn any_volume(paths: &[PathBuf]) -> Result<Option<PathBuf>> {
    for path in paths {
        let place = place::resolve(Some(path))?;
        if let Some(first) = volumes(&place)?.first() {
            return Ok(Some(first.path(&place)));
        }
    }
    Ok(None)
}

/// The volumes among `paths`, and below those that are directories, that are not independent.
fn overlays(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        let place = place::resolve(Some(path))?;
        let all = volumes(&place)?;
        if all.is_empty() && !place.is_dir() {
            return Err(not_a_volume(path));
        }
        for volume in all {
            let path = volume.path(&place);
            if volume.info?.state != VolumeState::Independent {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn not_a_volume(path: &Path) -> Error {
    Error::new(Kind::Invalid, "deepen").at(path).because("it is no volume").remedy("name a regular file or a directory")
}

/// Waits, with a progress bar.
pub fn wait_for(paths: &[PathBuf]) -> Outcome {
    interrupt::watch();
    let mut meter = Meter::new("deepening", Unit::Bytes);
    let label = |pending: usize| match (pending, paths) {
        (1, [only]) => format!("deepening {}", text::safe(only.as_os_str())),
        (pending, _) => format!("deepening, {pending} to go,"),
    };
    until_independent(paths, &mut |progress| {
        interrupt::check("wait")?;
        meter.say(label(progress.pending));
        meter.update(progress.done, progress.total);
        Ok(())
    })
    .inspect_err(|e| {
        if e.kind() == Kind::Interrupted {
            note("deepening goes on in the background");
        }
    })?;
    Ok(())
}
