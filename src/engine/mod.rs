//! The engine: what a pool is and does, without FUSE, sockets or a command line.
//!
//! From the top down; each module may import those below it, never one above: `compactor`, `namespace`, `pool`, `volume`,
//! `layer`, `events` and `policy`, `store`, `io`.

pub mod compactor;
pub mod events;
pub mod io;
pub mod layer;
pub mod namespace;
pub mod policy;
pub mod pool;
pub mod store;
pub mod volume;
