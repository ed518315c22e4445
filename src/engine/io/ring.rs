//! Reads that no thread waits for: they are handed to the kernel through io_uring, and what is to be done with their bytes
//! is done on the one thread that hears of their ends.
//!
//! That thread owns the ring and everything in flight, and nobody else touches them: whoever wants a read puts it into a
//! queue, and wakes the thread if it waits. So submissions that come in quick succession go to the kernel in one call,
//! and an end wakes nobody but the thread that deals with it. (Were they submitted by the threads that serve requests,
//! the kernel would run the end of each read on the thread that it came from, and wake it for that.)
//!
//! Reads only: asynchronous direct writes would not keep step with the page cache, see [`super::direct`].

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use io_uring::{IoUring, Probe, opcode, squeue, types};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use super::FileRef;
use super::buffers::{Buffer, Buffers};

/// Submissions that go to the kernel in one call.
const ENTRIES: u32 = 256;
/// Reads in flight, beyond which the next one waits for itself. So many ends have room in the ring.
const MOST: usize = 1024;
/// Ends that are dealt with before the queue is looked at again: the disk must not become idle meanwhile.
const STEP: usize = 4;
/// The number by which the ring knows the read of `Shared::wake`; those of reads are indices.
const WAKE: u64 = u64::MAX;

/// What is done with the bytes, or with the error that says why there are none. It runs on the ring's thread, which must
/// not be held up.
pub type Done = Box<dyn FnOnce(io::Result<Buffer>) + Send>;

/// The engine. Dropped, it waits for everything in flight.
pub struct Ring {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread shares with those who want reads.
struct Shared {
    queue: Mutex<Queue>,
    /// Something is in `queue`.
    filled: AtomicBool,
    /// Read by the ring, written to wake its thread.
    wake: OwnedFd,
    /// Reads that are prepared, queued, or in flight.
    count: AtomicUsize,
    buffers: Arc<Buffers>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<(Read, Done)>,
    /// The thread waits, or is about to.
    asleep: bool,
    /// Nothing more will come.
    closed: bool,
}

/// One of the places for reads.
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A read that can be begun.
pub struct Read {
    file: FileRef,
    fd: RawFd,
    /// Keeps `fd` open.
    _open: Option<Arc<OwnedFd>>,
    offset: u64,
    buffer: Buffer,
    /// Dropped before anybody hears of the end.
    keep: Option<Box<dyn Send>>,
    _place: Place,
}

impl Read {
    /// Holds `keep` until the read has ended.
    pub fn keeping(mut self, keep: impl Send + 'static) -> Read {
        self.keep = Some(Box::new(keep));
        self
    }
}

impl Ring {
    /// Starts the thread, and tries whether the kernel lets it work.
    ///
    /// # Errors
    /// What the kernel says: too old, or forbidden by its settings, a filter of system calls, or a limit of memory.
    pub fn start() -> io::Result<Ring> {
        super::direct::tells_cached()?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC)?;
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            filled: AtomicBool::new(false),
            wake,
            count: AtomicUsize::new(0),
            buffers: Arc::default(),
        });
        let (tell, told) = std::sync::mpsc::channel();
        let beside = shared.clone();
        // The ring belongs to the thread that makes it.
        let serve = move || match Server::new(beside) {
            Ok(server) => {
                drop(tell.send(Ok(())));
                server.run();
            }
            Err(error) => drop(tell.send(Err(error))),
        };
        let thread = thread::Builder::new().name("ring".to_owned()).spawn(serve)?;
        told.recv().map_err(io::Error::other)??;
        Ok(Ring { shared, thread: Some(thread) })
    }

    /// Prepares to read exactly `len` bytes of `file`; `None` if that must be done in the ordinary way.
    pub fn prepare(&self, file: &FileRef, direct: bool, offset: u64, len: usize) -> Option<Read> {
        let open = file.ring_fd(direct, offset, len)?;
        let read = self.prepare_on(open.as_raw_fd(), file, offset, len)?;
        Some(Read { _open: Some(open), ..read })
    }

    /// The same; `fd` is open until the read has ended.
    fn prepare_on(&self, fd: RawFd, file: &FileRef, offset: u64, len: usize) -> Option<Read> {
        let before = self.shared.count.fetch_add(1, Ordering::Relaxed);
        let place = Place(self.shared.clone());
        if before >= MOST {
            return None;
        }
        let buffer = self.shared.buffers.take(len)?;
        Some(Read { file: file.clone(), fd, _open: None, offset, buffer, keep: None, _place: place })
    }

    /// Begins a read. Its end comes for sure, on the ring's thread: all bytes, or an error, after which they should be
    /// read in the ordinary way, which says what there is.
    pub fn begin(&self, read: Read, done: impl FnOnce(io::Result<Buffer>) + Send + 'static) {
        let mut queue = self.shared.queue.lock();
        queue.waiting.push((read, Box::new(done)));
        self.shared.filled.store(true, Ordering::Release);
        let asleep = std::mem::take(&mut queue.asleep);
        drop(queue);
        if asleep {
            self.shared.wake_up();
        }
    }
}

impl Shared {
    fn wake_up(&self) {
        // Nothing but an overflow of the count could make it wait or fail.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.wake_up();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            drop(thread.join());
        }
    }
}

/// What the kernel works on: everything that it may still write to. Whatever happens, it is never freed before the end.
#[derive(Default)]
struct Flight {
    reads: Vec<Option<(Read, Done)>>,
    free: Vec<usize>,
    /// Where the wake-ups are read to, while that is being done.
    wake: Option<Box<[u8; 8]>>,
}

impl Flight {
    fn is_empty(&self) -> bool {
        self.reads.len() == self.free.len() && self.wake.is_none()
    }
}

impl Drop for Flight {
    /// Reached with something in it only when the thread panics: then the memory must stay, as the kernel goes on.
    fn drop(&mut self) {
        std::mem::forget(std::mem::take(&mut self.reads));
        std::mem::forget(self.wake.take());
    }
}

/// The thread's own.
struct Server {
    ring: IoUring,
    shared: Arc<Shared>,
    flight: Flight,
    /// Taken from the queue, not in flight yet.
    backlog: VecDeque<(Read, Done)>,
    closed: bool,
    /// Ends that were taken out of the ring.
    ends: Vec<(u64, i32)>,
}

/// A ring whose ends are reported when this thread asks for them, where the kernel can (6.1 and later).
fn make() -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.dontfork().setup_cqsize(2 * MOST as u32);
    let plain = builder.clone();
    builder.setup_single_issuer().setup_defer_taskrun();
    match builder.build(ENTRIES) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => plain.build(ENTRIES),
        other => other,
    }
}

impl Server {
    fn new(shared: Arc<Shared>) -> io::Result<Server> {
        let ring = make()?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Read::CODE) {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        let (flight, backlog) = (Flight::default(), VecDeque::new());
        let mut server = Server { ring, shared, flight, backlog, closed: false, ends: Vec::new() };
        // A filter may allow the making of a ring and not its use.
        server.arm();
        server.ring.submit()?;
        Ok(server)
    }

    fn run(mut self) {
        loop {
            self.take(true);
            // The wake-up for the end comes for sure, and is waited for: the kernel would write to its place.
            if self.closed && self.backlog.is_empty() && self.flight.is_empty() {
                return;
            }
            self.fill();
            // What found no room goes with the next call, at once.
            let wanted = usize::from(self.backlog.is_empty());
            let entered = self.ring.submit_and_wait(wanted);
            self.shared.queue.lock().asleep = false;
            if let Err(error) = entered {
                pause_after(&error);
            }
            self.reap();
        }
    }

    /// Takes what is queued. With `sleepy`, who comes later has to wake this thread.
    fn take(&mut self, sleepy: bool) {
        let mut queue = self.shared.queue.lock();
        self.shared.filled.store(false, Ordering::Relaxed);
        self.backlog.extend(queue.waiting.drain(..));
        queue.asleep = sleepy;
        self.closed = queue.closed;
    }

    /// Puts into the ring what there is room for.
    fn fill(&mut self) {
        if !self.closed {
            self.arm();
        }
        while !self.ring.submission().is_full() {
            let Some((mut read, done)) = self.backlog.pop_front() else { break };
            let (to, len) = (read.buffer.address(), read.buffer.len() as u32);
            let (fd, offset) = (types::Fd(read.fd), read.offset);
            let index = self.flight.free.pop().unwrap_or_else(|| {
                self.flight.reads.push(None);
                self.flight.reads.len() - 1
            });
            self.flight.reads[index] = Some((read, done));
            let entry = opcode::Read::new(fd, to, len).offset(offset).build().user_data(index as u64);
            self.push(&entry);
        }
    }

    /// Has the ring read the next wake-up, unless it does so already.
    fn arm(&mut self) {
        if self.flight.wake.is_some() || self.ring.submission().is_full() {
            return;
        }
        let to = self.flight.wake.insert(Box::new([0; 8])).as_mut_ptr();
        let entry = opcode::Read::new(types::Fd(self.shared.wake.as_raw_fd()), to, 8).build().user_data(WAKE);
        self.push(&entry);
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the entry writes to a buffer that `flight` owns, of at least the length given, through a descriptor that
        // `flight` (the read's file) or `shared` keeps open. Nothing is taken out of `flight` before its end was reaped,
        // also not when this thread unwinds, see `Flight`; and nobody looks into the buffer before that.
        let pushed = unsafe { self.ring.submission().push(entry) };
        debug_assert!(pushed.is_ok(), "who pushes has seen that there is room");
    }

    /// Deals with the reads that have ended, and submits what comes meanwhile.
    fn reap(&mut self) {
        let mut ends = std::mem::take(&mut self.ends);
        ends.extend(self.ring.completion().map(|end| (end.user_data(), end.result())));
        for (count, (number, result)) in ends.drain(..).enumerate() {
            if count % STEP == STEP - 1 && self.shared.filled.load(Ordering::Acquire) {
                self.take(false);
                self.fill();
                // What goes wrong here is heard of at the next call.
                drop(self.ring.submit());
            }
            if number == WAKE {
                self.flight.wake = None;
                if result < 0 {
                    pause_after(&io::Error::from_raw_os_error(-result));
                }
            } else {
                self.end(number as usize, result);
            }
        }
        self.ends = ends;
    }

    fn end(&mut self, index: usize, result: i32) {
        let Some((read, done)) = self.flight.reads.get_mut(index).and_then(Option::take) else { return };
        self.flight.free.push(index);
        let Read { file, buffer, keep, .. } = read;
        let bytes = match usize::try_from(result) {
            Ok(count) if count == buffer.len() => Ok(buffer),
            // The file ends there, perhaps.
            Ok(_) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            Err(_) => {
                let error = io::Error::from_raw_os_error(-result);
                file.ring_failed(&error);
                Err(error)
            }
        };
        // A panic is its own business; this thread has other reads to end.
        drop(catch_unwind(AssertUnwindSafe(|| {
            drop(file);
            drop(keep);
            done(bytes);
        })));
    }
}

/// A call that was refused for the moment is made again, after what has ended was dealt with.
fn pause_after(error: &io::Error) {
    if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY)) {
        tracing::error!("io_uring: {error}");
        thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
