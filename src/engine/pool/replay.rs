//! After the death of a daemon: what it wrote and did not sync is still in the files, and comes into the maps (R16).

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::Pool;
use crate::engine::io::{Fs, Open, SetTime};
use crate::engine::layer::map::{self, Delta, Map};
use crate::engine::layer::unsynced::{self, Changes};
use crate::engine::store::{LAYERS, data_path, log, map_path, stub_path};
use crate::error::{Context, Result};
use crate::units::{Id, blocks};

/// What the catalogue says of a layer with a map.
struct Known {
    /// Its volume, if it is a top layer.
    volume: Option<Id>,
    path: String,
    size: u64,
    overlap: u64,
    records: u64,
}

impl Pool {
    /// Puts the changes that a killed daemon has noted into the maps. Everything must have been synced before: then
    /// the data of every block is durable before its bit is.
    pub(super) fn replay_unsynced(&self) -> Result<()> {
        let fs = self.env.fs.as_ref();
        let found = unsynced::read(fs)?;
        if !found.is_empty() {
            let known = self.mapped_layers();
            for (file, changes) in &found {
                let Some(known) = known.get(file).filter(|_| !changes.failed) else { continue };
                if let Err(error) = self.replay(*file, known, changes) {
                    if error.is_scarcity() && !self.findings.lock().unwritten.contains(file) {
                        return Err(error);
                    }
                    let what =
                        format!("what was written before the daemon was killed, and not synced, is lost: {error}");
                    self.add_trouble(known.path.clone(), what, "check its contents");
                }
            }
            fs.sync_dir(Path::new(LAYERS)).context("sync layers directory", LAYERS)?;
        }
        unsynced::discard(fs)
    }

    /// Layers that have, or can have, a map, by the name of their files.
    fn mapped_layers(&self) -> HashMap<Id, Known> {
        let catalogue = self.env.store.catalogue();
        let layers = catalogue.layers().filter(|l| !l.complete).map(|l| {
            let path = data_path(l.file).to_string_lossy().into_owned();
            (l.file, Known { volume: None, path, size: l.size, overlap: l.overlap, records: l.records })
        });
        let volumes = catalogue.volumes().filter(|v| !v.complete).map(|v| {
            let (path, records) = (v.path.clone(), v.mapped.into());
            (v.file, Known { volume: Some(v.id), path, size: v.size, overlap: v.overlap, records })
        });
        layers.chain(volumes).collect()
    }

    fn replay(&self, file: Id, known: &Known, changes: &Changes) -> Result<()> {
        let fs = &self.env.fs;
        let path = data_path(file);
        let data = match fs.open(&path, Open::Read) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => None,
            other => Some(other.context("open layer data", &path)?),
        };
        let stat = data.as_ref().map(|data| data.stat()).transpose().context("look at layer data", &path)?;
        // The sync of the filesystem can have succeeded where that of the file tells of a page that was lost.
        data.map_or(Ok(()), |data| data.sync_data()).context("sync layer data", &path)?;
        let found = map::read_known(fs.as_ref(), file, known.records)?;
        let (presence, scan) = found.unzip();
        let presence = presence.unwrap_or_default();
        let mut added = changes.over(&presence.present);
        // What the map itself says beyond the end of the data is damage, which whoever opens the layer is to find.
        let mut unwritten = &added - &presence.present;
        unwritten.remove_range(..blocks(stat.map_or(0, |stat| stat.size)).min(u32::MAX.into()) as u32);
        added -= unwritten;
        let extent = changes.extent.or(presence.extent);
        let (size, overlap) = extent.unwrap_or((known.size, known.overlap));
        // A write that grew the volume can have been killed between its two notes (E1).
        added.remove_range(blocks(size).min(u32::MAX.into()) as u32..);
        if added == presence.present && extent == presence.extent {
            return Ok(());
        }
        let whole = Delta { size, overlap, added, replace: true, ..Delta::default() };
        match Map::replace(fs, file, whole.clone()) {
            // On a full disk there is room at the end of the map.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
                let scan = scan.ok_or(error).context("write map", map_path(file))?;
                let appended = append(fs, file, &scan, &whole).context("append to map", map_path(file));
                if appended.is_err() {
                    self.findings.lock().unwritten.insert(file);
                }
                appended?;
            }
            other => drop(other.context("write map", map_path(file))?),
        }
        if let (Some(volume), Some(stat)) = (known.volume, stat) {
            // Failing to is no reason to fail: the bytes are safe.
            let _ = fs.set_times(&stub_path(volume), SetTime::Keep, SetTime::At(stat.mtime));
        }
        Ok(())
    }
}

/// Appends to a map in place. What a sync has failed to write counts as clean from then on: it must not stay.
fn append(fs: &Arc<dyn Fs>, file: Id, scan: &log::Scan, whole: &Delta) -> std::io::Result<()> {
    let mut map = Map::resume(fs, file, scan)?;
    map.append(whole).and_then(|()| map.sync()).inspect_err(|_| {
        let _ = fs.open(&map_path(file), Open::Write).and_then(|old| old.set_len(scan.valid));
    })
}
