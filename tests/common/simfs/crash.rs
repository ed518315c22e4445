//! Crashes: which pending changes reach the disk.

use super::disk::{choose_older, names_alone};
use super::image::{Change, Image};
use super::{Pending, State};
use crate::common::rng::Rng;

/// What a crash leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Only the daemon dies: all it wrote is there.
    Kill,
    /// All that was not synced is lost.
    LoseAll,
    /// Everything reached the disk.
    KeepAll,
    /// Contents, but no names or attributes.
    DataOnly,
    /// Names and attributes, but no contents.
    NamesOnly,
    /// The oldest changes are kept.
    Prefix,
    /// The newest are.
    Suffix,
    /// Each change by itself, torn or whole.
    Random,
}

/// The kinds in which the machine stops.
pub const POWER: [Crash; 7] =
    [Crash::LoseAll, Crash::KeepAll, Crash::DataOnly, Crash::NamesOnly, Crash::Prefix, Crash::Suffix, Crash::Random];

/// A disk as a crash left it.
pub struct Moment {
    pub image: Image,
    pub crash: Crash,
    /// Number of calls before it, and the one that it came before.
    pub call: u64,
    pub before: String,
}

/// Takes images before each call that changes something.
pub struct Capture {
    pub rng: Rng,
    /// Images at each point besides [`Crash::Kill`].
    pub each: u64,
    pub moments: Vec<Moment>,
}

fn crash_now(state: &State, crash: Crash, rng: &mut Rng) -> Image {
    if crash == Crash::Kill {
        let mut image = state.now.clone();
        image.settle();
        return image;
    }
    let mut image = state.durable.clone();
    // What time it was does not come back.
    image.clock = state.now.clock + 1000;
    image.next = state.now.next;
    image.boot += 1;
    let lone = state.options.sync_names && state.options.lone_names;
    if lone && matches!(crash, Crash::LoseAll | Crash::Random) && rng.once_in(2) {
        synced_by_somebody(state, &mut image, rng);
        image.settle();
        return image;
    }
    let cut = rng.below(state.pending.len() as u64 + 1) as usize;
    let mut keep: Vec<u8> = Vec::with_capacity(state.pending.len());
    for (number, Pending { change, .. }) in state.pending.iter().enumerate() {
        let data = change.data_of().is_some();
        keep.push(match crash {
            Crash::LoseAll => 0,
            Crash::DataOnly if !data => 0,
            Crash::NamesOnly if data => 0,
            Crash::Prefix if number >= cut => 0,
            Crash::Suffix if number < cut => 0,
            Crash::Random if matches!(change, Change::Write { .. }) => {
                [0, 0, u8::MAX, u8::MAX, rng.next() as u8][rng.below(5) as usize]
            }
            Crash::Random => [0, u8::MAX][rng.below(2) as usize],
            _ => u8::MAX,
        });
    }
    let mut chosen: Vec<bool> = keep.iter().map(|k| *k != 0).collect();
    choose_older(&state.pending, &mut chosen);
    for ((Pending { change, lost }, keep), chosen) in state.pending.iter().zip(keep).zip(chosen) {
        if chosen && !lost {
            image.apply(change, if keep == 0 { u8::MAX } else { keep });
        }
    }
    image.settle();
    image
}

/// Somebody has just synced a file that was given a name.
fn synced_by_somebody(state: &State, image: &mut Image, rng: &mut Rng) {
    let names = state.pending.iter().filter_map(|pending| match &pending.change {
        Change::Names(entries) => entries.iter().find_map(|entry| entry.new),
        _ => None,
    });
    let named: Vec<u64> = names.collect();
    if named.is_empty() {
        return;
    }
    let ino = named[rng.below(named.len() as u64) as usize];
    names_alone(&state.pending, ino).0.iter().for_each(|change| image.apply(change, u8::MAX));
    for pending in state.pending.iter().filter(|p| !p.lost && p.change.data_of() == Some(ino)) {
        image.apply(&pending.change, u8::MAX);
    }
}

impl State {
    /// Takes images of this moment, if somebody wants them.
    pub(super) fn capture(&mut self, before: &str) {
        let Some(mut capture) = self.capture.take() else { return };
        let call = self.calls;
        let mut kinds = vec![Crash::Kill];
        for _ in 0..capture.each {
            kinds.push(if capture.rng.once_in(2) { Crash::Random } else { POWER[capture.rng.below(7) as usize] });
        }
        // With nothing pending all power cuts leave the same.
        kinds.truncate(if self.pending.is_empty() { 2 } else { usize::MAX });
        for crash in kinds {
            let image = crash_now(self, crash, &mut capture.rng);
            capture.moments.push(Moment { image, crash, call, before: before.to_owned() });
        }
        self.capture = Some(capture);
    }

    pub(super) fn crash(&self, crash: Crash, rng: &mut Rng) -> Image {
        crash_now(self, crash, rng)
    }
}
