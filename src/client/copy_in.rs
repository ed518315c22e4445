//! Copies a file from outside into a pool: sparse stays sparse, zeros take no space, and a source that is written
//! meanwhile is noticed rather than copied torn.

use std::os::fd::AsFd;

use rustix::fs::{Advice, SeekFrom, Stat};
use rustix::io::Errno;

use super::{Progress, Source, doors};
use crate::error::{Error, Kind, Result};
use crate::units::BLOCK;

/// Bytes in one read.
const PIECE: usize = 1 << 20;

/// Copies the whole of `source` into the empty file `target` and makes that `size` bytes large.
pub fn copy(source: &Source, target: impl AsFd, size: u64, progress: Progress) -> Result<()> {
    let target = target.as_fd();
    let total = source.size();
    let read_failed = |e| doors::failed("read", source.path(), e);
    rustix::fs::ftruncate(target, size).map_err(|e| doors::failed("write the copy of", source.path(), e))?;
    // Only advice: reading works without it.
    let _ = rustix::fs::fadvise(source, 0, None, Advice::Sequential);
    let mut buffer = vec![0u8; PIECE];
    let mut offset = 0;
    while let Some((start, end)) = next_data(source, offset, total).map_err(read_failed)? {
        offset = start;
        while offset < end {
            let want = PIECE.min((end - offset) as usize);
            let got = pread(source, &mut buffer[..want], offset).map_err(read_failed)?;
            if got == 0 {
                return Err(changed(source));
            }
            write_nonzero(target, &buffer[..got], offset)
                .map_err(|e| doors::failed("write the copy of", source.path(), e))?;
            offset += got as u64;
            progress(offset, total)?;
        }
    }
    let now = rustix::fs::fstat(source).map_err(read_failed)?;
    if modified(source.stat(), &now) { Err(changed(source)) } else { progress(total, total) }
}

fn changed(source: &Source) -> Error {
    Error::new(Kind::Busy, "copy")
        .at(source.path())
        .because("it was changed while it was being copied")
        .remedy("stop whoever writes it; inside the pool a clone of a file in use is exact")
}

fn modified(before: &Stat, after: &Stat) -> bool {
    let key = |s: &Stat| (s.st_size, s.st_mtime, s.st_mtime_nsec);
    key(before) != key(after)
}

/// The next range that holds data, at or after `offset`.
fn next_data(source: &Source, offset: u64, total: u64) -> rustix::io::Result<Option<(u64, u64)>> {
    if offset >= total {
        return Ok(None);
    }
    let start = match rustix::fs::seek(source, SeekFrom::Data(offset)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // A filesystem that does not know its holes: everything is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((offset, total))),
        Err(e) => return Err(e),
    };
    let end = rustix::fs::seek(source, SeekFrom::Hole(start))?;
    Ok((start < total).then_some((start, end.min(total))))
}

fn pread(source: &Source, buffer: &mut [u8], offset: u64) -> rustix::io::Result<usize> {
    loop {
        match rustix::io::pread(source, &mut *buffer, offset) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Writes the runs of blocks that are not all zeros; the file is a hole where nothing is written.
fn write_nonzero(target: impl AsFd, data: &[u8], offset: u64) -> rustix::io::Result<()> {
    let target = target.as_fd();
    let mut at = 0;
    while at < data.len() {
        let run = run_of(&data[at..], true);
        at += run;
        let run = run_of(&data[at..], false);
        let mut written = 0;
        while written < run {
            match rustix::io::pwrite(target, &data[at + written..at + run], offset + (at + written) as u64) {
                Ok(0) => return Err(Errno::IO),
                Ok(n) => written += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        at += run;
    }
    Ok(())
}

/// Length of the run of blocks at the start of `data` that are all zeros, or of those that are not.
fn run_of(data: &[u8], zeros: bool) -> usize {
    let is_zero = |block: &[u8]| block.iter().all(|&b| b == 0);
    data.chunks(BLOCK as usize).take_while(|block| is_zero(block) == zeros).map(<[u8]>::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn a_sparse_file_arrives_exact_and_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        let file = std::fs::File::create(&from).unwrap();
        file.write_all_at(b"head", 0).unwrap();
        file.write_all_at(&vec![7; 3 << 20], (8 << 20) + 5).unwrap();
        file.write_all_at(&vec![0; 2 << 20], 16 << 20).unwrap();
        file.write_all_at(b"tail", 40_000_001).unwrap();
        let to = std::fs::File::create(dir.path().join("to")).unwrap();
        let source = Source::open(&from).unwrap();
        let mut calls = Vec::new();
        copy(&source, &to, 50_000_000, &mut |done, total| {
            calls.push((done, total));
            Ok(())
        })
        .unwrap();
        let mut wanted = std::fs::read(&from).unwrap();
        wanted.resize(50_000_000, 0);
        assert!(std::fs::read(dir.path().join("to")).unwrap() == wanted);
        assert!(to.metadata().unwrap().blocks() * 512 < 4 << 20, "zeros were written");
        assert_eq!(calls.last(), Some(&(40_000_005, 40_000_005)));
    }

    #[test]
    fn a_source_that_changes_meanwhile_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        std::fs::write(&from, vec![1; 3 << 20]).unwrap();
        let to = std::fs::File::create(dir.path().join("to")).unwrap();
        let source = Source::open(&from).unwrap();
        let error = copy(&source, &to, 3 << 20, &mut |_, _| {
            std::fs::OpenOptions::new().write(true).open(&from).unwrap().set_len(1 << 20).unwrap();
            Ok(())
        });
        assert_eq!(error.unwrap_err().kind(), Kind::Busy);
    }

    #[test]
    fn an_error_of_the_progress_callback_stops_the_copy() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        std::fs::write(&from, vec![1; 3 << 20]).unwrap();
        let to = std::fs::File::create(dir.path().join("to")).unwrap();
        let source = Source::open(&from).unwrap();
        let stop = &mut |_, _| Err(Error::new(Kind::Interrupted, "copy"));
        assert_eq!(copy(&source, &to, 3 << 20, stop).unwrap_err().kind(), Kind::Interrupted);
        assert!(to.metadata().unwrap().len() == 3 << 20 && to.metadata().unwrap().blocks() < 3 * 2048);
    }
}
