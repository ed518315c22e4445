//! A destination that exists: whether to copy at all, and what happens to it before.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::backup;
use crate::copier::{Copier, Task};
use crate::names;
use crate::quote::shell;
use crate::report::{Done, Failed};
use crate::same::{Relation, relation};
use crate::settings::{Backup, Follow, Overwrite, Settings};
use crate::stat::{MODE_BITS, Stat};

/// How the destination is found when copying begins.
pub enum Target {
    /// It stays as it is: nothing is to be done.
    Keep,
    /// Nothing is there (any more); perhaps it has become a backup.
    Free(Option<PathBuf>),
    /// It is there.
    Taken(Stat),
}

impl Copier<'_> {
    /// Looks at the destination and clears the way as the settings say.
    pub fn meet(&mut self, task: &Task) -> Done<Target> {
        let s = self.settings;
        let destination = task.destination;
        let contents = task.stat.is_file() || (s.copy_contents && !task.stat.is_dir() && !task.stat.is_link());
        let as_link = !contents || s.symbolic_link || s.hard_link || s.backup != Backup::None || s.remove_first;
        let found = match Stat::at(destination, !as_link) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Target::Free(None)),
            // A loop of links cannot be opened either; --force removes it then.
            Err(e) if e.raw_os_error() == Some(libc::ELOOP) && s.force => {
                Stat::of_link(destination).map_err(|e| self.report.at("cannot stat", destination, &e))?
            }
            Err(e) => return Err(self.report.at("cannot stat", destination, &e)),
        };
        if s.overwrite == Overwrite::Never && !task.stat.is_dir() {
            return Ok(Target::Keep);
        }
        let relation = relation(task.source, &task.stat, destination, &found, s);
        if relation == Relation::Same {
            let (source, destination) = (shell(task.source), shell(destination));
            return Err(self.report.fail(format_args!("{source} and {destination} are the same file")));
        }
        if !task.stat.is_dir() && (self.is_newer(task, &found)? || !self.may_overwrite(destination, &found)) {
            return Ok(Target::Keep);
        }
        if relation == Relation::Done {
            return Ok(Target::Keep);
        }
        self.check_kinds(task, &found)?;
        self.clear(task, found)
    }

    /// `--update`, and the destination is not older. What is already there still gets its hard links.
    fn is_newer(&mut self, task: &Task, found: &Stat) -> Done<bool> {
        if !self.settings.update {
            return Ok(false);
        }
        let mut wanted = task.stat.mtime;
        if self.settings.preserve.timestamps && found.mtime.nanoseconds == 0 {
            // The destination's filesystem may keep whole seconds only.
            wanted.nanoseconds = 0;
        }
        if found.mtime < wanted {
            return Ok(false);
        }
        if self.settings.preserve.links
            && !self.settings.hard_link
            && let Some(earlier) = self.seen.copied(&task.stat, task.destination)
        {
            self.link(&earlier, task.destination, true, false, self.settings.verbose)?;
        }
        Ok(true)
    }

    /// Asks if it has to.
    fn may_overwrite(&self, destination: &Path, found: &Stat) -> bool {
        match self.settings.overwrite {
            Overwrite::Yes => true,
            Overwrite::Never => false,
            Overwrite::Ask => self.report.ask(question(destination, found, self.settings)),
        }
    }

    /// A directory never replaces a file, nor a file a directory, nor anything what this call has just made.
    fn check_kinds(&self, task: &Task, found: &Stat) -> Done {
        let (source, destination) = (shell(task.source), shell(task.destination));
        if found.is_dir() {
            if task.stat.is_dir() {
                return Ok(());
            }
            return Err(self.report.fail(format_args!("cannot overwrite directory {destination} with non-directory")));
        }
        if task.stat.is_dir() {
            return Err(self
                .report
                .fail(format_args!("cannot overwrite non-directory {destination} with directory {source}")));
        }
        let numbered = self.settings.backup == Backup::Numbered;
        if task.operand && !numbered && self.seen.just_made(task.destination, found) {
            return Err(self.report.fail(format_args!("will not overwrite just-created {destination} with {source}")));
        }
        Ok(())
    }

    /// Makes a backup, or removes what would be in the way.
    fn clear(&mut self, task: &Task, found: Stat) -> Done<Target> {
        let s = self.settings;
        let destination = task.destination;
        if found.is_dir() {
            return Ok(Target::Taken(found));
        }
        if s.backup != Backup::None && !names::is_dot(destination) {
            if backup::would_destroy(task.source, &task.stat, destination, s) {
                let (source, destination) = (shell(task.source), shell(destination));
                return Err(self
                    .report
                    .fail(format_args!("backing up {destination} might destroy source;  {source} not copied")));
            }
            let kept =
                backup::put_aside(destination, s).map_err(|e| self.report.at("cannot backup", destination, &e))?;
            return Ok(Target::Free(kept));
        }
        let shared_name = s.preserve.links && found.nlink > 1;
        let not_contents = s.follow == Follow::Never && !task.stat.is_file();
        if s.remove_first || (!s.attributes_only && (shared_name || not_contents)) {
            self.remove(destination)?;
            return Ok(Target::Free(None));
        }
        Ok(Target::Taken(found))
    }

    /// Removes a destination and tells.
    pub fn remove(&self, destination: &Path) -> Done {
        match fs::remove_file(destination) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(self.report.at("cannot remove", destination, &e)),
        }
        if self.settings.verbose {
            self.report.verbose(format_args!("removed {}", shell(destination)));
        }
        Ok(())
    }

    /// Copying through a symbolic link that this call has made would write to where the source says.
    pub fn check_fresh_link(&self, task: &Task) -> Done {
        if !task.operand || self.settings.backup != Backup::None {
            return Ok(());
        }
        match Stat::of_link(task.destination) {
            Ok(stat) if stat.is_link() && self.seen.just_made(task.destination, &stat) => {
                let (source, destination) = (shell(task.source), shell(task.destination));
                Err(self.report.fail(format_args!("will not copy {source} through just-created symlink {destination}")))
            }
            _ => Ok(()),
        }
    }

    /// Puts a backup back after a failure.
    pub fn restore(&self, task: &Task, kept: &Path) -> Failed {
        match fs::rename(kept, task.destination) {
            Ok(()) if self.settings.verbose => {
                self.report.verbose(format_args!("{} -> {} (unbackup)", shell(kept), shell(task.destination)));
            }
            Ok(()) => {}
            Err(e) => return self.report.at("cannot un-backup", task.destination, &e),
        }
        Failed::Here
    }
}

/// The question of `--interactive`.
fn question(destination: &Path, found: &Stat, s: &Settings) -> String {
    let name = shell(destination);
    let writable =
        s.privileged || found.is_link() || accessat(CWD, destination, Access::WRITE_OK, AtFlags::EACCESS).is_ok();
    if writable {
        return format!("overwrite {name}");
    }
    let (bits, letters) = (found.mode & MODE_BITS, permissions(found.mode));
    if s.remove_first || s.force {
        format!("replace {name}, overriding mode {bits:04o} ({letters})")
    } else {
        format!("unwritable {name} (mode {bits:04o}, {letters}); try anyway")
    }
}

/// Permission bits as `ls -l` shows them: `rwxr-sr-t`.
fn permissions(mode: u32) -> String {
    let special = [(libc::S_ISUID, 's'), (libc::S_ISGID, 's'), (libc::S_ISVTX, 't')];
    let mut text = String::new();
    for (who, (bit, letter)) in special.into_iter().enumerate() {
        let bits = mode >> (6 - 3 * who);
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & bit != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn permission_letters_are_those_of_ls() {
        assert_eq!(super::permissions(0o100644), "rw-r--r--");
        assert_eq!(super::permissions(0o7777), "rwsrwsrwt");
        assert_eq!(super::permissions(0o7000), "--S--S--T");
    }
}
