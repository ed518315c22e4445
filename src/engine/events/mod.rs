//! What happened in a pool, for people and programs: a queue that anybody may add to, and a thread that writes it to a
//! log of its own.
//!
//! Telling of an event never waits and never fails: the queue has a lock that is held for a push and nothing else, and
//! what cannot be written is tried again later, or counted as lost when there is too much of it.

pub mod log;

use std::cell::Cell;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use crate::engine::io::Fs;
use crate::error::{Error, Result};
use log::Log;

/// Most events that wait to be written; the oldest are lost first.
const MOST_WAITING: usize = 4096;
/// How soon what was written is durable, and what could not be written is tried again.
const PAUSE: Duration = Duration::from_secs(5);
/// Longest that a reader waits for what is not written yet.
const PATIENCE: Duration = Duration::from_secs(1);

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A daemon began to serve the pool.
    Mounted,
    /// It has ended in good order.
    Unmounted,
    /// A file was made.
    Created,
    /// A file became a clone.
    Cloned,
    /// A volume has become an ordinary file that needs no other.
    Deepened,
    /// A volume, or a layer, has taken over what nobody else read any more.
    Adopted,
    /// A file lost a name: it was deleted or another one was renamed over it.
    Deleted,
    /// A snapshot was made.
    Snapshot,
    /// A snapshot was removed.
    Unsnapshot,
    /// A volume is again what a snapshot of it shows.
    RolledBack,
    /// A clone is again what it was when it was made.
    Reset,
    /// A volume was given another size, by `clonefs resize`.
    Resized,
    /// Something that was asked for was refused.
    Refused,
    /// Something went wrong.
    Failed,
    /// The filesystem below has passed a watermark, up or down.
    Space,
    /// Settings were changed.
    Changed,
    /// So many events before this one could not be kept.
    Lost,
}

impl What {
    /// All of them.
    pub const ALL: [What; 17] = [
        What::Mounted,
        What::Unmounted,
        What::Created,
        What::Cloned,
        What::Deepened,
        What::Adopted,
        What::Deleted,
        What::Snapshot,
        What::Unsnapshot,
        What::RolledBack,
        What::Reset,
        What::Resized,
        What::Refused,
        What::Failed,
        What::Space,
        What::Changed,
        What::Lost,
    ];

    /// The word that users see.
    pub fn word(self) -> &'static str {
        match self {
            What::Mounted => "mounted",
            What::Unmounted => "unmounted",
            What::Created => "created",
            What::Cloned => "cloned",
            What::Deepened => "deepened",
            What::Adopted => "adopted",
            What::Deleted => "deleted",
            What::Snapshot => "snapshot",
            What::Unsnapshot => "unsnapshot",
            What::RolledBack => "rolled-back",
            What::Reset => "reset",
            What::Resized => "resized",
            What::Refused => "refused",
            What::Failed => "failed",
            What::Space => "space",
            What::Changed => "changed",
            What::Lost => "lost",
        }
    }
}

/// Who asked for what is being done on this thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// User.
    pub uid: u32,
    /// Process or thread, 0 when it cannot be seen from here.
    pub pid: u32,
}

thread_local! {
    static ASKER: Cell<Option<Asker>> = const { Cell::new(None) };
}

/// While this lives, events of this thread carry the asker.
pub struct Asking(Option<Asker>);

impl Asker {
    /// What is done on this thread until the result is dropped was asked for by this one.
    pub fn asks(self) -> Asking {
        Asking(ASKER.replace(Some(self)))
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        ASKER.set(self.0);
    }
}

/// One event, as it is in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, in UTC.
    pub time: String,
    /// What.
    pub event: What,
    /// The file, relative to the pool; empty where it is about the pool.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// What it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Why, or what more there is to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// User who asked for it; `None`: nobody, it was done in the background.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Process that asked, where it could be seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

impl Event {
    /// An event of now, with who asks on this thread.
    pub fn new(event: What, path: impl AsRef<Path>) -> Event {
        let asker = ASKER.get();
        Event {
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            event,
            path: path.as_ref().to_string_lossy().into_owned(),
            from: None,
            why: None,
            uid: asker.map(|asker| asker.uid),
            pid: asker.map(|asker| asker.pid).filter(|pid| *pid != 0),
        }
    }

    /// What it was made from.
    pub fn from(mut self, path: impl AsRef<Path>) -> Event {
        self.from = Some(path.as_ref().to_string_lossy().into_owned());
        self
    }

    /// Why.
    pub fn because(mut self, why: impl Into<String>) -> Event {
        self.why = Some(why.into());
        self
    }
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Event>,
    lost: u64,
    /// Some were taken from the queue and are not written yet.
    writing: bool,
    stopping: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
    /// What was taken was written, or put back.
    written: Condvar,
    counts: [AtomicU64; What::ALL.len()],
}

/// The events of a pool.
#[derive(Default)]
pub struct Events {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Events {
    /// Tells of an event. Never waits for anything, and cannot fail.
    pub fn tell(&self, event: Event) {
        let Event { path, from, why, uid, .. } = &event;
        match event.event {
            What::Failed => {}
            What::Refused => tracing::info!("refused {path:?} to {uid:?}: {}", why.as_deref().unwrap_or_default()),
            what => tracing::debug!("{} {path:?} from {from:?} by {uid:?}", what.word()),
        }
        self.shared.counts[event.event as usize].fetch_add(1, Ordering::Relaxed);
        self.shared.push(event);
    }

    /// How many there were of a kind since the pool was opened.
    pub fn count(&self, what: What) -> u64 {
        self.shared.counts[what as usize].load(Ordering::Relaxed)
    }

    /// Starts to write them down.
    pub fn start(&self, fs: Arc<dyn Fs>) -> Result<()> {
        let shared = self.shared.clone();
        let body = move || shared.write(Log::new(fs));
        let thread = std::thread::Builder::new().name("clonefs-events".into()).spawn(body);
        *self.thread.lock() = Some(thread.map_err(|e| Error::io("start background thread", e))?);
        Ok(())
    }

    /// Waits, not for long, until what was told before this call can be read from the log.
    pub fn settle(&self) {
        if self.thread.lock().is_none() {
            return;
        }
        let until = Instant::now() + PATIENCE;
        let mut queue = self.shared.queue.lock();
        while queue.writing || !queue.waiting.is_empty() {
            if self.shared.written.wait_until(&mut queue, until).timed_out() {
                break;
            }
        }
    }

    /// Writes down what there is, if that can be done, and stops.
    pub fn stop(&self) {
        self.shared.queue.lock().stopping = true;
        self.shared.more.notify_all();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // A thread that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn push(&self, event: Event) {
        let mut queue = self.queue.lock();
        if queue.waiting.len() >= MOST_WAITING {
            queue.waiting.pop_front();
            queue.lost += 1;
        }
        queue.waiting.push_back(event);
        drop(queue);
        self.more.notify_one();
    }

    /// The thread.
    fn write(&self, mut log: Log) {
        let mut synced = Instant::now();
        let mut failing = false;
        loop {
            let stopping = self.wait(failing);
            let (batch, lost) = self.take();
            failing = !batch.is_empty() && !self.append(&mut log, batch, lost);
            self.queue.lock().writing = false;
            self.written.notify_all();
            if stopping || synced.elapsed() >= PAUSE {
                log.sync();
                synced = Instant::now();
            }
            if stopping {
                return;
            }
        }
    }

    /// Until there is something to write, or it is time for another look. Whether this is the end.
    fn wait(&self, failing: bool) -> bool {
        let until = Instant::now() + PAUSE;
        let mut queue = self.queue.lock();
        while !queue.stopping && (failing || queue.waiting.is_empty()) {
            if self.more.wait_until(&mut queue, until).timed_out() {
                break;
            }
        }
        queue.stopping
    }

    fn take(&self) -> (Vec<Event>, u64) {
        let mut queue = self.queue.lock();
        queue.writing = !queue.waiting.is_empty();
        (queue.waiting.drain(..).collect(), std::mem::take(&mut queue.lost))
    }

    /// Whether all of it was written; if not it waits for the next time.
    fn append(&self, log: &mut Log, batch: Vec<Event>, lost: u64) -> bool {
        let mut text = String::new();
        let missing = Event::new(What::Lost, "").because(format!("{lost} events could not be kept"));
        for event in std::iter::once(&missing).filter(|_| lost > 0).chain(&batch) {
            if let Ok(line) = serde_json::to_string(event) {
                text.push_str(&line);
                text.push('\n');
            }
        }
        let Err(error) = log.append(text.as_bytes()) else { return true };
        tracing::debug!("the log of events cannot be written: {error}");
        let mut queue = self.queue.lock();
        queue.lost += lost;
        for event in batch.into_iter().rev() {
            if queue.waiting.len() < MOST_WAITING {
                queue.waiting.push_front(event);
            } else {
                queue.lost += 1;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::io::HostFs;

    fn pool() -> (tempfile::TempDir, Arc<dyn Fs>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".clonefs")).unwrap();
        let fs: Arc<dyn Fs> = Arc::new(HostFs::open_dir(dir.path()).unwrap());
        (dir, fs)
    }

    fn written(fs: &dyn Fs) -> Vec<Event> {
        log::read(fs, log::Cursor::default()).unwrap().events
    }

    #[test]
    fn events_are_written_with_who_asked() {
        let (_dir, fs) = pool();
        let events = Events::default();
        events.start(fs.clone()).unwrap();
        {
            let _asking = Asker { uid: 7, pid: 99 }.asks();
            events.tell(Event::new(What::Cloned, "a").from("b"));
        }
        events.tell(Event::new(What::Failed, "a").because("no reason"));
        events.settle();
        let found = written(fs.as_ref());
        assert_eq!((found[0].event, found[0].uid, found[0].pid), (What::Cloned, Some(7), Some(99)));
        assert_eq!((found[1].uid, found[1].why.as_deref()), (None, Some("no reason")));
        assert_eq!((events.count(What::Cloned), events.count(What::Deleted)), (1, 0));
        events.stop();
    }

    #[test]
    fn what_cannot_be_written_waits_and_the_oldest_are_counted_as_lost() {
        let dir = tempfile::tempdir().unwrap();
        let fs: Arc<dyn Fs> = Arc::new(HostFs::open_dir(dir.path()).unwrap());
        let events = Events::default();
        for number in 0..MOST_WAITING + 3 {
            events.tell(Event::new(What::Created, number.to_string()));
        }
        // There is no directory for the log yet.
        let (batch, lost) = events.shared.take();
        assert!(!events.shared.append(&mut Log::new(fs.clone()), batch, lost));
        std::fs::create_dir(dir.path().join(".clonefs")).unwrap();
        events.start(fs.clone()).unwrap();
        events.stop();
        let mut cursor = log::Cursor::default();
        let mut found = Vec::new();
        loop {
            let page = log::read(fs.as_ref(), cursor).unwrap();
            found.extend(page.events);
            if !page.more {
                break;
            }
            cursor = page.next;
        }
        assert_eq!(found.len(), MOST_WAITING + 1);
        assert!(found[0].event == What::Lost && found[0].why.as_deref().unwrap().starts_with("3 events"));
        assert_eq!(found[1].path, "3");
    }
}
