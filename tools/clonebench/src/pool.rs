//! A mounted pool, and the doors through which clones are made.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clonefs::client::doors;
use clonefs::protocol::{self, CloneRequest};

use crate::bench::Bench;
use crate::failure::{During, Failure, Outcome};
use crate::run;

/// A pool, mounted beside itself so that its files can be seen below too.
pub struct Pool<'a> {
    bench: &'a Bench,
    /// The pool's own directory.
    pub below: PathBuf,
    /// The mount.
    pub root: PathBuf,
}

impl Pool<'_> {
    /// Mounts a new pool in `dir`.
    pub fn new<'a>(bench: &'a Bench, dir: &Path) -> Outcome<Pool<'a>> {
        Pool::with(bench, dir, "deepen=manual")
    }

    /// The same with these options.
    pub fn with<'a>(bench: &'a Bench, dir: &Path, options: &str) -> Outcome<Pool<'a>> {
        let pool = Pool { bench, below: dir.join("pool"), root: dir.join("mount") };
        for path in [&pool.below, &pool.root] {
            std::fs::create_dir(path).during("make directory", path)?;
        }
        pool.mount(options)?;
        Ok(pool)
    }

    /// Mounts it.
    pub fn mount(&self, options: &str) -> Outcome<Duration> {
        let mut options = options.to_owned();
        if !self.bench.mount_options.is_empty() {
            options = format!("{options},{}", self.bench.mount_options);
        }
        let mut command = std::process::Command::new(&self.bench.clonefs);
        command.args(["mount", "-o", &options]).arg(&self.below).arg(&self.root);
        Ok(run::output(&mut command)?.1)
    }

    /// Unmounts it.
    pub fn unmount(&self) -> Outcome<Duration> {
        let mut command = std::process::Command::new(&self.bench.clonefs);
        Ok(run::output(command.arg("unmount").arg(&self.root))?.1)
    }

    /// Path of a file through the mount.
    pub fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Path of its file below.
    pub fn file(&self, name: &str) -> PathBuf {
        self.below.join(name)
    }

    /// The process that serves it.
    pub fn pid(&self) -> Outcome<u32> {
        let status = doors::status(&self.root)?;
        Ok(status.ok_or_else(|| Failure::line("the pool is not mounted"))?.pid)
    }

    /// Everything written out and out of the page cache.
    pub fn make_cold(&self) -> Outcome<()> {
        crate::file::make_all_cold(&self.below)
    }

    /// A clone through the extended attribute, not synced; only the call that clones is timed.
    pub fn clone(&self, from: &str, to: &str) -> Outcome<Duration> {
        self.clone_with(from, to, false)
    }

    /// The same, durable when the call returns.
    pub fn clone_durable(&self, from: &str, to: &str) -> Outcome<Duration> {
        self.clone_with(from, to, true)
    }

    fn clone_with(&self, from: &str, to: &str, sync: bool) -> Outcome<Duration> {
        let source = open_source(&self.at(from))?;
        let token = doors::token(&source, &self.at(from))?;
        let target = create(&self.at(to))?;
        let request = CloneRequest { token, sync, ..CloneRequest::default() };
        let began = Instant::now();
        doors::clone(&target, &request, &self.at(from))?;
        Ok(began.elapsed())
    }

    /// A clone through the ioctl.
    pub fn clone_by_ioctl(&self, from: &str, to: &str) -> Outcome<Duration> {
        let (source, target) = (open_source(&self.at(from))?, create(&self.at(to))?);
        let began = Instant::now();
        let mut argument = [0u8; 32];
        // SAFETY: the first 16 bytes of argument take the token.
        let got = unsafe { libc::ioctl(source.as_raw_fd(), protocol::IOC_TOKEN.into(), argument.as_mut_ptr()) };
        check(got).during("ask for a token of", &self.at(from))?;
        // SAFETY: argument is the structure that the ioctl takes: token, size 0, no flags.
        let done = unsafe { libc::ioctl(target.as_raw_fd(), protocol::IOC_CLONE.into(), argument.as_ptr()) };
        check(done).during("clone", &self.at(from))?;
        Ok(began.elapsed())
    }
}

impl Drop for Pool<'_> {
    fn drop(&mut self) {
        let mut command = std::process::Command::new(&self.bench.clonefs);
        if !run::finish(command.arg("unmount").arg(&self.root)) {
            let mut lazily = std::process::Command::new(&self.bench.clonefs);
            run::finish(lazily.args(["unmount", "--lazy"]).arg(&self.root));
        }
    }
}

fn check(result: libc::c_int) -> std::io::Result<()> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

fn open_source(path: &Path) -> Outcome<File> {
    File::open(path).during("open", path)
}

/// A new empty file.
pub fn create(path: &Path) -> Outcome<File> {
    OpenOptions::new().read(true).write(true).create_new(true).open(path).during("make", path)
}

/// One copy_file_range over the whole file.
pub fn copy_file_range(from: &Path, to: &Path) -> Outcome<Duration> {
    let (source, target) = (open_source(from)?, create(to)?);
    let mut rest = source.metadata().during("look at", from)?.len();
    let began = Instant::now();
    while rest > 0 {
        let most = usize::try_from(rest).unwrap_or(usize::MAX);
        let copied =
            rustix::fs::copy_file_range(&source, None, &target, None, most).during("copy_file_range from", from)?;
        if copied == 0 {
            break;
        }
        rest -= copied as u64;
    }
    Ok(began.elapsed())
}

/// A clone by FICLONE.
pub fn reflink(from: &Path, to: &Path) -> Outcome<Duration> {
    let (source, target) = (open_source(from)?, create(to)?);
    let began = Instant::now();
    rustix::fs::ioctl_ficlone(&target, &source).during("FICLONE", from)?;
    Ok(began.elapsed())
}
