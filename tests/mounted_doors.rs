//! The doors of a mounted pool: cp and copy_file_range, virtual attributes, ioctls; who may use them, and that nothing
//! the kernel caches is missing from a point in time.

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use clonefs::door;
use support::{
    Backing, Mapping, Pool, as_user, as_user_in, copy_range, errno, get_xattr, ioctl, noise, on, on_each_filesystem,
    run, seek, set_xattr, wait_until,
};

/// A sparse image: data, a hole, data.
fn sparse_image(pool: &Pool, name: &str) -> Vec<u8> {
    let mut bytes = noise(9, 200_000);
    bytes.resize(8 << 20, 0);
    bytes.extend(noise(10, 100_000));
    let file = File::create(pool.at(name)).unwrap();
    file.write_all_at(&bytes[..200_000], 0).unwrap();
    file.write_all_at(&bytes[8 << 20..], 8 << 20).unwrap();
    file.sync_all().unwrap();
    bytes
}

fn is_overlay(pool: &Pool, name: &str) -> bool {
    pool.info(name).state == door::VolumeState::Overlay
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[test]
fn cp_and_its_kin_make_clones_of_sparse_and_full_files() {
    on_each_filesystem(|pool| {
        pool.write("full", &noise(1, 3 << 20));
        let sparse = sparse_image(pool, "sparse");
        for (source, bytes) in [("full", noise(1, 3 << 20)), ("sparse", sparse)] {
            let path = pool.at(source);
            let commands: [(&str, Vec<&str>); 5] = [
                ("cp", vec!["cp"]),
                ("cp-a", vec!["cp", "-a"]),
                ("install", vec!["install", "-m", "600"]),
                ("cat", vec!["sh", "-c", "cat \"$1\" > \"$2\"", "sh"]),
                ("python", vec!["python3", "-c", COPY_IN_PYTHON]),
            ];
            for (name, command) in commands {
                let target = format!("{source}-{name}");
                run(Command::new(command[0]).args(&command[1..]).arg(&path).arg(pool.at(&target))).success();
                assert!(pool.read(&target) == bytes, "{target}");
                assert!(is_overlay(pool, &target), "{target} is {:?}", pool.info(&target));
            }
        }
    });
}

const COPY_IN_PYTHON: &str = "import os,sys
with open(sys.argv[1],'rb') as a, open(sys.argv[2],'wb') as b:
    while os.copy_file_range(a.fileno(), b.fileno(), 1 << 40): pass";

#[test]
fn blocks_are_honest_for_all_but_a_cp_that_copies() {
    on(&[Backing::Ext4, Backing::Xfs], |pool| {
        // Written without a daemon, which would close it, and free what was allocated in advance, a moment later.
        pool.unmount();
        sparse_image(pool, "sparse");
        pool.mount("deepen=manual");
        let path = pool.at("sparse");
        let honest = fs::metadata(pool.below("sparse")).unwrap().blocks();
        assert!(honest * 512 < 8 << 20);
        assert_eq!(fs::metadata(&path).unwrap().blocks(), honest);
        // A program that has it open, by whatever flags, sees the truth, unless it is called cp or install.
        for flags in [0, libc::O_NONBLOCK] {
            let file = OpenOptions::new().read(true).custom_flags(flags).open(&path).unwrap();
            assert_eq!(file.metadata().unwrap().blocks(), honest);
        }
        run(Command::new("cp").arg(&path).arg(pool.at("copy"))).success();
        assert_eq!(fs::metadata(&path).unwrap().blocks(), honest, "what cp saw is kept for nobody else");
        // The clone has nothing of its own yet but its stub.
        assert_eq!(fs::metadata(pool.at("copy")).unwrap().blocks(), 8);
        // du called cp, which opens nothing, sees the truth too.
        let fake = tempfile::TempDir::new().unwrap();
        let du = fake.path().join("cp");
        fs::copy("/usr/bin/stat", &du).unwrap();
        let done = run(Command::new(&du).args(["-c", "%b"]).arg(&path)).success();
        assert_eq!(done.stdout.trim(), honest.to_string());
        // A copy that leaves the mount keeps its holes.
        let outside = fake.path().join("outside");
        run(Command::new("cp").arg(&path).arg(&outside)).success();
        assert!(fs::read(&outside).unwrap() == pool.read("sparse"));
        assert!(fs::metadata(&outside).unwrap().blocks() * 512 < 8 << 20);
    });
}

#[test]
fn ranges_are_copied_as_they_are_asked_for() {
    on_each_filesystem(|pool| {
        let bytes = noise(1, 1 << 20);
        pool.write("source", &bytes);
        let source = File::open(pool.at("source")).unwrap();
        // Into the middle of a file that has other bytes, at odd offsets, over the end of the source.
        let other = noise(2, 600_000);
        pool.write("target", &other);
        let target = read_write(&pool.at("target"));
        let mut expected = other;
        for (from, to, len) in [(0, 0, 4096), (1000, 3, 70_001), (8192, 131_072, 65_536), (1 << 19, 500_001, 1 << 20)] {
            let mut done = 0;
            while done < len {
                let (from, to) = ((source.as_raw_fd(), from + done), (target.as_raw_fd(), to + done));
                match copy_range(from, to, (len - done) as usize).unwrap() {
                    0 => break,
                    copied => done += copied as i64,
                }
            }
            let end = (to + done) as usize;
            expected.resize(expected.len().max(end), 0);
            expected[to as usize..end].copy_from_slice(&bytes[from as usize..(from + done) as usize]);
            assert!(pool.read("target") == expected, "{from} {to} {len}");
        }
        // Within one file.
        let both = read_write(&pool.at("target"));
        assert_eq!(copy_range((both.as_raw_fd(), 0), (both.as_raw_fd(), 300_000), 10_000).unwrap(), 10_000);
        expected.copy_within(0..10_000, 300_000);
        assert!(pool.read("target") == expected);
        assert_eq!(errno(copy_range((both.as_raw_fd(), 0), (both.as_raw_fd(), 5), 100)), libc::EINVAL);
        // Not through a handle that cannot write.
        assert_eq!(errno(copy_range((both.as_raw_fd(), 0), (source.as_raw_fd(), 0), 100)), libc::EBADF);
    });
}

#[test]
fn an_attribute_clones_by_path() {
    on_each_filesystem(|pool| {
        let bytes = noise(1, 500_000);
        fs::create_dir_all(pool.at("images/old")).unwrap();
        pool.write("images/old/base", &bytes);
        pool.write("images/disk", b"");
        let from = |path: &Path, value: &str| set_xattr(path, door::CLONE_FROM, value.as_bytes());
        let absolute = pool.at("images/old/base");
        for source in ["old/base", "./old/../old/base", "../images/old/base", absolute.to_str().unwrap()] {
            let target = pool.write("images/new", b"");
            from(&target, source).unwrap_or_else(|e| panic!("{source}: {e}"));
            // The kernel knows the new size at once, whoever asks.
            assert_eq!(fs::metadata(&target).unwrap().len(), 500_000);
            assert!(fs::read(&target).unwrap() == bytes, "{source}");
            fs::remove_file(&target).unwrap();
        }
        let target = pool.write("images/new", b"");
        std::os::unix::fs::symlink("old/base", pool.at("images/link")).unwrap();
        for (source, code) in [
            ("", libc::EINVAL),
            ("missing", libc::ENOENT),
            ("../../base", libc::EXDEV),
            ("/etc/passwd", libc::EXDEV),
            ("../.clonefs/journal", libc::ENOENT),
            ("link", libc::ELOOP),
            ("old", libc::EINVAL),
            ("new", libc::EINVAL),
        ] {
            assert_eq!(errno(from(&target, source)), code, "{source:?}");
        }
        assert_eq!(fs::metadata(&target).unwrap().len(), 0);
        let full = pool.write("images/full", b"x");
        assert_eq!(errno(from(&full, "old/base")), libc::EEXIST);
        assert_eq!(fs::read(&full).unwrap(), b"x");
    });
}

#[test]
fn a_clone_by_path_needs_a_source_that_the_caller_and_everybody_may_read() {
    on_each_filesystem(|pool| {
        for directory in ["open", "closed", "group"] {
            fs::create_dir(pool.at(directory)).unwrap();
            set_mode(&pool.at(directory), 0o777);
        }
        let sources = ["open/all", "open/group", "open/acl", "open/none", "open/denied", "closed/all", "group/all"];
        let bytes = noise(1, 100_000);
        for name in sources {
            pool.write(name, &bytes);
            set_mode(&pool.at(name), if name.ends_with("all") { 0o644 } else { 0o600 });
        }
        set_mode(&pool.at("open/group"), 0o640);
        chown(pool.at("open/group"), None, Some(77)).unwrap();
        // rw for the owner, and for user 1234 and for others what is said here.
        let acl = |user: u16, others: u16| {
            let entries =
                [(1u16, 6u16, u32::MAX), (2, user, 1234), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, others, u32::MAX)];
            let bytes = |(tag, permissions, id): (u16, u16, u32)| {
                [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
            };
            [2u32.to_le_bytes().to_vec(), entries.map(bytes).concat()].concat()
        };
        set_xattr(&pool.at("open/acl"), "system.posix_acl_access", &acl(4, 0)).unwrap();
        set_xattr(&pool.at("open/denied"), "system.posix_acl_access", &acl(0, 4)).unwrap();
        set_mode(&pool.at("closed"), 0o700);
        set_mode(&pool.at("group"), 0o770);
        chown(pool.at("group"), None, Some(77)).unwrap();

        let try_all = |pool: &Pool, uid: u32, groups: &[u32]| {
            as_user_in(uid, uid, groups, || {
                sources.map(|source| {
                    let target = pool.write(&format!("of-{uid}"), b"");
                    let code = errno(set_xattr(&target, door::CLONE_FROM, source.as_bytes()));
                    assert_eq!(fs::read(&target).unwrap() == bytes, code == 0);
                    fs::remove_file(target).unwrap();
                    code
                })
            })
        };
        let (ok, no) = (0, libc::EACCES);
        for overlays in [false, true] {
            // The last one tells groups apart, but not for everybody.
            assert_eq!(try_all(pool, 1234, &[]), [ok, no, no, no, no, no, no], "overlays: {overlays}");
            assert_eq!(try_all(pool, 1234, &[77]), [ok, no, no, no, no, no, no], "overlays: {overlays}");
            // Also root: the attribute could have come along with a copy of a stranger's file.
            assert_eq!(try_all(pool, 0, &[]), [ok, no, no, no, ok, no, no], "overlays: {overlays}");
            // The same when the sources have become overlays: their stubs carry mode, group and ACL.
            for name in sources.iter().filter(|_| !overlays) {
                pool.clone(name, &format!("{name}-clone"));
                read_write(&pool.at(name)).write_all_at(&bytes[..10], 0).unwrap();
                assert!(is_overlay(pool, name));
            }
        }
    });
}

#[test]
fn tokens_carry_the_right_to_read() {
    on_each_filesystem(|pool| {
        let bytes = noise(1, 100_000);
        let secret = pool.write("secret", &bytes);
        set_mode(&secret, 0o600);
        as_user(1234, 1234, || assert_eq!(errno(get_xattr(&secret, door::TOKEN)), libc::EACCES));
        let token = String::from_utf8(get_xattr(&secret, door::TOKEN).unwrap()).unwrap();
        assert_eq!(token.len(), 32);
        let clone = |name: &str, json: String| set_xattr(&pool.write(name, b""), door::CLONE, json.as_bytes());
        // Whoever was given the token may use it.
        as_user(1234, 1234, || clone("theirs", format!(r#"{{"token":"{token}","size":200000}}"#)).unwrap());
        let mut longer = bytes.clone();
        longer.resize(200_000, 0);
        assert!(pool.read("theirs") == longer);
        assert_eq!(fs::metadata(pool.at("theirs")).unwrap().uid(), 1234);

        let wrong = "0123456789abcdef0123456789abcdef";
        for (json, code) in [
            (format!(r#"{{"token":"{wrong}"}}"#), libc::EXDEV),
            (format!(r#"{{"token":"{token}","size":5}}"#), libc::EINVAL),
            (format!(r#"{{"token":"{token}","size":{}}}"#, 1u64 << 60), libc::EFBIG),
            (format!(r#"{{"token":"{token}","colour":"red"}}"#), libc::EINVAL),
            ("not json".to_owned(), libc::EINVAL),
            (String::new(), libc::EINVAL),
        ] {
            assert_eq!(errno(clone("new", json.clone())), code, "{json}");
            assert_eq!(fs::metadata(pool.at("new")).unwrap().len(), 0);
        }
        // Writing to the destination is the caller's own right too.
        let theirs = pool.write("roots", b"");
        set_mode(&theirs, 0o644);
        let json = format!(r#"{{"token":"{token}"}}"#);
        as_user(1234, 1234, || {
            assert_eq!(errno(set_xattr(&theirs, door::CLONE, json.as_bytes())), libc::EACCES);
        });
    });
}

/// The token of an open file, by ioctl.
fn token_of(file: &File) -> std::io::Result<[u8; 16]> {
    let mut token = [0; 16];
    ioctl(file, door::IOC_TOKEN, &mut token).map(|()| token)
}

fn clone_argument(token: [u8; 16], size: u64, flags: u64) -> Vec<u8> {
    [&token[..], &size.to_ne_bytes(), &flags.to_ne_bytes()].concat()
}

#[test]
fn ioctls_clone_from_handle_to_handle() {
    on_each_filesystem(|pool| {
        let bytes = noise(1, 100_000);
        let path = pool.write("source", &bytes);
        let source = File::open(&path).unwrap();
        let token = token_of(&source).unwrap();
        let target = read_write(&pool.write("target", b""));
        ioctl(&target, door::IOC_CLONE, &mut clone_argument(token, 0, door::CLONE_SYNC)).unwrap();
        assert_eq!(target.metadata().unwrap().len(), 100_000);
        assert!(pool.read("target") == bytes);

        let write_only = OpenOptions::new().write(true).open(&path).unwrap();
        assert_eq!(errno(token_of(&write_only)), libc::EBADF);
        pool.write("other", b"");
        let read_only = File::open(pool.at("other")).unwrap();
        assert_eq!(errno(ioctl(&read_only, door::IOC_CLONE, &mut clone_argument(token, 0, 0))), libc::EBADF);
        let other = read_write(&pool.at("other"));
        assert_eq!(errno(ioctl(&other, door::IOC_CLONE, &mut clone_argument(token, 0, 1 << 40))), libc::EINVAL);
        assert_eq!(errno(ioctl(&other, door::IOC_CLONE, &mut clone_argument([7; 16], 0, 0))), libc::EXDEV);
        assert_eq!(errno(ioctl(&target, door::IOC_CLONE, &mut clone_argument(token, 0, 0))), libc::EEXIST);
        // Unknown ones are unknown, as everywhere.
        assert_eq!(errno(ioctl(&other, 0x8008_6601, &mut [0; 8])), libc::ENOTTY);
        let directory = File::open(pool.root()).unwrap();
        assert_eq!(errno(token_of(&directory)), libc::ENOTTY);
    });
}

#[test]
fn appending_to_a_clone_goes_to_its_end() {
    on_each_filesystem(|pool| {
        let bytes = noise(1, 100_000);
        let source = File::open(pool.write("source", &bytes)).unwrap();
        let token = token_of(&source).unwrap();
        let mut target = OpenOptions::new().append(true).create_new(true).open(pool.at("target")).unwrap();
        ioctl(&target, door::IOC_CLONE, &mut clone_argument(token, 0, 0)).unwrap();
        // The kernel was not asked for the size since.
        target.write_all(b"at the end").unwrap();
        assert!(pool.read("target") == [&bytes[..], b"at the end"].concat());
    });
}

#[test]
fn a_pinned_handle_reads_one_moment() {
    on_each_filesystem(|pool| {
        let bytes = noise(1, 300_000);
        pool.write("file", &bytes);
        let pinned = File::open(pool.at("file")).unwrap();
        ioctl(&pinned, door::IOC_PIN, &mut []).unwrap();
        let writer = read_write(&pool.at("file"));
        writer.write_all_at(&[7; 50_000], 100).unwrap();
        writer.set_len(200_000).unwrap();
        let read = |file: &File| {
            let mut bytes = vec![0; 400_000];
            let mut done = 0;
            while let len @ 1.. = file.read_at(&mut bytes[done..], done as u64).unwrap() {
                done += len;
            }
            bytes.truncate(done);
            bytes
        };
        assert!(read(&pinned) == bytes);
        assert_eq!(seek(&pinned, 0, libc::SEEK_HOLE).unwrap(), 300_000);
        assert_eq!(read(&writer).len(), 200_000);
        // A second pin keeps the first moment.
        ioctl(&pinned, door::IOC_PIN, &mut []).unwrap();
        assert!(read(&pinned) == bytes);
        // Reading on after the file was removed.
        fs::remove_file(pool.at("file")).unwrap();
        assert!(read(&pinned) == bytes);

        pool.write("file", &bytes);
        let both = read_write(&pool.at("file"));
        ioctl(&both, door::IOC_PIN, &mut []).unwrap();
        assert_eq!(errno(both.write_at(b"x", 0)), libc::EBADF);
        let write_only = OpenOptions::new().write(true).open(pool.at("file")).unwrap();
        assert_eq!(errno(ioctl(&write_only, door::IOC_PIN, &mut [])), libc::EBADF);
        // Nothing is left behind when it is closed.
        drop((pinned, both, write_only, writer));
        fs::remove_file(pool.at("file")).unwrap();
        wait_until(|| (pool.mounted().status().overlays, pool.mounted().status().layers) == (0, 0));
    });
}

#[test]
fn stores_through_a_mapping_are_in_the_clone_and_found_as_data() {
    on_each_filesystem(|pool| {
        let path = pool.write("file", &vec![0; 1 << 20]);
        let file = read_write(&path);
        file.set_len(0).unwrap();
        file.set_len(1 << 20).unwrap();
        let mut mapping = Mapping::new(&file, 1 << 20).unwrap();
        for round in 0u8..5 {
            let at = 100_000 * usize::from(round);
            mapping.bytes()[at..at + 9].copy_from_slice(b"by a store"[..9].as_ref());
            mapping.bytes()[at + 9] = round;
            let data = seek(&file, at as i64 / 4096 * 4096, libc::SEEK_DATA).unwrap();
            assert_eq!(data, at as i64 / 4096 * 4096, "round {round}");
            let clone = format!("clone-{round}");
            pool.clone("file", &clone);
            // A store after the clone is not in it.
            let before = mapping.bytes().to_vec();
            mapping.bytes()[at] = b'X';
            assert!(pool.read(&clone) == before, "round {round}");
            let mut direct = vec![0; 10];
            file.read_exact_at(&mut direct, at as u64).unwrap();
            assert_eq!(direct[0], b'X');
            mapping.bytes()[at] = b'b';
        }
        // Also when only the mapping is left of the open file.
        drop(file);
        mapping.bytes()[777_777] = 7;
        let pinned = File::open(&path).unwrap();
        ioctl(&pinned, door::IOC_PIN, &mut []).unwrap();
        mapping.bytes()[777_777] = 8;
        let mut byte = [0];
        pinned.read_exact_at(&mut byte, 777_777).unwrap();
        assert_eq!(byte, [7]);
        drop(mapping);
        assert_eq!(pool.read("file")[777_777], 8);
    });
}

#[test]
fn a_mapping_sees_what_is_written_and_the_other_way_round() {
    on_each_filesystem(|pool| {
        pool.write("base", &noise(1, 100_000));
        pool.clone("base", "clone");
        for name in ["base", "clone"] {
            let file = read_write(&pool.at(name));
            let mut mapping = Mapping::new(&file, 100_000).unwrap();
            assert!(mapping.bytes() == noise(1, 100_000));
            file.write_all_at(b"written", 5000).unwrap();
            assert_eq!(&mapping.bytes()[5000..5007], b"written");
            mapping.bytes()[5000..5006].copy_from_slice(b"stored");
            let mut bytes = [0; 7];
            file.read_exact_at(&mut bytes, 5000).unwrap();
            assert_eq!(&bytes, b"storedn");
            assert_eq!(&pool.read(name)[5000..5007], b"storedn");
        }
    });
}

#[test]
fn state_is_told_in_words_and_numbers() {
    on(&[Backing::Ext4], |pool| {
        pool.write("base", &noise(1, 1 << 20));
        pool.clone("base", "clone");
        let text = |name: &str, door: &str| String::from_utf8(get_xattr(&pool.at(name), door).unwrap()).unwrap();
        assert_eq!(text("clone", door::STATE), "overlay");
        assert_eq!(text("clone", door::PROGRESS), "0.0");
        assert_eq!(text("clone", door::ORIGIN), "base");
        assert_eq!(text("clone", door::DEPTH), "1");
        assert_eq!(text("clone", door::UNIQUE_BYTES), "0");
        assert_eq!(text("clone", door::SHARED_BYTES), (1 << 20).to_string());
        assert_eq!(text("clone", door::PARENT).len(), 16);
        pool.deepen("clone");
        assert_eq!(text("clone", door::STATE), "independent");
        assert_eq!(text("clone", door::PROGRESS), "100");
        assert_eq!((text("clone", door::PARENT).as_str(), text("clone", door::DEPTH).as_str()), ("", "0"));
        // Blocks are those of an ordinary file at once.
        assert_eq!(fs::metadata(pool.at("clone")).unwrap().blocks() * 512, 1 << 20);
        assert_eq!(errno(get_xattr(pool.root(), door::STATE)), libc::ENODATA);
        assert_eq!(errno(get_xattr(&pool.at("base"), door::STATUS)), libc::ENODATA);
        assert_eq!(errno(get_xattr(&pool.at("base"), "user.clonefs.other")), libc::ENODATA);
        let status = pool.mounted().status();
        assert_eq!((status.pool.as_str(), status.backing.as_str()), (pool.root().to_str().unwrap(), "ext4"));
    });
}

#[test]
fn background_work_is_the_owners_and_the_administrators() {
    on(&[Backing::Ext4], |pool| {
        pool.write("base", &noise(1, 1 << 20));
        pool.clone("base", "clone");
        let path = pool.at("clone");
        set_mode(&path, 0o666);
        let set = |path: &Path, door: &str, value: &str| errno(set_xattr(path, door, value.as_bytes()));
        as_user(1234, 1234, || {
            assert_eq!(set(&path, door::DEEPEN, "start"), libc::EPERM);
            // The mode of the pool's root lets them write there.
            assert_eq!(set(pool.root(), door::DEEPEN, "pause"), libc::EPERM);
            assert_eq!(set(pool.root(), door::FLUSH, "sync"), libc::EPERM);
            assert_eq!(errno(get_xattr(pool.root(), door::CHECK)), libc::EPERM);
        });
        chown(&path, Some(1234), None).unwrap();
        as_user(1234, 1234, || {
            assert_eq!(set(&path, door::DEEPEN, "pause"), 0);
            assert_eq!(set(&path, door::DEEPEN, r#"{"action":"resume"}"#), 0);
            assert_eq!(set(&path, door::DEEPEN, "faster"), libc::EINVAL);
            assert_eq!(set(pool.root(), door::DEEPEN, "pause"), libc::EPERM);
        });
        assert_eq!(set(pool.root(), door::DEEPEN, r#"{"action":"pause","rate":1000}"#), 0);
        assert!(pool.mounted().status().paused);
        assert_eq!(set(pool.root(), door::FLUSH, "sync"), 0);
        assert_eq!(set(pool.root(), door::FLUSH, "now"), libc::EINVAL);
        assert!(get_xattr(pool.root(), door::CHECK).unwrap().starts_with(b"{\"problems\":[]"));
    });
}

#[test]
fn a_clone_takes_no_privileges_along() {
    on(&[Backing::Ext4, Backing::Xfs], |pool| {
        let source = pool.write("source", &noise(1, 50_000));
        set_mode(&source, 0o6755);
        let target = pool.write("target", b"");
        chown(&target, Some(0), Some(0)).unwrap();
        set_mode(&target, 0o6777);
        as_user(1234, 1234, || set_xattr(&target, door::CLONE_FROM, b"source").unwrap());
        let meta = fs::metadata(&target).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.len()), (0o777, 0, 50_000));
    });
}

#[test]
fn many_threads_work_on_one_pool_at_once() {
    on(&[Backing::Ext4, Backing::Xfs], |pool| {
        let base = noise(1, 1 << 20);
        pool.write("base", &base);
        // More threads than the daemon has workers and readers, each of which clones, maps, writes, links and removes.
        std::thread::scope(|scope| {
            for thread in 0..24u8 {
                let (pool, base) = (&*pool, &base);
                scope.spawn(move || {
                    for round in 0..6u8 {
                        let name = format!("t{thread}-{round}");
                        let path = pool.write(&name, b"");
                        set_xattr(&path, door::CLONE_FROM, b"base").unwrap();
                        let file = read_write(&path);
                        let mut mapping = Mapping::new(&file, 1 << 20).unwrap();
                        mapping.bytes()[usize::from(thread) * 4096] = round;
                        let source = File::open(&path).unwrap();
                        let mut copy = File::create(pool.at(format!("{name}-copy"))).unwrap();
                        let len = copy_range((source.as_raw_fd(), 0), (copy.as_raw_fd(), 0), 1 << 20).unwrap();
                        fs::hard_link(&path, pool.at(format!("{name}-link"))).unwrap();
                        let mut expected = base.clone();
                        expected[usize::from(thread) * 4096] = round;
                        assert!(pool.read(&format!("{name}-link")) == expected);
                        let copied = pool.read(&format!("{name}-copy"));
                        assert!(copied.len() == len as usize && copied == expected[..copied.len()]);
                        copy.seek(SeekFrom::Start(0)).unwrap();
                        copy.write_all(b"other").unwrap();
                        fs::remove_file(&path).unwrap();
                        let mut first = [0; 5];
                        File::open(pool.at(format!("{name}-link"))).unwrap().read_exact(&mut first).unwrap();
                        assert_eq!(first, expected[..5]);
                    }
                });
            }
        });
        assert!(pool.read("base") == base);
        let report = get_xattr(pool.root(), door::CHECK).unwrap();
        assert!(report.starts_with(b"{\"problems\":[]"), "{}", String::from_utf8_lossy(&report));
    });
}
