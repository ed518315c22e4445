//! `clonecp` and cp on real filesystems: clones by FICLONE, holes, full disks, other filesystems on the way, and
//! filesystems that cannot keep what they are given.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use support::mounts::{Mounted, done};
use support::{Call, compare_all_in, program, run, tree, zoo};

const MIB: u64 = 1 << 20;

/// Bytes that do not compress and that no two places share.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state >> 11).to_le_bytes()[..4]);
    }
    bytes.truncate(length);
    bytes
}

/// Bytes in use on the filesystem of `path`, when everything is written.
fn used(path: &Path) -> u64 {
    rustix::fs::syncfs(File::open(path).expect("open")).expect("sync");
    let stat = rustix::fs::statvfs(path).expect("statvfs");
    (stat.f_blocks - stat.f_bfree) * stat.f_frsize
}

/// Runs `clonecp` in `directory`.
fn clonecp(directory: &Path, line: &str) -> support::Result {
    run(program(), directory, &Call::line(line))
}

#[track_caller]
fn succeeds(directory: &Path, line: &str) {
    let result = clonecp(directory, line);
    assert_eq!((result.status, result.stderr.as_str()), (Some(0), ""), "{line}");
}

#[test]
fn clones_share_their_blocks_where_the_filesystem_can() {
    for kind in ["xfs", "btrfs"] {
        let Some(mounted) = Mounted::new("clones by FICLONE", kind, "") else { continue };
        let at = &mounted.path;
        let bytes = noise(64 << 20, 1);
        fs::write(at.join("base"), &bytes).expect("base");
        fs::write(at.join("there"), "something else, which goes").expect("there");
        support::open_up(&at.join("there"), 0o604);
        let inode = fs::metadata(at.join("there")).expect("stat").ino();
        let before = used(at);
        for line in [
            "--reflink=always base always",
            "base default",
            "-a base archive",
            "--reflink=always base there",
            "--sparse=always base sparse",
        ] {
            succeeds(at, line);
        }
        assert!(used(at) < before + 4 * MIB, "{kind}: five clones took {} bytes", used(at) - before);
        for name in ["always", "default", "archive", "there", "sparse"] {
            assert!(fs::read(at.join(name)).expect("read") == bytes, "{kind}: {name} differs");
        }
        let there = fs::metadata(at.join("there")).expect("stat");
        assert_eq!((there.ino(), there.mode() & 0o7777), (inode, 0o604), "{kind}: overwritten in place");
        succeeds(at, "--reflink=never base never");
        assert!(used(at) >= before + 63 * MIB, "{kind}: --reflink=never shared blocks");
        // Neither side sees what the other writes.
        let write = |name: &str, text: &[u8]| {
            File::options().write(true).open(at.join(name)).and_then(|f| f.write_all_at(text, 5)).expect(name);
        };
        write("always", b"clone");
        write("base", b"source");
        let start = |name: &str| fs::read(at.join(name)).expect(name)[..16].to_vec();
        assert_eq!(start("always")[5..10], *b"clone");
        assert_eq!(start("base")[5..11], *b"source");
        assert_eq!(start("default"), bytes[..16]);
    }
}

#[test]
fn no_clone_leaves_nothing_behind() {
    let Some(ext4) = Mounted::new("no clone", "ext4", "") else { return };
    let at = &ext4.path;
    zoo::build(at);
    let before = tree::look(at);
    for (line, message) in [
        ("--reflink=always b new", "cp: failed to clone 'new' from 'b': Operation not supported\n"),
        ("--reflink -av b new", "cp: failed to clone 'new' from 'b': Operation not supported\n"),
        ("--reflink=always b e", "cp: failed to clone 'e/b' from 'b': Operation not supported\n"),
        ("--reflink=always b dang", "cp: not writing through dangling symlink 'dang'\n"),
        ("--reflink=always -b b ro", "cp: failed to clone 'ro' from 'b': Operation not supported\n"),
    ] {
        let result = clonecp(at, line);
        assert_eq!((result.status, result.stderr.as_str()), (Some(1), message), "{line}");
        let left = tree::differences(&before, &tree::look(at));
        // Making and removing changes the directory's time, and a backup its name for a while.
        let other: Vec<_> = left.iter().filter(|d| d.contains("only with") || d.contains("contents")).collect();
        assert!(other.is_empty(), "{line}: {other:?}");
    }
    // What was there is emptied, as cp does it.
    assert_eq!(clonecp(at, "--reflink=always b a").status, Some(1));
    assert_eq!(fs::metadata(at.join("a")).expect("stat").len(), 0);
    // Directories are not cloned, and stay.
    let result = clonecp(at, "-r --reflink=always d new");
    assert_eq!(result.status, Some(1));
    assert!(at.join("new/sub/deep").is_dir() && !at.join("new/f").exists(), "{result:?}");
    assert!(at.join("new/l").is_symlink(), "{result:?}");
}

#[test]
fn clones_do_not_cross_filesystems_and_copies_do() {
    let (Some(xfs), Some(btrfs)) = (Mounted::new("crossing", "xfs", ""), Mounted::new("crossing", "btrfs", "")) else {
        return;
    };
    let bytes = noise(3_000_001, 2);
    fs::write(xfs.path.join("a"), &bytes).expect("a");
    let copy = btrfs.path.join("b");
    let (from, to) = (xfs.path.join("a").display().to_string(), copy.display().to_string());
    let result = clonecp(&xfs.path, &format!("--reflink=always {from} {to}"));
    let message = format!("cp: failed to clone '{to}' from '{from}': Invalid cross-device link\n");
    assert_eq!((result.status, result.stderr), (Some(1), message));
    assert!(!copy.exists());
    succeeds(&xfs.path, &format!("-a {from} {to}"));
    assert!(fs::read(&copy).expect("b") == bytes);
}

#[test]
fn trees_are_copied_as_cp_copies_them_on_every_filesystem() {
    // Not a directory into itself: how far that gets depends on the order of inodes.
    let lines = [
        "-a d new",
        "-av d t",
        "-r d new",
        "-rp -L d new",
        "-a x y su holes e",
        "--sparse=always holes new",
        "--sparse=never holes new",
        "--reflink=never holes new",
        "-a --sparse=always holes new",
        "holes b",
        "-p y x",
        "-a d/sub/deep new",
        "-ab -v d/f ro x t",
        "--preserve=all -r d new",
        "-a --no-preserve=mode d new",
        "--parents -a d/sub/deep/i e",
        "-al d new",
        "-a p so null e",
        "--attributes-only -p x b",
        "-u a b t",
        "-rf --remove-destination d t",
        "-p ro su b t",
    ];
    for kind in ["ext4", "xfs", "btrfs"] {
        // Of two names of one file, the one copied first keeps its time of access and the reading changes the other's:
        // which one that is depends on the order of inodes, so reading changes nothing here.
        let Some(mounted) = Mounted::new("trees", kind, "noatime") else { continue };
        let mut calls: Vec<Call> = lines.iter().map(|line| Call::line(line)).collect();
        calls.extend(lines.iter().map(|line| Call { as_nobody: true, ..Call::line(line) }));
        compare_all_in(&mounted.path, &format!("trees on {kind}"), &calls, &|at| zoo::build(at));
    }
}

#[test]
fn what_cannot_be_kept_is_told_as_cp_tells_it() {
    // Neither extended attributes nor ACLs.
    let Some(ramfs) = Mounted::new("nothing kept", "ramfs", "") else { return };
    let to = |line: &str| line.replace('@', &ramfs.path.display().to_string());
    let lines = [
        "-a x @/1",
        "-a y @/2",
        "-p y @/3",
        "--preserve=xattr x @/4",
        "--preserve=all x @/5",
        "--preserve=all,xattr x @/6",
        "-a --preserve=xattr x @/7",
        "-a --attributes-only x @/8",
        "--attributes-only --preserve=xattr x @/9",
        "-r d @/10",
        "-a d @/11",
        "--preserve=mode y @/12",
        "--preserve=xattr empty @/13",
        "-a --preserve=xattr d @/14",
        "--parents -a d/sub/deep/i @",
    ];
    for line in lines {
        let line = to(line);
        let clear = || {
            for entry in fs::read_dir(&ramfs.path).expect("list").flatten() {
                let path = entry.path();
                if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("remove");
            }
        };
        let found = support::difference(&Call::line(&line), &|at| {
            clear();
            zoo::build(at);
        });
        assert_eq!(found, None);
        clear();
    }
}

#[test]
fn a_full_disk_is_told_as_cp_tells_it() {
    let Some(small) = Mounted::new("full disk", "tmpfs", "size=200k") else { return };
    let Some(large) = Mounted::new("full disk", "tmpfs", "size=4m") else { return };
    fs::write(large.path.join("big"), noise(900_000, 3)).expect("big");
    fs::create_dir(large.path.join("d")).expect("d");
    for n in 0..5 {
        fs::write(large.path.join(format!("d/{n}")), noise(90_000, n)).expect("d");
    }
    let cp = Path::new("cp");
    for options in ["", "--reflink=never", "--sparse=always", "-a", "-r"] {
        for source in ["big", "d"] {
            let line = format!("{options} {source} {}", small.path.display());
            let results = [cp, program()].map(|program| {
                let result = run(program, &large.path, &Call::line(&line));
                for entry in fs::read_dir(&small.path).expect("list").flatten() {
                    let path = entry.path();
                    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("remove");
                }
                result
            });
            assert_eq!(results[0], results[1], "{line}");
            assert!(source == "d" || results[0].status == Some(1), "{line} had room");
        }
    }
}

#[test]
fn one_filesystem_means_one_filesystem() {
    let Some(outer) = Mounted::new("one filesystem", "tmpfs", "") else { return };
    let build = |at: &Path| {
        fs::create_dir_all(at.join("tree/other")).expect("mkdir");
        fs::write(at.join("tree/file"), "on this one").expect("file");
        done(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(at.join("tree/other"))).expect("mount");
        fs::write(at.join("tree/other/file"), "on the other one").expect("file");
    };
    let outcome = |program: &Path, line: &str| {
        let work = outer.path.join("w");
        fs::create_dir(&work).expect("mkdir");
        build(&work);
        let result = run(program, &work, &Call::line(line));
        let seen = tree::look(&work.join("new"));
        let unmounted = done(Command::new("umount").arg(work.join("tree/other")));
        unmounted.and_then(|_| fs::remove_dir_all(&work).map_err(|e| e.to_string())).expect("clean up");
        (result, seen)
    };
    for line in ["-rx tree new", "-axv tree new", "-r tree new", "-rxL tree new"] {
        let ((their, their_tree), (our, our_tree)) = (outcome(Path::new("cp"), line), outcome(program(), line));
        assert_eq!(their, our, "{line}");
        // Directories are as new as the mount that was made for each of the two.
        assert!(their_tree.keys().eq(our_tree.keys()), "{line}: {:?} {:?}", their_tree.keys(), our_tree.keys());
        assert_eq!(our_tree.contains_key(Path::new("other/file")), !line.contains('x'), "{line}");
    }
}

#[test]
fn holes_stay_holes_and_no_byte_is_lost() {
    for kind in ["ext4", "xfs", "btrfs", "tmpfs"] {
        let Some(mounted) = Mounted::new("holes", kind, "") else { continue };
        let at = &mounted.path;
        let file = File::create(at.join("image")).expect("image");
        // Data, data with zeros in it, odd places and ends, zeros that take room.
        let pieces: [(u64, usize); 7] = [
            (0, 1),
            (70_001, 9_999),
            (3 * MIB - 5, 11),
            (8 * MIB, 3 << 20),
            (20 * MIB, 4096),
            (40 * MIB + 4095, 2),
            (60 * MIB - 1, 1),
        ];
        for (n, (place, length)) in pieces.into_iter().enumerate() {
            file.write_all_at(&noise(length, n as u64 + 10), place).expect("write");
        }
        file.write_all_at(&vec![0; 1 << 20], 30 * MIB).expect("write");
        file.set_len(64 * MIB + 123).expect("size");
        file.sync_all().expect("sync");
        let bytes = fs::read(at.join("image")).expect("read");
        let room = |name: &str| {
            File::open(at.join(name)).and_then(|f| f.sync_all()).expect("sync");
            fs::metadata(at.join(name)).expect("stat").blocks() * 512
        };
        for (n, options) in [
            "",
            "--reflink=never",
            "--sparse=always",
            "--reflink=never --sparse=always",
            "--sparse=never",
            "-a --reflink=never",
        ]
        .iter()
        .enumerate()
        {
            let name = format!("copy{n}");
            succeeds(at, &format!("{options} image {name}"));
            assert!(fs::read(at.join(&name)).expect("read") == bytes, "{kind}: {options}: contents");
            let (own, source) = (room(&name), room("image"));
            if options.contains("never --sparse=always") || *options == "-a --reflink=never" {
                assert!(own < source, "{kind}: {options}: {own} bytes for the copy, {source} for the source");
            }
            if *options == "--sparse=never" && matches!(kind, "ext4" | "tmpfs") {
                assert!(own >= 64 * MIB, "{kind}: {options}: holes in {own} bytes");
            }
            // Over something longer, in place.
            fs::write(at.join("longer"), noise(65 << 20, 99)).expect("longer");
            succeeds(at, &format!("{options} image longer"));
            assert!(fs::read(at.join("longer")).expect("read") == bytes, "{kind}: {options}: over a longer file");
            fs::remove_file(at.join(&name)).and_then(|()| fs::remove_file(at.join("longer"))).expect("remove");
        }
    }
}

#[test]
fn a_file_of_many_extents_is_copied_whole() {
    let Some(mounted) = Mounted::new("extents", "ext4", "") else { return };
    let at = &mounted.path;
    let file = File::create(at.join("image")).expect("image");
    for n in 0..20_000u64 {
        file.write_all_at(&n.to_le_bytes(), n * 12_288 + n % 8192).expect("write");
    }
    file.sync_all().expect("sync");
    for options in ["", "--sparse=always", "--sparse=never --reflink=never"] {
        succeeds(at, &format!("{options} image copy"));
        let same = done(Command::new("cmp").arg(at.join("image")).arg(at.join("copy")));
        assert_eq!(same, Ok(String::new()), "{options}");
    }
}

#[test]
fn a_directory_copied_into_itself_ends() {
    let directory = support::scratch();
    for order in 0..12 {
        let at = directory.path().join(format!("w{order}"));
        fs::create_dir(&at).expect("mkdir");
        // The order of inodes decides which directory is made first.
        let names = ["e", "d", "f"];
        let rotated = (0..3).map(|n| names[(n + order) % 3]);
        for name in rotated {
            fs::create_dir(at.join(name)).expect("mkdir");
            fs::write(at.join(name).join("file"), name).expect("file");
        }
        if order % 2 == 1 {
            fs::create_dir(at.join("e/e")).expect("mkdir");
        }
        if order >= 6 {
            fs::create_dir_all(at.join("e/d/e")).expect("mkdir");
        }
        let result = clonecp(&at, "-r . e");
        assert_eq!(result.status, Some(1), "{order}");
        assert!(
            result.stderr.ends_with("into itself, 'e/.'\n") && result.stderr.lines().count() == 1,
            "{order}: {result:?}"
        );
        assert!(tree::look(&at).len() < 40, "{order}: {:?}", tree::look(&at).keys());
    }
}
