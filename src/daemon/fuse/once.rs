//! Each change is made once, however often its request comes.
//!
//! A request that a dead server had read and not answered comes again, marked. What it had changed, nobody but the note
//! and the disk knows. Here each kind of request is told what to do with that; `docs/continuity.md` says why it is right.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use fuser::Request;
use parking_lot::{Condvar, Mutex};

use crate::engine::note::{By, RESENT, SLOT_WORDS, Slot, SlotState, Slots, by};
use crate::error::{Error, Result};

/// Decides for the requests of one mount. The default one is for a mount that ends with its process: it decides nothing.
#[derive(Clone, Default)]
pub struct Once {
    slots: Option<Arc<Slots>>,
    orders: Arc<Orders>,
}

/// A request that changes something, until it is answered.
pub struct Turn {
    slot: Slot,
    before: Before,
    /// Suspects are worked on one at a time.
    _alone: Option<Order>,
}

/// What became of the request with a server before this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    New,
    /// It was begun, and remembered these words.
    Begun([u64; SLOT_WORDS]),
    /// It has this result.
    Done(i64),
}

impl Once {
    /// Decides by these slots.
    pub fn new(slots: Arc<Slots>) -> Once {
        Once { slots: Some(slots), orders: Arc::default() }
    }

    /// Whether anything is decided at all.
    pub fn is_on(&self) -> bool {
        self.slots.is_some()
    }

    /// Begins the work on a request of this kind.
    pub fn turn(&self, kind: &'static str, request: &Request) -> Turn {
        let Some(slots) = &self.slots else {
            return Turn { slot: Slot::none(), before: Before::New, _alone: None };
        };
        let unique = request.unique().0;
        let left = slots.left(unique);
        let before = match left {
            Some(left) if left.poison => {
                tracing::error!("{kind} has killed the server again and again: it is answered with an I/O error");
                Before::Done(-i64::from(libc::EIO))
            }
            None => Before::New,
            Some(left) => match left.state {
                SlotState::Read => Before::New,
                SlotState::Begun => Before::Begun(left.words),
                SlotState::Done(result) => Before::Done(result),
            },
        };
        let slot = slots.slot(unique & !RESENT);
        let suspect = left.is_some_and(|left| left.suspect && !left.poison);
        let alone = suspect.then(|| self.orders.clone().hold(SUSPECTS, 0..1));
        if suspect {
            slot.alone();
        }
        super::deaths::working_on(kind);
        super::deaths::point("receive");
        Turn { slot, before, _alone: alone }
    }

    /// Holds a range of a node's bytes, so that of two writes to it the first is noted as done before the other begins.
    pub fn order(&self, node: u64, range: Range<u64>) -> Option<Order> {
        self.slots.as_ref()?;
        Some(self.orders.clone().hold(node, range))
    }
}

impl Turn {
    /// What became of it before.
    pub fn before(&self) -> Before {
        self.before
    }

    /// While this lives, handles that this thread opens are of this request.
    pub fn making(&self) -> By {
        by(self.slot.unique())
    }

    /// It may change something from now on.
    pub fn begin(&self, words: [u64; SLOT_WORDS]) {
        self.slot.begin(words);
        super::deaths::point("begun");
    }

    /// It has this result.
    pub fn done(&self, result: i64) {
        super::deaths::point("executed");
        self.slot.done(result);
        super::deaths::point("answer");
    }

    /// It must not be worked on: it has killed the server again and again.
    pub fn is_poison(&self) -> bool {
        self.before == Before::Done(-i64::from(libc::EIO))
    }

    /// Does what may be done again after it was begun, but not after it was done: `work` gives what is told to the caller.
    pub fn again(&self, work: impl FnOnce() -> Result<i64>) -> Result<i64> {
        self.unless(|_| Ok(None), work)
    }

    /// The same, where `happened` can see, from what was remembered, whether that was done which was begun.
    pub fn unless(
        &self,
        happened: impl FnOnce([u64; SLOT_WORDS]) -> Result<Option<i64>>,
        work: impl FnOnce() -> Result<i64>,
    ) -> Result<i64> {
        self.with([0; SLOT_WORDS], happened, work)
    }

    /// The same with words to remember.
    pub fn with(
        &self,
        words: [u64; SLOT_WORDS],
        happened: impl FnOnce([u64; SLOT_WORDS]) -> Result<Option<i64>>,
        work: impl FnOnce() -> Result<i64>,
    ) -> Result<i64> {
        let seen = match self.before {
            Before::Done(result) => return answered(result),
            Before::Begun(words) => happened(words)?,
            Before::New => None,
        };
        let result = match seen {
            Some(result) => Ok(result),
            None => {
                self.begin(words);
                work()
            }
        };
        self.done(number(&result));
        result
    }
}

/// Begins the work on a request that changes nothing, or answers it if it has killed servers before.
macro_rules! turn {
    ($adapter:ident, $kind:literal, $request:ident, $reply:ident) => {{
        let turn = $adapter.once.turn($kind, $request);
        if turn.is_poison() {
            return $reply.error(Errno::EIO);
        }
        turn
    }};
}
pub(super) use turn;

/// A result as a number.
pub fn number(result: &Result<i64>) -> i64 {
    match result {
        Ok(value) => *value,
        Err(error) => -i64::from(error.errno()),
    }
}

/// A result out of its number.
pub fn answered(result: i64) -> Result<i64> {
    if result >= 0 {
        return Ok(result);
    }
    let code = i32::try_from(-result).unwrap_or(libc::EIO);
    Err(Error::io("do what a process before this one had done", std::io::Error::from_raw_os_error(code)))
}

const STRIPES: usize = 64;
/// No node has this number: those who hold it are suspects.
const SUSPECTS: u64 = u64::MAX;

/// Ranges of nodes that are being changed.
pub struct Orders([Stripe; STRIPES]);

#[derive(Default)]
struct Stripe {
    held: Mutex<HashMap<u64, Vec<Range<u64>>>>,
    freed: Condvar,
}

/// A range that is held until this is dropped.
pub struct Order {
    orders: Arc<Orders>,
    node: u64,
    range: Range<u64>,
}

impl Default for Orders {
    fn default() -> Orders {
        Orders(std::array::from_fn(|_| Stripe::default()))
    }
}

impl Orders {
    fn stripe(&self, node: u64) -> &Stripe {
        &self.0[(node % STRIPES as u64) as usize]
    }

    fn hold(self: Arc<Orders>, node: u64, range: Range<u64>) -> Order {
        let stripe = self.stripe(node);
        let mut held = stripe.held.lock();
        loop {
            let ranges = held.entry(node).or_default();
            if !ranges.iter().any(|other| other.start < range.end && range.start < other.end) {
                ranges.push(range.clone());
                break;
            }
            stripe.freed.wait(&mut held);
        }
        drop(held);
        Order { orders: self, node, range }
    }
}

impl Drop for Order {
    fn drop(&mut self) {
        let stripe = self.orders.stripe(self.node);
        let mut held = stripe.held.lock();
        if let Some(ranges) = held.get_mut(&self.node) {
            if let Some(at) = ranges.iter().position(|range| *range == self.range) {
                ranges.swap_remove(at);
            }
            if ranges.is_empty() {
                held.remove(&self.node);
            }
        }
        drop(held);
        stripe.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    #[test]
    fn what_overlaps_waits_and_nothing_else() {
        let orders: Arc<Orders> = Arc::default();
        let first = orders.clone().hold(3, 0..10);
        let _beside = orders.clone().hold(3, 10..20);
        let _other = orders.clone().hold(3 + STRIPES as u64, 0..10);
        let passed = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (orders, passed) = (orders.clone(), passed.clone());
            move || {
                let _held = orders.hold(3, 9..10);
                passed.store(true, Ordering::SeqCst);
            }
        });
        std::thread::sleep(Duration::from_millis(50));
        assert!(!passed.load(Ordering::SeqCst));
        drop(first);
        thread.join().unwrap();
        assert!(passed.load(Ordering::SeqCst));
    }

    #[test]
    fn results_survive_as_numbers() {
        assert_eq!(number(&answered(17)), 17);
        assert_eq!(number(&answered(-i64::from(libc::ENOTEMPTY))), -i64::from(libc::ENOTEMPTY));
    }
}
