//! Files to measure with, and what can be done with one file.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::failure::{During, Outcome};
use crate::run;

/// Bytes written at once.
const PIECE: u64 = 1 << 20;

/// A file full of bytes that nothing can compress, durable.
pub fn full(path: &Path, size: u64, seed: u64) -> Outcome<()> {
    mixed(path, size, seed, |_| true)
}

/// The same, with data only in the MiB for which `data` says so; the rest are holes.
pub fn mixed(path: &Path, size: u64, seed: u64, data: impl Fn(u64) -> bool) -> Outcome<()> {
    let file = File::create_new(path).during("make", path)?;
    file.set_len(size).during("make", path)?;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; PIECE as usize];
    for piece in 0..size.div_ceil(PIECE) {
        run::check()?;
        if data(piece) {
            random.fill(&mut bytes);
            let len = (size - piece * PIECE).min(PIECE) as usize;
            file.write_all_at(&bytes[..len], piece * PIECE).during("write", path)?;
        }
    }
    file.sync_all().during("sync", path)
}

/// A sparse file whose data is `extents` single blocks with holes between them.
pub fn fragmented(path: &Path, extents: u64) -> Outcome<()> {
    let file = File::create_new(path).during("make", path)?;
    file.set_len(extents * 8192).during("make", path)?;
    let bytes = [0x5a; 4096];
    for extent in 0..extents {
        if extent % 4096 == 0 {
            run::check()?;
        }
        file.write_all_at(&bytes, extent * 8192).during("write", path)?;
    }
    file.sync_all().during("sync", path)
}

/// A new file of `size` bytes without any data.
pub fn sparse(path: &Path, size: u64) -> Outcome<()> {
    let file = File::create_new(path).during("make", path)?;
    file.set_len(size).during("make", path)
}

/// Opens an existing file for reading and writing.
pub fn open(path: &Path) -> Outcome<File> {
    OpenOptions::new().read(true).write(true).open(path).during("open", path)
}

/// Writes a file out and takes it out of the page cache, so that the next read of it comes from the disk.
pub fn make_cold(path: &Path) -> Outcome<()> {
    let file = File::open(path).during("open", path)?;
    file.sync_all().during("sync", path)?;
    // SAFETY: the descriptor is open.
    let error = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    if error == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(error)).during("drop the cache of", path) }
}

/// The same for all files in a directory and below it.
pub fn make_all_cold(dir: &Path) -> Outcome<()> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.flatten() {
        let (path, kind) = (entry.path(), entry.file_type().during("look at", dir)?);
        if kind.is_dir() {
            make_all_cold(&path)?;
        } else if kind.is_file() {
            // What the daemon has just removed is in nobody's memory.
            make_cold(&path).or_else(|failure| if path.exists() { Err(failure) } else { Ok(()) })?;
        }
    }
    Ok(())
}

/// Removes a file.
pub fn remove(path: &Path) -> Outcome<()> {
    std::fs::remove_file(path).during("remove", path)
}
