//! Several volumes at one instant: all of them are held still together, for as long as it takes to note which layers
//! show them, and one journal record says so for all.
//!
//! What is made of the moment comes after that, and is made durable before the record that names it, in this order:
//!
//! | crash after | what is found |
//! |---|---|
//! | the record of the moment | frozen layers that nobody reads: removed |
//! | the data of these layers is durable | the same |
//! | the clones' stubs are there and durable | links that no record names: removed; the clones are empty files |
//! | the record that names all clones | all of them |
//!
//! So a group is there as a whole or not at all, also after a loss of power.

use crate::sync::atomic::Ordering;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::clone::{ATTEMPTS, Moment};
use super::freeze::Held;
use super::settle::MANY;
use super::target::{check_target, clone_record, clone_size};
use super::{CloneOptions, Pool, stub};
use crate::engine::events::{Event, What};
use crate::engine::io::FileRef;
use crate::engine::layer::Layer;
use crate::engine::store::record::{Change, VolumeRecord};
use crate::engine::store::{STUBS, new_id, stub_path};
use crate::engine::volume::overlay::Overlay;
use crate::engine::volume::syncing::firm_stamp;
use crate::engine::volume::{Pinned, State, Volume};
use crate::error::{Context, Error, Kind, Result};
use crate::units::{Id, blocks};

/// One clone of a group.
#[derive(Clone)]
pub struct Member {
    /// What is cloned.
    pub source: Arc<Volume>,
    /// An empty file.
    pub target: Arc<Volume>,
    /// How; `sync` and `no_copy` hold always.
    pub options: CloneOptions,
}

/// A volume as it was at the moment, held until this is dropped.
pub(super) struct Taken {
    pub layer: Option<Arc<Layer>>,
    pub visible: u64,
    pub size: u64,
    /// Layers that may hold data that is not durable yet, lowest first.
    pending: Vec<Arc<Layer>>,
    _held: Pinned,
}

/// What keeps a plain file a file that can be shared at once, without a system call.
enum Ready {
    Frozen { _held: Held },
    Shared { _pinned: Pinned },
    Layers,
}

/// The stub of a clone that no record names yet; taken back when it is dropped.
struct Prepared<'a> {
    pool: &'a Pool,
    id: Id,
    file: FileRef,
    done: bool,
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        if !self.done {
            let _ = self.pool.env.fs.unlink(&stub_path(self.id));
            stub::unmark(self.file.as_ref());
        }
    }
}

impl Pool {
    /// Makes every target a clone of its source, all as they are at one moment of this call, and all durable when it
    /// returns. After an error, or a crash, none of them is a clone. May wait for writes that the kernel still holds.
    pub fn clone_group(self: &Arc<Self>, members: &[Member]) -> Result<()> {
        let mut sources: Vec<Arc<Volume>> = members.iter().map(|m| m.source.clone()).collect();
        sources.sort_by_key(|volume| volume.serial);
        sources.dedup_by_key(|volume| volume.serial);
        let mut targets: Vec<u64> = members.iter().map(|m| m.target.serial).collect();
        targets.sort_unstable();
        let twice = targets.windows(2).any(|pair| pair[0] == pair[1]);
        if twice || sources.iter().any(|source| targets.binary_search(&source.serial).is_ok()) {
            return Err(Error::new(Kind::Invalid, "clone a group").because("one file is named as two of its members"));
        }
        for member in members {
            self.dissolve_empty(&member.target)?;
        }
        let taken = self.take_group(&sources)?;
        let of = |member: &Member| {
            let at = sources.partition_point(|source| source.serial < member.source.serial);
            &taken[at]
        };
        let made = members.iter().map(|member| self.prepare_clone(member)).collect::<Result<Vec<_>>>()?;
        self.sync_prepared(members, &made)?;
        self.name_clones(members, made, &of)?;
        for Member { source, target, .. } in members {
            self.events.tell(Event::new(What::Cloned, target.path()).from(source.path()));
        }
        self.wake_background();
        Ok(())
    }

    /// Holds several volumes (each once, by ascending serial) as they are at one moment, and makes durable what they
    /// held then.
    pub(super) fn take_group(self: &Arc<Self>, sources: &[Arc<Volume>]) -> Result<Vec<Taken>> {
        let _naming: Vec<_> = sources.iter().map(|source| source.naming().read()).collect();
        self.check_can_clone()?;
        self.check_room()?;
        self.env.store.ensure()?;
        self.limit_unsettled();
        let mut taken = self.take_once(sources);
        for _ in 1..ATTEMPTS {
            match taken {
                Err(error) if error.os_error() == Some(libc::EAGAIN) => {
                    // If somebody is freezing one of them, only when that has ended is it clear what it is.
                    sources.iter().for_each(|source| drop(source.switching().lock()));
                    taken = self.take_once(sources);
                }
                other => {
                    taken = other;
                    break;
                }
            }
        }
        let taken = taken?;
        if taken.iter().any(|taken| !taken.pending.is_empty()) {
            // Before any map: these layers are what volumes wrote to, whose stubs may be new, until the record of the
            // moment is durable. Data whose stub is missing is taken for a volume that lost its name.
            self.env.fs.sync_dir(Path::new(STUBS)).context("sync stubs directory", STUBS)?;
        }
        for layer in taken.iter().flat_map(|t| &t.pending) {
            layer.flush()?;
            self.env.store.commit_with(|catalogue| firm_stamp(catalogue, layer.id))?;
        }
        Ok(taken)
    }

    fn take_once(self: &Arc<Self>, sources: &[Arc<Volume>]) -> Result<Vec<Taken>> {
        // Whatever takes a system call, and a sync above all, is behind us before the first gate closes.
        let _ready = sources.iter().map(|source| self.make_ready(source)).collect::<Result<Vec<Ready>>>()?;
        sources.iter().for_each(|source| self.flush_cached(source));
        let mut gates: Vec<_> = sources.iter().map(|source| source.gate().write()).collect();
        let mut moments: Vec<Moment> = Vec::with_capacity(sources.len());
        for (source, gate) in sources.iter().zip(&mut gates) {
            let moment = self.moment(source, gate).and_then(|moment| moment.ok_or_else(|| several_names(source)));
            match moment {
                Ok(moment) => moments.push(moment),
                Err(error) => {
                    moments.iter().for_each(|moment| self.abandon(moment));
                    return Err(error);
                }
            }
        }
        // Held before the look at the catalogue: from then on nobody drops or adopts them.
        let taken: Vec<Taken> = moments.iter().map(|moment| self.taken(moment)).collect();
        let committed = {
            let _ops = self.ops.lock();
            let alive = moments.iter().try_for_each(|moment| self.check_layer_lives(moment));
            alive.and_then(|()| self.commit_changes(moments.iter().flat_map(|moment| moment.changes.iter().cloned())))
        };
        match committed {
            Ok(number) => {
                for ((source, gate), moment) in sources.iter().zip(&mut gates).zip(moments) {
                    self.apply_after(source, gate, moment, number);
                }
                Ok(taken)
            }
            Err(error) => {
                moments.iter().for_each(|moment| self.abandon(moment));
                Err(error)
            }
        }
    }

    fn taken(&self, moment: &Moment) -> Taken {
        let held = Pinned::new(self.env.clone(), moment.layer.clone(), moment.visible, moment.size);
        Taken {
            layer: moment.layer.clone(),
            visible: moment.visible.min(blocks(moment.size)),
            size: moment.size,
            pending: moment.pending.clone(),
            _held: held,
        }
    }

    fn make_ready(self: &Arc<Self>, source: &Arc<Volume>) -> Result<Ready> {
        self.check_elsewhere(source)?;
        if source.writers() > 0
            && self.unfit_source(source)?.is_none()
            && let Some(held) = self.freeze_open(source)?
        {
            return Ok(Ready::Frozen { _held: held });
        }
        let names = match &*source.gate().read() {
            State::Plain(plain) => plain.file.stat().context("look at source", source.path())?.nlink,
            _ => return Ok(Ready::Layers),
        };
        match self.pin_named(source) {
            Ok(pinned) => Ok(Ready::Shared { _pinned: pinned }),
            Err(error) if error.kind() == Kind::Unsupported && names > 1 => Err(several_names(source)),
            Err(error) if error.kind() == Kind::Unsupported => {
                Err(error.remedy("a copy is all that can be made of it"))
            }
            Err(error) => Err(error),
        }
    }

    /// Marks the target and links it into `stubs`.
    fn prepare_clone(&self, member: &Member) -> Result<Prepared<'_>> {
        let target = &member.target;
        if let Some(unfit) = self.unfit_target(target)? {
            return Err(unfit.error("clone", target));
        }
        let gate = target.gate().write();
        let file = check_target(target, &gate, 1, false)?.0.file.clone();
        let id = new_id();
        let pool = self.env.store.pool_id().ok_or_else(|| Error::new(Kind::Damaged, "clone"))?;
        stub::mark(file.as_ref(), pool, id)?;
        let prepared = Prepared { pool: self, id, file, done: false };
        self.link_in(prepared.file.as_ref(), &stub_path(id)).context("link stub", target.path())?;
        Ok(prepared)
    }

    /// Stubs and their names are durable before a record names them: a record without them is dropped at the start.
    fn sync_prepared(&self, members: &[Member], made: &[Prepared]) -> Result<()> {
        if made.len() > MANY {
            return self.env.fs.sync_fs().context("sync filesystem", "");
        }
        for prepared in made {
            prepared.file.sync_all().context("sync stub", stub_path(prepared.id))?;
        }
        let parent = |member: &Member| member.target.path().parent().map(Path::to_path_buf).unwrap_or_default();
        let mut directories: BTreeSet<PathBuf> = members.iter().map(parent).collect();
        directories.insert(PathBuf::from(STUBS));
        for directory in directories {
            match self.env.fs.sync_dir(&directory) {
                // It was renamed or removed, with what is in it.
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
                other => other.context("sync directory", &directory)?,
            }
        }
        Ok(())
    }

    /// The record that names all clones, and the switch in memory.
    fn name_clones<'a>(
        &self,
        members: &[Member],
        mut made: Vec<Prepared>,
        of: &dyn Fn(&Member) -> &'a Taken,
    ) -> Result<()> {
        let mut order: Vec<usize> = (0..members.len()).collect();
        order.sort_by_key(|n| members[*n].target.serial);
        let mut gates: Vec<_> = order.iter().map(|n| members[*n].target.gate().write()).collect();
        let mut records = Vec::with_capacity(members.len());
        for (n, gate) in order.iter().zip(&gates) {
            // Its own name and the one in `stubs`.
            check_target(&members[*n].target, gate, 2, false)?;
            let uid = made[*n].file.stat().context("look at destination", members[*n].target.path())?.uid;
            records.push(self.group_record(&members[*n], made[*n].id, Some(uid), of(&members[*n]))?);
        }
        let number = {
            let _ops = self.ops.lock();
            self.env.store.commit(records.iter().cloned().map(Change::Volume).collect())?
        };
        for ((n, gate), record) in order.iter().zip(&mut gates).zip(records) {
            let (member, prepared) = (&members[*n], &mut made[*n]);
            prepared.done = true;
            let top = self.env.fresh_layer(record.top, of(member).layer.clone(), record.size, record.overlap);
            let overlay = Overlay::new(record.id, prepared.file.clone(), top, Vec::new(), number);
            overlay.debts.names_dirty.store(false, Ordering::Release);
            **gate = State::Overlay(overlay);
            member.target.note_write();
            let mut tables = self.tables.lock();
            tables.stubs.insert(member.target.key(), record.id);
            tables.by_id.insert(record.id, Arc::downgrade(&member.target));
        }
        drop(gates);
        self.env.store.sync(number)
    }

    fn group_record(&self, member: &Member, id: Id, uid: Option<u32>, taken: &Taken) -> Result<VolumeRecord> {
        let size = clone_size(&member.target, taken.size, &member.options)?;
        let overlap = taken.visible.min(member.options.visible.unwrap_or(u64::MAX));
        let parent = taken.layer.as_ref().map(|layer| layer.id);
        let files = (&*self.called(&member.source), &*member.target);
        Ok(clone_record((id, new_id()), files, parent, (overlap, size), uid, &member.options))
    }
}

fn several_names(source: &Volume) -> Error {
    Error::new(Kind::Unsupported, "clone in a group")
        .at(source.path())
        .because("it has several names, and so can only be copied")
}
