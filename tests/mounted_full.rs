//! A full disk: at whatever step it happens, the command says so, nothing half-made remains, everybody else keeps
//! every byte, and deleting goes on.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use clonefs::protocol::VolumeState;
use support::{Backing, Disk, Done, Pool, fallocate, noise, run, wait_until};

const MIB: u64 = 1 << 20;

/// As small as each can be.
const SIZES: [(Backing, u64); 4] =
    [(Backing::Ext4, 24 * MIB), (Backing::Xfs, 300 * MIB), (Backing::Btrfs, 128 * MIB), (Backing::Tmpfs, 24 * MIB)];

/// Runs `test` on a new pool on each kind of filesystem, with little space.
fn on_small_disks(test: impl Fn(&mut Pool)) {
    if !support::ready() {
        return;
    }
    for (kind, size) in SIZES {
        eprintln!("-- {kind:?}");
        let mut pool = Pool::unmounted_on(Disk::with_size(kind, size));
        pool.mount("deepen=manual");
        test(&mut pool);
    }
}

fn command(pool: &Pool, words: &[&str]) -> Done {
    run(Command::new(env!("CARGO_BIN_EXE_clonefs")).args(words).current_dir(pool.root()))
}

fn writable(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn names(pool: &Pool) -> Vec<String> {
    let entries = fs::read_dir(pool.root()).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Fills the disk, past the mount.
fn fill(pool: &Pool) -> File {
    let filler = File::create(pool.disk.root().join("filler")).unwrap();
    fill_again(&filler);
    // What the filesystem held back for later comes free.
    filler.sync_all().unwrap();
    fill_again(&filler);
    filler
}

/// Takes what has come free.
fn fill_again(filler: &File) {
    let mut at = filler.metadata().unwrap().len() as i64;
    for len in [64 << 20, 4 << 20, 256 << 10, 4096] {
        while fallocate(filler, 0, at, len).is_ok() {
            at += len;
        }
    }
}

/// It failed, and said why.
fn full(done: &Done) -> bool {
    if done.status.success() {
        return false;
    }
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    assert!(done.stderr.contains("No space left"), "{done:?}");
    assert!(!done.stderr.contains("panicked"), "{done:?}");
    true
}

/// Bytes given back to the disk before each attempt: so each step of a command finds it full once.
const STEPS: [u64; 10] = [0, 4096, 8192, 12_288, 20_480, 32_768, 65_536, 131_072, 262_144, 400_000];

#[test]
fn a_clone_on_a_full_disk_is_made_or_leaves_nothing() {
    on_small_disks(|pool| {
        let bytes = noise(2, MIB as usize);
        pool.write("base", &bytes);
        fs::create_dir(pool.at("tree")).unwrap();
        for name in ["a", "b"] {
            pool.write(&format!("tree/{name}"), &bytes[..50_000]);
        }
        pool.write("old", &bytes[..70_000]);
        let outside = tempfile::TempDir::new().unwrap();
        let image = outside.path().join("image");
        fs::write(&image, noise(3, 300_000)).unwrap();
        let filler = fill(pool);
        let before = names(pool);
        let commands: [&[&str]; 5] = [
            &["clone", "base", "new"],
            &["clone", "--sync", "base", "--count", "30", "new{}"],
            &["clone", "-r", "tree", "new"],
            &["clone", "--force", "base", "old"],
            &["clone", "--sync", image.to_str().unwrap(), "new"],
        ];
        let mut made = 0;
        for words in commands {
            for given in STEPS {
                let len = filler.metadata().unwrap().len();
                filler.set_len(len - given).unwrap();
                let done = command(pool, words);
                if full(&done) {
                    assert_eq!(names(pool), before, "{words:?} with {given} bytes: {done:?}");
                    assert!(pool.read("old") == bytes[..70_000]);
                } else {
                    made += 1;
                    for name in names(pool).iter().filter(|name| name.starts_with("new")) {
                        let path = pool.at(name);
                        let gone = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
                        gone.unwrap_or_else(|e| panic!("deleting works on a full disk: {name}: {e}"));
                    }
                    if fs::read(pool.at("old")).unwrap() == bytes {
                        // Back to what it was, for which there has to be space.
                        filler.set_len(0).unwrap();
                        pool.write("old", &bytes[..70_000]);
                    }
                }
                fill_again(&filler);
            }
        }
        assert!(made > 0, "some of them had enough space");
        filler.set_len(0).unwrap();
        assert!(pool.read("base") == bytes);
        fs::remove_file(pool.at("old")).unwrap();
        wait_until(|| pool.mounted().status().overlays == 0);
        command(pool, &["check"]).success();
        pool.clone("base", "new");
        assert!(pool.read("new") == bytes);
    });
}

#[test]
fn a_write_that_finds_no_space_changes_nothing_and_the_source_keeps_its_bytes() {
    on_small_disks(|pool| {
        let mut clone = noise(4, 2 * MIB as usize);
        let base = clone.clone();
        pool.write("base", &base);
        pool.clone("base", "vm");
        let file = writable(&pool.at("vm"));
        file.write_all_at(b"first", 0).unwrap();
        clone[..5].copy_from_slice(b"first");
        file.sync_all().unwrap();
        let filler = fill(pool);
        // Blocks of its own, whole and in part, until nothing more fits: each is there or not.
        let mut refused = 0;
        for block in (1..500u64).rev() {
            let (at, text) =
                if block % 2 == 0 { (block * 4096, vec![7; 4096]) } else { (block * 4096 + 9, vec![8; 100]) };
            match file.write_at(&text, at) {
                Ok(written) => clone[at as usize..at as usize + written].copy_from_slice(&text[..written]),
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 100, "{refused}");
        // The source was never written to: the first write freezes it, which takes space.
        let source = writable(&pool.at("base"));
        let wrote = source.write_at(b"second", 1_000_000);
        let mut expected = base.clone();
        match wrote {
            Ok(_) => expected[1_000_000..1_000_006].copy_from_slice(b"second"),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}"),
        }
        assert!(pool.read("vm") == clone && pool.read("base") == expected);
        // Reading, syncing and deleting go on.
        file.sync_all().unwrap();
        filler.set_len(0).unwrap();
        file.write_all_at(b"third", 9000).unwrap();
        clone[9000..9005].copy_from_slice(b"third");
        source.write_all_at(b"fourth", 3000).unwrap();
        expected[3000..3006].copy_from_slice(b"fourth");
        file.sync_all().unwrap();
        assert!(pool.read("vm") == clone && pool.read("base") == expected);
        drop((file, source));
        pool.unmount();
        pool.mount("deepen=manual");
        assert!(pool.read("vm") == clone && pool.read("base") == expected);
        command(pool, &["check"]).success();
    });
}

#[test]
fn deepening_that_finds_no_space_says_so_and_goes_on_when_there_is() {
    on_small_disks(|pool| {
        let bytes = noise(5, 4 * MIB as usize);
        pool.write("base", &bytes);
        pool.clone("base", "vm");
        let filler = fill(pool);
        let done = command(pool, &["deepen", "--physical", "--wait", "vm"]);
        assert!(full(&done), "{done:?}");
        let info = pool.info("vm");
        if info.state == VolumeState::Failed {
            assert!(info.error.as_ref().is_some_and(|e| e.contains("No space left")), "{info:?}");
            let status = command(pool, &["status"]).success().stdout;
            assert!(status.contains("vm") && status.contains("No space left"), "{status}");
        } else {
            // There was no space even to note that it is wanted.
            assert_eq!((info.state, info.queued), (VolumeState::Overlay, false), "{info:?}");
        }
        assert!(pool.read("vm") == bytes && pool.read("base") == bytes);
        filler.set_len(0).unwrap();
        command(pool, &["deepen", "--physical", "--wait", "vm"]).success();
        assert!(fs::read(pool.below("vm")).unwrap() == bytes);
        assert!(pool.mounted().status().troubles.is_empty());
    });
}

#[test]
fn a_full_disk_can_be_emptied_by_deleting_clones() {
    on_small_disks(|pool| {
        let bytes = noise(6, 3 * MIB as usize);
        pool.write("base", &bytes);
        for name in ["one", "two"] {
            pool.clone("base", name);
            writable(&pool.at(name)).write_all_at(&noise(7, 3 * MIB as usize), 0).unwrap();
        }
        drop(fill(pool));
        let free = || {
            // btrfs frees with the next transaction.
            run(Command::new("sync").arg("-f").arg(pool.disk.root())).success();
            let done = run(Command::new("stat").args(["-f", "-c", "%f %S"]).arg(pool.disk.root())).success();
            done.stdout.split_whitespace().map(|word| word.parse::<u64>().unwrap()).product::<u64>()
        };
        let before = free();
        fs::remove_file(pool.at("one")).unwrap();
        wait_until(|| free() >= before + 2 * MIB);
        assert_eq!(names(pool), ["base", "two"]);
        // The pool works again with what came free.
        writable(&pool.at("two")).write_all_at(&bytes[..MIB as usize], 0).unwrap();
        command(pool, &["clone", "--sync", "two", "three"]).success();
        assert!(pool.read("three")[..MIB as usize] == bytes[..MIB as usize]);
        command(pool, &["check"]).success();
    });
}

/// One write over blocks that a clone has of its own and blocks that it must get.
#[test]
fn a_write_that_fails_or_is_short_changes_nothing_that_it_did_not_count() {
    on_small_disks(|pool| {
        let len = MIB as usize;
        pool.write("base", &noise(8, 4 * len));
        pool.clone("base", "vm");
        let file = writable(&pool.at("vm"));
        file.write_all_at(&noise(9, 65_536), 0).unwrap();
        file.sync_all().unwrap();
        let mut expected = pool.read("vm");
        let filler = fill(pool);
        let mut refused = 0;
        for (round, given) in STEPS.into_iter().enumerate() {
            filler.set_len(filler.metadata().unwrap().len() - given).unwrap();
            let bytes = noise(20 + round as u64, len);
            let at = round * 40_000 % 90_000;
            let written = match file.write_at(&bytes, at as u64) {
                Ok(written) => written,
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
                    0
                }
            };
            refused += usize::from(written < len);
            expected[at..at + written].copy_from_slice(&bytes[..written]);
            assert!(pool.read("vm") == expected, "round {round}: {written} of {len} bytes were counted");
        }
        assert!(refused > 0);
        drop(file);
        filler.set_len(0).unwrap();
        pool.unmount();
        pool.mount("deepen=manual");
        assert!(pool.read("vm") == expected);
    });
}
