//! Who owns a block: one lookup, however many layers lie below.
//!
//! Each frozen layer keeps, for every chunk of 65,536 blocks that was asked for, the runs of blocks and the layer that
//! each is read from. A layer that has nothing in a chunk shares its parent's runs. Building the runs of a chunk costs
//! one pass over the chain, once; after that a lookup is a binary search in the runs, whatever the depth.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Weak};

use crate::sync::Mutex;

use super::Layer;
use crate::units::blocks;

/// Blocks in a chunk: those of one container of a roaring bitmap.
const CHUNK: u64 = 1 << 16;

/// A run of blocks of a chunk, up to `end`, and its owner; none: zeros.
#[derive(Clone)]
struct Run {
    end: u32,
    owner: Option<Weak<Layer>>,
}

type Runs = Arc<[Run]>;

/// Most runs that one layer remembers: 128 MiB. A chunk of single blocks has 65,536 of them, one of 16 TiB with 100 million
/// scattered blocks 3,000.
const MOST: usize = 8 << 20;

/// The runs that a layer remembers.
#[derive(Default)]
pub struct Cache(Mutex<Known>);

#[derive(Default)]
struct Known {
    chunks: HashMap<u32, Runs>,
    /// Number of runs in all of them.
    runs: usize,
}

/// Where a run of blocks is read from.
#[derive(Clone)]
pub enum Owner {
    /// No layer has them: zeros.
    Zero,
    /// The data of this layer.
    Layer(Arc<Layer>),
}

/// Blocks that are read from one place.
#[derive(Clone)]
pub struct Segment {
    /// The blocks.
    pub blocks: Range<u64>,
    /// The place.
    pub owner: Owner,
}

fn same(a: &Option<Weak<Layer>>, b: &Option<Weak<Layer>>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => a.ptr_eq(b),
        _ => false,
    }
}

/// Appends a run, merging it with the last one where the owner is the same.
fn push(runs: &mut Vec<Run>, end: u32, owner: Option<Weak<Layer>>) {
    match runs.last_mut() {
        Some(last) if last.end >= end => {}
        Some(last) if same(&last.owner, &owner) => last.end = end,
        _ => runs.push(Run { end, owner }),
    }
}

/// `below` as seen through `layer`: cut off at its overlap, with its own blocks on top.
fn overlay(layer: &Arc<Layer>, chunk: u32, below: &Runs) -> Runs {
    let first = chunk as u64 * CHUNK;
    let visible = layer.overlap().saturating_sub(first).min(CHUNK) as u32;
    let own = layer.runs(first, first + CHUNK);
    let cut = visible < CHUNK as u32 && below.iter().any(|r| r.end > visible && r.owner.is_some());
    if !cut && own.iter().all(|(_, present)| !present) {
        return below.clone();
    }
    let me = Arc::downgrade(layer);
    let mut runs = Vec::new();
    for (range, present) in own {
        let (start, end) = ((range.start - first) as u32, (range.end - first) as u32);
        if present {
            push(&mut runs, end, Some(me.clone()));
            continue;
        }
        let from = below.partition_point(|r| r.end <= start);
        for run in &below[from..] {
            let stop = run.end.min(end).min(visible.max(start));
            push(&mut runs, stop, run.owner.clone());
            if run.end >= end.min(visible) {
                break;
            }
        }
        push(&mut runs, end, None);
    }
    runs.into()
}

/// The runs of a complete layer.
fn complete_runs(layer: &Arc<Layer>, chunk: u32) -> Runs {
    let own = blocks(layer.size()).saturating_sub(chunk as u64 * CHUNK).min(CHUNK) as u32;
    let mut runs = Vec::with_capacity(2);
    if own > 0 {
        push(&mut runs, own, Some(Arc::downgrade(layer)));
    }
    push(&mut runs, CHUNK as u32, None);
    runs.into()
}

/// The runs of a chunk as `top` shows it.
fn runs_of(top: &Arc<Layer>, chunk: u32) -> Runs {
    let mut above = Vec::new();
    let mut layer = top.clone();
    let mut runs = loop {
        if let Some(runs) = layer.owners.0.lock().chunks.get(&chunk) {
            break runs.clone();
        }
        if layer.complete() {
            let runs = complete_runs(&layer, chunk);
            layer.owners.remember(chunk, &runs, MOST);
            break runs;
        }
        let parent = layer.parent();
        above.push(layer);
        match parent {
            Some(parent) => layer = parent,
            None => break Arc::new([Run { end: CHUNK as u32, owner: None }]) as Runs,
        }
    };
    for layer in above.into_iter().rev() {
        runs = overlay(&layer, chunk, &runs);
        layer.owners.remember(chunk, &runs, MOST);
    }
    runs
}

/// Forgets what the chain from `top` down remembers of a chunk.
fn forget(top: &Arc<Layer>, chunk: u32) {
    let mut layer = Some(top.clone());
    while let Some(here) = layer {
        here.owners.forget(chunk);
        layer = here.parent();
    }
}

impl Cache {
    /// Remembers the runs of a chunk. Where that would be too much, all others are forgotten first.
    fn remember(&self, chunk: u32, runs: &Runs, most: usize) {
        let mut known = self.0.lock();
        if known.runs + runs.len() > most {
            *known = Known::default();
        }
        let before = known.chunks.insert(chunk, runs.clone());
        known.runs += runs.len();
        known.runs -= before.map_or(0, |runs| runs.len());
    }

    fn forget(&self, chunk: u32) {
        let mut known = self.0.lock();
        if let Some(runs) = known.chunks.remove(&chunk) {
            known.runs -= runs.len();
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        *self.0.lock() = Known::default();
    }
}

impl Layer {
    /// Forgets who owns which block, after the layer was changed in place.
    pub fn forget_owners(&self) {
        self.owners.clear();
    }
}

/// Where `blocks` are read from, as the frozen layer `top` shows them; blocks at or beyond `visible` are zeros.
pub fn resolve(top: Option<&Arc<Layer>>, visible: u64, blocks: Range<u64>) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::with_capacity(2);
    let Some(top) = top else { return vec![Segment { blocks, owner: Owner::Zero }] };
    let mut at = blocks.start;
    let stop = blocks.end.min(visible);
    'chunks: while at < stop {
        let chunk = (at / CHUNK) as u32;
        let base = chunk as u64 * CHUNK;
        let runs = runs_of(top, chunk);
        let from = runs.partition_point(|run| base + run.end as u64 <= at);
        for run in &runs[from..] {
            let owner = match run.owner.as_ref().map(Weak::upgrade) {
                None => Owner::Zero,
                Some(Some(layer)) => Owner::Layer(layer),
                // Its files were adopted: the runs are built again.
                Some(None) => {
                    forget(top, chunk);
                    continue 'chunks;
                }
            };
            let end = (base + run.end as u64).min(stop);
            add(&mut segments, at..end, owner);
            at = end;
            if at >= stop {
                break;
            }
        }
    }
    if at < blocks.end {
        add(&mut segments, at..blocks.end, Owner::Zero);
    }
    segments
}

fn add(segments: &mut Vec<Segment>, blocks: Range<u64>, owner: Owner) {
    if blocks.is_empty() {
        return;
    }
    if let Some(last) = segments.last_mut()
        && last.blocks.end == blocks.start
    {
        let same = match (&last.owner, &owner) {
            (Owner::Zero, Owner::Zero) => true,
            (Owner::Layer(a), Owner::Layer(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        if same {
            last.blocks.end = blocks.end;
            return;
        }
    }
    segments.push(Segment { blocks, owner });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::io::{Fs, HostFs};
    use crate::units::{BLOCK, Id};
    use proptest::prelude::*;

    fn owner_of(segments: &[Segment], block: u64) -> Option<Id> {
        let segment = segments.iter().find(|s| s.blocks.contains(&block)).expect("every block is in a segment");
        match &segment.owner {
            Owner::Zero => None,
            Owner::Layer(layer) => Some(layer.id),
        }
    }

    #[test]
    fn a_layer_that_would_remember_too_much_forgets() {
        let cache = Cache::default();
        let runs = |count: u32| -> Runs { (1..=count).map(|end| Run { end, owner: None }).collect() };
        let kept = || {
            let known = cache.0.lock();
            assert_eq!(known.runs, known.chunks.values().map(|runs| runs.len()).sum::<usize>());
            known.chunks.len()
        };
        for chunk in 0..100 {
            cache.remember(chunk, &runs(1000), 10_500);
            assert!((1..=10).contains(&kept()), "after chunk {chunk}");
            assert!(cache.0.lock().chunks.contains_key(&chunk));
        }
        // The same chunk again is no second one; what is forgotten is not counted.
        let before = kept();
        cache.remember(99, &runs(10), 10_500);
        assert_eq!(kept(), before);
        cache.forget(99);
        cache.forget(7);
        assert_eq!(kept(), before - 1);
        // More than there may be in all is still remembered, alone.
        cache.remember(1, &runs(20_000), 10_500);
        assert_eq!(kept(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// The owner of each block is what asking every layer in turn gives.
        #[test]
        fn owners_are_those_of_a_walk_down_the_chain(
            chain in prop::collection::vec((prop::collection::vec((0u64..200_000, 1u64..40_000), 0..4), 0u64..200_000), 1..6),
            start in 0u64..150_000, len in 1u64..100_000, visible in 0u64..260_000,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let fs: Arc<dyn Fs> = Arc::new(HostFs::open_dir(dir.path()).unwrap());
            let mut layers: Vec<Arc<Layer>> = Vec::new();
            for (i, (runs, overlap)) in chain.iter().enumerate() {
                let parent = layers.last().cloned();
                let layer = Layer::fresh(&fs, Id(i as u64 + 1), parent, 250_000 * BLOCK, *overlap);
                for (from, count) in runs {
                    layer.mark(*from, from + count);
                }
                layers.push(layer);
            }
            let top = layers.last().unwrap();
            for _ in 0..2 {
                let segments = resolve(Some(top), visible, start..start + len);
                prop_assert_eq!(segments.first().unwrap().blocks.start, start);
                prop_assert_eq!(segments.last().unwrap().blocks.end, start + len);
                for block in (start..start + len).step_by(997).chain([start, start + len - 1]) {
                    let mut expect = None;
                    let mut limit = visible;
                    for layer in layers.iter().rev() {
                        if block >= limit {
                            break;
                        }
                        if layer.has(block) {
                            expect = Some(layer.id);
                            break;
                        }
                        limit = layer.overlap();
                    }
                    prop_assert_eq!(owner_of(&segments, block), expect, "block {}", block);
                }
            }
        }
    }
}
