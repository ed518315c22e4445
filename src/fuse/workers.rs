//! A few threads for requests that can wait for the kernel's own write-back, which needs the threads that read requests.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use parking_lot::Mutex;

type Job = (&'static str, Box<dyn FnOnce() + Send>);

/// The threads, which end when this is dropped and all that was asked for is done.
pub struct Workers {
    jobs: Mutex<Sender<Job>>,
}

impl Workers {
    /// Starts `count` threads.
    pub fn start(count: usize) -> io::Result<Workers> {
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        for index in 0..count {
            let queue = queue.clone();
            thread::Builder::new().name(format!("worker-{index}")).spawn(move || serve(&queue))?;
        }
        Ok(Workers { jobs: Mutex::new(jobs) })
    }

    /// Runs `job` as soon as a thread is free. A job that panics, or that no thread is left for, drops its reply, which
    /// tells the caller EIO.
    pub fn run(&self, name: &'static str, job: impl FnOnce() + Send + 'static) {
        drop(self.jobs.lock().send((name, Box::new(job))));
    }
}

fn serve(queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().recv();
        let Ok((name, job)) = job else { return };
        super::edge(name, job);
    }
}
