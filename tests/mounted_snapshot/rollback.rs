//! Going back: a volume to its snapshot, a clone to what it was.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use clonefs::protocol::VolumeState;

use crate::fixture::{BLOCK, clean, ok, overwrite, refused, snapshot};
use crate::support::{noise, on_each_filesystem};

#[test]
fn a_rollback_brings_back_what_the_snapshot_shows() {
    on_each_filesystem(|pool| {
        let first = noise(1, 30 * BLOCK + 5);
        pool.write("vm.img", &first);
        fs::set_permissions(pool.at("vm.img"), PermissionsExt::from_mode(0o606)).unwrap();
        ok(pool, &["snapshot", "create", "vm.img@first"]);
        // Nothing was written since: nothing to do.
        ok(pool, &["snapshot", "rollback", "vm.img@first"]);
        assert_eq!(pool.info("vm.img").state, VolumeState::Independent);
        overwrite(pool, "vm.img", 100, &noise(2, 3 * BLOCK));
        File::options().write(true).open(pool.at("vm.img")).unwrap().set_len(50 * BLOCK as u64).unwrap();
        let second = pool.read("vm.img");
        ok(pool, &["snapshot", "create", "vm.img@second"]);
        overwrite(pool, "vm.img", 0, &noise(3, BLOCK));
        let open = File::open(pool.at("vm.img")).unwrap();
        refused(pool, &["snapshot", "rollback", "vm.img@first"], "it is open");
        drop(open);
        ok(pool, &["snapshot", "rollback", "vm.img@first"]);
        assert!(pool.read("vm.img") == first);
        assert_eq!(fs::metadata(pool.at("vm.img")).unwrap().mode() & 0o7777, 0o606);
        // Forward again, as later snapshots stay; and over a crash.
        ok(pool, &["snapshot", "rollback", "vm.img@second"]);
        pool.crash("deepen=manual");
        assert!(pool.read("vm.img") == second);
        // An independent volume goes back as well.
        pool.deepen("vm.img");
        assert_eq!(pool.info("vm.img").state, VolumeState::Independent);
        overwrite(pool, "vm.img", 5000, b"changed");
        ok(pool, &["snapshot", "rollback", "vm.img@first"]);
        assert!(pool.read("vm.img") == first);
        assert_eq!(fs::metadata(pool.at("vm.img")).unwrap().mode() & 0o7777, 0o606);
        // And one that was replaced by another file.
        fs::remove_file(pool.at("vm.img")).unwrap();
        pool.write("vm.img", b"other");
        ok(pool, &["snapshot", "rollback", "vm.img@second"]);
        pool.crash("deepen=manual");
        assert!(pool.read("vm.img") == second);
        overwrite(pool, "vm.img", 0, b"written again");
        assert!(snapshot(pool, "vm.img@second") == second && snapshot(pool, "vm.img@first") == first);
        clean(pool);
        assert!(pool.read("vm.img")[13..] == second[13..]);
    });
}

#[test]
fn a_clone_is_reset_to_what_it_was() {
    on_each_filesystem(|pool| {
        let golden = noise(1, 40 * BLOCK + 9);
        pool.write("golden.img", &golden);
        for (name, size) in [("desk.img", None), ("large.img", Some("1M"))] {
            let mut words = vec!["clone", "--no-deepen", "golden.img", name];
            words.extend(size.iter().flat_map(|size| ["--size", size]));
            ok(pool, &words);
        }
        let mut large = golden.clone();
        large.resize(1 << 20, 0);
        for round in 0..3 {
            overwrite(pool, "desk.img", 1000, &noise(round, 2 * BLOCK));
            File::options().write(true).open(pool.at("large.img")).unwrap().set_len(7000).unwrap();
            overwrite(pool, "large.img", 9000, b"y");
            ok(pool, &["snapshot", "create", &format!("desk.img@{round}")]);
            let open = File::options().append(true).open(pool.at("desk.img")).unwrap();
            (&open).write_all(b"more").unwrap();
            refused(pool, &["reset", "desk.img"], "it is open");
            drop(open);
            ok(pool, &["reset", "desk.img", "large.img"]);
            assert!(pool.read("desk.img") == golden && pool.read("large.img") == large);
            if round == 1 {
                pool.crash("deepen=manual");
                assert!(pool.read("desk.img") == golden && pool.read("large.img") == large);
            }
        }
        // Its past is its own: the source can change, and is another matter.
        overwrite(pool, "golden.img", 0, b"changed");
        overwrite(pool, "desk.img", 0, b"changed too");
        ok(pool, &["reset", "desk.img"]);
        assert!(pool.read("desk.img") == golden);
        pool.deepen("desk.img");
        refused(pool, &["reset", "desk.img"], "not below it any more");
        refused(pool, &["reset", "golden.img"], "not below it any more");
        refused(pool, &["reset", "missing"], "No such file");
        assert!(pool.read("desk.img") == golden);
        clean(pool);
    });
}
