//! The life of a mount: open the pool, put it into the tree, serve until it is unmounted, close the pool.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::daemon::Ready;
use super::holder::Held;
use super::options::{Engine, Options};
use super::signals::Signals;
use super::table::{self, FS_TYPE};
use super::{attach, holders, logging, nested, takeover, unmount};
use crate::daemon::fuse::{Adapter, KernelEnd, Lifetimes, is_guarded};
use crate::engine::compactor;
use crate::engine::io::{Fs, HostFs, Ring, give_up_resources};
use crate::engine::namespace::{NameTree, Passthrough, Settings};
use crate::engine::pool::{Names, Pool, PoolOptions};
use crate::error::{Context, Error, Kind, Result};

/// How long the kernel may trust names when all changes go through the mount.
const OVER_ITSELF: Lifetimes = Lifetimes { names: Duration::from_secs(60), attributes: Duration::from_secs(1) };
/// The same when the pool's directory can be reached, and changed, beside the mount.
const ELSEWHERE: Lifetimes = Lifetimes { names: Duration::from_secs(1), attributes: Duration::from_secs(1) };

/// How long a mount waits for a daemon that is about to end: before it looks who keeps that, and at most.
const SOON: Duration = Duration::from_millis(500);
const LEAVING: Duration = Duration::from_secs(10);

/// A signal that follows another one so soon is the same, where there is a holder.
const TWICE: Duration = Duration::from_secs(1);

/// A mount that has been looked into and can be tried.
pub struct Plan {
    pub(super) pool: PathBuf,
    pub(super) mountpoint: PathBuf,
    pub(super) options: Options,
    pub(super) foreground: bool,
}

impl Plan {
    /// Finds the directories, and clears dead mounts out of the way.
    pub fn new(config: super::MountConfig) -> Result<Plan> {
        let pool = table::absolute(table::without_prefix(&config.pool))?;
        clear_dead(&pool)?;
        attach::check_directory(&pool)?;
        let pool = pool.canonicalize().context("mount", &pool)?;
        let mountpoint = match &config.mountpoint {
            Some(path) => {
                let path = table::absolute(path)?;
                clear_dead(&path)?;
                attach::check_directory(&path)?;
                path.canonicalize().context("mount", &path)?
            }
            None => pool.clone(),
        };
        if mountpoint != pool && mountpoint.starts_with(&pool) {
            // The daemon would wait for itself when it looks at that directory.
            return Err(Error::new(Kind::Invalid, "mount")
                .at(&mountpoint)
                .because("the mount point lies inside the pool")
                .remedy("mount over the pool itself, or outside of it"));
        }
        for path in [&pool, &mountpoint] {
            refuse_mounted(path)?;
        }
        nested::refuse(&pool)?;
        let options = config.options;
        if options.continuity && options.passthrough != Passthrough::Off {
            return Err(Error::new(Kind::Invalid, "mount")
                .because("continuity=on does not go together with passthrough yet")
                .remedy("leave one of the two options out"));
        }
        Ok(Plan { pool, mountpoint, options, foreground: config.foreground })
    }

    /// Whether a holder is to keep the mount.
    pub fn is_kept(&self) -> bool {
        self.options.continuity
    }
}

/// A mount whose daemon was killed is in the way of everything: takes it out.
fn clear_dead(path: &Path) -> Result<()> {
    while let Some(entry) = table::at(path)?.filter(|entry| entry.fs_type == FS_TYPE) {
        if !unmount::is_dead(path) {
            break;
        }
        tracing::warn!("clearing the dead mount of {:?} at {:?}", entry.pool(), entry.mountpoint);
        unmount::detach(path, true)?;
    }
    Ok(())
}

/// Refuses to serve, or to cover, a directory that a living clonefs is mounted on.
fn refuse_mounted(path: &Path) -> Result<()> {
    let Some(entry) = table::at(path)?.filter(|entry| entry.fs_type == FS_TYPE) else { return Ok(()) };
    let daemon = unmount::status(path).map_or("another process".to_owned(), |status| format!("process {}", status.pid));
    Err(Error::new(Kind::Locked, "mount")
        .at(path)
        .because(format!("the pool {:?} is mounted there, served by {daemon}", entry.pool()))
        .remedy("unmount it first"))
}

/// Mounts, or takes over the mount that is there, and serves until the unmount.
pub fn serve(plan: Plan, ready: &mut Ready, held: Option<Held>) -> Result<()> {
    // A bug on a thread that no request waits for must end the process: silently missing threads would hang it.
    logging::report_panics(is_guarded);
    raise_file_limit();
    if let Err(error) = give_up_resources() {
        tracing::warn!("cannot give up the right to blocks reserved for root: {error}");
    }
    // The kernel hands each caller's own umask over; the daemon's must not be added to it.
    // SAFETY: umask cannot fail and touches no memory.
    unsafe { libc::umask(0) };
    let signals = Signals::block(plan.foreground)?;

    let root = match &held {
        // The mount covers the path: only the holder's descriptor leads below it.
        Some(held) => held.root.try_clone().map_err(|e| Error::io("open the pool", e))?,
        None => open_root(&plan.pool)?,
    };
    let flags = mount_flags(&root, &plan)?;
    let options = &plan.options;
    let pool_options = PoolOptions {
        deepen_auto: options.deepen_auto,
        rate: options.rate,
        read_only: flags & libc::MS_RDONLY != 0,
        physical: options.physical,
        watermarks: options.watermarks,
        taken_over: held.as_ref().map(takeover::begin).transpose()?.flatten(),
    };
    if flags & libc::MS_STRICTATIME != 0 {
        tracing::warn!("strictatime has no effect: access times are kept as the filesystem below says");
    }
    let files = flags & libc::MS_NOATIME != 0;
    let fs = HostFs::new(root).without_access_times(files, files || flags & libc::MS_NODIRATIME != 0);
    let pool = open_pool(Arc::new(fs), &pool_options, &plan.pool);
    let pool = pool.inspect_err(|error| takeover::failed(held.as_ref(), error))?;
    let result = serve_pool(&plan, &pool, flags, signals, ready, held);
    // Also after a failure: what is durable now need not be recovered at the next start.
    result.and(pool.shutdown())
}

/// Opens the pool. A daemon whose mount umount(8) has just taken down still writes out what it holds: it is waited for.
fn open_pool(fs: Arc<dyn Fs>, options: &PoolOptions, path: &Path) -> Result<Arc<Pool>> {
    let begun = Instant::now();
    loop {
        match Pool::open(fs.clone(), options.clone()) {
            Err(e) if e.kind() == Kind::Locked && !is_mounted(path)? => match begun.elapsed() {
                waited if waited < SOON => std::thread::sleep(Duration::from_millis(20)),
                waited => match holders::lingering(path) {
                    Some(lingering) => return Err(e.remedy(format!("{}; {}", lingering.says(), lingering.remedy()))),
                    None if waited < LEAVING => std::thread::sleep(Duration::from_millis(100)),
                    None => {
                        let remedy =
                            "it is not mounted here any more, but not all of its files are closed: `lsof` shows whose";
                        return Err(e.remedy(remedy));
                    }
                },
            },
            other => return other,
        }
    }
}

/// Whether the pool is mounted somewhere that this process can see.
fn is_mounted(pool: &Path) -> Result<bool> {
    let here = |entry: &table::Entry| entry.fs_type == FS_TYPE && entry.pool() == pool;
    Ok(table::mounts()?.iter().any(here))
}

fn serve_pool(
    plan: &Plan,
    pool: &Arc<Pool>,
    flags: libc::c_ulong,
    signals: Signals,
    ready: &mut Ready,
    mut held: Option<Held>,
) -> Result<()> {
    let sync_directories = flags & (libc::MS_DIRSYNC | libc::MS_SYNCHRONOUS) != 0;
    let (pool_path, mountpoint, passthrough) = (plan.pool.clone(), plan.mountpoint.clone(), plan.options.passthrough);
    let settings = Settings { pool: pool_path, mountpoint, sync_directories, passthrough };
    let names = NameTree::new(pool.clone(), settings)?;
    let tree: Weak<NameTree> = Arc::downgrade(&names);
    pool.set_names(tree as Weak<dyn Names>);
    let once = held.as_mut().map(|held| takeover::names(held, &names)).transpose()?;

    let lifetimes = if plan.mountpoint == plan.pool { OVER_ITSELF } else { ELSEWHERE };
    let ring = start_ring(plan.options.engine);
    pool.set_engine(if ring.is_some() { "io_uring" } else { "threads" });
    let adapter = || {
        let once = once.unwrap_or_default();
        Adapter::new(names.clone(), ring, plan.options.threads, lifetimes, once)
            .map_err(|e| Error::io("start threads", e))
    };
    let source = plan.options.source.as_ref().map_or_else(|| table::source_of(&plan.pool), PathBuf::from);
    let (session, mounted) = match &held {
        Some(held) if held.is_mounted() => {
            (takeover::again(adapter, held, &plan.options)?, Mounted::known(&plan.mountpoint, held.note.device()))
        }
        Some(held) => {
            let device = attach::mount_device(&source, &plan.mountpoint, flags, &plan.options)?;
            let mounted = Mounted::find(&plan.mountpoint)?;
            (takeover::first(adapter, held, device, mounted.dev, &plan.options)?, mounted)
        }
        None => {
            let session = attach::attach(adapter, &source, &plan.mountpoint, flags, &plan.options)?;
            (session, Mounted::find(&plan.mountpoint)?)
        }
    };
    names.set_device(mounted.dev);
    names.set_kernel(Box::new(KernelEnd(session.notifier())));
    let taken_over = held.as_ref().filter(|held| held.is_mounted());
    // Before the first request: a server that one of them kills has served.
    taken_over.inspect(|held| held.note.set_served());
    let session = session.spawn().map_err(|e| Error::io("start threads", e))?;
    compactor::start(pool)?;
    watch_signals(signals, pool, &plan.mountpoint, mounted.dev)?;
    if taken_over.is_none() {
        mounted.check_it_answers()?;
        held.iter().for_each(|held| held.note.set_served());
    }
    let how = if taken_over.is_some() { "serving, instead of a process that died," } else { "serving" };
    tracing::info!("{how} {:?} at {:?}", plan.pool, plan.mountpoint);
    ready.tell();

    let ended = session.join();
    mounted.is_gone();
    if let (Some(held), Ok(())) = (&held, &ended) {
        held.note.set_ended();
    }
    tracing::info!("unmounted {:?}", plan.mountpoint);
    ended.map_err(|e| Error::io("serve requests of the kernel", e))
}

/// The engine, if it is wanted and allowed here.
fn start_ring(engine: Engine) -> Option<Ring> {
    // Measured: threads that wait are faster, see docs/performance.md.
    if engine != Engine::IoUring {
        return None;
    }
    match Ring::start() {
        Ok(ring) => Some(ring),
        Err(error) => {
            tracing::warn!("io_uring cannot be used here ({error}): threads read instead");
            None
        }
    }
}

pub(super) fn open_root(pool: &Path) -> Result<OwnedFd> {
    let directory = std::fs::File::open(pool).context("open the pool", pool)?;
    Ok(directory.into())
}

/// Flags to mount with: read-only also where the pool cannot be written to.
fn mount_flags(root: &OwnedFd, plan: &Plan) -> Result<libc::c_ulong> {
    let backing = attach::flags_of(root).context("look at the filesystem of", &plan.pool)?;
    let flags = attach::flags(&plan.options, backing);
    // SAFETY: the descriptor is open and the path NUL-terminated.
    let writable = unsafe { libc::faccessat(root.as_raw_fd(), c".".as_ptr(), libc::W_OK, libc::AT_EACCESS) } == 0;
    if !writable && flags & libc::MS_RDONLY == 0 {
        tracing::warn!("{:?} cannot be written to: mounting read-only", plan.pool);
    }
    Ok(if writable { flags } else { flags | libc::MS_RDONLY })
}

/// Our mount, taken out of the tree when the start fails halfway.
struct Mounted {
    mountpoint: PathBuf,
    dev: u64,
    armed: std::cell::Cell<bool>,
}

impl Mounted {
    fn find(mountpoint: &Path) -> Result<Mounted> {
        match table::at(mountpoint)? {
            Some(entry) if entry.fs_type == FS_TYPE => {
                Ok(Mounted { mountpoint: mountpoint.to_owned(), dev: entry.dev, armed: std::cell::Cell::new(true) })
            }
            _ => Err(Error::new(Kind::NotFound, "find the new mount at").at(mountpoint)),
        }
    }

    /// A mount of a process before this one, which stays if the start fails.
    fn known(mountpoint: &Path, dev: u64) -> Mounted {
        Mounted { mountpoint: mountpoint.to_owned(), dev, armed: std::cell::Cell::new(false) }
    }

    /// A look through the mount shows our root.
    fn check_it_answers(&self) -> Result<()> {
        let meta = std::fs::metadata(&self.mountpoint).context("look through the mount at", &self.mountpoint)?;
        if meta.dev() == self.dev {
            return Ok(());
        }
        Err(Error::new(Kind::Busy, "mount").at(&self.mountpoint).because("something else was mounted over it"))
    }

    fn is_gone(&self) {
        self.armed.set(false);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.armed.get() {
            drop(detach_ours(&self.mountpoint, self.dev, true));
        }
    }
}

/// Unmounts what is at `mountpoint` if that is still our mount.
fn detach_ours(mountpoint: &Path, dev: u64, lazy: bool) -> Result<()> {
    match table::at(mountpoint)? {
        Some(entry) if entry.dev == dev => unmount::detach(mountpoint, lazy),
        _ => Ok(()),
    }
}

/// The first signal makes everything durable and unmounts; with files open the mount leaves the tree at once, and the
/// daemon goes on until the last of them is closed. A second one ends it now: those files give errors from then on.
fn watch_signals(signals: Signals, pool: &Arc<Pool>, mountpoint: &Path, dev: u64) -> Result<()> {
    let (pool, mountpoint) = (pool.clone(), mountpoint.to_owned());
    let (mut count, mut last) = (0, None::<Instant>);
    signals.watch(move |_| {
        // Whoever signals all processes of a service signals its holder too, which passes that on.
        if crate::engine::note::is_kept() && last.is_some_and(|last| last.elapsed() < TWICE) {
            return;
        }
        last = Some(Instant::now());
        count += 1;
        if count > 1 {
            crate::engine::note::end();
            let clean = pool.shutdown().inspect_err(|error| tracing::error!("{error}")).is_ok();
            logging::finish();
            std::process::exit(if clean { 0 } else { 1 });
        }
        if let Err(error) = pool.flush() {
            tracing::error!("{error}");
        }
        let busy = |error: &Error| error.kind() == Kind::Busy;
        let mut result = detach_ours(&mountpoint, dev, false);
        if result.as_ref().is_err_and(busy) {
            tracing::warn!("{mountpoint:?} is in use: serving until its last file is closed");
            result = detach_ours(&mountpoint, dev, true);
        }
        if let Err(error) = result {
            tracing::error!("{error}");
        }
    })
}

/// Overlays and layers are open files. Not being allowed to raise the limit is no error.
fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: limit is a valid rlimit for both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}
