//! Directories that move, go, and hold what they can: long names, odd names, many names, other filesystems.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{self, Backing, errno, noise, on, on_each_filesystem, result, set_xattr};

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
        set_xattr(&copy, clonefs::protocol::CLONE_FROM, name.as_bytes()).unwrap();
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
