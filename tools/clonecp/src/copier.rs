//! One file, one directory, one link at a time: the order of steps that every copy goes through.

use std::path::{Path, PathBuf};

use crate::attributes::Made;
use crate::existing::Target;
use crate::node::Node;
use crate::quote::shell;
use crate::report::{Done, Failed, Report};
use crate::seen::Seen;
use crate::settings::{Backup, Overwrite, Settings};
use crate::stat::Stat;

/// A call at work: its settings and what it has seen so far.
pub struct Copier<'a> {
    /// What was asked for.
    pub settings: &'a Settings,
    /// Where messages go.
    pub report: &'a Report,
    /// Files copied and made so far.
    pub seen: Seen,
    /// The operand that is being copied and its destination, for messages.
    pub operand: (PathBuf, PathBuf),
    /// The first directory made for this operand, by device and inode: the one that could be copied into itself.
    pub made_directory: Option<(u64, u64)>,
}

/// One thing to copy.
pub struct Task<'a> {
    /// Where it is.
    pub source: &'a Path,
    /// Where it goes.
    pub destination: &'a Path,
    /// Its attributes, those of what it leads to if links are followed here.
    pub stat: Stat,
    /// It is named on the command line.
    pub operand: bool,
    /// The directories that it is in, up to the operand.
    pub inside: Option<&'a Inside<'a>>,
}

/// A directory that is being copied, and the ones around it.
pub struct Inside<'a> {
    /// The source directory.
    pub stat: Stat,
    /// Device of the operand: where `--one-file-system` stays.
    pub device: u64,
    /// The directory that was made for it and is being filled, by device and inode; `None` if it was there.
    pub made: Option<(u64, u64)>,
    /// The directory around it.
    pub parent: Option<&'a Inside<'a>>,
}

impl Inside<'_> {
    /// The file of `stat` is this directory or one around it.
    pub fn contains(&self, stat: &Stat) -> bool {
        self.stat.id() == stat.id() || self.parent.is_some_and(|parent| parent.contains(stat))
    }

    /// The file of `stat` is a directory that was made for this one or for one around it.
    pub fn fills(&self, stat: &Stat) -> bool {
        self.made == Some(stat.id()) || self.parent.is_some_and(|parent| parent.fills(stat))
    }
}

/// What copying did with the destination.
pub enum Outcome {
    /// Made; its attributes are still to be set, as is the mode that it was made with.
    Made(Made),
    /// It was there and takes attributes.
    Merged,
    /// Complete.
    Complete,
}

impl<'a> Copier<'a> {
    /// For a call with `count` sources.
    pub fn new(settings: &'a Settings, report: &'a Report, count: usize) -> Copier<'a> {
        Copier {
            settings,
            report,
            seen: Seen::new(count),
            operand: (PathBuf::new(), PathBuf::new()),
            made_directory: None,
        }
    }

    /// Copies an operand. `free`: the caller knows that there is no destination.
    pub fn copy_operand(&mut self, source: &Path, destination: &Path, free: bool) -> Done {
        self.operand = (source.to_path_buf(), destination.to_path_buf());
        self.made_directory = None;
        self.copy(source, destination, free, None)
    }

    /// Copies whatever `source` is. `inside`: the directory it is in, if it is not an operand.
    pub fn copy(&mut self, source: &Path, destination: &Path, free: bool, inside: Option<&Inside>) -> Done {
        let s = self.settings;
        let operand = inside.is_none();
        let stat = Stat::at(source, s.follows(operand)).map_err(|e| self.report.at("cannot stat", source, &e))?;
        if stat.is_dir() && !s.recursive {
            let name = shell(source);
            return Err(self.report.fail(format_args!("-r not specified; omitting directory {name}")));
        }
        let task = Task { source, destination, stat, operand, inside };
        if operand && self.is_repeated(&task) {
            return Ok(());
        }
        let (old, kept) = match if free { Target::Free(None) } else { self.meet(&task)? } {
            Target::Keep => return Ok(()),
            Target::Free(kept) => (None, kept),
            Target::Taken(old) => (Some(old), None),
        };
        let result = self.check_fresh_link(&task).and_then(|()| self.transfer(&task, old, kept.as_deref()));
        match (result, kept) {
            (Err(Failed::Here), Some(kept)) => Err(self.restore(&task, &kept)),
            (result, _) => result,
        }
    }

    /// Warns of an operand that is given twice. (Backups could be meant; directories are told apart later.)
    fn is_repeated(&mut self, task: &Task) -> bool {
        if task.stat.is_dir() || self.settings.backup != Backup::None {
            return false;
        }
        let again = self.seen.operand_again(task.source, &task.stat);
        if again {
            self.report.warn(format_args!("source file {} specified more than once", shell(task.source)));
        }
        again
    }

    /// Makes the copy, once the way is clear.
    fn transfer(&mut self, task: &Task, old: Option<Stat>, kept: Option<&Path>) -> Done {
        if self.settings.verbose && !task.stat.is_dir() {
            self.tell(task, kept);
        }
        if task.inside.is_some_and(|inside| inside.fills(&task.stat)) {
            return Err(self.ends_in_itself());
        }
        let (earlier, noted) = self.earlier_copy(task);
        match earlier {
            Some(earlier) if !task.stat.is_dir() => {
                return self.link(&earlier, task.destination, true, false, self.settings.verbose);
            }
            Some(earlier) if !self.directory_again(task, &earlier)? => return Ok(()),
            _ => {}
        }
        let result = self.make(task, old.as_ref());
        if let (Err(Failed::Here), true) = (&result, noted && !task.stat.is_dir()) {
            self.seen.forget(&task.stat);
        }
        result
    }

    /// The `--verbose` line.
    pub fn tell(&self, task: &Task, kept: Option<&Path>) {
        let (source, destination) = (shell(task.source), shell(task.destination));
        match kept {
            Some(kept) => {
                self.report.verbose(format_args!("{source} -> {destination} (backup: {})", shell(kept)));
            }
            None => self.report.verbose(format_args!("{source} -> {destination}")),
        }
    }

    /// Where this very file has been copied to before, if that matters; and whether it has been noted now.
    fn earlier_copy(&mut self, task: &Task) -> (Option<PathBuf>, bool) {
        let s = self.settings;
        if task.stat.is_dir() {
            return if task.operand {
                (self.seen.copied(&task.stat, task.destination), true)
            } else {
                (self.seen.copy_of(&task.stat), false)
            };
        }
        let followed = s.follows(task.operand);
        // A file of one name can be met twice only through links that are followed.
        if s.preserve.links && !s.hard_link && (task.stat.nlink > 1 || followed) {
            return (self.seen.copied(&task.stat, task.destination), true);
        }
        (None, false)
    }

    /// Makes the copy by the kind of file it is, then its attributes.
    fn make(&mut self, task: &Task, old: Option<&Stat>) -> Done {
        let s = self.settings;
        let outcome = if task.stat.is_dir() {
            // An incomplete directory gets its attributes all the same.
            let (outcome, result) = self.directory(task, old)?;
            self.seal(task, old, outcome).and(result)?;
            return Ok(());
        } else if s.symbolic_link {
            self.symbolic_link(task)?
        } else if s.hard_link {
            let replace = s.force || s.overwrite == Overwrite::Ask;
            self.link(task.source, task.destination, replace, s.follows(task.operand), false)?;
            Outcome::Complete
        } else if task.stat.is_file() || (s.copy_contents && !task.stat.is_link()) {
            self.regular(task, old)?;
            Outcome::Complete
        } else {
            self.special(task, old)?
        };
        self.seal(task, old, outcome)
    }

    /// Notes what was made for an operand and sets the attributes that are still missing.
    fn seal(&mut self, task: &Task, old: Option<&Stat>, outcome: Outcome) -> Done {
        if task.operand {
            self.seen.made(task.destination);
        }
        let made = match outcome {
            Outcome::Complete => return Ok(()),
            Outcome::Made(made) => made,
            Outcome::Merged => Made::default(),
        };
        self.finish_attributes((task.source, &task.stat), Node::Named(task.destination), old, made)
    }
}
