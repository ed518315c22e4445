//! The doors of a mounted pool: names of the virtual extended attributes, ioctl numbers, and the JSON that goes
//! through them. Shared by the daemon, the command line and the programs in `tools/`.
//!
//! All control goes through files of the mount, so the kernel has checked the caller's permissions: reading an
//! attribute takes read permission on the file, setting one takes write permission. Virtual attributes are not listed
//! (`cp -a` and `rsync -X` must not copy them), and no real attribute with this prefix can be set through the mount.

mod answers;
mod requests;
pub mod stub;

pub use answers::{
    DiffPage, JobStatus, Level, Piece, PoolStatus, ScrubStatus, SnapshotInfo, SpaceStatus, Trouble, VolumeInfo,
    VolumeState, VolumeUsage,
};
pub use requests::{
    CloneRequest, DeepenAction, DeepenRequest, GroupRequest, ResizeRequest, SnapshotAction, SnapshotRequest,
};

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
/// On a directory (root and the daemon's user): `sync` makes everything durable before it returns. Others sync their own
/// files with fsync(2): what they ask for must not be the whole pool's work.
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

#[cfg(test)]
mod tests {
    #[test]
    fn ioctl_numbers_are_what_the_kernel_macro_gives() {
        assert_eq!(super::IOC_TOKEN, 0x8010_cf01);
        assert_eq!(super::IOC_CLONE, 0x4020_cf02);
        assert_eq!(super::IOC_PIN, 0xcf03);
    }
}
