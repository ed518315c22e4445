//! Answers that depend on who asks: a look at the process, which can take for ever, as its memory may be a file of a
//! filesystem that does not answer. So few looks are under way at a time, of each user and in all, and whoever is not looked
//! at, or not soon, is told the truth.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use fuser::{INodeNo, ReplyAttr};
use parking_lot::Mutex;

use super::once::Turn;
use super::replies::reply_with;
use super::workers::Workers;
use crate::engine::namespace::{Attributes, Caller, NameTree};

/// Looks of one user, and of all, that are under way at a time. Fewer than there are threads.
const EACH: usize = 2;
const ALL: usize = 16;
/// The longest that anybody waits for a look at them.
const LIMIT: Duration = Duration::from_secs(1);

/// The threads for looks.
pub struct Lookers {
    workers: Workers,
    under_way: Arc<UnderWay>,
}

/// Looks by user. Held for a moment only.
#[derive(Default)]
struct UnderWay(Mutex<HashMap<u32, usize>>);

/// One that is under way, until it is dropped.
struct Look {
    user: u32,
    under_way: Arc<UnderWay>,
}

impl UnderWay {
    fn begin(self: &Arc<Self>, user: u32) -> Option<Look> {
        let mut looks = self.0.lock();
        if looks.values().sum::<usize>() >= ALL || looks.get(&user).is_some_and(|count| *count >= EACH) {
            return None;
        }
        *looks.entry(user).or_default() += 1;
        Some(Look { user, under_way: self.clone() })
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        let mut looks = self.under_way.0.lock();
        if let Some(count) = looks.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                looks.remove(&self.user);
            }
        }
    }
}

impl Lookers {
    /// Starts the threads.
    pub fn start() -> io::Result<Lookers> {
        Ok(Lookers { workers: Workers::start()?, under_way: Arc::default() })
    }

    /// Replies with the attributes of `id` as `caller` is to see them, which otherwise are `truth`.
    pub fn reply(
        &self,
        names: &Arc<NameTree>,
        (id, truth): (INodeNo, Attributes),
        caller: Caller,
        lifetime: Duration,
        (reply, turn): (ReplyAttr, Turn),
    ) {
        let Some(look) = self.under_way.begin(caller.uid) else { return reply_with(Ok(truth), lifetime, reply) };
        // For whoever comes first.
        let reply = Arc::new(Mutex::new(Some((reply, turn))));
        let (names, unanswered) = (names.clone(), reply.clone());
        self.workers.run("getattr", caller.uid, move || {
            let attributes = names.attributes_for_copier(id.0, &caller);
            let reply = unanswered.lock().take();
            if let Some((reply, _turn)) = reply {
                reply_with(attributes, lifetime, reply);
            }
            drop(look);
        });
        let looked = reply.clone();
        self.workers.run_when("getattr", caller.uid, (move || looked.lock().is_none(), LIMIT), move || {
            let reply = reply.lock().take();
            if let Some((reply, _turn)) = reply {
                reply_with(Ok(truth), lifetime, reply);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_that_do_not_end_are_few_and_take_from_nobody_until_all_are_taken() {
        let under_way: Arc<UnderWay> = Arc::default();
        let looks: Vec<Look> = (0..EACH).filter_map(|_| under_way.begin(1)).collect();
        assert_eq!(looks.len(), EACH);
        assert!(under_way.begin(1).is_none());
        let others: Vec<Look> = (2..100).filter_map(|user| under_way.begin(user)).collect();
        assert_eq!(others.len(), ALL - EACH);
        drop(others);
        assert!(under_way.begin(2).is_some());
        assert!(under_way.begin(1).is_none());
        drop(looks);
        assert!(under_way.begin(1).is_some());
        assert!(under_way.0.lock().is_empty());
    }
}
