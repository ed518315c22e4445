//! The file that is written: invisible until it is complete and durable, then named in one step.
//!
//! Where the filesystem has O_TMPFILE the file has no name at all until then, so not even kill -9 leaves anything
//! behind. Elsewhere (a clonefs mount, NFS) it has a hidden temporary name beside the final one.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::source::Source;
use super::{Cancel, interrupted};
use crate::error::{Error, Kind, Result};

/// A new file on its way to its name. Dropped before [`publish`](Output::publish) it leaves nothing behind.
#[derive(Debug)]
pub struct Output {
    file: File,
    dir: OwnedFd,
    path: PathBuf,
    name: OsString,
    temporary: Option<OsString>,
    force: bool,
    operation: &'static str,
}

impl Output {
    /// Starts a file that will be called `path`, with the permission bits of `source` less execution and the umask;
    /// its owner can always read and write it. Refuses what [`publish`](Output::publish) would refuse, before any work.
    pub fn create(path: &Path, source: &Source, force: bool, operation: &'static str) -> Result<Output> {
        let io = |e: Errno| Error::io(operation, e.into()).at(path);
        let (parent, name) = split(path, operation)?;
        let dir = rustix::fs::open(parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| match e {
                Errno::NOENT => Error::new(Kind::NotFound, operation).at(parent).remedy("make the directory first"),
                e => Error::io(operation, e.into()).at(parent),
            })?;
        refuse_existing(&dir, name, path, source, force, operation)?;
        let mode = Mode::from_raw_mode(source.mode() & 0o666 | 0o600);
        let (file, temporary) = make_file(&dir, mode).map_err(io)?;
        Ok(Output { file, dir, path: path.to_path_buf(), name: name.to_owned(), temporary, force, operation })
    }

    /// The file, open for reading and writing.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The final path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Free bytes of the filesystem it lies on, for this user.
    pub fn free_bytes(&self) -> Result<u64> {
        let st = rustix::fs::fstatvfs(&self.file).map_err(|e| Error::io(self.operation, e.into()).at(&self.path))?;
        Ok(st.f_bavail.saturating_mul(st.f_frsize))
    }

    /// Syncs the file, gives it its name and syncs the directory. Returns the bytes that it occupies.
    ///
    /// After a crash the name stands for the whole new file, or for what it stood for before.
    /// Until it is synced `cancel` can stop it.
    pub fn publish(mut self, cancel: &Cancel) -> Result<u64> {
        let io = |e: Errno| Error::io(self.operation, e.into()).at(&self.path);
        self.file.sync_all().map_err(|e| write_error(e, &self.path, self.operation))?;
        if cancel.is_set() {
            return Err(interrupted(self.operation, &self.path));
        }
        let blocks = rustix::fs::fstat(&self.file).map_err(io)?.st_blocks;
        let named = if self.force { self.replace() } else { self.name_new() };
        named.map_err(|e| match e {
            Errno::EXIST => exists(&self.path, self.operation),
            e => Error::io(self.operation, e.into()).at(&self.path),
        })?;
        match rustix::fs::fsync(&self.dir) {
            // Some filesystems cannot sync a directory; their renames are durable, or nothing makes them so.
            Ok(()) | Err(Errno::INVAL | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(Error::io(self.operation, e.into()).at(&self.path)),
        }
        Ok(blocks as u64 * 512)
    }

    /// Names the file unless the name is taken.
    fn name_new(&mut self) -> rustix::io::Result<()> {
        let Some(temporary) = &self.temporary else {
            return link_unnamed(&self.file, &self.dir, &self.name);
        };
        match rustix::fs::renameat_with(&self.dir, temporary, &self.dir, &self.name, RenameFlags::NOREPLACE) {
            // The filesystem does not know the flag; a hard link refuses to replace, too.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                rustix::fs::linkat(&self.dir, temporary, &self.dir, &self.name, AtFlags::empty())?;
                rustix::fs::unlinkat(&self.dir, temporary, AtFlags::empty())?;
            }
            result => result?,
        }
        self.temporary = None;
        Ok(())
    }

    /// Names the file whatever has the name now.
    fn replace(&mut self) -> rustix::io::Result<()> {
        if self.temporary.is_none() {
            // linkat does not replace, and an unnamed file cannot be renamed.
            self.temporary = Some(retry_names(|name| link_unnamed(&self.file, &self.dir, name))?.1);
        }
        if let Some(temporary) = &self.temporary {
            rustix::fs::renameat(&self.dir, temporary, &self.dir, &self.name)?;
        }
        self.temporary = None;
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Nothing can be done about a failure, and the error that brought us here is the one to report.
            let _ = rustix::fs::unlinkat(&self.dir, temporary, AtFlags::empty());
        }
    }
}

/// An empty file in `dir`: without a name where that can be, otherwise with the temporary name that is returned.
fn make_file(dir: &OwnedFd, mode: Mode) -> rustix::io::Result<(File, Option<OsString>)> {
    match rustix::fs::openat(dir, ".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
        // Without /proc the file could never get a name.
        Ok(fd) if Path::new(&fd_path(&fd)).exists() => return Ok((File::from(fd), None)),
        Ok(_) | Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL | Errno::NOSYS) => {}
        Err(e) => return Err(e),
    }
    make_named(dir, mode).map(|(file, name)| (file, Some(name)))
}

fn make_named(dir: &OwnedFd, mode: Mode) -> rustix::io::Result<(File, OsString)> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    retry_names(|name| rustix::fs::openat(dir, name, flags, mode)).map(|(fd, name)| (File::from(fd), name))
}

/// A path that opens the same file, without a name and across exec for a descriptor that is inherited.
pub fn fd_path(fd: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Directory and name of `path`.
fn split<'a>(path: &'a Path, operation: &'static str) -> Result<(&'a Path, &'a OsStr)> {
    let bytes = path.as_os_str().as_bytes();
    match path.file_name() {
        Some(name) if !bytes.ends_with(b"/") && !bytes.ends_with(b"/.") && !bytes.contains(&0) => {
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Ok((parent, name))
        }
        _ => Err(Error::new(Kind::Invalid, operation).at(path).because("it is not the name of a file")),
    }
}

/// Refuses a name that may not be used: taken without `force`, a link, not a regular file, or the source itself.
fn refuse_existing(
    dir: &OwnedFd,
    name: &OsStr,
    path: &Path,
    source: &Source,
    force: bool,
    operation: &'static str,
) -> Result<()> {
    let invalid = |cause: &'static str| Err(Error::new(Kind::Invalid, operation).at(path).because(cause));
    let st = match rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, rustix::fs::StatxFlags::BASIC_STATS) {
        Ok(st) => st,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(Error::io(operation, e.into()).at(path)),
    };
    let id = (u64::from(st.stx_dev_major) << 32 | u64::from(st.stx_dev_minor), st.stx_ino);
    match FileType::from_raw_mode(st.stx_mode.into()) {
        FileType::RegularFile if id == source.id() => invalid("it is the source itself"),
        FileType::RegularFile if force => Ok(()),
        FileType::RegularFile => Err(exists(path, operation)),
        FileType::Symlink => invalid("it is a symbolic link, which is never followed"),
        FileType::Directory => invalid("it is a directory"),
        _ => invalid("it is not a regular file"),
    }
}

fn exists(path: &Path, operation: &'static str) -> Error {
    Error::new(Kind::Exists, operation).at(path).remedy("--force replaces it")
}

/// Gives a file that has no name the name `name`.
fn link_unnamed(file: &File, dir: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    rustix::fs::linkat(CWD, fd_path(file), dir, name, AtFlags::SYMLINK_FOLLOW)
}

/// Calls `make` with hidden temporary names until one is free.
fn retry_names<T>(mut make: impl FnMut(&OsStr) -> rustix::io::Result<T>) -> rustix::io::Result<(T, OsString)> {
    let mut attempts = 0;
    loop {
        // The standard library's hash keys are random: a source of names that nobody can guess in advance.
        let random = RandomState::new().build_hasher().finish();
        let name = OsString::from(format!(".clonefs-transfer-{random:016x}"));
        match make(&name) {
            Ok(made) => return Ok((made, name)),
            Err(Errno::EXIST) if attempts < 64 => attempts += 1,
            Err(e) => return Err(e),
        }
    }
}

/// The error of a full disk, which has a remedy of its own.
pub fn write_error(e: io::Error, path: &Path, operation: &'static str) -> Error {
    let full = matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
    let error = Error::io(operation, e).at(path);
    if full { error.remedy("free some space there, or write to another filesystem") } else { error }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// An output as on a filesystem without O_TMPFILE, and the names in its directory.
    fn named(dir: &Path, name: &str, force: bool) -> Output {
        let fd = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let (file, temporary) = make_named(&fd, Mode::from_raw_mode(0o600)).unwrap();
        let (path, temporary) = (dir.join(name), Some(temporary));
        Output { file, dir: fd, path, name: name.into(), temporary, force, operation: "test" }
    }

    fn names(dir: &Path) -> Vec<String> {
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_named_temporary_becomes_the_file_or_goes() {
        let dir = tempfile::tempdir().unwrap();
        let output = named(dir.path(), "out", false);
        assert_eq!(names(dir.path()).len(), 1);
        assert!(names(dir.path())[0].starts_with('.'));
        drop(output);
        assert!(names(dir.path()).is_empty());
        for (force, text) in [(false, "first"), (true, "second")] {
            let output = named(dir.path(), "out", force);
            output.file().write_all(text.as_bytes()).unwrap();
            output.publish(&Cancel::default()).unwrap();
            assert_eq!(std::fs::read_to_string(dir.path().join("out")).unwrap(), text);
            assert_eq!(names(dir.path()), ["out"]);
        }
        let error = named(dir.path(), "out", false).publish(&Cancel::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::Exists);
        assert_eq!(std::fs::read_to_string(dir.path().join("out")).unwrap(), "second");
        assert_eq!(names(dir.path()), ["out"]);
    }
}
