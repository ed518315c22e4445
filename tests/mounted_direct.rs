//! Files opened with O_DIRECT beside the same files opened without: all handles show the same bytes, at each moment.

mod support;

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use clonefs::client::doors;
use clonefs::engine::io::{Fs, HostFs, Open, Ring, aligned};
use clonefs::protocol::{DeepenAction, DeepenRequest, VolumeState};
use support::{Pool, noise, on_each_filesystem, run, wait_until};

/// No whole number of blocks, so that the last one is a part.
const SIZE: usize = (3 << 20) + 1234;

/// A file through both kinds of handles, and the bytes that it should have.
struct Both {
    handles: [File; 2],
    bytes: Vec<u8>,
}

impl Both {
    fn open(path: &Path, bytes: Vec<u8>) -> Both {
        let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).expect("open");
        Both { handles: [open(libc::O_DIRECT), open(0)], bytes }
    }

    /// One write or read that depends on `random` alone.
    fn step(&mut self, random: u64) {
        let handle = &self.handles[(random & 1) as usize];
        // Whole blocks, long and short, or any bytes: the kernel hands all of them to us as they are.
        let unit = if random & 2 == 0 { 4096 } else { 1 };
        let longest = [4096, 16 << 10, 64 << 10, 256 << 10][(random >> 2 & 3) as usize];
        let at = (random >> 8) as usize % self.bytes.len() / unit * unit;
        let len = ((random >> 40) as usize % longest).max(1).next_multiple_of(unit);
        if random & 16 == 0 {
            let data = noise(random, len.min(SIZE - at));
            handle.write_all_at(&data, at as u64).expect("write");
            self.bytes[at..at + data.len()].copy_from_slice(&data);
        } else {
            let end = (at + len).min(self.bytes.len());
            let mut found = vec![0; len];
            let read = handle.read_at(&mut found, at as u64).expect("read");
            assert_eq!(read, end - at);
            assert!(found[..read] == self.bytes[at..end], "{len} bytes at {at}");
        }
    }

    fn check(&self) {
        for handle in &self.handles {
            let mut found = vec![0; SIZE + 4096];
            let read = handle.read_at(&mut found, 0).expect("read");
            assert!(found[..read] == self.bytes[..]);
        }
    }
}

/// The state of a small generator of numbers.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

fn deepen(pool: &Pool, name: &str) {
    let request = DeepenRequest { action: DeepenAction::Start, rate: None, physical: true };
    doors::deepen(&pool.at(name), &request).expect("deepen");
}

#[test]
fn direct_and_cached_handles_show_the_same_bytes() {
    on_each_filesystem(|pool| {
        let image = noise(1, SIZE);
        for name in ["plain.img", "source.img"] {
            pool.write(name, &image);
        }
        pool.clone("source.img", "clone.img");
        let names = ["plain.img", "source.img", "clone.img"];
        let mut files = names.map(|name| Both::open(&pool.at(name), image.clone()));
        let mut state = 42;
        for step in 0..600 {
            // What is being deepened is written to at the same time.
            if step == 200 {
                deepen(pool, "clone.img");
            }
            for file in &mut files {
                file.step(next(&mut state));
            }
            if step == 400 {
                files.iter().for_each(|file| file.handles[0].sync_all().expect("sync"));
            }
        }
        files.iter().for_each(Both::check);
        wait_until(|| pool.info("clone.img").state == VolumeState::Independent);
        files.iter().for_each(Both::check);
        let bytes = files.map(|file| file.bytes);
        pool.unmount();
        pool.mount("deepen=manual");
        for (name, bytes) in names.iter().zip(&bytes) {
            assert!(pool.read(name) == *bytes, "{name} after a mount");
        }
    });
}

#[test]
fn a_clone_has_what_was_written_directly_and_not_what_comes_later() {
    on_each_filesystem(|pool| {
        pool.write("source.img", &noise(2, SIZE));
        let mut state = 7;
        let mut source = Both::open(&pool.at("source.img"), noise(2, SIZE));
        for round in 0..6 {
            (0..40).for_each(|_| source.step(next(&mut state)));
            let clone = format!("clone-{round}.img");
            pool.clone("source.img", &clone);
            let then = source.bytes.clone();
            (0..40).for_each(|_| source.step(next(&mut state)));
            Both::open(&pool.at(&clone), then).check();
        }
        source.check();
    });
}

/// A disk that has no room for what is written to it: an image on a filesystem that gets full, and says so too late.
struct FullDisk(tempfile::TempDir);

impl FullDisk {
    fn new() -> FullDisk {
        let disk = FullDisk(tempfile::tempdir().expect("directory"));
        let (outer, image) = (disk.0.path().join("outer"), disk.0.path().join("outer/image"));
        std::fs::create_dir(&outer).expect("directory");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=40m", "tmpfs"]).arg(&outer)).success();
        File::create(&image).and_then(|file| file.set_len(200 << 20)).expect("image");
        run(Command::new("mkfs.ext4").args(["-q", "-E", "nodiscard"]).arg(&image)).success();
        std::fs::create_dir(disk.inner()).expect("directory");
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.inner())).success();
        disk
    }

    fn inner(&self) -> PathBuf {
        self.0.path().join("inner")
    }

    /// Takes all the room that there is.
    fn fill(&self) {
        let filler = File::create(self.0.path().join("outer/filler")).expect("filler");
        let piece = vec![1; 4096];
        while (&filler).write_all(&piece).is_ok() {}
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        for place in ["inner", "outer"] {
            // Lazily: the loop device is given up a moment after its mount, and holds the outer one until then.
            let _ = Command::new("umount").arg("--lazy").arg(self.0.path().join(place)).status();
        }
    }
}

/// What was written through the cache and could not be written out was there for reads through the cache alone.
#[test]
fn a_failed_write_back_does_not_bring_old_bytes_to_direct_reads() {
    if !support::ready() {
        return;
    }
    for sync in [false, true] {
        let disk = FullDisk::new();
        let path = disk.inner().join("file");
        File::create(&path).expect("file");
        run(Command::new("fallocate").args(["-l", "8M"]).arg(&path)).success();
        let fs = HostFs::open_dir(&disk.inner()).expect("filesystem");
        fs.sync_fs().expect("sync");
        let file = fs.open(Path::new("file"), Open::Write).expect("open");
        let read = || {
            let mut room = Vec::new();
            let bytes = aligned(&mut room, 4096);
            assert_eq!(file.read_direct(bytes, 1 << 20).expect("read"), 4096);
            bytes[0]
        };
        let ring = Ring::start().inspect_err(|error| eprintln!("SKIPPED: io_uring: {error}")).ok();
        let by_ring = || ring.as_ref().and_then(|ring| ring.prepare(&file, true, 1 << 20, 4096)).is_some();
        assert_eq!(read(), 0);
        assert!(by_ring() || ring.is_none(), "what is on the disk alone can be read in any way");
        disk.fill();
        file.write_at(&[b'N'; 4096], 1 << 20).expect("write into the cache");
        if sync {
            assert!(file.sync_data().is_err());
        } else {
            // As the kernel writes out by itself: nobody is told yet.
            let _ = fs.sync_fs();
        }
        // It would not be told, and read the disk.
        assert!(!by_ring());
        assert_eq!([read(), read()], [b'N'; 2], "synced: {sync}");
        assert!(!by_ring());
        assert_eq!(file.sync_data().is_err(), !sync, "who syncs is told, once");
        assert_eq!(read(), b'N');
    }
}
