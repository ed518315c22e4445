//! Clones by attribute, token and ioctl, and who may make them.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, chown};
use std::path::Path;

use clonefs::protocol;

use crate::support::{
    Backing, Pool, as_user, as_user_in, errno, get_xattr, ioctl, noise, on, on_each_filesystem, set_xattr,
};
use crate::{is_overlay, read_write, set_mode};

#[test]
fn an_attribute_clones_by_path() {
    on_each_filesystem(|pool| {
        let bytes = noise(1, 500_000);
        fs::create_dir_all(pool.at("images/old")).unwrap();
        pool.write("images/old/base", &bytes);
        pool.write("images/disk", b"");
        let from = |path: &Path, value: &str| set_xattr(path, protocol::CLONE_FROM, value.as_bytes());
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
                    let code = errno(set_xattr(&target, protocol::CLONE_FROM, source.as_bytes()));
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
        as_user(1234, 1234, || assert_eq!(errno(get_xattr(&secret, protocol::TOKEN)), libc::EACCES));
        let token = String::from_utf8(get_xattr(&secret, protocol::TOKEN).unwrap()).unwrap();
        assert_eq!(token.len(), 32);
        let clone = |name: &str, json: String| set_xattr(&pool.write(name, b""), protocol::CLONE, json.as_bytes());
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
            assert_eq!(errno(set_xattr(&theirs, protocol::CLONE, json.as_bytes())), libc::EACCES);
        });
    });
}

/// The token of an open file, by ioctl.
fn token_of(file: &File) -> std::io::Result<[u8; 16]> {
    let mut token = [0; 16];
    ioctl(file, protocol::IOC_TOKEN, &mut token).map(|()| token)
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
        ioctl(&target, protocol::IOC_CLONE, &mut clone_argument(token, 0, protocol::CLONE_SYNC)).unwrap();
        assert_eq!(target.metadata().unwrap().len(), 100_000);
        assert!(pool.read("target") == bytes);

        let write_only = OpenOptions::new().write(true).open(&path).unwrap();
        assert_eq!(errno(token_of(&write_only)), libc::EBADF);
        pool.write("other", b"");
        let read_only = File::open(pool.at("other")).unwrap();
        assert_eq!(errno(ioctl(&read_only, protocol::IOC_CLONE, &mut clone_argument(token, 0, 0))), libc::EBADF);
        let other = read_write(&pool.at("other"));
        assert_eq!(errno(ioctl(&other, protocol::IOC_CLONE, &mut clone_argument(token, 0, 1 << 40))), libc::EINVAL);
        assert_eq!(errno(ioctl(&other, protocol::IOC_CLONE, &mut clone_argument([7; 16], 0, 0))), libc::EXDEV);
        assert_eq!(errno(ioctl(&target, protocol::IOC_CLONE, &mut clone_argument(token, 0, 0))), libc::EEXIST);
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
        ioctl(&target, protocol::IOC_CLONE, &mut clone_argument(token, 0, 0)).unwrap();
        // The kernel was not asked for the size since.
        target.write_all(b"at the end").unwrap();
        assert!(pool.read("target") == [&bytes[..], b"at the end"].concat());
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
        as_user(1234, 1234, || set_xattr(&target, protocol::CLONE_FROM, b"source").unwrap());
        let meta = fs::metadata(&target).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.len()), (0o777, 0, 50_000));
    });
}
