//! Answers to READ: on the thread that got the request while there is little to do, through the ring otherwise.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fuser::ReplyData;

use super::edge;
use super::replies::code;
use super::workers::{NOBODY, Workers};
use crate::engine::io::{Ring, aligned};
use crate::engine::namespace::Handle;
use crate::error::Result;

thread_local! {
    /// Buffer for reads, one for each thread that serves requests.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What reads go through.
pub struct Reading {
    ring: Option<Ring>,
    /// With so many reads under way the next one goes through the ring. Where there are fewer, waiting for them is faster:
    /// the way to the ring's thread and back takes longer than it saves.
    inline: usize,
    /// For what the ring could not read: its own thread must not wait.
    workers: Arc<Workers>,
    /// Reads under way.
    busy: Arc<AtomicUsize>,
}

/// Counts a read for as long as it is under way.
struct Busy(Arc<AtomicUsize>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Reading {
    /// Reads through `ring`, where there is one, when `inline` reads are under way.
    pub fn new(ring: Option<Ring>, inline: usize, workers: Arc<Workers>) -> Reading {
        Reading { ring, inline, workers, busy: Arc::default() }
    }

    /// Reads from an open file and replies.
    pub fn read(&self, handle: Result<Arc<Handle>>, offset: u64, size: u32, reply: ReplyData) {
        let (Some(ring), Ok(open)) = (&self.ring, &handle) else { return answer(handle, offset, size, reply) };
        let before = self.busy.fetch_add(1, Ordering::Relaxed);
        let busy = Busy(self.busy.clone());
        let prepared = (before >= self.inline).then(|| open.read_beside(ring, offset, size as usize)).flatten();
        let Some(read) = prepared else { return answer(handle, offset, size, reply) };
        let workers = self.workers.clone();
        ring.begin(read, move |bytes| {
            edge("read", || {
                drop(busy);
                match bytes {
                    Ok(bytes) => {
                        // Never the last one, as the kernel closes no file that is being read: nothing ends on this thread.
                        drop(handle);
                        reply.data(&bytes);
                    }
                    // Whatever it was: an ordinary read says what there is.
                    Err(_) => workers.run("read", NOBODY, move || answer(handle, offset, size, reply)),
                }
            });
        });
    }
}

/// Reads on this thread, and replies.
fn answer(handle: Result<Arc<Handle>>, offset: u64, size: u32, reply: ReplyData) {
    BUFFER.with_borrow_mut(|buffer| {
        let buffer = aligned(buffer, size as usize);
        match handle.and_then(|handle| handle.read(offset, buffer)) {
            Ok(read) => reply.data(&buffer[..read]),
            Err(error) => reply.error(code("read", &error)),
        }
    });
}
