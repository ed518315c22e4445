//! What can be written to the doors: requests, as JSON.

use serde::{Deserialize, Serialize};

/// What [`CLONE`](super::CLONE) takes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneRequest {
    /// 32 hexadecimal digits read from [`TOKEN`](super::TOKEN) of the source (or [`IOC_TOKEN`](super::IOC_TOKEN));
    /// valid for a minute, any number of times. It proves that the caller could read the source.
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
    /// Not now but with all others of this group, when [`GROUP`](super::GROUP) says so. A name that nobody else can
    /// guess.
    #[serde(default)]
    pub group: Option<String>,
}

/// What [`GROUP`](super::GROUP) takes.
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

/// What [`SNAPSHOT`](super::SNAPSHOT) takes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// What to do.
    pub action: SnapshotAction,
    /// Name of the snapshot, without `@` and `/`.
    pub name: String,
    /// Create it not now but with all others of this group, see [`GROUP`](super::GROUP).
    #[serde(default)]
    pub group: Option<String>,
}

/// What [`RESIZE`](super::RESIZE) takes.
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

/// What [`DEEPEN`](super::DEEPEN) takes.
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
