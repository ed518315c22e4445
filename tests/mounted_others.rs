//! What users can do to others through the doors, and learn of them: nothing.

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use clonefs::protocol::{
    CLONE, CloneRequest, DEEPEN, INFO, ORIGIN, POLICIES, POLICY, PoolStatus, STATUS, TOKEN, VolumeInfo,
};
use support::{Backing, Pool, as_user, clonefs, errno, get_xattr, is_running, noise, on, set_xattr, wait_until};

const BLOCK: usize = 4096;
const OWNER: u32 = 64201;
const STRANGER: u32 = 64202;

fn for_all(pool: &mut Pool, options: &str) {
    pool.unmount();
    pool.mount(&format!("allow_other,{options}"));
    fs::set_permissions(pool.root(), fs::Permissions::from_mode(0o1777)).expect("mode");
}

fn own(pool: &Pool, name: &str, mode: u32) {
    fs::set_permissions(pool.at(name), fs::Permissions::from_mode(mode)).expect("mode");
    chown(pool.at(name), Some(OWNER), Some(OWNER)).expect("owner");
}

/// A clone at once under its own name.
fn clone(pool: &Pool, source: &str, target: &str) {
    File::create(pool.at(target)).expect("target");
    let token = String::from_utf8(get_xattr(&pool.at(source), TOKEN).expect("token")).expect("text");
    let request = CloneRequest { token, ..CloneRequest::default() };
    set_xattr(&pool.at(target), CLONE, &serde_json::to_vec(&request).expect("JSON")).expect("clone");
}

fn status(pool: &Pool, user: u32) -> PoolStatus {
    let json = as_user(user, user, || get_xattr(pool.root(), STATUS)).expect("status");
    serde_json::from_slice(&json).expect("JSON")
}

#[test]
fn the_rate_of_the_pool_is_not_set_at_a_file_of_ones_own() {
    on(&[Backing::Ext4], |pool| {
        for_all(pool, "deepen=manual,rate=7M");
        pool.write("base", &noise(1, 4 * BLOCK));
        pool.clone("base", "vm");
        for name in ["base", "vm"] {
            own(pool, name, 0o644);
        }
        let rate = || pool.mounted().status().rate_limit;
        as_user(OWNER, OWNER, || {
            for (name, action) in [("base", "resume"), ("vm", "resume"), ("vm", "start"), ("vm", "pause")] {
                let request = format!("{{\"action\":\"{action}\",\"rate\":1}}");
                assert_eq!(errno(set_xattr(&pool.at(name), DEEPEN, request.as_bytes())), libc::EPERM, "{name}");
            }
            assert_eq!(errno(set_xattr(pool.root(), DEEPEN, b"pause")), libc::EPERM);
            assert_eq!(errno(set_xattr(pool.root(), POLICY, b"{\"rate\":\"1\"}")), libc::EPERM);
            set_xattr(&pool.at("vm"), DEEPEN, b"pause").expect("what is one's own");
        });
        assert_eq!(rate(), 7 << 20);
        let file = pool.at("vm");
        set_xattr(&file, DEEPEN, b"{\"action\":\"resume\",\"rate\":99}").expect("root may");
        assert_eq!(rate(), 99);
    });
}

#[test]
fn nobody_is_told_a_path_that_they_could_not_find() {
    on(&[Backing::Ext4], |pool| {
        for_all(pool, "deepen=auto,rate=4K");
        for (directory, mode) in [("private", 0o700), ("dark", 0o711), ("open", 0o755)] {
            fs::create_dir(pool.at(directory)).expect("directory");
            pool.write(&format!("{directory}/base"), &noise(1, 1 << 20));
            clone(pool, &format!("{directory}/base"), &format!("{directory}/vm"));
            for name in [format!("{directory}/base"), format!("{directory}/vm"), directory.to_owned()] {
                own(pool, &name, if name == directory { mode } else { 0o644 });
            }
            set_xattr(&pool.at(format!("{directory}/base")), POLICY, b"{\"keep-linked\":false}").expect("policy");
        }
        clone(pool, "private/base", "public");
        own(pool, "public", 0o644);
        let jobs = |user| {
            let mut paths: Vec<String> = status(pool, user).jobs.into_iter().map(|job| job.path).collect();
            paths.sort();
            paths
        };
        let all = ["dark/vm", "open/vm", "private/vm", "public"];
        assert_eq!(jobs(0), all);
        assert_eq!(jobs(OWNER), all);
        assert_eq!(jobs(STRANGER), ["open/vm", "public"]);
        assert_eq!(status(pool, STRANGER).job_count, 4, "how much there is to do is no secret");
        as_user(STRANGER, STRANGER, || {
            let policies = String::from_utf8(get_xattr(pool.root(), POLICIES).expect("policies")).expect("text");
            assert!(policies.contains("open") && !policies.contains("private") && !policies.contains("dark"));
            let info: VolumeInfo = serde_json::from_slice(&get_xattr(&pool.at("public"), INFO).expect("info")).unwrap();
            assert_eq!(info.origin, None);
            assert_eq!(get_xattr(&pool.at("public"), ORIGIN).expect("origin"), b"");
            assert_eq!(get_xattr(&pool.at("open/vm"), ORIGIN).expect("origin"), b"open/base");
        });
        as_user(OWNER, OWNER, || assert_eq!(get_xattr(&pool.at("public"), ORIGIN).expect("origin"), b"private/base"));
        let policies = String::from_utf8(get_xattr(pool.root(), POLICIES).expect("policies")).expect("text");
        assert!(policies.contains("private") && policies.contains("dark"));
    });
}

#[test]
fn requests_of_one_user_that_wait_are_bounded_and_hinder_nobody_else() {
    on(&[Backing::Tmpfs], |pool| {
        for_all(pool, "deepen=manual");
        pool.write("base", b"x");
        own(pool, "base", 0o644);
        let join = |user: u32, target: &str, group: &str| {
            let (base, target) = (pool.at("base"), pool.at(target));
            as_user(user, user, || {
                let _ = File::create(&target);
                let token = String::from_utf8(get_xattr(&base, TOKEN).expect("token")).expect("text");
                let group = Some(group.to_owned());
                let request = CloneRequest { token, group, ..CloneRequest::default() };
                set_xattr(&target, CLONE, &serde_json::to_vec(&request).expect("JSON"))
            })
        };
        let group = |user: u32, number: usize| format!("group {number} of user {user}, not to be guessed");
        join(STRANGER, "of-another", &group(STRANGER, 0)).expect("a group of another user's");
        for number in 0..16 {
            join(OWNER, "mine", &group(OWNER, number)).expect("a group");
        }
        assert_eq!(errno(join(OWNER, "mine", &group(OWNER, 16))), libc::ENOBUFS);
        join(STRANGER, "of-another", &group(STRANGER, 0)).expect("it is there still");
        join(0, "of-root", &group(0, 0)).expect("there is room for others");
        assert_eq!(errno(join(OWNER, "mine", &"x".repeat(256))), libc::EINVAL);
    });
}

/// A process of a user's that holds a lock on a directory until it is dropped.
struct Locker(std::process::Child);

impl Locker {
    fn new(directory: &Path, user: u32, how: &str) -> Locker {
        let user = user.to_string();
        let line = format!("exec 9<\"$1\" && flock {how} -n 9 && echo locked && exec sleep 100");
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "sh", "-c", &line, "sh"]).arg(directory);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("a process that locks");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("what it says");
        assert_eq!(line, "locked\n");
        Locker(child)
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_strangers_lock_on_the_directory_does_not_keep_it_from_being_mounted() {
    on(&[Backing::Ext4, Backing::Xfs, Backing::Btrfs], |pool| {
        pool.unmount();
        let root = pool.root().to_owned();
        for how in ["-s", "-x"] {
            for cloned in [false, true] {
                if cloned && !pool.below(".clonefs/pool.json").exists() {
                    clonefs([Path::new("init"), &root]).success();
                }
                let stranger = Locker::new(&root, STRANGER, how);
                pool.mount("deepen=manual");
                // Another daemon of this version is kept out, and so is an older one, by the lock that it knows.
                detach(pool, |pid| {
                    let said = clonefs([Path::new("check"), &root]).code(8).stderr;
                    assert!(said.contains(&format!("process {pid}")), "{how}: {said}");
                    drop(stranger);
                    let old = || Command::new("flock").args(["-x", "-n"]).arg(&root).arg("true").status();
                    wait_until(|| !old().expect("flock").success());
                });
                clonefs([Path::new("check"), &root]).success();
            }
        }
        // An older daemon of ours, which knows that lock alone, is no stranger.
        let old = Locker::new(&root, 0, "-x");
        let said = clonefs([Path::new("check"), &root]).code(8).stderr;
        assert!(said.contains(&format!("process {}", old.0.id())), "{said}");
        drop(old);
        pool.mount("deepen=manual");
    });
}

/// Takes the mount away while a file is open, so that nothing shows that the pool is served but the locks.
fn detach(pool: &mut Pool, work: impl FnOnce(u32)) {
    let pid = pool.mounted().status().pid;
    fs::write(pool.at("open"), b"x").expect("a file");
    let open = File::open(pool.at("open")).expect("a file");
    clonefs([Path::new("unmount"), Path::new("--lazy"), pool.root()]).success();
    work(pid);
    drop(open);
    wait_until(|| !is_running(pid));
    pool.forget_mount();
}

#[test]
fn a_metadata_directory_of_a_strangers_is_refused_with_the_owner_named() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        fs::set_permissions(pool.root(), fs::Permissions::from_mode(0o1777)).expect("mode");
        as_user(OWNER, OWNER, || fs::create_dir(pool.below(".clonefs"))).expect("directory");
        let root = pool.root().to_str().expect("path");
        for (arguments, code) in [(vec!["mount", root], 1), (vec!["init", root], 1), (vec!["check", root], 8)] {
            let said = clonefs(&arguments).code(code).stderr;
            assert!(said.contains(".clonefs") && said.contains(&OWNER.to_string()), "{arguments:?}: {said}");
        }
        assert_eq!(fs::read_dir(pool.below(".clonefs")).expect("directory").count(), 0);
        // One that others may write to is none to rely on either.
        chown(pool.below(".clonefs"), Some(0), Some(0)).expect("owner");
        fs::set_permissions(pool.below(".clonefs"), fs::Permissions::from_mode(0o777)).expect("mode");
        clonefs(["mount", root]).code(1);
        fs::set_permissions(pool.below(".clonefs"), fs::Permissions::from_mode(0o700)).expect("mode");
        pool.mount("deepen=manual");
        pool.write("base", b"x");
        pool.clone("base", "vm");
        assert_eq!(pool.read("vm"), b"x");
    });
}
