//! Proof that the machine works: planted bugs are seen, and nothing is seen where there is none.

use std::path::Path;

use clonefs::error::{Context, Result};

use crate::log::Log;
use crate::ministore::{BLOCK, Bug, MiniStore, block_bytes};
use crate::oracle::History;
use crate::record::{Recording, Site};
use crate::replay::{Crash, Outcome, Replay};
use crate::stamp::{SECTOR, stamped};
use crate::workload::Marks;

const BLOCKS: u32 = 256;
const ROUNDS: u32 = 60;
const SECTORS: u64 = BLOCK / SECTOR as u64;

/// Whether the machine is expected to see `bug` on `filesystem`.
///
/// btrfs writes nothing in place and makes a file's new bytes part of a transaction only when they are on the disk, in
/// the order of the file's own writes: a map dirtied too early stays behind the data it speaks of.
pub fn expected(filesystem: &str, bug: Bug) -> bool {
    bug != Bug::None && (filesystem, bug) != ("btrfs", Bug::BitDirtiedEarly)
}

/// Records a workload on a store with `bug` and replays power cuts of it.
pub fn run(filesystem: &str, bug: Bug, replay: &Replay) -> Result<Outcome> {
    let dir = tempfile::tempdir().context("make directory in", std::env::temp_dir())?;
    let path = dir.path().join("log");
    Recording::new(filesystem).run(&path, |site| workload(site, bug, replay.seed))?;
    replay.run(&Log::open(&path)?, verify)
}

/// Writes, discards, deepens, syncs and checkpoints in a seeded order, all of it announced.
fn workload(site: &Site, bug: Bug, seed: u64) -> Result<()> {
    let marks = Marks::new(site)?;
    let at = &site.mnt;
    let mut rng = fastrand::Rng::with_seed(seed);
    let parent = stamped(1, 0, u64::from(BLOCKS) * SECTORS, 1);
    let mut store = MiniStore::create(at, &parent, bug).context("make store", at)?;
    let size = u64::from(BLOCKS) * SECTORS;
    for mark in ["create 1 volume", "done 1", &format!("size 1 {size}"), "done 1", &format!("write 1 0 {size} 1")] {
        marks.say(mark)?;
    }
    marks.say("done 1")?;
    marks.say("synced 1")?;
    for round in 0..ROUNDS {
        let version = u64::from(round) + 2;
        let fetched = rng.u32(..BLOCKS);
        let stale = store.fetch(fetched).context("read parent", at)?;
        let discarded = rng.u32(..BLOCKS);
        marks.say(&format!("zero 1 {} {SECTORS}", u64::from(discarded) * SECTORS))?;
        store.discard(discarded).context("discard", at)?;
        marks.say("done 1")?;
        let mut written: Vec<u32> = (0..rng.u32(1..6)).map(|_| rng.u32(..BLOCKS)).collect();
        // What was just read for deepening or discarded is written again now and then: that is where races are.
        written.extend([fetched, discarded].into_iter().filter(|_| rng.u8(..3) == 0));
        for block in written {
            marks.say(&format!("write 1 {} {SECTORS} {version}", u64::from(block) * SECTORS))?;
            store.write(block, &block_bytes(block, version)).context("write", at)?;
            marks.say("done 1")?;
        }
        // Time for write-back to take pages to the disk in its own order.
        std::thread::sleep(std::time::Duration::from_millis(rng.u64(..20)));
        store.sync(round % 3 == 2).context("sync", at)?;
        marks.say("synced 1")?;
        if let Some(stale) = stale {
            store.deepen(fetched, &stale).context("deepen", at)?;
        }
        store.settle().context("punch", at)?;
    }
    Ok(())
}

/// Recovers the store, twice, and asks the oracle.
fn verify(crash: &Crash) -> std::result::Result<(), String> {
    let history = History::read(crash.marks.iter().copied())?;
    if crash.marks.iter().all(|mark| *mark != "synced 1") {
        return Ok(());
    }
    let read = |dir: &Path| MiniStore::open(dir, Bug::None).and_then(|store| store.read()).map_err(|e| e.to_string());
    let bytes = read(crash.mnt)?;
    if bytes != read(crash.mnt)? {
        return Err("the second recovery gives other bytes than the first".into());
    }
    history.check_name("volume", Some(&bytes)).map(drop)
}
