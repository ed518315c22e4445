//! What is known of a file: the part of `stat(2)` that copying looks at.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// All permission bits: rwx for three, set-user-id, set-group-id and sticky.
pub const MODE_BITS: u32 = 0o7777;

/// A point in time as the filesystem keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nanoseconds: i64,
}

/// A file's attributes at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// Device that holds it.
    pub dev: u64,
    /// Inode on that device.
    pub ino: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Number of names.
    pub nlink: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device that a device file stands for.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Units of 512 bytes on disk.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the contents.
    pub mtime: Time,
}

impl From<Metadata> for Stat {
    fn from(m: Metadata) -> Stat {
        Stat {
            dev: m.dev(),
            ino: m.ino(),
            mode: m.mode(),
            nlink: m.nlink(),
            uid: m.uid(),
            gid: m.gid(),
            rdev: m.rdev(),
            size: m.size(),
            blocks: m.blocks(),
            atime: Time { seconds: m.atime(), nanoseconds: m.atime_nsec() },
            mtime: Time { seconds: m.mtime(), nanoseconds: m.mtime_nsec() },
        }
    }
}

impl Stat {
    /// Of what `path` leads to.
    pub fn of(path: &Path) -> io::Result<Stat> {
        fs::metadata(path).map(Stat::from)
    }

    /// Of `path` itself, also when it is a symbolic link.
    pub fn of_link(path: &Path) -> io::Result<Stat> {
        fs::symlink_metadata(path).map(Stat::from)
    }

    /// Of an open file.
    pub fn of_file(file: &File) -> io::Result<Stat> {
        file.metadata().map(Stat::from)
    }

    /// Of `path`, following a symbolic link if `follow`.
    pub fn at(path: &Path, follow: bool) -> io::Result<Stat> {
        if follow { Stat::of(path) } else { Stat::of_link(path) }
    }

    /// Device and inode: equal for two names of one file.
    pub fn id(&self) -> (u64, u64) {
        (self.dev, self.ino)
    }

    /// The file type bits, such as `libc::S_IFREG`.
    pub fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// A directory.
    pub fn is_dir(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }

    /// A regular file.
    pub fn is_file(&self) -> bool {
        self.kind() == libc::S_IFREG
    }

    /// A symbolic link.
    pub fn is_link(&self) -> bool {
        self.kind() == libc::S_IFLNK
    }

    /// It takes less room on disk than its size: there are holes (or compression) in it.
    pub fn is_sparse(&self) -> bool {
        self.is_file() && self.blocks.saturating_mul(512) < self.size
    }

    /// Owner and group are the same.
    pub fn same_owner(&self, other: &Stat) -> bool {
        (self.uid, self.gid) == (other.uid, other.gid)
    }
}
