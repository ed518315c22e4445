//! Programs that copy files, on a mount: whatever calls they use, the bytes are right; those that ask for a copy in a
//! way that a clone can answer get one.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use clonefs::protocol::VolumeState;
use support::{Pool, noise, on_each_filesystem, run};

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
