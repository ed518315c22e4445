//! Attributes that tell the state of a volume, and those that steer background work.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use clonefs::protocol;

use crate::set_mode;
use crate::support::{Backing, as_user, errno, get_xattr, noise, on, set_xattr};

#[test]
fn state_is_told_in_words_and_numbers() {
    on(&[Backing::Ext4], |pool| {
        pool.write("base", &noise(1, 1 << 20));
        pool.clone("base", "clone");
        let text = |name: &str, door: &str| String::from_utf8(get_xattr(&pool.at(name), door).unwrap()).unwrap();
        assert_eq!(text("clone", protocol::STATE), "overlay");
        assert_eq!(text("clone", protocol::PROGRESS), "0.0");
        assert_eq!(text("clone", protocol::ORIGIN), "base");
        assert_eq!(text("clone", protocol::DEPTH), "1");
        assert_eq!(text("clone", protocol::UNIQUE_BYTES), "0");
        assert_eq!(text("clone", protocol::SHARED_BYTES), (1 << 20).to_string());
        assert_eq!(text("clone", protocol::PARENT).len(), 16);
        pool.deepen("clone");
        assert_eq!(text("clone", protocol::STATE), "independent");
        assert_eq!(text("clone", protocol::PROGRESS), "100");
        assert_eq!((text("clone", protocol::PARENT).as_str(), text("clone", protocol::DEPTH).as_str()), ("", "0"));
        // Blocks are those of an ordinary file at once.
        assert_eq!(fs::metadata(pool.at("clone")).unwrap().blocks() * 512, 1 << 20);
        assert_eq!(errno(get_xattr(pool.root(), protocol::STATE)), libc::ENODATA);
        assert_eq!(errno(get_xattr(&pool.at("base"), protocol::STATUS)), libc::ENODATA);
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
            assert_eq!(set(&path, protocol::DEEPEN, "start"), libc::EPERM);
            // The mode of the pool's root lets them write there.
            assert_eq!(set(pool.root(), protocol::DEEPEN, "pause"), libc::EPERM);
            assert_eq!(set(pool.root(), protocol::FLUSH, "sync"), libc::EPERM);
            assert_eq!(errno(get_xattr(pool.root(), protocol::CHECK)), libc::EPERM);
        });
        chown(&path, Some(1234), None).unwrap();
        as_user(1234, 1234, || {
            assert_eq!(set(&path, protocol::DEEPEN, "pause"), 0);
            assert_eq!(set(&path, protocol::DEEPEN, r#"{"action":"resume"}"#), 0);
            assert_eq!(set(&path, protocol::DEEPEN, "faster"), libc::EINVAL);
            assert_eq!(set(pool.root(), protocol::DEEPEN, "pause"), libc::EPERM);
        });
        assert_eq!(set(pool.root(), protocol::DEEPEN, r#"{"action":"pause","rate":1000}"#), 0);
        assert!(pool.mounted().status().paused);
        assert_eq!(set(pool.root(), protocol::FLUSH, "sync"), 0);
        assert_eq!(set(pool.root(), protocol::FLUSH, "now"), libc::EINVAL);
        assert!(get_xattr(pool.root(), protocol::CHECK).unwrap().starts_with(b"{\"problems\":[]"));
    });
}
