//! What volumes take on disk: their own, what they share, what comes free, what independence costs.
//!
//! Space belongs to data files, and each file to those that read it. Who that is follows from the catalogue alone, so
//! it is counted for all layers at once, and again only when a record has changed. Nothing here holds a lock that reads
//! and writes need.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::Mutex;
use roaring::RoaringBitmap;

use super::Pool;
use crate::engine::io::{Timestamp, Whence};
use crate::engine::layer::Layer;
use crate::engine::store::catalogue::Catalogue;
use crate::engine::store::data_path;
use crate::engine::volume::{State, Volume};
use crate::error::{Context, Result};
use crate::protocol::{Piece, VolumeUsage};
use crate::units::{BLOCK, Id, blocks};

/// Most files of a chain that are told one by one; those below are taken together.
const MOST_PIECES: usize = 1200;
/// Sets of blocks that are remembered; above that all are forgotten.
const MOST_SETS: usize = 256;

/// With no more volumes and layers than this, readers are counted whenever something has changed.
const FEW: usize = 512;
/// With more, what was counted serves for so many times as long as that took.
const SHARE: u32 = 20;

/// What was counted, while it still holds.
#[derive(Default)]
pub(super) struct Counted(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    /// For the catalogue after this change.
    committed: Option<u64>,
    /// When that was, and how long it took.
    counted: Option<(Instant, Duration)>,
    /// Volumes that read each layer, directly or through others.
    readers: Arc<HashMap<Id, u64>>,
    /// Blocks that a copy of all that a layer shows would need, by the layer and how much of it can be seen.
    copies: HashMap<(Id, u64), u64>,
    /// Blocks of frozen layers that are data, by the layer.
    data: HashMap<Id, (Stamp, Arc<RoaringBitmap>)>,
}

/// Differs when the data of a layer has changed, which an adoption does.
type Stamp = (Id, u64, u64, Timestamp);

impl Counts {
    /// Whether it can be counted again. Changes of the catalogue wait meanwhile, and anybody may ask: it takes a small
    /// part of the time however many ask.
    fn is_due(&self, now: Instant) -> bool {
        self.counted.is_none_or(|(at, took)| now.duration_since(at) >= took * SHARE)
    }
}

impl Pool {
    /// What one volume takes.
    pub fn usage(&self, volume: &Arc<Volume>) -> Result<VolumeUsage> {
        // A look; the rest is done with nothing held.
        let (stat, plain, overlay) = {
            let gate = volume.gate().read();
            match &*gate {
                State::Plain(plain) => {
                    (plain.file.stat().context("look at", volume.path())?, Some(plain.shared.clone()), None)
                }
                State::Overlay(overlay) => {
                    let stat = overlay.stub.stat().context("look at", volume.path())?;
                    (stat, None, Some((overlay.top.clone(), overlay.visible_end())))
                }
                State::Broken { why, .. } => {
                    return Err(crate::error::Error::new(crate::error::Kind::Damaged, "count")
                        .at(volume.path())
                        .because(why.clone()));
                }
            }
        };
        let readers = self.readers();
        let mut usage = VolumeUsage { uid: stat.uid, ..VolumeUsage::default() };
        let mut names = stat.nlink;
        if let Some(shared) = plain {
            let disk = stat.blocks * 512;
            (usage.size, usage.present) = (stat.size, blocks(stat.size) * BLOCK);
            let layer = shared.filter(|layer| self.env.store.catalogue().layer(layer.id).is_some());
            names -= u64::from(layer.is_some());
            usage.pieces.push(match layer {
                Some(layer) => Piece {
                    id: layer.id.to_string(),
                    disk,
                    readers: 1 + readers.get(&layer.id).copied().unwrap_or_default(),
                },
                None => Piece { id: String::new(), disk, readers: 1 },
            });
        }
        if let Some((top, visible)) = overlay {
            names = names.saturating_sub(1);
            (usage.size, usage.present) = (top.size(), top.present_below(blocks(top.size())) * BLOCK);
            usage.pieces = self.pieces(&top, &readers);
            usage.independence = self.missing(&top, visible)? * BLOCK;
        }
        let sum = |own: bool| usage.pieces.iter().filter(|p| (p.readers == 1) == own).map(|p| p.disk).sum();
        (usage.own, usage.shared) = (sum(true), sum(false));
        usage.freed = if names == 1 { usage.own } else { 0 };
        Ok(usage)
    }

    /// The files that an overlay reads. Neighbours that the same volumes read are one: readers of a layer read what is
    /// below it too, so equal numbers mean the same readers.
    fn pieces(&self, top: &Arc<Layer>, readers: &HashMap<Id, u64>) -> Vec<Piece> {
        let mut pieces = vec![Piece { id: top.id.to_string(), disk: top.disk_bytes(), readers: 1 }];
        let mut below = top.parent();
        while let Some(layer) = below {
            let stat = self.env.fs.stat(&data_path(layer.file_id())).ok();
            let named = stat.is_some_and(|stat| stat.nlink > 1);
            let count = readers.get(&layer.id).copied().unwrap_or(1) + u64::from(named);
            let disk = stat.map_or(0, |stat| stat.blocks * 512);
            let full = pieces.len() >= MOST_PIECES;
            match pieces.last_mut() {
                Some(last) if last.readers == count || full => last.disk += disk,
                _ => pieces.push(Piece { id: layer.id.to_string(), disk, readers: count }),
            }
            below = layer.parent();
        }
        pieces
    }

    /// How many volumes read each layer.
    fn readers(&self) -> Arc<HashMap<Id, u64>> {
        let mut counts = self.counted.0.lock();
        // Before the look at the catalogue: what is committed between the two is counted again next time.
        let (committed, begun) = (self.env.store.committed(), Instant::now());
        if counts.committed != Some(committed) && counts.is_due(begun) {
            let few = {
                let catalogue = self.env.store.catalogue();
                counts.readers = Arc::new(count_readers(&catalogue));
                catalogue.volume_count() + catalogue.layer_count() <= FEW
            };
            counts.counted = (!few).then(|| (Instant::now(), begun.elapsed()));
            counts.copies.clear();
            counts.committed = Some(committed);
        }
        counts.readers.clone()
    }

    /// Blocks with data that `top` would have to copy from below.
    fn missing(&self, top: &Arc<Layer>, visible: u64) -> Result<u64> {
        let Some(parent) = top.parent() else { return Ok(0) };
        let key = (parent.id, visible);
        // Most clones have written nothing yet: they all miss the same.
        let empty = top.present_below(visible) == 0;
        let known = || self.counted.0.lock().copies.get(&key).copied();
        if let Some(known) = empty.then(known).flatten() {
            return Ok(known);
        }
        let committed = self.env.store.committed();
        let mut wanted = RoaringBitmap::new();
        wanted.insert_range(0..u32::try_from(visible).unwrap_or(u32::MAX));
        if !top.complete() {
            wanted -= top.present();
        }
        let count = self.data_below(parent, wanted)?;
        let mut counts = self.counted.0.lock();
        if empty && counts.committed == Some(committed) {
            counts.copies.insert(key, count);
        }
        Ok(count)
    }

    /// How many of these blocks are data in `layer` or below it.
    fn data_below(&self, layer: Arc<Layer>, mut wanted: RoaringBitmap) -> Result<u64> {
        let mut count = 0;
        let mut next = Some(layer);
        while let Some(layer) = next.filter(|_| !wanted.is_empty()) {
            count += self.data_of(&layer)?.intersection_len(&wanted);
            if layer.complete() {
                break;
            }
            wanted -= layer.present();
            wanted.remove_range(u32::try_from(layer.overlap()).unwrap_or(u32::MAX)..);
            next = layer.parent();
        }
        Ok(count)
    }

    /// The blocks of a layer that are data and no holes, as far as the filesystem tells that reliably.
    fn data_of(&self, layer: &Arc<Layer>) -> Result<Arc<RoaringBitmap>> {
        let end = blocks(layer.size());
        let mut present = layer.present();
        if layer.complete() {
            present.insert_range(0..u32::try_from(end).unwrap_or(u32::MAX));
        }
        let Some(file) = layer.data()?.filter(|_| self.trusts_holes) else { return Ok(Arc::new(present)) };
        let path = || data_path(layer.file_id());
        let stat = file.stat().context("look at layer data", path())?;
        let stamp = (layer.file_id(), present.len(), stat.blocks, stat.mtime);
        if let Some((known, data)) = self.counted.0.lock().data.get(&layer.id)
            && *known == stamp
        {
            return Ok(data.clone());
        }
        let mut data = RoaringBitmap::new();
        let mut at = 0;
        while at < layer.size() {
            let from = match file.seek(at, Whence::Data) {
                Err(e) if e.raw_os_error() == Some(libc::ENXIO) => break,
                other => other.context("find data", path())?,
            };
            at = file.seek(from, Whence::Hole).context("find holes", path())?;
            let range = from / BLOCK..blocks(at).min(end);
            data.insert_range(range.start as u32..range.end as u32);
        }
        data &= present;
        let data = Arc::new(data);
        let mut counts = self.counted.0.lock();
        if layer.at_rest() {
            if counts.data.len() >= MOST_SETS {
                counts.data.clear();
            }
            counts.data.insert(layer.id, (stamp, data.clone()));
        }
        Ok(data)
    }
}

/// Volumes that read each layer: those that have it as their parent, and those that read its heirs.
fn count_readers(catalogue: &Catalogue) -> HashMap<Id, u64> {
    let mut readers: HashMap<Id, u64> = HashMap::with_capacity(catalogue.layer_count());
    // Heirs that are layers and not counted yet.
    let mut open: HashMap<Id, usize> = HashMap::with_capacity(catalogue.layer_count());
    for parent in catalogue.volumes().filter_map(|volume| volume.parent) {
        *readers.entry(parent).or_default() += 1;
    }
    for parent in catalogue.layers().filter_map(|layer| layer.parent) {
        *open.entry(parent).or_default() += 1;
    }
    let mut ready: Vec<Id> = catalogue.layers().map(|l| l.id).filter(|id| !open.contains_key(id)).collect();
    while let Some(id) = ready.pop() {
        let Some(parent) = catalogue.layer(id).and_then(|layer| layer.parent) else { continue };
        let count = readers.get(&id).copied().unwrap_or_default();
        *readers.entry(parent).or_default() += count;
        if let Some(left) = open.get_mut(&parent) {
            *left -= 1;
            if *left == 0 {
                ready.push(parent);
            }
        }
    }
    readers
}
