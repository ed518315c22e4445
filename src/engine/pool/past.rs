//! What outlives a daemon that let opens go past it: a handle, or a mapping, that still reaches a file of the pool. That
//! there can be some is noted in a file that names the boot of the machine; after the next boot there is none.

use std::path::Path;

use super::Pool;
use crate::engine::io::Open;
use crate::engine::layer::Layer;
use crate::engine::store::PAST;
use crate::error::{Context, Result};
use crate::sync::atomic::Ordering;

/// Longest name of a boot that is looked at.
const LONGEST: usize = 64;

impl Pool {
    /// For the start: whether somebody can have files open past a daemon that is no more. A file that cannot be read, or
    /// was not written to its end, says so too.
    pub(super) fn look_for_past(&self) {
        let fs = &self.env.fs;
        let past = match fs.open(Path::new(PAST), Open::Read) {
            Err(error) => error.raw_os_error() != Some(libc::ENOENT),
            Ok(file) => {
                let mut text = [0; LONGEST];
                let boot = fs.boot_id();
                file.read_at(&mut text, 0).map_or(true, |len| len < boot.len() || text[..len] == *boot.as_bytes())
            }
        };
        self.env.past.store(past, Ordering::Release);
    }

    /// Before the first open goes past the daemon: notes that some do.
    pub fn note_past(&self) -> Result<()> {
        if self.env.past.load(Ordering::Acquire) {
            return Ok(());
        }
        self.env.store.ensure()?;
        let (fs, path) = (&self.env.fs, Path::new(PAST));
        let file = match fs.open(path, Open::CreateNew(0o600)) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => fs.open(path, Open::Write),
            other => other,
        };
        // It need not be durable: a loss of power ends all handles.
        let boot = fs.boot_id();
        let write = |file: crate::engine::io::FileRef| file.set_len(0).and_then(|()| file.write_at(boot.as_bytes(), 0));
        file.and_then(write).context("note that files are opened past the daemon", PAST)?;
        self.env.past.store(true, Ordering::Release);
        Ok(())
    }

    /// Fails if a file at or below a path is written to past the daemon, or may be.
    pub fn check_nobody_writes_past(&self, below: &Path, operation: &'static str) -> Result<()> {
        if !self.env.past.load(Ordering::Acquire) {
            return Ok(());
        }
        for path in self.files_below(below)? {
            let volume = match self.env.fs.stat(&path) {
                Ok(stat) => self.volume(stat.key, &path)?,
                // Removed meanwhile.
                Err(_) => continue,
            };
            volume.settle_bypass();
            volume.check_not_bypassed(operation)?;
        }
        Ok(())
    }

    /// Whether a frozen layer can be read by somebody of whom nothing is known here, so that its file must stay as it is.
    pub(super) fn read_past(&self, layer: &Layer) -> Result<bool> {
        if !self.env.past.load(Ordering::Acquire) {
            return Ok(false);
        }
        Ok(layer.data()?.is_some_and(|data| !data.is_sole().unwrap_or(false)))
    }
}
