//! Points in time that nothing on disk names: for an export, a handle, a group that is being made.

use std::sync::Arc;

use super::Pool;
use super::clone::{ATTEMPTS, is_unshared};
use super::fit::Unfit;
use crate::engine::volume::{Pinned, Volume};
use crate::error::Result;

impl Pool {
    /// Holds the volume as it is at one moment of this call, for reading. Not on a thread that serves writes.
    pub fn pin(self: &Arc<Self>, source: &Arc<Volume>) -> Result<Pinned> {
        let _naming = source.naming().read();
        self.pin_named(source)
    }

    /// The same for whoever has the naming.
    pub(super) fn pin_named(self: &Arc<Self>, source: &Arc<Volume>) -> Result<Pinned> {
        for _ in 1..ATTEMPTS {
            match self.pin_once(source) {
                Err(error) if error.os_error() == Some(libc::EAGAIN) => drop(source.switching().lock()),
                other => return other,
            }
        }
        self.pin_once(source)
    }

    fn pin_once(self: &Arc<Self>, source: &Arc<Volume>) -> Result<Pinned> {
        self.check_can_clone()?;
        self.check_elsewhere(source)?;
        self.env.store.ensure()?;
        let mut unfit = self.unfit_source(source)?;
        self.flush_cached(source);
        let mut gate = source.gate().write();
        let moment = match &unfit {
            Some(_) if is_unshared(&gate) => None,
            _ => self.moment_with(source, &mut gate, None, &mut unfit)?,
        };
        let moment = moment.ok_or_else(|| {
            let unfit = unfit.unwrap_or_else(|| Unfit("it has several names".to_owned()));
            unfit.error("hold a point in time", source)
        })?;
        let pinned = Pinned::new(self.env.clone(), moment.layer.clone(), moment.visible, moment.size);
        self.commit_moment(source, &mut gate, moment)?;
        Ok(pinned)
    }
}
