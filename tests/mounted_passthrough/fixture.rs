//! Pools with opens past the daemon, files in them, and mappings of these.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::support::{Backing, Pool, noise, on};

pub(super) const BLOCK: usize = 4096;
pub(super) const SIZE: usize = 4 << 20;
pub(super) const KINDS: [Backing; 3] = [Backing::Ext4, Backing::Xfs, Backing::Btrfs];

/// Runs `test` on pools whose opens may go past the daemon.
pub(super) fn with(option: &str, kinds: &[Backing], test: impl Fn(&mut Pool)) {
    on(kinds, |pool| {
        pool.unmount();
        pool.mount(&format!("deepen=manual,passthrough={option}"));
        test(pool);
    });
}

/// Files that are open past the daemon. It hears of a close a moment later.
pub(super) fn past(pool: &Pool) -> u64 {
    pool.mounted().status().open_past
}

pub(super) fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// An independent volume that nobody has open.
pub(super) fn image(pool: &Pool, name: &str, seed: u64) -> Vec<u8> {
    let bytes = noise(seed, SIZE);
    pool.write(name, &bytes);
    bytes
}

/// A shared mapping of a whole file, which outlives the handle.
pub(super) struct Mapping(*mut libc::c_void);

impl Mapping {
    pub(super) fn new(file: &File) -> Mapping {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        Mapping::with(file, protection, flags)
    }

    pub(super) fn reading(file: &File) -> Mapping {
        Mapping::with(file, libc::PROT_READ, libc::MAP_SHARED)
    }

    fn with(file: &File, protection: i32, flags: i32) -> Mapping {
        // SAFETY: a new mapping, whose address the kernel chooses.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), SIZE, protection, flags, file.as_raw_fd(), 0) };
        assert!(at != libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Mapping(at)
    }

    pub(super) fn store(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= SIZE);
        // SAFETY: inside the mapping, which no Rust reference points into.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.cast::<u8>().add(at), bytes.len()) };
    }

    pub(super) fn byte(&self, at: usize) -> u8 {
        // SAFETY: inside the mapping.
        unsafe { self.0.cast::<u8>().add(at).read_volatile() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our mapping, which nothing uses any more.
        unsafe { libc::munmap(self.0, SIZE) };
    }
}

/// As O_DIRECT wants it.
#[repr(align(4096))]
pub(super) struct Aligned(pub(super) [u8; BLOCK]);
