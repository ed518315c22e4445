//! Asking several mounts, of which any may never answer: each is asked on a thread of its own and has so much time.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};

/// A question to a mount.
type Ask<T> = dyn Fn(&Path) -> Result<T> + Send + Sync;

/// One question to many mounts, asked once or again and again.
pub struct InTime<T> {
    ask: Arc<Ask<T>>,
    limit: Duration,
    /// Mounts that owe an answer: they are not asked again meanwhile.
    open: HashMap<PathBuf, Receiver<Result<T>>>,
}

impl<T: Send + 'static> InTime<T> {
    /// `ask` is the question; all mounts together have `limit` to answer.
    pub fn new(limit: Duration, ask: impl Fn(&Path) -> Result<T> + Send + Sync + 'static) -> InTime<T> {
        InTime { ask: Arc::new(ask), limit, open: HashMap::new() }
    }

    /// The answers, in the order of `places`. A mount that does not answer costs the others nothing.
    pub fn ask(&mut self, places: &[PathBuf]) -> Vec<Result<T>> {
        let until = Instant::now() + self.limit;
        let begun: Vec<Result<()>> = places.iter().map(|place| self.begin(place)).collect();
        let each = places.iter().zip(begun);
        each.map(|(place, begun)| begun.and_then(|()| self.answer(place, until))).collect()
    }

    fn begin(&mut self, place: &Path) -> Result<()> {
        if self.open.contains_key(place) {
            return Ok(());
        }
        let (answer, receiver) = channel();
        let (ask, here) = (self.ask.clone(), place.to_path_buf());
        // Nobody may wait for the answer any more.
        let work = move || drop(answer.send(ask(&here)));
        let thread = std::thread::Builder::new().name("ask".to_owned()).spawn(work);
        thread.map_err(|e| Error::io("start a thread to ask", e).at(place))?;
        self.open.insert(place.to_path_buf(), receiver);
        Ok(())
    }

    fn answer(&mut self, place: &Path, until: Instant) -> Result<T> {
        let silent = |cause: &'static str| {
            let remedy = "if its daemon hangs, end that and mount the pool again";
            Err(Error::new(Kind::Busy, "ask the daemon of").at(place).because(cause).remedy(remedy))
        };
        let Some(receiver) = self.open.remove(place) else { return silent("it was asked twice") };
        match receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                self.open.insert(place.to_path_buf(), receiver);
                silent("it does not answer in time")
            }
            Err(RecvTimeoutError::Disconnected) => silent("its answer was lost"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_that_hangs_costs_the_others_nothing_and_is_asked_once() {
        let (asked, questions) = channel();
        let (go_on, hang) = channel::<()>();
        let hang = std::sync::Mutex::new(hang);
        let ask = move |place: &Path| {
            let _ = asked.send(place.to_path_buf());
            match place.to_str() {
                Some("hangs") => hang.lock().unwrap().recv().map(|()| 2).map_err(|_| Error::new(Kind::Io, "hang")),
                Some("dead") => Err(Error::new(Kind::Io, "ask").because("it is dead")),
                _ => Ok(1),
            }
        };
        let mut in_time = InTime::new(Duration::from_millis(200), ask);
        let places: Vec<PathBuf> = ["dead", "hangs", "lives"].map(PathBuf::from).to_vec();
        for _ in 0..2 {
            let answers = in_time.ask(&places);
            assert!(answers[0].as_ref().is_err_and(|e| e.to_string().contains("it is dead")));
            assert!(answers[1].as_ref().is_err_and(|e| e.to_string().contains("\"hangs\": it does not answer")));
            assert_eq!(answers[2].as_ref().ok(), Some(&1));
        }
        assert_eq!(questions.try_iter().filter(|place| place == Path::new("hangs")).count(), 1);
        go_on.send(()).unwrap();
        assert_eq!(in_time.ask(&places)[1].as_ref().ok(), Some(&2));
    }
}
