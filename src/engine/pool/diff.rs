//! What may differ between two volumes, from the maps of their layers: no byte of data is read. Blocks that both read from
//! the same place are the same; all others may differ.

use std::ops::Range;
use std::sync::Arc;

use super::Pool;
use crate::engine::layer::resolve::{Owner, Segment};
use crate::engine::volume::{State, Volume};
use crate::error::{Context, Error, Kind, Result};
use crate::units::{Id, blocks};

/// Blocks looked at in one step, while both volumes are held.
const STEP: u64 = 1 << 16;

/// What may differ, up to some point.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Runs of blocks, in order.
    pub runs: Vec<Range<u64>>,
    /// Block to go on with, if that is not all.
    pub next: Option<u64>,
}

/// Where a block is read from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Zero,
    Layer(Id),
    /// A plain file that nobody shares.
    Own,
}

/// Blocks up to `end`, and where they are read from.
type Places = Vec<(u64, Place)>;

impl Pool {
    /// Runs of blocks from `from` on that may differ, at least `most` of them if there are so many. What lies beyond the end
    /// of the shorter volume is compared with zeros.
    pub fn differences(&self, one: &Arc<Volume>, other: &Arc<Volume>, from: u64, most: usize) -> Result<Differences> {
        let mut found = Differences::default();
        if Arc::ptr_eq(one, other) {
            return Ok(found);
        }
        let mut at = from;
        loop {
            let end = self.differ_step(one, other, at, &mut found.runs)?;
            at += STEP;
            if at >= end {
                return Ok(found);
            }
            if found.runs.len() >= most {
                found.next = Some(at);
                return Ok(found);
            }
        }
    }

    /// One step; returns the end of the longer volume.
    fn differ_step(&self, one: &Volume, other: &Volume, at: u64, found: &mut Vec<Range<u64>>) -> Result<u64> {
        let (first, second) = if one.serial < other.serial { (one, other) } else { (other, one) };
        let (a, b) = (first.gate().read(), second.gate().read());
        let end = size(first, &a)?.max(size(second, &b)?);
        let range = at..(at + STEP).min(blocks(end));
        if range.is_empty() {
            return Ok(blocks(end));
        }
        let (a, b) = (places(first, &a, range.clone())?, places(second, &b, range.clone())?);
        let (mut i, mut j, mut from) = (0, 0, range.start);
        while let (Some((end_a, place_a)), Some((end_b, place_b))) = (a.get(i), b.get(j)) {
            let to = *end_a.min(end_b);
            // Two files of their own are two.
            if place_a != place_b || *place_a == Place::Own {
                match found.last_mut() {
                    Some(last) if last.end == from => last.end = to,
                    _ => found.push(from..to),
                }
            }
            (i, j, from) = (i + usize::from(*end_a == to), j + usize::from(*end_b == to), to);
        }
        Ok(blocks(end))
    }
}

fn size(volume: &Volume, state: &State) -> Result<u64> {
    match state {
        State::Plain(plain) => Ok(plain.file.stat().context("look at file", volume.path())?.size),
        State::Overlay(overlay) => Ok(overlay.top.size()),
        State::Broken { why, .. } => Err(Error::new(Kind::Damaged, "compare").at(volume.path()).because(why.clone())),
    }
}

/// Where each block of the range is read from; beyond the end of the volume it is zeros.
fn places(volume: &Volume, state: &State, range: Range<u64>) -> Result<Places> {
    let end = blocks(size(volume, state)?).clamp(range.start, range.end);
    let mut places = Places::new();
    let mut push = |to: u64, place: Place| {
        if places.last().map_or(range.start, |(end, _)| *end) < to {
            places.push((to, place));
        }
    };
    match state {
        State::Plain(plain) => {
            push(end, plain.shared.as_ref().map_or(Place::Own, |layer| Place::Layer(layer.id)));
        }
        State::Overlay(overlay) => {
            for Segment { blocks, owner } in overlay.layout(range.start..end) {
                push(blocks.end, if let Owner::Layer(layer) = owner { Place::Layer(layer.id) } else { Place::Zero });
            }
        }
        State::Broken { .. } => {}
    }
    push(range.end, Place::Zero);
    Ok(places)
}
