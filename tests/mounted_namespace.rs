//! Names and attributes through a mount are those of the backing filesystem: random operations by several users give
//! the same results on both, and each special case has its test.

mod support;

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::same::{Sides, Steps};
use support::{
    Backing, Pool, as_user, as_user_in, c_path, errno, get_xattr, list_xattr, noise, on, on_each_filesystem,
    remove_xattr, result, set_xattr,
};

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap_or_else(|e| panic!("chmod {path:?}: {e}"));
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// Sets the umask of this thread, which must be one of [`as_user`]'s, alone.
fn set_umask(mask: u32) {
    // SAFETY: neither call touches memory.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_FS), 0);
        libc::umask(mask);
    }
}

#[test]
fn random_operations_give_the_results_of_the_backing_filesystem() {
    let seeds: Vec<u64> = match std::env::var("CLONEFS_TEST_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => vec![1, 2],
    };
    on_each_filesystem(|pool| {
        for &seed in &seeds {
            let sides = Sides::new(pool, &format!("run-{seed}"));
            sides.compare_steps(Steps::new(seed, 3000));
        }
    });
}

#[test]
fn new_files_belong_to_who_makes_them() {
    on_each_filesystem(|pool| {
        let (plain, shared) = (pool.at("plain"), pool.at("shared"));
        for directory in [&plain, &shared] {
            fs::create_dir(directory).unwrap();
        }
        set_mode(&plain, 0o777);
        chown(&shared, Some(0), Some(77)).unwrap();
        set_mode(&shared, 0o2777);
        for (directory, group, bit) in [(&plain, 1234, 0), (&shared, 77, 0o2000)] {
            as_user(1234, 1234, || {
                set_umask(0o027);
                fs::write(directory.join("file"), "x").unwrap();
                fs::create_dir(directory.join("dir")).unwrap();
                symlink("file", directory.join("link")).unwrap();
                support::mknod(&directory.join("fifo"), libc::S_IFIFO | 0o666, 0).unwrap();
                support::mknod(&directory.join("node"), libc::S_IFREG | 0o666, 0).unwrap();
            });
            for (name, expected) in [("file", 0o640), ("dir", 0o750 | bit), ("fifo", 0o640), ("node", 0o640)] {
                let meta = fs::symlink_metadata(directory.join(name)).unwrap();
                assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (1234, group, expected), "{name}");
            }
            assert_eq!(fs::symlink_metadata(directory.join("link")).unwrap().uid(), 1234);
        }
    });
}

#[test]
fn setuid_and_setgid_at_creation_are_kept_as_the_kernel_would() {
    on(&[Backing::Ext4, Backing::Xfs], |pool| {
        let (plain, shared) = (pool.at("plain"), pool.at("shared"));
        for directory in [&plain, &shared] {
            fs::create_dir(directory).unwrap();
        }
        set_mode(&plain, 0o777);
        chown(&shared, Some(0), Some(77)).unwrap();
        set_mode(&shared, 0o2777);
        let make = |path: PathBuf| {
            set_umask(0);
            fs::OpenOptions::new().write(true).create_new(true).mode(0o6755).open(path).unwrap();
        };
        as_user(1234, 1234, || make(plain.join("own")));
        assert_eq!(mode(&plain.join("own")), 0o6755);
        // Not a member of the group that the file gets: it loses setgid.
        as_user(1234, 1234, || make(shared.join("stranger")));
        assert_eq!(mode(&shared.join("stranger")), 0o4755);
        as_user_in(1234, 1234, &[77], || make(shared.join("member")));
        assert_eq!(mode(&shared.join("member")), 0o6755);
    });
}

/// An ACL in the form of its attribute: tag, permissions, id.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

const NO_ID: u32 = u32::MAX;

/// rw for the owner and for `user`, nothing for others.
fn acl_for(user: u32) -> Vec<u8> {
    acl(&[(0x01, 6, NO_ID), (0x02, 6, user), (0x04, 0, NO_ID), (0x10, 6, NO_ID), (0x20, 0, NO_ID)])
}

#[test]
fn acls_decide_and_a_default_acl_takes_the_place_of_the_umask() {
    on_each_filesystem(|pool| {
        let secret = pool.write("secret", b"x");
        set_mode(&secret, 0o600);
        as_user(1234, 1234, || assert_eq!(errno(fs::read(&secret)), libc::EACCES));
        set_xattr(&secret, "system.posix_acl_access", &acl_for(1234)).unwrap();
        as_user(1234, 1234, || assert_eq!(fs::read(&secret).unwrap(), b"x"));
        as_user(1235, 1235, || assert_eq!(errno(fs::read(&secret)), libc::EACCES));
        assert_eq!(mode(&secret), 0o660);

        let directory = pool.at("directory");
        fs::create_dir(&directory).unwrap();
        set_mode(&directory, 0o777);
        set_xattr(&directory, "system.posix_acl_default", &acl_for(1234)).unwrap();
        as_user(1235, 1235, || {
            set_umask(0o077);
            fs::write(directory.join("file"), "x").unwrap();
        });
        assert_eq!(mode(&directory.join("file")), 0o660);
        as_user(1234, 1234, || assert_eq!(fs::read(directory.join("file")).unwrap(), b"x"));
    });
}

#[test]
fn setting_an_acl_takes_setgid_from_who_is_not_in_the_group() {
    on(&[Backing::Ext4, Backing::Xfs], |pool| {
        for (groups, expected) in [(&[][..], 0o0760), (&[77][..], 0o2760)] {
            let file = pool.write("file", b"x");
            chown(&file, Some(1234), Some(77)).unwrap();
            set_mode(&file, 0o2760);
            as_user_in(1234, 1234, groups, || set_xattr(&file, "system.posix_acl_access", &acl_for(1)).unwrap());
            assert_eq!(mode(&file) & 0o7000, expected & 0o7000);
        }
    });
}

/// A file with setuid, setgid and a capability that user 1234 may write to.
fn privileged(pool: &Pool, name: &str) -> PathBuf {
    let path = pool.at(name);
    if !path.exists() {
        fs::write(&path, noise(4, 100_000)).unwrap();
    }
    chown(&path, Some(0), Some(0)).unwrap();
    set_mode(&path, 0o6777);
    // struct vfs_cap_data, revision 2: cap_net_raw.
    let capability: Vec<u8> = [0x0200_0000u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    set_xattr(&path, "security.capability", &capability).unwrap();
    path
}

/// A way to change a file.
type Change = dyn Fn(&Path) + Sync;

#[test]
fn whoever_changes_a_file_takes_its_privileges_away() {
    on(&[Backing::Ext4, Backing::Xfs, Backing::Btrfs], |pool| {
        pool.write("base", &noise(4, 100_000));
        pool.clone("base", "overlay");
        // Held open, so that what is known of an open file must not go out of date.
        for name in ["plain", "overlay"] {
            let changes: [(&str, &Change); 6] = [
                ("write", &|path| {
                    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"x", 5).unwrap();
                }),
                ("truncate", &|path| {
                    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(90_000).unwrap();
                }),
                ("O_TRUNC", &|path| drop(fs::File::create(path).unwrap())),
                ("fallocate", &|path| {
                    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
                    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                    support::fallocate(&file, punch, 0, 4096).unwrap();
                }),
                ("copy_file_range", &|path| {
                    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
                    let source = fs::File::open(path.with_file_name("base")).unwrap();
                    support::copy_range((source.as_raw_fd(), 0), (file.as_raw_fd(), 0), 4096).unwrap();
                }),
                ("direct write", &|path| {
                    let mut options = fs::OpenOptions::new();
                    let file = options.write(true).custom_flags(libc::O_SYNC).open(path).unwrap();
                    file.write_all_at(&[1; 4096], 4096).unwrap();
                }),
            ];
            let _open = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(pool.at(name));
            for (what, change) in changes {
                let path = privileged(pool, name);
                as_user(1234, 1234, || change(&path));
                assert_eq!(mode(&path), 0o777, "{name}: {what} by another user");
                assert_eq!(errno(get_xattr(&path, "security.capability")), libc::ENODATA, "{name}: {what}");
                // Root may keep setuid and setgid, as CAP_FSETID says, but not the capability.
                let path = privileged(pool, name);
                change(&path);
                assert_eq!(mode(&path), 0o6777, "{name}: {what} by root");
                assert_eq!(errno(get_xattr(&path, "security.capability")), libc::ENODATA, "{name}: {what} by root");
            }
            let path = privileged(pool, name);
            chown(&path, Some(1234), None).unwrap();
            assert_eq!(mode(&path), 0o777, "{name}: chown");
            assert_eq!(errno(get_xattr(&path, "security.capability")), libc::ENODATA, "{name}: chown");
        }
    });
}

#[test]
fn attributes_are_those_of_the_backing_file() {
    on_each_filesystem(|pool| {
        let file = pool.write("file", b"x");
        set_xattr(&file, "user.note", b"value").unwrap();
        set_xattr(&file, "trusted.note", b"for root").unwrap();
        assert_eq!(get_xattr(&pool.below("file"), "user.note").unwrap(), b"value");
        assert_eq!(list_xattr(&file).unwrap(), ["trusted.note", "user.note"]);
        set_mode(&file, 0o666);
        as_user(1234, 1234, || {
            assert_eq!(list_xattr(&file).unwrap(), ["user.note"], "trusted names are root's");
            assert_eq!(errno(get_xattr(&file, "trusted.note")), libc::ENODATA);
            assert_eq!(errno(set_xattr(&file, "trusted.note", b"x")), libc::EPERM);
        });
        remove_xattr(&file, "user.note").unwrap();
        assert_eq!(errno(get_xattr(&file, "user.note")), libc::ENODATA);
        assert_eq!(errno(remove_xattr(&file, "user.note")), libc::ENODATA);

        let large = noise(3, 3000);
        set_xattr(&file, "user.large", &large).unwrap();
        assert_eq!(get_xattr(&file, "user.large").unwrap(), large);
        let name = std::ffi::CString::new("user.large").unwrap();
        let path = c_path(&file);
        // SAFETY: strings are NUL-terminated; the buffer has the length passed.
        let size = |buffer: &mut [u8]| unsafe {
            libc::getxattr(path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
        };
        assert_eq!(size(&mut []), 3000);
        assert_eq!(errno(result(size(&mut [0; 10]))), libc::ERANGE);
    });
}

#[test]
fn names_reserved_for_clonefs_cannot_be_forged() {
    on_each_filesystem(|pool| {
        let file = pool.write("file", b"x");
        for name in ["user.clonefs.stub", "user.clonefs.state", "user.clonefs.", "user.clonefs.anything"] {
            assert_eq!(errno(set_xattr(&file, name, b"1")), libc::EPERM, "{name}");
            assert_eq!(errno(remove_xattr(&file, name)), libc::EPERM, "{name}");
        }
        assert_eq!(errno(get_xattr(&file, "user.clonefs.stub")), libc::ENODATA);
        pool.write("base", &noise(1, 50_000));
        pool.clone("base", "clone");
        assert_eq!(list_xattr(&pool.at("clone")).unwrap(), [""; 0]);
        // A real one on the backing file does not show either.
        set_xattr(&pool.below("file"), "user.clonefs.stub", b"forged").unwrap();
        assert_eq!(list_xattr(&file).unwrap(), [""; 0]);
        assert_eq!(errno(get_xattr(&file, "user.clonefs.stub")), libc::ENODATA);
    });
}

#[test]
fn a_file_keeps_its_number_and_no_other_has_it() {
    on_each_filesystem(|pool| {
        let mut seen = std::collections::HashMap::new();
        let mut check = |pool: &Pool, when: &str| {
            let mut numbers = std::collections::HashSet::new();
            for entry in fs::read_dir(pool.root()).unwrap() {
                let path = entry.unwrap().path();
                let number = fs::symlink_metadata(&path).unwrap().ino();
                assert!(numbers.insert(number), "{when}: two files have number {number}");
                assert_eq!(*seen.entry(path.clone()).or_insert(number), number, "{when}: {path:?}");
            }
        };
        pool.write("base", &noise(1, 300_000));
        let held = fs::File::open(pool.at("base")).unwrap();
        check(pool, "at first");
        pool.clone("base", "one");
        pool.clone("base", "two");
        check(pool, "cloned");
        // Freezes it: the name gets another backing file.
        fs::OpenOptions::new().write(true).open(pool.at("base")).unwrap().write_all_at(b"x", 0).unwrap();
        check(pool, "frozen");
        assert_eq!(held.metadata().unwrap().ino(), fs::metadata(pool.at("base")).unwrap().ino());
        for number in 0..20 {
            pool.write(&format!("file-{number}"), b"x");
        }
        check(pool, "with new files");
        for name in ["one", "two", "base"] {
            pool.deepen(name);
            check(pool, "independent");
        }
    });
}

#[test]
fn hard_links_are_one_file() {
    on_each_filesystem(|pool| {
        pool.write("a", &noise(1, 100_000));
        fs::hard_link(pool.at("a"), pool.at("b")).unwrap();
        let (a, b) = (fs::metadata(pool.at("a")).unwrap(), fs::metadata(pool.at("b")).unwrap());
        assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
        fs::OpenOptions::new().write(true).open(pool.at("b")).unwrap().write_all_at(b"through b", 0).unwrap();
        assert!(pool.read("a").starts_with(b"through b"));
        // A clone of a file of several names, then a write through each of them.
        pool.clone("a", "clone");
        let before = pool.read("clone");
        fs::OpenOptions::new().write(true).open(pool.at("a")).unwrap().write_all_at(b"through a", 50_000).unwrap();
        assert_eq!(pool.read("b"), pool.read("a"));
        assert_eq!(pool.read("clone"), before);
        // A link to a file that has clones, and to a clone.
        pool.write("golden", &noise(2, 100_000));
        pool.clone("golden", "copy");
        for name in ["golden", "copy"] {
            let link = format!("{name}-link");
            fs::hard_link(pool.at(name), pool.at(&link)).unwrap();
            assert_eq!(fs::metadata(pool.at(name)).unwrap().nlink(), 2, "{name}");
            assert_eq!(fs::metadata(pool.at(name)).unwrap().ino(), fs::metadata(pool.at(&link)).unwrap().ino());
            fs::OpenOptions::new().write(true).open(pool.at(&link)).unwrap().write_all_at(name.as_bytes(), 9).unwrap();
            assert_eq!(pool.read(name), pool.read(&link));
        }
        assert_eq!(&pool.read("golden")[9..15], b"golden");
        assert_eq!(&pool.read("copy")[9..13], b"copy");
        let (golden, copy) = (pool.read("golden"), pool.read("copy"));
        for name in ["golden", "copy-link"] {
            fs::remove_file(pool.at(name)).unwrap();
        }
        assert_eq!(fs::metadata(pool.at("golden-link")).unwrap().nlink(), 1);
        assert_eq!((pool.read("golden-link"), pool.read("copy")), (golden, copy));
    });
}

#[test]
fn a_removed_file_lives_until_it_is_closed() {
    on_each_filesystem(|pool| {
        pool.write("base", &noise(1, 100_000));
        pool.clone("base", "clone");
        for name in ["base", "clone", "plain"] {
            let path = pool.at(name);
            let mut options = fs::OpenOptions::new();
            let mut file = options.read(true).write(true).create(true).truncate(false).open(&path).unwrap();
            fs::remove_file(&path).unwrap();
            assert_eq!(file.metadata().unwrap().nlink(), 0, "{name}");
            file.set_len(0).unwrap();
            file.write_all(b"still here").unwrap();
            file.sync_all().unwrap();
            file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
            file.set_len(20).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
            let meta = file.metadata().unwrap();
            assert_eq!((meta.len(), meta.mode() & 0o7777, meta.mtime()), (20, 0o600, 0), "{name}");
            // A new file under the old name is another one.
            fs::write(&path, "new").unwrap();
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes, b"still here\0\0\0\0\0\0\0\0\0\0", "{name}");
            assert_ne!(meta.ino(), fs::metadata(&path).unwrap().ino());
            // Opened once more through /proc, as programs do with what they were handed.
            let again = fs::File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
            assert_eq!(again.metadata().unwrap().len(), 20, "{name}");
        }
    });
}

#[test]
fn a_file_renamed_over_lives_until_it_is_closed() {
    on_each_filesystem(|pool| {
        pool.write("base", &noise(1, 100_000));
        pool.clone("base", "target");
        let file = fs::OpenOptions::new().read(true).write(true).open(pool.at("target")).unwrap();
        pool.write("new", b"new");
        fs::rename(pool.at("new"), pool.at("target")).unwrap();
        file.write_all_at(b"old", 0).unwrap();
        let mut bytes = [0; 3];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!((&bytes, pool.read("target").as_slice()), (b"old", b"new".as_slice()));
        assert_eq!(file.metadata().unwrap().nlink(), 0);
    });
}

#[test]
fn directories_move_with_all_that_is_open_below() {
    on_each_filesystem(|pool| {
        fs::create_dir_all(pool.at("a/b/c")).unwrap();
        pool.write("a/b/c/base", &noise(1, 100_000));
        pool.clone("a/b/c/base", "a/b/c/clone");
        let file = fs::OpenOptions::new().read(true).write(true).open(pool.at("a/b/c/base")).unwrap();
        let directory = fs::File::open(pool.at("a/b/c")).unwrap();
        fs::rename(pool.at("a/b"), pool.at("z")).unwrap();
        // The first write freezes the source under its new path.
        file.write_all_at(b"written after the move", 0).unwrap();
        assert!(pool.read("z/c/base").starts_with(b"written after the move"));
        assert_eq!(pool.read("z/c/clone"), noise(1, 100_000));
        let name = std::ffi::CString::new("made-here").unwrap();
        // SAFETY: the descriptor is open and the name NUL-terminated.
        result(unsafe { libc::mkdirat(directory.as_raw_fd(), name.as_ptr(), 0o755) }).unwrap();
        assert!(pool.at("z/c/made-here").is_dir());
        pool.deepen("z/c/clone");
        assert_eq!(pool.read("z/c/clone"), noise(1, 100_000));
    });
}

#[test]
fn a_removed_directory_is_empty_and_gone() {
    on(&[Backing::Ext4], |pool| {
        fs::create_dir(pool.at("d")).unwrap();
        let directory = fs::File::open(pool.at("d")).unwrap();
        fs::remove_dir(pool.at("d")).unwrap();
        assert_eq!(directory.metadata().unwrap().nlink(), 0);
        directory.sync_all().unwrap();
        let inside = format!("/proc/self/fd/{}", directory.as_raw_fd());
        assert_eq!(fs::read_dir(&inside).unwrap().count(), 0);
        assert_eq!(errno(fs::write(Path::new(&inside).join("x"), "x")), libc::ENOENT);
    });
}

#[test]
fn names_and_paths_may_be_as_long_as_the_system_allows() {
    on_each_filesystem(|pool| {
        let longest = "n".repeat(255);
        pool.write(&longest, b"x");
        assert_eq!(pool.read(&longest), b"x");
        assert_eq!(errno(fs::write(pool.at("n".repeat(256)), "x")), libc::ENAMETOOLONG);
        assert_eq!(errno(fs::create_dir(pool.at("n".repeat(256)))), libc::ENAMETOOLONG);
        // Deeper than any path that could be given at once: 40 levels of 200 bytes.
        let mut directory = fs::File::open(pool.root()).unwrap();
        let name = std::ffi::CString::new("d".repeat(200)).unwrap();
        for _ in 0..40 {
            let flags = libc::O_RDONLY | libc::O_DIRECTORY;
            // SAFETY: descriptors are open, names NUL-terminated, and each new descriptor has one owner.
            directory = unsafe {
                result(libc::mkdirat(directory.as_raw_fd(), name.as_ptr(), 0o755)).unwrap();
                let fd = result(libc::openat(directory.as_raw_fd(), name.as_ptr(), flags)).unwrap();
                std::os::fd::FromRawFd::from_raw_fd(fd)
            };
        }
        let inside = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        fs::write(inside.join("file"), noise(1, 10_000)).unwrap();
        assert_eq!(fs::read(inside.join("file")).unwrap(), noise(1, 10_000));
        fs::rename(inside.join("file"), inside.join("renamed")).unwrap();
        set_xattr(&inside.join("renamed"), "user.deep", b"yes").unwrap();
        assert_eq!(fs::metadata(inside.join("renamed")).unwrap().len(), 10_000);
        // Left as the working directory of nobody, it can be removed from above.
        drop(directory);
        support::run(Command::new("rm").arg("-r").arg(pool.at("d".repeat(200)))).success();
    });
}

#[test]
fn names_are_bytes() {
    on_each_filesystem(|pool| {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(b"\xff\xfe \n\x1b[31m");
        fs::write(pool.at(name), noise(1, 50_000)).unwrap();
        assert!(fs::read_dir(pool.root()).unwrap().any(|entry| entry.unwrap().file_name() == name));
        let copy = pool.write("copy", b"");
        set_xattr(&copy, clonefs::door::CLONE_FROM, name.as_bytes()).unwrap();
        assert!(pool.read("copy") == noise(1, 50_000));
        // Freezing and deepening find it by that name.
        fs::OpenOptions::new().write(true).open(pool.at(name)).unwrap().write_all_at(b"x", 0).unwrap();
        let mut expected = noise(1, 50_000);
        expected[0] = b'x';
        support::clonefs([std::ffi::OsStr::new("deepen"), "--wait".as_ref(), pool.at(name).as_os_str()]).success();
        assert!(fs::read(pool.at(name)).unwrap() == expected);
        pool.unmount();
        assert!(fs::read(pool.at(name)).unwrap() == expected);
    });
}

#[test]
fn large_directories_are_listed_in_full() {
    on(&[Backing::Ext4, Backing::Btrfs], |pool| {
        fs::create_dir(pool.at("many")).unwrap();
        for number in 0..3000 {
            fs::File::create(pool.at(format!("many/{number}"))).unwrap();
        }
        let mut names: Vec<u32> = fs::read_dir(pool.at("many"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, (0..3000).collect::<Vec<_>>());
        // Removing while listing, as rm does.
        support::run(Command::new("rm").arg("-r").arg(pool.at("many"))).success();
        assert!(!pool.at("many").exists());
    });
}

#[test]
fn other_filesystems_inside_the_pool_work() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        let inner = support::Disk::new(Backing::Tmpfs);
        fs::create_dir(pool.at("inner")).unwrap();
        support::run(Command::new("mount").arg("--bind").arg(inner.root()).arg(pool.at("inner"))).success();
        pool.mount("deepen=manual");
        // Inode numbers of the two filesystems overlap; those that users see do not.
        let mut numbers = std::collections::HashSet::new();
        for number in 0..40 {
            for directory in [".", "inner"] {
                let path = pool.write(&format!("{directory}/{number}"), b"x");
                assert!(numbers.insert(fs::metadata(path).unwrap().ino()));
            }
        }
        pool.write("inner/file", b"content");
        assert_eq!(pool.read("inner/file"), b"content");
        assert_eq!(errno(fs::rename(pool.at("inner/file"), pool.at("file"))), libc::EXDEV);
        assert_eq!(errno(fs::hard_link(pool.at("inner/file"), pool.at("file"))), libc::EXDEV);
        pool.unmount();
        support::run(Command::new("umount").arg(pool.at("inner"))).success();
        pool.mount("");
    });
}

#[test]
fn locks_of_all_kinds_work() {
    on(&[Backing::Ext4], |pool| {
        let path = pool.write("file", b"x");
        let lock = |file: &fs::File, command: i32, kind: i32| {
            // SAFETY: all zeros is a valid flock.
            let mut lock: libc::flock = unsafe { std::mem::zeroed() };
            lock.l_type = kind as i16;
            lock.l_len = 10;
            // SAFETY: the descriptor is open and lock a valid flock.
            result(unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) }).map(drop)
        };
        let open = || fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let (one, two) = (open(), open());
        lock(&one, libc::F_OFD_SETLK, libc::F_WRLCK).unwrap();
        assert_eq!(errno(lock(&two, libc::F_OFD_SETLK, libc::F_WRLCK)), libc::EAGAIN);
        lock(&one, libc::F_OFD_SETLK, libc::F_UNLCK).unwrap();
        lock(&two, libc::F_OFD_SETLK, libc::F_WRLCK).unwrap();
        drop(two);
        one.lock().unwrap();
        assert!(matches!(open().try_lock(), Err(fs::TryLockError::WouldBlock)));
        // A POSIX lock excludes another process.
        lock(&one, libc::F_SETLK, libc::F_WRLCK).unwrap();
        let script = "import fcntl,sys\nf=open(sys.argv[1],'r+')\ntry: fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB,10)\n\
                      except OSError: sys.exit(7)";
        support::run(Command::new("python3").args(["-c", script]).arg(&path)).code(7);
    });
}

#[test]
fn programs_run_from_a_mount() {
    on(&[Backing::Ext4, Backing::Tmpfs], |pool| {
        fs::copy("/bin/sh", pool.at("sh")).unwrap();
        set_mode(&pool.at("sh"), 0o755);
        let done = support::run(Command::new(pool.at("sh")).args(["-c", "echo ran"])).success();
        assert_eq!(done.stdout, "ran\n");
    });
}

#[test]
fn repositories_and_builds_work() {
    let script = r#"
set -eu
cd "$1"
export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git init -q source
cd source
for i in $(seq 60); do mkdir -p d$((i % 7)); printf 'int f%d(void) { return %d; }\n' $i $i > d$((i % 7))/f$i.c; done
git add . && git commit -qm one
cd ..
git clone -q source copy
git clone -q --no-local source copy2
cd copy
printf 'all: $(patsubst %%.c,%%.o,$(wildcard d*/*.c))\n\tar rcs all.a $^\n' > Makefile
make -s -j4
test "$(ar t all.a | wc -l)" = 60
sed -i s/return/return\ 1+/ d1/*.c
git add . && git commit -qm two && git gc -q && git fsck --strict
tar cf - . | (mkdir ../unpacked && cd ../unpacked && tar xf -)
diff -r . ../unpacked
"#;
    on(&[Backing::Ext4, Backing::Xfs], |pool| {
        support::run(Command::new("sh").args(["-c", script, "sh"]).arg(pool.root())).success();
    });
}
