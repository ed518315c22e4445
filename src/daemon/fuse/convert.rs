//! The types of the FUSE protocol on one side, ours on the other.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, RenameFlags, TimeOrNow};

use crate::engine::io::{FileKind, Rename, SetTime, Timestamp, Whence};
use crate::engine::namespace::{Attributes, Change};
use crate::error::{Error, Kind, Result};

/// Attributes for a reply.
pub fn attr(attributes: &Attributes) -> FileAttr {
    let stat = &attributes.stat;
    FileAttr {
        ino: INodeNo(attributes.ino),
        size: stat.size,
        blocks: stat.blocks,
        atime: system_time(stat.atime),
        mtime: system_time(stat.mtime),
        ctime: system_time(stat.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(stat.kind()),
        perm: (stat.mode & 0o7777) as u16,
        nlink: u32::try_from(stat.nlink).unwrap_or(u32::MAX),
        uid: stat.uid,
        gid: stat.gid,
        rdev: encode_device(stat.rdev),
        blksize: stat.blksize,
        flags: 0,
    }
}

/// Attributes of nothing: number 0 in the answer to a lookup means "no such name".
pub fn absent(kind: FileType) -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// Kind of a file.
pub fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// What a SETATTR asks for.
pub fn change(
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
    atime: Option<TimeOrNow>,
    mtime: Option<TimeOrNow>,
) -> Change {
    Change { mode, uid, gid, size, atime: set_time(atime), mtime: set_time(mtime) }
}

fn set_time(time: Option<TimeOrNow>) -> SetTime {
    match time {
        None => SetTime::Keep,
        Some(TimeOrNow::Now) => SetTime::Now,
        Some(TimeOrNow::SpecificTime(time)) => SetTime::At(timestamp(time)),
    }
}

/// Undoes what fuser 0.18 does with the seconds and nanoseconds of a request: before 1970 it takes both away from the
/// epoch, although the nanoseconds of a timespec always count forward.
fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp { seconds: after.as_secs() as i64, nanos: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            Timestamp { seconds: (before.as_secs() as i64).wrapping_neg(), nanos: before.subsec_nanos() }
        }
    }
}

/// For replies, where fuser converts as it should.
fn system_time(time: Timestamp) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    whole.and_then(|whole| whole.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// Device number of a request (the kernel's 32-bit form) as the system calls want it.
pub fn device(rdev: u32) -> u64 {
    libc::makedev((rdev & 0xfff00) >> 8, rdev & 0xff | rdev >> 12 & 0xfff00)
}

fn encode_device(rdev: u64) -> u32 {
    let (major, minor) = (libc::major(rdev), libc::minor(rdev));
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// Flags of renameat2(2).
pub fn flags_of_rename(flags: RenameFlags) -> Result<Rename> {
    if flags.is_empty() {
        Ok(Rename::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Ok(Rename::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Ok(Rename::Exchange)
    } else if flags == RenameFlags::RENAME_WHITEOUT {
        Ok(Rename::Whiteout)
    } else {
        Err(Error::new(Kind::Invalid, "rename with unknown flags"))
    }
}

/// What lseek(2) looks for; other ways to seek never leave the kernel.
pub fn whence(whence: i32) -> Result<Whence> {
    match whence {
        libc::SEEK_DATA => Ok(Whence::Data),
        libc::SEEK_HOLE => Ok(Whence::Hole),
        _ => Err(Error::new(Kind::Invalid, "seek in an unknown way")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_survive_both_ways() {
        for (seconds, nanos) in [(0, 0), (5, 999_999_999), (-1, 0), (-1, 500_000_000), (-86400, 1), (i64::MIN, 0)] {
            let time = Timestamp { seconds, nanos };
            // As fuser makes it of a request: both parts away from the epoch.
            let request = if seconds >= 0 {
                UNIX_EPOCH + Duration::new(seconds as u64, nanos)
            } else {
                UNIX_EPOCH - Duration::new(seconds.unsigned_abs(), nanos)
            };
            assert_eq!(timestamp(request), time);
            let reply = system_time(time);
            let shown = match reply.duration_since(UNIX_EPOCH) {
                Ok(after) => after.as_nanos() as i128,
                Err(before) => -(before.duration().as_nanos() as i128),
            };
            assert_eq!(shown, i128::from(seconds) * 1_000_000_000 + i128::from(nanos));
        }
    }

    #[test]
    fn device_numbers_survive_both_ways() {
        for (major, minor) in [(0, 0), (8, 1), (259, 70000), (4095, 1_048_575)] {
            let device_number = libc::makedev(major, minor);
            assert_eq!(device(encode_device(device_number)), device_number);
        }
    }
}
