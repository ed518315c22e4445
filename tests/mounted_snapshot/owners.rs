//! A snapshot belongs to the directory that its volume was in, not to whatever has that name later.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use crate::fixture::{BLOCK, clean, names, ok, place, snapshot};
use crate::support::{Backing, Pool, as_user, errno, get_xattr, noise, on, remove_xattr, rename, set_xattr};

const OWNER: u32 = 64201;
const STRANGER: u32 = 64202;
/// Where a directory's identity is kept.
const MARK: &str = "user.clonefs.directory";

fn for_all(pool: &mut Pool) {
    pool.unmount();
    pool.mount("deepen=manual,allow_other");
    fs::set_permissions(pool.root(), fs::Permissions::from_mode(0o1777)).unwrap();
}

/// A directory that only its owner may search, with a volume that everybody may read.
fn private(pool: &Pool, directory: &str) {
    fs::create_dir(pool.at(directory)).unwrap();
    let volume = pool.write(&format!("{directory}/vm.img"), &noise(1, 2 * BLOCK));
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(pool.at(directory), fs::Permissions::from_mode(0o700)).unwrap();
    chown(&volume, Some(OWNER), Some(OWNER)).unwrap();
    chown(pool.at(directory), Some(OWNER), Some(OWNER)).unwrap();
    ok(pool, &["snapshot", "create", &format!("{directory}/vm.img@s")]);
}

/// The stranger's directory has the name of one that is gone.
fn namesake(pool: &Pool, directory: &str) {
    as_user(STRANGER, STRANGER, || fs::create_dir(pool.at(directory))).unwrap();
    as_user(STRANGER, STRANGER, || fs::set_permissions(pool.at(directory), PermissionsExt::from_mode(0o777))).unwrap();
}

fn check_out_of_reach(pool: &Pool, path: &str) {
    let there = place(pool, path);
    as_user(STRANGER, STRANGER, || {
        assert_eq!(errno(fs::read(&there)), libc::EACCES);
        assert_eq!(errno(fs::metadata(&there)), libc::EACCES);
        assert_eq!(errno(fs::remove_file(&there)), libc::EACCES);
        assert_eq!(errno(fs::rename(&there, there.with_file_name("vm.img@mine"))), libc::EACCES);
        let listed = fs::read_dir(there.parent().unwrap()).unwrap().count();
        assert_eq!(listed, 0, "nor are they told its name");
    });
    as_user(OWNER, OWNER, || assert!(fs::read(&there).unwrap() == noise(1, 2 * BLOCK)));
    assert!(snapshot(pool, path) == noise(1, 2 * BLOCK));
}

#[test]
fn a_directory_of_a_deleted_ones_name_gives_nobody_its_snapshots() {
    on(&[Backing::Ext4, Backing::Xfs, Backing::Btrfs], |pool| {
        for_all(pool);
        private(pool, "private");
        as_user(STRANGER, STRANGER, || assert_eq!(errno(fs::read(place(pool, "private/vm.img@s"))), libc::EACCES));
        fs::remove_dir_all(pool.at("private")).unwrap();
        namesake(pool, "private");
        check_out_of_reach(pool, "private/vm.img@s");
        // Their own volume can have a snapshot of that name, and is renamed without taking the other one along.
        as_user(STRANGER, STRANGER, || fs::write(pool.at("private/vm.img"), b"new")).unwrap();
        ok(pool, &["snapshot", "create", "private/vm.img@s"]);
        assert_eq!(names(pool), ["private/vm.img@s", "private/vm.img@s-2"]);
        as_user(STRANGER, STRANGER, || assert_eq!(fs::read(place(pool, "private/vm.img@s")).unwrap(), b"new"));
        fs::rename(pool.at("private/vm.img"), pool.at("moved.img")).unwrap();
        assert_eq!(names(pool), ["moved.img@s", "private/vm.img@s-2"]);
        clean(pool);
        pool.unmount();
        pool.mount("deepen=manual,allow_other");
        check_out_of_reach(pool, "private/vm.img@s-2");
    });
}

#[test]
fn snapshots_stay_with_a_directory_that_is_renamed_and_with_a_volume_that_moves() {
    on(&[Backing::Ext4, Backing::Xfs], |pool| {
        for_all(pool);
        private(pool, "one");
        private(pool, "two");
        let mine = |path: &str| as_user(OWNER, OWNER, || fs::read(place(pool, path)).map_err(|e| e.to_string()));
        fs::rename(pool.at("one"), pool.at("three")).unwrap();
        assert!(mine("three/vm.img@s").unwrap() == noise(1, 2 * BLOCK));
        rename(&pool.at("two"), &pool.at("three"), libc::RENAME_EXCHANGE).unwrap();
        assert!(mine("two/vm.img@s").is_ok() && mine("three/vm.img@s").is_ok());
        // Into a directory that others may search they come with their volume.
        fs::create_dir(pool.at("open")).unwrap();
        fs::rename(pool.at("two/vm.img"), pool.at("open/vm.img")).unwrap();
        as_user(STRANGER, STRANGER, || assert!(fs::read(place(pool, "open/vm.img@s")).is_ok()));
        fs::rename(pool.at("open/vm.img"), pool.at("two/vm.img")).unwrap();
        as_user(STRANGER, STRANGER, || assert_eq!(errno(fs::read(place(pool, "two/vm.img@s"))), libc::EACCES));
        assert!(mine("two/vm.img@s").is_ok());
    });
}

#[test]
fn nobody_sees_sets_or_copies_what_a_directory_is_known_by() {
    on(&[Backing::Ext4], |pool| {
        for_all(pool);
        private(pool, "private");
        let directory = pool.at("private");
        assert_eq!(errno(get_xattr(&directory, MARK)), libc::ENODATA);
        assert_eq!(errno(set_xattr(&directory, MARK, b"x")), libc::EPERM);
        assert_eq!(errno(remove_xattr(&directory, MARK)), libc::EPERM);
        let mark = get_xattr(&pool.below("private"), MARK).unwrap();
        assert_eq!(mark.len(), 32);
        // A pool from before there were marks: the directory that is there is taken for the right one, if it can be.
        pool.unmount();
        remove_xattr(&pool.below("private"), MARK).unwrap();
        pool.mount("deepen=manual,allow_other");
        as_user(OWNER, OWNER, || assert!(fs::read(place(pool, "private/vm.img@s")).is_ok(), "it is theirs"));
    });
}

#[test]
fn a_snapshot_of_a_privileged_program_has_no_privileges() {
    on(&[Backing::Ext4], |pool| {
        for_all(pool);
        let program = pool.write("program", &noise(1, BLOCK));
        // cap_net_raw+ep, as setcap writes it.
        let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        set_xattr(&program, "security.capability", &capability).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o6755)).unwrap();
        ok(pool, &["snapshot", "create", "program@s"]);
        let check = |pool: &Pool| {
            let there = place(pool, "program@s");
            assert_eq!(fs::metadata(&there).unwrap().mode() & 0o7777, 0o755);
            assert_eq!(errno(get_xattr(&there, "security.capability")), libc::ENODATA);
        };
        check(pool);
        // What an older version has left is taken off at the next start.
        pool.unmount();
        let stub = fs::read_dir(pool.below(".clonefs/snapshots")).unwrap().next().unwrap().unwrap().path();
        fs::set_permissions(&stub, fs::Permissions::from_mode(0o6755)).unwrap();
        set_xattr(&stub, "security.capability", &capability).unwrap();
        pool.mount("deepen=manual,allow_other");
        check(pool);
    });
}
