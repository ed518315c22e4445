//! Tokens: who holds one may clone the volume that it stands for, for a minute.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Pool;
use crate::error::{Error, Kind, Result};
use crate::volume::Volume;

/// How long a token can be used.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// Tokens kept at most; the oldest go first.
const TOKEN_LIMIT: usize = 4096;

impl Pool {
    /// A token that stands for `source`.
    pub fn token(&self, source: &Arc<Volume>) -> Result<String> {
        let token = format!("{}{}", crate::store::new_id(), crate::store::new_id());
        let mut tokens = self.tokens.lock();
        tokens.retain(|_, (_, made)| made.elapsed() < TOKEN_LIFE);
        while tokens.len() >= TOKEN_LIMIT {
            let oldest = tokens.iter().min_by_key(|(_, (_, made))| *made).map(|(t, _)| t.clone());
            oldest.map(|t| tokens.remove(&t));
        }
        tokens.insert(token.clone(), (source.clone(), Instant::now()));
        Ok(token)
    }

    /// The volume that a token stands for.
    pub fn redeem(&self, token: &str) -> Result<Arc<Volume>> {
        let tokens = self.tokens.lock();
        let found = tokens.get(token).filter(|(_, made)| made.elapsed() < TOKEN_LIFE);
        // Another pool's token, as far as this one can tell.
        found.map(|(volume, _)| volume.clone()).ok_or_else(|| {
            Error::new(Kind::CrossPool, "find clone source").remedy("source and destination must be in one pool")
        })
    }
}
