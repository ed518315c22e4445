//! Kills under programs that read, write and sync.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::fixture::{Kept, Killer, Pauses, kill, server_of};
use crate::support::{Backing, is_running, noise, ready, wait_until};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 256;

/// A block that says which file, block and round it is of.
fn block(file: u64, index: u64, round: u64) -> Vec<u8> {
    noise(file << 40 | index << 24 | round, BLOCK)
}

/// Memory that direct I/O can use.
#[repr(align(4096))]
struct Aligned([u8; BLOCK]);

/// Writes, syncs and reads back for a while; each byte is checked.
fn work(path: &std::path::Path, file: u64, direct: bool, until: &AtomicBool, pauses: &Pauses) {
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let open = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).expect("open");
    let (mut rounds, mut state) = (vec![0u64; BLOCKS as usize], file.wrapping_mul(0x9e37_79b9) | 1);
    let mut buffer = Box::new(Aligned([0; BLOCK]));
    let mut turn = 0;
    while !until.load(Ordering::Relaxed) {
        turn += 1;
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let index = (state >> 33) % BLOCKS;
        if turn % 3 == 0 {
            pauses.time(|| open.read_exact_at(&mut buffer.0, index * BLOCK as u64)).expect("read");
            let wanted = block(file, index, rounds[index as usize]);
            assert!(buffer.0[..] == wanted[..], "file {file}, block {index}, round {}", rounds[index as usize]);
            continue;
        }
        rounds[index as usize] += 1;
        buffer.0.copy_from_slice(&block(file, index, rounds[index as usize]));
        pauses.time(|| open.write_all_at(&buffer.0, index * BLOCK as u64)).expect("write");
        if turn % 8 == 0 {
            pauses.time(|| open.sync_data()).expect("sync");
        }
    }
    for index in 0..BLOCKS {
        open.read_exact_at(&mut buffer.0, index * BLOCK as u64).expect("read");
        assert!(
            buffer.0[..] == block(file, index, rounds[index as usize])[..],
            "file {file}, block {index} at the end"
        );
    }
}

fn image(file: u64) -> Vec<u8> {
    (0..BLOCKS).flat_map(|index| block(file, index, 0)).collect()
}

/// Kills under eight writers of plain files and of clones, which are deepened meanwhile.
fn under_writers(kind: Backing, time: Duration) {
    if !ready() {
        return;
    }
    let kept = Kept::new(kind, "deepen=auto", "");
    // Clones hold the blocks of one image; each worker first makes its own contents.
    fs::write(kept.at("base"), image(99)).unwrap();
    for file in 0..8u64 {
        let name = kept.at(&format!("f{file}"));
        if file % 2 == 0 {
            fs::write(&name, image(file)).unwrap();
        } else {
            kept.pool.clone("base", &format!("f{file}"));
            fs::write(&name, image(file)).unwrap();
        }
    }
    let until = Arc::new(AtomicBool::new(false));
    let killer = Killer::start(&kept, Duration::from_millis(400));
    let (pauses, native) = (Arc::new(Pauses::of(&killer)), Arc::new(Pauses::of(&killer)));
    let workers: Vec<_> = (0..8u64)
        .map(|file| {
            let (path, until, pauses) = (kept.at(&format!("f{file}")), until.clone(), pauses.clone());
            thread::spawn(move || work(&path, file, file % 4 < 2, &until, &pauses))
        })
        .collect();
    // What the disk does beside that.
    let beside = {
        let (path, until, native) = (kept.pool.disk.root().join("beside"), until.clone(), native.clone());
        thread::spawn(move || {
            let file = File::create(path).expect("a file beside the pool");
            while !until.load(Ordering::Relaxed) {
                file.write_all_at(&[1; BLOCK], 0).expect("write");
                native.time(|| file.sync_data()).expect("sync");
                thread::sleep(Duration::from_millis(5));
            }
        })
    };
    thread::sleep(time);
    let kills = killer.end();
    until.store(true, Ordering::Relaxed);
    workers.into_iter().for_each(|worker| worker.join().expect("no error and no wrong byte"));
    beside.join().expect("no error beside");
    eprintln!("{kind:?}: {kills} kills: {}; a sync beside the pool: {}", pauses.figures(), native.figures());
    assert!(kills > 3);
    kept.end();
}

#[test]
fn programs_that_write_and_sync_notice_no_kill() {
    under_writers(Backing::Ext4, Duration::from_secs(8));
}

/// For scripts/soak: `CLONEFS_KILL_SECONDS` on each filesystem.
#[test]
#[ignore = "long: scripts/soak kills"]
fn programs_notice_no_kill_for_a_long_time() {
    let seconds = std::env::var("CLONEFS_KILL_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    for kind in Backing::ALL {
        under_writers(kind, Duration::from_secs(seconds));
    }
}

#[test]
fn large_writes_of_the_first_moments_after_a_start_give_no_error() {
    if !ready() {
        return;
    }
    let kept = Kept::dying("");
    let bytes = noise(7, 1 << 20);
    let file = OpenOptions::new().create_new(true).read(true).write(true).open(kept.at("f")).unwrap();
    let until = Arc::new(AtomicBool::new(false));
    let writer = thread::spawn({
        let (file, bytes, until) = (file.try_clone().unwrap(), bytes.clone(), until.clone());
        move || {
            while !until.load(Ordering::Relaxed) {
                file.write_all_at(&bytes, 0).expect("a large write");
            }
        }
    });
    let mut kills = 0;
    for millis in (0..25u64).cycle().take(60) {
        let served = kept.logged("serving");
        kept.kill();
        wait_until(|| kept.logged("serving") > served);
        thread::sleep(Duration::from_millis(millis));
        kills += 1;
    }
    until.store(true, Ordering::Relaxed);
    writer.join().expect("no error");
    let mut found = vec![0; bytes.len()];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == bytes && kills == 60);
    drop(file);
    kept.end();
}

#[test]
fn files_that_are_open_go_on_whatever_became_of_their_names() {
    if !ready() {
        return;
    }
    let kept = Kept::dying("");
    let open = |name: &str| OpenOptions::new().read(true).write(true).open(kept.at(name)).unwrap();
    fs::write(kept.at("base"), noise(1, 40_000)).unwrap();
    for name in ["deepened", "unlinked-clone"] {
        kept.pool.clone("base", name);
    }
    for name in ["renamed", "unlinked", "frozen", "replaced"] {
        fs::write(kept.at(name), noise(2, 30_000)).unwrap();
    }
    fs::write(kept.at("other"), b"another").unwrap();
    let names = ["deepened", "unlinked-clone", "renamed", "unlinked", "frozen", "replaced"];
    let files: Vec<File> = names.iter().map(|name| open(name)).collect();
    let mut at = File::open(kept.at("renamed")).unwrap();
    at.seek(SeekFrom::Start(29_990)).unwrap();
    kept.pool.deepen("deepened");
    fs::rename(kept.at("renamed"), kept.at("elsewhere")).unwrap();
    fs::remove_file(kept.at("unlinked")).unwrap();
    fs::remove_file(kept.at("unlinked-clone")).unwrap();
    fs::rename(kept.at("other"), kept.at("replaced")).unwrap();
    kept.pool.clone("frozen", "clone-of-frozen");
    let written = |file: &File, round: u8| {
        file.write_all_at(&[round; 5000], 3000).expect("a write");
        file.sync_all().expect("a sync");
    };
    files.iter().for_each(|file| written(file, 1));
    for round in 2..5 {
        let served = kept.logged("serving");
        kept.kill();
        files.iter().zip(names).for_each(|(file, name)| {
            let mut found = [0; 5000];
            file.read_exact_at(&mut found, 3000).unwrap_or_else(|error| panic!("{name}, round {round}: {error}"));
            assert!(found == [round - 1; 5000], "{name}, round {round}");
            written(file, round);
        });
        assert!(kept.logged("serving") > served);
    }
    let mut rest = Vec::new();
    at.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, noise(2, 30_000)[29_990..]);
    assert_eq!(fs::read(kept.at("clone-of-frozen")).unwrap(), noise(2, 30_000));
    assert_eq!(fs::read(kept.at("replaced")).unwrap(), b"another");
    assert_eq!(fs::metadata(kept.at("elsewhere")).unwrap().len(), 30_000);
    drop((files, at));
    kept.end();
}

#[test]
fn a_directory_that_is_read_half_goes_on() {
    if !ready() {
        return;
    }
    let kept = Kept::dying("");
    fs::create_dir(kept.at("d")).unwrap();
    for index in 0..3000 {
        File::create(kept.at(&format!("d/{index:04}"))).unwrap();
    }
    let mut entries = fs::read_dir(kept.at("d")).unwrap();
    let mut names: Vec<_> = entries.by_ref().take(500).map(|entry| entry.unwrap().file_name()).collect();
    kept.kill();
    names.extend(entries.map(|entry| entry.unwrap().file_name()));
    names.sort();
    let all: Vec<std::ffi::OsString> = (0..3000).map(|index| format!("{index:04}").into()).collect();
    assert!(names == all, "{} of 3000 names", names.len());
    kept.end();
}

#[test]
fn a_server_that_dies_at_once_three_times_is_followed_by_one_that_serves() {
    if !ready() {
        return;
    }
    let kept = Kept::dying("");
    let mut file = File::create(kept.at("f")).unwrap();
    let mut last = 0;
    for _ in 0..3 {
        wait_until(|| server_of(kept.holder()).is_some_and(|server| server != last));
        last = kept.kill();
    }
    file.write_all(b"here").unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert_eq!(fs::read(kept.at("f")).unwrap(), b"here");
    kept.end();
}

#[test]
fn without_its_holder_a_mount_goes_on_and_ends_with_its_server() {
    if !ready() {
        return;
    }
    let kept = Kept::dying("");
    let file = File::create(kept.at("f")).unwrap();
    let server = server_of(kept.holder()).unwrap();
    kill(kept.holder(), libc::SIGKILL);
    file.write_all_at(b"still here", 0).unwrap();
    kill(server, libc::SIGKILL);
    wait_until(|| !is_running(server));
    let begun = Instant::now();
    wait_until(|| file.write_all_at(b"x", 0).is_err());
    assert!(begun.elapsed() < Duration::from_secs(5), "programs are told, and do not wait");
    drop(file);
    crate::support::clonefs([std::ffi::OsStr::new("unmount"), kept.pool.root().as_os_str()]).success();
}

#[test]
fn node_numbers_and_what_status_says_stay() {
    use std::os::unix::fs::MetadataExt;
    if !ready() {
        return;
    }
    let kept = Kept::dying("");
    for index in 0..50 {
        fs::write(kept.at(&format!("f{index}")), b"x").unwrap();
    }
    let numbers = || -> Vec<u64> { (0..50).map(|i| fs::metadata(kept.at(&format!("f{i}"))).unwrap().ino()).collect() };
    let before = numbers();
    let first = kept.mounted().status();
    kept.kill();
    assert_eq!(numbers(), before);
    let now = kept.mounted().status();
    assert_ne!(now.pid, first.pid);
    let kept_by = now.continuity.unwrap();
    assert_eq!((kept_by.holder, kept_by.servers, kept_by.ends), (kept.holder(), 2, None));
    kept.end();
}
