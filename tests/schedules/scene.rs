//! A pool on a simulated disk, made anew for each schedule, and what threads do in it.

use std::cell::Cell;
use std::path::Path;
use std::sync::{Arc, Mutex};

use clonefs::engine::io::{Fs, Open};
use clonefs::engine::pool::{CloneOptions, Finished, Names, Pool};
use clonefs::engine::volume::{State, Volume};
use clonefs::units::BLOCK;
use shuttle::thread::{self, JoinHandle};

use crate::common::model::Found;
use crate::common::recover::{clean, drain};
use crate::common::rng::Rng;
use crate::common::served::{contents, file_name, fill, look, pattern, serve};
use crate::common::simfs::{Crash, Options, SimFs};
use crate::history::{Edit, History};

/// Size of the base: some blocks, with an odd end.
pub const SIZE: usize = 6 * BLOCK as usize + 700;

thread_local! {
    /// How often a volume took its parent over, and how often one became an ordinary file: a search in which that never
    /// happened has shown nothing. All threads of a schedule are one of the machine's.
    pub static ADOPTED: Cell<u64> = const { Cell::new(0) };
    /// See there.
    pub static FINISHED: Cell<u64> = const { Cell::new(0) };
}

/// A file that one thread writes.
#[derive(Clone)]
pub struct Subject {
    pub name: u8,
    pub volume: Arc<Volume>,
    pub history: Arc<History>,
}

/// A clone that was taken while its source was written.
struct Taken {
    name: u8,
    /// States of the source that it can be.
    history: Arc<History>,
    first: usize,
    last: usize,
}

/// The pool.
pub struct Scene {
    pub fs: Arc<SimFs>,
    pub pool: Arc<Pool>,
    _names: Arc<dyn Names>,
    subjects: Mutex<Vec<Subject>>,
    taken: Mutex<Vec<Taken>>,
}

/// Begins a thread of the schedule.
pub fn start(work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::spawn(work)
}

/// Waits for threads.
pub fn join(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

impl Scene {
    /// A pool with one plain file, durable, which is the first subject.
    pub fn new() -> (Arc<Scene>, Subject) {
        let fs = SimFs::new(Options::default());
        let file = fs.open(&file_name(0), Open::CreateNew(0o640)).unwrap();
        let bytes = pattern(0, 0, SIZE);
        file.write_at(&bytes, 0).unwrap();
        file.set_xattr(&"user.keep".into(), b"me", 0).unwrap();
        drop(file);
        fs.sync_fs().unwrap();
        let (pool, names) = serve(&fs).unwrap();
        let scene = Scene { fs, pool, _names: names, subjects: Mutex::default(), taken: Mutex::default() };
        if std::env::var_os("CLONEFS_SIM_TRACE").is_some() {
            scene.fs.start_log();
        }
        let key = scene.fs.stat(&file_name(0)).unwrap().key;
        let volume = scene.pool.volume(key, &file_name(0)).unwrap();
        let subject = scene.adopt_subject(0, volume, bytes);
        (Arc::new(scene), subject)
    }

    fn adopt_subject(&self, name: u8, volume: Arc<Volume>, bytes: Vec<u8>) -> Subject {
        volume.open_handle(true);
        let subject = Subject { name, volume, history: Arc::new(History::new(bytes)) };
        self.subjects.lock().unwrap().push(subject.clone());
        subject
    }

    fn create(&self, name: u8) -> Arc<Volume> {
        let file = self.fs.open(&file_name(name), Open::CreateNew(0o644)).unwrap();
        self.pool.created(&file_name(name), file).unwrap()
    }

    /// A durable clone that will have a writer of its own.
    pub fn overlay(&self, source: &Subject, name: u8) -> Subject {
        let volume = self.create(name);
        let options = CloneOptions { sync: true, ..CloneOptions::default() };
        self.pool.clone_volume(&source.volume, &volume, &options).unwrap();
        self.adopt_subject(name, volume, source.history.last())
    }

    /// Takes a clone of what somebody else may be writing.
    pub fn take(&self, source: &Subject, name: u8, sync: bool) -> Arc<Volume> {
        let volume = self.create(name);
        let first = source.history.acknowledged();
        let options = CloneOptions { sync, ..CloneOptions::default() };
        self.pool.clone_volume(&source.volume, &volume, &options).unwrap();
        let (history, last) = (source.history.clone(), source.history.issued());
        let copied = matches!(&*volume.gate().read(), State::Plain(_));
        assert!(!copied, "v{name} was copied, with all writes held up");
        self.taken.lock().unwrap().push(Taken { name, history, first, last });
        volume
    }

    /// Deletes a file for good.
    pub fn remove(&self, name: u8) {
        let key = self.fs.stat(&file_name(name)).unwrap().key;
        let mut subjects = self.subjects.lock().unwrap();
        if let Some(at) = subjects.iter().position(|subject| subject.name == name) {
            subjects.swap_remove(at).volume.close_handle(true);
        }
        drop(subjects);
        self.taken.lock().unwrap().retain(|taken| taken.name != name);
        self.fs.unlink(&file_name(name)).unwrap();
        self.pool.removed(key);
        self.pool.reap_dead().unwrap();
        // What is not durable yet is kept open, and so belongs to somebody.
        self.pool.flush().unwrap();
    }

    /// Deepens for some steps, and to the end if it comes to that.
    pub fn deepen(&self, volume: &Arc<Volume>, steps: usize) {
        for _ in 0..steps {
            if fill(&self.pool, volume, 2 * BLOCK).unwrap() {
                if self.pool.finish(volume).unwrap() == Finished::Plain {
                    FINISHED.set(FINISHED.get() + 1);
                }
                return;
            }
        }
    }

    /// Joins a volume with its parent, if it is the only heir.
    pub fn adopt(&self, volume: &Arc<Volume>) {
        if self.pool.adopt_parent(volume, &|| false).unwrap() {
            ADOPTED.set(ADOPTED.get() + 1);
        }
    }

    /// Everything that is here has the bytes that it must have: at once, in another process after this one was killed,
    /// and once all is deepened.
    pub fn judge(self: Arc<Scene>) {
        self.after_a_power_cut();
        self.judge_contents();
    }

    /// The same, but for a loss of power: where a file has several writers its states have no order.
    pub fn judge_contents(self: Arc<Scene>) {
        let expected = self.expected();
        for subject in self.subjects.lock().unwrap().drain(..) {
            // What a plain file was written is the kernel's to flush, not the pool's.
            subject.volume.sync(false).unwrap();
            subject.volume.close_handle(true);
        }
        self.pool.reap_dead().unwrap();
        self.pool.flush().unwrap();
        self.fs.sync_dir(Path::new("")).unwrap();
        let scene = Arc::into_inner(self).expect("all threads have ended");
        let image = scene.fs.crash(Crash::LoseAll, &mut Rng::new(1));
        let calls = scene.fs.take_log();
        drop(scene);
        let fs = SimFs::from_image(image, Options::default());
        clean(&fs).unwrap();
        let (pool, _names) = serve(&fs).unwrap();
        let troubles = pool.status().troubles;
        assert!(troubles.is_empty(), "after a restart: {troubles:?}");
        let found = look(&pool).unwrap();
        for (name, bytes) in &expected {
            let now = found.get(name).unwrap_or_else(|| panic!("v{name} is not there after a restart"));
            let differ = now.chunks(512).zip(bytes.chunks(512)).position(|(a, b)| a != b);
            let (is, was) = (now.len(), bytes.len());
            assert!(
                now == bytes,
                "v{name} after a restart: size {is} of {was}, sector {differ:?}\n{}",
                calls.join("\n")
            );
        }
        drain(&fs, &pool, &expected).unwrap();
    }

    /// What is here now, compared with what must be.
    fn expected(&self) -> Found {
        let mut found = Found::new();
        for subject in self.subjects.lock().unwrap().iter() {
            let bytes = contents(&subject.volume).unwrap();
            let last = subject.history.last();
            let at = bytes.iter().zip(&last).position(|(a, b)| a != b);
            let (name, is, was) = (subject.name, bytes.len(), last.len());
            let calls = || self.fs.take_log().join("\n");
            assert!(bytes == last, "v{name} has other bytes at {at:?}, size {is} of {was}\n{}", calls());
            found.insert(subject.name, bytes);
        }
        for taken in self.taken.lock().unwrap().iter() {
            let key = self.fs.stat(&file_name(taken.name)).unwrap().key;
            let volume = self.pool.volume(key, &file_name(taken.name)).unwrap();
            let bytes = contents(&volume).unwrap();
            let state = taken.history.find(&bytes, taken.first, taken.last);
            assert!(state.is_some(), "v{} is no moment {}..={}", taken.name, taken.first, taken.last);
            found.insert(taken.name, bytes);
        }
        found
    }

    /// Nothing that a sync acknowledged is lost, and nothing is there that never was.
    fn after_a_power_cut(&self) {
        let fs = SimFs::from_image(self.fs.crash(Crash::LoseAll, &mut Rng::new(1)), Options::default());
        clean(&fs).unwrap();
        let (pool, _names) = serve(&fs).unwrap();
        for subject in self.subjects.lock().unwrap().iter() {
            let key = fs.stat(&file_name(subject.name)).unwrap().key;
            let bytes = contents(&pool.volume(key, &file_name(subject.name)).unwrap()).unwrap();
            let explained = subject.history.explains(&bytes);
            let calls = || self.fs.take_log().join("\n");
            explained.unwrap_or_else(|why| panic!("v{} after a power cut: {why}\n{}", subject.name, calls()));
        }
    }
}

impl Subject {
    /// Changes the file as its only writer, or where nobody else does.
    pub fn edit(&self, edit: Edit) {
        let data = self.history.issue(edit);
        let done = match edit {
            Edit::Write(offset, _) => self.volume.write(offset, &data),
            Edit::Punch(offset, len) => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                self.volume.allocate(mode, offset, len)
            }
            Edit::Zero(offset, len) => {
                let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
                self.volume.allocate(mode, offset, len)
            }
            Edit::Resize(size) => self.volume.set_size(size),
        };
        done.unwrap();
        self.history.acknowledge();
    }

    /// Makes it durable.
    pub fn sync(&self) {
        let number = self.history.acknowledged();
        self.volume.sync(false).unwrap();
        self.history.made_durable(number);
    }

    /// Reads all of it while somebody else may be writing.
    pub fn read(&self) {
        let first = self.history.acknowledged();
        let bytes = contents_of_any_size(&self.volume);
        let last = self.history.issued();
        // A read is not one moment; each block of it is.
        let states: Vec<Vec<u8>> = (first..=last).map(|number| self.history.state(number)).collect();
        for (number, block) in bytes.chunks(BLOCK as usize).enumerate() {
            let at = number * BLOCK as usize;
            let known = states.iter().any(|state| state.get(at..(at + block.len())) == Some(block));
            assert!(known, "v{}: block {number} was read as it never was in {first}..={last}", self.name);
        }
    }
}

fn contents_of_any_size(volume: &Volume) -> Vec<u8> {
    let mut bytes = vec![0xaa; 4 * SIZE];
    let got = volume.read(0, &mut bytes).unwrap();
    bytes.truncate(got);
    bytes
}
