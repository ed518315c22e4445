//! The name tree: nodes as the kernel knows them, and every operation on names and attributes.
//!
//! Names, modes, owners, times, attributes and links are those of the backing filesystem; what regular files contain,
//! and how large they are, is the pool's business. The root's `.clonefs` does not exist here.
//!
//! # Locks
//! In this order: `namespace`, one of `directories`, `table`. No call to the pool or to a volume is made with
//! `namespace` or a later one held (but for a volume's key): a write can freeze a shared file, which comes back to us in
//! [`Names::swap`].

mod attributes;
mod caller;
mod copying;
mod directories;
mod doors;
mod groups;
mod handle;
mod opens;
mod policies;
mod snapshots;
mod table;
mod times;
mod tree;
mod ways;
mod xattr;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::sync::atomic::AtomicBool;
use crate::sync::{Mutex, RwLock};

pub use attributes::{Attributes, Change};
pub use caller::{Caller, effective_gid, effective_uid};
#[doc(hidden)]
pub use doors::decode_requests;
pub use handle::{DirHandle, Handle, WriteFlags, opens_for_writing};
pub use table::ROOT;
pub use tree::{Creation, Found, Listed};
pub use ways::{Passthrough, Register, Registered};
pub use xattr::{get_takes_long, set_may_wait, set_wants_closed};

use self::groups::Groups;
use self::handle::Handles;
use self::table::Table;
use self::times::Times;
use super::{Names, Pool};
use crate::error::{Context, Error, Result};
use crate::io::{FileKey, FileKind, FileRef, Fs, Stat};
use crate::units::Id;
use crate::volume::Volume;

/// Name of the directory below the root that holds the pool's own files.
pub const HIDDEN: &str = ".clonefs";

/// Times to look a file up again when it was renamed or swapped in the middle of an operation.
const TRIES: usize = 100;

/// Locks that directories are spread over.
const STRIPES: usize = 64;

/// What the kernel can be told, or asked for, about a node.
pub trait Kernel: Send + Sync {
    /// Writes the pages that it caches of the node to the daemon, and returns when they have arrived.
    fn flush_pages(&self, node: u64);
    /// What it knows of the node's attributes is out of date.
    fn attributes_changed(&self, node: u64);
    /// The file has grown without its doing: it now ends with `last` at `offset`.
    fn grown(&self, node: u64, offset: u64, last: u8);
}

/// Properties of a mount.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Path of the pool as it was given.
    pub pool: PathBuf,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Make every change of a directory durable before it is answered.
    pub sync_directories: bool,
    /// Which opens may go past the daemon.
    pub passthrough: Passthrough,
}

/// The names of a mounted pool.
pub struct NameTree {
    pool: Arc<Pool>,
    fs: Arc<dyn Fs>,
    settings: Settings,
    /// Whoever uses a path shares it; renaming, and swapping the file behind a name, exclude it.
    namespace: RwLock<()>,
    /// Looking a name up and recording it shares the lock of its directory, adding or removing a name excludes it: else
    /// a lookup could record a file that is just being removed.
    directories: [RwLock<()>; STRIPES],
    table: Mutex<Table>,
    handles: Handles,
    /// What directories show while background work alone has changed them.
    times: Times,
    /// Groups that were begun.
    groups: Mutex<Groups>,
    /// The node of the directory that holds the stubs of snapshots, once it was needed.
    stubs: OnceLock<u64>,
    /// The kernel has refused to take an open past the daemon: it is not asked again.
    no_way_past: AtomicBool,
    kernel: OnceLock<Box<dyn Kernel>>,
}

impl NameTree {
    /// The names of `pool`, of which only the root is known at first.
    pub fn new(pool: Arc<Pool>, settings: Settings) -> Result<Arc<NameTree>> {
        let fs = pool.fs().clone();
        let root = fs.stat(Path::new("")).context("look at the root of", &settings.pool)?;
        let tree = NameTree {
            table: Mutex::new(Table::new(root.key)),
            pool,
            fs,
            settings,
            namespace: RwLock::new(()),
            directories: [const { RwLock::new(()) }; STRIPES],
            handles: Handles::default(),
            times: Times::default(),
            groups: Mutex::default(),
            stubs: OnceLock::new(),
            no_way_past: AtomicBool::new(false),
            kernel: OnceLock::new(),
        };
        Ok(Arc::new(tree))
    }

    /// Connects the tree with the kernel, once the mount is there.
    pub fn set_kernel(&self, kernel: Box<dyn Kernel>) {
        drop(self.kernel.set(kernel));
    }

    /// The pool.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The kernel no longer knows the node under `count` of its lookups.
    pub fn forget(&self, node: u64, count: u64) {
        self.table.lock().forget(snapshots::real(node), count);
    }

    fn directory_lock(&self, directory: u64) -> &RwLock<()> {
        &self.directories[(directory % STRIPES as u64) as usize]
    }

    /// Status of what has a path; `None`: nothing. Not to know what is there is not the same.
    fn there(&self, path: &Path) -> io::Result<Option<Stat>> {
        match self.fs.stat(path) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            other => other.map(Some),
        }
    }

    fn kind(&self, id: u64) -> Result<FileKind> {
        self.table.lock().node(snapshots::real(id)).map(|node| node.kind).ok_or_else(stale)
    }

    fn path(&self, id: u64) -> Result<PathBuf> {
        self.table.lock().path(id).ok_or_else(stale)
    }

    /// The volume of a regular file.
    fn volume(&self, id: u64) -> Result<Arc<Volume>> {
        for _ in 0..TRIES {
            let (key, path) = match self.opened_or_place(id)? {
                Place::Open(volume) => return Ok(volume),
                Place::At(key, path) => (key, path),
            };
            let volume = self.pool.volume(key, &path);
            // Waits for a rename or a swap that is under way, so that what is known of the node is right again.
            let namespace = self.namespace.read();
            let (now_key, now_path) = match self.opened_or_place(id)? {
                Place::Open(volume) => return Ok(volume),
                Place::At(key, path) => (key, path),
            };
            drop(namespace);
            match volume {
                Ok(volume) if volume.key() == now_key => return Ok(volume),
                Err(error) if now_key == key && now_path == path => return Err(error),
                _ => {}
            }
        }
        Err(errno("follow a file that is renamed all the time", libc::EBUSY))
    }

    fn opened_or_place(&self, id: u64) -> Result<Place> {
        let table = self.table.lock();
        let node = table.node(id).ok_or_else(stale)?;
        match &node.open {
            _ if node.kind != FileKind::File => Err(errno("use as a regular file", libc::EINVAL)),
            Some(open) => Ok(Place::Open(open.volume.clone())),
            None => Ok(Place::At(node.key, table.path(id).ok_or_else(stale)?)),
        }
    }

    /// Runs `work` on the file that carries the attributes of a node: the open one, or the one under its name.
    fn with_target<T>(
        &self,
        id: u64,
        operation: &'static str,
        work: impl FnOnce(Target) -> io::Result<T>,
    ) -> Result<T> {
        let open = {
            let table = self.table.lock();
            table.node(id).ok_or_else(stale)?.open.as_ref().map(|open| open.volume.clone())
        };
        if let Some(volume) = open {
            // Under the volume's gate: no other file takes the place of this one before the change is made.
            return volume.with_file(|file| work(Target::Open(file.clone()))).map_err(|e| Error::io(operation, e));
        }
        let _namespace = self.namespace.read();
        let (path, _) = self.verified(id)?;
        work(Target::Named(&*self.fs, &path)).context(operation, &path)
    }

    /// Path and backing status of a node, after a look that the path still leads to it. Call it with `namespace` shared.
    fn verified(&self, id: u64) -> Result<(PathBuf, Stat)> {
        let (path, key, kind) = {
            let table = self.table.lock();
            let node = table.node(id).ok_or_else(stale)?;
            (table.path(id).ok_or_else(stale)?, node.key, node.kind)
        };
        let stat = self.fs.stat(&path).context("look at", &path)?;
        if stat.key == key && stat.kind() == kind {
            return Ok((path, stat));
        }
        // Another file was put there without us. The kernel looks the name up again when it hears ESTALE.
        Err(stale().at(path))
    }

    /// Pushes what the kernel caches of a node to us, if any process can have stored something there.
    fn flush_node(&self, id: u64) {
        let writers = self.table.lock().node(id).and_then(|node| node.open.as_ref()).map_or(0, |open| open.writers);
        if writers > 0
            && let Some(kernel) = self.kernel.get()
        {
            kernel.flush_pages(id);
        }
    }

    /// A directory was changed through the mount.
    fn directory_changed(&self, id: u64) {
        let key = self.table.lock().node(id).map(|node| node.key);
        key.inspect(|key| self.times.changed(*key));
    }

    fn attributes_changed(&self, id: u64) {
        if let Some(kernel) = self.kernel.get() {
            kernel.attributes_changed(id);
        }
    }

    /// Tells the kernel that a volume got bytes without its doing. It has to know the size by heart: where `O_APPEND`
    /// writes to, it decides without asking.
    fn grown(&self, id: u64, volume: &Volume) -> Result<()> {
        let mut last = [0];
        let size = volume.size()?;
        if let (Some(kernel), Some(offset)) = (self.kernel.get(), size.checked_sub(1)) {
            volume.read(offset, &mut last)?;
            kernel.grown(id, offset, last[0]);
        }
        self.attributes_changed(id);
        Ok(())
    }
}

impl Names for NameTree {
    fn swap(
        &self,
        key: FileKey,
        hint: Option<&Path>,
        swap: &mut dyn FnMut(&Path) -> Result<FileKey>,
    ) -> Result<Option<FileKey>> {
        let _namespace = self.namespace.write();
        let known = {
            let table = self.table.lock();
            table.find(key).map(|id| table.paths(id)).unwrap_or_default()
        };
        for path in known.iter().map(PathBuf::as_path).chain(hint) {
            if self.fs.stat(path).is_ok_and(|stat| stat.key == key) {
                let directory = path.parent().unwrap_or(Path::new(""));
                let before = self.fs.stat(directory);
                let new = swap(path)?;
                if let (Ok(before), Ok(after)) = (before, self.fs.stat(directory)) {
                    self.times.replaced(&before, &after);
                }
                let node = self.table.lock().rekey(key, new);
                // Another file has other blocks. Attributes only: nothing that waits.
                node.inspect(|id| self.attributes_changed(*id));
                return Ok(Some(new));
            }
        }
        Ok(None)
    }

    fn path_of(&self, key: FileKey) -> Option<PathBuf> {
        let table = self.table.lock();
        table.find(key).and_then(|id| table.path(id))
    }

    fn flush_cached(&self, key: FileKey) {
        let id = self.table.lock().find(key);
        if let Some(id) = id {
            self.flush_node(id);
        }
    }

    fn while_removing(&self, snapshot: Id, work: &mut dyn FnMut()) {
        self.removing_snapshot(snapshot, work);
    }
}

/// How to come to the volume of a node.
enum Place {
    Open(Arc<Volume>),
    At(FileKey, PathBuf),
}

/// Where the attributes of a node are.
enum Target<'a> {
    Open(FileRef),
    Named(&'a dyn Fs, &'a Path),
}

/// An error with a given errno.
fn errno(operation: &'static str, code: i32) -> Error {
    Error::io(operation, io::Error::from_raw_os_error(code))
}

/// The node is not known, or has no name any more.
fn stale() -> Error {
    errno("find a file again", libc::ESTALE)
}
