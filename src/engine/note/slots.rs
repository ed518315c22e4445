//! Slots: requests that change something, from before they are begun until they are answered.
//!
//! A slot is `Begun` before the first system call that changes anything, and `Done`, with the result, before any other
//! request can build on what it did. A request that comes again (the kernel marks it) and is `Done` is only answered; one
//! that is `Begun` is looked into; one without a slot has changed nothing.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{AT_SLOTS, Note, SLOTS};

/// Set by the kernel in the number of a request that it sends again.
pub const RESENT: u64 = 1 << 63;
/// A slot of a former server is kept for so long after the first request that is not sent again. All that are sent again
/// have been read by then; only the slots of those that were answered the moment before the kill are left.
const STALE: Duration = Duration::from_secs(60);
/// Words that a request may remember in its slot.
pub const WORDS: usize = 4;

const FREE: u64 = 0;
const BEGUN: u64 = 1;
const DONE: u64 = 2;
/// Read by a server, and nothing was begun.
const READ: u64 = 3;
/// After so many deaths by a server's own fault, requests that were there at each of them are suspects.
const SUSPECT: u64 = 2;
/// Bit of the last word of a slot: it was worked on alone. Below it is the number of deaths.
const ALONE: u64 = 1 << 32;

/// How far a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// It was read, and had changed nothing.
    Read,
    /// It may have changed something.
    Begun,
    /// It has this result: an errno below zero, or what it gave.
    Done(i64),
}

/// What a former server has left of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// How far it came.
    pub state: SlotState,
    /// What it remembered when it began.
    pub words: [u64; WORDS],
    /// Servers that it was there with have died by their own fault: it is to be worked on alone.
    pub suspect: bool,
    /// One has died while it was worked on alone.
    pub poison: bool,
    index: u32,
}

/// The slots of a mount. All methods may be called from any thread.
pub struct Slots {
    note: Arc<Note>,
    free: Mutex<Vec<u32>>,
    /// Those of former servers, by the number of their request.
    left: Mutex<HashMap<u64, Left>>,
    /// When the first request came that is not sent again, if any of `left` are there.
    fresh: Mutex<Option<Instant>>,
}

/// The slot of one request; free again when this is dropped, which is after the answer.
pub struct Slot {
    slots: Option<(Arc<Slots>, u32)>,
    unique: u64,
}

impl Slots {
    /// The slots of `note`, with what former servers have left in them.
    pub fn open(note: Arc<Note>) -> Arc<Slots> {
        let (mut free, mut left) = (Vec::new(), HashMap::new());
        let fault = note.take_fault();
        for index in (0..SLOTS.0 as u32).rev() {
            let word = |at: u64| note.word(place(index) + at).load(Ordering::Acquire);
            let state = match word(0) {
                BEGUN => SlotState::Begun,
                DONE => SlotState::Done(word(2) as i64),
                READ => SlotState::Read,
                _ => {
                    free.push(index);
                    continue;
                }
            };
            let (deaths, alone) = ((word(7) & (ALONE - 1)) + u64::from(fault), word(7) & ALONE != 0);
            note.word(place(index) + 7).store(deaths | if alone { ALONE } else { 0 }, Ordering::Release);
            let (suspect, poison) = (deaths >= SUSPECT, fault && alone);
            left.insert(word(1), Left { state, words: [word(3), word(4), word(5), word(6)], suspect, poison, index });
        }
        Arc::new(Slots { note, free: Mutex::new(free), left: Mutex::new(left), fresh: Mutex::new(None) })
    }

    /// What a former server has left of the request, if it is sent again.
    pub fn left(&self, unique: u64) -> Option<Left> {
        if unique & RESENT == 0 {
            self.forget_stale();
            return None;
        }
        self.left.lock().get(&(unique & !RESENT)).copied()
    }

    /// Whether a former server had begun this request and not come to an end with it.
    pub fn was_cut_off(&self, unique: u64) -> bool {
        self.left.lock().get(&(unique & !RESENT)).is_some_and(|left| left.state == SlotState::Begun)
    }

    fn forget_stale(&self) {
        // Seldom more than a look: there is something only after a takeover.
        if self.left.lock().is_empty() {
            return;
        }
        let mut fresh = self.fresh.lock();
        if fresh.get_or_insert_with(Instant::now).elapsed() < STALE {
            return;
        }
        let stale: Vec<Left> = self.left.lock().drain().map(|(_, left)| left).collect();
        for left in stale {
            self.free(left.index);
        }
    }

    fn free(&self, index: u32) {
        self.note.word(place(index)).store(FREE, Ordering::Release);
        self.free.lock().push(index);
    }

    /// A slot for a request. One that a former server has left for the
    /// same request becomes this one.
    pub fn slot(self: &Arc<Self>, unique: u64) -> Slot {
        let unique = unique & !RESENT;
        let left = self.left.lock().remove(&unique).map(|left| left.index);
        let index = left.or_else(|| {
            let index = self.free.lock().pop()?;
            let at = place(index);
            self.note.word(at + 1).store(unique, Ordering::Relaxed);
            self.note.word(at + 7).store(0, Ordering::Relaxed);
            self.note.word(at).store(READ, Ordering::Release);
            Some(index)
        });
        if index.is_none() {
            super::withdraw(super::Reason::Full);
        }
        Slot { slots: index.map(|index| (self.clone(), index)), unique }
    }
}

impl Slot {
    /// None: for a mount that is not to be taken over.
    pub fn none() -> Slot {
        Slot { slots: None, unique: 0 }
    }

    /// The number of the request.
    pub fn unique(&self) -> u64 {
        self.unique
    }

    /// The request is worked on alone: if the server dies of its own fault now, this is what kills it.
    pub fn alone(&self) {
        if let Some((slots, index)) = &self.slots {
            slots.note.word(place(*index) + 7).fetch_or(ALONE, Ordering::AcqRel);
        }
    }

    /// From now on the request may change something.
    pub fn begin(&self, words: [u64; WORDS]) {
        let Some((slots, index)) = &self.slots else { return };
        let at = place(*index);
        for (word, at) in words.into_iter().zip(at + 3..) {
            slots.note.word(at).store(word, Ordering::Relaxed);
        }
        slots.note.word(at + 1).store(self.unique, Ordering::Relaxed);
        slots.note.word(at).store(BEGUN, Ordering::Release);
    }

    /// The request has this result, whoever answers it.
    pub fn done(&self, result: i64) {
        let Some((slots, index)) = &self.slots else { return };
        let at = place(*index);
        slots.note.word(at + 1).store(self.unique, Ordering::Relaxed);
        slots.note.word(at + 2).store(result as u64, Ordering::Relaxed);
        slots.note.word(at).store(DONE, Ordering::Release);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some((slots, index)) = self.slots.take() {
            slots.free(index);
        }
    }
}

fn place(index: u32) -> u64 {
    AT_SLOTS + u64::from(index) * SLOTS.1
}

thread_local! {
    /// The request that this thread works on.
    static MAKER: Cell<u64> = const { Cell::new(0) };
}

/// The request that this thread works on, for as long as it lives.
pub struct By(u64);

/// This thread works on the request of this number.
pub fn by(unique: u64) -> By {
    By(MAKER.replace(unique & !RESENT))
}

/// The request that this thread works on; 0 for none.
pub fn maker() -> u64 {
    MAKER.get()
}

impl Drop for By {
    fn drop(&mut self) {
        MAKER.set(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(note: &Arc<Note>) -> Arc<Slots> {
        Slots::open(note.clone())
    }

    #[test]
    fn a_request_that_was_answered_leaves_nothing() {
        let note = Arc::new(Note::create().unwrap());
        let first = slots(&note);
        let slot = first.slot(10);
        slot.begin([1, 2, 3, 4]);
        slot.done(0);
        drop(slot);
        assert_eq!(slots(&note).left(10 | RESENT), None);
    }

    #[test]
    fn the_next_server_is_told_how_far_a_request_came() {
        let note = Arc::new(Note::create().unwrap());
        let first = slots(&note);
        let (begun, done, unbegun) = (first.slot(10), first.slot(12), first.slot(14));
        begun.begin([1, 2, 3, 4]);
        done.begin([0; WORDS]);
        done.done(-17);
        // As after a kill: nothing is dropped.
        let next = slots(&note);
        let left = next.left(10 | RESENT).unwrap();
        assert_eq!((left.state, left.words), (SlotState::Begun, [1, 2, 3, 4]));
        assert_eq!(next.left(12 | RESENT).unwrap().state, SlotState::Done(-17));
        assert_eq!(next.left(14 | RESENT).unwrap().state, SlotState::Read);
        assert_eq!(next.left(16 | RESENT), None);
        // A number without the mark is another request.
        assert_eq!(next.left(10), None);
        // A request that comes again keeps its slot, and a third server sees it.
        let again = next.slot(10 | RESENT);
        again.done(3);
        assert_eq!(slots(&note).left(10 | RESENT).unwrap().state, SlotState::Done(3));
        std::mem::forget((begun, done, unbegun, again));
    }

    #[test]
    fn what_kills_alone_is_found_and_nothing_else() {
        let note = Arc::new(Note::create().unwrap());
        let first = slots(&note);
        std::mem::forget((first.slot(10), first.slot(12)));
        // Killed by somebody else: nobody is to blame.
        assert!(!slots(&note).left(10 | RESENT).unwrap().suspect);
        let mut next = slots(&note);
        for death in 1..=2 {
            note.set_fault();
            next = slots(&note);
            assert_eq!(next.left(10 | RESENT).unwrap().suspect, death == 2);
        }
        let (guilty, innocent) = (next.slot(10 | RESENT), next.slot(12 | RESENT));
        guilty.alone();
        note.set_fault();
        let last = slots(&note);
        assert!(last.left(10 | RESENT).unwrap().poison);
        assert!(!last.left(12 | RESENT).unwrap().poison);
        std::mem::forget((guilty, innocent));
    }

    /// Prints what a request pays for its slot; a figure of docs/continuity.md.
    #[test]
    #[ignore = "prints a figure"]
    fn what_a_slot_costs() {
        let all = slots(&Arc::new(Note::create().unwrap()));
        let (begun, times) = (Instant::now(), 2_000_000u64);
        for unique in 1..=times {
            let slot = all.slot(unique);
            slot.begin([unique; WORDS]);
            slot.done(0);
        }
        println!("a slot: {} ns", begun.elapsed().as_nanos() / u128::from(times));
    }

    #[test]
    fn no_slot_is_given_twice() {
        let note = Arc::new(Note::create().unwrap());
        let all = slots(&note);
        let held: Vec<Slot> = (0..SLOTS.0).map(|unique| all.slot(unique + 1)).collect();
        let mut indexes: Vec<u32> = held.iter().map(|slot| slot.slots.as_ref().unwrap().1).collect();
        indexes.sort_unstable();
        assert!(indexes.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(all.slot(9999).slots.is_none());
        drop(held);
        assert!(all.slot(9999).slots.is_some());
    }
}
