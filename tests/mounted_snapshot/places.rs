//! Where snapshots are found, who reaches them there, and which names and places are refused.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use clonefs::protocol::SNAPSHOT;

use crate::fixture::{BLOCK, clean, command, names, ok, place, refused, snapshot};
use crate::support::{self, Backing, as_user, errno, noise, on, set_xattr};

#[test]
fn snapshots_follow_their_volume_and_outlive_it() {
    on(&[Backing::Ext4], |pool| {
        fs::create_dir_all(pool.at("a/b")).unwrap();
        for (name, seed) in [("a/vm.img", 1), ("a/b/vm.img", 2), ("other.img", 3)] {
            pool.write(name, &noise(seed, 2 * BLOCK));
            ok(pool, &["snapshot", "create", &format!("{name}@s")]);
        }
        fs::rename(pool.at("a"), pool.at("z")).unwrap();
        assert_eq!(names(pool), ["other.img@s", "z/b/vm.img@s", "z/vm.img@s"]);
        fs::rename(pool.at("z/vm.img"), pool.at("vm.img")).unwrap();
        assert!(snapshot(pool, "vm.img@s") == noise(1, 2 * BLOCK));
        // Over a volume that has one of the same name: both stay.
        fs::rename(pool.at("other.img"), pool.at("vm.img")).unwrap();
        assert_eq!(names(pool), ["vm.img@s", "vm.img@s-2", "z/b/vm.img@s"]);
        assert!(snapshot(pool, "vm.img@s") == noise(1, 2 * BLOCK));
        assert!(snapshot(pool, "vm.img@s-2") == noise(3, 2 * BLOCK));
        support::rename(&pool.at("vm.img"), &pool.at("z/b/vm.img"), libc::RENAME_EXCHANGE).unwrap();
        assert!(snapshot(pool, "vm.img@s") == noise(2, 2 * BLOCK));
        assert!(snapshot(pool, "z/b/vm.img@s-2") == noise(3, 2 * BLOCK));
        // Deleting the volume leaves them.
        fs::remove_file(pool.at("vm.img")).unwrap();
        pool.crash("deepen=manual");
        assert_eq!(ok(pool, &["snapshot", "list", "vm.img"]).lines().count(), 2);
        refused(pool, &["snapshot", "rollback", "vm.img@s"], "No such file");
        ok(pool, &["clone", "vm.img@s", "vm.img"]);
        assert!(pool.read("vm.img") == noise(2, 2 * BLOCK));
        ok(pool, &["snapshot", "rename", "vm.img@s", "t"]);
        assert_eq!(names(pool), ["vm.img@t", "z/b/vm.img@s", "z/b/vm.img@s-2"]);
        ok(pool, &["snapshot", "create", "vm.img@s"]);
        refused(pool, &["snapshot", "rename", "vm.img@s", "t"], "exists");
        clean(pool);
    });
}

#[test]
fn the_path_that_a_list_prints_is_a_name_for_every_command() {
    on(&[Backing::Ext4], |pool| {
        fs::create_dir_all(pool.at("a/b")).unwrap();
        for name in ["vm.img", "a/b/vm.img"] {
            pool.write(name, &noise(1, 2 * BLOCK));
            ok(pool, &["snapshot", "create", &format!("{name}@one")]);
        }
        let listed = |pool: &support::Pool| -> Vec<String> {
            let list: serde_json::Value = serde_json::from_str(&ok(pool, &["snapshot", "list", "--json"])).unwrap();
            list.as_array().unwrap().iter().map(|row| row["path"].as_str().unwrap().to_owned()).collect()
        };
        let paths = listed(pool);
        assert_eq!(paths.len(), 2);
        for path in &paths {
            ok(pool, &["snapshot", "rename", path, "two"]);
        }
        for path in listed(pool) {
            assert!(path.ends_with("@two"), "{path}");
            ok(pool, &["snapshot", "rollback", &path]);
        }
        // By a path from the root of the mount, too; and of a volume whose directory is gone.
        ok(pool, &["snapshot", "remove", ".snapshots/vm.img@two"]);
        fs::remove_dir_all(pool.at("a")).unwrap();
        for path in listed(pool) {
            ok(pool, &["snapshot", "remove", &path]);
        }
        assert_eq!(names(pool), [""; 0]);
        clean(pool);
    });
}

#[test]
fn who_may_not_reach_a_volume_does_not_reach_its_snapshots() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        pool.mount("deepen=manual,allow_other");
        for (directory, mode) in [("open", 0o755), ("closed", 0o700), ("shared", 0o777)] {
            fs::create_dir(pool.at(directory)).unwrap();
            fs::set_permissions(pool.at(directory), PermissionsExt::from_mode(mode)).unwrap();
            for (file, mode) in [("public", 0o644), ("secret", 0o600)] {
                let path = pool.write(&format!("{directory}/{file}"), b"contents");
                fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
                ok(pool, &["snapshot", "create", &format!("{directory}/{file}@s")]);
            }
        }
        // What is said of the volume later does not open its past.
        fs::write(pool.at("open/secret"), b"harmless").unwrap();
        fs::set_permissions(pool.at("open/secret"), PermissionsExt::from_mode(0o666)).unwrap();
        let read = |name: &str| errno(as_user(1234, 1234, || fs::read(place(pool, name))));
        assert_eq!(read("open/public@s"), 0);
        assert_eq!(read("open/secret@s"), libc::EACCES);
        assert_eq!(read("closed/public@s"), libc::EACCES);
        assert_eq!(read("closed/secret@s"), libc::EACCES);
        let remove = |name: &str| errno(as_user(1234, 1234, || fs::remove_file(place(pool, name))));
        assert_eq!(remove("open/public@s"), libc::EACCES);
        assert_eq!(remove("closed/public@s"), libc::EACCES);
        assert_eq!(errno(as_user(1234, 1234, || fs::read_dir(place(pool, "closed")).map(drop))), libc::EACCES);
        // Whoever may write to it could bring its past back, for all who may read it now.
        let set = |name: &str, action: &str| {
            let request = format!("{{\"action\":\"{action}\",\"name\":\"s\"}}");
            errno(as_user(1234, 1234, || set_xattr(&pool.at(name), SNAPSHOT, request.as_bytes())))
        };
        assert_eq!(set("open/secret", "rollback"), libc::EPERM);
        assert_eq!(pool.read("open/secret"), b"harmless");
        assert_eq!(set("open/public", "create"), libc::EACCES);
        assert_eq!(
            errno(as_user(1234, 1234, || set_xattr(&pool.at("open/secret"), clonefs::protocol::RESET, b"origin"))),
            libc::EPERM
        );
        // Whoever may remove the volume may remove its snapshots.
        assert_eq!(remove("shared/public@s"), 0);
        // A user's own.
        chown(pool.at("shared/secret"), Some(1234), None).unwrap();
        let clonefs = |words: &[&str]| {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_clonefs"));
            std::os::unix::process::CommandExt::uid(&mut command, 1234);
            support::run(command.args(words).current_dir(pool.at("shared")))
        };
        clonefs(&["snapshot", "create", "secret@mine"]).success();
        fs::write(pool.at("shared/secret"), b"later").unwrap();
        clonefs(&["snapshot", "rollback", "secret@mine"]).success();
        assert_eq!(pool.read("shared/secret"), b"contents");
        // This one was root's when it was made.
        clonefs(&["snapshot", "rollback", "secret@s"]).code(1);
        // Cloned by root from what the user may not read, cut, and given away: the user does not get it back.
        pool.write("golden", b"for root only");
        ok(pool, &["clone", "--no-deepen", "golden", "shared/gift"]);
        fs::write(pool.at("shared/gift"), b"nothing").unwrap();
        chown(pool.at("shared/gift"), Some(1234), None).unwrap();
        assert!(clonefs(&["reset", "gift"]).code(1).stderr.contains("root may do that"));
        assert_eq!(pool.read("shared/gift"), b"nothing");
    });
}

#[test]
fn bad_names_and_bad_places_are_refused_with_one_clear_error() {
    on(&[Backing::Ext4], |pool| {
        pool.write("vm.img", b"x");
        pool.write("two", b"x");
        fs::hard_link(pool.at("two"), pool.at("names")).unwrap();
        fs::create_dir(pool.at("dir")).unwrap();
        support::mknod(&pool.at("device"), libc::S_IFCHR | 0o600, 0x103).unwrap();
        ok(pool, &["snapshot", "create", "vm.img@taken"]);
        let create = |name: &str, why: &str| refused(pool, &["snapshot", "create", name], why);
        create("vm.img", "VOLUME@NAME");
        create("vm.img@", "the name is empty");
        create("vm.img@a/b", "VOLUME@NAME");
        create("vm.img@a\tb", "a name has no");
        create(&format!("vm.img@{}", "x".repeat(250)), "of at most 255");
        create("vm.img@taken", "exists");
        create("missing@s", "No such file");
        create("dir@s", "it is a directory");
        create("device@s", "it is a device");
        create("names@s", "several names");
        create("/etc/hostname@s", "not on a mounted pool");
        refused(pool, &["snapshot", "create", "vm.img", "missing@s"], "No such file");
        refused(pool, &["snapshot", "create", "vm.img", "names@s"], "several names");
        refused(pool, &["snapshot", "rename", "vm.img@taken", "a@b"], "a name has no");
        refused(pool, &["snapshot", "rename", "vm.img@none", "b"], "does not exist");
        refused(pool, &["snapshot", "remove", "vm.img@taken", "vm.img@none"], "does not exist");
        refused(pool, &["snapshot", "rollback", "vm.img@none"], "does not exist");
        refused(pool, &["clone", "vm.img@none", "c"], "does not exist");
        // Straight at the door.
        let door = |value: &str| errno(set_xattr(&pool.at("vm.img"), SNAPSHOT, value.as_bytes()));
        assert_eq!(door("{\"action\":\"create\",\"name\":\"a@b\"}"), libc::EINVAL);
        assert_eq!(door("{\"action\":\"create\",\"name\":\"../x\"}"), libc::EINVAL);
        assert_eq!(door("{\"action\":\"create\",\"name\":\"taken\"}"), libc::EEXIST);
        assert_eq!(door("{\"action\":\"rollback\",\"name\":\"none\"}"), libc::ENOENT);
        assert_eq!(door("nonsense"), libc::EINVAL);
        assert_eq!(names(pool), ["vm.img@taken"]);
        clean(pool);
    });
}

#[test]
fn a_pool_that_has_its_own_directory_of_this_name_keeps_it() {
    on(&[Backing::Ext4], |pool| {
        fs::create_dir(pool.below(".snapshots")).unwrap();
        fs::write(pool.below(".snapshots/mine"), b"mine").unwrap();
        pool.write("vm.img", b"x");
        assert_eq!(pool.read(".snapshots/mine"), b"mine");
        pool.write(".snapshots/more", b"more");
        assert!(command(pool, &["snapshot", "create", "vm.img@s"]).code(1).stderr.contains(".snapshots"));
        fs::remove_dir_all(pool.at(".snapshots")).unwrap();
        ok(pool, &["snapshot", "create", "vm.img@s"]);
        assert_eq!(snapshot(pool, "vm.img@s"), b"x");
    });
}
