//! The way of the daemon's messages out of the process: a bounded queue, and one thread that writes.
//!
//! Whoever reads the messages may be gone, or stop reading: a write then fails, or waits for ever. So no thread that serves
//! writes a message itself. It puts it into the queue under a lock that is held for that alone; what finds no room is
//! counted, and the count is told when messages go out again.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Messages that may wait to be written.
const MOST: usize = 1024;
/// Bytes of one message; what is longer is cut off.
const LONGEST: usize = 8 << 10;

/// A message with its priority of syslog(3).
pub type Line = (i32, Vec<u8>);

/// The queue. Nothing else is locked while its lock is held, and nothing is waited for.
pub struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    lines: VecDeque<Line>,
    /// Messages that nobody can read any more: no room for them, or they could not be written.
    lost: u64,
    /// A message was taken out and is not written yet.
    writing: bool,
    /// There is a thread that writes.
    served: bool,
}

impl Outbox {
    /// An empty one, without a thread. What is put into it waits for [`Outbox::serve`].
    pub const fn new() -> Outbox {
        let state = State { lines: VecDeque::new(), lost: 0, writing: false, served: false };
        Outbox { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Puts a message in; never waits for whoever reads it.
    pub fn put(&self, priority: i32, mut text: Vec<u8>) {
        if text.len() > LONGEST {
            text.truncate(LONGEST);
            text.extend_from_slice(b"...\n");
        }
        let mut state = self.state.lock();
        if state.lines.len() < MOST {
            state.lines.push_back((priority, text));
            self.changed.notify_all();
        } else {
            state.lost += 1;
        }
    }

    /// Starts the thread that gives each message to `write`, which says whether somebody can read it. Once is enough:
    /// later calls do nothing.
    pub fn serve(&'static self, mut write: impl FnMut(&Line) -> bool + Send + 'static) -> std::io::Result<()> {
        if std::mem::replace(&mut self.state.lock().served, true) {
            return Ok(());
        }
        let work = move || {
            loop {
                let (lost, line) = self.next();
                let told = lost == 0 || write(&lost_line(lost));
                let lost = if told { 0 } else { lost } + u64::from(!write(&line));
                let mut state = self.state.lock();
                state.lost += lost;
                state.writing = false;
                self.changed.notify_all();
            }
        };
        std::thread::Builder::new().name("log".to_owned()).spawn(work).map(drop).inspect_err(|_| {
            self.state.lock().served = false;
        })
    }

    fn next(&self) -> (u64, Line) {
        let mut state = self.state.lock();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.writing = true;
                return (std::mem::take(&mut state.lost), line);
            }
            self.changed.wait(&mut state);
        }
    }

    /// Waits until all is written, at most for `limit`: before the process ends.
    pub fn drain(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let mut state = self.state.lock();
        while state.served && (state.writing || !state.lines.is_empty()) {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }
}

fn lost_line(lost: u64) -> Line {
    let text = format!("{lost} messages are lost here: they could not be written out, or not as fast as they came\n");
    (libc::LOG_WARNING, text.into_bytes())
}

/// Writes all of `text` to a descriptor, also where that does not take it all at once. No lock of the standard streams is
/// taken: this thread may have to wait here for ever.
pub fn write_out(to: impl AsFd, mut text: &[u8]) -> bool {
    while !text.is_empty() {
        match rustix::io::write(&to, text) {
            Ok(written) => text = &text[written..],
            Err(Errno::INTR) => {}
            // Whoever shares the stream may have made it one that does not wait.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&to, PollFlags::OUT)], None);
            }
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    fn leaked() -> &'static Outbox {
        Box::leak(Box::new(Outbox::new()))
    }

    fn texts(lines: &Receiver<Line>, count: usize) -> Vec<String> {
        lines.iter().take(count).map(|(_, text)| String::from_utf8(text).unwrap()).collect()
    }

    #[test]
    fn a_reader_that_stops_reading_holds_nobody_up_and_hears_what_it_missed() {
        let outbox = leaked();
        let (go_on, stopped) = channel::<()>();
        let (out, lines) = channel();
        let write = move |line: &Line| {
            let _ = stopped.recv();
            out.send(line.clone()).is_ok()
        };
        outbox.serve(write).unwrap();
        let begun = Instant::now();
        outbox.put(libc::LOG_INFO, b"0".to_vec());
        while !outbox.state.lock().writing {
            std::thread::yield_now();
        }
        for n in 1..=MOST + 500 {
            outbox.put(libc::LOG_INFO, n.to_string().into_bytes());
        }
        outbox.drain(Duration::from_millis(10));
        assert!(begun.elapsed() < Duration::from_secs(5));
        drop(go_on);
        let first = texts(&lines, 2);
        assert_eq!(first[0], "0");
        let lost: usize = first[1].split(' ').next().unwrap().parse().unwrap();
        assert_eq!(lost, 500);
        assert_eq!(texts(&lines, MOST).last().unwrap(), "1024");
        outbox.drain(Duration::from_secs(60));
        outbox.put(libc::LOG_INFO, b"last".to_vec());
        assert_eq!(texts(&lines, 1), ["last"]);
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_told_once_it_can() {
        let outbox = leaked();
        let (out, lines) = channel();
        let mut refused = 3;
        let write = move |line: &Line| {
            refused -= i32::from(refused > 0);
            refused == 0 && out.send(line.clone()).is_ok()
        };
        outbox.put(libc::LOG_INFO, b"from before".to_vec());
        outbox.serve(write).unwrap();
        outbox.drain(Duration::from_secs(60));
        // The count of one is refused, then this message; the two are told with the next.
        outbox.put(libc::LOG_INFO, b"two".to_vec());
        outbox.drain(Duration::from_secs(60));
        outbox.put(libc::LOG_INFO, b"three".to_vec());
        let told = texts(&lines, 2);
        assert!(told[0] == "two" || told[0].starts_with("2 messages are lost"), "{told:?}");
    }

    #[test]
    fn a_closed_pipe_is_an_answer_and_a_long_message_is_cut() {
        let (reader, writer) = std::io::pipe().unwrap();
        assert!(write_out(&writer, b"x"));
        drop(reader);
        assert!(!write_out(&writer, b"x"));
        let outbox = leaked();
        outbox.put(libc::LOG_INFO, vec![b'x'; LONGEST * 2]);
        assert_eq!(outbox.next().1.1.len(), LONGEST + 4);
    }
}
