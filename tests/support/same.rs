//! Random operations, done through a mount and on the backing filesystem itself, compared step by step.

use std::ffi::CString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use super::{Pool, as_user_in, c_path, get_xattr, list_xattr, mknod, remove_xattr, rename, result, set_xattr};

/// A directory in a pool and one beside it on the same filesystem.
pub struct Sides {
    mounted: PathBuf,
    native: PathBuf,
}

/// Who does a step: user, group, supplementary group.
const WHO: [(u32, u32, u32); 3] = [(0, 0, 0), (1234, 1234, 77), (1235, 1235, 78)];
const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "f", "long name with \n and \u{e9}"];
const MODES: [u32; 10] = [0o644, 0o600, 0o666, 0o755, 0o777, 0o700, 0o1777, 0o2775, 0o6755, 0o000];

/// A sequence of random steps.
pub struct Steps {
    seed: u64,
    state: u64,
    left: usize,
}

/// One operation: a number for what, and numbers for all its details.
#[derive(Clone, Debug)]
pub struct Step {
    what: u64,
    who: usize,
    umask: u32,
    path: String,
    other: String,
    detail: u64,
}

impl Steps {
    /// `count` steps that a seed determines.
    pub fn new(seed: u64, count: usize) -> Steps {
        Steps { seed, state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, left: count }
    }

    fn number(&mut self, below: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) % below
    }

    fn path(&mut self) -> String {
        let depth = [1, 1, 1, 2, 2, 3][self.number(6) as usize];
        let names: Vec<&str> = (0..depth).map(|_| NAMES[self.number(NAMES.len() as u64) as usize]).collect();
        names.join("/")
    }
}

impl Iterator for Steps {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        self.left = self.left.checked_sub(1)?;
        Some(Step {
            what: self.number(29),
            // Mostly root: what it makes, the others run into.
            who: [0, 0, 1, 1, 2][self.number(5) as usize],
            umask: [0o022, 0o000, 0o077][self.number(3) as usize],
            path: self.path(),
            other: self.path(),
            detail: self.number(1 << 40),
        })
    }
}

impl Sides {
    /// New directories of this name.
    pub fn new(pool: &Pool, name: &str) -> Sides {
        // One directory more than is compared, as some links lead out of it.
        let sides = Sides { mounted: pool.at(name).join("root"), native: pool.disk.root().join(name).join("root") };
        for root in [&sides.mounted, &sides.native] {
            fs::create_dir_all(root).expect("directory");
            for directory in [Some(root.as_path()), root.parent()].into_iter().flatten() {
                let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
                fs::set_permissions(directory, open).expect("mode");
            }
        }
        sides
    }

    /// Does the steps on both sides. Fails the test at the first one that differs.
    pub fn compare_steps(&self, steps: Steps) {
        let seed = steps.seed;
        for (number, step) in steps.enumerate() {
            let native = step.run(&self.native);
            let mounted = step.run(&self.mounted);
            let again = format!("CLONEFS_TEST_SEED={seed}, step {number}: {step:?}");
            if native != mounted {
                for root in [&self.native, &self.mounted] {
                    eprintln!(
                        "{root:?}: {:?}, the root is {:?}",
                        step.look(root),
                        fs::metadata(root).map(|m| facts(&m))
                    );
                }
            }
            assert_eq!(native, mounted, "left: backing filesystem, right: mount; {again}");
            if number % 200 == 0 {
                assert_eq!(tree(&self.native), tree(&self.mounted), "left: backing filesystem, right: mount; {again}");
            }
        }
        assert_eq!(tree(&self.native), tree(&self.mounted));
    }
}

impl Step {
    fn run(&self, root: &Path) -> String {
        let (uid, gid, group) = WHO[self.who];
        as_user_in(uid, gid, &[group], || {
            // SAFETY: neither call touches memory; the umask is this thread's own after the first.
            unsafe {
                libc::unshare(libc::CLONE_FS);
                libc::umask(self.umask);
            }
            match self.act(root) {
                Ok(answer) => answer,
                Err(error) => format!("{:?}", error.raw_os_error()),
            }
        })
    }

    /// What the step was about, for a message.
    fn look(&self, root: &Path) -> Vec<String> {
        let about = [&self.path, &self.other].map(|path| root.join(path));
        about
            .iter()
            .map(|path| {
                let meta = fs::symlink_metadata(path).map(|meta| (facts(&meta), meta.ctime_nsec()));
                format!("{meta:?} {:?}", get_xattr(path, "system.posix_acl_access"))
            })
            .collect()
    }

    fn pick<T: Copy>(&self, from: &[T]) -> T {
        from[(self.detail % from.len() as u64) as usize]
    }

    fn act(&self, root: &Path) -> io::Result<String> {
        let (path, other) = (root.join(&self.path), root.join(&self.other));
        let mode = MODES[(self.detail >> 8) as usize % MODES.len()];
        let done = |()| "done".to_owned();
        match self.what {
            0..=3 => self.open(&path, mode),
            4 | 5 => mkdir(&path, mode).map(done),
            6 => fs::remove_dir(&path).map(done),
            7 => fs::remove_file(&path).map(done),
            8 | 9 => rename(&path, &other, self.pick(&[0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE])).map(done),
            10 => fs::hard_link(&path, &other).map(done),
            11 => symlink(self.pick(&["a", "d", "../b", "nowhere", "c/d"]), &path).map(done),
            12 => fs::read_link(&path).map(|target| format!("{target:?}")),
            13 => fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).map(done),
            14 => chown(&path, self.owner().0, self.owner().1).map(done),
            15 => lchown(&path, self.owner().0, self.owner().1).map(done),
            16 => truncate(&path, self.pick(&[0, 1, 5000, 4096, 100_000])).map(done),
            17 => set_times(&path, self.pick(&[-1_000_000, 0, 1_700_000_000]), self.detail >> 20 & 1 == 0).map(done),
            18 => set_xattr(&path, self.pick(&["user.a", "user.b", "trusted.a"]), &[1; 40]).map(done),
            19 => get_xattr(&path, self.pick(&["user.a", "user.b", "trusted.a"])).map(|value| format!("{value:?}")),
            // Whether others than root see the names of trusted attributes: see docs/posix.md.
            20 => list_xattr(&path).map(|mut names| {
                names.retain(|name| self.who == 0 || !name.starts_with("trusted."));
                format!("{names:?}")
            }),
            21 => remove_xattr(&path, self.pick(&["user.a", "user.b", "trusted.a"])).map(done),
            22 => mknod(&path, self.pick(&[libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFREG, libc::S_IFCHR]) | mode, 259)
                .map(done),
            23 => fs::symlink_metadata(&path).map(|meta| facts(&meta)),
            24 => fs::metadata(&path).map(|meta| facts(&meta)),
            25 => list(&path),
            26 => access(&path, self.pick(&[libc::R_OK, libc::W_OK, libc::X_OK])).map(done),
            27 => read(&path).map(|bytes| format!("{bytes:?}")),
            _ => set_xattr(&path, "system.posix_acl_access", &acl(self.pick(&[1234, 1235]))).map(done),
        }
    }

    /// New owner and group. Never neither: see docs/posix.md for chown(2) that changes nothing.
    fn owner(&self) -> (Option<u32>, Option<u32>) {
        let id = |shift: u32| [None, Some(0), Some(1234), Some(77)][(self.detail >> shift & 3) as usize];
        (id(0), id(4).or(if id(0).is_none() { Some(77) } else { None }))
    }

    fn open(&self, path: &Path, mode: u32) -> io::Result<String> {
        let bit = |number: u32| self.detail >> (16 + number) & 1 == 1;
        let mut options = fs::OpenOptions::new();
        let write = bit(0) || bit(1);
        options.read(bit(2) || !write).write(write).mode(mode);
        let mut flags = if bit(3) { libc::O_CREAT } else { 0 };
        flags |= if bit(3) && bit(4) { libc::O_EXCL } else { 0 };
        flags |= if write && bit(5) { libc::O_TRUNC } else { 0 };
        flags |= if write && bit(6) { libc::O_APPEND } else { 0 };
        flags |= if bit(7) && bit(8) { libc::O_NOFOLLOW } else { 0 };
        flags |= if bit(9) && bit(10) { libc::O_DIRECTORY } else { 0 };
        let file = options.custom_flags(flags | libc::O_NONBLOCK).open(path)?;
        let meta = file.metadata()?;
        // A FIFO with nobody at the other end, and devices, are not written to.
        if write && meta.is_file() {
            file.write_at(&[b'x'; 3000], self.pick(&[0, 10, 4095, 20_000]))?;
        }
        file.metadata().map(|meta| facts(&meta))
    }
}

/// What must be the same on both sides. Directories' sizes are the filesystem's own affair; blocks are those of the
/// same kind of file, but may be allocated later.
fn facts(meta: &fs::Metadata) -> String {
    let size = if meta.is_dir() { 0 } else { meta.len() };
    let rdev = meta.rdev();
    format!("{:o} {} {}:{} {size} {rdev}", meta.mode(), meta.nlink(), meta.uid(), meta.gid())
}

/// Names and facts of all that is below a directory.
fn tree(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut queue = vec![PathBuf::new()];
    while let Some(directory) = queue.pop() {
        for entry in fs::read_dir(root.join(&directory)).expect("list").map(|entry| entry.expect("entry")) {
            let path = directory.join(entry.file_name());
            let meta = fs::symlink_metadata(root.join(&path)).expect("look at");
            assert_eq!(entry.file_type().expect("kind"), meta.file_type(), "kind in the listing of {path:?}");
            lines.push(format!("{path:?} {} {:?}", facts(&meta), list_xattr(&root.join(&path)).expect("attributes")));
            if meta.is_file() {
                lines.push(format!("{path:?} {:?}", fs::read(root.join(&path)).expect("read")));
            }
            if meta.is_dir() {
                queue.push(path);
            }
        }
    }
    lines.sort();
    lines
}

fn list(path: &Path) -> io::Result<String> {
    let mut names = fs::read_dir(path)?
        .map(|entry| entry.and_then(|entry| Ok(format!("{:?} {:?}", entry.file_name(), entry.file_type()?))))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(format!("{names:?}"))
}

/// Does not wait for the other end of a FIFO.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn mkdir(path: &Path, mode: u32) -> io::Result<()> {
    // SAFETY: path is NUL-terminated.
    result(unsafe { libc::mkdir(c_path(path).as_ptr(), mode) }).map(drop)
}

fn truncate(path: &Path, size: i64) -> io::Result<()> {
    // SAFETY: path is NUL-terminated.
    result(unsafe { libc::truncate(c_path(path).as_ptr(), size) }).map(drop)
}

fn access(path: &Path, mode: i32) -> io::Result<()> {
    let path: CString = c_path(path);
    // SAFETY: path is NUL-terminated.
    result(unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), mode, libc::AT_EACCESS) }).map(drop)
}

fn set_times(path: &Path, seconds: i64, both: bool) -> io::Result<()> {
    let time = libc::timespec { tv_sec: seconds, tv_nsec: 5 };
    let keep = libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT };
    let times = [if both { time } else { keep }, time];
    let path = c_path(path);
    // SAFETY: path is NUL-terminated, times are two timespecs.
    result(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW) })
        .map(drop)
}

/// rw for the owner and for `user`, r for the group, nothing for others.
fn acl(user: u32) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(0x01u16, 6u16, u32::MAX), (2, 6, user), (4, 4, u32::MAX), (0x10, 6, u32::MAX), (0x20, 0, u32::MAX)]
    {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}
