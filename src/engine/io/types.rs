//! Plain data that goes through the seam.

use std::ffi::OsString;

/// Identity of a file in the backing filesystem while it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey {
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
}

/// A file, told from later ones that get its inode number, where the filesystem notes when a file was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    /// Identity while it exists.
    pub key: FileKey,
    /// When it was made, if that is known.
    pub birth: Option<Timestamp>,
}

impl FileId {
    /// Whether `other` is the same file. A time that only one of the two knows says nothing.
    pub fn is(&self, other: FileId) -> bool {
        self.key == other.key && (self.birth == other.birth || self.birth.is_none() || other.birth.is_none())
    }
}

impl From<FileKey> for FileId {
    fn from(key: FileKey) -> FileId {
        FileId { key, birth: None }
    }
}

impl From<&Stat> for FileId {
    fn from(stat: &Stat) -> FileId {
        FileId { key: stat.key, birth: stat.birth }
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
}

impl FileKind {
    /// Kind from the file type bits of `st_mode`.
    pub fn from_mode(mode: u32) -> FileKind {
        match mode & libc::S_IFMT {
            libc::S_IFDIR => FileKind::Directory,
            libc::S_IFLNK => FileKind::Symlink,
            libc::S_IFIFO => FileKind::Fifo,
            libc::S_IFSOCK => FileKind::Socket,
            libc::S_IFCHR => FileKind::CharDevice,
            libc::S_IFBLK => FileKind::BlockDevice,
            _ => FileKind::File,
        }
    }
}

/// Seconds and nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds, negative before 1970.
    pub seconds: i64,
    /// Nanoseconds, below 10^9.
    pub nanos: u32,
}

impl Timestamp {
    /// The time now, by the system's clock.
    pub fn now() -> Timestamp {
        match std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
            Ok(since) => Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() },
            Err(_) => Timestamp::default(),
        }
    }
}

/// What to do with a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// Leave it.
    Keep,
    /// Set it to the backing filesystem's clock.
    Now,
    /// Set it to this.
    At(Timestamp),
}

/// Status of a file.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// Identity.
    pub key: FileKey,
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Number of names.
    pub nlink: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device file.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Space on disk in units of 512 bytes.
    pub blocks: u64,
    /// Preferred size of an I/O in bytes.
    pub blksize: u32,
    /// Time of last access.
    pub atime: Timestamp,
    /// Time of last change of contents.
    pub mtime: Timestamp,
    /// Time of last change of contents or attributes.
    pub ctime: Timestamp,
    /// When it was made, where the filesystem notes that.
    pub birth: Option<Timestamp>,
}

impl Stat {
    /// What it is.
    pub fn kind(&self) -> FileKind {
        FileKind::from_mode(self.mode)
    }

    /// Which file it is.
    pub fn id(&self) -> FileId {
        FileId::from(self)
    }
}

/// One name in a directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// The name.
    pub name: OsString,
    /// Inode number.
    pub ino: u64,
    /// Kind, where the filesystem tells without a look at the inode.
    pub kind: Option<FileKind>,
}

/// How to open a regular file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// For reading.
    Read,
    /// For reading and writing.
    Write,
    /// A new file for reading and writing, with this mode; fails if the name exists.
    CreateNew(u32),
}

/// How to rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rename {
    /// Replace what has the new name.
    Replace,
    /// Fail if the new name exists.
    NoReplace,
    /// Swap the two.
    Exchange,
    /// Replace what has the new name, and leave a whiteout (a character device 0, 0) under the old one.
    Whiteout,
}

/// What to look for with [`super::File::seek`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// Next byte that is not in a hole.
    Data,
    /// Next byte that is in a hole (the end of the file counts as one).
    Hole,
}

/// A filesystem and its space.
#[derive(Clone, Debug)]
pub struct FsInfo {
    /// `f_type` of statfs(2).
    pub magic: i64,
    /// Block size in bytes, the unit of the numbers below.
    pub block_size: u64,
    /// All blocks.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks for those who are not root.
    pub available: u64,
    /// All inodes, 0 if there is no limit.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Longest name in bytes.
    pub name_max: u32,
}

impl FsInfo {
    /// Name of the filesystem's type, from the magic numbers in the kernel's `linux/magic.h`.
    pub fn type_name(&self) -> &'static str {
        match self.magic as u32 {
            0xef53 => "ext4",
            0x5846_5342 => "xfs",
            0x9123_683e => "btrfs",
            0x0102_1994 => "tmpfs",
            0x794c_7630 => "overlayfs",
            0x6969 => "nfs",
            0x6573_5546 => "fuse",
            0x2fc1_2fc1 => "zfs",
            0xf2f5_2010 => "f2fs",
            0xca45_1a4e => "bcachefs",
            0x8584_58f6 => "ramfs",
            0x4d44 => "vfat",
            0x2011_bab0 => "exfat",
            _ => "unknown",
        }
    }
}
