//! Deaths at each point of each kind of request: the caller sees each of them done once.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use crate::fixture::Kept;
use crate::support::{errno, get_xattr, noise, ready, set_xattr};

/// Times that each change is made.
const TIMES: usize = 6;

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn result(code: i32) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn mknod(path: &Path) -> io::Result<()> {
    let path = c(path);
    // SAFETY: the path is NUL-terminated.
    result(unsafe { libc::mknod(path.as_ptr(), libc::S_IFIFO | 0o600, 0) })
}

fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    let (one, other) = (c(one), c(other));
    let at = libc::AT_FDCWD;
    // SAFETY: both paths are NUL-terminated.
    result(unsafe { libc::renameat2(at, one.as_ptr(), at, other.as_ptr(), libc::RENAME_EXCHANGE) })
}

fn remove_attribute(path: &Path, name: &str) -> io::Result<()> {
    let (path, name) = (c(path), CString::new(name).unwrap());
    // SAFETY: both strings are NUL-terminated.
    result(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) })
}

fn create_attribute(path: &Path, name: &str) -> io::Result<()> {
    let (path, name, value) = (c(path), CString::new(name).unwrap(), b"value");
    // SAFETY: the strings are NUL-terminated, pointer and length describe the value.
    let set = || unsafe {
        libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), libc::XATTR_CREATE)
    };
    result(set())
}

fn punch(file: &File, offset: i64, length: i64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the descriptor is open.
    result(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) })
}

/// Makes each change again and again, while servers die at `point` of `request`. Every call must say what it says without
/// deaths, which a change that is made twice, or not at all, does not.
fn changes(request: &str, point: &str) {
    // Every third time: the request that comes again is the first of the next server.
    let kept = Kept::dying(&format!("{request}:{point}:3"));
    let at = |name: &str, time: usize| kept.at(&format!("{name}{time}"));
    fs::write(kept.at("source"), noise(5, 20_000)).unwrap();
    for time in 0..TIMES {
        fs::create_dir(at("d", time)).expect("mkdir");
        assert_eq!(errno(fs::create_dir(at("d", time))), libc::EEXIST);
        symlink("target", at("l", time)).expect("symlink");
        mknod(&at("p", time)).expect("mknod");
        let made = OpenOptions::new().read(true).write(true).create_new(true).open(at("f", time)).expect("create");
        made.write_all_at(b"0123456789", 0).expect("write");
        let name = at("f", time);
        let again = OpenOptions::new().append(true).open(&name).expect("open");
        io::Write::write_all(&mut &again, b"ab").expect("append");
        fs::hard_link(&name, at("h", time)).expect("link");
        fs::rename(&name, at("g", time)).expect("rename");
        assert_eq!(errno(fs::rename(&name, at("g", time))), libc::ENOENT);
        exchange(&at("g", time), &at("d", time)).expect("exchange");
        assert!(at("g", time).is_dir() && at("d", time).is_file());
        exchange(&at("g", time), &at("d", time)).expect("exchange back");
        made.set_len(15_000).expect("truncate");
        punch(&made, 2, 3).expect("punch");
        create_attribute(&at("g", time), "user.x").expect("create an attribute");
        assert_eq!(errno(create_attribute(&at("g", time), "user.x")), libc::EEXIST);
        assert_eq!(get_xattr(&at("h", time), "user.x").unwrap(), b"value");
        remove_attribute(&at("g", time), "user.x").expect("remove an attribute");
        assert_eq!(errno(remove_attribute(&at("g", time), "user.x")), libc::ENODATA);
        fs::copy(kept.at("source"), at("c", time)).expect("copy");
        assert_eq!(fs::read(at("c", time)).unwrap(), noise(5, 20_000));
        File::create(at("k", time)).unwrap();
        set_xattr(&at("k", time), "user.clonefs.clone-from", kept.at("source").as_os_str().as_bytes()).expect("clone");
        assert_eq!(fs::read(at("k", time)).unwrap(), noise(5, 20_000));
        let mut wanted = b"01\x00\x00\x0056789ab".to_vec();
        wanted.resize(15_000, 0);
        assert!(fs::read(at("h", time)).unwrap() == wanted);
        fs::remove_file(at("h", time)).expect("unlink");
        assert_eq!(errno(fs::remove_file(at("h", time))), libc::ENOENT);
        fs::remove_dir(at("d", time)).expect("rmdir");
        assert_eq!(errno(fs::remove_dir(at("d", time))), libc::ENOENT);
        let names = fs::read_dir(kept.pool.root()).unwrap().count();
        assert_eq!(names, 1 + 5 * (time + 1), "nothing is left over, and nothing is missing");
    }
    assert!(kept.deaths() > 0, "no server died at {point} of {request}");
    kept.end();
}

macro_rules! once {
    ($(fn $name:ident() $request:literal $points:expr;)*) => {$(
        #[test]
        fn $name() {
            if !ready() {
                return;
            }
            for point in $points {
                changes($request, point);
            }
        }
    )*};
}

const ALL: [&str; 4] = ["receive", "begun", "executed", "answer"];
/// What is cheap to look at is looked at everywhere; `scripts/soak kills` has all points of all requests.
const TWO: [&str; 2] = ["executed", "answer"];

once! {
    fn a_directory_is_made_once() "mkdir" ALL;
    fn a_node_is_made_once() "mknod" TWO;
    fn a_file_is_made_once() "create" ALL;
    fn a_symbolic_link_is_made_once() "symlink" TWO;
    fn a_hard_link_is_made_once() "link" TWO;
    fn a_file_is_removed_once() "unlink" ALL;
    fn a_directory_is_removed_once() "rmdir" TWO;
    fn a_name_is_changed_once() "rename" ALL;
    fn a_file_is_written_once() "write" TWO;
    fn a_size_is_set_once() "setattr" TWO;
    fn a_hole_is_punched_once() "fallocate" TWO;
    fn an_attribute_is_made_once() "setxattr" TWO;
    fn an_attribute_is_removed_once() "removexattr" TWO;
    fn a_file_is_opened_once() "open" TWO;
    fn a_range_is_copied_once() "copy_file_range" TWO;
}

#[test]
fn what_kills_every_server_gets_an_error_and_nothing_else_does() {
    if !ready() {
        return;
    }
    // SIGABRT: its own fault.
    let kept = Kept::dying("mkdir:begun:1:6");
    let path = kept.at("d");
    let poison = std::thread::spawn(move || errno(fs::create_dir(path)));
    let mut bytes = Vec::new();
    for round in 0..200u8 {
        fs::write(kept.at("f"), [round; 1000]).expect("a write beside it");
        bytes = fs::read(kept.at("f")).expect("a read beside it");
    }
    assert_eq!(bytes, [199; 1000]);
    assert_eq!(poison.join().unwrap(), libc::EIO);
    assert!(kept.logged("again and again") > 0);
    kept.end();
}
