//! `clonefs tree`: who shares blocks with whom.

use std::path::{Path, PathBuf};

use super::args::TreeArgs;
use super::failure::Outcome;
use super::forest::{Forest, Member};
use super::{place, text};
use crate::client::{mount_at, volumes};
use crate::error::{Context, Result};

/// Draws the families of volumes that have a member at or below a path.
pub fn tree(args: TreeArgs) -> Outcome {
    let place = place::resolve(args.path.as_deref())?;
    let (root, below) = split(&place)?;
    let found = volumes(&root)?;
    let here = |name: &Path| name.starts_with(&below);
    let members: Vec<Member> = found
        .iter()
        .filter_map(|found| Some(Member { name: &found.name, info: found.info.as_ref().ok()? }))
        .filter(Member::shares)
        .collect();
    let alone = found.iter().filter(|found| here(&found.name)).count()
        - members.iter().filter(|member| here(member.name)).count();
    text::print(Forest::new(members).draw(here, alone, text::on_terminal()))
}

/// The root of the mount that `place` is on, and the path of `place` below it: origins are named from the root.
fn split(place: &Path) -> Result<(PathBuf, PathBuf)> {
    let full = place.canonicalize().context("find the path of", place)?;
    Ok(match mount_at(&full)? {
        Some(mount) => {
            let below = full.strip_prefix(&mount.mountpoint).unwrap_or(Path::new("")).to_path_buf();
            (mount.mountpoint, below)
        }
        None => (full, PathBuf::new()),
    })
}
