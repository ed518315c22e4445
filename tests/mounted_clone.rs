//! Clones of a source that is in use: what they show, and what may happen to either side at once.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use clonefs::protocol::{CLONE_FROM, FLUSH, VolumeState};
use support::{Backing, Mapping, Pool, errno, noise, on, on_each_filesystem, run, set_xattr, wait_until};

const MIB: usize = 1 << 20;
const BLOCK: u64 = 4096;

fn writable(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

/// The doors that clone by name.
fn clone_through(pool: &Pool, door: usize, source: &str, target: &str) {
    match door % 3 {
        0 => pool.clone(source, target),
        1 => drop(run(Command::new("cp").arg(pool.at(source)).arg(pool.at(target))).success()),
        _ => set_xattr(&pool.write(target, b""), CLONE_FROM, source.as_bytes()).unwrap(),
    }
}

/// Memory that O_DIRECT takes.
fn aligned(fill: u64) -> Mapping {
    let file = tempfile::tempfile().unwrap();
    file.set_len(BLOCK).unwrap();
    let mut page = Mapping::new(&file, BLOCK as usize).unwrap();
    page.bytes().copy_from_slice(&fill.to_le_bytes().repeat(512));
    page
}

#[test]
fn a_clone_has_all_that_was_acknowledged_before_it_and_nothing_from_later() {
    const BLOCKS: u64 = 256;
    on_each_filesystem(|pool| {
        let path = pool.write("source", &vec![0; (BLOCKS * BLOCK) as usize]);
        let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            // A machine that writes its disk, with the page cache in between or not: write number n fills block n of
            // the ring with n, so that each state of the file says which writes are in it.
            scope.spawn(|| {
                let cached = writable(&path);
                let direct = File::options().write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
                for number in 1u64.. {
                    let place = number % BLOCKS * BLOCK;
                    if number % 2 == 0 {
                        cached.write_all_at(&number.to_le_bytes().repeat(512), place).unwrap();
                    } else {
                        direct.write_all_at(aligned(number).bytes(), place).unwrap();
                    }
                    done.store(number, Ordering::SeqCst);
                    if number % 64 == 0 {
                        cached.sync_data().unwrap();
                    }
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            wait_until(|| done.load(Ordering::SeqCst) > BLOCKS);
            let mut clones = Vec::new();
            for number in 0..12 {
                let before = done.load(Ordering::SeqCst);
                let name = format!("clone-{number}");
                clone_through(pool, number, "source", &name);
                // One more may have been under way.
                let after = done.load(Ordering::SeqCst) + 1;
                let bytes = pool.read(&name);
                let numbers: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
                let newest = numbers.iter().copied().max().unwrap();
                assert!((before..=after).contains(&newest), "{newest} is not from {before} to {after}");
                for (place, block) in numbers.chunks(512).enumerate() {
                    let expected = (newest - BLOCKS + 1..=newest).find(|n| n % BLOCKS == place as u64).unwrap();
                    assert!(block.iter().all(|n| *n == expected), "block {place} of {name}, newest {newest}");
                }
                clones.push((name, bytes));
            }
            stop.store(true, Ordering::Relaxed);
            for (name, bytes) in clones {
                assert!(pool.read(&name) == bytes, "{name} saw a later write");
            }
        });
    });
}

/// Something that happens to a file, with a name.
type Event = (&'static str, fn(&Pool, &str));

#[test]
fn source_and_clone_can_be_written_renamed_deleted_and_replaced_at_once() {
    on_each_filesystem(|pool| {
        let bytes = noise(1, MIB + 99);
        let events: [Event; 7] = [
            ("written", |pool, name| writable(&pool.at(name)).write_all_at(&noise(2, MIB), 55).unwrap()),
            ("overwritten", |pool, name| fs::write(pool.at(name), b"another image").unwrap()),
            ("shrunk and grown", |pool, name| {
                let file = writable(&pool.at(name));
                file.set_len(5000).unwrap();
                file.set_len(3 * MIB as u64).unwrap();
            }),
            ("renamed", |pool, name| fs::rename(pool.at(name), pool.at(format!("{name}-elsewhere"))).unwrap()),
            ("deleted", |pool, name| fs::remove_file(pool.at(name)).unwrap()),
            ("replaced", |pool, name| {
                pool.write("new", b"a new image");
                fs::rename(pool.at("new"), pool.at(name)).unwrap();
            }),
            ("made a directory", |pool, name| {
                fs::remove_file(pool.at(name)).unwrap();
                fs::create_dir(pool.at(name)).unwrap();
            }),
        ];
        for (number, (event, happen)) in events.into_iter().enumerate() {
            for side in ["source", "clone"] {
                let other = if side == "source" { "clone" } else { "source" };
                pool.write("source", &bytes);
                clone_through(pool, number, "source", "clone");
                happen(pool, side);
                assert!(pool.read(other) == bytes, "{side} {event}");
                // And what is left can be cloned and written at once.
                pool.clone(other, "again");
                writable(&pool.at(other)).write_all_at(b"x", 70_000).unwrap();
                assert!(pool.read("again") == bytes, "{side} {event}");
                for entry in fs::read_dir(pool.root()).unwrap() {
                    let path = entry.unwrap().path();
                    if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) }.unwrap();
                }
            }
        }
        wait_until(|| (pool.mounted().status().overlays, pool.mounted().status().layers) == (0, 0));
        support::clonefs([Path::new("check"), pool.root()]).success();
    });
}

#[test]
fn any_number_of_clones_of_clones_keep_their_bytes() {
    on_each_filesystem(|pool| {
        let mut bytes = noise(3, 300_000);
        pool.write("0", &bytes);
        let mut history = vec![bytes.clone()];
        for generation in 1..=40usize {
            let (source, target) = ((generation - 1).to_string(), generation.to_string());
            clone_through(pool, generation, &source, &target);
            let text = format!("generation {generation}");
            let at = generation * 7001 % 290_000;
            writable(&pool.at(&target)).write_all_at(text.as_bytes(), at as u64).unwrap();
            bytes[at..at + text.len()].copy_from_slice(text.as_bytes());
            history.push(bytes.clone());
        }
        assert_eq!(pool.info("40").depth, 40);
        for number in 0..100 {
            clone_through(pool, number, "20", &format!("leaf-{number}"));
        }
        let check = |pool: &Pool| {
            for (generation, bytes) in history.iter().enumerate() {
                assert!(pool.read(&generation.to_string()) == *bytes, "generation {generation}");
            }
            assert!((0..100).all(|number| pool.read(&format!("leaf-{number}")) == history[20]));
        };
        check(pool);
        set_xattr(pool.root(), FLUSH, b"sync").unwrap();
        pool.crash("deepen=manual");
        pool.unmount();
        pool.mount("deepen=manual");
        check(pool);
    });
}

#[test]
fn sizes_of_all_kinds_are_cloned() {
    on_each_filesystem(|pool| {
        for size in [0, 1, 4095, 4096, 4097, 65_537, MIB] {
            let bytes = noise(4, size);
            pool.write("source", &bytes);
            for door in 0..3 {
                let name = format!("clone-{size}-{door}");
                clone_through(pool, door, "source", &name);
                assert!(pool.read(&name) == bytes, "{name}");
                let file = writable(&pool.at(&name));
                file.write_all_at(b"end", size as u64 + 10).unwrap();
                let expected = [&bytes[..], &[0; 10], b"end"].concat();
                assert!(pool.read(&name) == expected && pool.read("source") == bytes, "{name}");
            }
            fs::remove_file(pool.at("source")).unwrap();
        }
        // As large as the filesystem lets a file be, nearly all of it a hole.
        let huge = File::create(pool.at("huge")).unwrap();
        huge.set_len(1 << 40).unwrap();
        huge.write_all_at(b"far out", (1 << 40) - 100).unwrap();
        drop(huge);
        for door in [0, 2] {
            let name = format!("huge-{door}");
            clone_through(pool, door, "huge", &name);
            let mut text = [0; 7];
            let clone = writable(&pool.at(&name));
            clone.read_exact_at(&mut text, (1 << 40) - 100).unwrap();
            assert_eq!(&text, b"far out");
            assert_eq!(clone.metadata().unwrap().len(), 1 << 40);
        }
        // Deepening reads no holes.
        pool.deepen("huge-0");
        assert_eq!(pool.info("huge-0").state, VolumeState::Independent);
    });
}

#[test]
fn what_was_written_before_the_daemon_was_killed_is_there_though_nobody_synced_it() {
    on_each_filesystem(|pool| {
        let mut base = noise(7, MIB);
        pool.write("base", &base);
        pool.clone("base", "vm");
        let mut vm = base.clone();
        let (of_base, of_vm) = (writable(&pool.at("base")), writable(&pool.at("vm")));
        // The last one makes both of them longer.
        for (n, at) in (0..200_u64).map(|n| (n, n * 7_919)) {
            let piece = noise(n, 100 + 50 * n as usize);
            for (file, bytes) in [(&of_base, &mut base), (&of_vm, &mut vm)] {
                let at = if std::ptr::eq(file, &of_vm) { at + 3 } else { at };
                file.write_all_at(&piece, at).unwrap();
                bytes.resize(bytes.len().max(at as usize + piece.len()), 0);
                bytes[at as usize..at as usize + piece.len()].copy_from_slice(&piece);
            }
        }
        pool.crash("deepen=manual");
        assert!(pool.read("vm") == vm, "of the clone");
        assert!(pool.read("base") == base, "of its source");
        support::clonefs([Path::new("check"), pool.root()]).success();
    });
}

#[test]
fn what_was_synced_before_the_daemon_was_killed_is_there() {
    on_each_filesystem(|pool| {
        let mut base = noise(5, MIB);
        pool.write("base", &base);
        pool.clone("base", "vm");
        let mut vm = base.clone();
        for (name, bytes, text) in [("vm", &mut vm, b"mine"), ("base", &mut base, b"base")] {
            let file = writable(&pool.at(name));
            file.write_all_at(text, 100_001).unwrap();
            bytes[100_001..100_005].copy_from_slice(text);
            // This much is promised.
            file.sync_all().unwrap();
        }
        pool.crash("deepen=manual");
        assert!(pool.read("vm") == vm && pool.read("base") == base);
        // A clone that --sync has answered for is there after a crash at once, with its name.
        run(Command::new(env!("CARGO_BIN_EXE_clonefs"))
            .args(["clone", "--sync", "vm", "new"])
            .current_dir(pool.root()))
        .success();
        pool.crash("deepen=manual");
        assert!(pool.read("new") == vm);
        support::clonefs([Path::new("check"), pool.root()]).success();
    });
}

#[test]
fn a_file_of_several_names_is_copied_and_that_is_said() {
    on(&[Backing::Ext4, Backing::Btrfs], |pool| {
        let bytes = noise(6, 200_000);
        pool.write("one", &bytes);
        fs::hard_link(pool.at("one"), pool.at("two")).unwrap();
        let clone = |words: &[&str]| {
            run(Command::new(env!("CARGO_BIN_EXE_clonefs")).arg("clone").args(words).current_dir(pool.root())).success()
        };
        let done = clone(&["--json", "one", "copy"]);
        let made: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!(made[0]["shared"], false, "{made}");
        assert!(done.stderr.contains("several names") && done.stderr.contains("one"), "{done:?}");
        assert!(pool.read("copy") == bytes);
        assert_eq!(pool.info("copy").state, VolumeState::Independent);
        // An overlay of several names is cloned like any other, and is an ordinary file when one of them is left.
        fs::remove_file(pool.at("two")).unwrap();
        clone(&["one", "vm"]);
        fs::hard_link(pool.at("vm"), pool.at("vm-link")).unwrap();
        let done = clone(&["--json", "vm-link", "vm-clone"]);
        let made: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!((&made[0]["shared"], done.stderr.as_str()), (&true.into(), ""));
        // Until then it is no ordinary file, and nobody is told that it is.
        let deepened = support::clonefs([Path::new("deepen"), Path::new("--wait"), &pool.at("vm")]);
        assert!(!deepened.status.success() && deepened.stderr.contains("several names"), "{deepened:?}");
        let info = pool.info("vm-link");
        assert_eq!((info.state, info.to_copy, info.depth), (VolumeState::Overlay, 0, 0));
        assert!(info.why.is_some_and(|why| why.contains("several names")));
        assert!(pool.read("vm-link") == bytes && fs::read(pool.below("vm")).unwrap() != bytes);
        fs::remove_file(pool.at("vm")).unwrap();
        wait_until(|| fs::read(pool.below("vm-link")).unwrap() == bytes);
        assert!(pool.read("vm-link") == bytes && pool.read("vm-clone") == bytes);
        assert_eq!(errno(fs::metadata(pool.at("vm"))), libc::ENOENT);
    });
}

/// Whoever renames over a file never leaves its name without one.
#[test]
fn a_source_that_is_replaced_all_the_time_can_be_cloned() {
    on(&[Backing::Ext4], |pool| {
        let over = AtomicBool::new(false);
        pool.write("a", &noise(1, 8192));
        pool.write("source", &noise(1, 8192));
        std::thread::scope(|scope| {
            let pool = &*pool;
            scope.spawn(|| {
                for number in 0.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    // A plain file and an overlay in turn.
                    let _ = fs::remove_file(pool.at("next"));
                    match number % 2 {
                        0 => drop(fs::copy(pool.at("a"), pool.at("next")).unwrap()),
                        _ => clone_through(pool, 2, "a", "next"),
                    }
                    fs::rename(pool.at("next"), pool.at("source")).unwrap();
                }
            });
            let mut failed = Vec::new();
            for number in 0..60 {
                let target = pool.at(format!("clone{number}"));
                let done = support::clonefs([Path::new("clone"), &pool.at("source"), &target]);
                if !done.status.success() || fs::read(&target).ok() != Some(noise(1, 8192)) {
                    failed.push(format!("{number}: {done:?}"));
                }
            }
            over.store(true, Ordering::Relaxed);
            assert!(failed.is_empty(), "{failed:#?}");
        });
    });
}

/// Files of layers in the pool.
fn layer_files(pool: &Pool) -> usize {
    fs::read_dir(pool.below(".clonefs/layers")).unwrap().count()
}

#[test]
fn a_source_that_is_written_to_has_its_next_files_before_it_writes_again() {
    on(&[Backing::Ext4], |pool| {
        let path = pool.write("source", &noise(1, MIB));
        let source = writable(&path);
        pool.clone("source", "clone-1");
        source.write_all_at(&[1; 5000], 3000).unwrap();
        let before = layer_files(pool);
        pool.clone("source", "clone-2");
        assert_eq!(layer_files(pool), before + 2, "a data file and a map for what is written next");
        pool.clone("source", "clone-3");
        assert_eq!(layer_files(pool), before + 2, "nothing was written in between");

        source.write_all_at(&[2; 5000], 30_000).unwrap();
        let refused = set_xattr(&pool.at("clone-1"), CLONE_FROM, b"source").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EEXIST));
        assert_eq!(layer_files(pool), before + 2, "what a refused clone made is gone");

        // What was made beforehand is what is written to.
        let mut expected = noise(1, MIB);
        expected[3000..8000].fill(1);
        assert_eq!(pool.read("clone-2"), expected);
        assert_eq!(pool.read("clone-3"), expected);
        expected[30_000..35_000].fill(2);
        assert_eq!(pool.read("source"), expected);
    });
}
