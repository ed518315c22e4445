//! A tree with one of everything, always the same.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, mknodat, setxattr, utimensat};

use super::{NOBODY, root};

/// When the first file was made; each later one is a thousand seconds younger.
const BEGIN: i64 = 1_000_000_000;

/// An ACL that lets user 1 read and write: version 2, then (tag, permissions, id) for owner, user 1, group, mask and
/// others.
pub const ACL: &[u8] = &[
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 6, 0, 1, 0, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 6, 0,
    255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
];

/// Fills `root`.
pub fn build(at: &Path) {
    let p = |name: &str| at.join(name);
    let file = |name: &str, contents: &str, mode: u32| {
        fs::write(p(name), contents).expect(name);
        fs::set_permissions(p(name), fs::Permissions::from_mode(mode)).expect(name);
    };
    let directory = |name: &str| fs::create_dir(p(name)).expect(name);
    file("a", "alpha\n", 0o644);
    file("b", "bravo bravo\n", 0o600);
    file("empty", "", 0o644);
    file("exe", "#!/bin/sh\n", 0o755);
    file("ro", "read only\n", 0o444);
    file("su", "set user id\n", 0o755);
    file("x", "with attributes\n", 0o640);
    file("y", "with an ACL\n", 0o644);
    file("it's", "name with a quote\n", 0o644);
    file("s p", "name with a space\n", 0o644);
    fs::hard_link(p("a"), p("ha")).expect("ha");
    for (target, name) in
        [("a", "la"), ("la", "lla"), ("nowhere", "dang"), ("loop", "loop"), ("d", "ld"), ("t/a", "lt")]
    {
        symlink(target, p(name)).expect(name);
    }
    directory("d");
    file("d/f", "foxtrot\n", 0o664);
    file("d/g", "golf\n", 0o600);
    directory("d/sub");
    file("d/sub/h", "hotel\n", 0o644);
    directory("d/sub/deep");
    file("d/sub/deep/i", "india\n", 0o400);
    symlink("f", p("d/l")).expect("d/l");
    symlink("../a", p("d/up")).expect("d/up");
    symlink("sub", p("d/ls")).expect("d/ls");
    fs::hard_link(p("d/f"), p("d/sub/hf")).expect("d/sub/hf");
    directory("e");
    directory("t");
    file("t/a", "old alpha\n", 0o644);
    file("t/b", "old bravo\n", 0o444);
    directory("t/d");
    file("t/d/f", "old foxtrot\n", 0o644);
    file("t/d/sub", "a file where a directory is to be\n", 0o644);
    symlink("a", p("t/la")).expect("t/la");
    directory("t/x");
    file("t/ro~", "an old backup\n", 0o644);
    file("t/ro", "old read only\n", 0o644);
    file("t/exe", "old exe\n", 0o644);
    file("t/exe.~7~", "numbered backup\n", 0o644);
    directory("rodir");
    file("rodir/k", "kilo\n", 0o644);
    sparse(&p("holes"));
    specials(at);
    let mut second = BEGIN;
    stamp(at, &mut second);
    // After everything else: these make it harder to change anything.
    fs::set_permissions(p("su"), fs::Permissions::from_mode(0o4755)).expect("su");
    fs::set_permissions(p("rodir"), fs::Permissions::from_mode(0o555)).expect("rodir");
    fs::set_permissions(p("d/sub"), fs::Permissions::from_mode(0o2750)).expect("d/sub");
    fs::set_permissions(p("e"), fs::Permissions::from_mode(0o1777)).expect("e");
    // Younger than all: what an update keeps.
    touch(&p("t/a"), 1_200_000_000);
}

/// A file with data in the middle and holes around it.
fn sparse(path: &Path) {
    let file = File::create(path).expect("sparse file");
    file.set_len(1 << 20).expect("size");
    file.write_all_at(&[0x5a; 8192], 192 * 1024).expect("data");
    file.write_all_at(&[0; 65536], 512 * 1024).expect("zeros");
}

/// What only root can make, and attributes.
fn specials(at: &Path) {
    let set = |name: &str, attribute: &str, value: &[u8]| {
        setxattr(at.join(name), attribute, value, XattrFlags::empty()).expect(attribute);
    };
    set("x", "user.first", b"one");
    set("x", "user.second", b"");
    set("d/sub/deep", "user.dir", b"attribute of a directory");
    set("y", "system.posix_acl_access", ACL);
    set("y", "user.acl", b"has one");
    set("d/sub/deep", "system.posix_acl_default", ACL);
    let node = |name: &str, kind, device| {
        mknodat(CWD, at.join(name), kind, Mode::from_raw_mode(0o640), device).expect(name);
    };
    node("p", FileType::Fifo, 0);
    node("t/p", FileType::Fifo, 0);
    node("so", FileType::Socket, 0);
    if !root() {
        return;
    }
    node("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    set("x", "trusted.third", b"three");
    for name in ["b", "d/g", "d/sub/h", "t/b", "ld"] {
        lchown(at.join(name), Some(1), Some(2)).expect(name);
    }
    for name in ["su", "ro", "x", "e", "t", "t/a", "t/d", "t/ro", "t/exe", "d/sub/deep/i"] {
        lchown(at.join(name), Some(NOBODY), Some(NOBODY)).expect(name);
    }
}

/// Sets the times of everything, the innermost first.
fn stamp(path: &Path, second: &mut i64) {
    let meta = fs::symlink_metadata(path).expect("stat");
    if meta.is_dir() {
        let mut names: Vec<_> = fs::read_dir(path).expect("list").map(|e| e.expect("entry").path()).collect();
        names.sort();
        names.iter().for_each(|name| stamp(name, second));
    }
    *second += 1000;
    touch(path, *second);
}

/// Sets both times of a file, or of a link itself.
pub fn touch(path: &Path, second: i64) {
    let time = Timespec { tv_sec: second, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("times");
}
