//! A pool whose mount is kept, and kills of its servers.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Backing, Mount, Pool, clonefs, is_running, wait_until};

/// A kept mount in the foreground, whose log is read.
pub struct Kept {
    pub pool: Pool,
    holder: Child,
    log: Arc<Mutex<Vec<String>>>,
    mount: Option<Mount>,
}

impl Kept {
    /// An empty pool on ext4; each server dies by this plan, see `src/fuse/deaths.rs`.
    pub fn dying(deaths: &str) -> Kept {
        Kept::new(Backing::Ext4, "deepen=manual", deaths)
    }

    pub fn new(kind: Backing, options: &str, deaths: &str) -> Kept {
        let pool = Pool::unmounted(kind);
        let mut command = Command::new(env!("CARGO_BIN_EXE_clonefs"));
        command.args(["mount", "--foreground", "-o", &format!("continuity=on,{options}")]).arg(pool.root());
        if !deaths.is_empty() {
            command.env("CLONEFS_TEST_DEATHS", deaths);
        }
        let mut holder = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("clonefs");
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let lines = BufReader::new(holder.stderr.take().expect("a pipe")).lines();
        let sink = log.clone();
        thread::spawn(move || lines.map_while(Result::ok).for_each(|line| sink.lock().unwrap().push(line)));
        let kept = Kept { mount: Some(Mount::adopt(pool.root())), pool, holder, log };
        wait_until(|| kept.logged("serving") > 0);
        kept
    }

    /// How many lines of the log have this.
    pub fn logged(&self, text: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }

    /// How often another server has taken over.
    pub fn deaths(&self) -> usize {
        self.logged("another one takes over") + self.logged("could not take the mount over (signal 9)")
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.pool.at(name)
    }

    pub fn mounted(&self) -> &Mount {
        self.mount.as_ref().expect("a mount")
    }

    pub fn holder(&self) -> u32 {
        self.holder.id()
    }

    /// Kills the server, and does not wait for the next one.
    pub fn kill(&self) -> u32 {
        kill(server_of(self.holder()).expect("a server"), libc::SIGKILL)
    }

    /// Unmounts, and checks that all is in order: the holder has ended well, and the pool is sound.
    pub fn end(mut self) {
        self.mount.take().expect("a mount").unmount();
        let status = self.holder.wait().expect("the holder");
        let log = self.log.lock().unwrap().join("\n");
        assert!(status.success(), "{status:?}\n{log}");
        clonefs([std::ffi::OsStr::new("check"), self.pool.root().as_os_str()]).success();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.log.lock().unwrap().join("\n"));
            for pid in [Some(self.holder()), server_of(self.holder())].into_iter().flatten() {
                kill(pid, libc::SIGKILL);
            }
            let _ = self.holder.wait();
        }
    }
}

/// Sends a signal.
pub fn kill(pid: u32, signal: i32) -> u32 {
    // SAFETY: kill takes a pid and a signal.
    unsafe { libc::kill(pid as libc::pid_t, signal) };
    pid
}

/// The child of a holder.
pub fn server_of(holder: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{holder}/task/{holder}/children")).ok()?;
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(|pid| is_running(*pid))
}

/// Kills servers, one after the other comes up, until this is dropped.
pub struct Killer {
    stop: Arc<AtomicU64>,
    kills: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Killer {
    /// With a pause of up to `most` from when a server serves until it is killed.
    pub fn start(kept: &Kept, most: Duration) -> Killer {
        let stop: Arc<AtomicU64> = Arc::default();
        let (stopped, holder, log) = (stop.clone(), kept.holder(), kept.log.clone());
        let servers = move || log.lock().unwrap().iter().filter(|line| line.contains("serving")).count();
        let kills: Arc<AtomicU64> = Arc::default();
        let count = kills.clone();
        let thread = thread::spawn(move || {
            let mut state = 88_172_645_463_325_252u64;
            while stopped.load(Ordering::SeqCst) == 0 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                thread::sleep(Duration::from_millis(state % (most.as_millis() as u64).max(1)));
                let served = servers();
                if let Some(server) = server_of(holder) {
                    count.fetch_add(1, Ordering::SeqCst);
                    kill(server, libc::SIGKILL);
                    while servers() == served && stopped.load(Ordering::SeqCst) == 0 {
                        thread::sleep(Duration::from_millis(2));
                    }
                }
            }
        });
        Killer { stop, kills, thread: Some(thread) }
    }

    /// Stops; how often it has killed.
    pub fn end(mut self) -> u64 {
        self.stop.store(1, Ordering::SeqCst);
        self.thread.take().expect("a thread").join().expect("kills");
        self.kills.load(Ordering::SeqCst)
    }
}

/// How long calls take, in microseconds: the longest one after each kill, and those beside any.
#[derive(Default)]
pub struct Pauses {
    kills: Arc<AtomicU64>,
    longest: Mutex<Vec<u64>>,
}

impl Pauses {
    /// Counts the kills of a [`Killer`].
    pub fn of(killer: &Killer) -> Pauses {
        Pauses { kills: killer.kills.clone(), longest: Mutex::default() }
    }

    pub fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let result = work();
        let (took, kill) = (begun.elapsed().as_micros() as u64, self.kills.load(Ordering::SeqCst) as usize);
        let mut longest = self.longest.lock().unwrap();
        if longest.len() <= kill {
            longest.resize(kill + 1, 0);
        }
        longest[kill] = longest[kill].max(took);
        result
    }

    /// The middle one, the 99th of a hundred and the longest, in milliseconds.
    pub fn figures(&self) -> String {
        let mut all = self.longest.lock().unwrap().clone();
        all.sort_unstable();
        let at =
            |share: usize| all.get((all.len() * share / 100).min(all.len().saturating_sub(1))).unwrap_or(&0) / 1000;
        format!("p50 {} ms, p99 {} ms, longest {} ms", at(50), at(99), at(100))
    }
}

/// Whether a path is a mount of clonefs.
pub fn is_mounted(path: &Path) -> bool {
    clonefs::daemon::mount::table::at(path)
        .ok()
        .flatten()
        .is_some_and(|entry| entry.fs_type == clonefs::daemon::mount::table::FS_TYPE)
}
