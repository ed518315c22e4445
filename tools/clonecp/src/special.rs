//! Links, pipes, sockets and devices: made anew, not read.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, linkat, mknodat};

use crate::attributes::{Creation, Made, chown_may_fail};
use crate::copier::{Copier, Outcome, Task};
use crate::names;
use crate::node::Node;
use crate::quote::{shell, shell_if_needed};
use crate::report::Done;
use crate::stat::Stat;

impl Copier<'_> {
    /// Makes `name` another name of `existing`. `replace`: also where there is a file of that name; `follow`: of what
    /// `existing` leads to, if it is a symbolic link; `tell`: say what was replaced.
    pub fn link(&self, existing: &Path, name: &Path, replace: bool, follow: bool, tell: bool) -> Done {
        let flags = if follow { AtFlags::SYMLINK_FOLLOW } else { AtFlags::empty() };
        let make = |name: &Path| linkat(CWD, existing, CWD, name, flags).map_err(io::Error::from);
        match place(name, replace, make) {
            Ok(replaced) => {
                if replaced && tell {
                    self.report.verbose(format_args!("removed {}", shell(name)));
                }
                Ok(())
            }
            Err(e) => {
                let (existing, name) = (shell(existing), shell(name));
                Err(self.report.os(format_args!("cannot create hard link {name} to {existing}"), &e))
            }
        }
    }

    /// `--symbolic-link`: a link to the source as it was written.
    pub fn symbolic_link(&self, task: &Task) -> Done<Outcome> {
        if task.source.is_relative() && !in_current_directory(task.destination) {
            let name = shell_if_needed(task.destination);
            return Err(self
                .report
                .fail(format_args!("{name}: can make relative symbolic links only in current directory")));
        }
        place(task.destination, self.settings.force, |name| symlink(task.source, name)).map_err(|e| {
            let (source, destination) = (shell(task.source), shell(task.destination));
            self.report.os(format_args!("cannot create symbolic link {destination} to {source}"), &e)
        })?;
        let node = Node::Link(task.destination);
        if self.settings.preserve.timestamps {
            self.keep_times(&task.stat, node)?;
        }
        self.keep_xattrs(Node::Link(task.source), node)?;
        Ok(Outcome::Complete)
    }

    /// Makes a pipe, a socket, a device or a symbolic link like the source.
    pub fn special(&mut self, task: &Task, old: Option<&Stat>) -> Done<Outcome> {
        let what = match task.stat.kind() {
            libc::S_IFLNK => return self.copy_link(task, old),
            libc::S_IFIFO => "cannot create fifo",
            libc::S_IFBLK | libc::S_IFCHR | libc::S_IFSOCK => "cannot create special file",
            _ => return Err(self.report.fail(format_args!("{} has unknown file type", shell(task.source)))),
        };
        let creation = Creation::of(&task.stat, self.settings);
        let kind = FileType::from_raw_mode(task.stat.mode);
        mknodat(CWD, task.destination, kind, Mode::from_raw_mode(creation.first()), task.stat.rdev)
            .map_err(|e| self.report.at(what, task.destination, &e.into()))?;
        let stat = Stat::of_link(task.destination).map_err(|e| self.report.at("cannot stat", task.destination, &e))?;
        Ok(Outcome::Made(Made { mode: stat.mode, withheld: creation.withheld, lifted: false }))
    }

    /// Copies a symbolic link as a link, with its owner, times and attributes.
    fn copy_link(&mut self, task: &Task, old: Option<&Stat>) -> Done<Outcome> {
        let s = self.settings;
        let target =
            fs::read_link(task.source).map_err(|e| self.report.at("cannot read symbolic link", task.source, &e))?;
        if let Err(e) = place(task.destination, s.force, |name| symlink(&target, name)) {
            let unchanged = s.update
                && old.is_some_and(Stat::is_link)
                && fs::read_link(task.destination).is_ok_and(|there| there == target);
            if !unchanged {
                return Err(self.report.at("cannot create symbolic link", task.destination, &e));
            }
        }
        let node = Node::Link(task.destination);
        if s.preserve.ownership
            && let Err(e) = node.set_owner(Some(task.stat.uid), task.stat.gid)
            && !chown_may_fail(&e, s)
        {
            return Err(self.report.at("failed to preserve ownership for", task.destination, &e));
        }
        if s.preserve.timestamps {
            self.keep_times(&task.stat, node)?;
        }
        self.keep_xattrs(Node::Link(task.source), node)?;
        Ok(Outcome::Complete)
    }
}

/// Makes something at `name`; with `replace`, in the place of a file that is there, which is never missing for a
/// moment. Says whether there was one.
fn place(name: &Path, replace: bool, make: impl Fn(&Path) -> io::Result<()>) -> io::Result<bool> {
    match make(name) {
        Ok(()) => return Ok(false),
        Err(e) if !(replace && e.kind() == io::ErrorKind::AlreadyExists) => return Err(e),
        Err(_) => {}
    }
    for attempt in 0u32.. {
        let temporary = temporary_name(name, attempt);
        match make(&temporary) {
            Ok(()) => {
                let renamed = fs::rename(&temporary, name);
                // Renaming a file to another name of itself does nothing: the temporary name would stay.
                let _ = fs::remove_file(&temporary);
                return renamed.map(|()| true);
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && attempt < 100 => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// A name beside `name` that nobody else uses.
fn temporary_name(name: &Path, attempt: u32) -> PathBuf {
    let unique = format!(".clonecp-{}-{attempt}", std::process::id());
    names::join(names::parent(name), unique.as_ref())
}

/// The directory of `name` is the one that we are in, or there is no telling.
fn in_current_directory(name: &Path) -> bool {
    let parent = names::parent(name);
    parent == Path::new(".")
        || match (Stat::of(parent), Stat::of(Path::new("."))) {
            (Ok(a), Ok(b)) => a.id() == b.id(),
            _ => true,
        }
}
