//! The status of a file as users see it: a volume's, not its stub's.

use std::path::Path;
use std::sync::Weak;

use super::Pool;
use crate::engine::io::{FileKey, Stat};
use crate::engine::store::map_path;
use crate::engine::store::record::VolumeRecord;
use crate::engine::volume::State;
use crate::error::Result;

/// What a stub takes on disk, in units of 512 bytes.
const STUB_BLOCKS: u64 = 8;

impl Pool {
    /// Whether a file is the stub of a volume.
    pub fn is_stub(&self, key: FileKey) -> bool {
        self.tables.lock().stubs.contains_key(&key)
    }

    /// Whether a plain file has clones, as far as its inode tells.
    pub fn is_shared(&self, key: FileKey) -> bool {
        self.tables.lock().shared.contains_key(&key)
    }

    /// What users see of a regular file whose backing file has the status `stat`.
    pub fn describe(&self, path: &Path, mut stat: Stat) -> Result<Stat> {
        let (id, live, shared) = {
            let tables = self.tables.lock();
            let id = tables.stubs.get(&stat.key).copied();
            let live = tables.volumes.get(&stat.key).and_then(Weak::upgrade);
            (id, live, tables.shared.contains_key(&stat.key))
        };
        if shared {
            // The layer's own link is nothing that users should see.
            stat.nlink = stat.nlink.saturating_sub(1);
        }
        let Some(id) = id else { return self.describe_unknown(path, stat) };
        stat.nlink = stat.nlink.saturating_sub(1);
        // The stub's. Never none: tar takes a file without blocks for one large hole, and looks no further.
        stat.blocks = STUB_BLOCKS;
        let live = match live {
            Some(volume) => volume,
            None => {
                let record = self.env.store.catalogue().volume(id).cloned();
                let absent = |e: std::io::Error| e.raw_os_error() == Some(libc::ENOENT);
                let unwritten =
                    |r: &VolumeRecord| !r.complete && self.env.fs.stat(&map_path(r.file)).is_err_and(absent);
                if let Some(record) = record.filter(unwritten) {
                    stat.size = record.size;
                    return Ok(stat);
                }
                self.volume(stat.key, path)?
            }
        };
        match &*live.gate().read() {
            State::Overlay(overlay) => {
                stat.size = overlay.top.size();
                stat.blocks = STUB_BLOCKS.max(overlay.top.disk_bytes() / 512);
            }
            // Never nothing: tar and rsync would take it for an empty file, and not come to the read that fails.
            State::Broken { .. } => stat.size = self.env.store.catalogue().volume(id).map_or(0, |r| r.size).max(1),
            State::Plain(_) => {}
        }
        if let Some(mtime) = live.pending_mtime() {
            stat.mtime = mtime;
            stat.ctime = stat.ctime.max(mtime);
        }
        Ok(stat)
    }

    /// Of a file that is not known as a stub. While records are missing it can be one all the same.
    fn describe_unknown(&self, path: &Path, mut stat: Stat) -> Result<Stat> {
        if stat.size == 0 && !self.env.store.damage().is_empty() {
            let volume = self.volume(stat.key, path)?;
            stat.size = u64::from(matches!(&*volume.gate().read(), State::Broken { .. }));
        }
        Ok(stat)
    }
}
