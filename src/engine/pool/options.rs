//! How a pool is served: what it was opened with, and what policies of the whole pool say since. How a clone is made.

use std::path::Path;

use super::{Pool, Watermarks};
use crate::engine::policy::{Patch, Policy};
use crate::error::Result;
use crate::sync::atomic::Ordering;

/// How a pool is served.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// New clones are deepened without being asked.
    pub deepen_auto: bool,
    /// Limit of background copying in bytes a second, 0 for none.
    pub rate: u64,
    /// Nothing is written.
    pub read_only: bool,
    /// Deepening copies bytes even where blocks could be shared.
    pub physical: bool,
    /// How full the backing filesystem may become.
    pub watermarks: Watermarks,
}

impl Default for PoolOptions {
    fn default() -> PoolOptions {
        PoolOptions { deepen_auto: true, rate: 0, read_only: false, physical: false, watermarks: Watermarks::default() }
    }
}

/// How a clone is made.
#[derive(Clone, Debug, Default)]
pub struct CloneOptions {
    /// Size in bytes, not below the source's; `None`: the source's.
    pub size: Option<u64>,
    /// It stays an overlay until told otherwise.
    pub no_deepen: bool,
    /// It is durable when the call returns.
    pub sync: bool,
    /// Fail where the bytes would have to be copied.
    pub no_copy: bool,
    /// Blocks of the source that the clone shows; the rest is zeros, and `size` may then be anything. `None`: all.
    pub visible: Option<u64>,
    /// The destination may have a size, if nothing was written to it since it was made: all of it is zeros. The clone is
    /// no smaller, at no instant.
    pub over_zeros: bool,
    /// Fail unless the source has this size at the moment of the clone.
    pub exactly: Option<u64>,
}

impl Pool {
    /// Changes the settings of a path, see [`Policies::change`](crate::engine::policy::Policies::change).
    pub fn change_policy(
        &self,
        path: &Path,
        patch: &Patch,
        check: impl FnOnce(&Policy, &Policy) -> Result<()>,
    ) -> Result<()> {
        self.env.store.ensure()?;
        self.policies.change(path, patch, check)?;
        self.obey_policies();
        Ok(())
    }

    /// Looks whether the file of policies was changed by hand.
    pub fn refresh_policies(&self) {
        if self.policies.refresh(self.options.read_only) {
            self.obey_policies();
        }
    }

    /// Does what the policies of the whole pool say.
    pub(super) fn obey_policies(&self) {
        let rate = self.policies.at(Path::new("")).rate;
        let mut obeyed = self.obeyed_rate.lock();
        if *obeyed != rate {
            *obeyed = rate;
            self.rate.store(rate.map_or(self.options.rate, |rate| rate.0), Ordering::Relaxed);
        }
        drop(obeyed);
        self.wake_background();
    }

    /// How it is served.
    pub fn options(&self) -> &PoolOptions {
        &self.options
    }

    /// Limit of background copying in bytes a second, 0 for none.
    pub fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }
}
