//! The files of a pool below FUSE: clonefs as a library in this process, with its background threads, over a filesystem
//! with a planted bug.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use clonefs::engine::compactor;
use clonefs::engine::io::{Fs, Rename, SetTime};
use clonefs::engine::namespace::{Caller, Change, Creation, Handle, NameTree, ROOT, Settings, WriteFlags};
use clonefs::engine::pool::{Names, Pool, PoolOptions};
use clonefs::error::{Context, Error, Kind, Result};
use clonefs::protocol::{CLONE_NO_DEEPEN, CLONE_SYNC, DeepenAction, DeepenRequest};

use super::planted::{Bug, PlantedFs};
use crate::files::{Cloning, Files};

/// A pool that this process serves.
pub struct Served {
    pool: Arc<Pool>,
    names: Arc<NameTree>,
    fs: Arc<PlantedFs>,
    root: PathBuf,
}

impl Served {
    /// Opens the pool at `root`, as a mount does.
    pub fn open(root: &Path, bug: Bug) -> Result<Served> {
        let fs = Arc::new(PlantedFs::new(root, bug).context("open pool", root)?);
        let pool = Pool::open(fs.clone() as Arc<dyn Fs>, PoolOptions::default())?;
        let settings = Settings {
            pool: root.to_path_buf(),
            mountpoint: root.to_path_buf(),
            sync_directories: false,
            ..Settings::default()
        };
        let names = NameTree::new(pool.clone(), settings)?;
        let weak: Weak<dyn Names> = Arc::downgrade(&(names.clone() as Arc<dyn Names>));
        pool.set_names(weak);
        compactor::start(&pool)?;
        Ok(Served { pool, names, fs, root: root.to_path_buf() })
    }

    /// Its files, for one thread.
    pub fn files(&self) -> Box<dyn Files> {
        let (pool, names, fs) = (self.pool.clone(), self.names.clone(), self.fs.clone());
        Box::new(Below { pool, names, fs, root: self.root.clone() })
    }

    /// Ends the background threads and lets go of the pool, as an unmount does.
    pub fn close(self) -> Result<()> {
        self.pool.shutdown()?;
        self.fs.settle().context("settle", &self.root)
    }
}

struct Below {
    pool: Arc<Pool>,
    names: Arc<NameTree>,
    fs: Arc<PlantedFs>,
    root: PathBuf,
}

fn caller() -> Caller {
    Caller { uid: 0, gid: 0, pid: std::process::id() }
}

impl Below {
    /// Opens `name`, works with it, closes it.
    fn with<T>(&self, name: &str, work: impl FnOnce(&Handle) -> Result<T>) -> Result<T> {
        let found = self.names.lookup(ROOT, OsStr::new(name))?;
        let opened = self.names.open(found.node, libc::O_RDWR, &caller());
        let done = opened.and_then(|number| self.with_handle(number, work));
        self.names.forget(found.node, 1);
        done.map_err(|error| error.at(self.root.join(name)))
    }

    fn with_handle<T>(&self, number: u64, work: impl FnOnce(&Handle) -> Result<T>) -> Result<T> {
        let done = self.names.handles().get(number).and_then(|handle| work(&handle));
        self.names.release(number);
        done
    }

    /// Makes a file, works with it, closes it.
    fn making<T>(&self, name: &str, work: impl FnOnce(&Handle) -> Result<T>) -> Result<T> {
        let how = Creation { mode: libc::S_IFREG | 0o644, umask: 0, rdev: 0, caller: caller() };
        let (found, number) =
            self.names.create(ROOT, OsStr::new(name), &how, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL)?;
        let done = self.with_handle(number, work);
        self.names.forget(found.node, 1);
        done.map_err(|error| error.at(self.root.join(name)))
    }

    fn settle(&self) -> Result<()> {
        self.fs.settle().context("settle", &self.root)
    }
}

impl Files for Below {
    fn create(&self, name: &str) -> Result<()> {
        self.making(name, |_| Ok(()))
    }

    fn write(&self, name: &str, offset: u64, bytes: &[u8], _direct: bool) -> Result<()> {
        self.with(name, |handle| handle.write(offset, bytes, WriteFlags { cached: true, ..WriteFlags::default() }))?;
        Ok(())
    }

    fn write_mapped(&self, name: &str, _len: u64, offset: u64, bytes: &[u8]) -> Result<()> {
        self.write(name, offset, bytes, false)
    }

    fn zero(&self, name: &str, offset: u64, len: u64, hole: bool) -> Result<()> {
        let kind = if hole { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE };
        let mode = kind | libc::FALLOC_FL_KEEP_SIZE;
        self.with(name, |handle| self.names.allocate(handle, mode, offset, len, &caller()))
    }

    fn set_size(&self, name: &str, size: u64) -> Result<()> {
        let (atime, mtime) = (SetTime::Keep, SetTime::Keep);
        let change = Change { mode: None, uid: None, gid: None, size: Some(size), atime, mtime };
        self.with(name, |handle| self.names.change(handle.node, &change, &caller()))
    }

    fn sync(&self, name: &str) -> Result<()> {
        self.with(name, |handle| handle.sync(false))?;
        self.settle()
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.names.rename((ROOT, OsStr::new(from)), (ROOT, OsStr::new(to)), Rename::Replace, &caller())
    }

    fn unlink(&self, name: &str) -> Result<()> {
        self.names.unlink(ROOT, OsStr::new(name), &caller())
    }

    fn sync_names(&self) -> Result<()> {
        self.names.sync_directory(ROOT)
    }

    fn clone_file(&self, from: &str, to: &str, how: Cloning) -> Result<()> {
        let mut argument = self.with(from, |handle| self.names.token_of(handle, &caller()))?;
        let flags = if how.durable { CLONE_SYNC } else { 0 } | if how.no_deepen { CLONE_NO_DEEPEN } else { 0 };
        argument.extend_from_slice(&how.size.unwrap_or(0).to_ne_bytes());
        argument.extend_from_slice(&flags.to_ne_bytes());
        self.making(to, |handle| self.names.clone_by_ioctl(handle, &argument, &caller()))?;
        if how.durable { self.settle() } else { Ok(()) }
    }

    fn deepen(&self, name: &str) -> Result<()> {
        let request = DeepenRequest { action: DeepenAction::Start, rate: None, physical: false };
        self.with(name, |handle| self.pool.deepen(Some(&handle.volume), &request))
    }
}

/// A pool that was opened to look at it.
pub struct Looked {
    /// The pool.
    pub pool: Arc<Pool>,
    /// It holds its names weakly.
    _names: Arc<NameTree>,
}

/// Opens the pool at `root` with nothing going on in the background, as the first half of a mount does.
pub fn open(root: &Path) -> Result<Looked> {
    let fs: Arc<dyn Fs> = Arc::new(PlantedFs::new(root, Bug::None).context("open pool", root)?);
    let pool = Pool::open(fs, PoolOptions::default())?;
    let troubles = pool.status().troubles;
    if let Some(trouble) = troubles.first() {
        return Err(Error::new(Kind::Damaged, "open pool").at(root).because(format!("{trouble:?}")));
    }
    let settings = Settings {
        pool: root.to_path_buf(),
        mountpoint: root.to_path_buf(),
        sync_directories: false,
        ..Settings::default()
    };
    let names = NameTree::new(pool.clone(), settings)?;
    let weak: Weak<dyn Names> = Arc::downgrade(&(names.clone() as Arc<dyn Names>));
    pool.set_names(weak);
    Ok(Looked { pool, _names: names })
}
