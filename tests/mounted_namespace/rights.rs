//! Owners, modes, ACLs and privileges are decided as the kernel decides them.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use crate::support::{
    self, Backing, Pool, as_user, as_user_in, errno, get_xattr, noise, on, on_each_filesystem, set_xattr,
};
use crate::{mode, set_mode};

/// Sets the umask of this thread, which must be one of [`as_user`]'s, alone.
fn set_umask(mask: u32) {
    // SAFETY: neither call touches memory.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_FS), 0);
        libc::umask(mask);
    }
}

/// Two directories that everybody may make files in; what is made in the second one belongs to group 77.
fn plain_and_shared(pool: &support::Pool) -> (PathBuf, PathBuf) {
    let (plain, shared) = (pool.at("plain"), pool.at("shared"));
    for directory in [&plain, &shared] {
        fs::create_dir(directory).unwrap();
    }
    set_mode(&plain, 0o777);
    chown(&shared, Some(0), Some(77)).unwrap();
    set_mode(&shared, 0o2777);
    (plain, shared)
}

#[test]
fn new_files_belong_to_who_makes_them() {
    on_each_filesystem(|pool| {
        let (plain, shared) = plain_and_shared(pool);
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
        let (plain, shared) = plain_and_shared(pool);
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
fn setgid_without_execution_goes_when_a_stranger_to_the_group_writes_and_no_mode_is_remembered() {
    on(&[Backing::Ext4], |pool| {
        pool.write("base", &noise(4, 100_000));
        pool.clone("base", "overlay");
        for name in ["base", "overlay"] {
            let path = pool.at(name);
            for (groups, kept) in [(&[77][..], 0o2666), (&[][..], 0o666)] {
                chown(&path, Some(0), Some(77)).unwrap();
                set_mode(&path, 0o6666);
                // The kernel has just been told the mode.
                assert_eq!(mode(&path), 0o6666);
                let write = || fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"x", 5).unwrap();
                as_user_in(1234, 1234, groups, write);
                assert_eq!(mode(&path), kept, "{name}, written by a member of {groups:?}");
            }
        }
    });
}
