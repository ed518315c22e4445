//! The name tree: nodes as the kernel knows them, and every operation on names and attributes.
//!
//! Names, modes, owners, times, attributes and links are those of the backing filesystem; what regular files contain,
//! and how large they are, is the pool's business. The root's `.clonefs` does not exist here.
//!
//! # Locks
//! In this order: `namespace`, one of `directories`, `table`. No call to the pool or to a volume is made with
//! `namespace` or a later one held (but for a volume's key): a write can freeze a shared file, which comes back to us in
//! [`Names::swap`].

mod again;
mod attributes;
mod caller;
mod copying;
mod directories;
mod doors;
mod groups;
mod handle;
mod kept;
mod listing;
mod mirror;
mod opens;
mod places;
mod policies;
mod snapshots;
mod staying;
mod table;
mod times;
mod tree;
mod visible;
mod ways;
mod xattr;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::sync::atomic::{AtomicBool, AtomicU64};
use crate::sync::{Mutex, RwLock};

pub use attributes::{Attributes, Change};
pub use caller::Caller;
#[doc(hidden)]
pub use doors::decode_requests;
pub use handle::{DirHandle, Handle, WriteFlags, opens_for_writing};
pub use kept::Keeper;
pub use table::ROOT;
pub use tree::{Creation, Found, Listed};
pub use ways::{Passthrough, Register, Registered};
pub use xattr::{get_takes_long, set_may_wait, set_wants_closed};

use self::groups::Groups;
use self::handle::Handles;
use self::listing::Recent;
use self::places::Directories;
use self::table::Table;
use self::times::Times;
use crate::engine::io::{FileId, FileKey, FileKind, FileRef, Fs, InodeRef, Stat};
use crate::engine::pool::{Names, Pool, Spot};
use crate::engine::volume::Volume;
use crate::error::{Context, Error, Result};
use crate::units::Id;

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
    /// Directories that are held. Taken under `table` too.
    in_use: Mutex<Directories>,
    handles: Handles,
    /// Names of directories that were read a moment ago.
    recent: Mutex<Recent>,
    /// Files that are open past the daemon.
    past: Arc<AtomicU64>,
    /// What directories show while background work alone has changed them.
    times: Times,
    /// Groups that were begun.
    groups: Mutex<Groups>,
    /// The node of the directory that holds the stubs of snapshots, once it was needed.
    stubs: OnceLock<u64>,
    /// The kernel has refused to take an open past the daemon: it is not asked again.
    no_way_past: AtomicBool,
    kernel: OnceLock<Box<dyn Kernel>>,
    /// Who keeps files without a name for the next server.
    keeper: OnceLock<Box<dyn Keeper>>,
    /// Device number of the mount.
    device: OnceLock<u64>,
}

impl NameTree {
    /// The names of `pool`, of which only the root is known at first.
    pub fn new(pool: Arc<Pool>, settings: Settings) -> Result<Arc<NameTree>> {
        let fs = pool.fs().clone();
        let root = fs.stat(Path::new("")).context("look at the root of", &settings.pool)?;
        let tree = NameTree {
            table: Mutex::new(Table::new(root.key)),
            in_use: Mutex::default(),
            pool,
            fs,
            settings,
            namespace: RwLock::new(()),
            directories: [const { RwLock::new(()) }; STRIPES],
            handles: Handles::default(),
            recent: Mutex::default(),
            past: Arc::default(),
            times: Times::default(),
            groups: Mutex::default(),
            stubs: OnceLock::new(),
            no_way_past: AtomicBool::new(false),
            kernel: OnceLock::new(),
            keeper: OnceLock::new(),
            device: OnceLock::new(),
        };
        Ok(Arc::new(tree))
    }

    /// Connects the tree with the kernel, once the mount is there.
    pub fn set_kernel(&self, kernel: Box<dyn Kernel>) {
        drop(self.kernel.set(kernel));
    }

    /// Tells the tree the `st_dev` of its files.
    pub fn set_device(&self, device: u64) {
        self.device.get_or_init(|| device);
    }

    /// The pool.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The kernel no longer knows the node under `count` of its lookups.
    pub fn forget(&self, node: u64, count: u64) {
        let node = snapshots::real(node);
        let mut table = self.table.lock();
        let generation = table.node(node).filter(|node| node.kind == FileKind::Directory).map(|node| node.generation);
        table.forget(node, count);
        if let Some(generation) = generation
            && table.node(node).is_none()
        {
            self.let_go(node, generation);
        }
    }

    fn directory_lock(&self, directory: u64) -> &RwLock<()> {
        &self.directories[(directory % STRIPES as u64) as usize]
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
            let (file, path) = match self.opened_or_place(id)? {
                Place::Open(volume) => return Ok(volume),
                Place::At(file, path) => (file, path),
            };
            let volume = self.pool.volume(file.key, &path);
            // Waits for a rename or a swap that is under way, so that what is known of the node is right again.
            let namespace = self.namespace.read();
            let (now, now_path) = match self.opened_or_place(id)? {
                Place::Open(volume) => return Ok(volume),
                Place::At(file, path) => (file, path),
            };
            drop(namespace);
            match volume {
                Ok(volume) if volume.key() == now.key => return Self::made_then(volume, now),
                Err(error) if now.key == file.key && now_path == path => return Err(error),
                _ => {}
            }
        }
        Err(errno("follow a file that is renamed all the time", libc::EBUSY))
    }

    /// A volume by the key of a node, unless its file is a later one that got the inode number of the node's.
    fn made_then(volume: Arc<Volume>, known: FileId) -> Result<Arc<Volume>> {
        if known.birth.is_none() {
            return Ok(volume);
        }
        let stat = volume.with_file(|file| file.stat()).context("look at", volume.path())?;
        // Replaced since, by what has the right to: it is the same volume.
        let same = stat.key != known.key || stat.id().is(known);
        if same { Ok(volume) } else { Err(stale().at(volume.path())) }
    }

    fn opened_or_place(&self, id: u64) -> Result<Place> {
        let table = self.table.lock();
        let node = table.node(id).ok_or_else(stale)?;
        match &node.open {
            _ if node.kind != FileKind::File => Err(errno("use as a regular file", libc::EINVAL)),
            Some(open) => Ok(Place::Open(open.volume.clone())),
            None => Ok(Place::At(node.id(), table.path(id).ok_or_else(stale)?)),
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
        let (object, path, _) = self.object(id)?;
        work(Target::Held(object)).context(operation, &path)
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
        swap: &mut dyn FnMut(&Spot) -> Result<FileKey>,
    ) -> Result<Option<FileKey>> {
        let _namespace = self.namespace.write();
        let known = {
            let table = self.table.lock();
            table.find(key).map(|id| table.places(id)).unwrap_or_default()
        };
        let known = known.into_iter().filter_map(|(parent, name)| {
            let (directory, path) = (self.directory(parent).ok()?, self.join(parent, &name).ok()?);
            Some(Spot { directory, name: OsString::from(&*name), path })
        });
        for spot in known.chain(hint.and_then(|path| Spot::find(&*self.fs, path).ok())) {
            if spot.has(key) {
                let before = spot.directory.stat();
                self.swapping(key, true);
                let new = swap(&spot).inspect_err(|_| self.swapping(key, false))?;
                if let (Ok(before), Ok(after)) = (before, spot.directory.stat()) {
                    self.times.replaced(&before, &after);
                }
                let stat = spot.directory.stat_at(&spot.name).ok().filter(|stat| stat.key == new);
                let new_id = stat.as_ref().map_or(FileId::from(new), Stat::id);
                let node = self.table.lock().rekey(key, new_id);
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
    At(FileId, PathBuf),
}

/// Where the attributes of a node are.
enum Target {
    Open(FileRef),
    Held(InodeRef),
}

/// An error with a given errno.
fn errno(operation: &'static str, code: i32) -> Error {
    Error::io(operation, io::Error::from_raw_os_error(code))
}

/// The node is not known, or has no name any more.
fn stale() -> Error {
    errno("find a file again", libc::ESTALE)
}
