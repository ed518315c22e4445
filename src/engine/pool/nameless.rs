//! Volumes that have lost their last name and are still open, as a server that takes a mount over finds them.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use super::Pool;
use crate::engine::io::{FileKey, Stat};
use crate::engine::store::stub_path;
use crate::engine::volume::plain::Plain;
use crate::engine::volume::{State, Volume};
use crate::error::{Context, Error, Result};

impl Pool {
    /// The open volume of a file without a name. An overlay is found by its stub, which the pool keeps until it is closed;
    /// a plain file is what `kept` has open.
    ///
    /// # Errors
    /// `ESTALE`: it is neither.
    pub fn nameless(&self, key: FileKey, path: &Path, kept: Option<OwnedFd>) -> Result<(Arc<Volume>, Stat)> {
        let stub = self.tables.lock().stubs.get(&key).copied();
        if let Some(id) = stub {
            let path = stub_path(id);
            let stat = self.env.fs.stat(&path).context("look at stub", &path)?;
            return Ok((self.volume(key, &path)?, stat));
        }
        let gone = || Error::io("find an open file", std::io::Error::from_raw_os_error(libc::ESTALE)).at(path);
        let file = self.env.fs.adopt(kept.ok_or_else(gone)?).context("take an open file over", path)?;
        let stat = file.stat().context("look at an open file", path)?;
        if stat.key != key {
            return Err(gone());
        }
        let shared = self.tables.lock().shared.get(&key).copied();
        let shared = shared.map(|id| self.frozen_layer(id)).transpose()?.flatten();
        if let Some(layer) = &shared {
            layer.set_complete_data(file.clone());
        }
        let volume = Volume::new(self.env.clone(), key, path, State::Plain(Plain::new(file, shared)));
        self.tables.lock().volumes.insert(key, Arc::downgrade(&volume));
        Ok((volume, stat))
    }
}
