//! Export and import, judged by qemu-img: what it compares and checks is what users will do with the files.

mod export;
#[path = "../support/mod.rs"]
mod fixtures;
mod hostile;
mod import;
mod mounted;
mod support;
