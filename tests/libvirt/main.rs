//! Tests with a real libvirt and real virtual machines, each on a host of its own (see `host`).

#[path = "../support/mod.rs"]
mod support;

mod agent;
mod clone;
mod doctor;
mod firmware;
mod guest;
mod host;
mod interrupted;
mod live;
mod meter;
mod minute;
mod page;
mod peers;
mod pool;
mod reflink;
mod refused;
mod run;
mod snapshot;
mod storm;
