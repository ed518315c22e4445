//! Copies that become clones: cp and its kin, copy_file_range, and the blocks that a file shows to those.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::Command;

use crate::support::{Backing, Pool, copy_range, errno, noise, on, on_each_filesystem, run};
use crate::{is_overlay, read_write};

/// A sparse image: data, a hole, data.
fn sparse_image(pool: &Pool, name: &str) -> Vec<u8> {
    let mut bytes = noise(9, 200_000);
    bytes.resize(8 << 20, 0);
    bytes.extend(noise(10, 100_000));
    let file = File::create(pool.at(name)).unwrap();
    file.write_all_at(&bytes[..200_000], 0).unwrap();
    file.write_all_at(&bytes[8 << 20..], 8 << 20).unwrap();
    file.sync_all().unwrap();
    bytes
}

#[test]
fn cp_and_its_kin_make_clones_of_sparse_and_full_files() {
    on_each_filesystem(|pool| {
        pool.write("full", &noise(1, 3 << 20));
        let sparse = sparse_image(pool, "sparse");
        for (source, bytes) in [("full", noise(1, 3 << 20)), ("sparse", sparse)] {
            let path = pool.at(source);
            let commands: [(&str, Vec<&str>); 5] = [
                ("cp", vec!["cp"]),
                ("cp-a", vec!["cp", "-a"]),
                ("install", vec!["install", "-m", "600"]),
                ("cat", vec!["sh", "-c", "cat \"$1\" > \"$2\"", "sh"]),
                ("python", vec!["python3", "-c", COPY_IN_PYTHON]),
            ];
            for (name, command) in commands {
                let target = format!("{source}-{name}");
                run(Command::new(command[0]).args(&command[1..]).arg(&path).arg(pool.at(&target))).success();
                assert!(pool.read(&target) == bytes, "{target}");
                assert!(is_overlay(pool, &target), "{target} is {:?}", pool.info(&target));
            }
        }
    });
}

/// A range that ends beyond the source's own source, where the source shows zeros.
#[test]
fn a_copied_range_of_a_larger_clone_is_sound() {
    on(&[Backing::Ext4, Backing::Xfs, Backing::Btrfs], |pool| {
        let mut bytes = noise(4, 4 << 20);
        pool.write("base", &bytes);
        bytes.resize(8 << 20, 0);
        let (base, large) = (pool.at("base"), pool.at("large"));
        run(Command::new(env!("CARGO_BIN_EXE_clonefs")).args(["clone", "--size", "8M"]).arg(&base).arg(&large))
            .success();
        let (source, range) = (File::open(&large).unwrap(), read_write(&pool.write("range", b"")));
        let mut done = 0;
        while done < 6 << 20 {
            let (from, to) = ((source.as_raw_fd(), done), (range.as_raw_fd(), done));
            done += copy_range(from, to, (6 << 20) - done as usize).unwrap() as i64;
        }
        pool.clone("range", "copy");
        for name in ["range", "copy"] {
            assert!(pool.read(name) == bytes[..6 << 20], "{name}");
        }
        assert!(is_overlay(pool, "range"));
        drop((source, range));
        pool.unmount();
        run(Command::new(env!("CARGO_BIN_EXE_clonefs")).arg("check").arg(pool.root())).success();
        pool.mount("deepen=manual");
        for name in ["range", "copy"] {
            assert!(pool.read(name) == bytes[..6 << 20], "{name}");
        }
    });
}

const COPY_IN_PYTHON: &str = "import os,sys
with open(sys.argv[1],'rb') as a, open(sys.argv[2],'wb') as b:
    while os.copy_file_range(a.fileno(), b.fileno(), 1 << 40): pass";

#[test]
fn blocks_are_honest_for_all_but_a_cp_that_copies() {
    on(&[Backing::Ext4, Backing::Xfs], |pool| {
        // Written without a daemon, which would close it, and free what was allocated in advance, a moment later.
        pool.unmount();
        sparse_image(pool, "sparse");
        pool.mount("deepen=manual");
        let path = pool.at("sparse");
        let honest = fs::metadata(pool.below("sparse")).unwrap().blocks();
        assert!(honest * 512 < 8 << 20);
        assert_eq!(fs::metadata(&path).unwrap().blocks(), honest);
        // A program that has it open, by whatever flags, sees the truth, unless it is called cp or install.
        for flags in [0, libc::O_NONBLOCK] {
            let file = OpenOptions::new().read(true).custom_flags(flags).open(&path).unwrap();
            assert_eq!(file.metadata().unwrap().blocks(), honest);
        }
        run(Command::new("cp").arg(&path).arg(pool.at("copy"))).success();
        assert_eq!(fs::metadata(&path).unwrap().blocks(), honest, "what cp saw is kept for nobody else");
        // The clone has nothing of its own yet but its stub.
        assert_eq!(fs::metadata(pool.at("copy")).unwrap().blocks(), 8);
        // du called cp, which opens nothing, sees the truth too.
        let fake = tempfile::TempDir::new().unwrap();
        let du = fake.path().join("cp");
        fs::copy("/usr/bin/stat", &du).unwrap();
        let done = run(Command::new(&du).args(["-c", "%b"]).arg(&path)).success();
        assert_eq!(done.stdout.trim(), honest.to_string());
        // A copy that leaves the mount keeps its holes.
        let outside = fake.path().join("outside");
        run(Command::new("cp").arg(&path).arg(&outside)).success();
        assert!(fs::read(&outside).unwrap() == pool.read("sparse"));
        assert!(fs::metadata(&outside).unwrap().blocks() * 512 < 8 << 20);
    });
}

#[test]
fn ranges_are_copied_as_they_are_asked_for() {
    on_each_filesystem(|pool| {
        let bytes = noise(1, 1 << 20);
        pool.write("source", &bytes);
        let source = File::open(pool.at("source")).unwrap();
        // Into the middle of a file that has other bytes, at odd offsets, over the end of the source.
        let other = noise(2, 600_000);
        pool.write("target", &other);
        let target = read_write(&pool.at("target"));
        let mut expected = other;
        for (from, to, len) in [(0, 0, 4096), (1000, 3, 70_001), (8192, 131_072, 65_536), (1 << 19, 500_001, 1 << 20)] {
            let mut done = 0;
            while done < len {
                let (from, to) = ((source.as_raw_fd(), from + done), (target.as_raw_fd(), to + done));
                match copy_range(from, to, (len - done) as usize).unwrap() {
                    0 => break,
                    copied => done += copied as i64,
                }
            }
            let end = (to + done) as usize;
            expected.resize(expected.len().max(end), 0);
            expected[to as usize..end].copy_from_slice(&bytes[from as usize..(from + done) as usize]);
            assert!(pool.read("target") == expected, "{from} {to} {len}");
        }
        // Within one file.
        let both = read_write(&pool.at("target"));
        assert_eq!(copy_range((both.as_raw_fd(), 0), (both.as_raw_fd(), 300_000), 10_000).unwrap(), 10_000);
        expected.copy_within(0..10_000, 300_000);
        assert!(pool.read("target") == expected);
        assert_eq!(errno(copy_range((both.as_raw_fd(), 0), (both.as_raw_fd(), 5), 100)), libc::EINVAL);
        // Not through a handle that cannot write.
        assert_eq!(errno(copy_range((both.as_raw_fd(), 0), (source.as_raw_fd(), 0), 100)), libc::EBADF);
    });
}
