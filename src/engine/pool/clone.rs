//! Cloning. O(1): a link, a few small records, no byte of data.
//!
//! | crash after | what is found |
//! |---|---|
//! | the files of a layer for later writes to the source, see `spare` | files that no record names: removed |
//! | the link of the source into `layers` | a file that no record names: removed |
//! | the link of the stub into `stubs` | a link that no record names: removed; the destination is the file it was |
//! | the journal record | the clone |
//!
//! A destination that copy_file_range writes to may have a size; all of it is zeros then. Its own file becomes the stub, and
//! keeps that size until the record is durable (`settle`): a crash leaves so many zeros, or the clone.

use crate::sync::RwLockReadGuard;
use crate::sync::atomic::Ordering;
use std::sync::Arc;

use super::fit::{Unfit, is_lasting};
use super::spare::{Spare, remove_files};
use super::target::{check_target, clone_record, clone_size};
use super::whole::share_whole;
use super::{CloneOptions, Pool, stub};
use crate::engine::events::{Event, What};
use crate::engine::layer::Layer;
use crate::engine::store::record::{Change, LayerRecord, Stamp, VolumeRecord};
use crate::engine::store::{SNAPSHOTS, data_path, new_id, stub_path};
use crate::engine::volume::overlay::Overlay;
use crate::engine::volume::plain::Plain;
use crate::engine::volume::{Hooks, State, Volume, both_gates};
use crate::error::{Context, Error, Kind, Result};
use crate::units::{Id, MAX_VOLUME, blocks};

/// A moment of a volume, ready to be read by others once `changes` are committed.
pub(super) struct Moment {
    /// What shows it; none for a volume of zeros.
    pub layer: Option<Arc<Layer>>,
    /// Blocks of `layer` that can be seen.
    pub visible: u64,
    /// Size in bytes.
    pub size: u64,
    /// Layers that may hold data that is not durable yet, lowest first.
    pub pending: Vec<Arc<Layer>>,
    pub(super) changes: Vec<Change>,
    /// The overlay that it is a moment of; it must still exist when the changes are committed.
    of: Option<Id>,
    after: After,
}

/// What becomes of the source once the changes are committed.
enum After {
    /// Nothing.
    Same,
    /// A plain file is read through this layer from now on.
    Shared(Arc<Layer>),
    /// An overlay writes to this new top layer from now on.
    NewTop(Arc<Layer>),
}

/// Each attempt fails only if the last heir of the layer goes, or another freeze of the source begins, at that very
/// moment.
pub(super) const ATTEMPTS: usize = 16;

/// The error that asks for another attempt.
pub(super) fn again() -> Error {
    Error::io("clone", std::io::Error::from_raw_os_error(libc::EAGAIN))
}

impl Pool {
    /// Why no clone can be made here, if so.
    pub fn check_can_clone(&self) -> Result<()> {
        if self.options.read_only {
            return Err(Error::new(Kind::ReadOnly, "clone"));
        }
        match self.cannot_clone.get() {
            None => Ok(()),
            Some(why) => Err(Error::new(Kind::Unsupported, "clone").because(why.clone())),
        }
    }

    /// Makes `target`, an empty file, a clone of `source` as it is at one moment of this call. May wait for writes
    /// that the kernel still holds, so it must not run on a thread that serves them.
    pub fn clone_volume(
        self: &Arc<Self>,
        source: &Arc<Volume>,
        target: &Arc<Volume>,
        options: &CloneOptions,
    ) -> Result<()> {
        if Arc::ptr_eq(source, target) {
            return Err(Error::new(Kind::Invalid, "clone").at(target.path()).because("source and destination are one"));
        }
        let _naming = both_namings(source, target);
        for _ in 1..ATTEMPTS {
            match self.clone_once(source, target, options) {
                // If somebody is freezing the source, only when that has ended is it clear what it is.
                Err(error) if error.os_error() == Some(libc::EAGAIN) => drop(source.switching().lock()),
                other => return other,
            }
        }
        self.clone_once(source, target, options)
    }

    fn clone_once(self: &Arc<Self>, source: &Arc<Volume>, target: &Arc<Volume>, options: &CloneOptions) -> Result<()> {
        self.check_can_clone()?;
        self.check_room().map_err(|e| e.at(target.path()))?;
        self.check_elsewhere(source)?;
        self.env.store.ensure()?;
        self.limit_unsettled();
        self.dissolve_empty(target)?;
        if let Some(unfit) = self.unfit_target(target)? {
            return Err(unfit.error("clone", target));
        }
        // The next write would have to wait for the freeze, and for its syncs: have them behind us.
        let mut unfit = self.unfit_source(source)?;
        let _held = if source.writers() > 0 && unfit.is_none() { self.freeze_open(source)? } else { None };
        let mut spare = self.prepare_next_layer(source);
        self.flush_cached(source);
        let (mut source_gate, mut target_gate) = both_gates(source, target);
        let (empty, there) = check_target(target, &target_gate, 1, options.over_zeros)?;
        if source.is_bypassed() && matches!(&*source_gate, State::Plain(plain) if plain.shared.is_none()) {
            if options.no_copy && options.over_zeros {
                return Err(Error::new(Kind::Busy, "clone").at(source.path()).because("it is open with passthrough"));
            }
            share_whole(source, &source_gate, empty, options.size)?;
            drop((source_gate, target_gate));
            let why = "shared by the backing filesystem, as the source is open with passthrough";
            self.events.tell(Event::new(What::Cloned, target.path()).from(source.path()).because(why));
            return if options.sync { target.sync(false) } else { Ok(()) };
        }
        let moment = match &unfit {
            Some(_) if is_unshared(&source_gate) => None,
            _ => self.moment_with(source, &mut source_gate, spare.as_mut(), &mut unfit)?,
        };
        let Some(moment) = moment else {
            drop((source_gate, target_gate));
            let unfit = unfit.unwrap_or_else(|| Unfit("the source has several names".to_owned()));
            return self.copy_instead(source, target, options, &unfit);
        };
        let made = match options.exactly.filter(|size| *size != moment.size) {
            Some(_) => Err(Error::new(Kind::Busy, "clone").at(source.path()).because("its size changed meanwhile")),
            None => {
                let size = Some(options.size.unwrap_or(moment.size).max(there));
                let options = if there > 0 { &CloneOptions { size, ..*options } } else { options };
                self.make_clone(source, target, empty, &moment, options)
            }
        };
        let overlay = match made {
            Ok(overlay) => overlay,
            Err(error) => {
                self.abandon(&moment);
                return Err(error);
            }
        };
        let number = overlay.debts.commit.load(Ordering::Acquire);
        let id = overlay.id;
        overlay.pristine.store(options.over_zeros, Ordering::Release);
        *target_gate = State::Overlay(overlay);
        target.note_write();
        self.apply_after(source, &mut source_gate, moment, number);
        {
            let mut tables = self.tables.lock();
            tables.stubs.insert(target.key(), id);
            tables.by_id.insert(id, Arc::downgrade(target));
            tables.unsettled.insert(target.serial, target.clone());
        }
        drop((source_gate, target_gate));
        self.events.tell(Event::new(What::Cloned, target.path()).from(source.path()));
        self.wake();
        if options.sync {
            target.sync(false)?;
            // Now, and not when the keeper comes by: if the daemon dies before that, nobody takes it for an empty image.
            self.describe_stub(target);
        }
        Ok(())
    }

    /// Makes the clone a copy, as the source can be copied only.
    fn copy_instead(
        self: &Arc<Self>,
        source: &Arc<Volume>,
        target: &Arc<Volume>,
        options: &CloneOptions,
        unfit: &Unfit,
    ) -> Result<()> {
        if options.no_copy {
            return Err(unfit.error("clone", source));
        }
        self.copy_whole(source, target, options.size)?;
        let why = format!("copied, as {}", unfit.0);
        self.events.tell(Event::new(What::Cloned, target.path()).from(source.path()).because(why));
        // A clone is there whole or not at all after a crash, and a copy is only when it is durable.
        target.sync(false)
    }

    /// Has the kernel hand over pages of `source` that were stored to through a mapping.
    pub(super) fn flush_cached(&self, source: &Volume) {
        if source.writers() > 0
            && let Some(names) = self.names()
        {
            names.flush_cached(source.key());
        }
    }

    /// Freezes a volume, whose gate is held exclusively, at this moment. `None`: it is a file of several names, which
    /// can only be copied. Nothing is changed until the moment's changes are committed.
    pub(super) fn moment(&self, source: &Volume, gate: &mut State) -> Result<Option<Moment>> {
        self.moment_with(source, gate, None, &mut None)
    }

    /// The same with a layer for what is written next. With `None` `unfit` has the reason, if it is another one.
    pub(super) fn moment_with(
        &self,
        source: &Volume,
        gate: &mut State,
        spare: Option<&mut Spare>,
        unfit: &mut Option<Unfit>,
    ) -> Result<Option<Moment>> {
        match gate {
            State::Broken { why, .. } => Err(Error::new(Kind::Damaged, "clone").at(source.path()).because(why.clone())),
            State::Plain(plain) => {
                plain.check_latch().map_err(|e| e.at(source.path()))?;
                // A layer that nobody reads any more is dropped, and its link removed, under the same lock.
                let _ops = self.ops.lock();
                if let Some(layer) = plain.shared.clone() {
                    if self.env.store.catalogue().layer(layer.id).is_some() {
                        return Ok(Some(Moment::of_shared(layer)));
                    }
                    plain.shared = None;
                }
                source.check_not_bypassed("clone")?;
                self.moment_of_plain(source, plain, unfit)
            }
            State::Overlay(overlay) => self.moment_of_overlay(overlay, spare).map(Some),
        }
    }

    fn moment_of_plain(&self, source: &Volume, plain: &Plain, unfit: &mut Option<Unfit>) -> Result<Option<Moment>> {
        // Whoever is freezing it has given it a second link for a while; that is not one of the user's.
        let unfrozen = source.switching().try_lock();
        let stat = plain.file.stat().context("look at source", source.path())?;
        if stat.nlink > 1 {
            return if unfrozen.is_some() { Ok(None) } else { Err(again()) };
        }
        if stat.size > MAX_VOLUME {
            return Err(Error::new(Kind::TooLarge, "clone")
                .at(source.path())
                .remedy("a volume has at most 16T less 4K"));
        }
        if stat.nlink == 0 {
            return Err(Error::new(Kind::NotFound, "clone").at(source.path()).because("it has been deleted"));
        }
        let id = new_id();
        match self.link_in(plain.file.as_ref(), &data_path(id)) {
            Err(error) if is_lasting(&error) => {
                *unfit = Some(Unfit(format!("the source cannot be linked among the layers: {error}")));
                return Ok(None);
            }
            other => other.context("link source", source.path())?,
        }
        let stamp = Stamp {
            size: stat.size,
            seconds: stat.mtime.seconds,
            nanos: stat.mtime.nanos,
            firm: false,
            boot: self.env.fs.boot_id(),
        };
        let record = LayerRecord::of_file(id, stat.size, Some(stamp));
        let layer = self.env.open_frozen(&record, None)?;
        layer.set_complete_data(plain.file.clone());
        layer.share_latch(&plain.durability.latch);
        layer.set_names_dirty();
        let mut moment = Moment::of_shared(layer.clone());
        moment.changes.push(Change::Layer(record));
        moment.after = After::Shared(layer);
        Ok(Some(moment))
    }

    fn moment_of_overlay(&self, overlay: &Overlay, spare: Option<&mut Spare>) -> Result<Moment> {
        let top = &overlay.top;
        overlay.check_latch()?;
        let pending = overlay.debts.pending.lock().clone();
        let size = top.size();
        let parent = top.parent();
        if top.is_empty() && !parent.as_ref().is_some_and(|p| p.adopting()) {
            // Nothing was written since it was cloned itself: what it shows is what its parent shows.
            let (layer, visible) = (parent, top.overlap());
            let of = Some(overlay.id);
            return Ok(Moment { layer, visible, size, pending, changes: Vec::new(), of, after: After::Same });
        }
        let catalogue = self.env.store.catalogue();
        let record = catalogue.volume(overlay.id).cloned();
        drop(catalogue);
        let mut record = record.ok_or_else(|| Error::new(Kind::Damaged, "clone").because("it has no record"))?;
        let fresh = spare
            .and_then(|spare| spare.take_for(top))
            .unwrap_or_else(|| self.env.next_layer(top, new_id(), Some(top.clone()), size, blocks(size)));
        record.top = fresh.id;
        record.file = fresh.id;
        record.parent = Some(top.id);
        record.overlap = blocks(size);
        record.size = size;
        record.complete = false;
        record.mapped = false;
        record.source = true;
        let changes = vec![Change::Layer(top.frozen_record()), Change::Volume(record)];
        let pending = pending.into_iter().chain([top.clone()]).collect();
        let after = After::NewTop(fresh);
        let (layer, of) = (Some(top.clone()), Some(overlay.id));
        Ok(Moment { layer, visible: blocks(size), size, pending, changes, of, after })
    }

    /// Commits the moment and the clone made from it.
    fn make_clone(
        &self,
        source: &Volume,
        target: &Volume,
        empty: &Plain,
        moment: &Moment,
        options: &CloneOptions,
    ) -> Result<Overlay> {
        let size = clone_size(target, moment.size, options)?;
        let owner = empty.file.stat().context("look at destination", target.path())?.uid;
        // A part of the source, as copy_file_range gives, is only the beginning of something else.
        let uid = options.visible.is_none_or(|visible| visible >= blocks(moment.size)).then_some(owner);
        let (id, top_id) = (new_id(), new_id());
        let pool = self.env.store.pool_id().ok_or_else(|| Error::new(Kind::Damaged, "clone"))?;
        stub::mark(empty.file.as_ref(), pool, id)?;
        if let Err(error) = self.link_in(empty.file.as_ref(), &stub_path(id)) {
            stub::unmark(empty.file.as_ref());
            return Err(Error::io("link stub", error).at(target.path()));
        }
        let overlap = moment.visible.min(blocks(moment.size)).min(options.visible.unwrap_or(u64::MAX));
        let parent = moment.layer.as_ref().map(|l| l.id);
        let record = clone_record((id, top_id), (&self.called(source), target), parent, (overlap, size), uid, options);
        let committed = {
            let _ops = self.ops.lock();
            self.check_layer_lives(moment)
                .and_then(|()| self.commit_changes(moment.changes.iter().cloned().chain([Change::Volume(record)])))
        };
        let number = committed.inspect_err(|_| {
            let _ = self.env.fs.unlink(&stub_path(id));
            stub::unmark(empty.file.as_ref());
        })?;
        let top = self.env.fresh_layer(top_id, moment.layer.clone(), size, overlap);
        Ok(Overlay::new(id, empty.file.clone(), top, moment.pending.clone(), number))
    }

    /// What a volume is called, for the record of its clones.
    pub(super) fn called(&self, volume: &Volume) -> String {
        let path = volume.path();
        let id = path.strip_prefix(SNAPSHOTS).ok().and_then(|name| name.to_str()?.parse().ok());
        let snapshot = id.and_then(|id| self.env.store.catalogue().volume(id).map(VolumeRecord::shown));
        snapshot.unwrap_or_else(|| path.to_string_lossy().into_owned())
    }

    /// Under `ops`: neither the source nor the layer has been given up in the meantime.
    pub(super) fn check_layer_lives(&self, moment: &Moment) -> Result<()> {
        let catalogue = self.env.store.catalogue();
        if moment.of.is_some_and(|id| catalogue.volume(id).is_none()) {
            return Err(Error::new(Kind::NotFound, "clone").because("the source has been deleted"));
        }
        let layer = moment.layer.as_ref().filter(|_| moment.changes.is_empty());
        if layer.is_some_and(|layer| catalogue.layer(layer.id).is_none()) {
            return Err(again());
        }
        Ok(())
    }

    /// Commits the changes of moments and what follows from them. What the user has said of a source since the moment
    /// was taken (paused, say) stays.
    pub(super) fn commit_changes(&self, changes: impl Iterator<Item = Change>) -> Result<u64> {
        self.env.store.commit_with(|catalogue| {
            let current = |change| match change {
                Change::Volume(mut record) => {
                    if let Some(now) = catalogue.volume(record.id) {
                        (record.paused, record.deepening) = (now.paused, now.deepening);
                    }
                    Change::Volume(record)
                }
                other => other,
            };
            changes.map(current).collect()
        })
    }

    /// Commits the moment alone, for a reader that nothing on disk names.
    pub(super) fn commit_moment(&self, source: &Arc<Volume>, gate: &mut State, moment: Moment) -> Result<()> {
        let committed = {
            let _ops = self.ops.lock();
            self.check_layer_lives(&moment).and_then(|()| match moment.changes.is_empty() {
                true => Ok(0),
                false => self.commit_changes(moment.changes.iter().cloned()),
            })
        };
        match committed {
            Ok(number) => {
                self.apply_after(source, gate, moment, number);
                Ok(())
            }
            Err(error) => {
                self.abandon(&moment);
                Err(error)
            }
        }
    }

    /// What a moment that was not committed left behind.
    pub(super) fn abandon(&self, moment: &Moment) {
        match &moment.after {
            After::Shared(layer) => drop(self.env.fs.unlink(&data_path(layer.id))),
            After::NewTop(layer) => remove_files(self.env.fs.as_ref(), layer),
            After::Same => {}
        }
    }

    /// Puts the source into the state that the committed moment describes.
    pub(super) fn apply_after(&self, source: &Arc<Volume>, gate: &mut State, moment: Moment, number: u64) {
        match (moment.after, gate) {
            (After::Shared(layer), State::Plain(plain)) => {
                let mut tables = self.tables.lock();
                tables.shared.insert(source.key(), layer.id);
                tables.layers.insert(layer.id, Arc::downgrade(&layer));
                drop(tables);
                plain.shared = Some(layer);
            }
            (After::NewTop(fresh), State::Overlay(overlay)) => {
                let frozen = std::mem::replace(&mut overlay.top, fresh);
                frozen.set_frozen(true);
                *overlay.debts.pending.lock() = moment.pending;
                overlay.debts.commit.fetch_max(number, Ordering::AcqRel);
                overlay.pristine.store(false, Ordering::Release);
                let mut tables = self.tables.lock();
                tables.layers.insert(frozen.id, Arc::downgrade(&frozen));
                tables.unsettled.insert(source.serial, source.clone());
            }
            _ => {}
        }
    }
}

/// Of the one with the smaller serial first.
fn both_namings<'a>(one: &'a Volume, other: &'a Volume) -> [RwLockReadGuard<'a, ()>; 2] {
    let (first, second) = if one.serial < other.serial { (one, other) } else { (other, one) };
    [first.naming().read(), second.naming().read()]
}

/// Whether it is a plain file that no clone reads.
pub(super) fn is_unshared(state: &State) -> bool {
    matches!(state, State::Plain(plain) if plain.shared.is_none())
}

impl Moment {
    /// What a complete layer shows.
    fn of_shared(layer: Arc<Layer>) -> Moment {
        let size = layer.size();
        let pending = if layer.is_settled() { Vec::new() } else { vec![layer.clone()] };
        let (layer, visible) = (Some(layer), blocks(size));
        Moment { layer, visible, size, pending, changes: Vec::new(), of: None, after: After::Same }
    }
}
