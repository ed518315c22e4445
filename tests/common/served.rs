//! A pool that is served without a mount: its volumes by name, and what they hold.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use clonefs::engine::io::Fs;
use clonefs::engine::pool::{Names, Pool, PoolOptions};
use clonefs::engine::volume::fill::Filling;
use clonefs::engine::volume::{State, Volume};
use clonefs::units::Id;

use super::model::Found;
use super::names::Finder;
use super::ops::Name;
use super::simfs::SimFs;

/// The snapshot of volume n goes by this and n.
pub const SNAPSHOT: Name = 20;

pub type Outcome<T = ()> = Result<T, String>;

pub fn text<E: std::fmt::Display>(error: E) -> String {
    error.to_string()
}

pub fn file_name(name: Name) -> PathBuf {
    PathBuf::from(format!("v{name}.img"))
}

/// Bytes that are found nowhere else: each 8 of them say which write and which place.
pub fn pattern(serial: u64, offset: u64, len: usize) -> Vec<u8> {
    let word = |at: u64| (serial << 40 | at | 1 << 39).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (offset..offset + len as u64).map(|at| word(at / 8)[(at % 8) as usize]).collect()
}

/// Opens the pool of a filesystem, as a mount does.
pub fn serve(fs: &Arc<SimFs>) -> Outcome<(Arc<Pool>, Arc<dyn Names>)> {
    let fs: Arc<dyn Fs> = fs.clone();
    let options = PoolOptions { deepen_auto: false, ..PoolOptions::default() };
    let pool = Pool::open(fs.clone(), options).map_err(|e| format!("the pool does not open: {e}"))?;
    let names: Arc<dyn Names> = Arc::new(Finder(fs));
    let weak: Weak<dyn Names> = Arc::downgrade(&names);
    pool.set_names(weak);
    Ok((pool, names))
}

/// The snapshot that goes by a name.
pub fn snapshot_id(pool: &Arc<Pool>, name: Name) -> Option<Id> {
    pool.find_snapshot(&file_name(name.checked_sub(SNAPSHOT)?), "s")
}

/// The volume that goes by a name.
pub fn volume_of(pool: &Arc<Pool>, name: Name) -> Outcome<Arc<Volume>> {
    match snapshot_id(pool, name) {
        Some(id) => pool.volume_by_id(id).map_err(text)?.ok_or_else(|| format!("snapshot v{name} has no volume")),
        None => volume_at(pool, &file_name(name)),
    }
}

/// The volume at a name.
pub fn volume_at(pool: &Arc<Pool>, path: &Path) -> Outcome<Arc<Volume>> {
    let stat = pool.fs().stat(path).map_err(text)?;
    pool.volume(stat.key, path).map_err(text)
}

/// All of a volume's bytes.
pub fn contents(volume: &Volume) -> Outcome<Vec<u8>> {
    let size = volume.size().map_err(text)? as usize;
    let mut bytes = vec![0xaa; size + 10];
    let got = volume.read(0, &mut bytes).map_err(text)?;
    if got != size {
        return Err(format!("read {got} bytes of {size}"));
    }
    bytes.truncate(got);
    Ok(bytes)
}

/// Everything that users see.
pub fn look(pool: &Arc<Pool>) -> Outcome<Found> {
    let mut found = Found::new();
    for entry in pool.fs().list(Path::new("")).map_err(text)? {
        let name = entry.name.to_string_lossy().into_owned();
        let Some(number) = name.strip_prefix('v').and_then(|n| n.strip_suffix(".img")).and_then(|n| n.parse().ok())
        else {
            continue;
        };
        let path = file_name(number);
        let volume = volume_at(pool, &path).map_err(|e| format!("v{number}: {e}"))?;
        let bytes = contents(&volume).map_err(|e| format!("v{number}: {e}"))?;
        let stat = pool.fs().stat(&path).map_err(text)?;
        let shown = pool.describe(&path, stat).map_err(text)?.size;
        if shown != bytes.len() as u64 {
            return Err(format!("v{number} shows a size of {shown} and has {}", bytes.len()));
        }
        found.insert(number, bytes);
    }
    for number in 0..SNAPSHOT {
        if snapshot_id(pool, SNAPSHOT + number).is_some() {
            let volume = volume_of(pool, SNAPSHOT + number)?;
            found.insert(SNAPSHOT + number, contents(&volume).map_err(|e| format!("snapshot of v{number}: {e}"))?);
        }
    }
    Ok(found)
}

/// One step of deepening, of `most` bytes.
pub fn fill(pool: &Pool, volume: &Arc<Volume>, most: u64) -> clonefs::error::Result<bool> {
    let how = Filling { most, share: pool.can_share(), trust_holes: pool.trusts_holes(), allocate: true };
    let filled = {
        let gate = volume.gate().read();
        let State::Overlay(overlay) = &*gate else { return Ok(true) };
        overlay.fill_absent(0, &how)?
    };
    if filled.next.is_some() {
        volume.sync(true)?;
    }
    Ok(filled.next.is_none())
}
