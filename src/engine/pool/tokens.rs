//! Tokens: who holds one may clone the volume that it stands for, for a minute.
//!
//! A token keeps its volume open. So a user has no more than a share of what the daemon may open, and what is given up to
//! make room is the oldest of whoever has most: nobody loses a token because of what somebody else asks for, unless they
//! have asked for as many.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Pool;
use super::settle::open_files;
use crate::engine::volume::Volume;
use crate::error::{Error, Kind, Result};

/// How long a token can be used.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// Tokens of one user at most.
const MOST_OF_USER: usize = 4096;

struct Token<V> {
    stands_for: V,
    made: Instant,
}

/// The tokens of a pool.
pub(super) struct Tokens<V> {
    by_text: HashMap<String, Token<V>>,
    /// Those of each user, the oldest first; some may be void.
    by_user: HashMap<u32, VecDeque<String>>,
    most_of_user: usize,
    most: usize,
}

impl<V> Tokens<V> {
    /// For a daemon that may have so many files open.
    fn new(open_files: usize) -> Tokens<V> {
        let most_of_user = MOST_OF_USER.min(open_files / 8).max(1);
        Tokens { by_text: HashMap::new(), by_user: HashMap::new(), most_of_user, most: (open_files / 4).max(1) }
    }

    fn add(&mut self, text: String, user: u32, stands_for: V, now: Instant) {
        if self.by_user.get(&user).is_some_and(|texts| texts.len() >= self.most_of_user) {
            self.give_up(user);
        }
        if self.by_text.len() >= self.most {
            self.expire_all(now);
        }
        while self.by_text.len() >= self.most {
            let Some((most, _)) = self.by_user.iter().max_by_key(|(_, texts)| texts.len()) else { break };
            self.give_up(*most);
        }
        self.expire(user, now);
        self.by_user.entry(user).or_default().push_back(text.clone());
        self.by_text.insert(text, Token { stands_for, made: now });
    }

    /// Takes the oldest token of a user away.
    fn give_up(&mut self, user: u32) {
        let Some(texts) = self.by_user.get_mut(&user) else { return };
        texts.pop_front().map(|text| self.by_text.remove(&text));
        if texts.is_empty() {
            self.by_user.remove(&user);
        }
    }

    /// Takes away what can no longer be used.
    fn expire(&mut self, user: u32, now: Instant) {
        let old = |token: Option<&Token<V>>| token.is_none_or(|t| now.duration_since(t.made) >= TOKEN_LIFE);
        while self.by_user.get(&user).and_then(VecDeque::front).is_some_and(|text| old(self.by_text.get(text))) {
            self.give_up(user);
        }
    }

    fn expire_all(&mut self, now: Instant) {
        for user in self.by_user.keys().copied().collect::<Vec<_>>() {
            self.expire(user, now);
        }
    }

    fn find(&self, text: &str, now: Instant) -> Option<&V> {
        let found = self.by_text.get(text).filter(|token| now.duration_since(token.made) < TOKEN_LIFE);
        found.map(|token| &token.stands_for)
    }

    /// How many stand for something.
    pub fn count(&self, is: impl Fn(&V) -> bool) -> usize {
        self.by_text.values().filter(|token| is(&token.stands_for)).count()
    }

    /// Those that stand for something can be used no more.
    pub fn void(&mut self, is: impl Fn(&V) -> bool) {
        self.by_text.retain(|_, token| !is(&token.stands_for));
    }

    /// None can be used any more.
    pub fn clear(&mut self) {
        self.by_text.clear();
        self.by_user.clear();
    }
}

impl<V> Default for Tokens<V> {
    fn default() -> Tokens<V> {
        Tokens::new(open_files())
    }
}

impl Pool {
    /// A token that stands for `source`, for this user.
    pub fn token(&self, source: &Arc<Volume>, user: u32) -> Result<String> {
        let token = format!("{}{}", crate::engine::store::new_id(), crate::engine::store::new_id());
        self.tokens.lock().add(token.clone(), user, source.clone(), Instant::now());
        Ok(token)
    }

    /// The volume that a token stands for.
    pub fn redeem(&self, token: &str) -> Result<Arc<Volume>> {
        // Another pool's token, as far as this one can tell.
        self.tokens.lock().find(token, Instant::now()).cloned().ok_or_else(|| {
            Error::new(Kind::CrossPool, "find clone source").remedy("source and destination must be in one pool")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_loses_tokens_because_another_user_asks_for_many() {
        let mut tokens: Tokens<u32> = Tokens::new(80);
        let now = Instant::now();
        tokens.add("mine".into(), 1, 1, now);
        for number in 0..1000 {
            tokens.add(format!("a{number}"), 2, number, now);
            tokens.add(format!("b{number}"), 3, number, now);
        }
        assert_eq!(tokens.find("mine", now), Some(&1));
        assert_eq!(tokens.find("a999", now), Some(&999));
        assert_eq!(tokens.find("a900", now), None);
        assert!(tokens.by_text.len() <= 20, "{}", tokens.by_text.len());
        assert_eq!(tokens.by_text.len(), tokens.by_user.values().map(VecDeque::len).sum::<usize>());
    }

    #[test]
    fn old_tokens_go_and_void_ones_take_no_room() {
        let mut tokens: Tokens<u32> = Tokens::new(80);
        let now = Instant::now();
        tokens.add("old".into(), 1, 1, now);
        let later = now + TOKEN_LIFE;
        assert_eq!(tokens.find("old", later), None);
        tokens.add("new".into(), 1, 2, later);
        assert_eq!((tokens.by_text.len(), tokens.by_user[&1].len()), (1, 1));
        assert_eq!(tokens.count(|number| *number == 2), 1);
        tokens.void(|number| *number == 2);
        tokens.add("newer".into(), 1, 3, later);
        assert_eq!((tokens.by_text.len(), tokens.by_user[&1].len()), (1, 1));
    }
}
