//! A volume that was truncated to nothing becomes an empty plain file again, so that it can be cloned into: `cp a b`
//! over an existing `b` truncates it first.
//!
//! Its contents are gone durably already, so every state that a crash leaves on the way reads as an empty file.

use crate::sync::atomic::Ordering;
use std::sync::Arc;

use super::{Pool, stub};
use crate::engine::store::record::Change;
use crate::engine::store::stub_path;
use crate::engine::volume::plain::Plain;
use crate::engine::volume::{State, Volume};
use crate::error::{Context, Result};

impl Pool {
    /// Makes an overlay of size 0 a plain file, if its stub has one name. For whoever is about to clone into it.
    pub(super) fn dissolve_empty(&self, volume: &Arc<Volume>) -> Result<()> {
        volume.settle_bypass();
        let empty_overlay = |state: &State| matches!(state, State::Overlay(overlay) if overlay.top.size() == 0);
        if !empty_overlay(&volume.gate().read()) {
            return Ok(());
        }
        let _switching = volume.switching().lock();
        let mut gate = volume.gate().write();
        let State::Overlay(overlay) = &*gate else { return Ok(()) };
        overlay.check_latch()?;
        let (id, file, stub) = (overlay.id, overlay.top.file_id(), overlay.stub.clone());
        let links = stub.stat().context("look at stub", stub_path(id))?.nlink;
        if overlay.top.size() != 0 || links != 2 {
            return Ok(());
        }
        // Without the text, a mark that a crash brings back says nothing: the file is an empty one all the same.
        stub.set_len(0).and_then(|()| stub.sync_data()).context("empty stub", stub_path(id))?;
        let number = {
            let _ops = self.ops.lock();
            self.env.store.commit(vec![Change::DropVolume(id)])?
        };
        // A sync of the plain file knows nothing of the journal: were the record to come back, what it holds would not
        // be seen.
        overlay.debts.commit.fetch_max(number, Ordering::AcqRel);
        self.env.store.sync(number)?;
        stub::unmark(stub.as_ref());
        let _ = self.env.fs.unlink(&stub_path(id));
        self.dead.lock().push(super::reap::Dead::Files(file));
        let mut tables = self.tables.lock();
        tables.stubs.remove(&volume.key());
        tables.by_id.remove(&id);
        tables.unsettled.remove(&volume.serial);
        drop(tables);
        self.jobs.lock().remove(&id);
        self.failures.lock().remove(&id);
        let plain = Plain::new(stub, None);
        plain.pristine.store(true, Ordering::Release);
        *gate = State::Plain(plain);
        drop(gate);
        self.wake_background();
        Ok(())
    }
}
