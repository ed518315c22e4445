//! Opens that go past the daemon (`-o passthrough=...`): they never meet one that the kernel refuses beside them, and no clone
//! misses a write that went past.

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use clonefs::door::IOC_PIN;
use support::{Backing, Pool, clonefs, errno, noise, on, run, wait_until};

const BLOCK: usize = 4096;
const SIZE: usize = 4 << 20;
const KINDS: [Backing; 3] = [Backing::Ext4, Backing::Xfs, Backing::Btrfs];

fn can_share(pool: &Pool) -> bool {
    pool.mounted().status().reflink
}

/// Runs `test` on pools whose opens may go past the daemon.
fn with(option: &str, kinds: &[Backing], test: impl Fn(&mut Pool)) {
    on(kinds, |pool| {
        pool.unmount();
        pool.mount(&format!("deepen=manual,passthrough={option}"));
        test(pool);
    });
}

/// Files that are open past the daemon. It hears of a close a moment later.
fn past(pool: &Pool) -> u64 {
    pool.mounted().status().open_past
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// An independent volume that nobody has open.
fn image(pool: &Pool, name: &str, seed: u64) -> Vec<u8> {
    let bytes = noise(seed, SIZE);
    pool.write(name, &bytes);
    bytes
}

/// A shared mapping of a whole file, which outlives the handle.
struct Mapping(*mut libc::c_void);

impl Mapping {
    fn new(file: &File) -> Mapping {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        Mapping::with(file, protection, flags)
    }

    fn reading(file: &File) -> Mapping {
        Mapping::with(file, libc::PROT_READ, libc::MAP_SHARED)
    }

    fn with(file: &File, protection: i32, flags: i32) -> Mapping {
        // SAFETY: a new mapping, whose address the kernel chooses.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), SIZE, protection, flags, file.as_raw_fd(), 0) };
        assert!(at != libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Mapping(at)
    }

    fn store(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= SIZE);
        // SAFETY: inside the mapping, which no Rust reference points into.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.cast::<u8>().add(at), bytes.len()) };
    }

    fn byte(&self, at: usize) -> u8 {
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

#[test]
fn all_opens_beside_one_past_the_daemon_fit_and_show_the_same() {
    with("writable", &KINDS, |pool| {
        let mut bytes = image(pool, "disk", 1);
        let path = pool.at("disk");
        let writer = open(&path);
        assert_eq!(past(pool), 1);
        let ways: [(&str, i32); 6] = [
            ("read", libc::O_RDONLY),
            ("write", libc::O_RDWR),
            ("direct", libc::O_RDWR | libc::O_DIRECT),
            ("sync", libc::O_RDWR | libc::O_DSYNC),
            ("append", libc::O_RDWR | libc::O_APPEND),
            ("read direct", libc::O_RDONLY | libc::O_DIRECT),
        ];
        for (n, (name, flags)) in ways.into_iter().enumerate() {
            let writes = flags & libc::O_ACCMODE == libc::O_RDWR;
            let other = OpenOptions::new().read(true).write(writes).custom_flags(flags & !libc::O_ACCMODE).open(&path);
            let other = other.unwrap_or_else(|e| panic!("{name}: {e}"));
            writer.write_all_at(&[n as u8; BLOCK], (n * BLOCK) as u64).unwrap();
            bytes[n * BLOCK..(n + 1) * BLOCK].fill(n as u8);
            let mut found = Aligned([0; BLOCK]);
            other.read_exact_at(&mut found.0, (n * BLOCK) as u64).unwrap();
            assert_eq!(found.0, [n as u8; BLOCK], "{name}");
        }
        let mapping = Mapping::new(&writer);
        mapping.store(9 * BLOCK, b"mapped");
        bytes[9 * BLOCK..9 * BLOCK + 6].copy_from_slice(b"mapped");
        assert_eq!(mapping.byte(0), 0);
        // The mapping reaches the file after its handle is closed, and all others go the same way meanwhile.
        drop(writer);
        wait_until(|| past(pool) == 0);
        mapping.store(10 * BLOCK, b"unseen");
        bytes[10 * BLOCK..10 * BLOCK + 6].copy_from_slice(b"unseen");
        let reader = File::open(&path).unwrap();
        assert_eq!(past(pool), 1);
        let other = Mapping::reading(&reader);
        mapping.store(11 * BLOCK, b"!");
        bytes[11 * BLOCK] = b'!';
        assert_eq!(other.byte(11 * BLOCK), b'!');
        assert!(pool.read("disk") == bytes && fs::read(pool.below("disk")).unwrap() == bytes);
        drop((mapping, other, reader));
        wait_until(|| past(pool) == 0);
        assert!(pool.read("disk") == bytes);
        // What it may not go past the daemon with.
        let again = open(&path);
        assert_eq!(errno(fs::set_permissions(&path, fs::Permissions::from_mode(0o4755))), libc::EBUSY);
        drop(again);
        wait_until(|| past(pool) == 0);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
        let _daemon = open(&path);
        assert_eq!(past(pool), 0);
    });
}

/// As O_DIRECT wants it.
#[repr(align(4096))]
struct Aligned([u8; BLOCK]);

#[test]
fn beside_a_handle_of_the_daemon_all_come_to_the_daemon() {
    with("writable", &[Backing::Ext4], |pool| {
        let bytes = image(pool, "disk", 2);
        let path = pool.at("disk");
        let reader = File::open(&path).unwrap();
        let writer = open(&path);
        assert_eq!(past(pool), 0);
        let mapping = Mapping::new(&writer);
        drop((reader, writer));
        // The mapping alone holds it now. An open past the daemon would be refused with EIO.
        let writer = open(&path);
        assert_eq!(past(pool), 0);
        writer.write_all_at(b"written", 0).unwrap();
        mapping.store(BLOCK, b"stored");
        drop((mapping, writer));
        let mut expect = bytes;
        expect[..7].copy_from_slice(b"written");
        expect[BLOCK..BLOCK + 6].copy_from_slice(b"stored");
        // What the kernel has cached of it is not shown again after it was written to past the daemon.
        assert!(pool.read("disk") == expect);
        let writer = wait_for_past(pool, "disk");
        writer.write_all_at(b"PAST", 2 * BLOCK as u64).unwrap();
        drop(writer);
        wait_until(|| past(pool) == 0);
        expect[2 * BLOCK..2 * BLOCK + 4].copy_from_slice(b"PAST");
        let mapping = Mapping::new(&open(&path));
        assert_eq!([mapping.byte(2 * BLOCK), mapping.byte(0)], *b"Pw");
        drop(mapping);
        assert!(pool.read("disk") == expect);
        // New files, empty ones, overlays, and files with clones.
        let new = File::create_new(pool.at("new")).unwrap();
        new.write_all_at(&[1; 2 * BLOCK], 0).unwrap();
        assert_eq!(past(pool), 0);
        drop(new);
        fs::write(pool.at("empty"), "").unwrap();
        wait_until(|| past(pool) == 0);
        pool.clone("disk", "clone");
        for name in ["empty", "clone", "disk"] {
            let _file = open(&pool.at(name));
            assert_eq!(past(pool), 0, "{name}");
        }
    });
}

/// An open that goes past the daemon, once it has heard of all closes.
fn wait_for_past(pool: &Pool, name: &str) -> File {
    let mut file = None;
    wait_until(|| {
        drop(file.take());
        file = Some(open(&pool.at(name)));
        past(pool) == 1
    });
    file.unwrap()
}

#[test]
fn opens_and_closes_at_once_never_fail() {
    with("writable", &[Backing::Ext4], |pool| {
        let bytes = image(pool, "disk", 3);
        let (pool, path, went_past) = (&*pool, pool.at("disk"), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (path, bytes, went_past): (_, &[u8], _) = (&path, &bytes, &went_past);
                scope.spawn(move || {
                    for turn in 0..300 {
                        let file = if (turn + thread) % 3 == 0 { File::open(path).unwrap() } else { open(path) };
                        let mut found = [0; 64];
                        file.read_exact_at(&mut found, 4096 * thread as u64).unwrap();
                        assert_eq!(found, bytes[4096 * thread..][..64]);
                        if turn % 50 == 0 {
                            went_past.fetch_add(past(pool), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert!(went_past.load(Ordering::Relaxed) > 0, "some went past the daemon");
        wait_until(|| past(pool) == 0);
    });
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
        let request = clonefs::door::CloneRequest { token: into, ..Default::default() };
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

#[test]
fn a_snapshot_that_is_read_past_the_daemon_never_changes() {
    with("read-only", &KINDS, |pool| {
        let bytes = image(pool, "disk", 6);
        clonefs(
            ["snapshot", "create"]
                .iter()
                .map(Path::new)
                .chain([Path::new(&format!("{}@one", pool.at("disk").display()))]),
        )
        .success();
        let path = pool.at(".snapshots").join("disk@one");
        drop(File::open(&path).unwrap());
        assert_eq!(past(pool), 0, "the file that has all of it is the disk's own still");
        open(&pool.at("disk")).write_all_at(b"own", 0).unwrap();
        let reader = File::open(&path).unwrap();
        assert_eq!(past(pool), 1, "one file has all of it");
        let second = File::open(&path).unwrap();
        let check = |what: &str| {
            for file in [&reader, &second] {
                let mut found = vec![0; SIZE + 1];
                assert_eq!(file.read_at(&mut found, 0).unwrap(), SIZE, "{what}");
                assert!(found[..SIZE] == bytes, "{what}");
            }
        };
        check("at first");
        let source = open(&pool.at("disk"));
        source.write_all_at(&noise(7, SIZE), 0).unwrap();
        source.sync_all().unwrap();
        check("after its source was written to");
        drop(source);
        pool.deepen("disk");
        check("after its source became independent");
        fs::remove_file(pool.at("disk")).unwrap();
        check("after its source was deleted");
        fs::remove_file(&path).unwrap();
        pool.write("next", &noise(8, SIZE));
        check("after it was deleted itself");
        assert_eq!(OpenOptions::new().write(true).open(&path).unwrap_err().kind(), ErrorKind::NotFound);
        drop((reader, second));
        wait_until(|| past(pool) == 0);
        // What is made of several files comes through the daemon.
        pool.clone("next", "clone");
        open(&pool.at("clone")).write_all_at(b"own", 0).unwrap();
        clonefs(
            ["snapshot", "create"]
                .iter()
                .map(Path::new)
                .chain([Path::new(&format!("{}@two", pool.at("clone").display()))]),
        )
        .success();
        let mixed = File::open(pool.at(".snapshots").join("clone@two")).unwrap();
        assert_eq!(past(pool), 0);
        let mut found = [0; 4];
        mixed.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(found[..3], *b"own");
        // Nor does anything else, with this option.
        let _writer = open(&pool.at("next"));
        assert_eq!(past(pool), 0);
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
        assert_eq!(pool.info("old").state, clonefs::door::VolumeState::Overlay);
    });
}

#[test]
fn what_is_mapped_of_a_snapshot_never_changes() {
    with("read-only", &[Backing::Ext4], |pool| {
        let bytes = image(pool, "disk", 15);
        let name = format!("{}@one", pool.at("disk").display());
        clonefs(["snapshot", "create", &name]).success();
        open(&pool.at("disk")).write_all_at(&noise(16, SIZE / 2), 0).unwrap();
        let snapshot = pool.at(".snapshots").join("disk@one");
        let mapping = {
            let reader = File::open(&snapshot).unwrap();
            assert_eq!(past(pool), 1);
            Mapping::reading(&reader)
        };
        wait_until(|| past(pool) == 0);
        fs::remove_file(&snapshot).unwrap();
        // The volume alone reads what the snapshot showed, and would take its file over.
        clonefs([Path::new("deepen"), &pool.at("disk")]).success();
        for at in [0, SIZE / 2, SIZE - 1] {
            assert_eq!(mapping.byte(at), bytes[at]);
        }
        drop(mapping);
        pool.deepen("disk");
        assert!(pool.read("disk")[SIZE / 2..] == bytes[SIZE / 2..]);
    });
}

#[test]
fn what_else_is_done_to_a_file_that_is_open_past_the_daemon_is_seen_by_its_handles() {
    with("writable", &[Backing::Ext4], |pool| {
        let mut bytes = image(pool, "disk", 17);
        let path = pool.at("disk");
        let writer = open(&path);
        assert_eq!(past(pool), 1);
        let seen = |bytes: &[u8], what: &str| {
            let mut found = vec![0; bytes.len() + 1];
            assert_eq!(writer.read_at(&mut found, 0).unwrap(), bytes.len(), "{what}");
            assert!(found[..bytes.len()] == *bytes, "{what}");
            assert_eq!(writer.metadata().unwrap().len(), bytes.len() as u64, "{what}");
        };
        clonefs([Path::new("resize"), &path, Path::new("5M")]).success();
        bytes.resize(5 << 20, 0);
        seen(&bytes, "resized");
        let mut end = OpenOptions::new().append(true).open(&path).unwrap();
        std::io::Write::write_all(&mut end, b"end").unwrap();
        bytes.extend(b"end");
        seen(&bytes, "appended to");
        writer.set_len(SIZE as u64).unwrap();
        bytes.truncate(SIZE);
        seen(&bytes, "truncated");
        let (mode, len) = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 8 * BLOCK);
        // SAFETY: the descriptor is open.
        assert_eq!(unsafe { libc::fallocate(writer.as_raw_fd(), mode, BLOCK as i64, len as i64) }, 0);
        bytes[BLOCK..BLOCK + len].fill(0);
        seen(&bytes, "with a hole");
        writer.sync_all().unwrap();
        fs::hard_link(&path, pool.at("second")).unwrap();
        fs::rename(&path, pool.at("moved")).unwrap();
        assert!(pool.read("moved") == bytes && pool.read("second") == bytes);
        pool.write("over", b"another file");
        fs::rename(pool.at("over"), pool.at("moved")).unwrap();
        fs::remove_file(pool.at("second")).unwrap();
        writer.write_all_at(b"nameless", 0).unwrap();
        bytes[..8].copy_from_slice(b"nameless");
        seen(&bytes, "without a name");
        assert_eq!(pool.read("moved"), b"another file");
        drop((writer, end));
        wait_until(|| past(pool) == 0);
        pool.clone("moved", "clone");
        pool.unmount();
        clonefs([Path::new("check"), pool.root()]).success();
    });
}

#[test]
fn a_daemon_without_the_privilege_serves_every_open_itself() {
    if !support::ready() {
        return;
    }
    let unshare = |script: &str, at: &Path| {
        let mut command = Command::new("unshare");
        let program = env!("CARGO_BIN_EXE_clonefs");
        run(command.args(["--user", "--map-root-user", "--mount", "bash", "-ec", script, program]).arg(at))
    };
    let pool = Pool::unmounted(Backing::Ext4);
    if !unshare("true", pool.root()).status.success() {
        eprintln!("SKIPPED: no user namespaces here");
        return;
    }
    let script = r#"
        "$0" mount -o passthrough=writable,deepen=manual "$1"
        trap '"$0" unmount "$1"' EXIT
        cd /
        head -c 100000 /dev/urandom > "$1/disk"
        exec 3<>"$1/disk" 4<"$1/disk"
        echo written >&3
        "$0" status "$1" | grep "passthrough=writable, 0 files open"
        "$0" clone "$1/disk" "$1/clone"
        cmp "$1/disk" "$1/clone"
        head -c 8 <&4 | grep written
        exec 3>&- 4>&-
    "#;
    unshare(script, pool.root()).success();
    assert!(!pool.below(".clonefs/past").exists());
}

/// A snapshot that is read past the daemon, as its source has been written to since.
fn snapshot_past(pool: &Pool, name: &str) -> std::path::PathBuf {
    clonefs(["snapshot", "create", &format!("{}@one", pool.at(name).display())]).success();
    open(&pool.at(name)).write_all_at(b"own", SIZE as u64 - 3).unwrap();
    pool.at(".snapshots").join(format!("{name}@one"))
}

#[test]
fn a_file_is_not_written_in_place_while_a_removed_snapshot_of_it_is_mapped() {
    with("read-only", &[Backing::Ext4], |pool| {
        let bytes = image(pool, "disk", 23);
        clonefs(["snapshot", "create", &format!("{}@one", pool.at("disk").display())]).success();
        let snapshot = pool.at(".snapshots").join("disk@one");
        let (reader, mapping) = {
            let reader = File::open(&snapshot).unwrap();
            let mapping = Mapping::reading(&reader);
            (reader, mapping)
        };
        fs::remove_file(&snapshot).unwrap();
        // Time for the daemon to find that no name leads to what the snapshot read.
        std::thread::sleep(std::time::Duration::from_secs(1));
        open(&pool.at("disk")).write_all_at(&[!bytes[0]; BLOCK], 0).unwrap();
        assert_eq!(mapping.byte(0), bytes[0]);
        drop(reader);
        assert_eq!(mapping.byte(1), bytes[1]);
    });
}

#[test]
fn what_was_written_with_direct_writes_is_adopted_though_files_were_open_past_the_daemon() {
    with("read-only", &[Backing::Ext4], |pool| {
        image(pool, "other", 21);
        drop(File::open(snapshot_past(pool, "other")).unwrap());
        let mut bytes = image(pool, "base", 20);
        pool.clone("base", "vm");
        let direct =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(pool.at("vm")).unwrap();
        let mut room = vec![7u8; (64 << 10) + BLOCK];
        let at = room.as_ptr().align_offset(BLOCK);
        let chunk = &mut room[at..at + (64 << 10)];
        direct.write_all_at(chunk, 0).unwrap();
        clonefs(["snapshot", "create", &format!("{}@one", pool.at("vm").display())]).success();
        chunk.fill(8);
        direct.write_all_at(chunk, 128 << 10).unwrap();
        direct.sync_all().unwrap();
        bytes[..64 << 10].fill(7);
        bytes[128 << 10..192 << 10].fill(8);
        fs::remove_file(pool.at(".snapshots").join("vm@one")).unwrap();
        // While the machine runs on: its own layer takes over the one below.
        pool.deepen("vm");
        assert_eq!(pool.info("vm").state, clonefs::door::VolumeState::Independent);
        drop(direct);
        assert!(pool.read("vm") == bytes);
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
