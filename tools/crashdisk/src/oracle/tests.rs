//! Histories made of marks, and what each of them allows.

use std::collections::BTreeSet;

use super::History;
use crate::stamp::{SECTOR, stamped};

fn history(marks: &str) -> History {
    History::read(marks.lines()).unwrap()
}

/// A file of 16 sectors: `(first, count, volume, version)` each, zeros between.
fn file(parts: &[(u64, u64, u32, u64)]) -> Vec<u8> {
    let mut bytes = vec![0; 16 * SECTOR];
    for &(first, count, volume, version) in parts {
        let at = first as usize * SECTOR;
        bytes[at..at + count as usize * SECTOR].copy_from_slice(&stamped(volume, first, count, version));
    }
    bytes
}

const BASE: &str = "create 1 a\ndone 1\nsize 1 16\ndone 1\nwrite 1 0 16 1\ndone 1\nsynced 1\n";

#[test]
fn what_was_synced_is_the_oldest_that_may_be_seen() {
    let history = history(&format!("{BASE}write 1 0 8 2\ndone 1\nsynced 1\nwrite 1 0 8 3\ndone 1\nwrite 1 4 1 4"));
    let good = |parts: &[_]| history.check_name("a", Some(&file(parts)));
    assert_eq!(good(&[(0, 8, 1, 2), (8, 8, 1, 1)]), Ok(vec![1]));
    assert_eq!(good(&[(0, 8, 1, 3), (8, 8, 1, 1)]), Ok(vec![1]));
    assert_eq!(good(&[(0, 4, 1, 2), (4, 1, 1, 4), (5, 3, 1, 3), (8, 8, 1, 1)]), Ok(vec![1]));
    let old = good(&[(0, 8, 1, 2), (0, 1, 1, 1), (8, 8, 1, 1)]).unwrap_err();
    assert!(old.contains("sector 0: version 1 of volume 1, but may hold version 3"), "{old}");
    assert!(good(&[(0, 8, 1, 2), (8, 7, 1, 1)]).is_err(), "zeros for data");
    assert!(good(&[(0, 8, 1, 2), (8, 8, 2, 1)]).is_err(), "another volume's bytes");
    assert!(good(&[(0, 8, 1, 5), (8, 8, 1, 1)]).is_err(), "a version that was never written");
    assert!(history.check_name("a", None).is_err(), "synced, so it exists");
    assert!(history.check_name("a", Some(&[])).is_err(), "synced, so it has its size");
    assert!(history.check_name("b", Some(&[])).is_err(), "nobody made it");
}

#[test]
fn growth_of_a_plain_file_alone_may_be_half_done() {
    let mut history = history("create 1 a\ndone 1\nsize 1 12\ndone 1\nsynced 1\nsize 1 40\ndone 1");
    let fits = |history: &History, sectors: usize| history.check_name("a", Some(&vec![0; sectors * SECTOR])).is_ok();
    assert!(
        fits(&history, 12) && fits(&history, 40) && !fits(&history, 16),
        "a volume of layers has its size in a map"
    );
    history.set_plain(BTreeSet::from(["a".to_owned()]));
    assert!(fits(&history, 12) && fits(&history, 16) && fits(&history, 40));
    assert!(!fits(&history, 8) && !fits(&history, 24) && !fits(&history, 48));
}

#[test]
fn what_was_never_synced_may_be_missing_or_empty_but_not_wrong() {
    let history = history("create 1 a\ndone 1\nsize 1 16\ndone 1\nwrite 1 0 16 1\ndone 1");
    for fine in [None, Some(vec![]), Some(file(&[])), Some(file(&[(3, 5, 1, 1)]))] {
        assert!(history.check_name("a", fine.as_deref()).is_ok());
    }
    assert!(history.check_name("a", Some(&[0; 512])).is_err(), "a size that it never had");
    assert!(history.check_name("a", Some(&[1; 16 * 512])).is_err(), "garbage");
}

#[test]
fn what_was_cut_off_reads_as_zeros_when_it_grows_back() {
    let history = history(&format!("{BASE}size 1 8\ndone 1\nsize 1 16\ndone 1\nsynced 1"));
    assert!(history.check_name("a", Some(&file(&[(0, 8, 1, 1)]))).is_ok());
    let stale = history.check_name("a", Some(&file(&[(0, 9, 1, 1)]))).unwrap_err();
    assert!(stale.contains("sector 8: version 1 of volume 1, but may hold zeros"), "{stale}");
    assert!(history.check_name("a", Some(&file(&[(0, 8, 1, 1)])[..8 * SECTOR])).is_err(), "it was grown again");
}

#[test]
fn a_clone_holds_what_its_source_held_then() {
    let marks = format!(
        "{BASE}write 1 0 4 2\ndone 1\nclone 1 2 b 16\nwrite 1 4 4 3\ndone 1\ndone 2\nwrite 1 8 4 4\ndone 1\nsynced 1\n"
    );
    let check = |marks: &str, parts: &[_]| history(marks).check_name("b", Some(&file(parts))).map(|_| ());
    let base = (0, 16, 1, 1);
    assert!(check(&marks, &[base]).is_ok(), "not synced: it may have lost what its source had not synced");
    assert!(check(&marks, &[base, (0, 4, 1, 2), (4, 4, 1, 3)]).is_ok(), "written during the clone");
    assert!(check(&marks, &[base, (8, 4, 1, 4)]).is_err(), "written after the clone");
    let synced = format!("{marks}synced 2");
    assert!(check(&synced, &[base]).is_err(), "done before the clone");
    assert!(check(&synced, &[base, (0, 4, 1, 2)]).is_ok());
    let changed = format!("{marks}write 2 4 2 5\ndone 2\nsynced 2\nsize 2 12\n");
    assert!(check(&changed, &[base, (0, 4, 1, 2), (4, 2, 2, 5)]).is_ok());
    assert!(check(&changed, &[base, (0, 4, 1, 2), (4, 4, 1, 3), (4, 2, 2, 5)]).is_ok());
    assert!(check(&changed, &[base, (0, 4, 1, 2), (4, 4, 1, 3)]).is_err(), "its own write is lost");
    let all = [base, (0, 4, 1, 2), (4, 4, 1, 3), (8, 4, 1, 4)];
    assert!(history(&changed).check_name("a", Some(&file(&all))).is_ok());
    let source = history(&changed).check_name("a", Some(&file(&[&all[..], &[(4, 2, 2, 5)]].concat()))).unwrap_err();
    assert!(source.contains("version 5 of volume 2"), "the source sees the clone's write: {source}");
}

#[test]
fn a_larger_clone_has_its_size_and_zeros() {
    let marks = "create 1 a\ndone 1\nsize 1 8\ndone 1\nwrite 1 0 8 1\ndone 1\nsynced 1\nclone 1 2 b 16\ndone 2\n";
    let history = history(marks);
    assert!(history.check_name("b", Some(&file(&[(0, 8, 1, 1)]))).is_ok());
    assert!(history.check_name("b", Some(&file(&[(0, 8, 1, 1)])[..8 * SECTOR])).is_err());
}

#[test]
fn names_lead_where_they_led_or_where_they_were_changed_to() {
    let both = format!("{BASE}create 2 b\ndone 2\nsize 2 16\ndone 2\nwrite 2 0 16 9\ndone 2\nsynced 2\n");
    let (one, two) = (file(&[(0, 16, 1, 1)]), file(&[(0, 16, 2, 9)]));
    let before = history(&format!("{both}dirsync\ndirsynced\nrename 2 a\ndone 2\n"));
    assert_eq!(before.check_name("a", Some(&one)), Ok(vec![1]));
    assert_eq!(before.check_name("a", Some(&two)), Ok(vec![2]));
    assert!(before.check_name("a", None).is_err());
    assert!(before.check_name("b", None).is_ok() && before.check_name("b", Some(&two)).is_ok());
    let after = history(&format!("{both}rename 2 a\ndone 2\ndirsync\ndirsynced\n"));
    assert!(after.check_name("a", Some(&one)).is_err(), "renamed over, and the directory was synced");
    assert!(after.check_name("b", Some(&two)).is_err());
    let late = history(&format!("{both}dirsync\nunlink 1\ndone 1\ndirsynced\n"));
    assert!(late.check_name("a", Some(&one)).is_ok() && late.check_name("a", None).is_ok());
}

#[test]
fn a_directory_is_judged_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
    let history = history(&format!("{BASE}rename 1 c\ndone 1\n"));
    let lost = history.check_dir(dir.path()).unwrap_err();
    assert!(lost.contains("volume 1 (c) was synced and is nowhere"), "{lost}");
    put("c", &file(&[(0, 16, 1, 1)]));
    put(".hidden", b"x");
    assert_eq!(history.check_dir(dir.path()), Ok(()));
    put("a", &file(&[(0, 16, 1, 1)]));
    assert!(history.check_dir(dir.path()).unwrap_err().contains("twice"));
    std::fs::remove_file(dir.path().join("a")).unwrap();
    put("stranger", b"");
    assert!(history.check_dir(dir.path()).unwrap_err().contains("stranger: nobody made this file"));
}

#[test]
fn marks_that_make_no_sense_are_refused() {
    for bad in ["write 1 0 1 1", "create x a", "create 1 a\ncreate 1 b", "done 7", "clone 1 2 b 8"] {
        assert!(History::read(bad.lines()).is_err(), "{bad}");
    }
    assert!(History::read(["my own mark", "writes are fun"]).is_ok());
}
