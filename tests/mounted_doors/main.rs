//! The doors of a mounted pool: cp and copy_file_range, virtual attributes, ioctls; who may use them, and that nothing
//! the kernel caches is missing from a point in time.

mod clones;
mod copies;
mod moments;
mod state;
#[path = "../support/mod.rs"]
mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use clonefs::protocol;
use support::{Backing, Mapping, Pool, copy_range, get_xattr, noise, on, set_xattr};

fn is_overlay(pool: &Pool, name: &str) -> bool {
    pool.info(name).state == protocol::VolumeState::Overlay
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
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
                        set_xattr(&path, protocol::CLONE_FROM, b"base").unwrap();
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
        let report = get_xattr(pool.root(), protocol::CHECK).unwrap();
        assert!(report.starts_with(b"{\"problems\":[]"), "{}", String::from_utf8_lossy(&report));
    });
}
