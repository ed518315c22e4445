//! People who mean harm, on the real mount. More of them in `mounted_doors` (other users' images), `mounted_namespace`
//! (privileges, reserved names), `mounted_mount` (`.clonefs`) and `transfer::hostile` (images).

mod support;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use clonefs::client::doors;
use clonefs::protocol::{CloneRequest, VolumeState};
use support::{Backing, Mount, Pool, as_user, clonefs, errno, mknod, noise, on, on_each_filesystem, run, set_xattr};

const BLOCK: usize = 4096;

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap_or_else(|e| panic!("open {path:?}: {e}"))
}

/// A clone without starting a program.
fn clone(pool: &Pool, source: &str, target: &str) {
    let (from, to) = (pool.at(source), pool.at(target));
    let token = doors::token(File::open(&from).expect("source"), &from).expect("token");
    let file = OpenOptions::new().write(true).create_new(true).open(&to).expect("target");
    doors::clone(&file, &CloneRequest { token, ..CloneRequest::default() }, &from).expect("clone");
}

/// Files of layers, below the mount, with this extension.
fn layers(pool: &Pool, extension: &str) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(pool.below(".clonefs/layers")).expect("layers").map(|entry| entry.expect("entry").path());
    entries.filter(|path| path.extension() == Some(OsStr::new(extension))).collect()
}

#[test]
fn what_is_put_in_the_place_of_a_layer_is_not_read() {
    on(&[Backing::Ext4, Backing::Xfs], |pool| {
        let secret = noise(66, 8 * BLOCK);
        let place = tempfile::TempDir::new().expect("directory");
        let outside = place.path().join("secret");
        fs::write(&outside, &secret).expect("secret");
        pool.write("sound", &noise(1, 3 * BLOCK));
        pool.write("base", &noise(2, 8 * BLOCK));
        for extension in ["data", "map"] {
            for kind in ["symlink", "FIFO", "directory", "device", "nothing", "short file"] {
                clone(pool, "base", "clone");
                let file = read_write(&pool.at("clone"));
                file.write_all_at(&noise(3, BLOCK), 2 * BLOCK as u64).expect("write");
                file.sync_all().expect("sync");
                drop(file);
                pool.unmount();
                // The base is a plain file, so the only map is that of the clone.
                let map = layers(pool, "map").pop().expect("the clone's map");
                let victim = map.with_extension(extension);
                fs::remove_file(&victim).expect("remove");
                match kind {
                    "symlink" => symlink(&outside, &victim).expect("symlink"),
                    "FIFO" => mknod(&victim, libc::S_IFIFO | 0o600, 0).expect("FIFO"),
                    "directory" => fs::create_dir(&victim).expect("directory"),
                    // /dev/zero
                    "device" => mknod(&victim, libc::S_IFCHR | 0o600, libc::makedev(1, 5)).expect("device"),
                    "short file" => fs::write(&victim, b"short").expect("file"),
                    _ => {}
                }
                pool.mount("deepen=manual");
                let what = format!("{extension} replaced by {kind}");
                assert_eq!(pool.read("sound"), noise(1, 3 * BLOCK), "{what}");
                assert_eq!(pool.read("base"), noise(2, 8 * BLOCK), "{what}");
                // Not even as the base, which is what it would be if its map had never been there.
                assert_eq!(errno(fs::read(pool.at("clone"))), libc::EIO, "{what}");
                fs::remove_file(pool.at("clone")).expect("remove the clone");
                pool.unmount();
                let _ = fs::remove_dir(&victim);
                clonefs([OsStr::new("check"), pool.root().as_os_str()]);
                pool.mount("deepen=manual");
            }
        }
        assert_eq!(fs::read(&outside).expect("secret"), secret, "nothing was written through a link");
    });
}

#[test]
fn a_file_that_looks_like_a_stub_is_a_file() {
    on_each_filesystem(|pool| {
        pool.write("base", &noise(1, 20 * BLOCK));
        pool.clone("base", "victim");
        pool.unmount();
        let text = fs::read(pool.below("victim")).expect("the text of the stub");
        assert!(text.starts_with(b"clonefs volume"), "{:?}", String::from_utf8_lossy(&text));
        pool.mount("deepen=manual");
        fs::write(pool.at("imitation"), &text).expect("write");
        assert_eq!(pool.read("imitation"), text);
        assert_eq!(pool.info("imitation").state, VolumeState::Independent);
        assert_eq!(errno(set_xattr(&pool.at("imitation"), "user.clonefs.stub", b"x")), libc::EPERM);
        // The mark, put on without the mount: it names the victim, and shows nothing of it.
        pool.unmount();
        let mark = Command::new("getfattr")
            .args(["--only-values", "-n", "user.clonefs.stub"])
            .arg(pool.below("victim"))
            .output()
            .expect("getfattr");
        set_xattr(&pool.below("imitation"), "user.clonefs.stub", &mark.stdout).expect("mark");
        pool.mount("deepen=manual");
        assert_eq!(errno(fs::read(pool.at("imitation"))), libc::EIO);
        assert_eq!(pool.read("victim"), noise(1, 20 * BLOCK));
    });
}

#[test]
fn who_may_not_read_a_volume_may_not_export_it() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        pool.mount("deepen=manual,allow_other,default_permissions");
        let secret = pool.write("secret", &noise(5, 4 * BLOCK));
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("mode");
        let place = tempfile::TempDir::new().expect("directory");
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).expect("mode");
        for command in ["export", "clone"] {
            let target = if command == "export" { place.path().join("out.raw") } else { pool.at("out.raw") };
            let mut other = Command::new("setpriv");
            other.args(["--reuid=1234", "--regid=1234", "--clear-groups", env!("CARGO_BIN_EXE_clonefs"), command]);
            if command == "export" {
                other.args(["--format", "raw"]);
            }
            let done = run(other.arg(&secret).arg(&target)).code(1);
            assert!(done.stderr.contains("secret"), "{done:?}");
            assert!(!target.exists(), "{command} left {target:?}");
        }
    });
}

#[test]
fn sizes_beyond_all_bounds_are_refused() {
    on_each_filesystem(|pool| {
        pool.write("base", &noise(1, 5 * BLOCK));
        clone(pool, "base", "clone");
        let overlay = read_write(&pool.at("clone"));
        for size in [i64::MAX as u64, 1 << 62, (1 << 44) + 1] {
            let error = overlay.set_len(size).expect_err("an overlay of that size");
            assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
            assert_eq!(overlay.write_at(b"x", size - 1).expect_err("a write there").raw_os_error(), Some(libc::EFBIG));
        }
        assert_eq!(pool.read("clone"), noise(1, 5 * BLOCK));
        // The filesystem below may have larger files; they are no volumes that can be cloned.
        let huge = File::create(pool.at("huge")).expect("file");
        if huge.set_len(1 << 45).is_ok() {
            let done = clonefs([OsStr::new("clone"), pool.at("huge").as_os_str(), pool.at("copy").as_os_str()]).code(1);
            assert!(done.stderr.contains("huge"), "{done:?}");
            assert!(!pool.at("copy").exists());
        }
    });
}

/// Mounts with so few descriptors that the daemon has hardly any besides those it needs itself.
fn mount_with_few_files(pool: &Pool, files: u32) -> Mount {
    let line = format!("ulimit -n {files}; exec \"$@\"");
    let mut command = Command::new("bash");
    command.args(["-c", &line, "bash", env!("CARGO_BIN_EXE_clonefs"), "mount", "-o", "deepen=manual"]).arg(pool.root());
    run(&mut command).success();
    Mount::adopt(pool.root())
}

#[test]
fn sixty_four_descriptors_are_enough() {
    on(&[Backing::Ext4], |pool| {
        pool.write("base", &noise(1, 8 * BLOCK));
        pool.unmount();
        let mount = mount_with_few_files(pool, 64);
        for i in 0..200 {
            clone(pool, "base", &format!("vm{i}"));
            let file = read_write(&pool.at(format!("vm{i}")));
            file.write_all_at(&noise(100 + i, BLOCK), BLOCK as u64).expect("write");
        }
        for i in 0..200 {
            let bytes = pool.read(&format!("vm{i}"));
            assert!(bytes[BLOCK..2 * BLOCK] == noise(100 + i, BLOCK) && bytes[..BLOCK] == noise(1, BLOCK), "vm{i}");
        }
        // Too many at once is an error for who asks, and for nobody else.
        let open: Vec<_> = (0..200).map(|i| File::open(pool.at(format!("vm{i}")))).collect();
        let refused: Vec<i32> = open.iter().filter_map(|file| file.as_ref().err()?.raw_os_error()).collect();
        assert!(!refused.is_empty() && refused.iter().all(|e| [libc::EMFILE, libc::ENFILE].contains(e)), "{refused:?}");
        // A file that was opened goes on as soon as others are closed.
        let (i, first) = open.into_iter().enumerate().find_map(|(i, file)| Some((i, file.ok()?))).expect("one");
        let mut bytes = vec![0; BLOCK];
        support::wait_until(|| first.read_exact_at(&mut bytes, BLOCK as u64).is_ok());
        assert_eq!(bytes, noise(100 + i as u64, BLOCK));
        drop(first);
        mount.unmount();
        clonefs([OsStr::new("check"), pool.root().as_os_str()]).success();
    });
}

#[test]
fn a_chain_of_ten_thousand_is_opened_and_read_without_a_stack_for_it() {
    const DEPTH: u64 = 10_000;
    on(&[Backing::Tmpfs], |pool| {
        // At work, the compactor would keep the chain short: frozen layers with one heir become one.
        clonefs([OsStr::new("pause"), pool.root().as_os_str()]).success();
        pool.write("0", &vec![7; 64 * BLOCK]);
        for i in 1..=DEPTH {
            clone(pool, &(i - 1).to_string(), &i.to_string());
            // Each is a layer of its own: it has a block, and the next one is cloned from it.
            let file = read_write(&pool.at(i.to_string()));
            file.write_all_at(&i.to_le_bytes(), i % 64 * BLOCK as u64).expect("write");
            drop(file);
            fs::remove_file(pool.at((i - 1).to_string())).expect("remove");
        }
        let depth = |pool: &Pool| u64::from(pool.info(&DEPTH.to_string()).depth);
        assert!(depth(pool) >= DEPTH, "{}", depth(pool));
        let expect = |bytes: &[u8]| {
            for block in 0..64u64 {
                let last = (1..=DEPTH).rev().find(|i| i % 64 == block).expect("one");
                let at = block as usize * BLOCK;
                assert_eq!(bytes[at..at + 8], last.to_le_bytes(), "block {block}");
                assert_eq!(bytes[at + 8], 7);
            }
        };
        expect(&pool.read(&DEPTH.to_string()));
        pool.unmount();
        let mount = mount_with_few_files(pool, 64);
        // The pause ended with the mount: it is merged while it is read.
        expect(&pool.read(&DEPTH.to_string()));
        mount.unmount();
        pool.mount("deepen=manual");
        expect(&pool.read(&DEPTH.to_string()));
        fs::remove_file(pool.at(DEPTH.to_string())).expect("remove");
    });
}

#[test]
fn a_stranger_gets_no_more_by_asking_for_another_users_blocks() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        pool.mount("deepen=manual,allow_other,default_permissions");
        let secret = pool.write("secret", &noise(9, 64 * BLOCK));
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("mode");
        clone(pool, "secret", "shared");
        let shared = pool.at("shared");
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o600)).expect("mode");
        as_user(1234, 1234, || {
            for path in [&secret, &shared] {
                assert_eq!(errno(File::open(path)), libc::EACCES);
                assert_eq!(errno(support::get_xattr(path, "user.clonefs.token")), libc::EACCES);
                assert_eq!(errno(OpenOptions::new().write(true).open(path)), libc::EACCES);
            }
            let mine = pool.at("mine");
            let file = File::create(&mine).expect("a file of mine");
            let planted = errno(set_xattr(&mine, "user.clonefs.clone-from", b"secret"));
            assert!([libc::EACCES, libc::EPERM].contains(&planted), "{planted}");
            let forged = CloneRequest { token: "0".repeat(32), ..CloneRequest::default() };
            assert!(doors::clone(&file, &forged, &mine).is_err());
            assert_eq!(file.metadata().expect("status").size(), 0);
            let _ = fs::remove_file(&mine);
        });
    });
}
