//! What is told of a file, by attributes and numbers; and that it is one file under all its names, and without one.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use crate::set_mode;
use crate::support::{
    Pool, as_user, c_path, errno, get_xattr, list_xattr, noise, on_each_filesystem, remove_xattr, result, set_xattr,
};

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
