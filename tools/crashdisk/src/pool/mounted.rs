//! The files of a pool through a real mount, made by the `clonefs` program.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clonefs::client::{self, doors};
use clonefs::error::{Context, Error, Kind, Result};
use clonefs::protocol::{CloneRequest, DeepenAction, DeepenRequest};

use crate::files::{Cloning, Directory, Files};

/// A pool that the program has mounted over itself. When this is dropped without [`Mounted::unmount`], the mount goes
/// with the mount name space.
pub struct Mounted {
    program: PathBuf,
    root: PathBuf,
}

/// Runs the program; the error says what it said.
pub fn clonefs(program: &Path, words: &[&str], path: &Path) -> Result<String> {
    let output = Command::new(program).args(words).arg(path).stdin(Stdio::null()).output().context("run", program)?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    if output.status.success() {
        return Ok(said(&output.stdout));
    }
    let why = format!("{}: {} {}", output.status, said(&output.stdout), said(&output.stderr));
    Err(Error::new(Kind::Invalid, format!("run `clonefs {}` on", words.join(" "))).at(path).because(why))
}

impl Mounted {
    /// Mounts the pool at `root`.
    pub fn new(program: &Path, root: &Path, options: &str) -> Result<Mounted> {
        clonefs(program, &["mount", "-o", options], root)?;
        Ok(Mounted { program: program.to_path_buf(), root: root.to_path_buf() })
    }

    /// Its files, for one thread.
    pub fn files(&self) -> Box<dyn Files> {
        Box::new(ThroughMount { dir: Directory::new(&self.root), root: self.root.clone() })
    }

    /// Has the daemon check the pool.
    pub fn check(&self) -> Result<String> {
        clonefs(&self.program, &["check"], &self.root)
    }

    /// Unmounts; the daemon has ended when this returns.
    pub fn unmount(self) -> Result<()> {
        clonefs(&self.program, &["unmount"], &self.root).map(drop)
    }
}

/// copy_file_range clones files from this size on; smaller ones are copied, and then not as they are at one moment.
const CLONED_FROM: u64 = 128 << 10;

struct ThroughMount {
    dir: Directory,
    root: PathBuf,
}

impl ThroughMount {
    fn create_new(&self, name: &str) -> Result<File> {
        let path = self.dir.at(name);
        OpenOptions::new().read(true).write(true).create_new(true).open(&path).context("create", &path)
    }
}

impl Files for ThroughMount {
    fn create(&self, name: &str) -> Result<()> {
        self.dir.create(name)
    }
    fn write(&self, name: &str, offset: u64, bytes: &[u8], direct: bool) -> Result<()> {
        self.dir.write(name, offset, bytes, direct)
    }
    fn write_mapped(&self, name: &str, len: u64, offset: u64, bytes: &[u8]) -> Result<()> {
        self.dir.write_mapped(name, len, offset, bytes)
    }
    fn zero(&self, name: &str, offset: u64, len: u64, hole: bool) -> Result<()> {
        self.dir.zero(name, offset, len, hole)
    }
    fn set_size(&self, name: &str, size: u64) -> Result<()> {
        self.dir.set_size(name, size)
    }
    fn sync(&self, name: &str) -> Result<()> {
        self.dir.sync(name)
    }
    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.dir.rename(from, to)
    }
    fn unlink(&self, name: &str) -> Result<()> {
        self.dir.unlink(name)
    }
    fn sync_names(&self) -> Result<()> {
        self.dir.sync_names()
    }

    /// By copy_file_range, as `cp` does it, where that clones and nothing else is asked for; else by the door.
    fn clone_file(&self, from: &str, to: &str, how: Cloning) -> Result<()> {
        let source = self.dir.at(from);
        let file = File::open(&source).context("open", &source)?;
        let target = self.create_new(to)?;
        let len = file.metadata().context("look at", &source)?.len();
        if how.size.is_none() && !how.durable && !how.no_deepen && len >= CLONED_FROM {
            return copy_whole(&file, &target, len).context("clone", self.dir.at(to));
        }
        let token = doors::token(file.as_fd(), &source)?;
        let request = CloneRequest { token, size: how.size, no_deepen: how.no_deepen, sync: how.durable, group: None };
        doors::clone(target.as_fd(), &request, &source)
    }

    fn deepen(&self, name: &str) -> Result<()> {
        let request = DeepenRequest { action: DeepenAction::Start, rate: None, physical: false };
        client::deepen(&self.root.join(name), &request)
    }
}

/// One call for the whole file: a clone.
fn copy_whole(from: &File, to: &File, len: u64) -> std::io::Result<()> {
    let none = std::ptr::null_mut();
    // SAFETY: both descriptors are open; without offsets the files' own are used.
    let copied = unsafe { libc::copy_file_range(from.as_raw_fd(), none, to.as_raw_fd(), none, len as usize, 0) };
    match copied {
        -1 => Err(std::io::Error::last_os_error()),
        copied if copied as u64 == len => Ok(()),
        _ => Err(std::io::Error::other("the file was cloned in part only")),
    }
}
