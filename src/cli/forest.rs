//! Families of volumes that share blocks, drawn as trees.
//!
//! A volume stands below the plain file that holds its parent layer, or else below the volume that it was cloned from,
//! if that is still there and still shares blocks with it. Where neither is, those with the same parent layer stand
//! below a line that names the layer.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::text;
use crate::protocol::{VolumeInfo, VolumeState};
use crate::units::format_size;

/// Levels that are drawn as such; what is deeper stands on the last one.
const LEVELS: usize = 32;

/// A volume.
pub struct Member<'a> {
    /// Path below the pool's root.
    pub name: &'a Path,
    /// Its state.
    pub info: &'a VolumeInfo,
}

impl Member<'_> {
    /// Whether it shares blocks with others.
    pub fn shares(&self) -> bool {
        self.info.parent.is_some() || self.info.shared_layer.is_some()
    }
}

/// All volumes that share blocks.
pub struct Forest<'a> {
    members: Vec<Member<'a>>,
    /// For each, the one that it stands below.
    above: Vec<Option<usize>>,
}

/// What a family begins with.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Top {
    Member(usize),
    Layer(String),
}

impl<'a> Forest<'a> {
    /// Finds out who stands below whom.
    pub fn new(members: Vec<Member<'a>>) -> Forest<'a> {
        let by_name: HashMap<&Path, usize> = members.iter().enumerate().map(|(i, m)| (m.name, i)).collect();
        let mut holders: HashMap<&str, usize> = HashMap::new();
        for (i, member) in members.iter().enumerate() {
            if let Some(layer) = member.info.shared_layer.as_deref() {
                holders.entry(layer).or_insert(i);
            }
        }
        let mut above: Vec<Option<usize>> = members
            .iter()
            .enumerate()
            .map(|(i, member)| {
                let holder = member.info.parent.as_deref().and_then(|layer| holders.get(layer).copied());
                let origin = member.info.origin.as_deref().and_then(|name| by_name.get(Path::new(name)).copied());
                let origin = origin.filter(|&origin| related(members[origin].info, member.info));
                holder.or(origin).filter(|&other| other != i)
            })
            .collect();
        cut_cycles(&mut above);
        Forest { members, above }
    }

    /// Draws the families that have a member which `wanted` names, then a line for the `alone` others.
    pub fn draw(&self, wanted: impl Fn(&Path) -> bool, alone: usize, terminal: bool) -> Vec<u8> {
        let tops = self.tops();
        let mut families: BTreeMap<&Top, bool> = BTreeMap::new();
        for (member, top) in self.members.iter().zip(&tops) {
            *families.entry(top).or_default() |= wanted(member.name);
        }
        let mut below: HashMap<Top, Vec<usize>> = HashMap::new();
        for (i, above) in self.above.iter().enumerate() {
            let place = above.map(Top::Member).unwrap_or_else(|| tops[i].clone());
            if place != Top::Member(i) {
                below.entry(place).or_default().push(i);
            }
        }
        let mut out = Vec::new();
        for top in families.into_iter().filter(|(_, wanted)| *wanted).map(|(top, _)| top) {
            self.draw_family(top, &below, terminal, &mut out);
        }
        if alone > 0 {
            let files = if alone == 1 { "1 file shares" } else { &format!("{alone} files share") };
            out.extend_from_slice(format!("{files} nothing with another\n").as_bytes());
        }
        out
    }

    /// What the family of each member begins with.
    fn tops(&self) -> Vec<Top> {
        let root = |mut i: usize| {
            while let Some(above) = self.above[i] {
                i = above;
            }
            match (&self.members[i].info.parent, &self.members[i].info.shared_layer) {
                (Some(layer), None) => Top::Layer(layer.clone()),
                _ => Top::Member(i),
            }
        };
        (0..self.members.len()).map(root).collect()
    }

    fn draw_family(&self, top: &Top, below: &HashMap<Top, Vec<usize>>, terminal: bool, out: &mut Vec<u8>) {
        match top {
            Top::Member(i) => self.line(*i, "", terminal, out),
            Top::Layer(layer) => {
                out.extend_from_slice(
                    format!("layer {}, held by no plain file\n", text::safe(layer.as_ref())).as_bytes(),
                );
            }
        }
        // A stack, not recursion: clones of clones can go very deep.
        let mut waiting: Vec<(usize, String, bool)> = Vec::new();
        let push = |waiting: &mut Vec<_>, place: &Top, indent: &str| {
            let children = below.get(place).map(Vec::as_slice).unwrap_or_default();
            for (n, child) in children.iter().enumerate().rev() {
                waiting.push((*child, indent.to_owned(), n + 1 == children.len()));
            }
        };
        push(&mut waiting, top, "");
        while let Some((member, indent, last)) = waiting.pop() {
            self.line(member, &format!("{indent}{}", if last { "`-- " } else { "|-- " }), terminal, out);
            let deeper = if indent.len() / 4 < LEVELS { if last { "    " } else { "|   " } } else { "" };
            push(&mut waiting, &Top::Member(member), &format!("{indent}{deeper}"));
        }
    }

    fn line(&self, member: usize, indent: &str, terminal: bool, out: &mut Vec<u8>) {
        let Member { name, info } = &self.members[member];
        out.extend_from_slice(indent.as_bytes());
        out.extend(text::name(name.as_os_str(), terminal));
        let state = match info.state {
            VolumeState::Independent => info.state.word().to_owned(),
            state => format!("{} {}", state.word(), text::percent(info.progress)),
        };
        let (unique, shared) = (format_size(info.unique_bytes), format_size(info.shared_bytes));
        out.extend_from_slice(format!("  [{state}, unique {unique}, shared {shared}]\n").as_bytes());
    }
}

/// Whether a clone can still share blocks with the volume that has its origin's name now.
fn related(origin: &VolumeInfo, clone: &VolumeInfo) -> bool {
    let layer = clone.parent.as_ref();
    let same = |other: &Option<String>| layer.is_some() && layer == other.as_ref();
    same(&origin.shared_layer) || same(&origin.parent) || clone.depth > origin.depth
}

/// Names are only what they were when the clone was made, so renames can lead in a circle.
fn cut_cycles(above: &mut [Option<usize>]) {
    let mut seen_from = vec![usize::MAX; above.len()];
    for start in 0..above.len() {
        let mut at = start;
        while seen_from[at] == usize::MAX {
            seen_from[at] = start;
            match above[at] {
                Some(next) if seen_from[next] == start => above[at] = None,
                Some(next) => at = next,
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(origin: &str, parent: &str, shared: &str, depth: u32) -> VolumeInfo {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let state = if parent.is_empty() { VolumeState::Independent } else { VolumeState::Overlay };
        VolumeInfo {
            id: None,
            size: 0,
            state,
            progress: 0.0,
            origin: some(origin),
            parent: some(parent),
            shared_layer: some(shared),
            depth,
            unique_bytes: 0,
            shared_bytes: 0,
            freed_if_deleted: 0,
            to_copy: 0,
            queued: false,
            why: None,
            error: None,
            cannot_clone: None,
        }
    }

    /// The names of a drawing, with their indents.
    fn names(volumes: &[(&str, VolumeInfo)], wanted: &str) -> Vec<String> {
        let members = volumes.iter().map(|(name, info)| Member { name: Path::new(name), info }).collect();
        let drawing = Forest::new(members).draw(|name| name.starts_with(wanted), 0, true);
        let text = String::from_utf8(drawing).unwrap();
        text.lines().map(|line| line.split("  [").next().unwrap().to_owned()).collect()
    }

    #[test]
    fn clones_stand_below_what_they_were_cloned_from() {
        let volumes = [
            ("base", volume("", "", "L", 0)),
            ("other", volume("", "", "M", 0)),
            ("vm1", volume("base", "F", "", 2)),
            ("vm2", volume("base", "L", "", 1)),
            ("vm3", volume("vm1", "F", "", 2)),
        ];
        assert_eq!(names(&volumes, ""), ["base", "|-- vm1", "|   `-- vm3", "`-- vm2", "other"]);
        assert_eq!(names(&volumes, "vm3"), ["base", "|-- vm1", "|   `-- vm3", "`-- vm2"]);
    }

    #[test]
    fn a_renamed_source_keeps_its_clones_and_a_deleted_one_leaves_its_layer() {
        let renamed = [("new-name", volume("", "", "L", 0)), ("vm1", volume("base", "L", "", 1))];
        assert_eq!(names(&renamed, ""), ["new-name", "`-- vm1"]);
        let deleted = [("vm1", volume("base", "L", "", 1)), ("vm2", volume("base", "L", "", 1))];
        assert_eq!(names(&deleted, ""), ["layer L, held by no plain file", "|-- vm1", "`-- vm2"]);
    }

    #[test]
    fn a_source_that_was_written_stands_with_its_clones() {
        let volumes = [("base", volume("", "L", "", 1)), ("vm1", volume("base", "L", "", 1))];
        assert_eq!(names(&volumes, ""), ["layer L, held by no plain file", "`-- base", "    `-- vm1"]);
    }

    #[test]
    fn names_that_lead_in_a_circle_end_somewhere() {
        let volumes = [
            ("a", volume("b", "L", "", 1)),
            ("b", volume("c", "L", "", 1)),
            ("c", volume("a", "L", "", 1)),
            ("d", volume("a", "L", "", 1)),
            ("e", volume("e", "L", "", 1)),
        ];
        let mut drawn = names(&volumes, "");
        drawn.sort();
        assert_eq!(drawn.len(), 6, "{drawn:?}");
    }

    #[test]
    fn deep_chains_are_drawn_in_bounded_space() {
        let names: Vec<String> = (0..5000).map(|i| format!("v{i:04}")).collect();
        let infos: Vec<VolumeInfo> = (0..5000u32)
            .map(|i| volume(&i.checked_sub(1).map(|p| names[p as usize].clone()).unwrap_or_default(), "x", "", i + 1))
            .collect();
        let members = names.iter().zip(&infos).map(|(name, info)| Member { name: Path::new(name), info }).collect();
        let drawing = Forest::new(members).draw(|_| true, 2, false);
        assert!(drawing.len() < 5000 * 256, "{}", drawing.len());
        assert!(drawing.ends_with(b"2 files share nothing with another\n"));
    }
}
