//! What the catalogue holds, as it is written to disk (JSON; see `docs/format.md`).

use serde::{Deserialize, Serialize};

use crate::units::Id;

/// Size and modification time of a layer's file that users can reach by another name: if they differ, somebody
/// changed it without clonefs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Size in bytes.
    pub size: u64,
    /// Modification time, seconds since the epoch.
    pub seconds: i64,
    /// Modification time, nanoseconds.
    pub nanos: u32,
    /// Taken after the file was synced. If not, a power loss can make the file differ from it without anybody's doing.
    pub firm: bool,
    /// Boot of the machine during which it was taken (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
}

/// A frozen layer: its data never changes, only an adoption may add to it what its one heir has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Identity.
    pub id: Id,
    /// Name of its files, `layers/FILE.data` and `layers/FILE.map`. Another than `id` after it adopted its parent.
    pub file: Id,
    /// Layer that absent blocks are read from; none for the lowest.
    pub parent: Option<Id>,
    /// How many blocks of the parent can be seen; beyond that, absent blocks are zeros.
    pub overlap: u64,
    /// Size in bytes of the volume at the moment it was frozen.
    pub size: u64,
    /// Every block below `size` is its own: there is no map.
    pub complete: bool,
    /// Records that its map had when it was known to be durable: it has no fewer. 0: not known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub records: u64,
    /// Its heir has begun to adopt it: blocks of the heir may be in its file, so that nobody else can read it any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub given: bool,
    /// What its file looked like, while users can reach it by another name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<Stamp>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl LayerRecord {
    /// A layer that is a whole file of `size` bytes.
    pub fn of_file(id: Id, size: u64, stamp: Option<Stamp>) -> LayerRecord {
        LayerRecord { id, file: id, parent: None, overlap: 0, size, complete: true, records: 0, given: false, stamp }
    }
}

/// How a volume may be deepened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deepening {
    /// As the pool's policy says.
    #[default]
    Pool,
    /// Not until told to.
    Never,
    /// Now, whatever the policy says.
    Forced,
    /// Now, and copying bytes where blocks could be shared.
    Physical,
}

/// A volume that is not a plain file: its name in the tree is a stub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Identity; `stubs/ID` is a link to its stub.
    pub id: Id,
    /// Identity of its own, writable layer.
    pub top: Id,
    /// Name of that layer's files.
    pub file: Id,
    /// Layer that absent blocks are read from; none when no block is absent.
    pub parent: Option<Id>,
    /// How many blocks of the parent can be seen, until the map says otherwise.
    pub overlap: u64,
    /// Size in bytes, until the map says otherwise.
    pub size: u64,
    /// Every block is its own: there is no map.
    #[serde(default)]
    pub complete: bool,
    /// Its map was durable at some time: if it is not there, or empty, it was lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mapped: bool,
    /// Path of the volume it was cloned from, as it was called then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// It is the continuation of a file that was cloned: it would rather adopt its parent than copy it.
    #[serde(default)]
    pub source: bool,
    /// How it may be deepened.
    #[serde(default)]
    pub deepening: Deepening,
    /// Background work on it is stopped by hand.
    #[serde(default)]
    pub paused: bool,
    /// A repair could not tell whether this record is the last one there was: reading gives EIO until the user decides.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub doubtful: bool,
    /// What it was when it was made as a clone, for going back to that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// It is a snapshot: it never changes, and its stub lies in `snapshots`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// Where its stub was last seen, relative to the pool. A hint only.
    #[serde(default)]
    pub path: String,
}

/// What a clone was when it was made. The layer may be gone since: nothing keeps it for this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The frozen layer that showed it.
    pub layer: Id,
    /// How many blocks of that could be seen.
    pub visible: u64,
    /// Size in bytes.
    pub size: u64,
    /// Who owned it then, and so may have it like that again.
    pub uid: u32,
}

/// What makes a volume a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Path of the volume that it is of, relative to the pool; it follows that when it is renamed.
    pub of: String,
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since the epoch.
    pub made: i64,
    /// A schedule made it, and may remove it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub scheduled: bool,
    /// The mark of the directory that the volume was in (`pool::belongs`). `None`: the root, or not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
}

impl VolumeRecord {
    /// A volume with nothing of its own: `overlap` blocks of `parent`, and zeros up to `size`.
    pub fn over(id: Id, top: Id, parent: Option<Id>, (overlap, size): (u64, u64), path: String) -> VolumeRecord {
        VolumeRecord {
            id,
            top,
            file: top,
            parent,
            overlap,
            size,
            complete: false,
            origin: None,
            source: false,
            deepening: Deepening::Pool,
            paused: false,
            doubtful: false,
            mapped: false,
            base: None,
            snapshot: None,
            path,
        }
    }

    /// What people call it.
    pub fn shown(&self) -> String {
        match &self.snapshot {
            Some(snapshot) => format!("{}@{}", snapshot.of, snapshot.name),
            None => self.path.clone(),
        }
    }
}

/// One change of the catalogue. Several in one journal record happen together or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Adds or replaces a volume.
    Volume(VolumeRecord),
    /// Adds or replaces a frozen layer.
    Layer(LayerRecord),
    /// Removes a volume.
    DropVolume(Id),
    /// Removes a frozen layer.
    DropLayer(Id),
}
