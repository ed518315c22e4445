//! What of a volume is durable: syncs, the time of the last write, and what is owed still.

use std::sync::Arc;

use super::overlay::Overlay;
use super::syncing::Debts;
use super::{State, Volume};
use crate::engine::io::{SetTime, Timestamp};
use crate::error::{Context, Result};
use crate::sync::atomic::Ordering;

impl Volume {
    /// Makes contents and size durable, and the name of a new clone too. The gate is held only for a look, so that a
    /// clone never waits for a sync.
    pub fn sync(self: &Arc<Self>, data_only: bool) -> Result<()> {
        self.sync_as(data_only, None)
    }

    /// The same after a sync of the whole filesystem: what `names` of the volume owed before that, names included, is
    /// paid. It can be another volume by now, with names of its own.
    pub fn sync_as(self: &Arc<Self>, data_only: bool, names: Option<&Arc<Debts>>) -> Result<()> {
        let synced = self.sync_once(data_only, names);
        if synced.is_err()
            && let Ok(hooks) = self.env.hooks()
        {
            hooks.sync_failed(self);
        }
        synced
    }

    fn sync_once(&self, data_only: bool, names: Option<&Arc<Debts>>) -> Result<()> {
        let gate = self.gate.read();
        match &*gate {
            State::Plain(plain) => {
                let (file, durability) = (plain.file.clone(), plain.durability.clone());
                drop(gate);
                durability.sync(self.env.fs.as_ref(), &file, data_only).map_err(|e| e.at(self.path()))
            }
            State::Overlay(overlay) => {
                self.flush_mtime(overlay);
                let (syncing, stub) = (overlay.syncing(), overlay.stub.clone());
                let names_synced = names.is_some_and(|debts| Arc::ptr_eq(debts, &overlay.debts));
                drop(gate);
                let stub_synced = syncing.run(self.env.fs.as_ref(), &self.env.store, names_synced)?;
                if data_only || stub_synced { Ok(()) } else { stub.sync_all().context("sync stub", self.path()) }
            }
            State::Broken { why, .. } => Err(Volume::broken(why)),
        }
    }

    /// What an overlay has to make durable besides its own layer, for [`Volume::sync_as`].
    pub fn debts(&self) -> Option<Arc<Debts>> {
        match &*self.gate.read() {
            State::Overlay(overlay) => Some(overlay.debts.clone()),
            _ => None,
        }
    }

    /// Puts the time of the last write into the stub. Failing to is no reason to fail a sync: the bytes are safe.
    fn flush_mtime(&self, overlay: &Overlay) {
        if let Some(at) = self.mtime.lock().take() {
            overlay.mtime_dirty.store(false, Ordering::Release);
            let _ = overlay.stub.set_times(SetTime::Keep, SetTime::At(at));
        }
    }

    /// Same, for callers outside a sync.
    pub fn settle_mtime(&self) {
        if let State::Overlay(overlay) = &*self.gate.read() {
            self.flush_mtime(overlay);
        }
    }

    /// Time of the last write that the stub does not carry yet.
    pub fn pending_mtime(&self) -> Option<Timestamp> {
        *self.mtime.lock()
    }

    /// Forgets it, because the user sets another time.
    pub fn forget_mtime(&self) {
        *self.mtime.lock() = None;
    }

    /// Whether something was written that is not durable.
    pub fn is_dirty(&self) -> bool {
        match &*self.gate.read() {
            State::Plain(plain) => plain.is_dirty(),
            State::Overlay(overlay) => overlay.is_dirty(),
            State::Broken { .. } => false,
        }
    }

    /// Whether all that was written is durable, and no sync of it, which could still fail, is under way.
    pub fn is_settled(&self) -> bool {
        match &*self.gate.read() {
            State::Plain(plain) => !plain.is_dirty() && self.bypasses.load(Ordering::SeqCst) == 0,
            State::Overlay(overlay) => !overlay.is_dirty() && overlay.top.is_settled(),
            State::Broken { .. } => true,
        }
    }

    /// After a sync that failed: whether it failed for good, so that what was not synced is not kept for another daemon
    /// either.
    pub fn note_failure(&self) -> bool {
        match &*self.gate.read() {
            State::Overlay(overlay) => overlay.note_failure(),
            _ => true,
        }
    }
}
