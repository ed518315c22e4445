//! Files opened with O_DIRECT beside the same files opened without: all handles show the same bytes, at each moment.

mod support;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use clonefs::client::doors;
use clonefs::door::{DeepenAction, DeepenRequest, VolumeState};
use support::{Pool, noise, on_each_filesystem, wait_until};

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
