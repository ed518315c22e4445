//! The doors of a mounted pool: names of the virtual extended attributes, ioctl numbers, and the JSON that goes
//! through them. Shared by the daemon, the command line and the programs in `tools/`.
//!
//! All control goes through files of the mount, so the kernel has checked the caller's permissions: reading an
//! attribute takes read permission on the file, setting one takes write permission. Virtual attributes are not listed
//! (`cp -a` and `rsync -X` must not copy them), and no real attribute with this prefix can be set through the mount.

use serde::{Deserialize, Serialize};

/// Prefix of every virtual attribute. Real attributes of this name space are reserved for stubs.
pub const PREFIX: &str = "user.clonefs.";

// ---- read, on a regular file -------------------------------------------------------------------------------------

/// One word: `independent`, `overlay`, `deepening`, `paused` or `failed`.
pub const STATE: &str = "user.clonefs.state";
/// Percent of the volume that no longer needs another file, such as `42.7`; `100` when independent.
pub const PROGRESS: &str = "user.clonefs.progress";
/// Id of the layer it reads absent blocks from; empty when independent.
pub const PARENT: &str = "user.clonefs.parent";
/// Path, relative to the pool, of the volume it was cloned from, as it was called then; empty for none.
pub const ORIGIN: &str = "user.clonefs.origin";
/// Number of layers below its own; `0` when independent.
pub const DEPTH: &str = "user.clonefs.depth";
/// Bytes on disk that belong to this volume alone.
pub const UNIQUE_BYTES: &str = "user.clonefs.unique-bytes";
/// Bytes on disk that it shares with others.
pub const SHARED_BYTES: &str = "user.clonefs.shared-bytes";
/// All of the above in one [`VolumeInfo`], as JSON.
pub const INFO: &str = "user.clonefs.info";
/// What it takes on disk, alone and with others: a [`VolumeUsage`] as JSON.
pub const USAGE: &str = "user.clonefs.usage";
/// A token that stands for this file as the source of a clone, see [`CloneRequest::token`]. Each read makes a new one.
/// Whoever can read the attribute can read the file.
pub const TOKEN: &str = "user.clonefs.token";

// ---- read, on a directory ----------------------------------------------------------------------------------------

/// Begins the name of an attribute: a token of another file (see [`TOKEN`]), a dot, and the number of a block follow. A
/// [`DiffPage`] as JSON: where the two files can differ from that block on, by the maps of their layers.
pub const DIFF: &str = "user.clonefs.diff.";

/// State of the daemon and its pool: a [`PoolStatus`] as JSON.
pub const STATUS: &str = "user.clonefs.status";

/// What has happened in the pool: an `events::log::Page` as JSON, from the beginning, or from the place that follows
/// after a dot, which is `next` of the page before. Root and the daemon's user see all, others what they asked for.
pub const EVENTS: &str = "user.clonefs.events";

/// What a check of the pool finds while it is served: a `pool::check::Report` as JSON. For root and the daemon's user.
pub const CHECK: &str = "user.clonefs.check";

// ---- written -----------------------------------------------------------------------------------------------------

/// On an empty regular file: path of the source, relative to the file's directory (or absolute below the mount
/// point). The caller must be allowed to read it, and so must everybody: the attribute could have been planted by a
/// stranger on a file that the caller copies with all attributes. For other sources there is [`CLONE`].
pub const CLONE_FROM: &str = "user.clonefs.clone-from";
/// On an empty regular file: a [`CloneRequest`] as JSON.
pub const CLONE: &str = "user.clonefs.clone";
/// On a member of a group, the file that one [`CLONE`] of it was about: a [`GroupRequest`] as JSON. Carries out all
/// requests of the group, as of one moment, and returns when they are durable.
pub const GROUP: &str = "user.clonefs.group";
/// On a regular file: a [`SnapshotRequest`] as JSON. On a snapshot it can be read: a [`SnapshotInfo`]. Snapshots are
/// removed by unlink(2) and renamed by rename(2), below `.snapshots` at the root of the mount.
pub const SNAPSHOT: &str = "user.clonefs.snapshot";
/// On a regular file that nobody has open: `origin` makes it again what it was when it was made as a clone.
pub const RESET: &str = "user.clonefs.reset";
/// On a regular file: a [`ResizeRequest`] as JSON.
pub const RESIZE: &str = "user.clonefs.resize";
/// On a regular file, or a directory for the whole pool (root only): a [`DeepenRequest`] as JSON, or just the word
/// `start`, `pause` or `resume`.
pub const DEEPEN: &str = "user.clonefs.deepen";
/// On a directory (root and the daemon's user): `start` compares all frozen layers with their checksums, in the
/// background; the result is in [`STATUS`].
pub const SCRUB: &str = "user.clonefs.scrub";
/// On a file or directory: the settings that hold for its path, as JSON objects by name, see `policy::Setting`. Set by
/// root and the daemon's user: a `policy::Patch` as JSON, `{"protect": true, "deepen": null}`.
pub const POLICY: &str = "user.clonefs.policy";
/// Read, on a directory: all policies of the pool, a `policy::Listing` as JSON.
pub const POLICIES: &str = "user.clonefs.policies";
/// On a directory (root only): `sync` makes everything durable before it returns.
pub const FLUSH: &str = "user.clonefs.flush";

// ---- ioctls on an open file --------------------------------------------------------------------------------------

/// Letter of the ioctl numbers.
const IOC_TYPE: u32 = 0xCF;

/// `_IOR(0xCF, 1, u8[16])` on a source open for reading: a token, see [`CloneRequest::token`].
pub const IOC_TOKEN: u32 = ioc(2, 1, 16);
/// `_IOW(0xCF, 2, struct { u8 token[16]; u64 size; u64 flags; })` on an empty file open for writing: makes it a clone.
/// `size` 0 is the source's size. Numbers are in the machine's byte order. Flags: [`CLONE_NO_DEEPEN`], [`CLONE_SYNC`],
/// [`CLONE_NO_COPY`].
pub const IOC_CLONE: u32 = ioc(1, 2, 32);
/// `_IO(0xCF, 3)` on a file open for reading: from now on this descriptor reads the file as it is at this moment,
/// whatever is written to it later, until it is closed. Needs no space and leaves nothing behind.
pub const IOC_PIN: u32 = ioc(0, 3, 0);

/// Flag of [`IOC_CLONE`]: the compactor leaves this clone an overlay until it is told to deepen it.
pub const CLONE_NO_DEEPEN: u64 = 1;
/// Flag of [`IOC_CLONE`]: the clone is durable when the call returns.
pub const CLONE_SYNC: u64 = 2;
/// Flag of [`IOC_CLONE`]: fail with EOPNOTSUPP where the bytes would have to be copied, which is so for a plain file of
/// several names.
pub const CLONE_NO_COPY: u64 = 4;

/// The `_IOC` macro of the kernel's `asm-generic/ioctl.h`.
const fn ioc(direction: u32, number: u32, size: u32) -> u32 {
    direction << 30 | size << 16 | IOC_TYPE << 8 | number
}

/// What [`CLONE`] takes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneRequest {
    /// 32 hexadecimal digits read from [`TOKEN`] of the source (or [`IOC_TOKEN`]); valid for a minute, any number of
    /// times. It proves that the caller could read the source.
    pub token: String,
    /// Size of the clone in bytes, not below the source's; the rest reads as zeros. `None`: the source's.
    #[serde(default)]
    pub size: Option<u64>,
    /// Leave it an overlay until told to deepen it.
    #[serde(default)]
    pub no_deepen: bool,
    /// Return only when the clone is durable.
    #[serde(default)]
    pub sync: bool,
    /// Not now but with all others of this group, when [`GROUP`] says so. A name that nobody else can guess.
    #[serde(default)]
    pub group: Option<String>,
}

/// What [`GROUP`] takes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupRequest {
    /// Its name.
    pub group: String,
    /// How many requests belong to it: if the daemon knows of another number, nothing is done.
    pub members: usize,
}

/// What to do with a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotAction {
    /// Make one.
    Create,
    /// Make the volume, which nobody has open, what the snapshot is. For the owner of both.
    Rollback,
}

/// What [`SNAPSHOT`] takes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// What to do.
    pub action: SnapshotAction,
    /// Name of the snapshot, without `@` and `/`.
    pub name: String,
    /// Create it not now but with all others of this group, see [`GROUP`].
    #[serde(default)]
    pub group: Option<String>,
}

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

/// What [`DIFF`] gives.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DiffPage {
    /// Offset and length in bytes, in order; the last one can reach beyond the end of both files.
    pub extents: Vec<(u64, u64)>,
    /// Block to ask on with, if there may be more.
    pub next: Option<u64>,
}

/// What [`RESIZE`] takes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeRequest {
    /// The new size in bytes.
    pub size: u64,
    /// It may be smaller than the volume, which nobody may have open then.
    #[serde(default)]
    pub shrink: bool,
}

/// What to do with background work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeepenAction {
    /// Deepen this volume now, whatever the pool's policy is.
    Start,
    /// Stop at the next durable point and stay stopped: a volume also over restarts, the whole pool until it is unmounted.
    Pause,
    /// Undo `Pause`.
    Resume,
}

/// What [`DEEPEN`] takes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeepenRequest {
    /// What to do.
    pub action: DeepenAction,
    /// Limit in bytes a second for the whole pool, 0 for none; `None` leaves it as it is.
    #[serde(default)]
    pub rate: Option<u64>,
    /// Copy bytes even where the backing filesystem could share them (reflink).
    #[serde(default)]
    pub physical: bool,
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
    /// Work under way, then what waits, at most 256 entries.
    pub jobs: Vec<JobStatus>,
    /// Number of jobs, also those that are not in `jobs`.
    pub job_count: u64,
    /// Volumes in trouble, at most 256 entries.
    pub troubles: Vec<Trouble>,
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

#[cfg(test)]
mod tests {
    #[test]
    fn ioctl_numbers_are_what_the_kernel_macro_gives() {
        assert_eq!(super::IOC_TOKEN, 0x8010_cf01);
        assert_eq!(super::IOC_CLONE, 0x4020_cf02);
        assert_eq!(super::IOC_PIN, 0xcf03);
    }
}
