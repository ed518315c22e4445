//! The destination of a clone: what it must be, and the size and record of what it becomes.

use crate::engine::store::record::{Base, Deepening, VolumeRecord};
use crate::engine::volume::plain::Plain;
use crate::engine::volume::{State, Volume};
use crate::error::{Context, Error, Kind, Result};
use crate::sync::atomic::Ordering;
use crate::units::{Id, MAX_VOLUME};

use super::CloneOptions;

/// The size of a clone of something of `size` bytes.
pub(super) fn clone_size(target: &Volume, size: u64, options: &CloneOptions) -> Result<u64> {
    let wanted = options.size.unwrap_or(size);
    if wanted < size && options.visible.is_none() {
        return Err(Error::new(Kind::Invalid, "clone")
            .at(target.path())
            .because(format!("{wanted} bytes is less than the source has ({size})")));
    }
    if wanted > MAX_VOLUME {
        return Err(Error::new(Kind::TooLarge, "clone").at(target.path()).remedy("a volume has at most 16T less 4K"));
    }
    Ok(wanted)
}

/// The record of a new clone: its identity and that of its top layer, `overlap` blocks of `parent`, its size and, where
/// it can go back to this, its owner.
pub(super) fn clone_record(
    (id, top): (Id, Id),
    (source, target): (&str, &Volume),
    parent: Option<Id>,
    (overlap, size): (u64, u64),
    uid: Option<u32>,
    options: &CloneOptions,
) -> VolumeRecord {
    let base = parent.zip(uid).map(|(layer, uid)| Base { layer, visible: overlap, size, uid });
    VolumeRecord {
        origin: Some(source.to_owned()),
        deepening: if options.no_deepen { Deepening::Never } else { Deepening::Pool },
        base,
        ..VolumeRecord::over(id, top, parent, (overlap, size), target.path().to_string_lossy().into_owned())
    }
}

/// The destination must be an empty plain file of so many links; with `zeros`, one that nothing was written to. Returns its
/// size too.
pub(super) fn check_target<'a>(target: &Volume, gate: &'a State, links: u64, zeros: bool) -> Result<(&'a Plain, u64)> {
    let refuse = |why: &'static str| {
        let remedy = "a clone goes into a new, empty file";
        Err(Error::new(Kind::Exists, "clone").at(target.path()).because(why).remedy(remedy))
    };
    let State::Plain(plain) = gate else { return refuse("the destination is not empty") };
    target.check_not_bypassed("clone into")?;
    let stat = plain.file.stat().context("look at destination", target.path())?;
    let nothing = stat.size == 0 || zeros && plain.pristine.load(Ordering::Acquire);
    if !nothing || plain.shared.is_some() {
        return refuse("the destination is not empty");
    }
    if stat.nlink != links {
        return refuse("the destination has more than one name, or none");
    }
    Ok((plain, stat.size))
}
