use std::sync::Arc;

use super::record::{Change, VolumeRecord};
use super::*;
use crate::engine::io::HostFs;

fn pool() -> (tempfile::TempDir, Arc<dyn Fs>) {
    let dir = tempfile::tempdir().unwrap();
    let fs = Arc::new(HostFs::open_dir(dir.path()).unwrap());
    (dir, fs)
}

fn volume(id: u64) -> Change {
    Change::Volume(VolumeRecord::over(Id(id), Id(id), None, (0, id), String::new()))
}

fn ids(store: &Store) -> Vec<u64> {
    let mut ids: Vec<u64> = store.catalogue().volumes().map(|v| v.id.0).collect();
    ids.sort();
    ids
}

#[test]
fn a_pool_without_metadata_opens_empty_and_makes_it_when_needed() {
    let (dir, fs) = pool();
    let store = Store::open(fs.clone(), false).unwrap();
    assert_eq!(store.pool_id(), None);
    assert!(!dir.path().join(".clonefs").exists());
    store.ensure().unwrap();
    let id = store.pool_id();
    assert!(id.is_some());
    assert_eq!(Store::open(fs, false).unwrap().pool_id(), id);
}

#[test]
fn committed_changes_are_there_after_reopening_with_and_without_checkpoint() {
    let (_dir, fs) = pool();
    let store = Store::open(fs.clone(), false).unwrap();
    store.ensure().unwrap();
    for id in 1..=3 {
        let number = store.commit(vec![volume(id)]).unwrap();
        store.sync(number).unwrap();
    }
    let store = Store::open(fs.clone(), false).unwrap();
    assert_eq!(ids(&store), [1, 2, 3]);
    store.commit(vec![volume(4), Change::DropVolume(Id(2))]).unwrap();
    store.checkpoint().unwrap();
    store.commit(vec![volume(5)]).unwrap();
    assert_eq!(ids(&Store::open(fs, false).unwrap()), [1, 3, 4, 5]);
}

#[test]
fn a_journal_overtaken_by_the_catalogue_is_not_replayed() {
    let (dir, fs) = pool();
    let store = Store::open(fs.clone(), false).unwrap();
    store.ensure().unwrap();
    store.commit(vec![volume(1)]).unwrap();
    let journal = dir.path().join(".clonefs/journal");
    let before = std::fs::read(&journal).unwrap();
    store.commit(vec![Change::DropVolume(Id(1))]).unwrap();
    store.checkpoint().unwrap();
    // The state between the two renames: the new catalogue beside the old journal.
    std::fs::write(&journal, before).unwrap();
    assert_eq!(ids(&Store::open(fs, false).unwrap()), [0u64; 0]);
}

#[test]
fn every_cut_of_the_journal_opens_with_a_prefix_and_every_flip_is_seen_or_harmless() {
    let (dir, fs) = pool();
    let store = Store::open(fs.clone(), false).unwrap();
    store.ensure().unwrap();
    for id in 1..=4 {
        let number = store.commit(vec![volume(id)]).unwrap();
        store.sync(number).unwrap();
    }
    drop(store);
    let journal = dir.path().join(".clonefs/journal");
    let whole = std::fs::read(&journal).unwrap();
    for cut in 0..whole.len() {
        std::fs::write(&journal, &whole[..cut]).unwrap();
        let got = ids(&Store::open(fs.clone(), true).unwrap());
        assert_eq!(got, (1..=got.len() as u64).collect::<Vec<_>>(), "cut at {cut}");
    }
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        std::fs::write(&journal, &bytes).unwrap();
        let store = Store::open(fs.clone(), true).unwrap();
        let got = ids(&store);
        assert!(got == [1, 2, 3, 4] || got == [1, 2, 3] || !store.damage().is_empty(), "flip at {at}: {got:?}");
    }
}

#[test]
fn a_newer_format_is_refused_and_named() {
    let (dir, fs) = pool();
    Store::open(fs.clone(), false).unwrap().ensure().unwrap();
    std::fs::write(dir.path().join(POOL), r#"{"format":2,"else":1}"#).unwrap();
    let error = Store::open(fs, false).err().unwrap();
    assert_eq!(error.kind(), Kind::NewerFormat);
    assert!(error.to_string().contains("pool.json"), "{error}");
}
