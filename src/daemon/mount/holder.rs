//! The holder: a small process that has what a mount cannot live without (the FUSE descriptor, the note, descriptors of open
//! files without a name), does no I/O on the pool and takes no lock, and starts another server when the one that serves dies.
//!
//! It forks while it has one thread, and its child is the server. So what is started after a crash is the program that ran,
//! whatever lies at its path by then. Nobody can ask the holder for anything: its line leads to its own child alone.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::daemon::Ready;
use super::line::{self, Word};
use super::logging::{self, Sink};
use super::session::{self, Plan};
use crate::engine::io::{FileKey, FileRef};
use crate::engine::namespace::Keeper;
use crate::engine::note::Note;
use crate::error::{Error, Result};

/// So many starts may fail within [`WHILE`]; then the holder waits longer.
const MOST_FAILURES: usize = 5;
const WHILE: Duration = Duration::from_secs(60);
/// How long it waits before a start that follows one that failed, and before one that follows [`MOST_FAILURES`].
const PAUSE: Duration = Duration::from_millis(100);
const LONG_PAUSE: Duration = Duration::from_secs(1);
/// So often it looks meanwhile whether the mount is still there.
const LOOK: Duration = Duration::from_millis(200);

/// What a server gets from its holder.
pub struct Held {
    /// The root of the pool, from before the mount.
    pub root: OwnedFd,
    /// The note.
    pub note: Arc<Note>,
    /// The device of the mount, if there is one already.
    pub device: Option<OwnedFd>,
    /// Open files that have no name any more.
    pub nameless: HashMap<FileKey, OwnedFd>,
    /// The way to the holder.
    pub line: Arc<OwnedFd>,
}

impl Held {
    /// Whether there is a mount to take over.
    pub fn is_mounted(&self) -> bool {
        self.device.is_some()
    }
}

/// Has the holder keep files.
pub struct Line(pub Arc<OwnedFd>);

impl Keeper for Line {
    fn keep(&self, key: FileKey, file: &FileRef) {
        // SAFETY: `file` keeps the descriptor open during the call.
        let fd = file.fd().map(|fd| unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) });
        if let Err(error) = line::tell(&self.0, Word::Keep(key), fd) {
            tracing::debug!("the holder does not take a file: {error}");
            crate::engine::note::withdraw(crate::engine::note::Reason::Full);
        }
    }

    fn let_go(&self, key: FileKey) {
        if let Err(error) = line::tell(&self.0, Word::LetGo(key), None) {
            tracing::debug!("the holder does not hear: {error}");
        }
    }
}

/// Holds a mount. In the holder it does not return: that ends as its last server did. In each server it returns what
/// [`session::serve`] does. Call it while there is one thread.
///
/// # Errors
/// The holder cannot be set up; or, in a server, that one's error.
pub fn hold(plan: Plan, ready: &mut Ready, sink: Sink) -> Result<()> {
    let failed = |e| Error::io("keep the mount for another process", e);
    let signals = Signals::block(plan.foreground).map_err(failed)?;
    let note = Note::create().map_err(failed)?;
    note.set_holder(std::process::id());
    let (mine, theirs) = line::pair().map_err(failed)?;
    let held = Held {
        root: session::open_root(&plan.pool)?,
        note: Arc::new(note),
        device: None,
        nameless: HashMap::new(),
        line: Arc::new(theirs),
    };
    let spared = spare(-1000);
    let mut holder = Holder { held, mine, signals, sink, child: 0, failures: Vec::new(), patience: plan.options.queue };
    loop {
        holder.held.note.begin();
        // SAFETY: this process has one thread (the caller promises, and nothing here starts one), so the child may do
        // whatever the parent could.
        match unsafe { libc::fork() } {
            -1 => tracing::error!("cannot start a server: {}", io::Error::last_os_error()),
            0 => {
                if let Some(before) = spared {
                    spare(before);
                }
                let Holder { held, mine, signals, .. } = holder;
                drop(mine);
                signals.unblock();
                // Signals of a terminal go to the holder, which passes them on: once is enough.
                // SAFETY: setpgid touches no memory.
                unsafe { libc::setpgid(0, 0) };
                return logging::write(sink).and_then(|()| session::serve(plan, ready, Some(held)));
            }
            child => {
                logging::passed_on();
                holder.child = child;
            }
        }
        ready.leave();
        let status = holder.watch();
        holder.next(status);
    }
}

struct Holder {
    held: Held,
    mine: OwnedFd,
    signals: Signals,
    sink: Sink,
    child: libc::pid_t,
    failures: Vec<Instant>,
    /// Seconds.
    patience: u64,
}

impl Holder {
    /// Until the server is dead; gives its status, or `None` if it could not be started.
    fn watch(&mut self) -> Option<i32> {
        if self.child == 0 {
            return None;
        }
        loop {
            self.signals.wait(Some(&self.mine), None);
            while let Some(signal) = self.signals.next() {
                if signal != libc::SIGCHLD {
                    // SAFETY: the child was not waited for yet, so the number is still its.
                    unsafe { libc::kill(self.child, signal) };
                }
            }
            self.hear();
            let mut status = 0;
            // SAFETY: status is a place for the result; the child is ours and was not waited for yet.
            if unsafe { libc::waitpid(self.child, &raw mut status, libc::WNOHANG) } == self.child {
                // What it told with its last breath.
                self.hear();
                self.child = 0;
                return Some(status);
            }
        }
    }

    fn hear(&mut self) {
        while let Ok(Some((word, file))) = line::hear(&self.mine) {
            match (word, file) {
                (Word::Device, Some(device)) => self.held.device = Some(device),
                (Word::Keep(key), Some(file)) => drop(self.held.nameless.insert(key, file)),
                (Word::LetGo(key), _) => drop(self.held.nameless.remove(&key)),
                _ => {}
            }
        }
    }

    /// Returns when another server is to be started, and does not return where none is.
    fn next(&mut self, status: Option<i32>) {
        let how = status.map_or("it could not be started".to_owned(), describe);
        let code = match status {
            Some(status) if libc::WIFEXITED(status) => libc::WEXITSTATUS(status),
            Some(status) => 128 + libc::WTERMSIG(status),
            None => 1,
        };
        let note = &self.held.note;
        let own = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGABRT];
        if status.is_some_and(|status| libc::WIFSIGNALED(status) && own.contains(&libc::WTERMSIG(status))) {
            note.set_fault();
        }
        if note.ended() || !self.held.is_mounted() {
            self.end(code);
        }
        if let Some(why) = note.withdrawn() {
            tracing::error!("the server of the mount has died ({how}); the mount ends with it: {why}");
            self.end(if code == 0 { 1 } else { code });
        }
        if note.last_served() {
            tracing::error!("the server of the mount has died ({how}); another one takes over");
            return;
        }
        tracing::error!("a server could not take the mount over ({how})");
        let now = Instant::now();
        self.failures.push(now);
        self.failures.retain(|failure| failure.elapsed() < WHILE.max(Duration::from_secs(self.patience)));
        let recent = self.failures.iter().filter(|failure| failure.elapsed() < WHILE).count();
        if recent < MOST_FAILURES {
            return self.pause(PAUSE, code);
        }
        let first = self.failures.first().copied().unwrap_or(now);
        let left = Duration::from_secs(self.patience).checked_sub(first.elapsed());
        match left {
            Some(left) => {
                tracing::error!("{recent} starts have failed; requests wait for {} more seconds", left.as_secs());
                self.pause(LONG_PAUSE.min(left), code);
            }
            None => {
                tracing::error!("no server could take the mount over: it ends");
                self.end(code.max(1));
            }
        }
    }

    /// Ends this process, with a word.
    fn end(&self, code: i32) -> ! {
        logging::write_now(self.sink);
        std::process::exit(code)
    }

    /// Waits, unless a signal tells the holder to end, or the mount is no more.
    fn pause(&mut self, time: Duration, code: i32) {
        logging::write_now(self.sink);
        let until = Instant::now() + time;
        loop {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return };
            self.signals.wait(None, Some(left.min(LOOK)));
            if self.held.device.as_ref().is_some_and(is_gone) {
                tracing::info!("the mount is no more");
                self.end(0);
            }
            while let Some(signal) = self.signals.next() {
                if signal != libc::SIGCHLD {
                    self.end(code.max(1));
                }
            }
        }
    }
}

/// Whether the connection with the kernel has ended.
fn is_gone(device: &OwnedFd) -> bool {
    let mut poll = libc::pollfd { fd: device.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one valid pollfd.
    unsafe { libc::poll(&raw mut poll, 1, 0) > 0 && poll.revents & libc::POLLERR != 0 }
}

/// How a process has ended.
fn describe(status: i32) -> String {
    if libc::WIFSIGNALED(status) {
        format!("signal {}", libc::WTERMSIG(status))
    } else {
        format!("exit code {}", libc::WEXITSTATUS(status))
    }
}

/// Sets how ready the kernel is to kill this process for want of memory; gives what it was.
fn spare(score: i32) -> Option<i32> {
    let path = "/proc/self/oom_score_adj";
    let before = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
    // Not allowed to an ordinary user: then it is as any process.
    std::fs::write(path, score.to_string()).ok()?;
    Some(before)
}

/// Signals of the holder, which come through a descriptor.
struct Signals {
    set: libc::sigset_t,
    before: libc::sigset_t,
    fd: OwnedFd,
}

impl Signals {
    fn block(foreground: bool) -> io::Result<Signals> {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        let hup = if foreground { libc::SIGHUP } else { libc::SIGCHLD };
        // SAFETY: sigemptyset initialises the set, the other calls get a valid one, and pthread_sigmask fills `before`.
        let (set, before, fd) = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGCHLD, hup] {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            if !foreground {
                libc::signal(libc::SIGHUP, libc::SIG_IGN);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr());
            let set = set.assume_init();
            let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            (set, before.assume_init(), fd)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and owned by nobody else.
        Ok(Signals { set, before, fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// In a new server: as it was before.
    fn unblock(self) {
        let _ = self.set;
        // SAFETY: `before` is a valid set.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }

    /// Until there is a signal, or something on the line, or the time is over.
    fn wait(&self, line: Option<&OwnedFd>, time: Option<Duration>) {
        let watch = |fd: &OwnedFd| libc::pollfd { fd: fd.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut all: Vec<libc::pollfd> = std::iter::once(&self.fd).chain(line).map(watch).collect();
        let time = time.map_or(-1, |time| i32::try_from(time.as_millis()).unwrap_or(i32::MAX).saturating_add(1));
        // SAFETY: `all` is a list of valid pollfds of that length.
        unsafe { libc::poll(all.as_mut_ptr(), all.len() as libc::nfds_t, time) };
    }

    fn next(&self) -> Option<i32> {
        let mut info = std::mem::MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: info has room for one signalfd_siginfo.
        let read = unsafe { libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        // SAFETY: a read of the whole size has filled it.
        (read == size as isize).then(|| unsafe { info.assume_init() }.ssi_signo as i32)
    }
}
