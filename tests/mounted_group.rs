//! Groups: several files, or a tree, cloned as of one moment.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use clonefs::protocol::{CLONE, GROUP, TOKEN};
use support::{
    Backing, Mapping, Pool, clonefs, errno, get_xattr, noise, on, on_each_filesystem, set_xattr, wait_until,
};

const BLOCK: usize = 4096;
const FILES: usize = 4;

/// Groups taken of each kind; a long run sets it to 1,000.
fn rounds() -> u64 {
    std::env::var("CLONEFS_GROUPS").ok().and_then(|n| n.parse().ok()).unwrap_or(15)
}

fn writable(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

/// Memory that O_DIRECT takes.
fn aligned(fill: u64) -> Mapping {
    let file = tempfile::tempfile().unwrap();
    file.set_len(BLOCK as u64).unwrap();
    let mut page = Mapping::new(&file, BLOCK).unwrap();
    page.bytes().copy_from_slice(&fill.to_le_bytes().repeat(512));
    page
}

fn name(file: usize) -> String {
    format!("disk{file}.img")
}

/// Runs `work` while somebody stamps one rising number into the files in turn, with all ways of writing.
fn under_stamps(paths: &[PathBuf], work: impl FnOnce()) {
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let cached: Vec<File> = paths.iter().map(|path| writable(path)).collect();
            let direct = File::options();
            let direct: Vec<File> = paths
                .iter()
                .map(|path| direct.clone().write(true).custom_flags(libc::O_DIRECT).open(path).unwrap())
                .collect();
            for number in 1u64.. {
                for file in 0..paths.len() {
                    if (number + file as u64).is_multiple_of(2) {
                        cached[file].write_all_at(&number.to_le_bytes(), 0).unwrap();
                    } else {
                        direct[file].write_all_at(aligned(number).bytes(), 0).unwrap();
                    }
                    if number.is_multiple_of(100) {
                        cached[file].sync_data().unwrap();
                    }
                }
                done.store(number, Ordering::SeqCst);
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        wait_until(|| done.load(Ordering::SeqCst) > 10);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn stamp(path: &Path) -> u64 {
    let mut bytes = [0; 8];
    File::open(path).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    u64::from_le_bytes(bytes)
}

/// The stamps of a group are those of one moment: each file has the number of the first, or, from some file on, the one
/// before.
fn one_moment(stamps: &[u64]) {
    assert!(stamps.windows(2).all(|pair| pair[0] >= pair[1]), "a later file is ahead: {stamps:?}");
    assert!(stamps[stamps.len() - 1] + 1 >= stamps[0], "a file is left behind: {stamps:?}");
}

/// Files of all kinds: plain ones and clones, written to or not.
fn disks(pool: &Pool) -> Vec<PathBuf> {
    pool.write("base", &noise(1, 3 * BLOCK));
    for file in 0..FILES {
        if file % 2 == 0 {
            pool.write(&name(file), &noise(file as u64, 2 * BLOCK));
        } else {
            pool.clone("base", &name(file));
        }
    }
    (0..FILES).map(|file| pool.at(name(file))).collect()
}

fn group_command(paths: &[PathBuf], directory: &Path) -> Vec<std::ffi::OsString> {
    let words = ["clone", "--group", "--no-deepen"].map(std::ffi::OsString::from);
    words.into_iter().chain(paths.iter().map(Into::into)).chain([directory.into()]).collect()
}

#[test]
fn a_group_is_of_one_moment_however_its_files_are_written() {
    on_each_filesystem(|pool| {
        let paths = disks(pool);
        let mut last = 0;
        under_stamps(&paths, || {
            for round in 0..rounds() {
                let into = pool.at(format!("group{round}"));
                clonefs(group_command(&paths, &into)).success();
                let stamps: Vec<u64> = (0..FILES).map(|file| stamp(&into.join(name(file)))).collect();
                one_moment(&stamps);
                assert!(stamps[0] >= last, "a group is older than the one before");
                last = stamps[0];
                fs::remove_dir_all(&into).unwrap();
            }
        });
        pool.unmount();
        clonefs([Path::new("check"), pool.root()]).success();
    });
}

#[test]
fn a_tree_is_of_one_moment() {
    on(&[Backing::Ext4], |pool| {
        fs::create_dir_all(pool.at("lab/deep/er")).unwrap();
        let place = |file: usize| ["lab", "lab/deep", "lab/deep/er", "lab"][file].to_owned() + "/" + &name(file);
        let paths: Vec<PathBuf> = (0..FILES).map(|file| pool.write(&place(file), &noise(3, 2 * BLOCK))).collect();
        fs::set_permissions(pool.at("lab/deep"), std::os::unix::fs::PermissionsExt::from_mode(0o500)).unwrap();
        under_stamps(&paths, || {
            for round in 0..rounds() {
                let into = pool.at(format!("copy{round}"));
                let words = ["clone", "-r", "--no-deepen"].map(Path::new);
                clonefs(words.into_iter().chain([pool.at("lab").as_path(), &into])).success();
                let below = |file| into.join(Path::new(&place(file)).strip_prefix("lab").unwrap());
                one_moment(&(0..FILES).map(|file| stamp(&below(file))).collect::<Vec<_>>());
                assert_eq!(fs::metadata(into.join("deep")).unwrap().mode() & 0o7777, 0o500);
            }
        });
    });
}

#[test]
fn a_group_is_whole_or_not_there_when_the_daemon_is_killed() {
    on(&[Backing::Ext4], |pool| {
        let paths = disks(pool);
        let mut whole = 0;
        for round in 0..8u64 {
            let into = pool.at(format!("group{round}"));
            let mut command = Command::new(env!("CARGO_BIN_EXE_clonefs"));
            command.args(group_command(&paths, &into)).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            // Any moment will do; none is waited for.
            std::thread::sleep(std::time::Duration::from_millis(3 * round));
            pool.crash("deepen=manual");
            child.wait().unwrap();
            if into.exists() {
                whole += 1;
                for (file, path) in paths.iter().enumerate() {
                    assert!(fs::read(into.join(name(file))).unwrap() == fs::read(path).unwrap(), "{file} of {round}");
                }
            }
        }
        clonefs(group_command(&paths, &pool.at("last"))).success();
        eprintln!("{whole} of 8 groups were whole");
        pool.unmount();
        clonefs([Path::new("check"), pool.root()]).success();
    });
}

#[test]
fn a_group_that_cannot_be_made_changes_nothing() {
    on(&[Backing::Ext4], |pool| {
        let paths = disks(pool);
        fs::create_dir(pool.at("dir")).unwrap();
        fs::create_dir(pool.at("there")).unwrap();
        pool.write("dir/disk0.img", b"another of this name");
        pool.write("names", b"two");
        fs::hard_link(pool.at("names"), pool.at("names2")).unwrap();
        let before: Vec<_> = list(pool.root());
        let refuse = |others: &[&str], into: &str, why: &str| {
            let all: Vec<PathBuf> = paths.iter().cloned().chain(others.iter().map(|o| pool.at(o))).collect();
            let done = clonefs(group_command(&all, &pool.at(into))).code(1);
            assert!(done.stderr.contains(why), "{}", done.stderr);
            assert_eq!(list(pool.root()), before);
        };
        refuse(&[], "there", "does not exist");
        refuse(&["dir/disk0.img"], "new", "two files of the group have this name");
        refuse(&["missing"], "new", "No such file");
        refuse(&["dir"], "new", "it is a directory");
        refuse(&["names"], "new", "several names");
        clonefs(["clone", "--group", "only-one"]).code(2);
    });
}

fn list(directory: &Path) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    names
}

#[test]
fn a_group_is_told_by_every_file_of_it_and_carried_out_once() {
    on(&[Backing::Ext4], |pool| {
        let paths = disks(pool);
        let group = "0123456789abcdef0123";
        let join = |source: &Path, target: &Path, group: &str| {
            let token = String::from_utf8(get_xattr(source, TOKEN).unwrap()).unwrap();
            let request = serde_json::json!({ "token": token, "group": group }).to_string();
            set_xattr(target, CLONE, request.as_bytes())
        };
        let carry_out = |target: &Path, members: usize| {
            let request = serde_json::json!({ "group": group, "members": members }).to_string();
            set_xattr(target, GROUP, request.as_bytes())
        };
        let (a, b) = (pool.write("a", b""), pool.write("b", b""));
        join(&paths[0], &a, group).unwrap();
        join(&paths[1], &b, group).unwrap();
        assert_eq!(fs::metadata(&a).unwrap().len(), 0);
        // One is missing: nothing happens, and the group is no more.
        assert_eq!(errno(carry_out(&a, 3)), libc::EINVAL);
        assert_eq!(errno(carry_out(&a, 2)), libc::EINVAL);
        assert_eq!(errno(join(&paths[0], &a, "short")), libc::EINVAL);
        join(&paths[0], &a, group).unwrap();
        join(&paths[1], &b, group).unwrap();
        carry_out(&b, 2).unwrap();
        assert!(fs::read(&a).unwrap() == fs::read(&paths[0]).unwrap());
        assert!(fs::read(&b).unwrap() == fs::read(&paths[1]).unwrap());
        // A file cannot be two members, nor source and clone.
        let (c, d) = (pool.write("c", b""), pool.write("d", b""));
        join(&paths[0], &c, group).unwrap();
        join(&paths[1], &c, group).unwrap();
        assert_eq!(errno(carry_out(&c, 2)), libc::EINVAL);
        join(&c, &d, group).unwrap();
        join(&paths[1], &c, group).unwrap();
        assert_eq!(errno(carry_out(&c, 2)), libc::EINVAL);
        // What was written to meanwhile is no empty file any more: none of the group is made.
        join(&paths[0], &c, group).unwrap();
        join(&paths[1], &d, group).unwrap();
        fs::write(&d, b"mine").unwrap();
        assert_eq!(errno(carry_out(&c, 2)), libc::EEXIST);
        assert_eq!((fs::read(&c).unwrap(), fs::read(&d).unwrap()), (Vec::new(), b"mine".to_vec()));
    });
}
