//! Both engines through the mount: whatever is done to a file meanwhile, a direct read shows bytes that the file had
//! between its beginning and its end, and a clone has every block whole. And io_uring that is forbidden is no obstacle.

mod support;

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use clonefs::engine::io::aligned;
use clonefs::protocol::VolumeState;
use support::{Backing, Mount, Pool, fallocate, noise, on, run, wait_until};

const BLOCK: usize = 4096;
/// Blocks of the file; a writer owns each `WRITERS`th of them, the last ones belong to who truncates.
const BLOCKS: u64 = 768;
const TAIL: u64 = 64;
const WRITERS: u64 = 2;
const READERS: u64 = 6;
/// Versions of each block that are written in all.
const ROUNDS: u64 = 5;
/// Each so many versions a block is zeros: it was never written (0), punched, or cut off.
const ZERO: u64 = 4;

/// What may be read of a block: the versions from `ended` to `begun`.
struct Block {
    begun: AtomicU64,
    ended: AtomicU64,
}

struct Model(Vec<Block>);

impl Model {
    fn new() -> Model {
        Model((0..BLOCKS).map(|_| Block { begun: AtomicU64::new(0), ended: AtomicU64::new(0) }).collect())
    }

    /// Brings blocks to their next version with `change`, which gets it.
    fn change(&self, blocks: std::ops::Range<u64>, change: impl FnOnce(u64)) {
        let next = self.0[blocks.start as usize].begun.load(Ordering::SeqCst) + 1;
        blocks.clone().for_each(|block| self.0[block as usize].begun.store(next, Ordering::SeqCst));
        change(next);
        blocks.for_each(|block| self.0[block as usize].ended.store(next, Ordering::SeqCst));
    }

    fn ended(&self, block: u64) -> u64 {
        self.0[block as usize].ended.load(Ordering::SeqCst)
    }

    /// Checks what was read of a block when at least version `from` was there. A write that is under way meanwhile can be
    /// there in part, as it can in any file: each byte is that of a version which there was, and nothing else.
    fn check(&self, block: u64, from: u64, bytes: &[u8]) {
        let to = self.0[block as usize].begun.load(Ordering::SeqCst);
        let versions: Vec<[u8; 8]> = (from..=to).map(|version| content(block, version)).collect();
        for (at, word) in bytes.chunks_exact(8).enumerate() {
            let known = versions.iter().any(|version| version == word)
                || (0..8).all(|byte| versions.iter().any(|version| version[byte] == word[byte]));
            assert!(known, "block {block}: {word:x?} at {}, versions {from} to {to}", at * 8);
        }
    }

    /// Checks a block of a clone: it has one version, all of it. No write is there in part.
    fn check_whole(&self, block: u64, from: u64, bytes: &[u8]) {
        let to = self.0[block as usize].begun.load(Ordering::SeqCst);
        let whole = |version| bytes.chunks_exact(8).all(|word| word == content(block, version));
        assert!((from..=to).any(whole), "block {block}: {:x?} begins it, versions {from} to {to}", &bytes[..8]);
    }
}

/// What is repeated in a version of a block.
fn content(block: u64, version: u64) -> [u8; 8] {
    if version.is_multiple_of(ZERO) { [0; 8] } else { ((block + 1) << 32 | version).to_le_bytes() }
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).expect("open")
}

/// A generator of numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % end
    }
}

/// Writes and punches every block of one writer, in many orders, a few at a time; some writes are long.
fn write(file: &File, model: &Model, writer: u64) {
    let mut random = Random(writer + 77);
    let mut room = Vec::new();
    let span = (BLOCKS - TAIL) / WRITERS;
    for _ in 0..ROUNDS * span / 8 {
        let len = [1, 4, 32][random.below(3) as usize];
        let first = writer * span + random.below(span / 32) * 32;
        let blocks = first..first + 32;
        // Blocks of a group have the same version, so that a group is changed as one, in pieces of `len`.
        model.change(blocks.clone(), |version| {
            for at in blocks.step_by(len) {
                let (start, bytes) = (at * BLOCK as u64, len * BLOCK);
                if version.is_multiple_of(ZERO) {
                    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                    fallocate(file, mode, start as i64, bytes as i64).expect("punch");
                    continue;
                }
                let data = aligned(&mut room, bytes);
                for (block, data) in (at..).zip(data.chunks_mut(BLOCK)) {
                    data.copy_from_slice(&content(block, version).repeat(BLOCK / 8));
                }
                file.write_all_at(data, start).expect("write");
            }
        });
    }
}

/// Writes the tail, cuts it off, and lets it grow again.
fn truncate(file: &File, model: &Model) {
    let mut room = Vec::new();
    for _ in 0..ROUNDS * 4 {
        model.change(BLOCKS - TAIL..BLOCKS, |version| {
            if version.is_multiple_of(ZERO) {
                file.set_len((BLOCKS - TAIL) * BLOCK as u64).expect("shrink");
                file.set_len(BLOCKS * BLOCK as u64).expect("grow");
                return;
            }
            for block in BLOCKS - TAIL..BLOCKS {
                let data = aligned(&mut room, BLOCK);
                data.copy_from_slice(&content(block, version).repeat(BLOCK / 8));
                file.write_all_at(data, block * BLOCK as u64).expect("write");
            }
        });
    }
}

/// Reads until the end, anything up to 16 blocks at a time.
fn read(file: &File, model: &Model, seed: u64, end: &AtomicBool) {
    let mut random = Random(seed + 1234);
    let mut room = Vec::new();
    while !end.load(Ordering::Relaxed) {
        let first = random.below(BLOCKS);
        let last = (first + [1, 1, 1, 4, 16][random.below(5) as usize]).min(BLOCKS);
        let from: Vec<u64> = (first..last).map(|block| model.ended(block)).collect();
        let buffer = aligned(&mut room, (last - first) as usize * BLOCK);
        let read = file.read_at(buffer, first * BLOCK as u64).expect("read");
        for ((block, from), bytes) in (first..).zip(from).zip(buffer[..read].chunks(BLOCK)) {
            model.check(block, from, bytes);
        }
        // The file is shorter for moments only, and only in its tail.
        let missing = first + (read / BLOCK) as u64;
        assert!(missing == last || missing >= BLOCKS - TAIL, "{read} bytes of the blocks {first} to {last}");
    }
}

/// Reads a clone, which nobody writes, again and again: it stays what it was.
fn reread(file: &File, bytes: &[u8], seed: u64, end: &AtomicBool) {
    let mut random = Random(seed + 99);
    let mut room = Vec::new();
    while !end.load(Ordering::Relaxed) {
        let at = random.below(BLOCKS) as usize * BLOCK;
        let buffer = aligned(&mut room, BLOCK);
        assert_eq!(file.read_at(buffer, at as u64).expect("read"), BLOCK);
        assert!(*buffer == bytes[at..at + BLOCK], "clone at {at}");
    }
}

/// How often the thread that hears of ends has waited; `None`: there is none.
fn waits_of_ring(pool: &Pool) -> Option<u64> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", pool.mounted().status().pid)).expect("threads");
    let status = tasks.flatten().find_map(|task| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        (name.trim() == "ring").then(|| std::fs::read_to_string(task.path().join("status")).expect("status"))
    })?;
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|count| count.trim().parse().ok())
}

/// Takes what is on the disk out of the page cache, again and again: the ring reads nothing else.
fn evict(pool: &Pool, end: &AtomicBool) {
    while !end.load(Ordering::Relaxed) {
        // A program that syncs without a pause keeps everybody else's syncs waiting on btrfs, for a minute and more.
        thread::sleep(Duration::from_millis(15));
        let layers = std::fs::read_dir(pool.below(".clonefs/layers")).into_iter().flatten().flatten();
        for path in layers.map(|entry| entry.path()).chain([pool.below("source.img")]) {
            // It may be gone already.
            let Ok(file) = File::open(path) else { continue };
            drop(file.sync_data());
            // SAFETY: the descriptor is open.
            unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        }
    }
}

fn all_at_once(pool: &mut Pool, engine: &str) {
    pool.unmount();
    // Two of four threads may wait for a read.
    pool.mount(&format!("deepen=manual,threads=4,engine={engine}"));
    if pool.mounted().status().engine != engine {
        assert!(std::env::var_os("CI").is_none(), "this machine has no io_uring");
        eprintln!("SKIPPED: io_uring cannot be used here");
        return;
    }
    let path = pool.at("source.img");
    File::create(&path).and_then(|file| file.set_len(BLOCKS * BLOCK as u64)).expect("file");
    let (model, end) = (Model::new(), AtomicBool::new(false));
    let before = waits_of_ring(pool);
    thread::scope(|scope| {
        let (model, end, path) = (&model, &end, path.as_path());
        let mut writers: Vec<_> =
            (0..WRITERS).map(|writer| scope.spawn(move || write(&open(path), model, writer))).collect();
        writers.push(scope.spawn(move || truncate(&open(path), model)));
        (0..READERS).for_each(|seed| drop(scope.spawn(move || read(&open(path), model, seed, end))));
        let pool = &*pool;
        scope.spawn(move || evict(pool, end));
        // A panic below must not leave the readers behind.
        let stop = Stop(end);
        for number in 0..3 {
            let (name, from): (_, Vec<u64>) =
                (format!("clone-{number}.img"), (0..BLOCKS - TAIL).map(|block| model.ended(block)).collect());
            pool.clone("source.img", &name);
            let clone = open(&pool.at(&name));
            let bytes = pool.read(&name);
            for ((block, from), bytes) in (0..).zip(from).zip(bytes.chunks(BLOCK)) {
                model.check_whole(block, from, bytes);
            }
            if bytes.len() == BLOCKS as usize * BLOCK {
                scope.spawn(move || reread(&clone, &bytes, number, end));
            }
            if number == 1 {
                pool.deepen(&name);
            }
        }
        writers.into_iter().for_each(|writer| writer.join().expect("a writer"));
        wait_until(|| pool.info("clone-1.img").state == VolumeState::Independent);
        drop(stop);
    });
    let after = waits_of_ring(pool);
    eprintln!("the ring's thread has waited {after:?} times, {before:?} of them before");
    assert!(after > before || engine == "threads", "no read went through the ring");
    let bytes = pool.read("source.img");
    (0..BLOCKS).zip(bytes.chunks(BLOCK)).for_each(|(block, bytes)| model.check(block, model.ended(block), bytes));
}

/// Tells the readers to end.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn reads_show_what_there_was_with_io_uring() {
    on(&[Backing::Ext4, Backing::Xfs, Backing::Btrfs], |pool| all_at_once(pool, "io_uring"));
}

#[test]
fn reads_show_what_there_was_with_threads() {
    on(&[Backing::Ext4], |pool| all_at_once(pool, "threads"));
}

/// Has a program, and all that it starts, get EPERM when it wants an io_uring.
fn without_io_uring(command: &mut Command) {
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let forbid = move || {
        let mut filter = [
            // The number of the call is the first word; EPERM for this one, all others go on.
            step((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, 0),
            step((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 0, 1, libc::SYS_io_uring_setup as u32),
            step((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
            step((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the program and its filter live until the call returns; root needs no other right for it.
        match unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure allocates nothing and makes one system call.
    unsafe { command.pre_exec(forbid) };
}

#[test]
fn a_mount_that_may_not_use_io_uring_reads_with_threads() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        let root = pool.root().to_owned();
        let mut command = Command::new(env!("CARGO_BIN_EXE_clonefs"));
        without_io_uring(command.args(["mount", "-o", "deepen=manual,engine=io_uring"]).arg(&root));
        run(&mut command).success();
        let mount = Mount::adopt(&root);
        assert_eq!(mount.status().engine, "threads");
        let image = noise(5, 1 << 20);
        std::fs::write(root.join("file"), &image).expect("write");
        let mut room = Vec::new();
        let buffer = aligned(&mut room, 1 << 20);
        assert_eq!(open(&root.join("file")).read_at(buffer, 0).expect("read"), 1 << 20);
        assert!(*buffer == image[..]);
        mount.unmount();
        pool.mount("deepen=manual");
    });
}
