//! Export and import, judged by qemu-img: what it compares and checks is what users will do with the files.

mod export;
mod hostile;
mod import;
mod mounted;
mod support;
