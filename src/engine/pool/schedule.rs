//! What background work will come to by itself.
//!
//! A volume that continues a cloned file would rather adopt what it reads than copy it, and so waits until the clones
//! no longer need it. Of several such volumes that wait for each other the one made last copies.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Pool;
use crate::engine::policy::Policy;
use crate::engine::policy::value::{Order, When};
use crate::engine::store::catalogue::Catalogue;
use crate::engine::store::record::{Deepening, VolumeRecord};
use crate::engine::store::{data_path, stub_path};
use crate::engine::volume::Volume;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::units::Id;

/// With no request for so long, nobody is at work.
const QUIET: Duration = Duration::from_secs(2);

/// Since when nobody has read or written.
#[derive(Default)]
pub(super) struct Quiet {
    /// Number of requests at the last look, and since when it is that.
    seen: Mutex<Option<(u64, Instant)>>,
    deferred: AtomicBool,
}

impl Quiet {
    fn is_quiet(&self, requests: u64) -> bool {
        let mut seen = self.seen.lock();
        match *seen {
            Some((before, since)) if before == requests => since.elapsed() >= QUIET,
            _ => {
                *seen = Some((requests, Instant::now()));
                false
            }
        }
    }
}

/// What becomes of a volume if nobody does anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prospect {
    /// It can be worked on.
    Works,
    /// It will be, when others are done.
    Waits,
    /// It stays as it is.
    Rests,
}

/// Why a volume is not being worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Its turn has not come.
    Turn,
    /// The pool is served for reading only.
    ReadOnly,
    /// It, or all work, is paused.
    Paused,
    /// A policy keeps it linked.
    Linked,
    /// It is deepened by hand only.
    Manual,
    /// Work on it has failed.
    Failed,
    /// The filesystem is too full.
    Full,
    /// It has several names.
    Names,
    /// Others that will copy what it reads have to do so first.
    Others,
    /// Somebody holds what it is to take over: an export, say, or whoever has its deleted source open.
    Held,
    /// Others that will not be deepened read the same, and copying it would save nothing.
    Stay,
}

impl Pool {
    /// When a volume is to be deepened: what was said of it, then what the policies say, then the pool's option.
    pub fn when_to_deepen(&self, record: &VolumeRecord) -> When {
        let usual = if self.options.deepen_auto { When::Auto } else { When::Manual };
        let policy = self.policy_of(record);
        match record.deepening {
            _ if policy.keep_linked == Some(true) => When::Manual,
            Deepening::Pool => policy.deepen.unwrap_or(usual),
            Deepening::Never => When::Manual,
            Deepening::Forced | Deepening::Physical => When::Auto,
        }
    }

    /// Which blocks of a volume are copied first.
    pub fn order_of(&self, record: &VolumeRecord) -> Order {
        self.policy_of(record).order.unwrap_or(Order::Front)
    }

    fn policy_of(&self, record: &VolumeRecord) -> Policy {
        match self.policies.is_empty() {
            true => Policy::default(),
            false => self.policies.at(&self.present_path(record)),
        }
    }

    /// Whether volumes of which nothing was said can be deepened by themselves.
    pub fn deepens_some(&self) -> bool {
        self.options.deepen_auto || self.policies.any_deepen()
    }

    /// Whether a volume has to wait until nobody reads or writes, and somebody does.
    pub fn has_to_wait(&self, when: When) -> bool {
        let idle = match when {
            When::Idle => true,
            When::By(time) => std::time::SystemTime::now() < time,
            When::Auto | When::Manual => false,
        };
        idle && !self.quiet.is_quiet(self.foreground())
    }

    /// Notes that work waits for a quiet moment; taken by [`Pool::take_deferred`].
    pub fn defer(&self) {
        self.quiet.deferred.store(true, Ordering::Release);
    }

    /// Whether work waits for a quiet moment.
    pub fn take_deferred(&self) -> bool {
        self.quiet.deferred.swap(false, Ordering::AcqRel)
    }

    /// Why no work on a volume is wanted, if so, or what is known to forbid it.
    fn unwanted(&self, record: &VolumeRecord) -> Option<Reason> {
        if self.options.read_only {
            return Some(Reason::ReadOnly);
        }
        if record.paused {
            return Some(Reason::Paused);
        }
        if self.when_to_deepen(record) == When::Manual {
            let linked = self.policy_of(record).keep_linked == Some(true);
            return Some(if linked { Reason::Linked } else { Reason::Manual });
        }
        if self.has_failed(record.id) {
            return Some(Reason::Failed);
        }
        self.was_too_full_to_deepen().then_some(Reason::Full)
    }

    fn is_wanted(&self, record: &VolumeRecord) -> bool {
        self.unwanted(record).is_none()
    }

    /// What will become of a volume by itself.
    pub fn prospect(&self, record: &VolumeRecord) -> Prospect {
        self.outlook(record).0
    }

    /// The same, and why.
    pub(super) fn outlook(&self, record: &VolumeRecord) -> (Prospect, Reason) {
        if let Some(reason) = self.unwanted(record) {
            return (Prospect::Rests, reason);
        }
        let works = (Prospect::Works, Reason::Turn);
        let Some(parent) = record.parent else {
            // Nothing is missing. With several names it stays a stub until only one of them is left.
            let linked = self.env.fs.stat(&stub_path(record.id)).is_ok_and(|stat| stat.nlink > 2);
            return if linked { (Prospect::Rests, Reason::Names) } else { works };
        };
        if !record.source {
            return works;
        }
        if self.has_name(parent) {
            // A plain file of the user's: nobody will ever adopt it.
            return works;
        }
        let others = others_below(&self.env.store.catalogue(), parent, record.id);
        let wanted = |source: bool| others.iter().filter(move |o| o.source == source && self.is_wanted(o));
        if others.is_empty() {
            return (Prospect::Waits, Reason::Held);
        }
        if wanted(false).next().is_some() || wanted(true).any(|other| other.id > record.id) {
            return (Prospect::Waits, Reason::Others);
        }
        // Those that are left stay. To copy makes no sense then, unless it was asked for, or lets another one adopt.
        let asked = record.deepening != Deepening::Pool;
        if asked || wanted(true).next().is_some() { works } else { (Prospect::Rests, Reason::Stay) }
    }

    /// A reason in words. Of other volumes only its own snapshots are named: who may see this one may see those.
    pub(super) fn explain(&self, record: &VolumeRecord, reason: Reason) -> String {
        let plain = match reason {
            Reason::Turn => "it waits for its turn",
            Reason::ReadOnly => "the pool is mounted read-only",
            Reason::Paused => "its deepening is paused",
            Reason::Linked => "a policy keeps it linked",
            Reason::Manual => "volumes like it are deepened only when that is asked for",
            Reason::Failed => "work on it has failed",
            Reason::Full => "the filesystem is too full",
            Reason::Names => {
                "it needs no other file, but has several names (hard links), which cannot be exchanged in one step: in the \
                 pool's directory they stay a stub until one is left"
            }
            Reason::Others => "clones that read the same blocks come first",
            Reason::Held => {
                "what it is to take over is still in use: by an export, or by who has its deleted source open"
            }
            Reason::Stay => return self.who_stays(record),
        };
        plain.to_owned()
    }

    fn who_stays(&self, record: &VolumeRecord) -> String {
        let catalogue = self.env.store.catalogue();
        let others = record.parent.map(|parent| others_below(&catalogue, parent, record.id)).unwrap_or_default();
        drop(catalogue);
        let mine = self.present_path(record);
        let snapshot = others.iter().filter_map(|other| other.snapshot.as_ref()).find(|s| Path::new(&s.of) == mine);
        match snapshot {
            Some(snapshot) => {
                format!("its snapshot {:?} reads the same blocks, and keeps it an overlay", snapshot.name)
            }
            None if others.iter().any(|other| other.snapshot.is_some()) => {
                "a snapshot reads the same blocks, and keeps it an overlay".to_owned()
            }
            None => "another clone reads the same blocks and is not deepened, which keeps it an overlay".to_owned(),
        }
    }

    /// Whether a layer is a file in the tree.
    fn has_name(&self, layer: Id) -> bool {
        let file = self.env.store.catalogue().layer(layer).map(|record| record.file);
        file.is_some_and(|file| self.env.fs.stat(&data_path(file)).is_ok_and(|stat| stat.nlink > 1))
    }

    /// Whether nobody but tokens holds a volume that has no name any more. If so, those tokens are void from now on.
    pub(super) fn only_tokens_hold(&self, volume: &Arc<Volume>) -> bool {
        let mut tokens = self.tokens.lock();
        let held = tokens.count(|source| Arc::ptr_eq(source, volume));
        // And the caller's own.
        if Arc::strong_count(volume) > held + 1 {
            return false;
        }
        tokens.void(|source| Arc::ptr_eq(source, volume));
        true
    }
}

/// The volumes but `me` that read a layer, directly or through others.
fn others_below(catalogue: &Catalogue, layer: Id, me: Id) -> Vec<VolumeRecord> {
    let mut found = Vec::new();
    let mut layers = vec![layer];
    while let Some(layer) = layers.pop() {
        for heir in catalogue.heirs(layer) {
            match catalogue.volume(heir) {
                Some(record) if record.id != me => found.push(record.clone()),
                Some(_) => {}
                None => layers.push(heir),
            }
        }
    }
    found
}
