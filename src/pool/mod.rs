//! A pool: its volumes, and the operations that concern more than one of them.
//!
//! Lock order: gates of volumes (smaller serial first), `ops`, `tables`, then the store's own. `ops` makes a look at
//! the catalogue and the change that follows from it one step; no sync is waited for under it.

mod adopt;
pub mod check;
mod clone;
mod copy;
mod diff;
mod dissolve;
mod elsewhere;
mod finish;
mod freeze;
mod group;
mod load;
mod lock;
pub mod names;
mod past;
mod reap;
pub mod repair;
mod replace;
mod replay;
mod report;
mod rewind;
mod schedule;
mod scrub;
mod settle;
pub mod snapshot;
mod space;
mod spare;
mod startup;
pub mod stub;
mod usage;
mod walk;
mod whole;

pub use diff::Differences;
pub use finish::Finished;
pub use group::Member;
pub use schedule::Prospect;
pub use space::{Mark, Watermarks};

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::collections::{HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex};

use crate::door::{DeepenAction, DeepenRequest, Trouble};
use crate::error::{Context, Error, Kind, Result};
use crate::events::{Event, Events, What};
use crate::io::{FileKey, Fs, Stat};
use crate::layer::Layer;
use crate::layer::unsynced::Unsynced;
use crate::policy::value::Rate;
use crate::policy::{Patch, Policies, Policy};
use crate::store::record::{Change, Deepening, VolumeRecord};
use crate::store::{Store, map_path};
use crate::units::Id;
use crate::volume::{Env, Hooks, State, Volume};

/// How a pool is served.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// New clones are deepened without being asked.
    pub deepen_auto: bool,
    /// Limit of background copying in bytes a second, 0 for none.
    pub rate: u64,
    /// Nothing is written.
    pub read_only: bool,
    /// Deepening copies bytes even where blocks could be shared.
    pub physical: bool,
    /// How full the backing filesystem may become.
    pub watermarks: Watermarks,
}

impl Default for PoolOptions {
    fn default() -> PoolOptions {
        PoolOptions { deepen_auto: true, rate: 0, read_only: false, physical: false, watermarks: Watermarks::default() }
    }
}

/// How a clone is made.
#[derive(Clone, Debug, Default)]
pub struct CloneOptions {
    /// Size in bytes, not below the source's; `None`: the source's.
    pub size: Option<u64>,
    /// It stays an overlay until told otherwise.
    pub no_deepen: bool,
    /// It is durable when the call returns.
    pub sync: bool,
    /// Fail where the bytes would have to be copied.
    pub no_copy: bool,
    /// Blocks of the source that the clone shows; the rest is zeros, and `size` may then be anything. `None`: all.
    pub visible: Option<u64>,
}

/// The tree of names above a pool, which knows where files are.
///
/// Whoever implements it must not hold its lock while calling what can freeze or finish a volume, because that calls
/// [`Names::swap`]: writing, allocating, setting a size, [`Pool::before_link`], [`Pool::before_touch`], cloning,
/// copying ranges, pinning. Holding it shared is fine for [`Pool::volume`], [`Pool::describe`] and reads.
pub trait Names: Send + Sync {
    /// With no name changing meanwhile: finds the file `key` (where it is known to be, else at `hint`), makes sure
    /// that it is there, and calls `swap` with its path, which puts another file in its place and returns that one's
    /// key. `None`: no name was found, `swap` was not called.
    fn swap(
        &self,
        key: FileKey,
        hint: Option<&Path>,
        swap: &mut dyn FnMut(&Path) -> Result<FileKey>,
    ) -> Result<Option<FileKey>>;
    /// Where a file is, as far as that is known.
    fn path_of(&self, key: FileKey) -> Option<PathBuf>;
    /// Has the kernel hand over what it caches of a file. Called with no lock held that a write needs.
    fn flush_cached(&self, key: FileKey);
    /// Does `work`, during which no file is given a second name. For what makes clones without a request of the kernel.
    fn while_sharing(&self, work: &mut dyn FnMut()) {
        work();
    }
    /// Does `work`, which removes a snapshot.
    fn while_removing(&self, _snapshot: Id, work: &mut dyn FnMut()) {
        work();
    }
}

/// How long a token can be used.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// What a stub takes on disk, in units of 512 bytes.
const STUB_BLOCKS: u64 = 8;
/// Tokens kept at most; the oldest go first.
const TOKEN_LIMIT: usize = 4096;

#[derive(Default)]
struct Tables {
    /// Open volumes by the file that carries their attributes.
    volumes: HashMap<FileKey, Weak<Volume>>,
    /// The same, of volumes in the catalogue, by identity.
    by_id: HashMap<Id, Weak<Volume>>,
    /// Volumes that must be kept until they are synced.
    unsettled: HashMap<u64, Arc<Volume>>,
    /// Stubs by inode.
    stubs: HashMap<FileKey, Id>,
    /// Plain files that clones read through a layer, by inode.
    shared: HashMap<FileKey, Id>,
    /// Frozen layers in memory.
    layers: HashMap<Id, Weak<Layer>>,
}

/// What was found wrong at the start; it does not change while the pool is served.
#[derive(Default)]
struct Findings {
    /// Layers whose file was changed without clonefs.
    changed: HashSet<Id>,
    /// Files of layers whose map could not be written when it had to be, so that it may say what is not on the disk.
    unwritten: HashSet<Id>,
    /// Troubles of volumes, for as long as there are these.
    of_volumes: Vec<(Id, Trouble)>,
    troubles: Vec<Trouble>,
}

/// Background work: who waits for what.
#[derive(Default)]
struct Work {
    /// Grows when something changes that background work may wait for.
    stirred: u64,
    stopping: bool,
    threads: Vec<JoinHandle<()>>,
}

/// A pool that is being served. See the module documentation for its locks.
pub struct Pool {
    env: Arc<Env>,
    options: PoolOptions,
    names: OnceLock<Weak<dyn Names>>,
    ops: Mutex<()>,
    tables: Mutex<Tables>,
    findings: Mutex<Findings>,
    tokens: Mutex<HashMap<String, (Arc<Volume>, Instant)>>,
    dead: Mutex<Vec<reap::Dead>>,
    /// The last new files that were closed with nothing in them: programs open such a file again to fill it.
    blank: Mutex<VecDeque<Arc<Volume>>>,
    elsewhere: Mutex<HashSet<FileKey>>,
    work: Mutex<Work>,
    stirred: Condvar,
    paused: AtomicBool,
    rate: AtomicU64,
    /// Why no clone can be made here, where that is so.
    cannot_clone: OnceLock<String>,
    /// The backing filesystem is one whose SEEK_DATA was never seen to miss data of a file that is not written (R12).
    trusts_holes: bool,
    /// Blocks can be shared between files of the backing filesystem.
    reflink: OnceLock<bool>,
    jobs: Mutex<HashMap<Id, report::Job>>,
    failures: Mutex<HashMap<Id, String>>,
    /// Lock order: after `ops`, before the store's.
    scrub: Mutex<scrub::Scrub>,
    counted: usage::Counted,
    space: space::Space,
    events: Events,
    policies: Policies,
    /// The rate that the policies said last. One that was asked for since then stays until they say another.
    obeyed_rate: Mutex<Option<Rate>>,
    quiet: schedule::Quiet,
    /// What reads the backing files, if the mount has said.
    engine: OnceLock<&'static str>,
    /// Bytes that background work has copied.
    copied: AtomicU64,
    /// So many volumes may wait to be made durable; each of them holds a descriptor or two.
    most_unsettled: usize,
}

impl Pool {
    /// Opens a pool: takes its lock, recovers its metadata, and removes what a crash left over.
    pub fn open(fs: Arc<dyn Fs>, options: PoolOptions) -> Result<Arc<Pool>> {
        lock::acquire(fs.as_ref())?;
        let store = Store::open(fs.clone(), options.read_only)?;
        let unsynced = Arc::new(Unsynced::new(fs.clone()));
        let env = Arc::new(Env {
            fs,
            unsynced,
            store,
            read_only: options.read_only,
            hooks: OnceLock::new(),
            past: AtomicBool::new(false),
            foreground: Arc::default(),
        });
        let rate = AtomicU64::new(options.rate);
        let policies = Policies::open(env.fs.clone(), options.read_only);
        let space = space::Space::new(options.watermarks);
        let backing = env.fs.info().context("look at filesystem", "")?;
        let trusts_holes = matches!(backing.type_name(), "ext4" | "xfs" | "btrfs" | "tmpfs");
        let pool = Arc::new(Pool {
            env,
            options,
            names: OnceLock::new(),
            ops: Mutex::new(()),
            tables: Mutex::default(),
            findings: Mutex::default(),
            tokens: Mutex::default(),
            dead: Mutex::default(),
            blank: Mutex::default(),
            elsewhere: Mutex::default(),
            work: Mutex::default(),
            stirred: Condvar::new(),
            paused: AtomicBool::new(false),
            rate,
            cannot_clone: OnceLock::new(),
            trusts_holes,
            reflink: OnceLock::new(),
            jobs: Mutex::default(),
            failures: Mutex::default(),
            scrub: Mutex::default(),
            counted: usage::Counted::default(),
            space,
            events: Events::default(),
            policies,
            obeyed_rate: Mutex::default(),
            engine: OnceLock::new(),
            quiet: schedule::Quiet::default(),
            copied: AtomicU64::new(0),
            most_unsettled: settle::most_unsettled(),
        });
        let weak: Weak<dyn Hooks> = Arc::downgrade(&(pool.clone() as Arc<dyn Hooks>));
        let _ = pool.env.hooks.set(weak);
        pool.obey_policies();
        pool.start_up()?;
        Ok(pool)
    }

    /// Tells the pool where names are kept.
    pub fn set_names(&self, names: Weak<dyn Names>) {
        let _ = self.names.set(names);
    }

    fn names(&self) -> Option<Arc<dyn Names>> {
        self.names.get().and_then(Weak::upgrade)
    }

    /// Does `work`, which clones, while no file is given a second name.
    pub fn while_sharing(&self, work: &mut dyn FnMut()) {
        match self.names() {
            Some(names) => names.while_sharing(work),
            None => work(),
        }
    }

    /// The backing filesystem.
    pub fn fs(&self) -> &Arc<dyn Fs> {
        &self.env.fs
    }

    /// The metadata.
    pub fn store(&self) -> &Store {
        &self.env.store
    }

    /// What happens in the pool.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Settings by path.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Changes the settings of a path, see [`Policies::change`].
    pub fn change_policy(
        &self,
        path: &Path,
        patch: &Patch,
        check: impl FnOnce(&Policy, &Policy) -> Result<()>,
    ) -> Result<()> {
        self.env.store.ensure()?;
        self.policies.change(path, patch, check)?;
        self.obey_policies();
        Ok(())
    }

    /// Looks whether the file of policies was changed by hand.
    pub fn refresh_policies(&self) {
        if self.policies.refresh(self.options.read_only) {
            self.obey_policies();
        }
    }

    /// Does what the policies of the whole pool say.
    fn obey_policies(&self) {
        let rate = self.policies.at(Path::new("")).rate;
        let mut obeyed = self.obeyed_rate.lock();
        if *obeyed != rate {
            *obeyed = rate;
            self.rate.store(rate.map_or(self.options.rate, |rate| rate.0), Ordering::Relaxed);
        }
        drop(obeyed);
        self.wake_background();
    }

    /// Counts bytes that background work has copied.
    pub fn note_copied(&self, bytes: u64) {
        self.copied.fetch_add(bytes, Ordering::Relaxed);
    }

    /// How it is served.
    pub fn options(&self) -> &PoolOptions {
        &self.options
    }

    /// Number of reads and writes by users so far.
    pub fn foreground(&self) -> u64 {
        self.env.foreground.begun()
    }

    /// Number of reads and writes under way.
    pub fn under_way(&self) -> u64 {
        self.env.foreground.under_way()
    }

    /// Limit of background copying in bytes a second, 0 for none.
    pub fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    /// Whether all background work is paused.
    pub fn paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// Whether files of the backing filesystem can share blocks.
    pub fn can_share(&self) -> bool {
        self.reflink.get().copied().unwrap_or(false)
    }

    /// Whether the backing filesystem tells holes of a file reliably.
    pub fn trusts_holes(&self) -> bool {
        self.trusts_holes
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

    /// To be called before a volume gets one more name: a plain file with clones becomes an overlay first, as a file
    /// of several names cannot be frozen later.
    pub fn before_link(self: &Arc<Self>, volume: &Arc<Volume>) -> Result<()> {
        let shared = matches!(&*volume.gate().read(), State::Plain(p) if p.shared.is_some());
        if shared { self.freeze_plain(volume) } else { Ok(()) }
    }

    /// To be called before the modification time, or the owner's permission to read, is set: the layer remembers both
    /// of a plain file with clones.
    pub fn before_touch(self: &Arc<Self>, volume: &Arc<Volume>) -> Result<()> {
        volume.forget_mtime();
        self.before_link(volume)
    }

    /// A token that stands for `source`.
    pub fn token(&self, source: &Arc<Volume>) -> Result<String> {
        let token = format!("{}{}", crate::store::new_id(), crate::store::new_id());
        let mut tokens = self.tokens.lock();
        tokens.retain(|_, (_, made)| made.elapsed() < TOKEN_LIFE);
        while tokens.len() >= TOKEN_LIMIT {
            let oldest = tokens.iter().min_by_key(|(_, (_, made))| *made).map(|(t, _)| t.clone());
            oldest.map(|t| tokens.remove(&t));
        }
        tokens.insert(token.clone(), (source.clone(), Instant::now()));
        Ok(token)
    }

    /// The volume that a token stands for.
    pub fn redeem(&self, token: &str) -> Result<Arc<Volume>> {
        let tokens = self.tokens.lock();
        let found = tokens.get(token).filter(|(_, made)| made.elapsed() < TOKEN_LIFE);
        // Another pool's token, as far as this one can tell.
        found.map(|(volume, _)| volume.clone()).ok_or_else(|| {
            Error::new(Kind::CrossPool, "find clone source").remedy("source and destination must be in one pool")
        })
    }

    /// Starts, pauses or resumes deepening, of one volume or of all.
    pub fn deepen(&self, volume: Option<&Arc<Volume>>, request: &DeepenRequest) -> Result<()> {
        if let Some(rate) = request.rate {
            self.rate.store(rate, Ordering::Relaxed);
        }
        let Some(volume) = volume else {
            match request.action {
                DeepenAction::Pause => self.paused.store(true, Ordering::Release),
                DeepenAction::Resume | DeepenAction::Start => self.paused.store(false, Ordering::Release),
            }
            self.wake();
            return Ok(());
        };
        let id = match &*volume.gate().read() {
            State::Overlay(overlay) => overlay.id,
            State::Plain(_) => return Ok(()),
            State::Broken { why, .. } => {
                return Err(Error::new(Kind::Damaged, "deepen").at(volume.path()).because(why.clone()));
            }
        };
        if volume.is_snapshot() {
            return Err(Error::new(Kind::ReadOnly, "deepen").because("it is a snapshot").remedy("clone it"));
        }
        self.failures.lock().remove(&id);
        let number = self.env.store.commit_with(|catalogue| {
            let Some(mut record) = catalogue.volume(id).cloned() else { return Vec::new() };
            match request.action {
                DeepenAction::Start if request.physical => record.deepening = Deepening::Physical,
                DeepenAction::Start => record.deepening = Deepening::Forced,
                _ => {}
            }
            record.paused = request.action == DeepenAction::Pause;
            vec![Change::Volume(record)]
        })?;
        self.env.store.sync(number)?;
        self.wake();
        Ok(())
    }

    /// Registers a background thread; [`Pool::shutdown`] waits for it.
    pub fn attach(&self, thread: JoinHandle<()>) {
        self.work.lock().threads.push(thread);
    }

    /// Whether background work must end.
    pub fn stopping(&self) -> bool {
        self.work.lock().stopping
    }

    /// Waits until something has changed since `seen`, the pool stops, or `limit` has passed. Returns whether
    /// something changed.
    pub fn wait_for_work(&self, seen: &mut u64, limit: Duration) -> bool {
        let mut work = self.work.lock();
        if work.stirred == *seen && !work.stopping {
            self.stirred.wait_for(&mut work, limit);
        }
        let changed = work.stirred != *seen;
        *seen = work.stirred;
        changed
    }

    /// Sleeps, unless the pool stops meanwhile.
    pub fn rest(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut work = self.work.lock();
        while !work.stopping && !self.stirred.wait_until(&mut work, until).timed_out() {}
    }

    /// Stops background work at a durable point, makes everything durable, and lets go of the pool.
    pub fn shutdown(&self) -> Result<()> {
        let threads = {
            let mut work = self.work.lock();
            work.stopping = true;
            std::mem::take(&mut work.threads)
        };
        self.stirred.notify_all();
        for thread in threads {
            // A thread that panicked has said so itself; what it left is flushed below as far as it is sound.
            let _ = thread.join();
        }
        self.tokens.lock().clear();
        self.forget_blank();
        let flushed = self.flush();
        if flushed.is_ok() {
            self.env.unsynced.close();
        }
        let reaped = self.reap_dead();
        let written = self.env.store.checkpoint();
        self.events.tell(Event::new(What::Unmounted, ""));
        self.events.stop();
        lock::release(self.env.fs.as_ref());
        flushed.and(reaped).and(written)
    }
}

impl Hooks for Pool {
    fn before_change(&self, volume: &Arc<Volume>) -> Result<()> {
        self.freeze_plain(volume)
    }

    fn closed(&self, volume: &Arc<Volume>) {
        self.volume_closed(volume);
    }

    fn wake(&self) {
        self.wake_background();
    }

    fn relieve(&self) {
        self.flush_quietly();
    }
}
