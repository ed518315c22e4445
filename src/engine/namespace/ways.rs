//! Which opens of a file go past the daemon: FUSE passthrough, where the kernel takes reads, writes and mappings of an open
//! file straight to the backing file.
//!
//! The kernel refuses (EIO) what does not fit together. One more open of an inode while another one lasts:
//!
//! | there is \ the new one | cached | daemon | past the daemon |
//! |---|---|---|---|
//! | cached, or a shared mapping of whatever is not past the daemon | ok | ok | EIO |
//! | daemon | ok | ok | ok |
//! | past the daemon | EIO | EIO | ok, with the same backing id |
//!
//! "Daemon" is an open with `FOPEN_DIRECT_IO`, as all are here that do not go past the daemon. Whether such a handle has
//! a mapping cannot be seen from here, only that it is still open: a mapping holds it. So the way of the first open is
//! that of all others until the last of them is closed, and no cell with EIO is ever entered.

use std::any::Any;
use std::io;
use std::sync::Arc;

use super::NameTree;
use crate::engine::io::{FileKind, FileRef};
use crate::engine::volume::Volume;
use crate::engine::volume::bypass::Bypass;
use crate::error::Result;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Which opens may go past the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passthrough {
    /// None.
    #[default]
    Off,
    /// Those of what never changes: snapshots that one file has all of.
    ReadOnly,
    /// And those of independent volumes for writing. While such a file is open its clones need reflinks.
    Writable,
}

impl Passthrough {
    /// The word for it, as in `-o passthrough=...`.
    pub fn word(self) -> &'static str {
        match self {
            Passthrough::Off => "off",
            Passthrough::ReadOnly => "read-only",
            Passthrough::Writable => "writable",
        }
    }
}

/// What the kernel knows a backing file by; it is given back when this is dropped.
pub type Registered = Arc<dyn Any + Send + Sync>;

/// Tells the kernel of a backing file.
pub type Register<'a> = &'a dyn Fn(&FileRef) -> io::Result<Registered>;

/// What is held while handles of a node go past the daemon.
pub struct Past {
    /// What to tell the kernel.
    pub registered: Registered,
    _bypass: Bypass,
    _counted: Counted,
}

/// One more in a count, until this is dropped.
struct Counted(Arc<AtomicU64>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Past {
    /// Registers the backing file, which is one more of `count`.
    pub fn new(bypass: Bypass, register: Register, count: &Arc<AtomicU64>) -> io::Result<Past> {
        let registered = register(bypass.file())?;
        count.fetch_add(1, Ordering::Relaxed);
        Ok(Past { registered, _bypass: bypass, _counted: Counted(count.clone()) })
    }
}

/// How the handles of one node that are open now reach the bytes.
#[derive(Default)]
pub enum Ways<P> {
    /// None is open.
    #[default]
    None,
    /// So many, which come to the daemon.
    Daemon(u32),
    /// So many, which go past it.
    Past(u32, P),
}

impl<P> Ways<P> {
    /// One more open. `begin` is asked only if it is the first: whether this one, and so all that follow while any lasts,
    /// may go past the daemon. Gives what it said if this one does.
    pub fn open(&mut self, begin: impl FnOnce() -> Option<P>) -> Option<&P> {
        match self {
            Ways::Daemon(count) | Ways::Past(count, _) => *count += 1,
            Ways::None => *self = begin().map_or(Ways::Daemon(1), |past| Ways::Past(1, past)),
        }
        match self {
            Ways::Past(_, past) => Some(past),
            _ => None,
        }
    }

    /// One of them was closed. Gives back what was held, after the last one that went past the daemon.
    pub fn close(&mut self) -> Option<P> {
        match self {
            Ways::Daemon(count) | Ways::Past(count, _) if *count > 1 => {
                *count -= 1;
                None
            }
            _ => match std::mem::take(self) {
                Ways::Past(_, past) => Some(past),
                _ => None,
            },
        }
    }

    /// Some are open, and come to the daemon.
    pub fn are_to_daemon(&self) -> bool {
        matches!(self, Ways::Daemon(_))
    }
}

impl NameTree {
    /// Whether any open may go past the daemon. Only on filesystems that take every open that a user can ask for (O_DIRECT)
    /// and say who has a file open: the kernel fails an open with EIO if its backing file cannot be opened so.
    pub fn wants_passthrough(&self) -> bool {
        let wanted = self.settings.passthrough != Passthrough::Off;
        if wanted && !self.pool.trusts_holes() {
            tracing::warn!("no passthrough: the pool is not on ext4, xfs, btrfs or tmpfs");
        }
        wanted && self.pool.trusts_holes()
    }

    /// Does `work`, which gives privileges to a file, unless writes to that go past the daemon, who would have to take them
    /// away again. None begins to meanwhile.
    pub(super) fn unless_past<T>(&self, id: u64, doing: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.settings.passthrough != Passthrough::Writable || self.kind(id)? != FileKind::File {
            return work();
        }
        let volume = self.volume(id)?;
        volume.settle_bypass();
        let _switching = volume.switching().lock();
        volume.check_not_bypassed(doing)?;
        work()
    }

    /// What one more open of a node needs to go past the daemon, if it is the first and may.
    pub(super) fn prepare_past(
        &self,
        id: u64,
        volume: &Arc<Volume>,
        flags: i32,
        register: Option<Register>,
    ) -> Option<Past> {
        // As qemu opens its disks. What only writes is a copy: that had better become a clone.
        let both = flags & libc::O_ACCMODE == libc::O_RDWR && self.settings.passthrough == Passthrough::Writable;
        if both && register.is_some() {
            self.wait_for_closes(id);
        }
        let is_open = self.table.lock().node(id).is_some_and(|node| node.open.is_some());
        if is_open {
            return None;
        }
        volume.settle_bypass();
        let register = register.filter(|_| !self.no_way_past.load(Ordering::Relaxed))?;
        let bypass = match self.settings.passthrough {
            Passthrough::Off => None,
            // A mapping that outlived its handles would not see what others store through the daemon.
            Passthrough::Writable if both || volume.is_bypassed() => volume.bypass_writing(),
            _ => volume.bypass_reading(),
        };
        let bypass = bypass?;
        let past = Past::new(bypass, register, &self.past)
            .and_then(|past| self.pool.note_past().map(|()| past).map_err(io::Error::other));
        match past {
            Ok(past) => Some(past),
            Err(error) => {
                // EPERM: not privileged. ELOOP: the pool lies on a filesystem that lies on another one.
                if !self.no_way_past.swap(true, Ordering::Relaxed) {
                    tracing::warn!("no passthrough: {error}");
                }
                None
            }
        }
    }

    /// How many files are open past the daemon.
    pub(super) fn count_past(&self) -> u64 {
        self.past.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How the kernel sees an open.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Kind {
        Cached,
        Daemon,
        Past,
    }

    /// The table above: whether the kernel takes an open of kind `new` while one of kind `there` lasts. A daemon's handle
    /// with a shared mapping counts as a cached one.
    fn kernel_takes(there: Kind, new: Kind) -> bool {
        match (there, new) {
            (Kind::Cached, Kind::Past) => false,
            (Kind::Past, Kind::Cached | Kind::Daemon) => false,
            (Kind::Cached | Kind::Daemon, Kind::Cached | Kind::Daemon) => true,
            (Kind::Daemon, Kind::Past) | (Kind::Past, Kind::Past) => true,
        }
    }

    fn open(ways: &mut Ways<u32>, may: Option<u32>) -> (Kind, Option<u32>) {
        match ways.open(|| may).copied() {
            Some(id) => (Kind::Past, Some(id)),
            None => (Kind::Daemon, None),
        }
    }

    #[test]
    fn the_first_open_decides_for_all_others() {
        // Whatever the second one would like.
        for second in [None, Some(2)] {
            let mut ways = Ways::default();
            assert_eq!(open(&mut ways, Some(1)), (Kind::Past, Some(1)));
            assert_eq!(open(&mut ways, second), (Kind::Past, Some(1)), "with the same backing id");
            let mut ways = Ways::default();
            assert_eq!(open(&mut ways, None), (Kind::Daemon, None));
            assert_eq!(open(&mut ways, second), (Kind::Daemon, None), "there can be a mapping");
        }
    }

    #[test]
    fn what_was_held_is_given_back_with_the_last_one() {
        let mut ways = Ways::default();
        open(&mut ways, Some(1));
        open(&mut ways, None);
        assert_eq!(ways.close(), None);
        assert_eq!(open(&mut ways, Some(2)), (Kind::Past, Some(1)), "still the old one");
        assert_eq!(ways.close(), None);
        assert_eq!(ways.close(), Some(1));
        assert_eq!(open(&mut ways, None), (Kind::Daemon, None), "a new beginning");
        assert!(ways.are_to_daemon());
        assert_eq!(ways.close(), None);
        assert!(!ways.are_to_daemon());
    }

    /// All sequences of opens and closes, up to nine of them: each open fits, by the kernel's table, to all that last.
    #[test]
    fn no_sequence_of_opens_and_closes_enters_a_cell_that_the_kernel_refuses() {
        let mut cells = std::collections::HashSet::new();
        for choices in 0..3u32.pow(9) {
            let (mut ways, mut live, mut rest) = (Ways::default(), Vec::new(), choices);
            for turn in 0..9 {
                let choice = rest % 3;
                rest /= 3;
                if choice == 2 {
                    if live.pop().is_some() {
                        ways.close();
                    }
                    continue;
                }
                let (new, id) = open(&mut ways, (choice == 1).then_some(turn));
                for (there, other) in &live {
                    // Each daemon's handle can have a mapping.
                    let seen = if *there == Kind::Daemon { Kind::Cached } else { *there };
                    assert!(kernel_takes(seen, new) && kernel_takes(*there, new), "{there:?}, then {new:?}");
                    assert!(new != Kind::Past || id == *other, "one backing id for all");
                    cells.insert(format!("{there:?} {new:?}"));
                }
                live.push((new, id));
            }
        }
        assert_eq!(cells.len(), 2, "{cells:?}");
    }
}
