//! Programs that copy files, on a mount: whatever calls they use, the bytes are right; those that ask for a copy in a
//! way that a clone can answer get one.

mod support;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use clonefs::protocol::{CLONE_FROM, VolumeState};
use support::{Backing, Mapping, Pool, copy_range, noise, on, on_each_filesystem, run, set_xattr};

const MIB: usize = 1 << 20;

/// What a copy is to be.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A clone, with nothing of its own.
    Clone,
    /// The same bytes, however they got there.
    Bytes,
}
use Kind::{Bytes, Clone as Cloned};

/// Each gets the source as `$1` and a name that does not exist as `$2`.
const PROGRAMS: [(&str, Kind); 20] = [
    (r#"cp "$1" "$2""#, Cloned),
    (r#"cp -a "$1" "$2""#, Cloned),
    (r#"cp -p --reflink=auto "$1" "$2""#, Cloned),
    (r#"cp --sparse=always "$1" "$2""#, Bytes),
    (r#"cp --sparse=never "$1" "$2""#, Bytes),
    (r#"cp --reflink=never "$1" "$2""#, Bytes),
    (r#"install -m 640 "$1" "$2""#, Cloned),
    (r#"cat "$1" > "$2""#, Bytes),
    (r#"dd if="$1" of="$2" bs=1M status=none"#, Bytes),
    (r#"dd if="$1" of="$2" bs=64k oflag=direct iflag=direct status=none"#, Bytes),
    (r#"python3 -c 'import shutil,sys; shutil.copyfile(*sys.argv[1:])' "$1" "$2""#, Bytes),
    (r#"python3 -c 'import shutil,sys; shutil.copy2(*sys.argv[1:])' "$1" "$2""#, Bytes),
    (r#"rsync "$1" "$2""#, Bytes),
    (r#"rsync --inplace "$1" "$2""#, Bytes),
    (r#"rsync -aXAS "$1" "$2""#, Bytes),
    (r#"touch "$2" && rsync --inplace --no-whole-file "$1" "$2""#, Bytes),
    (r#"tar -C "${1%/*}" -cSf - "${1##*/}" | tar --transform "s,.*,${2##*/}," -C "${2%/*}" -xSf -"#, Bytes),
    (r#"qemu-img convert -f raw -O raw "$1" "$2""#, Bytes),
    (r#"qemu-img convert -C -f raw -O raw "$1" "$2""#, Cloned),
    (
        r#"qemu-img convert -f raw -O qcow2 "$1" "$2.q" && qemu-img convert -f qcow2 -O raw "$2.q" "$2" && rm "$2.q""#,
        Bytes,
    ),
];

/// A plain file without and with holes, a clone that has some blocks of its own, and one that has none.
fn sources(pool: &Pool) -> Vec<(&'static str, Vec<u8>)> {
    let full = noise(1, 3 * MIB);
    pool.write("full", &full);
    let mut holes = noise(2, MIB);
    holes.resize(6 * MIB, 0);
    holes.extend(noise(3, MIB / 2 + 512));
    let file = File::create(pool.at("holes")).unwrap();
    file.write_all_at(&holes[..MIB], 0).unwrap();
    file.write_all_at(&holes[6 * MIB..], 6 * MIB as u64).unwrap();
    pool.clone("holes", "overlay");
    let mut overlay = holes.clone();
    let own = File::options().write(true).open(pool.at("overlay")).unwrap();
    own.write_all_at(&noise(4, 200_000), 2_000_001).unwrap();
    overlay[2_000_001..2_200_001].copy_from_slice(&noise(4, 200_000));
    pool.clone("full", "fresh");
    vec![("full", full.clone()), ("holes", holes), ("overlay", overlay), ("fresh", full)]
}

#[test]
fn whatever_copies_a_file_copies_its_bytes_and_gets_a_clone_if_it_asks_for_one() {
    on_each_filesystem(|pool| {
        let sources = sources(pool);
        // The time of the last change of status moves once more, when a new clone is made durable; tar minds that.
        pool.unmount();
        pool.mount("deepen=manual");
        for (program, kind) in PROGRAMS {
            for (name, bytes) in &sources {
                let target = pool.at(format!("copy-of-{name}"));
                let mut shell = Command::new("bash");
                shell.args(["-euo", "pipefail", "-c", program, "bash"]).arg(pool.at(name)).arg(&target);
                run(&mut shell).success();
                let what = format!("{program} {name}");
                let copy = format!("copy-of-{name}");
                assert!(pool.read(&copy) == *bytes, "{what}");
                let info = pool.info(&copy);
                if kind == Kind::Clone {
                    assert_eq!(info.state, VolumeState::Overlay, "{what}: {info:?}");
                    assert!(info.unique_bytes < 100_000, "{what}: {info:?}");
                }
                // Independent of its source in any case.
                let file = File::options().write(true).open(&target).unwrap();
                file.write_all_at(b"changed", 2_000_000).unwrap();
                assert!(pool.read(name) == *bytes, "{what}");
                fs::remove_file(target).unwrap();
            }
        }
        let names = fs::read_dir(pool.root()).unwrap().count();
        assert_eq!(names, 4, "nothing else is left");
    });
}

#[test]
fn a_reflink_that_must_be_is_refused_by_cp_and_made_by_the_command() {
    on_each_filesystem(|pool| {
        pool.write("base", &noise(5, MIB));
        let mut cp = Command::new("cp");
        let done = run(cp.arg("--reflink=always").arg(pool.at("base")).arg(pool.at("copy")));
        assert_eq!(done.status.code(), Some(1), "{done:?}");
        assert!(done.stderr.contains("not supported"), "{done:?}");
        let _ = fs::remove_file(pool.at("copy"));
        pool.clone("base", "copy");
        assert_eq!(pool.info("copy").unique_bytes, 0);
    });
}

#[test]
fn du_and_df_tell_what_is_really_used() {
    on_each_filesystem(|pool| {
        let size = 24 * MIB as u64;
        pool.write("base", &noise(6, size as usize));
        File::open(pool.at("base")).unwrap().sync_all().unwrap();
        let df = |path: &std::path::Path| {
            run(Command::new("sync").arg("-f").arg(pool.disk.root())).success();
            let done = run(Command::new("stat").args(["-f", "-c", "%b %a %S"]).arg(path)).success();
            let numbers: Vec<u64> = done.stdout.split_whitespace().map(|word| word.parse().unwrap()).collect();
            (numbers[0] * numbers[2], numbers[1] * numbers[2])
        };
        let du = |name: &str| {
            let done = run(Command::new("du").args(["-B1", "-s"]).arg(pool.at(name))).success();
            done.stdout.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        let (total, free) = df(pool.root());
        assert_eq!(total, df(&pool.disk.root()).0, "df of the mount is that of the filesystem below");
        assert!(du("base") >= size && du("base") < size + size / 4, "{}", du("base"));
        for number in 0..30 {
            pool.clone("base", &format!("vm{number}"));
        }
        assert_eq!(du("vm7"), 4096, "a fresh clone has nothing of its own but its stub");
        let used = free.saturating_sub(df(pool.root()).1);
        assert!(used < size / 4, "30 clones took {used} bytes");
        let file = File::options().write(true).open(pool.at("vm7")).unwrap();
        file.write_all_at(&noise(7, 4 * MIB), 0).unwrap();
        file.sync_all().unwrap();
        drop(file);
        assert!((4 << 20..6 << 20).contains(&du("vm7")), "{}", du("vm7"));
        let info = pool.info("vm7");
        assert!((4 << 20..6 << 20).contains(&info.unique_bytes), "{info:?}");
        assert!(info.shared_bytes >= size && info.shared_bytes < size + size / 4, "{info:?}");
        let rows = run(Command::new(env!("CARGO_BIN_EXE_clonefs")).args(["list", "--json"]).arg(pool.root())).success();
        let rows: serde_json::Value = serde_json::from_str(&rows.stdout).unwrap();
        let row = rows.as_array().unwrap().iter().find(|row| row["name"] == "vm7").unwrap();
        assert_eq!(row["freed_if_deleted"], info.freed_if_deleted);
        let before = df(pool.root()).1;
        fs::remove_file(pool.at("vm7")).unwrap();
        support::wait_until(|| df(pool.root()).1 >= before + info.freed_if_deleted * 9 / 10);
        // Deepened without shared blocks, it takes what it is.
        let mut deepen = Command::new(env!("CARGO_BIN_EXE_clonefs"));
        run(deepen.args(["deepen", "--wait", "--physical"]).arg(pool.at("vm8"))).success();
        assert!(fs::metadata(pool.at("vm8")).unwrap().blocks() * 512 >= size);
        let taken = before.saturating_add(info.freed_if_deleted).saturating_sub(df(pool.root()).1);
        assert!(taken > size * 3 / 4, "{taken}");
    });
}

/// A sparse file in the pool, a directory, and ways that lead out of the mount, all taken away when this is dropped.
struct Ways {
    bytes: Vec<u8>,
    outside: tempfile::TempDir,
    /// The pool, mounted at another place too.
    again: tempfile::TempDir,
    mounted: Vec<PathBuf>,
}

impl Ways {
    fn new(pool: &Pool) -> Ways {
        let mut bytes = noise(9, 100_000);
        bytes.resize(64 * MIB, 0);
        bytes.extend(noise(10, 100_000));
        let file = File::create(pool.at("sparse")).unwrap();
        file.write_all_at(&bytes[..100_000], 0).unwrap();
        file.write_all_at(&bytes[64 * MIB..], 64 * MIB as u64).unwrap();
        file.sync_all().unwrap();
        let dir = || tempfile::TempDir::new().unwrap();
        let mut ways = Ways { bytes, outside: dir(), again: dir(), mounted: Vec::new() };
        for name in ["dir", "nested", "dir/linked"] {
            fs::create_dir(pool.at(name)).unwrap();
        }
        symlink(ways.outside.path(), pool.at("link")).unwrap();
        symlink(ways.outside.path().join("copy"), pool.at("file")).unwrap();
        symlink(ways.outside.path().join("copy"), pool.at("dir/linked/sparse")).unwrap();
        let (outside, again) = (ways.outside.path().to_owned(), ways.again.path().to_owned());
        ways.bind(&outside, pool.at("nested"));
        ways.bind(pool.root(), again);
        ways
    }

    fn bind(&mut self, what: &Path, place: PathBuf) {
        run(Command::new("mount").arg("--bind").arg(what).arg(&place)).success();
        self.mounted.push(place);
    }

    /// Runs a command in the root of the pool.
    fn copy(&self, pool: &Pool, command: &str) {
        let mut shell = Command::new("bash");
        shell.args(["-euc", command]).current_dir(pool.root()).env("POOL", pool.root());
        run(shell.env("OUT", self.outside.path()).env("AGAIN", self.again.path())).success();
    }
}

impl Drop for Ways {
    fn drop(&mut self) {
        for place in self.mounted.iter().rev() {
            run(Command::new("umount").arg("-l").arg(place));
        }
    }
}

/// As from any other filesystem: what is told to a cp that may make a clone must not reach one that cannot.
#[test]
fn a_copy_out_of_the_mount_keeps_its_holes_whatever_names_the_destination() {
    const COMMANDS: [&str; 27] = [
        r#"cp sparse "$OUT/copy""#,
        r#"cp -a sparse "$OUT""#,
        r#"cp -t "$OUT" sparse"#,
        r#"cp -at "$OUT" sparse"#,
        r#"cp -at"$OUT" "$POOL/sparse""#,
        r#"cp --target-directory="$OUT" sparse"#,
        r#"cp --target-dir="$OUT" sparse"#,
        r#"cp --target-dir "$OUT" sparse"#,
        r#"cp sparse -t "$OUT""#,
        r#"cp --parents sparse "$OUT""#,
        r#"cp sparse link/copy"#,
        r#"cp sparse link"#,
        r#"cp -T sparse link/copy"#,
        r#"cp sparse dir/../link/copy"#,
        r#"cd dir; cp ../sparse ../link/copy"#,
        r#"cd link; cp "$POOL/sparse" copy"#,
        r#"cd "$OUT"; cp "$POOL/sparse" ."#,
        r#": >"$OUT/copy"; cp sparse file"#,
        r#": >"$OUT/copy"; cp sparse dir/linked"#,
        r#": >"$OUT/copy"; ln sparse twin; ln -s "$OUT/copy" dir/twin; cp sparse twin dir; rm twin dir/twin dir/sparse"#,
        r#": >"$OUT/copy"; ln -s sparse soft; ln -s "$OUT/copy" dir/soft; cp sparse soft dir; rm soft dir/soft dir/sparse"#,
        r#"cp sparse nested/copy"#,
        r#"cd nested; cp "$POOL/sparse" copy"#,
        r#"cp "$AGAIN/sparse" "$OUT/copy""#,
        r#"install sparse "$OUT/copy""#,
        r#"install -t "$OUT" sparse"#,
        r#"unshare -m bash -euc 'mount --bind "$OUT" dir; cp sparse dir/copy'"#,
    ];
    on(&[Backing::Ext4, Backing::Xfs], |pool| {
        let ways = Ways::new(pool);
        let mut dense = Vec::new();
        for command in COMMANDS {
            ways.copy(pool, command);
            let mut copies: Vec<_> = fs::read_dir(ways.outside.path()).unwrap().map(|e| e.unwrap().path()).collect();
            let copy = copies.pop().unwrap_or_else(|| panic!("{command}: no copy"));
            assert!(fs::read(&copy).unwrap() == ways.bytes && copies.is_empty(), "{command}");
            if fs::metadata(&copy).unwrap().blocks() * 512 > 8 * MIB as u64 {
                dense.push(command);
            }
            fs::remove_file(copy).unwrap();
        }
        assert!(dense.is_empty(), "copies without holes: {dense:#?}");
    });
}

#[test]
fn a_copy_of_a_sparse_file_within_the_mount_is_a_clone_where_that_is_certain() {
    const COMMANDS: [(&str, &str); 16] = [
        (r#"cp sparse copy"#, "copy"),
        (r#"cp "$POOL/sparse" "$POOL/copy""#, "copy"),
        (r#"cp -p --preserve=mode --sparse=auto --reflink=auto sparse copy"#, "copy"),
        (r#"cp -T ./sparse dir/copy"#, "dir/copy"),
        (r#"cp sparse dir"#, "dir/sparse"),
        (r#"cp -a sparse dir/"#, "dir/sparse"),
        (r#"cp -at dir sparse"#, "dir/sparse"),
        (r#"cp --target-directory=dir/../dir sparse"#, "dir/sparse"),
        (r#"cp -t "$POOL/dir" -- sparse"#, "dir/sparse"),
        (r#": >other; cp other sparse dir; rm other dir/other"#, "dir/sparse"),
        (r#": >copy; cp sparse copy"#, "copy"),
        (r#"cd dir; cp ../sparse copy"#, "dir/copy"),
        (r#"cd /; cp "$POOL/sparse" "${POOL#/}/copy""#, "copy"),
        (r#"cp sparse "$AGAIN/copy""#, "copy"),
        (r#"install -m 600 sparse copy"#, "copy"),
        (r#"install -t dir sparse"#, "dir/sparse"),
    ];
    on(&[Backing::Ext4, Backing::Xfs], |pool| {
        let ways = Ways::new(pool);
        for (command, copy) in COMMANDS {
            ways.copy(pool, command);
            let info = pool.info(copy);
            assert_eq!(info.state, VolumeState::Overlay, "{command}: {info:?}");
            assert!(info.unique_bytes < 100_000 && pool.read(copy) == ways.bytes, "{command}: {info:?}");
            fs::remove_file(pool.at(copy)).unwrap();
        }
    });
}

const SIZE: u64 = 8 * MIB as u64;

/// A new file that has a size and no data, and the bytes of the source copied to its beginning.
fn copy_into_zeros(pool: &Pool, source: &File, name: &str, before: impl FnOnce(&File)) -> std::io::Result<isize> {
    let file = File::options().read(true).write(true).create_new(true).open(pool.at(name))?;
    file.set_len(SIZE)?;
    file.sync_all()?;
    before(&file);
    copy_range((source.as_raw_fd(), 0), (file.as_raw_fd(), 0), MIB)
}

#[test]
fn a_copy_into_a_file_of_zeros_leaves_its_size_and_what_is_stored_beside_it() {
    on(&[Backing::Ext4, Backing::Xfs, Backing::Btrfs], |pool| {
        let bytes = noise(11, MIB);
        let source = File::open(pool.write("source", &bytes)).unwrap();
        for round in 0..20 {
            let name = format!("file-{round}");
            let (path, done, mapped) = (pool.at(&name), AtomicBool::new(false), Barrier::new(2));
            let stored = thread::scope(|scope| {
                let mut threads = None;
                let copied = copy_into_zeros(pool, &source, &name, |file| {
                    let (path, done, mapped) = (&path, &done, &mapped);
                    let file = file.try_clone().unwrap();
                    let looks = scope.spawn(move || {
                        while !done.load(Ordering::Relaxed) {
                            assert_eq!(fs::metadata(path).unwrap().len(), SIZE);
                        }
                    });
                    let stores = scope.spawn(move || {
                        let mut mapping = Mapping::new(&file, SIZE as usize).unwrap();
                        mapped.wait();
                        let places = (2 * MIB..SIZE as usize).step_by(4096);
                        let stored = places.take_while(|at| {
                            mapping.bytes()[*at] = 7;
                            !done.load(Ordering::Relaxed)
                        });
                        // The last one, at which it ended, was stored as well.
                        stored.last().unwrap_or(MIB)
                    });
                    mapped.wait();
                    threads = Some((looks, stores));
                });
                done.store(true, Ordering::Relaxed);
                assert_eq!(copied.unwrap(), MIB as isize);
                let (looks, stores) = threads.unwrap();
                looks.join().unwrap();
                stores.join().unwrap()
            });
            File::open(&path).unwrap().sync_all().unwrap();
            let now = pool.read(&name);
            assert!(now.len() as u64 == SIZE && now[..MIB] == bytes, "{name}");
            assert!((2 * MIB..=stored).step_by(4096).all(|at| now[at] == 7), "{name}: a store is lost");
            assert!(now[MIB..].iter().all(|byte| [0, 7].contains(byte)), "{name}");
            fs::remove_file(path).unwrap();
        }
    });
}

#[test]
fn a_kill_in_a_copy_into_a_file_of_zeros_leaves_zeros_or_the_copy() {
    on(&[Backing::Ext4, Backing::Xfs, Backing::Btrfs], |pool| {
        let bytes = noise(12, MIB);
        drop(File::create(pool.at("source")).unwrap().write_all_at(&bytes, 0));
        for round in 0..4u64 {
            let mut made = Vec::new();
            thread::scope(|scope| {
                let pool = &*pool;
                let copies = scope.spawn(move || {
                    let source = File::open(pool.at("source")).unwrap();
                    let mut made = Vec::new();
                    loop {
                        let name = format!("file-{round}-{}", made.len());
                        let mut there = false;
                        let copied = copy_into_zeros(pool, &source, &name, |_| there = true);
                        made.extend(there.then_some(name));
                        if copied.is_err() {
                            return made;
                        }
                    }
                });
                thread::sleep(Duration::from_millis(100 + 7 * round));
                pool.mounted().kill();
                made = copies.join().unwrap();
            });
            assert!(!made.is_empty());
            pool.forget_mount();
            pool.mount("deepen=manual");
            for name in made {
                let now = pool.read(&name);
                assert_eq!(now.len() as u64, SIZE, "{name}");
                let zeros = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
                let mut blocks = now.chunks(4096).zip(bytes.chunks(4096));
                assert!(blocks.all(|(now, copy)| zeros(now) || now == copy) && zeros(&now[MIB..]), "{name}");
                fs::remove_file(pool.at(name)).unwrap();
            }
        }
    });
}

#[test]
fn a_file_that_becomes_a_clone_is_modified_at_that_moment() {
    on_each_filesystem(|pool| {
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let source = File::open(pool.write("source", &noise(13, MIB))).unwrap();
        let begun = SystemTime::now() - Duration::from_secs(1);
        for name in ["by-copy", "by-name"] {
            let file = File::create(pool.at(name)).unwrap();
            file.set_modified(old).unwrap();
            if name == "by-copy" {
                assert_eq!(copy_range((source.as_raw_fd(), 0), (file.as_raw_fd(), 0), MIB).unwrap(), MIB as isize);
            } else {
                set_xattr(&pool.at(name), CLONE_FROM, b"source").unwrap();
            }
            assert_eq!(pool.info(name).state, VolumeState::Overlay);
            assert!(file.metadata().unwrap().modified().unwrap() >= begun, "{name}");
        }
        drop(source);
        pool.unmount();
        pool.mount("deepen=manual");
        for name in ["by-copy", "by-name"] {
            assert!(fs::metadata(pool.at(name)).unwrap().modified().unwrap() >= begun, "{name}");
        }
    });
}
