//! What background work will come to by itself.
//!
//! A volume that continues a cloned file would rather adopt what it reads than copy it, and so waits until the clones
//! no longer need it. Of several such volumes that wait for each other the one made last copies.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::Pool;
use crate::policy::Policy;
use crate::policy::value::{Order, When};
use crate::store::catalogue::Catalogue;
use crate::store::record::{Deepening, VolumeRecord};
use crate::store::{data_path, stub_path};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::units::Id;
use crate::volume::Volume;

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

    /// Where a volume is now, as far as that is known.
    fn present_path(&self, record: &VolumeRecord) -> PathBuf {
        let live = self.tables.lock().by_id.get(&record.id).and_then(Weak::upgrade);
        live.map_or_else(|| PathBuf::from(&record.path), |volume| volume.path())
    }

    /// Whether work on a volume is wanted, and nothing is known to forbid it.
    fn is_wanted(&self, record: &VolumeRecord) -> bool {
        !self.options.read_only
            && !record.paused
            && self.when_to_deepen(record) != When::Manual
            && !self.has_failed(record.id)
            && !self.was_too_full_to_deepen()
    }

    /// What will become of a volume by itself.
    pub fn prospect(&self, record: &VolumeRecord) -> Prospect {
        if !self.is_wanted(record) {
            return Prospect::Rests;
        }
        let Some(parent) = record.parent else {
            // Nothing is missing. With several names it stays a stub until only one of them is left.
            let linked = self.env.fs.stat(&stub_path(record.id)).is_ok_and(|stat| stat.nlink > 2);
            return if linked { Prospect::Rests } else { Prospect::Works };
        };
        if !record.source {
            return Prospect::Works;
        }
        if self.has_name(parent) {
            // A plain file of the user's: nobody will ever adopt it.
            return Prospect::Works;
        }
        let others = others_below(&self.env.store.catalogue(), parent, record.id);
        let wanted = |source: bool| others.iter().filter(move |o| o.source == source && self.is_wanted(o));
        if others.is_empty() || wanted(false).next().is_some() || wanted(true).any(|other| other.id > record.id) {
            return Prospect::Waits;
        }
        // Those that are left stay. To copy makes no sense then, unless it was asked for, or lets another one adopt.
        let asked = record.deepening != Deepening::Pool;
        if asked || wanted(true).next().is_some() { Prospect::Works } else { Prospect::Rests }
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
