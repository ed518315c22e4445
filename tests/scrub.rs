//! Scrubbing, on the real mount: what a disk changes under a frozen layer is found, named, and never read.

mod support;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use clonefs::protocol::ScrubStatus;
use support::{Backing, Done, Pool, clonefs, noise, on, on_each_filesystem, run, wait_until};

const MIB: usize = 1 << 20;

fn scrub(pool: &Pool, code: i32) -> ScrubStatus {
    let done: Done = clonefs(["scrub".as_ref(), "--json".as_ref(), pool.root().as_os_str()]).code(code);
    serde_json::from_str(&done.stdout).expect("status of the scrub")
}

/// The data files of layers, below the mount.
fn layers(pool: &Pool) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(pool.below(".clonefs/layers")).expect("layers").map(|entry| entry.expect("entry").path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "data")).collect()
}

/// Turns one bit of a file over, as a bad disk does: neither size nor time of the file tell.
fn rot(path: &std::path::Path, at: u64) {
    let times = fs::metadata(path).expect("status");
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("layer");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 4], at).expect("write");
    let both = fs::FileTimes::new().set_modified(times.modified().expect("time"));
    file.set_times(both.set_accessed(times.accessed().expect("time"))).expect("times");
}

/// Two clones of a base that was written to since, so that nothing in the tree is the frozen layer.
fn lab(pool: &Pool) -> Vec<u8> {
    let bytes = noise(1, 5 * MIB + 1000);
    pool.write("base", &bytes);
    pool.clone("base", "one");
    pool.clone("base", "two");
    let base = fs::OpenOptions::new().write(true).open(pool.at("base")).expect("base");
    base.write_all_at(b"frozen", 0).expect("write");
    base.sync_all().expect("sync");
    bytes
}

#[test]
fn a_sound_pool_has_nothing_damaged() {
    on_each_filesystem(|pool| {
        let bytes = lab(pool);
        let first = scrub(pool, 0);
        assert_eq!((first.summed, first.compared, first.damaged.len()), (1, 0, 0), "{first:?}");
        let second = scrub(pool, 0);
        assert_eq!((second.summed, second.compared, second.damaged.len()), (0, 1, 0), "{second:?}");
        assert_eq!(pool.read("one"), bytes);
        pool.unmount();
        clonefs(["check".as_ref(), pool.root().as_os_str()]).success();
        pool.mount("deepen=manual");
        assert_eq!(scrub(pool, 0).compared, 1, "checksums stay over a restart");
    });
}

#[test]
fn a_changed_bit_is_found_named_and_not_read() {
    on(&[Backing::Ext4, Backing::Btrfs], |pool| {
        let bytes = lab(pool);
        scrub(pool, 0);
        let layer =
            layers(pool).into_iter().max_by_key(|path| fs::metadata(path).map_or(0, |m| m.blocks())).expect("one");
        rot(&layer, 2 * MIB as u64 + 77);
        let found = scrub(pool, 4);
        assert_eq!(found.damaged.len(), 1, "{found:?}");
        assert!(["base", "one", "two"].iter().all(|name| found.damaged[0].path.contains(name)), "{found:?}");
        let status = pool.mounted().status();
        assert!(status.troubles.iter().any(|trouble| trouble.path.contains("one")), "{status:?}");
        for remounted in [false, true] {
            if remounted {
                pool.unmount();
                pool.mount("deepen=manual");
            }
            let one = fs::File::open(pool.at("one")).expect("open");
            let mut piece = vec![0; MIB];
            one.read_exact_at(&mut piece, MIB as u64).expect("a sound piece");
            assert_eq!(piece, bytes[MIB..2 * MIB]);
            let error = one.read_exact_at(&mut piece, 2 * MIB as u64 + 4096).expect_err("a damaged piece");
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
        }
        // Deepening does not carry it on.
        let deepened = clonefs(["deepen".as_ref(), "--wait".as_ref(), pool.at("one").as_os_str()]);
        assert!(!deepened.status.success(), "{deepened:?}");
        // Restored, and looked at again, it is whole.
        rot(&layer, 2 * MIB as u64 + 77);
        assert_eq!(scrub(pool, 0).damaged.len(), 0);
        assert_eq!(pool.read("two"), bytes);
        pool.deepen("one");
        assert_eq!(pool.read("one"), bytes);
    });
}

#[test]
fn holes_and_zeros_are_the_same_and_lost_data_is_not() {
    on(&[Backing::Ext4], |pool| {
        let mut bytes = noise(2, 3 * MIB);
        bytes[MIB..2 * MIB].fill(0);
        pool.write("base", &bytes);
        pool.clone("base", "one");
        scrub(pool, 0);
        let below = pool.below("base");
        let times = fs::metadata(&below).expect("status").modified().expect("time");
        let punch = |at: u64| {
            let place = at.to_string();
            run(std::process::Command::new("fallocate").args(["-p", "-l", "4096", "-o", &place]).arg(&below)).success();
            let file = fs::OpenOptions::new().write(true).open(&below).expect("base");
            file.set_times(fs::FileTimes::new().set_modified(times)).expect("times");
        };
        punch(MIB as u64);
        assert_eq!(scrub(pool, 0).compared, 1);
        punch(8192);
        assert_eq!(scrub(pool, 4).damaged.len(), 1);
    });
}

#[test]
fn an_adopted_layer_is_not_compared_with_what_it_was() {
    on(&[Backing::Ext4], |pool| {
        lab(pool);
        scrub(pool, 0);
        for name in ["one", "two"] {
            fs::remove_file(pool.at(name)).expect("remove");
        }
        pool.deepen("base");
        // Nothing is left of the layer, when it is cleared away.
        wait_until(|| fs::read_dir(pool.below(".clonefs/layers")).expect("layers").count() == 0);
        pool.write("base", &noise(9, MIB));
        pool.clone("base", "again");
        assert_eq!(scrub(pool, 0).summed, 1);
        assert_eq!(scrub(pool, 0).compared, 1);
    });
}

#[test]
fn only_administrators_scrub() {
    on(&[Backing::Tmpfs], |pool| {
        lab(pool);
        let program = env!("CARGO_BIN_EXE_clonefs");
        let mut other = std::process::Command::new("setpriv");
        other.args(["--reuid=65534", "--regid=65534", "--clear-groups", program, "scrub"]).arg(pool.root());
        let done = run(&mut other).code(8);
        assert!(done.stderr.contains("root"), "{done:?}");
    });
}
