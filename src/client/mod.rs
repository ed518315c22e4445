//! The client of a mounted pool: what any program can do through the mount with ordinary calls and the doors of
//! [`crate::protocol`], and nothing else. It needs no access to the pool's own files, so the kernel checks permissions.
//!
//! Nothing here talks to a terminal: progress goes to callbacks, errors to the caller.

mod attributes;
mod clone;
mod copy_in;
mod diff;
pub mod doors;
mod group;
mod in_time;
mod mounts;
mod place;
mod snapshot;
mod source;
mod sync;
pub mod transfer;
mod tree;
mod usage;
mod wait;
mod walk;
mod xattr;

pub use clone::{CloneOptions, clone_file, copy_file};
pub use diff::{Difference, diff};
pub use doors::{check, deepen, events, info, not_here, policies, policy, set_policy, status};
pub use group::{Staged, clone_group_into};
pub use in_time::InTime;
pub use mounts::{Mount, mount_at, mount_over, mounts};
pub use place::{Directory, Draft, Target};
pub use snapshot::{
    FoundSnapshot, SnapshotName, create_snapshots, file_or_snapshot, remove_snapshot, rename_snapshot, reset, resize,
    roll_back, snapshots, snapshots_beside,
};
pub use source::Source;
pub use sync::{sync_file, sync_pool};
pub use tree::{Tree, clone_tree};
pub use usage::{Group, Total, Used, by_group, usage};
pub use wait::{WaitProgress, until_independent};
pub use walk::{Found, volumes};

/// Told how far a copy has come, in bytes done and bytes in all. An error from it stops the work, which is then undone.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> crate::error::Result<()>;
