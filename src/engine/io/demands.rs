//! What a directory demands of files that are to get a name in it, beyond its mode: projects, flags of chattr, encryption.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::sys::{proc_path, retry};

/// What a directory demands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demands {
    /// Files must belong to this project (of quotas), which new ones inherit; from another one they cannot be renamed or
    /// linked there.
    pub project: Option<u32>,
    /// Nothing in it changes (`chattr +i`).
    pub immutable: bool,
    /// Names can be added, and not replaced (`chattr +a`).
    pub append_only: bool,
    /// The encryption policy that files must have. Zeros: it is encrypted, and by which policy is not known.
    pub policy: Option<[u8; POLICY]>,
    /// The errno with which this process may not change names in it.
    pub refused: Option<i32>,
}

/// Longest policy of fscrypt.
const POLICY: usize = 24;

/// The `struct fsxattr` of ioctl_xfs_fsgetxattr(2).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

/// Of that: new files get the project of the directory.
const PROJINHERIT: u32 = 0x200;

/// The `struct fscrypt_get_policy_ex_arg`.
#[repr(C)]
struct PolicyArg {
    size: u64,
    policy: [u8; POLICY],
}

const FS_IOC_FSGETXATTR: libc::Ioctl = request(2, b'X', 31, size_of::<FsXattr>());
const FS_IOC_FSSETXATTR: libc::Ioctl = request(1, b'X', 32, size_of::<FsXattr>());
/// The size in its number is that of the first version of its argument.
const FS_IOC_GET_ENCRYPTION_POLICY_EX: libc::Ioctl = request(3, b'f', 22, 9);

/// Number of an ioctl, as `_IOC` of the kernel makes it.
const fn request(direction: u32, kind: u8, number: u32, size: usize) -> libc::Ioctl {
    (direction << 30 | (size as u32) << 16 | (kind as u32) << 8 | number) as libc::Ioctl
}

fn get(fd: BorrowedFd) -> io::Result<FsXattr> {
    let mut attributes = FsXattr::default();
    // SAFETY: the descriptor is open, and `attributes` is what the call fills.
    retry(|| unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut attributes) })?;
    Ok(attributes)
}

fn set(fd: BorrowedFd, attributes: FsXattr) -> io::Result<()> {
    // SAFETY: the descriptor is open, and `attributes` is what the call reads.
    retry(|| unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const attributes) }).map(drop)
}

/// The project of a file; 0 also where there are none.
pub fn project(fd: BorrowedFd) -> io::Result<u32> {
    match get(fd) {
        Ok(attributes) => Ok(attributes.projid),
        Err(e) if is_unknown(&e) => Ok(0),
        Err(e) => Err(e),
    }
}

/// Moves a file, with what it takes, to a project.
pub fn set_project(fd: BorrowedFd, project: u32) -> io::Result<()> {
    let attributes = get(fd)?;
    if attributes.projid == project { Ok(()) } else { set(fd, FsXattr { projid: project, ..attributes }) }
}

/// Has a directory take files of any project.
pub fn take_any_project(fd: BorrowedFd) -> io::Result<()> {
    let attributes = get(fd)?;
    set(fd, FsXattr { xflags: attributes.xflags & !PROJINHERIT, ..attributes })
}

/// What a directory demands. `path` is a descriptor of it, `O_PATH` too; `open` one that is not, where it can be had.
pub fn demands(path: BorrowedFd, open: Option<BorrowedFd>) -> io::Result<Demands> {
    let mut found = Demands { refused: refused(path), ..Demands::default() };
    let mut status = MaybeUninit::<libc::statx>::zeroed();
    let (fd, flags) = (path.as_raw_fd(), libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC);
    // SAFETY: the name is NUL-terminated, and `status` has room for what the call fills; all its bits are valid.
    retry(|| unsafe { libc::statx(fd, c"".as_ptr(), flags, 0, status.as_mut_ptr()) })?;
    // SAFETY: it was zeroed, and is plain data.
    let attributes = unsafe { status.assume_init() }.stx_attributes;
    found.immutable = attributes & libc::STATX_ATTR_IMMUTABLE as u64 != 0;
    found.append_only = attributes & libc::STATX_ATTR_APPEND as u64 != 0;
    if attributes & libc::STATX_ATTR_ENCRYPTED as u64 != 0 {
        found.policy = Some(open.and_then(policy).unwrap_or_default());
    }
    if let Some(attributes) = open.and_then(|open| get(open).ok())
        && attributes.xflags & PROJINHERIT != 0
    {
        found.project = Some(attributes.projid);
    }
    Ok(found)
}

fn refused(path: BorrowedFd) -> Option<i32> {
    let path = proc_path(path.as_raw_fd());
    // SAFETY: the path is NUL-terminated.
    let allowed =
        retry(|| unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::W_OK | libc::X_OK, libc::AT_EACCESS) });
    allowed.err().and_then(|error| error.raw_os_error())
}

fn policy(directory: BorrowedFd) -> Option<[u8; POLICY]> {
    let mut argument = PolicyArg { size: POLICY as u64, policy: [0; POLICY] };
    // SAFETY: the descriptor is open; the call writes at most `size` bytes into `policy`.
    retry(|| unsafe { libc::ioctl(directory.as_raw_fd(), FS_IOC_GET_ENCRYPTION_POLICY_EX, &raw mut argument) }).ok()?;
    Some(argument.policy)
}

/// The filesystem does not know the request.
fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_numbers_of_the_kernels_headers() {
        assert_eq!(FS_IOC_FSGETXATTR as u32, 0x801c_581f);
        assert_eq!(FS_IOC_FSSETXATTR as u32, 0x401c_5820);
        assert_eq!(FS_IOC_GET_ENCRYPTION_POLICY_EX as u32, 0xc009_6616);
    }
}
