//! What is read at the doors: volumes, snapshots and the pool as the daemon describes them, as JSON.

use serde::{Deserialize, Serialize};

/// What a snapshot says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Path of its volume, relative to the pool.
    pub volume: String,
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since the epoch.
    pub made: i64,
    /// A schedule made it, and will remove it.
    #[serde(default)]
    pub scheduled: bool,
}

/// What [`DIFF`](super::DIFF) gives.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DiffPage {
    /// Offset and length in bytes, in order; the last one can reach beyond the end of both files.
    pub extents: Vec<(u64, u64)>,
    /// Block to ask on with, if there may be more.
    pub next: Option<u64>,
}

/// State of a volume as users know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// An ordinary file that needs no other.
    Independent,
    /// Reads absent blocks from its parent; nothing is being copied now.
    Overlay,
    /// An overlay whose absent blocks are being copied in.
    Deepening,
    /// An overlay whose deepening was stopped by hand.
    Paused,
    /// It cannot be deepened or read in full: see `error`.
    Failed,
}

impl VolumeState {
    /// The word that users see.
    pub fn word(self) -> &'static str {
        match self {
            VolumeState::Independent => "independent",
            VolumeState::Overlay => "overlay",
            VolumeState::Deepening => "deepening",
            VolumeState::Paused => "paused",
            VolumeState::Failed => "failed",
        }
    }
}

/// All about one volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Identity in the pool's catalogue; `None` for a plain file, which has no metadata.
    pub id: Option<String>,
    /// Size in bytes.
    pub size: u64,
    /// State.
    pub state: VolumeState,
    /// Percent that no longer needs another file.
    pub progress: f64,
    /// Path it was cloned from, as it was called then.
    pub origin: Option<String>,
    /// Layer it reads absent blocks from.
    pub parent: Option<String>,
    /// Layer that holds its shared blocks when it is itself a plain file with clones.
    pub shared_layer: Option<String>,
    /// Number of layers below its own.
    pub depth: u32,
    /// Bytes on disk that are its own.
    pub unique_bytes: u64,
    /// Bytes on disk that it shares with others.
    pub shared_bytes: u64,
    /// Bytes on disk that come free when it is deleted.
    pub freed_if_deleted: u64,
    /// Bytes that are still to be copied before it is independent.
    pub to_copy: u64,
    /// Background work is at it, or will come to it by itself.
    #[serde(default)]
    pub queued: bool,
    /// Of an overlay that nothing is being done with: what it waits for, or why it stays one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Why it is `failed`, or what is wrong with it.
    pub error: Option<String>,
    /// Why it cannot be cloned now, and what helps: it is open with passthrough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cannot_clone: Option<String>,
}

/// What one volume takes. All numbers are bytes; `own`, `shared`, `freed` and `disk` are what the backing filesystem
/// says that data files take (`st_blocks`), the others count blocks of 4 KiB.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeUsage {
    /// Its owner.
    pub uid: u32,
    /// Size.
    pub size: u64,
    /// Blocks that are in its own file, holes included.
    pub present: u64,
    /// On disk, in files that no other volume reads.
    pub own: u64,
    /// On disk, in files that other volumes read too.
    pub shared: u64,
    /// On disk, what comes free when it is deleted: nothing while it has another name.
    pub freed: u64,
    /// What deepening has still to copy, at most: blocks of other files that it shows and that are no holes there.
    pub independence: u64,
    /// The files that it reads. To add volumes up, count each of them once.
    pub pieces: Vec<Piece>,
}

/// Data files that are read by the same volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Identity; empty for a plain file that nobody else reads.
    pub id: String,
    /// Bytes on disk.
    pub disk: u64,
    /// Volumes that read it.
    pub readers: u64,
}

/// One piece of background work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobStatus {
    /// Path of the volume relative to the pool, as far as it is known.
    pub path: String,
    /// `waiting`, `deepening`, `adopting` or `finishing`.
    pub step: String,
    /// Percent done.
    pub progress: f64,
    /// Bytes still to be copied.
    pub to_copy: u64,
    /// Bytes a second over the last seconds.
    pub rate: u64,
    /// Seconds left at that rate; `None` while it is not known.
    pub eta: Option<u64>,
}

/// Something the user should know about.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trouble {
    /// The file, relative to the pool.
    pub path: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

/// State of the daemon and its pool.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Absolute path of the pool directory as it was given at mount.
    pub pool: String,
    /// Absolute path of the mount point.
    pub mountpoint: String,
    /// Process that serves it.
    pub pid: u32,
    /// Version of that process.
    pub version: String,
    /// Id of the pool; `None` while nothing was ever cloned.
    pub pool_id: Option<String>,
    /// Type of the backing filesystem, such as `ext4`.
    pub backing: String,
    /// Free and total bytes of the backing filesystem.
    pub free_bytes: u64,
    /// Total bytes of the backing filesystem.
    pub total_bytes: u64,
    /// The backing filesystem shares blocks between files.
    pub reflink: bool,
    /// Clones can be made here; where not, `cannot_clone` says why.
    pub can_clone: bool,
    /// Why no clone can be made.
    pub cannot_clone: Option<String>,
    /// I/O engine.
    pub engine: String,
    /// Which opens may go past the daemon: `off`, `read-only` or `writable`.
    #[serde(default)]
    pub passthrough: String,
    /// Files that are open past the daemon now.
    #[serde(default)]
    pub open_past: u64,
    /// `auto` or `manual`.
    pub deepen: String,
    /// All background work is paused.
    pub paused: bool,
    /// Limit of background work in bytes a second, 0 for none.
    pub rate_limit: u64,
    /// Events since it was mounted, by kind.
    #[serde(default)]
    pub events: std::collections::BTreeMap<String, u64>,
    /// Reads and writes of volumes since it was mounted.
    #[serde(default)]
    pub requests: u64,
    /// Bytes that background work has copied since then.
    #[serde(default)]
    pub copied_bytes: u64,
    /// How full the backing filesystem is, and what follows from it.
    #[serde(default)]
    pub space: SpaceStatus,
    /// Overlays.
    pub overlays: u64,
    /// Frozen layers.
    pub layers: u64,
    /// Work under way, then what waits, at most 256 entries, without those that the asker may not see.
    pub jobs: Vec<JobStatus>,
    /// Number of jobs, also those that are not in `jobs`.
    pub job_count: u64,
    /// Volumes in trouble, at most 256 entries, without those that the asker may not see.
    pub troubles: Vec<Trouble>,
    /// How many of these the asker may not see.
    #[serde(default)]
    pub troubles_hidden: u64,
    /// The present or last scrub.
    #[serde(default)]
    pub scrub: Option<ScrubStatus>,
}

/// What follows from how full the filesystem is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Nothing.
    #[default]
    Fine,
    /// A warning.
    Warn,
    /// Nothing is copied in the background.
    StopDeepening,
    /// Nothing is cloned either.
    RefuseClones,
}

impl Level {
    /// In words.
    pub fn says(self) -> &'static str {
        match self {
            Level::Fine => "below all watermarks",
            Level::Warn => "room is running out",
            Level::StopDeepening => "deepening has stopped",
            Level::RefuseClones => "clones are refused, deepening has stopped",
        }
    }
}

/// How full the backing filesystem is, and the watermarks.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SpaceStatus {
    /// Percent in use of what users can have, as df(1) shows it.
    pub used_percent: u64,
    /// What follows from it.
    pub level: Level,
    /// Watermarks as text, such as `90%` or `20G left`; `None`: not set.
    pub warn: Option<String>,
    /// From here on nothing is copied in the background.
    pub stop_deepening: Option<String>,
    /// From here on nothing is cloned.
    pub refuse_clones: Option<String>,
}

/// How far a scrub has come, and what it has found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// It is under way.
    pub running: bool,
    /// How many scrubs have begun since the pool was mounted.
    pub runs: u64,
    /// Bytes to be looked at; layers count with their size.
    pub total: u64,
    /// Bytes looked at.
    pub done: u64,
    /// Layers that were compared with their checksums.
    pub compared: u64,
    /// Layers whose checksums were taken, as they had none.
    pub summed: u64,
    /// What is damaged: the volumes that show it, and what to do.
    pub damaged: Vec<Trouble>,
}
