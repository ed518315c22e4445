//! A pool: its volumes, and the operations that concern more than one of them.
//!
//! Lock order: gates of volumes (smaller serial first), `ops`, `tables`, then the store's own. `ops` makes a look at
//! the catalogue and the change that follows from it one step; no sync is waited for under it.

mod adopt;
mod background;
mod belongs;
pub mod check;
mod clone;
mod copy;
mod describe;
mod detach;
mod diff;
mod dissolve;
mod elsewhere;
mod finish;
mod fit;
mod follow;
mod freeze;
mod group;
mod load;
mod lock;
mod options;
mod overview;
mod past;
mod pin;
mod reap;
mod registry;
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
mod target;
mod tokens;
mod usage;
mod walk;
mod whole;

pub use diff::Differences;
pub use finish::Finished;
pub use group::Member;
pub use options::{CloneOptions, PoolOptions};
pub use schedule::Prospect;
pub(crate) use settle::open_files;
pub use space::{Mark, Watermarks};

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;

use crate::engine::events::{Event, Events, What};
use crate::engine::io::{FileKey, Fs, InodeRef, leaf};
use crate::engine::layer::unsynced::Unsynced;
use crate::engine::policy::Policies;
use crate::engine::policy::value::Rate;
use crate::engine::store::Store;
use crate::engine::volume::{Env, Hooks, State, Volume};
use crate::error::{Context, Result};
use crate::protocol::Trouble;
use crate::sync::atomic::{AtomicBool, AtomicU64};
use crate::sync::{Condvar, Mutex};
use crate::units::Id;

/// A name by the directory that holds it, which is held: no other directory can take its place.
pub struct Spot {
    /// The directory.
    pub directory: InodeRef,
    /// The name in it.
    pub name: OsString,
    /// Its path, for messages and records.
    pub path: PathBuf,
}

impl Spot {
    /// The place that a path leads to now.
    pub fn find(fs: &dyn Fs, path: &Path) -> io::Result<Spot> {
        let (directory, name) = leaf(fs, path)?;
        Ok(Spot { directory, name, path: path.to_path_buf() })
    }

    /// Whether the file `key` has this name at this moment.
    pub fn has(&self, key: FileKey) -> bool {
        self.directory.stat_at(&self.name).is_ok_and(|stat| stat.key == key)
    }
}

/// The tree of names above a pool, which knows where files are.
///
/// Whoever implements it must not hold its lock while calling what can freeze or finish a volume, because that calls
/// [`Names::swap`]: writing, allocating, setting a size, [`Pool::before_link`], [`Pool::before_touch`], cloning,
/// copying ranges, pinning. Holding it shared is fine for [`Pool::volume`], [`Pool::describe`] and reads.
pub trait Names: Send + Sync {
    /// With no name changing meanwhile: finds the file `key` (where it is known to be, else at `hint`), makes sure
    /// that it is there, and calls `swap` with its place, which puts another file there and returns that one's key.
    /// `None`: no name was found, `swap` was not called.
    fn swap(
        &self,
        key: FileKey,
        hint: Option<&Path>,
        swap: &mut dyn FnMut(&Spot) -> Result<FileKey>,
    ) -> Result<Option<FileKey>>;
    /// Where a file is, as far as that is known.
    fn path_of(&self, key: FileKey) -> Option<PathBuf>;
    /// Has the kernel hand over what it caches of a file. Called with no lock held that a write needs.
    fn flush_cached(&self, key: FileKey);
    /// Does `work`, which removes a snapshot.
    fn while_removing(&self, _snapshot: Id, work: &mut dyn FnMut()) {
        work();
    }
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
    /// Held for a look or a change only.
    lock: Mutex<Option<lock::Held>>,
    options: PoolOptions,
    names: OnceLock<Weak<dyn Names>>,
    ops: Mutex<()>,
    /// What is loaded. Lock order: after `ops`, before the store's.
    tables: registry::Registry,
    findings: Mutex<Findings>,
    tokens: Mutex<tokens::Tokens<Arc<Volume>>>,
    dead: Mutex<Vec<reap::Dead>>,
    /// The last new files that were closed with nothing in them: programs open such a file again to fill it.
    blank: Mutex<VecDeque<Arc<Volume>>>,
    elsewhere: Mutex<elsewhere::Elsewhere>,
    work: Mutex<Work>,
    stirred: Condvar,
    paused: AtomicBool,
    rate: AtomicU64,
    /// Why no clone can be made here, where that is so.
    cannot_clone: OnceLock<String>,
    /// The backing filesystem is one whose SEEK_DATA was never seen to miss data of a file that is not written (R12).
    trusts_holes: bool,
    /// The backing filesystem lets direct writes into a hole of one file go one after another.
    fills_holes_in_turn: bool,
    /// Blocks can be shared between files of the backing filesystem.
    reflink: OnceLock<bool>,
    jobs: Mutex<HashMap<Id, report::Job>>,
    failures: Mutex<HashMap<Id, String>>,
    /// Lock order: after `ops`, before the store's.
    scrub: Mutex<scrub::Scrub>,
    counted: usage::Counted,
    seen: overview::Seen,
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
        let lock = lock::acquire(fs.as_ref())?;
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
            lock: Mutex::new(Some(lock)),
            options,
            names: OnceLock::new(),
            ops: Mutex::new(()),
            tables: registry::Registry::default(),
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
            fills_holes_in_turn: backing.type_name() == "ext4",
            reflink: OnceLock::new(),
            jobs: Mutex::default(),
            failures: Mutex::default(),
            scrub: Mutex::default(),
            counted: usage::Counted::default(),
            seen: overview::Seen::default(),
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

    /// Whether files of the backing filesystem can share blocks.
    pub fn can_share(&self) -> bool {
        self.reflink.get().copied().unwrap_or(false)
    }

    /// Whether the backing filesystem tells holes of a file reliably.
    pub fn trusts_holes(&self) -> bool {
        self.trusts_holes
    }

    /// Whether direct writes into a hole of one file go one after another, so that it is better allocated first.
    pub fn fills_holes_in_turn(&self) -> bool {
        self.fills_holes_in_turn
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

    /// Lets go of the pool's locks, and does nothing else: as the death of this process does.
    #[doc(hidden)]
    pub fn let_go(&self) {
        let lock = self.lock.lock().take();
        drop(lock);
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
        self.let_go();
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

    fn sync_failed(&self, volume: &Arc<Volume>) {
        self.keep_unsettled(volume);
    }

    fn wake(&self) {
        self.wake_background();
    }

    fn relieve(&self) {
        self.flush_quietly();
    }
}
