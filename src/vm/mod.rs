//! Virtual machines of libvirt: clones of whole domains, libvirt pools on a mount, and what a host lacks for both.
//!
//! All of it works from outside: on libvirt through its own command (see [`virsh`]), on pools through the mount as any
//! program can (see [`crate::client`]). docs/domain.md says for each item of a domain whether a clone keeps it, and why.

mod clone;
mod customize;
mod disks;
pub mod doctor;
mod firmware;
mod freeze;
mod identity;
mod image;
mod libvirt_snapshot;
mod parts;
mod plan;
pub mod pools;
mod record;
mod rewrite;
mod rollback;
mod seed;
mod session;
mod signals;
pub mod snapshots;
mod source;
mod undo;
pub mod virsh;
mod xml;

#[cfg(test)]
mod tests;

pub use clone::{Made, MadeDisk, Observer};
pub use customize::Customize;
pub use disks::{DiskOptions, DiskRule, Policy};
pub use firmware::TpmPolicy;
pub use plan::{Mode, Options, Plan};
pub use rollback::roll_back;
pub use virsh::Virsh;
