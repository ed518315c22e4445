//! Directories: made, filled, and never copied into themselves.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, DirEntryExt};
use std::path::Path;

use crate::attributes::{Creation, Made};
use crate::copier::{Copier, Inside, Outcome, Task};
use crate::names;
use crate::node::Node;
use crate::quote::shell;
use crate::report::{Done, Failed};
use crate::stat::Stat;

impl Copier<'_> {
    /// Makes the directory if it is not there and fills it. The second result tells of what is in it.
    pub fn directory(&mut self, task: &Task, old: Option<&Stat>) -> Done<(Outcome, Done)> {
        if task.inside.is_some_and(|inside| inside.contains(&task.stat)) {
            let name = shell(task.source);
            return Err(self.report.fail(format_args!("cannot copy cyclic symbolic link {name}")));
        }
        let (outcome, made) = match old {
            Some(_) => (Outcome::Merged, None),
            None => {
                let (made, id) = self.make_directory(task)?;
                (Outcome::Made(made), Some(id))
            }
        };
        let device = task.inside.map_or(task.stat.dev, |inside| inside.device);
        if self.settings.one_file_system && device != task.stat.dev {
            return Ok((outcome, Ok(())));
        }
        let inside = Inside { stat: task.stat, device, made, parent: task.inside };
        let result = self.fill(task, old.is_none(), &inside);
        Ok((outcome, result))
    }

    /// Makes an empty directory that its owner can fill. Returns its device and inode, too.
    fn make_directory(&mut self, task: &Task) -> Done<(Made, (u64, u64))> {
        let creation = Creation::of(&task.stat, self.settings);
        let path = task.destination;
        DirBuilder::new()
            .mode(creation.first())
            .create(path)
            .map_err(|e| self.report.at("cannot create directory", path, &e))?;
        let stat = Stat::of_link(path).map_err(|e| self.report.at("cannot stat", path, &e))?;
        let lifted = stat.mode & 0o700 != 0o700;
        if lifted {
            Node::Named(path)
                .set_mode(stat.mode | 0o700)
                .map_err(|e| self.report.at("setting permissions for", path, &e))?;
        }
        if self.made_directory.is_none() {
            // Coming across this one among the sources means that something is being copied into itself.
            self.seen.copied(&stat, path);
            self.made_directory = Some(stat.id());
        }
        if self.settings.verbose {
            self.tell(task, None);
        }
        Ok((Made { mode: stat.mode, withheld: creation.withheld, lifted }, stat.id()))
    }

    /// Copies what is in the directory; goes on after failures and reports whether there were any.
    fn fill(&mut self, task: &Task, free: bool, inside: &Inside) -> Done {
        let names = entries(task.source).map_err(|e| self.report.at("cannot access", task.source, &e))?;
        let mut result = Ok(());
        for name in names {
            let source = names::join(task.source, &name);
            let destination = names::join(task.destination, &name);
            match self.copy(&source, &destination, free, Some(inside)) {
                Ok(()) => {}
                Err(Failed::Here) => result = Err(Failed::Here),
                Err(Failed::IntoItself) => return Err(Failed::IntoItself),
            }
        }
        result
    }

    /// Reports that what is being copied is what is being made.
    pub fn ends_in_itself(&self) -> Failed {
        let (source, destination) = (shell(&self.operand.0), shell(&self.operand.1));
        self.report.fail(format_args!("cannot copy a directory, {source}, into itself, {destination}"));
        Failed::IntoItself
    }

    /// A directory that this call has met before, as a source or as a destination: is it to be copied all the same?
    pub fn directory_again(&self, task: &Task, earlier: &Path) -> Done<bool> {
        if self.made_directory == Some(task.stat.id()) || names::same(task.source, earlier) {
            return Err(self.ends_in_itself());
        }
        if names::same(task.destination, earlier) {
            self.report.warn(format_args!("source directory {} specified more than once", shell(task.source)));
            return Ok(false);
        }
        if self.settings.follows(task.operand) {
            // Reached through two links: two copies are what was asked for.
            return Ok(true);
        }
        let (destination, earlier) = (shell(task.destination), shell(earlier));
        Err(self.report.fail(format_args!("will not create hard link {destination} to directory {earlier}")))
    }
}

/// Names in a directory, by inode number: reading files in that order spares a disk from seeking.
fn entries(path: &Path) -> io::Result<Vec<OsString>> {
    let mut entries = fs::read_dir(path)?
        .map(|entry| entry.map(|entry| (entry.ino(), entry.file_name())))
        .collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(|(inode, _)| *inode);
    Ok(entries.into_iter().map(|(_, name)| name).collect())
}
