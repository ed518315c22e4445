//! Clones of files that are written to past the daemon: no clone misses such a write, and what would is refused.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use clonefs::protocol::IOC_PIN;

use crate::fixture::{Aligned, BLOCK, KINDS, Mapping, SIZE, image, open, past, with};
use crate::support::{self, Backing, Pool, clonefs, errno, run, wait_until};

fn can_share(pool: &Pool) -> bool {
    pool.mounted().status().reflink
}

/// Writes one block after the other, each with a number of its own, round after round.
fn count_up(file: &File, done: &AtomicU64, stop: &AtomicBool) {
    let blocks = (SIZE / BLOCK) as u64;
    let mut buffer = Aligned([0; BLOCK]);
    while !stop.load(Ordering::Relaxed) {
        let number = done.load(Ordering::Relaxed) + 1;
        buffer.0.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&number.to_le_bytes()));
        file.write_all_at(&buffer.0, number % blocks * BLOCK as u64).unwrap();
        done.store(number, Ordering::SeqCst);
    }
}

/// The clone is what [`count_up`] had written at one moment: which one, as the number of writes.
fn moment(bytes: &[u8]) -> u64 {
    let blocks = (SIZE / BLOCK) as u64;
    let number = |block: u64| {
        let block = &bytes[block as usize * BLOCK..][..BLOCK];
        assert!(block.chunks_exact(8).all(|word| word == &block[..8]), "half of a write");
        u64::from_le_bytes(block[..8].try_into().unwrap())
    };
    let last = (0..blocks).map(number).max().unwrap();
    for block in 0..blocks {
        let behind = (last % blocks + blocks - block) % blocks;
        assert_eq!(number(block), last.saturating_sub(behind), "block {block} of a clone of moment {last}");
    }
    last
}

#[test]
fn a_clone_of_a_file_that_is_written_past_the_daemon_is_one_moment_of_it() {
    with("writable", &[Backing::Xfs, Backing::Btrfs], |pool| {
        for flags in [0, libc::O_DIRECT] {
            let name = format!("disk-{flags}");
            // As if each block had been written with the number of round zero.
            pool.write(&name, &vec![0; SIZE]);
            let writer = OpenOptions::new().read(true).write(true).custom_flags(flags).open(pool.at(&name)).unwrap();
            assert_eq!(past(pool), 1);
            let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
            std::thread::scope(|scope| {
                scope.spawn(|| count_up(&writer, &done, &stop));
                wait_until(|| done.load(Ordering::SeqCst) > 3 * (SIZE / BLOCK) as u64);
                for clone in 0..5 {
                    let to = format!("{name}-clone-{clone}");
                    let before = done.load(Ordering::SeqCst);
                    pool.clone(&name, &to);
                    // One write can be done and not counted yet.
                    let after = done.load(Ordering::SeqCst) + 1;
                    let of = moment(&pool.read(&to));
                    assert!((before..=after).contains(&of), "moment {of}, taken between {before} and {after}");
                    assert!(fs::read(pool.at(&to)).is_ok() && moment(&pool.read(&to)) == of, "no later write");
                }
                stop.store(true, Ordering::Relaxed);
            });
            drop(writer);
            wait_until(|| past(pool) == 0);
        }
        pool.unmount();
        clonefs([Path::new("check"), pool.root()]).success();
    });
}

#[test]
fn a_clone_has_what_was_stored_through_a_mapping_past_the_daemon() {
    with("writable", &[Backing::Xfs, Backing::Btrfs], |pool| {
        let mut bytes = image(pool, "disk", 4);
        let writer = open(&pool.at("disk"));
        let mapping = Mapping::new(&writer);
        drop(writer);
        for round in 0..3u8 {
            let at = 5 * BLOCK + 17 + usize::from(round);
            mapping.store(at, &[round + 1; 100]);
            bytes[at..at + 100].fill(round + 1);
            let clone = format!("clone-{round}");
            pool.clone("disk", &clone);
            mapping.store(at + 1000, &[0xee; 100]);
            assert!(pool.read(&clone) == bytes, "stored before, and nothing of what was stored after");
            bytes[at + 1000..at + 1100].fill(0xee);
            // And the other way round.
            open(&pool.at(&clone)).write_all_at(&[0xcc; BLOCK], 0).unwrap();
        }
        assert!(pool.read("disk") == bytes);
    });
}

#[test]
fn what_would_miss_a_write_is_refused_while_the_file_is_open_past_the_daemon() {
    with("writable", &KINDS, |pool| {
        let mut bytes = image(pool, "disk", 5);
        fs::write(pool.at("other"), "other").unwrap();
        let writer = open(&pool.at("disk"));
        assert_eq!(past(pool), 1);
        let refused = |words: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_clonefs"));
            let done = run(command.args(words).current_dir(pool.root())).code(1);
            assert!(done.stderr.contains("open"), "{words:?}: {}", done.stderr);
            done.stderr
        };
        if !can_share(pool) {
            let says = refused(&["clone", "disk", "clone"]);
            assert!(says.contains("passthrough") && says.contains("xfs or btrfs"), "{says}");
            assert!(!pool.at("clone").exists());
        }
        refused(&["clone", "--group", "disk", "other", "group"]);
        refused(&["snapshot", "create", "disk@now"]);
        // SAFETY: the request takes no argument.
        let pinned = unsafe { libc::ioctl(writer.as_raw_fd(), IOC_PIN.into()) };
        assert_eq!(errno(support::result(pinned)), libc::EBUSY);
        // Copies are as good as any copy of a file that is written to.
        run(Command::new("cp").arg(pool.at("disk")).arg(pool.at("copy"))).success();
        assert!(pool.read("copy") == bytes);
        // Into a file that is open past the daemon.
        writer.set_len(0).unwrap();
        let into = clonefs::client::doors::token(File::open(pool.at("other")).unwrap(), &pool.at("other")).unwrap();
        let request = clonefs::protocol::CloneRequest { token: into, ..Default::default() };
        let error = clonefs::client::doors::clone(&writer, &request, &pool.at("other")).unwrap_err();
        assert!(error.to_string().contains("busy") || error.to_string().contains("passthrough"), "{error}");
        bytes.rotate_left(1);
        writer.write_all_at(&bytes, 0).unwrap();
        // What is in the cache alone is in the clone too, as soon as the file is closed.
        drop(writer);
        wait_until(|| past(pool) == 0);
        pool.clone("disk", "clone");
        open(&pool.at("disk")).write_all_at(&[9; BLOCK], 0).unwrap();
        assert!(pool.read("clone") == bytes);
        pool.crash("deepen=manual");
        assert!(pool.read("clone") == bytes);
    });
}

fn clone_by_program(pool: &Pool, source: &str, target: &str) -> support::Done {
    run(Command::new(env!("CARGO_BIN_EXE_clonefs")).args(["clone", source, target]).current_dir(pool.root()))
}

#[test]
fn no_clone_misses_what_is_stored_through_a_mapping_that_outlived_its_handle() {
    with("writable", &[Backing::Ext4], |pool| {
        let mut bytes = image(pool, "disk", 9);
        let mapping = Mapping::new(&open(&pool.at("disk")));
        wait_until(|| past(pool) == 0);
        for again in [false, true] {
            if again {
                // Another daemon knows no more than that there was one.
                pool.crash("deepen=manual");
            }
            let refused = clone_by_program(pool, "disk", "clone").code(1);
            assert!(refused.stderr.contains("mapped"), "{}", refused.stderr);
            assert!(!pool.at("clone").exists());
            let at = usize::from(again) * BLOCK;
            mapping.store(at, b"unseen");
            bytes[at..at + 6].copy_from_slice(b"unseen");
        }
        drop(mapping);
        pool.clone("disk", "clone");
        pool.write("new", b"new");
        pool.clone("new", "clone-of-new");
        open(&pool.at("disk")).write_all_at(&[1; BLOCK], 0).unwrap();
        assert!(pool.read("clone") == bytes);
    });
}

#[test]
fn no_clone_misses_what_a_handle_of_a_dead_daemon_writes() {
    with("writable", &[Backing::Ext4, Backing::Xfs], |pool| {
        let bytes = image(pool, "disk", 10);
        let writer = open(&pool.at("disk"));
        assert_eq!(past(pool), 1);
        pool.crash("deepen=manual");
        // The kernel goes on with it.
        writer.write_all_at(b"ghost", 0).unwrap();
        if can_share(pool) {
            pool.clone("disk", "clone");
        } else {
            assert!(clone_by_program(pool, "disk", "clone").code(1).stderr.contains("still has it open"));
        }
        writer.write_all_at(b"GHOST", 0).unwrap();
        drop(writer);
        pool.clone("disk", "later");
        assert!(pool.read("later")[..5] == *b"GHOST" && pool.read("later")[5..] == bytes[5..]);
        if can_share(pool) {
            assert!(pool.read("clone")[..5] == *b"ghost" && pool.read("clone")[5..] == bytes[5..]);
        }
    });
}

#[test]
fn a_file_that_was_emptied_and_written_past_the_daemon_is_not_taken_for_an_empty_one() {
    with("writable", &[Backing::Ext4], |pool| {
        image(pool, "disk", 11);
        let source = image(pool, "source", 12);
        let writer = open(&pool.at("disk"));
        assert_eq!(past(pool), 1);
        writer.set_len(0).unwrap();
        writer.write_all_at(&[7; 2 * BLOCK], 0).unwrap();
        // A daemon's handle holds the volume in memory, with what is thought of it.
        drop(writer);
        wait_until(|| past(pool) == 0);
        let writer = OpenOptions::new().write(true).open(pool.at("disk")).unwrap();
        let from = File::open(pool.at("source")).unwrap();
        let (mut offset_in, mut offset_out) = (1i64 << 20, 1i64 << 20);
        // SAFETY: both descriptors are open, both offsets are ours.
        let copied = unsafe {
            libc::copy_file_range(
                from.as_raw_fd(),
                &raw mut offset_in,
                writer.as_raw_fd(),
                &raw mut offset_out,
                1 << 20,
                0,
            )
        };
        assert_eq!(copied, 1 << 20);
        let found = pool.read("disk");
        assert!(found[..2 * BLOCK] == [7; 2 * BLOCK] && found[1 << 20..] == source[1 << 20..2 << 20]);
    });
}

#[test]
fn copying_over_a_file_makes_a_clone_as_ever() {
    with("writable", &[Backing::Ext4], |pool| {
        let bytes = image(pool, "disk", 13);
        image(pool, "old", 14);
        drop(open(&pool.at("old")));
        wait_until(|| past(pool) == 0);
        run(Command::new("cp").arg(pool.at("disk")).arg(pool.at("old"))).success();
        assert!(pool.read("old") == bytes);
        assert_eq!(pool.info("old").state, clonefs::protocol::VolumeState::Overlay);
    });
}

#[test]
fn a_file_that_is_mapped_past_the_daemon_cannot_be_protected() {
    with("writable", &[Backing::Ext4], |pool| {
        image(pool, "disk", 30);
        let mapping = {
            let writer = open(&pool.at("disk"));
            assert_eq!(past(pool), 1);
            Mapping::new(&writer)
        };
        wait_until(|| past(pool) == 0);
        let protect = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_clonefs"));
            run(command.args(["policy", "set"]).arg(pool.at("disk")).arg("--protect"))
        };
        assert!(!protect().status.success(), "it is still written to through the mapping");
        mapping.store(0, b"changed");
        drop(mapping);
        protect().success();
        assert_eq!(pool.read("disk")[..7], *b"changed");
    });
}
