//! Source and destination that are one file: when that is harmless, and when copying would destroy it.

use std::path::Path;

use crate::names;
use crate::settings::{Backup, Follow, Settings};
use crate::stat::Stat;

/// What source and destination have to do with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Different enough to go on.
    Distinct,
    /// Already what was asked for: nothing is to be done, and that is a success.
    Done,
    /// One file: copying would destroy it.
    Same,
}

/// Compares `source` with an existing `destination`. The stats are those that copying works with: of the link or of
/// what it leads to, as the settings say.
pub fn relation(source: &Path, from: &Stat, destination: &Path, to: &Stat, s: &Settings) -> Relation {
    let same = from.id() == to.id();
    if same && s.hard_link {
        return Relation::Done;
    }
    let followed = s.follow != Follow::Never;
    if followed && !same {
        return Relation::Distinct;
    }
    // What the two names are, without following them.
    let (from, to) = if followed {
        match (Stat::of_link(source), Stat::of_link(destination)) {
            (Ok(from), Ok(to)) => (from, to),
            _ => return Relation::Distinct,
        }
    } else {
        (*from, *to)
    };
    let same = from.id() == to.id();
    let both_links = from.is_link() && to.is_link();
    if !followed && both_links {
        return two_links(source, destination, same, s);
    }
    if followed && both_links && s.remove_first {
        return Relation::Distinct;
    }
    if s.backup != Backup::None {
        return with_backup(source, &from, destination, &to, s);
    }
    if s.remove_first && (to.is_link() || (same && to.nlink > 1 && !names::same(source, destination))) {
        // Only one of two names goes; the other keeps the contents.
        return Relation::Distinct;
    }
    if !from.is_link() && !to.is_link() && !same {
        return Relation::Distinct;
    }
    if s.symbolic_link && to.is_link() {
        return Relation::Distinct;
    }
    if !followed {
        return behind_links(source, &from, destination, &to, s);
    }
    Relation::Same
}

/// Both are symbolic links, to be copied as such: only one and the same name is the same.
fn two_links(source: &Path, destination: &Path, one_inode: bool, s: &Settings) -> Relation {
    if names::same(source, destination) {
        Relation::Same
    } else if s.backup == Backup::None && one_inode {
        Relation::Done
    } else {
        Relation::Distinct
    }
}

/// The destination is renamed away first: harmless unless that takes the source's contents away too.
fn with_backup(source: &Path, from: &Stat, destination: &Path, to: &Stat, s: &Settings) -> Relation {
    let destroys = if from.id() == to.id() {
        names::same(source, destination)
    } else {
        // The source is a link to the destination: it would lead nowhere.
        s.follow != Follow::Never && from.is_link() && !to.is_link()
    };
    if destroys { Relation::Same } else { Relation::Distinct }
}

/// Links are not followed, and at most one of the two is a link: compare what they lead to.
fn behind_links(source: &Path, from: &Stat, destination: &Path, to: &Stat, s: &Settings) -> Relation {
    let target = |path: &Path, stat: &Stat| if stat.is_link() { Stat::of(path) } else { Ok(*stat) };
    let to_is_link = to.is_link();
    match (target(source, from), target(destination, to)) {
        (Ok(from), Ok(to)) if from.id() == to.id() => {
            match (s.hard_link, to_is_link) {
                (true, false) => Relation::Done,
                // The link itself is in the way of the new name.
                (true, true) => Relation::Distinct,
                (false, _) => Relation::Same,
            }
        }
        _ => Relation::Distinct,
    }
}
