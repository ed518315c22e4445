//! A pool in a temporary directory, below FUSE, with nothing going on in the background.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Weak};

use clonefs::engine::io::{Fs, HostFs, Open};
use clonefs::engine::pool::{CloneOptions, Names, Pool, PoolOptions};
use clonefs::engine::volume::Volume;
use tempfile::TempDir;

use crate::hooks::{HookedFs, Hooks};
use crate::names::Finder;

/// Bytes of a block.
pub const BLOCK: u64 = 4096;

/// The pool, its filesystem, and the traps in it.
pub struct World {
    pub pool: Arc<Pool>,
    pub fs: Arc<dyn Fs>,
    pub hooks: Arc<Hooks>,
    _names: Arc<dyn Names>,
    dir: TempDir,
}

impl World {
    pub fn new() -> World {
        World::open(temporary())
    }

    fn open(dir: TempDir) -> World {
        let hooks: Arc<Hooks> = Arc::default();
        let host = HostFs::open_dir(&dir.path().join("pool")).unwrap();
        let fs: Arc<dyn Fs> = Arc::new(HookedFs { host, hooks: hooks.clone() });
        let pool = Pool::open(fs.clone(), PoolOptions { deepen_auto: false, ..PoolOptions::default() }).unwrap();
        let names: Arc<dyn Names> = Arc::new(Finder(fs.clone()));
        pool.set_names(Arc::downgrade(&names) as Weak<dyn Names>);
        World { pool, fs, hooks, _names: names, dir }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("pool")
    }

    /// The pool after its daemon has ended in good order and another one has begun. Volumes must not be held.
    pub fn remounted(self) -> World {
        self.pool.shutdown().unwrap();
        let World { pool, dir, .. } = self;
        drop(pool);
        World::open(dir)
    }

    /// The pool after its daemon was killed and another one has begun. Volumes must not be held.
    pub fn reopened(self) -> World {
        let World { pool, _names, dir, .. } = self;
        drop((pool, _names));
        World::open(dir)
    }

    /// A copy of the pool, as another daemon finds it if this one is killed now: all that was written, nothing that was in memory.
    pub fn killed(&self) -> World {
        let dir = temporary();
        let copied = Command::new("cp").arg("-aT").arg(self.root()).arg(dir.path().join("pool")).status().unwrap();
        assert!(copied.success());
        World::open(dir)
    }

    /// A new file.
    pub fn create(&self, name: &str) -> Arc<Volume> {
        let file = self.fs.open(Path::new(name), Open::CreateNew(0o644)).unwrap();
        self.pool.created(Path::new(name), file).unwrap()
    }

    /// A new file with these bytes.
    pub fn create_with(&self, name: &str, bytes: &[u8]) -> Arc<Volume> {
        let volume = self.create(name);
        volume.write(0, bytes).unwrap();
        volume
    }

    /// The volume that exists under this name.
    pub fn volume(&self, name: &str) -> Arc<Volume> {
        let stat = self.fs.stat(Path::new(name)).unwrap();
        self.pool.volume(stat.key, Path::new(name)).unwrap()
    }

    /// A clone as it is made by default.
    pub fn clone_of(&self, source: &Arc<Volume>, name: &str) -> Arc<Volume> {
        self.clone_with(source, name, CloneOptions::default())
    }

    /// A clone that is larger than its source.
    pub fn clone_grown(&self, source: &Arc<Volume>, name: &str, size: u64) -> Arc<Volume> {
        self.clone_with(source, name, CloneOptions { size: Some(size), ..CloneOptions::default() })
    }

    fn clone_with(&self, source: &Arc<Volume>, name: &str, options: CloneOptions) -> Arc<Volume> {
        let target = self.create(name);
        self.pool.clone_volume(source, &target, &options).unwrap();
        target
    }

    /// Deletes a file.
    pub fn remove(&self, name: &str) {
        let key = self.fs.stat(Path::new(name)).unwrap().key;
        self.fs.unlink(Path::new(name)).unwrap();
        self.pool.removed(key);
        self.pool.reap_dead().unwrap();
    }

    /// Bytes of all maps of layers.
    pub fn maps_len(&self) -> u64 {
        let entries = std::fs::read_dir(self.root().join(".clonefs/layers")).unwrap().map(|entry| entry.unwrap());
        let maps = entries.filter(|entry| entry.path().extension().is_some_and(|e| e == "map"));
        maps.map(|entry| entry.metadata().unwrap().len()).sum()
    }
}

/// A directory with an empty `pool` in it, in memory if there is some: this is about what is done, not where.
fn temporary() -> TempDir {
    let base = if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
    let dir = tempfile::tempdir_in(base).unwrap();
    std::fs::create_dir(dir.path().join("pool")).unwrap();
    dir
}

/// `len` bytes at `offset`, fewer at the end of the volume.
pub fn read(volume: &Volume, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    let got = volume.read(offset, &mut bytes).unwrap();
    bytes.truncate(got);
    bytes
}

/// So many blocks of one byte.
pub fn filled(blocks: u64, byte: u8) -> Vec<u8> {
    vec![byte; (blocks * BLOCK) as usize]
}
