//! The other way out when a plain file with clones cannot be frozen: its attributes have grown, or its directory takes no
//! other file any more. The readers get the layer as a file of its own, a copy, and the file goes on as one without clones.
//!
//! | crash after | what is found |
//! |---|---|
//! | the copy | a file that no record names: removed |
//! | the record is durable | the copy is the layer's file; its old link to the user's file is named by no record: removed |

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Pool;
use super::freeze::{Held, stays_plain};
use crate::engine::io::{File, FileRef, Open, Whence};
use crate::engine::store::record::Change;
use crate::engine::store::{LAYERS, data_path, new_id, sums_path};
use crate::engine::volume::{State, Volume};
use crate::error::{Context, Error, Kind, Result};
use crate::units::Id;

/// Copied at once.
const PIECE: usize = 1 << 20;
/// Longest that reads under way are waited for, and between two looks at them.
const READS: Duration = Duration::from_secs(30);
const STRANGERS: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_micros(200);

impl Pool {
    /// After a freeze has failed with `error`: whether the readers have a copy now, so that the file can be changed in place.
    /// With `switching` held, and no other lock: nobody changes the file meanwhile, and it can be read.
    pub(super) fn detach_readers(&self, volume: &Arc<Volume>, held: &Held, error: Error) -> Result<()> {
        if !stays_plain(&error) {
            return Err(error);
        }
        match self.copy_layer(volume, held) {
            Ok(()) => {
                tracing::warn!("{:?}: its clones got a copy, as it cannot be frozen: {error}", volume.path());
                Ok(())
            }
            // That can be mended without a change of the file.
            Err(second) if second.is_no_space() => Err(second),
            Err(second) => {
                tracing::warn!("{:?}: its clones cannot be given a copy either: {second}", volume.path());
                Err(error)
            }
        }
    }

    fn copy_layer(&self, volume: &Arc<Volume>, held: &Held) -> Result<()> {
        let (layer, fs) = (&held.layer, &self.env.fs);
        layer.check_latch()?;
        if !layer.bad().is_empty() {
            return Err(Error::new(Kind::Damaged, "copy").at(volume.path()).because("a scrub found damage in it"));
        }
        self.check_room_for(&held.file)?;
        let (old, new) = (layer.file_id(), new_id());
        let path = data_path(new);
        let made = (|| {
            let copy = fs.open(&path, Open::CreateNew(0o600)).context("make layer data", &path)?;
            self.copy_contents(&held.file, &copy, layer.size())?;
            copy.sync_all().context("sync layer data", &path)?;
            fs.sync_dir(Path::new(LAYERS)).context("sync layers directory", LAYERS)?;
            self.name_copy(layer.id, (old, new))?;
            Ok(copy)
        })();
        let copy = made.inspect_err(|_| {
            // Not what a record names, whether that is durable or not.
            if !self.env.store.catalogue().names_file(new) {
                let _ = fs.unlink(&path);
            }
        })?;
        layer.move_to(new, copy);
        await_readers(volume, &held.file)?;
        if let State::Plain(plain) = &mut *volume.gate().write() {
            plain.shared = None;
        }
        self.tables.lock().shared.remove(&volume.key());
        let _ = fs.unlink(&data_path(old));
        let _ = fs.unlink(&sums_path(old));
        self.sum_again(layer.id);
        Ok(())
    }

    /// The record of the layer, durable.
    fn name_copy(&self, layer: Id, (old, new): (Id, Id)) -> Result<()> {
        let gone = || Error::new(Kind::Busy, "copy layer").because("it is no longer what it was");
        let number = {
            let _ops = self.ops.lock();
            let record = self.env.store.catalogue().layer(layer).filter(|record| record.file == old).cloned();
            let mut record = record.ok_or_else(gone)?;
            // No name of the user's leads to the copy.
            (record.file, record.stamp) = (new, None);
            self.env.store.commit(vec![Change::Layer(record)])?
        };
        self.env.store.sync(number)
    }

    fn check_room_for(&self, file: &FileRef) -> Result<()> {
        if self.can_share() {
            return Ok(());
        }
        let needed = file.stat().context("look at file", "")?.blocks.saturating_mul(512);
        let info = self.env.fs.info().context("look at filesystem", "")?;
        if info.available.saturating_mul(info.block_size) > needed {
            return Ok(());
        }
        let full = std::io::Error::from_raw_os_error(libc::ENOSPC);
        Err(Error::io("copy for the clones of a file that cannot be frozen", full))
    }

    /// Shares the bytes where the filesystem can, copies them where not, and keeps holes.
    fn copy_contents(&self, from: &FileRef, to: &FileRef, size: u64) -> Result<()> {
        to.set_len(size).context("set size of", "a copy")?;
        if size == 0 || self.can_share() && to.share_range(from.as_ref(), 0, 0, size).is_ok() {
            return Ok(());
        }
        let mut buffer = vec![0; PIECE];
        let mut at = 0;
        while at < size {
            if self.stopping() {
                return Err(Error::new(Kind::Interrupted, "copy layer"));
            }
            at = match self.trusts_holes() {
                true => next_data(from.as_ref(), at, size),
                false => at,
            };
            let want = (size - at).min(PIECE as u64) as usize;
            let got = from.read_at(&mut buffer[..want], at).context("read", "a layer")?;
            if got == 0 {
                break;
            }
            if buffer[..got].iter().any(|byte| *byte != 0) {
                to.write_at(&buffer[..got], at).context("write", "a copy")?;
            }
            at += got as u64;
        }
        Ok(())
    }
}

/// Whoever read the layer a moment ago may be reading the user's file still, and must not see what is written to it next. It
/// is held by its volume and by us, and by each of those for as long as the read takes.
fn await_readers(volume: &Volume, file: &FileRef) -> Result<()> {
    let begun = Instant::now();
    while Arc::strong_count(file) > 2 {
        if begun.elapsed() > READS {
            // The copy stays the layer's; the next write tries again.
            return Err(Error::new(Kind::Busy, "copy layer").at(volume.path()).because("it is being read"));
        }
        std::thread::sleep(LOOK);
    }
    // A read can have begun through the layer's own descriptor, before the file was loaded. Whoever has the file open without
    // clonefs would be waited for too, and so only for a while.
    while file.is_sole().is_ok_and(|sole| !sole) && begun.elapsed() < STRANGERS {
        std::thread::sleep(LOOK * 10);
    }
    Ok(())
}

fn next_data(file: &dyn File, at: u64, size: u64) -> u64 {
    match file.seek(at, Whence::Data) {
        Ok(data) => data,
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => size,
        Err(_) => at,
    }
}
