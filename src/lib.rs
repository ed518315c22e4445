//! clonefs: instant copy-on-write clones of disk images in any Linux directory, which end as ordinary files.
//!
//! The rooms, from the top down; each may import those below it, never one above: `cli`; `vm`; `client`; `daemon`; `engine`;
//! `protocol`. `units`, `error` and `sync` are for all. `ARCHITECTURE.md` walks through them.

pub mod cli;
pub mod client;
pub mod daemon;
pub mod engine;
pub mod error;
pub mod protocol;
pub mod sync;
pub mod units;
pub mod vm;
