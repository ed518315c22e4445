//! The daemon: serves a pool to the kernel. `fuse` translates requests and replies; `mount` is the daemon's life from the
//! first option to the unmount.

pub mod fuse;
pub mod mount;
