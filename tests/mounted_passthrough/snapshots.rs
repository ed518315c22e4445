//! Snapshots that are read past the daemon never change, and what they read is not written in place.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::fixture::{BLOCK, KINDS, Mapping, SIZE, image, open, past, with};
use crate::support::{Backing, Pool, clonefs, noise, wait_until};

#[test]
fn a_snapshot_that_is_read_past_the_daemon_never_changes() {
    with("read-only", &KINDS, |pool| {
        let bytes = image(pool, "disk", 6);
        clonefs(
            ["snapshot", "create"]
                .iter()
                .map(Path::new)
                .chain([Path::new(&format!("{}@one", pool.at("disk").display()))]),
        )
        .success();
        let path = pool.at(".snapshots").join("disk@one");
        drop(File::open(&path).unwrap());
        assert_eq!(past(pool), 0, "the file that has all of it is the disk's own still");
        open(&pool.at("disk")).write_all_at(b"own", 0).unwrap();
        let reader = File::open(&path).unwrap();
        assert_eq!(past(pool), 1, "one file has all of it");
        let second = File::open(&path).unwrap();
        let check = |what: &str| {
            for file in [&reader, &second] {
                let mut found = vec![0; SIZE + 1];
                assert_eq!(file.read_at(&mut found, 0).unwrap(), SIZE, "{what}");
                assert!(found[..SIZE] == bytes, "{what}");
            }
        };
        check("at first");
        let source = open(&pool.at("disk"));
        source.write_all_at(&noise(7, SIZE), 0).unwrap();
        source.sync_all().unwrap();
        check("after its source was written to");
        drop(source);
        pool.deepen("disk");
        check("after its source became independent");
        fs::remove_file(pool.at("disk")).unwrap();
        check("after its source was deleted");
        fs::remove_file(&path).unwrap();
        pool.write("next", &noise(8, SIZE));
        check("after it was deleted itself");
        assert_eq!(OpenOptions::new().write(true).open(&path).unwrap_err().kind(), ErrorKind::NotFound);
        drop((reader, second));
        wait_until(|| past(pool) == 0);
        // What is made of several files comes through the daemon.
        pool.clone("next", "clone");
        open(&pool.at("clone")).write_all_at(b"own", 0).unwrap();
        clonefs(
            ["snapshot", "create"]
                .iter()
                .map(Path::new)
                .chain([Path::new(&format!("{}@two", pool.at("clone").display()))]),
        )
        .success();
        let mixed = File::open(pool.at(".snapshots").join("clone@two")).unwrap();
        assert_eq!(past(pool), 0);
        let mut found = [0; 4];
        mixed.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(found[..3], *b"own");
        // Nor does anything else, with this option.
        let _writer = open(&pool.at("next"));
        assert_eq!(past(pool), 0);
    });
}

#[test]
fn what_is_mapped_of_a_snapshot_never_changes() {
    with("read-only", &[Backing::Ext4], |pool| {
        let bytes = image(pool, "disk", 15);
        let name = format!("{}@one", pool.at("disk").display());
        clonefs(["snapshot", "create", &name]).success();
        open(&pool.at("disk")).write_all_at(&noise(16, SIZE / 2), 0).unwrap();
        let snapshot = pool.at(".snapshots").join("disk@one");
        let mapping = {
            let reader = File::open(&snapshot).unwrap();
            assert_eq!(past(pool), 1);
            Mapping::reading(&reader)
        };
        wait_until(|| past(pool) == 0);
        fs::remove_file(&snapshot).unwrap();
        // The volume alone reads what the snapshot showed, and would take its file over.
        clonefs([Path::new("deepen"), &pool.at("disk")]).success();
        for at in [0, SIZE / 2, SIZE - 1] {
            assert_eq!(mapping.byte(at), bytes[at]);
        }
        drop(mapping);
        pool.deepen("disk");
        assert!(pool.read("disk")[SIZE / 2..] == bytes[SIZE / 2..]);
    });
}

/// A snapshot that is read past the daemon, as its source has been written to since.
fn snapshot_past(pool: &Pool, name: &str) -> std::path::PathBuf {
    clonefs(["snapshot", "create", &format!("{}@one", pool.at(name).display())]).success();
    open(&pool.at(name)).write_all_at(b"own", SIZE as u64 - 3).unwrap();
    pool.at(".snapshots").join(format!("{name}@one"))
}

#[test]
fn a_file_is_not_written_in_place_while_a_removed_snapshot_of_it_is_mapped() {
    with("read-only", &[Backing::Ext4], |pool| {
        let bytes = image(pool, "disk", 23);
        clonefs(["snapshot", "create", &format!("{}@one", pool.at("disk").display())]).success();
        let snapshot = pool.at(".snapshots").join("disk@one");
        let (reader, mapping) = {
            let reader = File::open(&snapshot).unwrap();
            let mapping = Mapping::reading(&reader);
            (reader, mapping)
        };
        fs::remove_file(&snapshot).unwrap();
        // Time for the daemon to find that no name leads to what the snapshot read.
        std::thread::sleep(std::time::Duration::from_secs(1));
        open(&pool.at("disk")).write_all_at(&[!bytes[0]; BLOCK], 0).unwrap();
        assert_eq!(mapping.byte(0), bytes[0]);
        drop(reader);
        assert_eq!(mapping.byte(1), bytes[1]);
    });
}

#[test]
fn what_was_written_with_direct_writes_is_adopted_though_files_were_open_past_the_daemon() {
    with("read-only", &[Backing::Ext4], |pool| {
        image(pool, "other", 21);
        drop(File::open(snapshot_past(pool, "other")).unwrap());
        let mut bytes = image(pool, "base", 20);
        pool.clone("base", "vm");
        let direct =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(pool.at("vm")).unwrap();
        let mut room = vec![7u8; (64 << 10) + BLOCK];
        let at = room.as_ptr().align_offset(BLOCK);
        let chunk = &mut room[at..at + (64 << 10)];
        direct.write_all_at(chunk, 0).unwrap();
        clonefs(["snapshot", "create", &format!("{}@one", pool.at("vm").display())]).success();
        chunk.fill(8);
        direct.write_all_at(chunk, 128 << 10).unwrap();
        direct.sync_all().unwrap();
        bytes[..64 << 10].fill(7);
        bytes[128 << 10..192 << 10].fill(8);
        fs::remove_file(pool.at(".snapshots").join("vm@one")).unwrap();
        // While the machine runs on: its own layer takes over the one below.
        pool.deepen("vm");
        assert_eq!(pool.info("vm").state, clonefs::protocol::VolumeState::Independent);
        drop(direct);
        assert!(pool.read("vm") == bytes);
    });
}
