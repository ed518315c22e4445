//! Regular files: open both, clone or copy, give the copy its attributes through its descriptor.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::attributes::Creation;
use crate::clone;
use crate::copier::{Copier, Task};
use crate::data::Data;
use crate::node::Node;
use crate::quote::shell;
use crate::report::Done;
use crate::settings::{Follow, Reflink};
use crate::stat::{MODE_BITS, Stat};

/// The open destination.
struct Destination {
    file: File,
    /// Attributes that it had, `None` if it is new.
    old: Option<Stat>,
    /// Permission bits that a new one was made with, as asked for.
    creation: Creation,
    /// It got a permission to write that it must lose: extended attributes could not be set without.
    lent: bool,
}

impl Copier<'_> {
    /// Copies contents and attributes.
    pub fn regular(&mut self, task: &Task, old: Option<&Stat>) -> Done {
        let source = self.open_source(task)?;
        let destination = self.open_destination(task, old)?;
        let file = &destination.file;
        let stat = Stat::of_file(file).map_err(|e| self.report.at("cannot fstat", task.destination, &e))?;
        if !self.settings.attributes_only {
            self.contents(task, &source, &destination, &stat)?;
        }
        self.regular_attributes(task, &source, &destination, &stat)?;
        close(destination.file).map_err(|e| self.report.at("failed to close", task.destination, &e))
    }

    /// Opens the source and makes sure that it is still the file that was looked at.
    fn open_source(&self, task: &Task) -> Done<File> {
        let no_follow = if self.settings.follow == Follow::Never { libc::O_NOFOLLOW } else { 0 };
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(no_follow)
            .open(task.source)
            .map_err(|e| self.report.os(format_args!("cannot open {} for reading", shell(task.source)), &e))?;
        let stat = Stat::of_file(&file).map_err(|e| self.report.at("cannot fstat", task.source, &e))?;
        if stat.id() != task.stat.id() {
            let name = shell(task.source);
            return Err(self.report.fail(format_args!("skipping file {name}, as it was replaced while being copied")));
        }
        Ok(file)
    }

    /// Opens the destination, emptied, or makes it.
    fn open_destination(&self, task: &Task, old: Option<&Stat>) -> Done<Destination> {
        let s = self.settings;
        let creation = Creation::of(&Stat { mode: task.stat.mode & !0o7000, ..task.stat }, s);
        if let Some(old) = old {
            match OpenOptions::new().write(true).truncate(!s.attributes_only).open(task.destination) {
                Ok(file) => return Ok(Destination { file, old: Some(*old), creation, lent: false }),
                Err(e) if s.force && e.kind() != io::ErrorKind::NotFound => self.remove(task.destination)?,
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(self.report.at("cannot create regular file", task.destination, &e));
                }
                // It has gone since.
                Err(_) => {}
            }
        }
        let lent = s.preserve.xattr && !s.privileged && creation.mode & 0o200 == 0;
        let mode = creation.first() | if lent { 0o200 } else { 0 };
        let file = self.create(task.destination, mode)?;
        Ok(Destination { file, old: None, creation, lent })
    }

    /// Makes a new file; never through a symbolic link that leads nowhere.
    fn create(&self, path: &Path, mode: u32) -> Done<File> {
        let open = |new: bool| {
            let mut options = OpenOptions::new();
            options.write(true).mode(mode);
            if new { options.create_new(true) } else { options.create(true).truncate(true) }.open(path)
        };
        let mut result = open(true);
        let dangling = matches!(&result, Err(e) if e.kind() == io::ErrorKind::AlreadyExists)
            && Stat::of_link(path).is_ok_and(|stat| stat.is_link());
        if dangling {
            if std::env::var_os("POSIXLY_CORRECT").is_none() {
                let name = shell(path);
                return Err(self.report.fail(format_args!("not writing through dangling symlink {name}")));
            }
            result = open(false);
        }
        result.map_err(|e| {
            let slash = path.as_os_str().as_bytes().ends_with(b"/");
            let e = if slash && e.raw_os_error() == Some(libc::EISDIR) {
                io::Error::from_raw_os_error(libc::ENOTDIR)
            } else {
                e
            };
            self.report.at("cannot create regular file", path, &e)
        })
    }

    /// Clones, or copies if that is allowed.
    fn contents(&self, task: &Task, source: &File, destination: &Destination, stat: &Stat) -> Done {
        let s = self.settings;
        if s.reflink != Reflink::Never {
            match clone::clone((source, &task.stat), (&destination.file, stat)) {
                Ok(()) => return Ok(()),
                Err(e) if s.reflink == Reflink::Always => return Err(self.cannot_clone(task, destination, stat, &e)),
                Err(_) => {}
            }
        }
        let from = (source, task.source, &task.stat);
        Data::new(from, (&destination.file, task.destination, stat), s, self.report).copy()
    }

    /// Reports that there is no clone, and leaves no empty file behind that was not there before.
    fn cannot_clone(&self, task: &Task, made: &Destination, stat: &Stat, e: &io::Error) -> crate::report::Failed {
        let (source, destination) = (shell(task.source), shell(task.destination));
        let failed = self.report.os(format_args!("failed to clone {destination} from {source}"), e);
        // Only the file that we made: by now the name may be somebody else's.
        let ours = made.old.is_none() && Stat::of_link(task.destination).is_ok_and(|now| now.id() == stat.id());
        if ours && let Err(e) = fs::remove_file(task.destination) {
            return self.report.at("cannot remove", task.destination, &e);
        }
        failed
    }

    /// Times, owner, extended attributes, mode: in this order, each may undo a later one otherwise.
    fn regular_attributes(&self, task: &Task, source: &File, made: &Destination, stat: &Stat) -> Done {
        let s = self.settings;
        let from = Node::Open(source, task.source);
        let to = Node::Open(&made.file, task.destination);
        if s.preserve.timestamps {
            self.keep_times(&task.stat, to)?;
        }
        let mut mode = task.stat.mode;
        if s.preserve.ownership && !task.stat.same_owner(stat) {
            mode = self.keep_owner(&task.stat, to, made.old.as_ref())?;
        }
        self.keep_xattrs(from, to)?;
        if s.preserve.mode {
            return self.keep_mode(from, to, mode);
        }
        if made.old.is_some() {
            return Ok(());
        }
        if s.preserve.not_mode {
            return self.plain_mode(to, false, 0o666);
        }
        let withheld = made.creation.withheld & !s.umask;
        if withheld != 0 || made.lent {
            let lent = if made.lent { 0o200 } else { 0 };
            let mode = (stat.mode & MODE_BITS & !lent) | withheld;
            to.set_mode(mode).map_err(|e| self.report.at("preserving permissions for", to.path(), &e))?;
        }
        Ok(())
    }
}

/// Closes a file and says what the filesystem says: some report only then that they could not keep what was written.
fn close(file: File) -> io::Result<()> {
    let descriptor = std::os::fd::IntoRawFd::into_raw_fd(file);
    // SAFETY: the descriptor was owned by `file`, which has just given it up, so nobody else closes or uses it.
    match unsafe { libc::close(descriptor) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
