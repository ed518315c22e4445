//! Damaged metadata: every byte of a small pool's metadata flipped, and every file of it cut at every length. The pool
//! opens with a clear error, or shows what was there before; it never panics, never takes memory without bounds, and
//! never shows bytes that a volume did not hold.

#[path = "../common/mod.rs"]
mod common;

mod memory;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clonefs::engine::io::{Fs, Open};
use clonefs::engine::pool::check::check;

use common::ops::{Name, Op, Op::*};
use common::rng::Rng;
use common::served::{Outcome, contents, file_name, look, serve, text, volume_at};
use common::simfs::image::Image;
use common::simfs::{Crash, Options, SimFs};
use common::world::World;

/// Most memory that opening and reading the small pool may take at once.
const MEMORY: usize = 32 << 20;

/// A pool with everything that metadata is made of: plain files with clones, overlays, frozen layers, maps of several
/// records, a checkpoint and a journal after it.
const LIFE: [Op; 18] = [
    CloneDurably(0, 1),
    Write(1),
    Fsync(1),
    Clone(1, 2),
    Write(1),
    Punch(2),
    Fsync(2),
    Checkpoint,
    Append(1),
    Fsync(1),
    CloneDurably(0, 3),
    Write(3),
    Fsync(3),
    Shrink(2),
    Fsync(2),
    Write(0),
    Fsync(0),
    Keep,
];

/// The disk, and all that each name ever stood for.
struct Pool {
    image: Image,
    past: BTreeMap<Name, Vec<Vec<u8>>>,
}

fn live(ended: bool) -> Outcome<Pool> {
    let mut world = World::new(SimFs::new(Options::default()), true)?;
    let mut past: BTreeMap<Name, Vec<Vec<u8>>> = BTreeMap::new();
    for op in LIFE {
        if !world.apply(op)? {
            return Err(format!("{op:?} makes no sense"));
        }
        world.acknowledge(op);
        for (name, bytes) in look(&world.pool)? {
            past.entry(name).or_default().push(bytes);
        }
    }
    // The last record of a map has nothing after it that says it was durable: damaged, it is an append that a crash cut
    // short. Of a frozen layer that is a state from before the clone, which the clone then shows.
    // After an orderly end, or some seconds, the catalogue says how many records there are.
    if ended {
        world.pool.shutdown().map_err(text)?;
    } else {
        let source = past[&1].clone();
        past.entry(2).or_default().extend(source);
    }
    let image = world.fs.crash(Crash::Kill, &mut Rng::new(1));
    Ok(Pool { image, past })
}

/// Whether each sector and the size are those that the name once had.
fn was_held(past: &[Vec<u8>], got: &[u8]) -> bool {
    let sector = |at: usize| &got[at..(at + 512).min(got.len())];
    let held = |old: &Vec<u8>, at: usize| {
        let there = old.get(at..).unwrap_or_default();
        let len = there.len().min(sector(at).len());
        there[..len] == sector(at)[..len] && sector(at)[len..].iter().all(|b| *b == 0)
    };
    let size = got.is_empty() || past.iter().any(|old| old.len() == got.len());
    size && (0..got.len()).step_by(512).all(|at| past.iter().any(|old| held(old, at)))
}

/// Files of metadata, with their bytes.
fn metadata(image: &Image) -> Outcome<Vec<(PathBuf, Vec<u8>)>> {
    let fs = SimFs::from_image(image.clone(), Options::default());
    let layers = fs.list(Path::new(".clonefs/layers")).map_err(text)?;
    let maps = layers.iter().filter(|e| !e.name.to_string_lossy().ends_with(".data"));
    let maps = maps.map(|e| Path::new(".clonefs/layers").join(&e.name));
    let named = ["pool.json", "catalogue", "journal"].iter().map(|name| Path::new(".clonefs").join(name));
    let all: Vec<PathBuf> = named.chain(maps).collect();
    let read = |path: PathBuf| {
        let file = fs.open(&path, Open::Read)?;
        let mut bytes = vec![0; file.stat()?.size as usize];
        file.read_at(&mut bytes, 0)?;
        Ok((path, bytes))
    };
    all.into_iter().map(read).collect::<std::io::Result<_>>().map_err(text)
}

/// What became of one damaged pool.
#[derive(Default)]
struct Tally {
    states: u64,
    refused: u64,
    unreadable: u64,
    violations: Vec<String>,
    memory: usize,
}

/// Opens the pool with `bytes` in the place of one file.
fn open(pool: &Pool, path: &Path, bytes: &[u8], tally: &mut Tally) -> Outcome {
    let fs = SimFs::from_image(pool.image.clone(), Options::default());
    let file = fs.open(path, Open::Write).map_err(text)?;
    file.set_len(0).and_then(|()| file.write_at(bytes, 0)).map_err(text)?;
    drop(file);
    let seam: Arc<dyn Fs> = fs.clone();
    // Whatever it says, it ends, and changes nothing.
    let _ = check(&seam);
    let (served, names) = match serve(&fs) {
        Ok(served) => served,
        Err(why) if why.contains(".clonefs") => {
            tally.refused += 1;
            return Ok(());
        }
        Err(why) => return Err(format!("an error that names no file: {why}")),
    };
    for (name, past) in &pool.past {
        match volume_at(&served, &file_name(*name)).and_then(|volume| contents(&volume)) {
            Ok(got) if was_held(past, &got) => {}
            Ok(got) => return Err(format!("v{name} has {} bytes that it never held", got.len())),
            Err(_) => tally.unreadable += 1,
        }
    }
    let _ = served.status();
    let _ = served.shutdown();
    drop(names);
    Ok(())
}

fn try_one(pool: &Pool, path: &Path, bytes: &[u8], what: &str, tally: &mut Tally) {
    tally.states += 1;
    let before = memory::reset_peak();
    let outcome = catch_unwind(AssertUnwindSafe(|| open(pool, path, bytes, tally)));
    let used = memory::peak().saturating_sub(before);
    tally.memory = tally.memory.max(used);
    let wrong = match outcome {
        Ok(Ok(())) if used > MEMORY => Some(format!("it took {used} bytes of memory")),
        Ok(Ok(())) => None,
        Ok(Err(why)) => Some(why),
        Err(_) => Some("a panic".to_owned()),
    };
    if let Some(why) = wrong {
        tally.violations.push(format!("{} {what}: {why}", path.display()));
    }
}

/// Every file, with each of the damages that `damage` makes of its bytes.
fn damage(ended: bool, damage: impl Fn(&[u8]) -> Vec<(String, Vec<u8>)>) {
    let pool = live(ended).expect("a sound pool");
    let files = metadata(&pool.image).expect("its metadata");
    assert!(files.len() >= 6, "only {} files", files.len());
    let mut tally = Tally::default();
    for (path, bytes) in &files {
        for (what, bytes) in damage(bytes) {
            try_one(&pool, path, &bytes, &what, &mut tally);
        }
    }
    let Tally { states, refused, unreadable, violations, memory } = &tally;
    println!("{states} pools, {refused} not opened, {unreadable} volumes not read, {memory} bytes of memory at most");
    violations.iter().take(5).for_each(|violation| println!("{violation}"));
    assert!(violations.is_empty(), "{} of {states} pools wrong", violations.len());
    assert!(*states > 1000 && *unreadable > 0);
}

fn flips(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let flip = |at: usize, bits: u8| {
        let mut bad = bytes.to_vec();
        bad[at] ^= bits;
        (format!("byte {at} ^ {bits:#x}"), bad)
    };
    (0..bytes.len()).flat_map(|at| [1, 0x80, 0xff].map(|bits| flip(at, bits))).collect()
}

fn cuts(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    (0..bytes.len()).map(|len| (format!("cut at {len}"), bytes[..len].to_vec())).collect()
}

#[test]
fn every_flipped_byte_is_an_error_or_the_state_before() {
    damage(false, flips);
    damage(true, flips);
}

#[test]
fn every_truncation_is_an_error_or_the_state_before() {
    damage(false, cuts);
}

#[test]
fn every_truncation_after_an_orderly_end_is_an_error_or_the_state_before() {
    damage(true, cuts);
}
