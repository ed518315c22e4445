//! Room that is not everybody's: blocks kept for root, and what quotas of users count.

mod support;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use clonefs::client::doors;
use clonefs::protocol::CloneRequest;
use support::{Backing, Disk, Pool, as_user, clonefs, on_each_filesystem, run};

const USER: u32 = 64_401;
const OTHER: u32 = 64_402;
const MIB: u64 = 1 << 20;

/// A pool on a filesystem that was formatted with these options.
fn pool_on(kind: Backing, size: u64, format: &[&str]) -> Pool {
    let mut pool = Pool::unmounted_on(Disk::formatted(kind, size, format));
    pool.mount("deepen=manual,allow_other");
    pool
}

fn writable(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).expect("open")
}

/// Writes until nothing more goes; returns what errno said.
fn fill(path: &Path, at_once: usize) -> i32 {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path).expect("open");
    let bytes = vec![7; at_once];
    for number in 0.. {
        if let Err(error) = file.write_all_at(&bytes, number * at_once as u64) {
            return error.raw_os_error().expect("an error of the system");
        }
    }
    0
}

/// Free blocks.
fn free(disk: &Disk) -> u64 {
    run(Command::new("sync").arg("-f").arg(disk.root())).success();
    let done = run(Command::new("stat").args(["-f", "-c", "%f"]).arg(disk.root())).success();
    done.stdout.trim().parse().expect("a number")
}

#[test]
fn what_is_kept_for_root_is_not_given_to_others() {
    if !support::ready() {
        return;
    }
    let pool = pool_on(Backing::Ext4, 200 * MIB, &["-m", "10"]);
    let plain = pool.disk.root().join("plain");
    fs::create_dir(&plain).expect("directory");
    fs::set_permissions(&plain, PermissionsExt::from_mode(0o777)).expect("mode");
    let left = |path: &Path, user: u32, at_once: usize| {
        let errno = as_user(user, user, || fill(path, at_once));
        assert_eq!(errno, libc::ENOSPC);
        let left = free(&pool.disk);
        fs::remove_file(path).expect("remove");
        left
    };
    let natively = left(&plain.join("file"), USER, MIB as usize);
    assert!(natively > 10_000, "{natively} blocks");
    for at_once in [MIB as usize, 100_000] {
        let mounted = left(&pool.at("file"), USER, at_once);
        assert!(mounted >= natively * 9 / 10, "{mounted} blocks are left, {natively} natively");
    }
    // A clone's bytes are in a file of the pool's own.
    pool.write("base", &[1; 4096]);
    pool.clone("base", "clone");
    chown(pool.at("clone"), Some(USER), Some(USER)).expect("owner");
    let errno = as_user(USER, USER, || {
        let file = writable(&pool.at("clone"));
        (0..).find_map(|number| file.write_all_at(&[7; 65_536], number * 65_536).err()).expect("full").raw_os_error()
    });
    assert_eq!(errno, Some(libc::ENOSPC));
    let cloned = free(&pool.disk);
    assert!(cloned >= natively * 9 / 10, "{cloned} blocks are left, {natively} natively");
    fs::remove_file(pool.at("clone")).expect("remove");
    support::wait_until(|| free(&pool.disk) > natively + 1000);
    // Root has its blocks.
    let of_root = left(&pool.at("of-root"), 0, MIB as usize);
    assert!(of_root < natively / 2, "root leaves {of_root} blocks");
}

/// KiB in files of a user's: what quotas of users count.
fn charged(pool: &Pool, user: u32) -> u64 {
    run(Command::new("sync").arg("-f").arg(pool.disk.root())).success();
    let mut counted = HashMap::new();
    let mut todo = vec![pool.below("")];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).expect("directory") {
            let path = entry.expect("entry").path();
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if meta.is_dir() {
                todo.push(path);
            } else if meta.uid() == user {
                counted.insert(meta.ino(), meta.blocks() / 2);
            }
        }
    }
    counted.values().sum()
}

fn within(pool: &Pool, user: u32, least: u64, what: &str) {
    let charged = charged(pool, user);
    assert!((least * 1024..least * 1024 + 512).contains(&charged), "{what}: {charged} KiB, not {least} MiB");
}

#[test]
fn what_is_written_to_a_clone_is_in_files_of_its_owners() {
    on_each_filesystem(|pool| {
        pool.unmount();
        pool.mount("deepen=manual,allow_other");
        let base = pool.write("base", &vec![1; 16 * MIB as usize]);
        fs::set_permissions(&base, PermissionsExt::from_mode(0o644)).expect("mode");
        for directory in [pool.disk.root(), pool.disk.root().parent().expect("place").to_path_buf()] {
            fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).expect("mode");
        }
        as_user(USER, USER, || {
            File::create(pool.at("clone")).expect("file");
            let token = doors::token(File::open(&base).expect("base"), &base).expect("token");
            let file = writable(&pool.at("clone"));
            doors::clone(&file, &CloneRequest { token, ..CloneRequest::default() }, &base).expect("clone");
            file.write_all_at(&vec![2; 8 * MIB as usize], 0).expect("write");
            file.sync_all().expect("sync");
        });
        within(pool, USER, 8, "a clone");
        // Another owner: the bytes go along, whether the clone is open, in memory or neither.
        let open = File::open(pool.at("clone")).expect("open");
        chown(pool.at("clone"), Some(OTHER), Some(OTHER)).expect("owner");
        within(pool, USER, 0, "given away");
        within(pool, OTHER, 8, "given away");
        drop(open);
        pool.unmount();
        pool.mount("deepen=manual,allow_other");
        chown(pool.at("clone"), Some(USER), Some(USER)).expect("owner");
        within(pool, OTHER, 0, "given back");
        within(pool, USER, 8, "given back");
        // A snapshot in between: what is written after it is the owner's too.
        clonefs(["snapshot", "create", pool.at("clone@then").to_str().expect("path")]).success();
        as_user(USER, USER, || writable(&pool.at("clone")).write_all_at(&vec![3; 4 * MIB as usize], 0).expect("write"));
        within(pool, USER, 12, "after a snapshot");
        // A file of the user's that is frozen, and what is written to it then.
        as_user(OTHER, OTHER, || fs::write(pool.at("own"), vec![4; 4 * MIB as usize]).expect("file"));
        pool.clone("own", "copy");
        as_user(OTHER, OTHER, || {
            let file = writable(&pool.at("own"));
            file.write_all_at(&vec![5; 4 * MIB as usize], 0).expect("write");
        });
        within(pool, OTHER, 8, "the frozen file and what lies over it");
    });
}
