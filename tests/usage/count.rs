//! The full count: every record, every map as it is on disk, every block of every data file.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

use clonefs::engine::io::{FileKey, FileKind, Open, Whence};
use clonefs::engine::layer::map;
use clonefs::engine::pool::Pool;
use clonefs::engine::store::{data_path, stub_path};
use clonefs::protocol::VolumeUsage;
use clonefs::units::{BLOCK, Id, blocks};

use crate::common::served::{Outcome, text};

/// The figures of a volume that are compared.
#[derive(Debug, PartialEq, Eq)]
pub struct Figures {
    size: u64,
    present: u64,
    own: u64,
    shared: u64,
    freed: u64,
    independence: u64,
    /// Bytes on disk by the number of readers.
    by_readers: BTreeMap<u64, u64>,
}

impl From<&VolumeUsage> for Figures {
    fn from(usage: &VolumeUsage) -> Figures {
        let mut by_readers = BTreeMap::new();
        for piece in usage.pieces.iter().filter(|piece| piece.disk > 0) {
            *by_readers.entry(piece.readers).or_default() += piece.disk;
        }
        let VolumeUsage { size, present, own, shared, freed, independence, .. } = *usage;
        Figures { size, present, own, shared, freed, independence, by_readers }
    }
}

/// One data file with its set of blocks.
struct Layer {
    file: Id,
    complete: bool,
    present: HashSet<u64>,
    parent: Option<Id>,
    overlap: u64,
    size: u64,
}

impl Layer {
    fn has(&self, block: u64) -> bool {
        if self.complete { block < blocks(self.size) } else { self.present.contains(&block) }
    }
}

/// All that there is.
pub struct Count {
    pool: Arc<Pool>,
    /// Top layers by the volume, and frozen layers.
    tops: BTreeMap<Id, Layer>,
    frozen: BTreeMap<Id, Layer>,
    /// Volumes that read each frozen layer; a file in the tree that is the layer is not among them.
    readers: BTreeMap<Id, BTreeSet<Id>>,
}

/// The blocks of a map, and the size and overlap that it gives.
type OnDisk = (HashSet<u64>, Option<(u64, u64)>);

fn read_map(pool: &Pool, file: Id) -> Outcome<OnDisk> {
    let found = map::read_known(pool.fs().as_ref(), file, 0).map_err(text)?;
    Ok(found.map(|(p, _)| (p.present.iter().map(u64::from).collect(), p.extent)).unwrap_or_default())
}

fn disk(pool: &Pool, path: &Path) -> u64 {
    pool.fs().stat(path).map_or(0, |stat| stat.blocks * 512)
}

/// Bytes that all data takes: files of layers, and plain files, each once.
pub fn on_disk(pool: &Pool) -> Outcome<u64> {
    let mut files: BTreeMap<FileKey, u64> = BTreeMap::new();
    let stubs = stubs(pool)?;
    for dir in ["", ".clonefs/layers"] {
        let Ok(entries) = pool.fs().list(Path::new(dir)) else { continue };
        for entry in entries {
            let path = Path::new(dir).join(&entry.name);
            let stat = pool.fs().stat(&path).map_err(text)?;
            let data = dir.is_empty() || path.extension().is_some_and(|e| e == "data");
            if data && stat.kind() == FileKind::File && !stubs.contains_key(&stat.key) {
                files.insert(stat.key, stat.blocks * 512);
            }
        }
    }
    Ok(files.values().sum())
}

fn stubs(pool: &Pool) -> Outcome<BTreeMap<FileKey, Id>> {
    let ids: Vec<Id> = pool.store().catalogue().volumes().map(|volume| volume.id).collect();
    Ok(ids.into_iter().filter_map(|id| Some((pool.fs().stat(&stub_path(id)).ok()?.key, id))).collect())
}

impl Count {
    pub fn of(pool: &Arc<Pool>) -> Outcome<Count> {
        let mut count =
            Count { pool: pool.clone(), tops: BTreeMap::new(), frozen: BTreeMap::new(), readers: BTreeMap::new() };
        let catalogue = pool.store().catalogue().clone();
        for record in catalogue.layers() {
            let (file, complete, parent) = (record.file, record.complete, record.parent);
            let present = if complete { HashSet::new() } else { read_map(pool, file)?.0 };
            let (overlap, size) = (record.overlap, record.size);
            count.frozen.insert(record.id, Layer { file, complete, present, parent, overlap, size });
        }
        for record in catalogue.volumes() {
            let (file, complete, parent) = (record.file, record.complete, record.parent);
            let (present, extent) = if complete { Default::default() } else { read_map(pool, file)? };
            let (mut size, overlap) = extent.unwrap_or((record.size, record.overlap));
            if complete {
                size = pool.fs().stat(&data_path(file)).map_err(text)?.size;
            }
            count.tops.insert(record.id, Layer { file, complete, present, parent, overlap, size });
            let mut next = parent;
            while let Some(layer) = next {
                count.readers.entry(layer).or_default().insert(record.id);
                next = count.frozen.get(&layer).and_then(|layer| layer.parent);
            }
        }
        Ok(count)
    }

    /// The figures of the volume at a path.
    pub fn volume(&self, path: &Path) -> Outcome<Figures> {
        let stat = self.pool.fs().stat(path).map_err(text)?;
        match stubs(&self.pool)?.get(&stat.key) {
            Some(id) => self.overlay(*id, stat.nlink - 1),
            None => self.plain(stat.key, stat.size, stat.blocks * 512, stat.nlink),
        }
    }

    fn plain(&self, key: FileKey, size: u64, disk: u64, links: u64) -> Outcome<Figures> {
        let is_it = |layer: &Layer| self.pool.fs().stat(&data_path(layer.file)).is_ok_and(|stat| stat.key == key);
        let layer = self.frozen.iter().find(|(_, layer)| is_it(layer)).map(|(id, _)| *id);
        let others = layer.and_then(|id| self.readers.get(&id)).map_or(0, BTreeSet::len) as u64;
        let own = if others == 0 { disk } else { 0 };
        let names = links - u64::from(layer.is_some());
        let freed = if names == 1 { own } else { 0 };
        let present = blocks(size) * BLOCK;
        Ok(Figures {
            size,
            present,
            own,
            shared: disk - own,
            freed,
            independence: 0,
            by_readers: [(others + 1, disk)].into_iter().filter(|(_, disk)| *disk > 0).collect(),
        })
    }

    fn overlay(&self, id: Id, names: u64) -> Outcome<Figures> {
        let top = &self.tops[&id];
        let mut by_readers: BTreeMap<u64, u64> = BTreeMap::new();
        let mut add = |readers: u64, disk: u64| {
            if disk > 0 {
                *by_readers.entry(readers).or_default() += disk;
            }
        };
        add(1, disk(&self.pool, &data_path(top.file)));
        let mut next = top.parent;
        while let Some(layer) = next {
            let frozen = &self.frozen[&layer];
            let path = data_path(frozen.file);
            let named = self.pool.fs().stat(&path).is_ok_and(|stat| stat.nlink > 1);
            add(self.readers[&layer].len() as u64 + u64::from(named), disk(&self.pool, &path));
            next = frozen.parent;
        }
        let own = by_readers.get(&1).copied().unwrap_or(0);
        let mut missing = 0;
        for block in 0..top.overlap.min(blocks(top.size)) {
            missing += u64::from(!top.has(block) && self.has_data_below(top.parent, block)?);
        }
        Ok(Figures {
            size: top.size,
            present: (0..blocks(top.size)).filter(|block| top.has(*block)).count() as u64 * BLOCK,
            own,
            shared: by_readers.values().sum::<u64>() - own,
            freed: if names == 1 { own } else { 0 },
            independence: missing * BLOCK,
            by_readers,
        })
    }

    /// Whether a block that a layer above lacks is data on disk, in the first layer below that has it.
    fn has_data_below(&self, mut next: Option<Id>, block: u64) -> Outcome<bool> {
        while let Some(id) = next {
            let layer = &self.frozen[&id];
            if layer.has(block) {
                let file = self.pool.fs().open(&data_path(layer.file), Open::Read).map_err(text)?;
                return Ok(file.seek(block * BLOCK, Whence::Data).is_ok_and(|at| at / BLOCK == block));
            }
            next = layer.parent.filter(|_| block < layer.overlap);
        }
        Ok(false)
    }
}
