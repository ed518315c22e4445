//! A pool on a simulated disk, made anew for each schedule, and what threads do in it.

use std::path::Path;
use std::sync::{Arc, Mutex};

use clonefs::io::{Fs, Open};
use clonefs::pool::{CloneOptions, Names, Pool};
use clonefs::units::BLOCK;
use clonefs::volume::Volume;
use shuttle::thread::{self, JoinHandle};

use crate::common::model::Found;
use crate::common::recover::{clean, drain};
use crate::common::rng::Rng;
use crate::common::simfs::{Crash, Options, SimFs};
use crate::common::world::{contents, file_name, fill, pattern, serve};
use crate::history::{Edit, History};

/// Size of the base: some blocks, with an odd end.
pub const SIZE: usize = 6 * BLOCK as usize + 700;

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
        self.taken.lock().unwrap().push(Taken { name, history, first, last });
        volume
    }

    /// Deletes a file for good.
    pub fn remove(&self, name: u8) {
        let key = self.fs.stat(&file_name(name)).unwrap().key;
        self.subjects.lock().unwrap().retain(|subject| subject.name != name);
        self.taken.lock().unwrap().retain(|taken| taken.name != name);
        self.fs.unlink(&file_name(name)).unwrap();
        self.pool.removed(key);
        self.pool.reap_dead().unwrap();
    }

    /// Deepens for some steps, and to the end if it comes to that.
    pub fn deepen(&self, volume: &Arc<Volume>, steps: usize) {
        for _ in 0..steps {
            if fill(&self.pool, volume, 2 * BLOCK).unwrap() {
                self.pool.finish(volume).unwrap();
                return;
            }
        }
    }

    /// Joins a volume with its parent, if it is the only heir.
    pub fn adopt(&self, volume: &Arc<Volume>) {
        self.pool.adopt_parent(volume, &|| false).unwrap();
    }

    /// Everything that is here has the bytes that it must have: at once, in another process after this one was killed,
    /// and once all is deepened.
    pub fn judge(self: Arc<Scene>) {
        self.after_a_power_cut();
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
        drop(scene);
        let fs = SimFs::from_image(image, Options::default());
        clean(&fs).unwrap();
        let (pool, _names) = serve(&fs).unwrap();
        let troubles = pool.status().troubles;
        assert!(troubles.is_empty(), "after a restart: {troubles:?}");
        drain(&fs, &pool, &expected).unwrap();
    }

    /// What is here now, compared with what must be.
    fn expected(&self) -> Found {
        let mut found = Found::new();
        for subject in self.subjects.lock().unwrap().iter() {
            let bytes = contents(&subject.volume).unwrap();
            assert!(bytes == subject.history.last(), "v{} has other bytes than were written", subject.name);
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
            explained.unwrap_or_else(|why| panic!("v{} after a power cut: {why}", subject.name));
        }
    }
}

impl Subject {
    /// Changes the file as its only writer.
    pub fn edit(&self, edit: Edit) {
        let data = self.history.issue(edit);
        let done = match edit {
            Edit::Write(offset, _) => self.volume.write(offset, &data),
            Edit::Punch(offset, len) => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
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
