//! Threads for requests that can take long, or wait for the kernel's own write-back, which needs the threads that read
//! requests.
//!
//! Users have them in turn, and nobody has more than [`EACH`] at a time: however slow what one user asks for is, a thread is
//! there for the next one. What waits for a file to be closed has no thread while it waits.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Threads that one user's requests have at a time.
const EACH: usize = 8;
/// Threads in all, and those that stay when there is nothing to do.
const MOST: usize = 64;
const KEPT: usize = 4;
/// How long one more than that stays without work.
const REST: Duration = Duration::from_secs(10);
/// Between two looks at what a request waits for: at first, doubled each time, and at most.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LAST_LOOK: Duration = Duration::from_millis(40);

/// For what is nobody's request.
pub const NOBODY: u32 = u32::MAX;

struct Job {
    name: &'static str,
    user: u32,
    work: Box<dyn FnOnce() + Send>,
}

/// A job that is not to begin yet.
struct Parked {
    job: Job,
    ready: Box<dyn Fn() -> bool + Send>,
    /// It begins then in any case.
    until: Instant,
    look: Instant,
    pause: Duration,
}

#[derive(Default)]
struct Queue {
    waiting: HashMap<u32, VecDeque<Job>>,
    /// Users that have something waiting, the next one first.
    turns: VecDeque<u32>,
    running: HashMap<u32, usize>,
    parked: Vec<Parked>,
    threads: usize,
    idle: usize,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    /// Never held during a job.
    queue: Mutex<Queue>,
    stirred: Condvar,
}

/// The threads, which end when this is dropped and all that was asked for is done.
pub struct Workers {
    shared: Arc<Shared>,
}

impl Queue {
    fn push(&mut self, job: Job) {
        let user = job.user;
        let waiting = self.waiting.entry(user).or_default();
        if waiting.is_empty() {
            self.turns.push_back(user);
        }
        waiting.push_back(job);
    }

    /// The next job whose user has a thread left, counted as running.
    fn take(&mut self) -> Option<Job> {
        for _ in 0..self.turns.len() {
            let user = self.turns.pop_front()?;
            if self.running.get(&user).is_some_and(|count| *count >= EACH) {
                self.turns.push_back(user);
                continue;
            }
            let waiting = self.waiting.get_mut(&user)?;
            let job = waiting.pop_front();
            if waiting.is_empty() {
                self.waiting.remove(&user);
            } else {
                self.turns.push_back(user);
            }
            *self.running.entry(user).or_default() += 1;
            return job;
        }
        None
    }

    fn ended(&mut self, user: u32) {
        if let Some(count) = self.running.get_mut(&user) {
            *count -= 1;
            if *count == 0 {
                self.running.remove(&user);
            }
        }
    }

    /// Whether there is more to do than threads that rest, one of which looks after what is parked.
    fn lacks_threads(&self) -> bool {
        let wanted = self.could_begin() + usize::from(!self.parked.is_empty());
        wanted > self.idle && self.threads < MOST
    }

    /// How many jobs could begin if there were threads for them.
    fn could_begin(&self) -> usize {
        let free = |user: &u32| EACH - self.running.get(user).map_or(0, |count| (*count).min(EACH));
        self.waiting.iter().map(|(user, jobs)| jobs.len().min(free(user))).sum()
    }

    /// Moves on what has waited long enough. When the next look is due.
    fn unpark(&mut self, now: Instant) -> Option<Instant> {
        for at in (0..self.parked.len()).rev() {
            let parked = &mut self.parked[at];
            if parked.look > now && !self.closed {
                continue;
            }
            if self.closed || parked.until <= now || (parked.ready)() {
                let job = self.parked.swap_remove(at).job;
                self.push(job);
            } else {
                parked.pause = (parked.pause * 2).min(LAST_LOOK);
                parked.look = (now + parked.pause).min(parked.until);
            }
        }
        self.parked.iter().map(|parked| parked.look).min()
    }
}

impl Workers {
    /// Starts the threads that stay.
    pub fn start() -> io::Result<Workers> {
        let workers = Workers { shared: Arc::default() };
        (0..KEPT).try_for_each(|_| start_thread(&workers.shared))?;
        Ok(workers)
    }

    /// Runs `work`, which `user` has asked for, as soon as a thread is free. Work that panics drops its reply, which tells
    /// the caller EIO.
    pub fn run(&self, name: &'static str, user: u32, work: impl FnOnce() + Send + 'static) {
        let job = Job { name, user, work: Box::new(work) };
        let more = {
            let mut queue = self.shared.queue.lock();
            queue.push(job);
            queue.lacks_threads()
        };
        self.shared.stirred.notify_one();
        if more {
            start_one_more(&self.shared);
        }
    }

    /// The same, not before `ready` says so or `limit` has passed. `ready` must be quick, and wait for nothing.
    pub fn run_when(
        &self,
        name: &'static str,
        user: u32,
        (ready, limit): (impl Fn() -> bool + Send + 'static, Duration),
        work: impl FnOnce() + Send + 'static,
    ) {
        if ready() {
            return self.run(name, user, work);
        }
        let (now, job) = (Instant::now(), Job { name, user, work: Box::new(work) });
        let (until, look) = (now + limit, now + FIRST_LOOK);
        let more = {
            let mut queue = self.shared.queue.lock();
            queue.parked.push(Parked { job, ready: Box::new(ready), until, look, pause: FIRST_LOOK });
            queue.lacks_threads()
        };
        // One of those that rest has to wake up for it.
        self.shared.stirred.notify_one();
        if more {
            start_one_more(&self.shared);
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.stirred.notify_all();
    }
}

fn start_thread(shared: &Arc<Shared>) -> io::Result<()> {
    let number = {
        let mut queue = shared.queue.lock();
        queue.threads += 1;
        queue.threads
    };
    let theirs = shared.clone();
    let started = thread::Builder::new().name(format!("worker-{number}")).spawn(move || serve(&theirs));
    started.map(drop).inspect_err(|_| shared.queue.lock().threads -= 1)
}

fn start_one_more(shared: &Arc<Shared>) {
    if let Err(error) = start_thread(shared) {
        // Those that are there come to it later.
        tracing::warn!("cannot start one more thread for requests: {error}");
    }
}

fn serve(shared: &Arc<Shared>) {
    let mut queue = shared.queue.lock();
    loop {
        let next_look = queue.unpark(Instant::now());
        if let Some(Job { name, user, work }) = queue.take() {
            let more = queue.lacks_threads();
            if queue.could_begin() > 0 || next_look.is_some() {
                shared.stirred.notify_one();
            }
            drop(queue);
            if more {
                start_one_more(shared);
            }
            super::edge(name, work);
            queue = shared.queue.lock();
            queue.ended(user);
            continue;
        }
        if queue.closed && queue.parked.is_empty() && queue.waiting.is_empty() {
            queue.threads -= 1;
            return;
        }
        queue.idle += 1;
        let until = next_look.unwrap_or_else(|| Instant::now() + REST);
        let timed_out = shared.stirred.wait_until(&mut queue, until).timed_out();
        queue.idle -= 1;
        if timed_out && next_look.is_none() && queue.threads > KEPT && queue.could_begin() == 0 {
            queue.threads -= 1;
            return;
        }
    }
}

#[cfg(test)]
#[path = "workers_tests.rs"]
mod tests;
