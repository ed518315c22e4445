//! Everything at once on a real mount: many writers that verify what they wrote, clones every 50 ms that are compared
//! with themselves later, deepening, adoption, deletions, and a watchdog that names what hangs.
//!
//! `CLONEFS_STRESS_SECONDS` sets the length: `scripts/test` runs it for one minute, alone, and `scripts/soak stress` for
//! ten.

#[path = "../support/mod.rs"]
mod support;

mod clones;
mod writers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::{Backing, Pool};

/// Writers, each with an image of its own.
const WRITERS: usize = 16;
/// Longest time that everybody may stand still.
const STILL: Duration = Duration::from_secs(90);

fn length() -> Duration {
    let seconds = std::env::var("CLONEFS_STRESS_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    Duration::from_secs(seconds)
}

/// What all threads share.
#[derive(Default)]
pub struct Shared {
    stop: AtomicBool,
    /// Clones made.
    pub clones: AtomicU64,
    /// Clones that were read again.
    pub compared: AtomicU64,
    /// Clones deleted.
    pub deleted: AtomicU64,
    /// Runs of fio.
    pub rounds: AtomicU64,
}

impl Shared {
    /// Whether the time is over, or something was found.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn progress(&self) -> u64 {
        [&self.clones, &self.compared, &self.deleted, &self.rounds].iter().map(|n| n.load(Ordering::Relaxed)).sum()
    }

    fn figures(&self) -> String {
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let (clones, compared) = (of(&self.clones), of(&self.compared));
        format!("clones {clones}  compared {compared}  deleted {}  fio runs {}", of(&self.deleted), of(&self.rounds))
    }
}

/// Stops all threads when the time is over, when one of them has ended (it has found something), or when nothing is done
/// any more: then it ends the process, since who hangs in the kernel cannot be waited for.
fn watch(shared: &Shared, threads: &[thread::JoinHandle<()>], end: Instant) {
    let mut last = (shared.progress(), Instant::now());
    loop {
        thread::sleep(Duration::from_millis(200));
        let now = shared.progress();
        if now != last.0 {
            last = (now, Instant::now());
        }
        let running = threads.iter().any(|thread| !thread.is_finished());
        let ended = threads.iter().any(thread::JoinHandle::is_finished);
        if Instant::now() >= end || ended {
            shared.stop.store(true, Ordering::Relaxed);
        }
        if !running {
            return;
        }
        if last.1.elapsed() > STILL {
            eprintln!("nothing was done for {} s: {}", STILL.as_secs(), shared.figures());
            std::process::abort();
        }
    }
}

fn stress(kind: Backing, length: Duration) {
    let mut pool = Pool::unmounted(kind);
    // Slow enough that overlays live for a while, and are cloned and deleted while they are deepened.
    pool.mount("rate=64M");
    let shared = Arc::new(Shared::default());
    let root = pool.root().to_path_buf();
    clones::make_base(&root);
    let writers = (0..WRITERS).map(|number| {
        let (root, shared) = (root.clone(), shared.clone());
        thread::spawn(move || writers::run(&root, number, &shared))
    });
    let mut threads: Vec<_> = writers.collect();
    let (place, counts) = (root.clone(), shared.clone());
    threads.push(thread::spawn(move || clones::run(&place, WRITERS, &counts)));
    watch(&shared, &threads, Instant::now() + length);
    let failed = threads.into_iter().map(thread::JoinHandle::join).filter(Result::is_err).count();
    println!("stress on {kind:?}: {} s  {}  failed {failed}", length.as_secs(), shared.figures());
    assert_eq!(failed, 0, "see what the threads say above");
    assert!(shared.clones.load(Ordering::Relaxed) > 0 && shared.compared.load(Ordering::Relaxed) > 0);
    let status = pool.mounted().status();
    assert!(status.troubles.is_empty(), "{:?}", status.troubles);
    pool.unmount();
    support::clonefs([std::ffi::OsStr::new("check"), root.as_os_str()]).success();
}

/// One filesystem without shared blocks, one with.
#[test]
#[ignore = "run alone, by scripts/test and scripts/soak"]
fn everything_at_once() {
    if !support::ready() || !writers::can_run() {
        return;
    }
    for kind in [Backing::Ext4, Backing::Xfs] {
        stress(kind, length() / 2);
    }
}
