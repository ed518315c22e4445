//! The files of a layer: opened and made when they are needed, and taken over in an adoption.

use std::sync::Arc;

use crate::sync::atomic::Ordering;

use super::map::{self, Map};
use super::unsynced::Change;
use super::{Layer, MapState, span};
use crate::engine::io::{File, FileRef, Open};
use crate::engine::store::data_path;
use crate::error::{Context, Result};
use crate::units::{BLOCK, Id, blocks};

impl Layer {
    /// The data file for reading; `None` if there is none, because nothing was written.
    pub fn data(&self) -> Result<Option<FileRef>> {
        if let Some(data) = &self.body.read().data {
            return Ok(Some(data.clone()));
        }
        let mut body = self.body.write();
        if body.data.is_none() && (body.complete || !body.present.is_empty()) {
            let path = data_path(body.file);
            body.data = Some(self.fs.open(&path, Open::Read).context("open layer data", path)?);
            body.data_writable = false;
        }
        Ok(body.data.clone())
    }

    /// The data file for writing, made if there is none. Its size is then that of the volume.
    pub fn data_for_writing(&self) -> Result<FileRef> {
        {
            let body = self.body.read();
            if let (Some(data), true) = (&body.data, body.data_writable) {
                return Ok(data.clone());
            }
        }
        let mut state = self.map.lock();
        let mut body = self.body.write();
        if let (Some(data), true) = (&body.data, body.data_writable) {
            return Ok(data.clone());
        }
        let path = data_path(body.file);
        let data = if body.complete || !body.present.is_empty() {
            let data = self.fs.open(&path, Open::Write).context("open layer data", &path)?;
            // A crash can leave bytes beyond the recorded size; were the volume to grow, they would show.
            if data.stat().context("open layer data", &path)?.size > self.size() {
                data.set_len(self.size()).context("open layer data", &path)?;
            }
            data
        } else {
            self.create_files(&mut state, body.file)?
        };
        self.own(data.as_ref()).context("give layer data to the volume's owner", &path)?;
        body.data = Some(data.clone());
        body.data_writable = true;
        Ok(data)
    }

    /// The volume belongs to this user and group: the data file will, when it is made or opened to be written to.
    pub fn set_owner(&self, uid: u32, gid: u32) {
        *self.owner.lock() = Some((uid, gid));
    }

    /// Whom the volume belongs to, as far as that is known.
    pub fn owner(&self) -> Option<(u32, u32)> {
        *self.owner.lock()
    }

    /// The same at once for a data file that there is.
    pub fn give_to(&self, uid: u32, gid: u32) -> Result<()> {
        let before = self.owner.lock().replace((uid, gid));
        let given = self.data().and_then(|data| match data {
            Some(data) => {
                self.own(data.as_ref()).context("give layer data to the volume's owner", data_path(self.file_id()))
            }
            None => Ok(()),
        });
        given.inspect_err(|_| *self.owner.lock() = before)
    }

    /// Only root gives files away.
    fn own(&self, data: &dyn File) -> std::io::Result<()> {
        let Some((uid, gid)) = self.owner().filter(|_| crate::engine::io::is_root()) else { return Ok(()) };
        let stat = data.stat()?;
        if (stat.uid, stat.gid) == (uid, gid) { Ok(()) } else { data.chown(Some(uid), Some(gid)) }
    }

    /// Gives the data file, if there is one yet, a new size. One that is made later gets the volume's.
    pub fn resize_data(&self, size: u64) -> Result<()> {
        let exists = {
            let body = self.body.read();
            body.data.is_some() || body.complete || !body.present.is_empty()
        };
        if !exists {
            return Ok(());
        }
        self.data_for_writing()?.set_len(size).context("set size", data_path(self.file_id()))
    }

    /// Makes data and map. What a crash left under these names holds nothing that counts, as no block is present.
    fn create_files(&self, state: &mut MapState, file: Id) -> Result<FileRef> {
        let path = data_path(file);
        let made = (|| {
            let data = match self.fs.open(&path, Open::CreateNew(0o600)) {
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                    let old = self.fs.open(&path, Open::Write)?;
                    old.set_len(0)?;
                    old
                }
                other => other?,
            };
            data.set_len(self.size())?;
            Ok(data)
        })();
        state.names_dirty = true;
        let data = made.context("make layer data", &path)?;
        self.ensure_map(state, file)?;
        Ok(data)
    }

    /// Opens the map for appending: the one that there is, or a new one if none was ever durable. One that cannot be
    /// read is never replaced by an empty one, whatever the reason.
    pub(super) fn ensure_map<'a>(&self, state: &'a mut MapState, file: Id) -> Result<&'a mut Map> {
        let map = match state.map.take() {
            Some(map) => map,
            None => {
                let known = match self.mapped() {
                    true => map::read_known(self.fs.as_ref(), file, 1)?,
                    false => None,
                };
                state.names_dirty = true;
                let path = crate::engine::store::map_path(file);
                match known {
                    Some((_, scan)) => Map::resume(&self.fs, file, &scan).context("open map", path)?,
                    None => Map::create(&self.fs, file).context("make map", path)?,
                }
            }
        };
        Ok(state.map.insert(map))
    }

    /// Turns "every block" into a set of blocks, so that a map can say from now on which ones there are, and the size.
    pub fn itemise(&self) {
        let mut body = self.body.write();
        if !body.complete {
            return;
        }
        body.complete = false;
        body.present.clear();
        body.present.insert_range(span(0, blocks(self.size())));
        body.added = body.present.clone();
        body.cleared.clear();
        body.extent_changed = true;
        let file = body.file;
        drop(body);
        self.dirty.store(true, Ordering::Release);
        self.note(file, Change::Present(0, blocks(self.size())));
        self.note_extent();
    }

    /// Notes that the name of the data file was just made: it is durable after the next flush.
    pub fn set_names_dirty(&self) {
        self.map.lock().names_dirty = true;
        self.dirty.store(true, Ordering::Release);
    }

    /// Uses `data`, already open for reading and writing, as the data file of a complete layer.
    pub fn set_complete_data(&self, data: FileRef) {
        let mut body = self.body.write();
        body.complete = true;
        body.data = Some(data);
        body.data_writable = true;
        drop(body);
        self.dirty.store(true, Ordering::Release);
    }

    /// Reads a complete layer from now on from `data`, a durable copy of its file called `file` that nobody else has: what
    /// befalls the old file is no longer its affair.
    pub fn move_to(&self, file: Id, data: FileRef) {
        *self.latch.lock() = Arc::default();
        let mut body = self.body.write();
        (body.file, body.data, body.data_writable) = (file, Some(data), true);
    }

    /// Takes over the files of the parent, which this layer's blocks have been copied into, and sees `overlap` blocks of
    /// what is below from then on: the end of an adoption. Parent and overlap change at once, as readers of a frozen
    /// layer are not kept out: with the one and not the other they would see blocks that are hidden. Returns the old name
    /// of its files.
    pub fn take_files(&self, from: &Layer, overlap: u64) -> Id {
        let mut from_state = from.map.lock();
        let map = from_state.map.take();
        let names_dirty = from_state.names_dirty;
        drop(from_state);
        let mut taken = from.body.write();
        taken.retired = true;
        let (file, data, writable) = (taken.file, taken.data.clone(), taken.data_writable);
        let (complete, present, parent) = (taken.complete, taken.present.clone(), taken.parent.clone());
        debug_assert!(complete || taken.ends_by(self.size()), "adopted blocks beyond the end of {:?}", self.id);
        drop(taken);
        self.map_records.store(from.map_records(), Ordering::Release);
        // A frozen layer has its records counted anew; of a volume's the switch says that there is a map.
        self.map_noted.store(from.mapped() && !self.frozen.load(Ordering::Acquire), Ordering::Release);
        let mut state = self.map.lock();
        let mut body = self.body.write();
        state.map = map;
        state.names_dirty = names_dirty;
        body.data = data;
        body.data_writable = writable;
        body.complete = complete;
        body.present = present;
        body.added.clear();
        body.cleared.clear();
        body.parent = parent;
        self.overlap.store(overlap, Ordering::Release);
        body.extent_changed = true;
        let old = std::mem::replace(&mut body.file, file);
        drop((body, state));
        self.dirty.store(true, Ordering::Release);
        self.note_extent();
        old
    }

    /// Opens the map of a frozen layer for appending, so that blocks can be merged into it.
    pub fn open_map(&self) -> Result<()> {
        let mut state = self.map.lock();
        let file = self.body.read().file;
        if !self.complete() {
            self.ensure_map(&mut state, file)?;
        }
        Ok(())
    }

    /// Reads bytes of blocks that are present. Beyond the volume's end they are zeros, whatever the data file has there:
    /// a crash can leave bytes of an append that was never synced.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check_sound(offset / BLOCK, blocks(offset + buf.len() as u64))?;
        if !self.frozen.load(Ordering::Acquire) {
            return self.read_unchecked(offset, buf);
        }
        self.read_with(offset, buf, |data, buf| data.read_around(buf, offset))
    }

    /// The same for somebody who reads all of it once, in order.
    pub fn read_through(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check_sound(offset / BLOCK, blocks(offset + buf.len() as u64))?;
        self.read_with(offset, buf, |data, buf| data.read_through(buf, offset))
    }

    /// The same past the page cache, for a layer that one volume alone reads.
    pub fn read_direct(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check_sound(offset / BLOCK, blocks(offset + buf.len() as u64))?;
        self.read_with(offset, buf, |data, buf| data.read_direct(buf, offset))
    }

    /// The same for bytes that a scrub is looking at.
    pub(super) fn read_unchecked(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_with(offset, buf, |data, buf| data.read_at(buf, offset))
    }

    fn read_with(
        &self,
        offset: u64,
        buf: &mut [u8],
        read: impl Fn(&FileRef, &mut [u8]) -> std::io::Result<usize>,
    ) -> Result<()> {
        let len = self.size().saturating_sub(offset).min(buf.len() as u64) as usize;
        let got = match self.data()? {
            Some(data) => read(&data, &mut buf[..len]).map_err(|e| self.failed("read layer data", e))?,
            None => 0,
        };
        buf[got..].fill(0);
        Ok(())
    }

    /// Bytes that its data takes on disk.
    pub fn disk_bytes(&self) -> u64 {
        let file = {
            let body = self.body.read();
            if let Some(data) = &body.data {
                return data.stat().map_or(0, |s| s.blocks * 512);
            }
            body.file
        };
        self.fs.stat(&data_path(file)).map_or(0, |s| s.blocks * 512)
    }
}
