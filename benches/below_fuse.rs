//! What the daemon itself costs, without the kernel's FUSE: sets of blocks, resolution, logs, recovery, reads and writes.
//!
//! `cargo bench --bench below_fuse`, with a part of a name behind it for some of them.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use clonefs::engine::io::{FileKind, Fs, HostFs, Open};
use clonefs::engine::layer::Layer;
use clonefs::engine::layer::map::{self, Delta, Map};
use clonefs::engine::layer::resolve::resolve;
use clonefs::engine::pool::{CloneOptions, Pool, PoolOptions};
use clonefs::engine::store::Store;
use clonefs::engine::store::record::{Change, LayerRecord};
use clonefs::engine::volume::Volume;
use clonefs::units::{BLOCK, Id};
use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use roaring::RoaringBitmap;

/// Blocks of a volume of 16 GiB.
const BLOCKS: u64 = 4 << 20;

/// Numbers that look random.
fn number(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn directory() -> (tempfile::TempDir, Arc<dyn Fs>) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let fs = Arc::new(HostFs::open_dir(dir.path()).expect("temporary directory"));
    (dir, fs)
}

/// A layer in which every second block of `share` blocks is present.
fn layer(fs: &Arc<dyn Fs>, id: u64, parent: Option<Arc<Layer>>, step: u64) -> Arc<Layer> {
    let layer = Layer::fresh(fs, Id(id), parent, BLOCKS * BLOCK, BLOCKS);
    (0..BLOCKS).step_by(step as usize).for_each(|block| layer.mark(block, block + 1));
    layer
}

fn bitmaps(c: &mut Criterion) {
    let (_dir, fs) = directory();
    let mut group = c.benchmark_group("bitmap");
    let mut state = 1;
    for step in [2, 64] {
        let layer = layer(&fs, step, None, step);
        group.bench_function(BenchmarkId::new("is a block present", format!("1 of {step}")), |b| {
            b.iter(|| {
                let block = number(&mut state) % BLOCKS;
                layer.has_all(block, block + 1)
            });
        });
        group.bench_function(BenchmarkId::new("mark a block", format!("1 of {step}")), |b| {
            b.iter(|| {
                let block = number(&mut state) % BLOCKS;
                layer.mark(block, block + 1);
            });
        });
    }
    group.finish();
}

fn resolution(c: &mut Criterion) {
    let (_dir, fs) = directory();
    let mut group = c.benchmark_group("resolve a block");
    for depth in [1u64, 10, 1000] {
        let mut state = depth;
        let mut top = layer(&fs, 1, None, 64);
        for id in 2..=depth {
            let next = Layer::fresh(&fs, Id(id), Some(top), BLOCKS * BLOCK, BLOCKS);
            (0..16).for_each(|_| {
                let block = number(&mut state) % BLOCKS;
                next.mark(block, block + 1);
            });
            top = next;
        }
        group.bench_function(BenchmarkId::new("depth", depth), |b| {
            b.iter(|| {
                let block = number(&mut state) % BLOCKS;
                resolve(Some(&top), BLOCKS, block..block + 1)
            });
        });
    }
    group.finish();
}

/// `count` scattered blocks.
fn scattered(count: u64) -> RoaringBitmap {
    let mut state = 3;
    (0..count).map(|_| (number(&mut state) % BLOCKS) as u32).collect()
}

fn logs(c: &mut Criterion) {
    let (dir, fs) = directory();
    fs.mkdir(Path::new(".clonefs"), 0o700).expect("directory");
    fs.mkdir(Path::new(".clonefs/layers"), 0o700).expect("directory");
    let mut group = c.benchmark_group("map");
    let mut log = Map::create(&fs, Id(7)).expect("map");
    let delta = |count| Delta { size: BLOCKS * BLOCK, overlap: BLOCKS, added: scattered(count), ..Delta::default() };
    for count in [1, 1000] {
        let delta = delta(count);
        group.bench_function(BenchmarkId::new("append a record, in memory", count), |b| {
            b.iter(|| log.append(&delta).expect("append"));
        });
    }
    let mut log = Map::create(&fs, Id(8)).expect("map");
    log.append(&delta(1 << 20)).expect("append");
    let bytes = std::fs::read(dir.path().join(clonefs::engine::store::map_path(Id(8)))).expect("map");
    group.bench_function(BenchmarkId::new("read, scattered blocks", 1 << 20), |b| {
        b.iter(|| map::decode(black_box(&bytes), Id(8)).expect("map"));
    });
    group.finish();
}

fn recovery(c: &mut Criterion) {
    let mut group = c.benchmark_group("recovery");
    group.sample_size(20);
    for records in [1000u64, 10_000] {
        let (_dir, fs) = directory();
        let store = Store::open(fs.clone(), false).expect("store");
        store.ensure().expect("store");
        for id in 1..=records {
            let record = LayerRecord { records: 1, ..LayerRecord::of_file(Id(id), 1 << 30, None) };
            store.commit(vec![Change::Layer(record)]).expect("commit");
        }
        store.sync(store.committed()).expect("sync");
        drop(store);
        group.bench_function(BenchmarkId::new("replay the journal, records", records), |b| {
            b.iter(|| Store::open(fs.clone(), false).expect("store"));
        });
    }
    group.finish();
}

/// The volume of a file of the pool.
fn volume(pool: &Arc<Pool>, fs: &Arc<dyn Fs>, name: &str) -> Arc<Volume> {
    let stat = fs.stat(Path::new(name)).expect("file");
    assert_eq!(stat.kind(), FileKind::File);
    pool.volume(stat.key, Path::new(name)).expect("volume")
}

fn volumes(c: &mut Criterion) {
    const SIZE: u64 = 64 << 20;
    let (_dir, fs) = directory();
    let file = fs.open(Path::new("base"), Open::CreateNew(0o600)).expect("file");
    file.write_at(&vec![7; SIZE as usize], 0).expect("write");
    fs.open(Path::new("plain"), Open::CreateNew(0o600)).expect("file").set_len(SIZE).expect("size");
    fs.open(Path::new("clone"), Open::CreateNew(0o600)).expect("file");
    let options = PoolOptions { deepen_auto: false, ..PoolOptions::default() };
    let pool = Pool::open(fs.clone(), options).expect("pool");
    let [base, plain, clone] = ["base", "plain", "clone"].map(|name| volume(&pool, &fs, name));
    pool.clone_volume(&base, &clone, &CloneOptions::default()).expect("clone");
    let mut group = c.benchmark_group("4 KiB in memory");
    let (mut state, mut buffer) = (5, vec![1; BLOCK as usize]);
    let mut at = move || number(&mut state) % (SIZE / BLOCK) * BLOCK;
    for (name, volume) in [("a plain file", &plain), ("a parent", &clone)] {
        group.bench_function(format!("read of {name}"), |b| {
            b.iter(|| volume.read(at(), &mut buffer).expect("read"));
        });
    }
    // Most of them are first writes only for a moment: this is the whole path all the same.
    for (name, volume) in [("a plain file", &plain), ("a clone", &clone)] {
        group.bench_function(format!("write to {name}"), |b| {
            b.iter_batched(&mut at, |at| volume.write(at, &buffer).expect("write"), BatchSize::SmallInput);
        });
    }
    group.bench_function("read of a clone that was written to", |b| {
        b.iter(|| clone.read(at(), &mut buffer).expect("read"));
    });
    group.finish();
    pool.shutdown().expect("shutdown");
}

criterion_group!(benches, bitmaps, resolution, logs, recovery, volumes);
criterion_main!(benches);
