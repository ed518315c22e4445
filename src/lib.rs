//! clonefs: instant copy-on-write clones of disk images in any Linux directory, which end as ordinary files.
//!
//! `ARCHITECTURE.md` walks through the modules. Imports go down this list, never up: `cli`, `vm`, `client`, `mount`, `fuse`,
//! `compactor` and `transfer`, `pool`, `volume`, `layer`, `events` and `policy`, `store`,
//! `note`, `io`; `units`, `error`, `door` and `sync` are for all.

pub mod cli;
pub mod client;
pub mod compactor;
pub mod door;
pub mod error;
pub mod events;
pub mod fuse;
pub mod io;
pub mod layer;
pub mod mount;
pub mod note;
pub mod policy;
pub mod pool;
pub mod store;
pub mod sync;
pub mod transfer;
pub mod units;
pub mod vm;
pub mod volume;
