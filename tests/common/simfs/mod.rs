//! A simulated backing store: what programs see now, what a power cut would leave, and faults on demand.
//!
//! Every change is visible at once and stays *pending* until a sync makes it durable. A crash keeps, loses or tears each
//! pending change by itself; within one file sectors are kept or lost one by one, and the last content of a page is what
//! is written, as a page cache does it. A directory's changes are kept or lost one by one too; a rename is atomic.
//! Attributes, the time of the last change among them, are made durable by `sync_all` alone.
//!
//! Calls are counted, and any of them can be made to fail. Before each call that changes something, a hook can take
//! crash images of that moment.

mod calls;
mod crash;
mod disk;
mod held;
pub mod image;
mod lies;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

pub use calls::SimFs;
pub use crash::{Crash, Moment, POWER};
use image::{Change, Image, Node};

/// What kind of call it is, for faults that are meant for some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Changes nothing.
    Read,
    /// Contents, sizes and holes of files.
    Data,
    /// Names.
    Name,
    /// Attributes.
    Attr,
    /// Makes something durable.
    Sync,
}

/// A call that is to fail.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Number of the call, counted from 1.
    pub at: u64,
    /// How many calls fail from there on.
    pub count: u64,
    /// With this.
    pub errno: i32,
    /// A write writes half of its bytes first.
    pub short: bool,
    /// The daemon is dead from there on: a sync that fails has not been tried.
    pub dead: bool,
}

/// Ways in which this filesystem lies or differs, for tests of the tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lie {
    #[default]
    None,
    /// Syncs of files do nothing.
    NoFileSync,
    /// Syncs of layers' data do nothing.
    NoDataSync,
    /// Syncs of layers' maps do nothing.
    NoMapSync,
    /// Syncs of the journal and of what will be one do nothing.
    NoJournalSync,
    /// Syncs of directories do nothing.
    NoDirSync,
    /// Syncs of what lies in `tmp` do nothing.
    NoTemporarySync,
    /// Holes are punched only when the file is written to the next time.
    DelayedPunch,
    /// Writes of a whole block to a layer's data go to the block after it.
    MisplacedWrite,
    /// As if an adoption began to copy before it is durable that the layer is given away.
    UnmarkedAdoption,
    /// As if an adoption copied blocks before the heir's own copies of them are durable.
    UnsyncedHeir,
    /// As if an adoption switched to a file before what it copied there is durable.
    UnsyncedAdoption,
    /// As if what lies beyond the end of a volume stayed present when it adopted a file: that it grows over it later is
    /// not noted.
    UnnotedGrowth,
}

/// Switches.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// A sync of a file makes its names durable too, as ext4, xfs and btrfs do.
    pub sync_names: bool,
    /// And no more than that, as on btrfs: what another file was called before that had one of them comes later. A power
    /// cut can come just after such a sync by somebody.
    pub lone_names: bool,
    /// Blocks can be shared; then `info` says xfs.
    pub reflink: bool,
    /// Number of blocks that files can have in all.
    pub space: Option<u64>,
    /// No file of the pool's own can be renamed into the tree, as into a directory of another project.
    pub stuck: bool,
    pub lie: Lie,
}

impl Default for Options {
    fn default() -> Options {
        Options { sync_names: true, lone_names: false, reflink: false, space: None, stuck: false, lie: Lie::None }
    }
}

/// A change that is not durable.
struct Pending {
    change: Change,
    /// A sync of it failed: it will never be durable, and nobody is told again (R14).
    lost: bool,
}

struct State {
    now: Image,
    durable: Image,
    pending: Vec<Pending>,
    /// Open handles of each file.
    open: HashMap<u64, u64>,
    /// Last names of files, for messages and lies.
    labels: HashMap<u64, String>,
    /// Blocks reserved but not written, where space is counted.
    reserved: HashMap<u64, BTreeMap<u64, ()>>,
    options: Options,
    calls: u64,
    fault: Option<Fault>,
    /// How many calls have failed on demand.
    failed: u64,
    log: Option<Vec<String>>,
    capture: Option<crash::Capture>,
    delayed: Vec<(u64, u64, u64)>,
    /// An adoption that is going on.
    adoption: Option<lies::Adoption>,
    growth: lies::Growth,
}

impl State {
    fn new(image: Image, options: Options) -> State {
        State {
            now: image.clone(),
            durable: image,
            pending: Vec::new(),
            open: HashMap::new(),
            labels: HashMap::new(),
            reserved: HashMap::new(),
            options,
            calls: 0,
            fault: None,
            failed: 0,
            log: None,
            capture: None,
            delayed: Vec::new(),
            adoption: None,
            growth: lies::Growth::default(),
        }
    }

    fn node(&self, ino: u64) -> std::io::Result<&Arc<Node>> {
        self.now.nodes.get(&ino).ok_or_else(|| errno(libc::ENOENT))
    }
}

fn errno(code: i32) -> std::io::Error {
    std::io::Error::from_raw_os_error(code)
}

type Shared = Arc<Mutex<State>>;
