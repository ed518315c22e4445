//! `clonefs diff`, against a comparison byte by byte.

mod support;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use support::{Backing, Pool, as_user, clonefs, errno, get_xattr, noise, on, on_each_filesystem};

const BLOCK: usize = 4096;

/// A small generator, the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn place(pool: &Pool, name: &str) -> PathBuf {
    if name.contains('@') { pool.at(".snapshots").join(name) } else { pool.at(name) }
}

fn diff(pool: &Pool, one: &str, other: &str, more: &[&str]) -> serde_json::Value {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_clonefs"));
    command.args(["diff", "--json", one, other]).args(more).current_dir(pool.root());
    serde_json::from_str(&support::run(&mut command).success().stdout).unwrap()
}

fn extents(value: &serde_json::Value) -> Vec<(u64, u64)> {
    let number = |extent: &serde_json::Value, name: &str| extent[name].as_u64().unwrap();
    value["extents"].as_array().unwrap().iter().map(|e| (number(e, "offset"), number(e, "length"))).collect()
}

/// Blocks that differ, found by reading everything.
fn by_reading(pool: &Pool, one: &str, other: &str) -> Vec<(u64, u64)> {
    let (mut a, mut b) = (fs::read(place(pool, one)).unwrap(), fs::read(place(pool, other)).unwrap());
    let end = a.len().max(b.len());
    a.resize(end, 0);
    b.resize(end, 0);
    let mut found: Vec<(u64, u64)> = Vec::new();
    for (n, (x, y)) in a.chunks(BLOCK).zip(b.chunks(BLOCK)).enumerate() {
        let (offset, len) = ((n * BLOCK) as u64, x.len() as u64);
        match found.last_mut() {
            _ if x == y => {}
            Some((at, have)) if *at + *have == offset => *have += len,
            _ => found.push((offset, len)),
        }
    }
    found
}

fn change(pool: &Pool, name: &str, dice: &mut Dice) {
    let file = File::options().read(true).write(true).open(pool.at(name)).unwrap();
    let size = file.metadata().unwrap().len();
    let offset = dice.below(size + 20_000);
    match dice.below(6) {
        0 => {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: the descriptor is open, the rest are numbers.
            unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, 30_000) };
        }
        1 => file.set_len(offset).unwrap(),
        // The same bytes again: no difference.
        2 => {
            let mut bytes = vec![0; 9000];
            let read = file.read_at(&mut bytes, offset).unwrap();
            file.write_all_at(&bytes[..read], offset).unwrap();
        }
        _ => file.write_all_at(&noise(dice.below(1 << 40), dice.below(20_000) as usize + 1), offset).unwrap(),
    }
}

fn run(pool: &Pool, words: &[&str]) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_clonefs"));
    support::run(command.args(words).current_dir(pool.root())).success();
}

#[test]
fn a_difference_is_what_a_byte_by_byte_comparison_finds() {
    on_each_filesystem(|pool| {
        let mut dice = Dice(0x1234_5678_9abc_def1);
        pool.write("base", &noise(1, 100 * BLOCK + 123));
        let mut names = vec!["base".to_owned()];
        for round in 0..12u64 {
            let source = names[dice.below(names.len() as u64) as usize].clone();
            let volume = format!("vol{round}");
            if dice.below(2) == 0 && !source.contains('@') {
                let snapshot = format!("{source}@{round}");
                run(pool, &["snapshot", "create", &snapshot]);
                names.push(snapshot);
            } else {
                run(pool, &["clone", &source, &volume]);
                names.push(volume);
            }
            let volumes: Vec<String> = names.iter().filter(|name| !name.contains('@')).cloned().collect();
            for _ in 0..2 {
                change(pool, &volumes[dice.below(volumes.len() as u64) as usize], &mut dice);
            }
            if round % 4 == 3 {
                pool.deepen(&volumes[dice.below(volumes.len() as u64) as usize]);
            }
            for _ in 0..4 {
                let [one, other] = [(); 2].map(|()| names[dice.below(names.len() as u64) as usize].clone());
                let expect = by_reading(pool, &one, &other);
                let found = diff(pool, &one, &other, &[]);
                assert_eq!(extents(&found), expect, "{one} {other}");
                assert_eq!(found["bytes"], expect.iter().map(|(_, len)| len).sum::<u64>());
                // What the maps say may be more, never less.
                let maps = extents(&diff(pool, &one, &other, &["--maps-only"]));
                for (at, len) in expect {
                    assert!(maps.iter().any(|(from, have)| *from <= at && at + len <= from + have), "{one} {other}");
                }
            }
        }
    });
}

#[test]
fn a_difference_costs_what_differs_and_comes_in_pieces() {
    on(&[Backing::Ext4], |pool| {
        // A terabyte of which nothing is read.
        File::create(pool.at("large")).unwrap().set_len(1 << 40).unwrap();
        run(pool, &["snapshot", "create", "large@s"]);
        let file = File::options().write(true).open(pool.at("large")).unwrap();
        // More extents than one answer holds.
        let places: Vec<u64> = (0..2500).map(|n| n * (1 << 28) + (n % 7) * BLOCK as u64).collect();
        places.iter().for_each(|at| file.write_all_at(&noise(3, 2 * BLOCK), *at).unwrap());
        drop(file);
        let expect: Vec<(u64, u64)> = places.iter().map(|at| (*at, 2 * BLOCK as u64)).collect();
        assert_eq!(extents(&diff(pool, "large@s", "large", &[])), expect);
        assert_eq!(extents(&diff(pool, "large", "large@s", &["--maps-only"])), expect);
        assert_eq!(diff(pool, "large", "large", &[])["bytes"], 0);
    });
}

#[test]
fn only_who_may_read_both_hears_of_a_difference() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        pool.mount("deepen=manual,allow_other");
        pool.write("secret", b"secret");
        fs::set_permissions(pool.at("secret"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        pool.write("public", b"public");
        let attribute = format!("{}{}.0", clonefs::protocol::DIFF, "0".repeat(32));
        assert_eq!(errno(as_user(1234, 1234, || get_xattr(&pool.at("secret"), &attribute))), libc::EACCES);
        // A token that was never given.
        assert_eq!(errno(as_user(1234, 1234, || get_xattr(&pool.at("public"), &attribute))), libc::EXDEV);
        for bad in ["", "x", ".", "0.", "0.-1"] {
            let name = format!("{}{bad}", clonefs::protocol::DIFF);
            assert_ne!(errno(get_xattr(&pool.at("public"), name)), 0, "{bad}");
        }
        clonefs(["diff", "missing", "/etc/hostname"]).code(1);
        clonefs(["diff", "/etc/hostname", "/etc/hostname"]).code(1);
    });
}
