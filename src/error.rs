//! One error type: a kind that code can match, what was being done, to which file, why it failed, what to do.
//!
//! The errno that a caller of the mount sees is chosen in [`Error::errno`] and nowhere else.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, for code that decides by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A call to the system failed; its errno is in the source and goes to the caller unchanged.
    Io,
    /// The request makes no sense as it stands (bad argument, unaligned range, unknown option).
    Invalid,
    /// The named thing does not exist.
    NotFound,
    /// The destination exists.
    Exists,
    /// The caller may not do this.
    Permission,
    /// In use in a way that excludes the request; trying again later can succeed.
    Busy,
    /// The backing filesystem or the kernel lacks what the request needs.
    Unsupported,
    /// Larger than a volume can be, or a name longer than a name can be.
    TooLarge,
    /// The pool or the mount is read-only.
    ReadOnly,
    /// Source and destination are not in the same pool.
    CrossPool,
    /// Metadata that does not verify. The volume gives EIO; the rest of the pool is not touched.
    Damaged,
    /// A shared file was changed without clonefs: its blocks cannot be trusted.
    Changed,
    /// An earlier write or sync of this file failed; nothing is reported durable after that.
    Latched,
    /// The pool was written by a newer clonefs.
    NewerFormat,
    /// Another process serves this pool.
    Locked,
    /// There is not enough room on the disk for it, by a limit that was set.
    NoSpace,
    /// As many as are kept for one user, or for all of them, are there already.
    TooMany,
    /// Asked to stop before the work was done.
    Interrupted,
}

/// An error with its context. `Display` gives one line: operation, path, cause, remedy.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    operation: Cow<'static, str>,
    path: Option<PathBuf>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    remedy: Option<Cow<'static, str>>,
}

impl Error {
    /// An error of `kind` while doing `operation` (a phrase such as "clone volume").
    pub fn new(kind: Kind, operation: impl Into<Cow<'static, str>>) -> Error {
        Error { kind, operation: operation.into(), path: None, source: None, remedy: None }
    }

    /// A failed system call while doing `operation`; the errno of `source` reaches the caller.
    pub fn io(operation: impl Into<Cow<'static, str>>, source: io::Error) -> Error {
        Error { source: Some(Box::new(source)), ..Error::new(Kind::Io, operation) }
    }

    /// Names the file concerned.
    pub fn at(mut self, path: impl AsRef<Path>) -> Error {
        self.path = Some(path.as_ref().to_path_buf());
        self
    }

    /// Adds the cause.
    pub fn because(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        self.source = Some(cause.into());
        self
    }

    /// Says what the user can do.
    pub fn remedy(mut self, remedy: impl Into<Cow<'static, str>>) -> Error {
        self.remedy = Some(remedy.into());
        self
    }

    /// The kind, for code.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The file concerned, if one is named.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The errno of the failed system call, where there was one.
    pub fn os_error(&self) -> Option<i32> {
        self.source.as_ref()?.downcast_ref::<io::Error>()?.raw_os_error()
    }

    /// Whether it is for want of room on the disk, or of quota.
    pub fn is_no_space(&self) -> bool {
        matches!(self.os_error(), Some(libc::ENOSPC | libc::EDQUOT))
    }

    /// Whether it is for want of descriptors, of the process or of the machine.
    pub fn is_out_of_files(&self) -> bool {
        matches!(self.os_error(), Some(libc::EMFILE | libc::ENFILE))
    }

    /// Whether it is for want of something that comes back.
    pub fn is_scarcity(&self) -> bool {
        let scarce = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EINTR, libc::EAGAIN];
        self.os_error().is_some_and(|errno| scarce.contains(&errno))
    }

    /// The errno that the caller of a system call on the mount gets.
    pub fn errno(&self) -> i32 {
        match self.kind {
            Kind::Io => self.os_error().unwrap_or(libc::EIO),
            Kind::Invalid => libc::EINVAL,
            Kind::NotFound => libc::ENOENT,
            Kind::Exists => libc::EEXIST,
            Kind::Permission => libc::EPERM,
            Kind::Busy | Kind::Locked => libc::EBUSY,
            Kind::Unsupported => libc::EOPNOTSUPP,
            Kind::TooLarge => libc::EFBIG,
            Kind::ReadOnly => libc::EROFS,
            Kind::CrossPool => libc::EXDEV,
            Kind::Damaged | Kind::Changed | Kind::Latched | Kind::NewerFormat => libc::EIO,
            Kind::NoSpace => libc::ENOSPC,
            Kind::TooMany => libc::ENOBUFS,
            Kind::Interrupted => libc::EINTR,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.operation)?;
        if let Some(path) = &self.path {
            // Debug form: a name with a newline or an escape sequence must not reach a terminal as it is.
            write!(f, " {path:?}")?;
        }
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        } else if !matches!(self.kind, Kind::Invalid | Kind::Io) {
            write!(f, ": {}", self.kind.describe())?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, " ({remedy})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| s.as_ref() as _)
    }
}

impl Kind {
    /// The kind in words, for an error without a more telling cause.
    fn describe(self) -> &'static str {
        match self {
            Kind::Io => "input/output error",
            Kind::Invalid => "invalid request",
            Kind::NotFound => "does not exist",
            Kind::Exists => "exists already",
            Kind::Permission => "not permitted",
            Kind::Busy => "in use",
            Kind::Unsupported => "not supported here",
            Kind::TooLarge => "too large",
            Kind::ReadOnly => "read-only",
            Kind::CrossPool => "not in the same pool",
            Kind::Damaged => "damaged metadata",
            Kind::Changed => "changed without clonefs",
            Kind::Latched => "an earlier write or sync failed",
            Kind::NewerFormat => "written by a newer clonefs",
            Kind::Locked => "in use by another clonefs",
            Kind::NoSpace => "not enough room",
            Kind::TooMany => "too many requests wait",
            Kind::Interrupted => "interrupted",
        }
    }
}

/// Adds operation and path to the error of a system call.
pub trait Context<T> {
    /// Turns an `io::Error` into an [`Error`] that says what was being done to which file.
    fn context(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| Error::io(operation, e).at(path))
    }
}
