//! The source of a clone: an open regular file, inside a pool or outside.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::attributes::Attributes;
use super::mounts::mount_of;
use super::{Directory, doors};
use crate::error::{Error, Kind, Result};
use crate::protocol;

/// Half of the time for which the daemon takes a token.
const TOKEN_LIFE: Duration = Duration::from_secs(30);

/// Times to open a file that is replaced all the time.
const TRIES: usize = 100;

/// An open regular file that is to be cloned, once or many times.
pub struct Source {
    fd: OwnedFd,
    path: PathBuf,
    stat: Stat,
    in_pool: bool,
    attributes: Attributes,
    token: RefCell<Option<(String, Instant)>>,
}

impl Source {
    /// Opens `path`, through symbolic links, for reading.
    pub fn open(path: &Path) -> Result<Source> {
        for _ in 1..TRIES {
            match Self::open_at(CWD, path.as_os_str(), path, AtFlags::empty(), None) {
                // Another file was renamed over it between two steps.
                Err(error) if error.os_error() == Some(libc::ESTALE) => {}
                other => return other,
            }
        }
        Self::open_at(CWD, path.as_os_str(), path, AtFlags::empty(), None)
    }

    /// Opens `name` in `dir`; `path` is what it is called in messages. [`AtFlags::SYMLINK_NOFOLLOW`] refuses a link.
    /// `pool` saves a look at the mount table where the file lies in the same pool as that directory.
    pub(super) fn open_at(
        dir: impl AsFd,
        name: &OsStr,
        path: &Path,
        follow: AtFlags,
        pool: Option<&Directory>,
    ) -> Result<Source> {
        // Looked at before it is opened: opening a device or a FIFO can do something.
        let seen = rustix::fs::statat(&dir, name, follow).map_err(|e| doors::failed("open", path, e))?;
        regular(seen.st_mode, path)?;
        let mut flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        if follow.contains(AtFlags::SYMLINK_NOFOLLOW) {
            flags |= OFlags::NOFOLLOW;
        }
        let fd = rustix::fs::openat(&dir, name, flags, Mode::empty()).map_err(|e| doors::failed("open", path, e))?;
        let stat = rustix::fs::fstat(&fd).map_err(|e| doors::failed("look at", path, e))?;
        regular(stat.st_mode, path)?;
        let in_pool = pool.is_some_and(|pool| pool.device() == stat.st_dev) || mount_of(&fd)?.is_some();
        let attributes = Attributes::read(&fd, &stat).map_err(|e| doors::failed("read the attributes of", path, e))?;
        let source = Source { fd, path: path.to_path_buf(), stat, in_pool, attributes, token: RefCell::default() };
        source.refuse_stub()?;
        Ok(source)
    }

    /// Path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What has its path now, if this file has lost its last name since it was opened.
    pub fn successor(&self) -> Option<Source> {
        let gone = rustix::fs::fstat(&self.fd).is_ok_and(|stat| stat.st_nlink == 0);
        gone.then(|| Source::open(&self.path).ok()).flatten()
    }

    /// Size in bytes when it was opened.
    pub fn size(&self) -> u64 {
        self.stat.st_size as u64
    }

    /// Status when it was opened.
    pub(super) fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Whether it lies in a mounted pool, and so can be cloned rather than copied.
    pub fn in_pool(&self) -> bool {
        self.in_pool
    }

    /// Why a clone of it is a copy in fact, if so.
    pub fn copied_because(&self) -> Result<Option<&'static str>> {
        if !self.in_pool {
            return Ok(Some("is outside of the pool"));
        }
        // Several names cannot be exchanged in one step for what the first write to a shared file takes.
        let copied = self.stat.st_nlink > 1 && doors::info_of(&self.fd, &self.path)?.id.is_none();
        Ok(copied.then_some("has several names"))
    }

    /// What a clone inherits.
    pub(super) fn attributes(&self) -> &Attributes {
        &self.attributes
    }

    /// The same, of a source that is needed for nothing else any more.
    pub(super) fn into_attributes(self) -> Attributes {
        self.attributes
    }

    /// A token for it that is valid now.
    pub(super) fn token(&self) -> Result<String> {
        let mut kept = self.token.borrow_mut();
        if let Some((token, _)) = kept.as_ref().filter(|(_, made)| made.elapsed() < TOKEN_LIFE) {
            return Ok(token.clone());
        }
        let token = doors::token(&self.fd, &self.path)?;
        *kept = Some((token.clone(), Instant::now()));
        Ok(token)
    }

    /// In an unmounted pool an overlay is a stub, a few lines of text. A copy of those would be taken for the volume.
    fn refuse_stub(&self) -> Result<()> {
        if self.in_pool {
            return Ok(());
        }
        let stub = protocol::stub::is_stub(&self.fd).map_err(|e| Error::io("look at", e).at(&self.path))?;
        if stub {
            return Err(Error::new(Kind::Unsupported, "clone")
                .at(&self.path)
                .because("it is the stub of an overlay, seen without clonefs")
                .remedy("mount its pool and clone it there"));
        }
        Ok(())
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Refuses what is not a regular file, with the remedy for each.
fn regular(mode: u32, path: &Path) -> Result<()> {
    let refuse = |cause: &'static str, remedy: &'static str| {
        Err(Error::new(Kind::Invalid, "clone").at(path).because(cause).remedy(remedy))
    };
    match mode & libc::S_IFMT {
        libc::S_IFREG => Ok(()),
        libc::S_IFDIR => refuse("it is a directory", "use -r for a directory tree"),
        libc::S_IFBLK => {
            refuse("it is a block device", "copy it into the pool first, for example with qemu-img convert")
        }
        libc::S_IFCHR => refuse("it is a character device", "only regular files can be cloned"),
        libc::S_IFIFO => refuse("it is a named pipe", "only regular files can be cloned"),
        libc::S_IFSOCK => refuse("it is a socket", "only regular files can be cloned"),
        libc::S_IFLNK => Err(doors::failed("open", path, Errno::LOOP)),
        _ => refuse("it is not a regular file", "only regular files can be cloned"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_regular_file_is_refused_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mkfifoat(CWD, &fifo, Mode::RUSR).unwrap();
        let message = |path: &Path| Source::open(path).err().expect("refused").to_string();
        assert!(message(dir.path()).contains("use -r"));
        assert!(message(Path::new("/dev/null")).contains("character device"));
        assert!(message(&fifo).contains("named pipe"));
        assert!(message(&dir.path().join("none")).contains("No such file"));
    }

    #[test]
    fn a_stub_seen_without_clonefs_is_no_source() {
        let dir = tempfile::tempdir().unwrap();
        let stub = dir.path().join("vm.img");
        std::fs::write(&stub, "clonefs volume 1, 4K\n").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&stub, "user.clonefs.stub", b"1", flags).unwrap();
        let error = Source::open(&stub).err().expect("refused").to_string();
        assert!(error.contains("stub") && error.contains("mount its pool"), "{error}");
    }
}
