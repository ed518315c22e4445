use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use super::*;

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_users_slow_requests_hold_nobody_elses_up() {
    let workers = Workers::start().unwrap();
    let gate = Arc::new(Mutex::new(()));
    let (began, begun) = channel();
    let held = gate.lock();
    for _ in 0..MOST * 2 {
        let (gate, began) = (gate.clone(), began.clone());
        workers.run("slow", 7, move || {
            let _ = began.send(());
            drop(gate.lock());
        });
    }
    (0..EACH).for_each(|_| begun.recv_timeout(SOON).unwrap());
    for user in [8, 9, 8, 9] {
        let (done, answer) = channel();
        workers.run("quick", user, move || done.send(()).unwrap_or(()));
        answer.recv_timeout(SOON).expect("another user's request is served");
    }
    assert!(begun.try_recv().is_err(), "more than {EACH} of one user's at a time");
    drop(held);
    (EACH..MOST * 2).for_each(|_| begun.recv_timeout(SOON).unwrap());
}

#[test]
fn what_waits_to_become_ready_has_no_thread_and_begins_when_it_is_or_the_time_is_over() {
    let workers = Workers::start().unwrap();
    let (ready, looked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (done, answer) = channel();
    for number in 0..MOST {
        let (ready, looked, done) = (ready.clone(), looked.clone(), done.clone());
        let look = move || {
            looked.fetch_add(1, Ordering::SeqCst);
            ready.load(Ordering::SeqCst)
        };
        workers.run_when("waits", 7, (look, SOON * 10), move || done.send(number).unwrap_or(()));
    }
    let (quick, quick_answer) = channel();
    workers.run("quick", 7, move || quick.send(()).unwrap_or(()));
    quick_answer.recv_timeout(SOON).expect("the same user's next request is served");
    let late = done.clone();
    workers.run_when("late", 7, (|| false, Duration::from_millis(60)), move || late.send(MOST).unwrap_or(()));
    assert_eq!(answer.recv_timeout(SOON), Ok(MOST), "what is never ready begins when its time is over");
    assert!(answer.try_recv().is_err() && looked.load(Ordering::SeqCst) > MOST);
    ready.store(true, Ordering::SeqCst);
    let mut all: Vec<usize> = (0..MOST).map(|_| answer.recv_timeout(SOON).unwrap()).collect();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..MOST));
}

#[test]
fn what_was_asked_for_is_done_at_the_end() {
    let workers = Workers::start().unwrap();
    let (done, answer) = channel();
    for number in 0..100 {
        let done = done.clone();
        match number % 2 {
            0 => workers.run("one", number, move || done.send(number).unwrap_or(())),
            _ => workers.run_when("one", number, (|| false, SOON * 10), move || done.send(number).unwrap_or(())),
        }
    }
    drop((workers, done));
    let mut all: Vec<u32> = answer.iter().collect();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..100));
}
