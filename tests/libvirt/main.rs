//! Tests with a real libvirt and real virtual machines, each on a host of its own (see `host`).

#[path = "../support/mod.rs"]
mod support;

mod agent;
mod clone;
mod doctor;
mod guest;
mod host;
mod interrupted;
mod live;
mod page;
mod peers;
mod pool;
mod reflink;
mod refused;
mod run;
mod snapshot;
