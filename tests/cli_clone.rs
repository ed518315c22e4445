//! `clonefs clone` on a mounted pool: each sentence of the manual, and every refusal.

mod support;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use support::cli::{Pool, names, noise, on_each, refused, run, shell};

#[test]
fn a_clone_has_the_bytes_and_attributes_of_its_source_and_a_life_of_its_own() {
    on_each(&[], |pool| {
        let image = noise(3 << 20);
        pool.write("base.img", &image);
        let base = pool.path("base.img");
        fs::set_permissions(&base, fs::Permissions::from_mode(0o640)).unwrap();
        shell(&format!("setfattr -n user.note -v hello {base:?}; setfacl -m u:7:r {base:?}; touch -d @1000 {base:?}"));
        run(pool, &["clone", "base.img", "vm1.img"]);
        assert!(pool.read("vm1.img") == image);
        let meta = fs::metadata(pool.path("vm1.img")).unwrap();
        assert_eq!(meta.mode() & 0o7777, 0o640);
        assert!(meta.mtime() > 1000, "a clone was modified now");
        assert_eq!(shell(&format!("getfattr --only-values -n user.note {:?}", pool.path("vm1.img"))), "hello");
        assert!(shell(&format!("getfacl -cn {:?}", pool.path("vm1.img"))).contains("user:7:r--"));
        fs::OpenOptions::new().write(true).open(pool.path("vm1.img")).unwrap().write_all_at(b"clone", 4096).unwrap();
        fs::OpenOptions::new().write(true).open(&base).unwrap().write_all_at(b"source", 8192).unwrap();
        assert_eq!(pool.read("vm1.img")[4096..4101], *b"clone");
        assert_eq!(pool.read("vm1.img")[8192..8198], image[8192..8198]);
        assert_eq!(pool.read("base.img")[4096..4101], image[4096..4101]);
    });
}

#[test]
fn a_larger_clone_ends_in_zeros_and_a_smaller_one_is_refused() {
    on_each(&[], |pool| {
        let image = noise(1_000_000);
        pool.write("base.img", &image);
        run(pool, &["clone", "base.img", "big.img", "--size", "2M"]);
        let big = pool.read("big.img");
        assert_eq!(big.len(), 2 << 20);
        assert!(big[..1_000_000] == image && big[1_000_000..].iter().all(|&b| b == 0));
        let said = refused(pool, &["clone", "base.img", "small.img", "--size", "999999"], 1);
        assert!(
            said.contains("base.img") && said.contains("smaller than its source") && said.contains("--size"),
            "{said}"
        );
        assert_eq!(pool.names(), ["base.img", "big.img"]);
    });
}

#[test]
fn without_a_destination_the_clone_stands_beside_its_source_and_is_named() {
    on_each(&[], |pool| {
        fs::create_dir(pool.path("sub")).unwrap();
        pool.write("sub/base.img", b"x");
        assert_eq!(run(pool, &["clone", "sub/base.img"]), "sub/base.img-clone\n");
        assert_eq!(run(pool, &["clone", "sub/base.img"]), "sub/base.img-clone-2\n");
        assert_eq!(run(pool, &["clone", "-r", "sub"]), "sub-clone\n");
        assert_eq!(names(&pool.path("sub-clone")), ["base.img", "base.img-clone", "base.img-clone-2"]);
        pool.write(&"n".repeat(250), b"x");
        assert!(refused(pool, &["clone", &"n".repeat(250)], 1).contains("256 bytes"));
    });
}

#[test]
fn several_sources_go_into_a_directory_all_or_none() {
    on_each(&[], |pool| {
        fs::create_dir(pool.path("vms")).unwrap();
        pool.write("a", b"aa");
        pool.write("b", b"bb");
        run(pool, &["clone", "a", "b", "vms/"]);
        assert_eq!((pool.read("vms/a"), pool.read("vms/b")), (b"aa".to_vec(), b"bb".to_vec()));
        run(pool, &["clone", "a", "vms/c"]);
        pool.write("d", b"dd");
        let said = refused(pool, &["clone", "d", "missing", "vms"], 1);
        assert!(said.contains("missing"), "{said}");
        let said = refused(pool, &["clone", "d", "a", "vms"], 1);
        assert!(said.contains("vms/a") && said.contains("--force"), "{said}");
        assert_eq!(names(&pool.path("vms")), ["a", "b", "c"]);
    });
}

#[test]
fn many_clones_are_numbered_and_made_together_or_not_at_all() {
    on_each(&[], |pool| {
        let image = noise(100_000);
        pool.write("base.img", &image);
        run(pool, &["clone", "base.img", "--count", "12", "vm{:03}.img"]);
        assert_eq!(pool.names().len(), 13);
        assert!(pool.read("vm001.img") == image && pool.read("vm012.img") == image);
        pool.write("x7", b"mine");
        let said = refused(pool, &["clone", "base.img", "--count", "9", "x{}"], 1);
        assert!(said.contains("x7"), "{said}");
        assert_eq!(pool.names().iter().filter(|n| n.starts_with('x')).count(), 1);
        assert_eq!(pool.read("x7"), b"mine");
    });
}

#[test]
fn force_replaces_in_one_step() {
    on_each(&[], |pool| {
        let (old, new) = (vec![1u8; 300_000], vec![2u8; 400_000]);
        pool.write("base.img", &new);
        pool.write("vm.img", &old);
        assert!(refused(pool, &["clone", "base.img", "vm.img"], 1).contains("--force"));
        assert!(pool.read("vm.img") == old);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut looks = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let seen = match fs::read(pool.path("vm.img")) {
                        Ok(seen) => seen,
                        // The kernel looks a name up once more; if it was replaced again by then, the caller has to.
                        Err(e) if e.raw_os_error() == Some(libc::ESTALE) => continue,
                        Err(e) => panic!("the name stood for nothing: {e}"),
                    };
                    assert!(seen == old || seen == new, "the name stood for {} bytes of something else", seen.len());
                    looks += 1;
                }
                looks
            });
            for _ in 0..20 {
                run(pool, &["clone", "--force", "base.img", "vm.img"]);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(watcher.join().unwrap() > 0);
        });
        assert!(pool.read("vm.img") == new);
        let said = refused(pool, &["clone", "--force", "base.img", "base.img"], 1);
        assert!(said.contains("same file"), "{said}");
        std::os::unix::fs::symlink("base.img", pool.path("link")).unwrap();
        run(pool, &["clone", "--force", "vm.img", "link"]);
        assert!(fs::symlink_metadata(pool.path("link")).unwrap().is_file());
        assert_eq!(pool.names(), ["base.img", "link", "vm.img"]);
    });
}

#[test]
fn a_tree_is_cloned_as_cp_does_and_appears_complete() {
    // Deepening ends with a rename, which a directory's time of modification shows.
    on_each(&["--deepen", "manual"], |pool| {
        let root = pool.path("");
        shell(&format!(
            "cd {root:?}; mkdir -p t/sub/empty; head -c 300000 /dev/urandom > t/a; echo b > t/sub/b; ln t/a t/sub/same; \
         ln -s ../nowhere t/link; mkfifo t/sub/fifo; chmod 2750 t/sub; chmod 444 t/sub/b; chown 7:8 t/a; \
         setfattr -n user.k -v v t/sub; touch -d @1000 t/a t/sub/fifo; touch -hd @2000 t/link; touch -d @3000 t t/sub"
        ));
        let clone = || {
            let output = pool.clonefs(&["clone", "-r", "t", "copy"]);
            let said = String::from_utf8_lossy(&output.stderr);
            // The file of two names cannot share its blocks.
            assert!(output.status.success() && said.contains("1 of 2 files"), "{said}");
        };
        clone();
        shell(&format!("cp -a {root:?}/t {root:?}/wanted"));
        let listing = "find . -printf '%P %y %m %U %G %s %T@ %l %n\\n' | grep -v ' d ' | sort; \
                   find . -type d -printf '%P %m %U %G %T@\\n' | sort";
        let list = |dir: &str| shell(&format!("cd {:?}; {listing}", pool.path(dir)));
        assert_eq!(list("copy"), list("wanted"));
        shell(&format!("diff -r --no-dereference {root:?}/t/a {root:?}/copy/a"));
        assert_eq!(shell(&format!("getfattr --only-values -n user.k {root:?}/copy/sub")), "v");
        let inode = |name: &str| fs::metadata(pool.path(name)).unwrap().ino();
        assert_eq!(inode("copy/a"), inode("copy/sub/same"));
        assert_ne!(inode("copy/a"), inode("t/a"));
        assert!(refused(pool, &["clone", "t", "x"], 1).contains("-r"));
        assert!(refused(pool, &["clone", "-r", "t", "t/sub/x"], 1).contains("inside of it"));
        clone();
        assert_eq!(list("copy/t"), list("wanted"));
        assert!(refused(pool, &["clone", "-r", "--force", "t", "copy"], 1).contains("is a directory"));
        assert_eq!(pool.names(), ["copy", "t", "wanted"]);
    });
}

#[test]
fn a_source_outside_of_the_pool_is_copied_in_and_said_to_be() {
    on_each(&[], |pool| {
        let outside = tempfile::tempdir().unwrap();
        let image = noise(2 << 20);
        let path = outside.path().join("image");
        fs::write(&path, &image).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let output = pool.clonefs(&["clone", path.to_str().unwrap(), "in.img", "--size", "3M"]);
        assert!(output.status.success() && output.stdout.is_empty());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("outside of the pool") && said.contains("image"), "{said}");
        let copy = pool.read("in.img");
        assert!(copy.len() == 3 << 20 && copy[..2 << 20] == image);
        assert_eq!(fs::metadata(pool.path("in.img")).unwrap().mode() & 0o7777, 0o600);
        let json = run(pool, &["clone", "--json", "in.img", "again.img"]);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&json[0]["path"], &json[0]["shared"]), (&"again.img".into(), &true.into()));
    });
}

#[test]
fn a_copy_that_is_interrupted_leaves_nothing() {
    on_each(&[], |pool| {
        let outside = tempfile::tempdir().unwrap();
        let image = outside.path().join("image");
        // Large enough that the copy is under way for long; zeros are no holes when they are written.
        shell(&format!("head -c 500M /dev/zero | tr '\\0' x > {image:?}"));
        let mut child = pool.command(&["clone", image.to_str().unwrap(), "in.img"]).spawn().unwrap();
        while !pool.names().iter().any(|name| name.starts_with(".in.img.clonefs-")) {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it could be interrupted");
        }
        shell(&format!("kill -INT {}", child.id()));
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert_eq!(pool.names(), [""; 0]);
    });
}

#[test]
fn what_cannot_be_cloned_is_refused_with_its_name() {
    on_each(&[], |pool| {
        let other = Pool::mount(pool.disk.kind, &[]);
        let outside = tempfile::tempdir().unwrap();
        pool.write("base.img", b"base");
        shell(&format!("mkfifo {:?}", pool.path("fifo")));
        let elsewhere = other.path("x.img");
        let (elsewhere, outside) = (elsewhere.to_str().unwrap(), outside.path().join("x").display().to_string());
        let long = "n".repeat(256);
        for (args, hint) in [
            (["clone", "missing", "x"], "missing"),
            (["clone", "fifo", "x"], "named pipe"),
            (["clone", "/dev/null", "x"], "character device"),
            (["clone", "base.img", elsewhere], "another mount"),
            (["clone", "base.img", &outside], "not on a mounted pool"),
            (["clone", "base.img", &long], "256 bytes"),
            (["clone", "base.img", "no/x"], "mkdir -p"),
            (["clone", "base.img", "x/"], "directory"),
        ] {
            let said = refused(pool, &args, 1);
            assert!(said.contains(hint), "{args:?} said {said}");
        }
        assert_eq!((pool.names(), other.names()), (vec!["base.img".to_owned(), "fifo".into()], vec![]));
        assert!(!Path::new(&outside).exists());
    });
}

#[test]
fn another_user_gets_what_cp_would_give_and_no_more() {
    on_each(&["-o", "allow_other,suid"], |pool| {
        pool.write("tool", b"#!/bin/true\n");
        pool.write("secret", b"secret");
        let root = pool.path("");
        shell(&format!(
            "chmod 777 {root:?}; chmod 6755 {root:?}/tool; chmod 600 {root:?}/secret; setcap cap_net_raw+ep {root:?}/tool"
        ));
        shell(&format!("chmod 6755 {root:?}/tool"));
        let as_user = |args: &[&str]| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=1234", "--regid=1234", "--clear-groups", "--", env!("CARGO_BIN_EXE_clonefs")]);
            command.args(args).current_dir(&root).output().unwrap()
        };
        let output = as_user(&["clone", "tool", "mine"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mine = fs::metadata(pool.path("mine")).unwrap();
        assert_eq!((mine.uid(), mine.gid(), mine.mode() & 0o7777), (1234, 1234, 0o755));
        assert_eq!(shell(&format!("getcap {root:?}/mine")), "");
        let output = as_user(&["clone", "secret", "stolen"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(!pool.path("stolen").exists());
        run(pool, &["clone", "tool", "roots"]);
        assert_eq!(fs::metadata(pool.path("roots")).unwrap().mode() & 0o7777, 0o6755);
        assert!(shell(&format!("getcap {root:?}/roots")).contains("cap_net_raw"));
    });
}
