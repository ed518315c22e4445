//! The FUSE adapter: each request (`requests`) becomes one call of [`NameTree`] or of an open
//! [`Handle`](crate::engine::namespace::Handle), and its result the reply (`replies`). No decision is made here; the errno is
//! chosen by [`Error::errno`](crate::error::Error::errno).
//!
//! Threads that read requests never wait for the kernel: whatever can need pages that the kernel still caches (a clone,
//! a pin, finding holes, a hard link) runs on `Workers`, which users have in turn, and the reply goes with it.

mod changes;
mod convert;
mod deaths;
mod kernel;
mod lookers;
mod once;
mod past;
mod reading;
mod replies;
mod requests;
mod slow;
mod workers;

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

pub use self::kernel::KernelEnd;
pub use self::once::Once;

use self::lookers::Lookers;
use self::reading::Reading;
use self::workers::Workers;
use crate::engine::io::Ring;
use crate::engine::namespace::NameTree;

/// How long the kernel may trust what it was told.
///
/// What changes without its doing is taken back: the size of a new clone, the blocks of a file that was frozen or has
/// become independent. Only the blocks of a file that is being deepened are behind for as long as `attributes`.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Names that exist.
    pub names: Duration,
    /// Attributes, and names that do not exist.
    pub attributes: Duration,
}

/// Serves the requests of one mount.
pub struct Adapter {
    names: Arc<NameTree>,
    /// Before the threads that it hands failed reads to.
    reading: Reading,
    workers: Arc<Workers>,
    /// For changes that have to wait until their file is frozen or copied. They wait for no page that the kernel holds, so
    /// they are never behind what does.
    changers: Workers,
    /// For looks at who asks.
    lookers: Lookers,
    lifetimes: Lifetimes,
    /// Sees to it that what comes again is not done again.
    once: Once,
    /// The kernel can take opens past the daemon.
    passthrough: bool,
}

impl Adapter {
    /// Serves `names`, with `threads` threads, no more than half of which wait for reads where there is a ring. Starts
    /// threads of its own.
    pub fn new(
        names: Arc<NameTree>,
        ring: Option<Ring>,
        threads: usize,
        lifetimes: Lifetimes,
        once: Once,
    ) -> io::Result<Adapter> {
        let workers = Arc::new(Workers::start()?);
        let reading = Reading::new(ring, (threads / 2).max(1), workers.clone());
        let changers = Workers::start()?;
        let lookers = Lookers::start()?;
        Ok(Adapter { names, reading, workers, changers, lookers, lifetimes, once, passthrough: false })
    }
}

/// The edge that no panic passes: the reply, dropped on the way, tells the caller EIO, and other requests go on.
fn edge(name: &'static str, work: impl FnOnce()) {
    deaths::working_on(name);
    GUARDED.set(true);
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        tracing::error!("a bug in clonefs: {name} panicked; the caller got EIO");
    }
    GUARDED.set(false);
}

/// Whether a panic on this thread would be caught here, and answered.
pub fn is_guarded() -> bool {
    GUARDED.get()
}

thread_local! {
    /// This thread serves a request.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}
