//! Owner, times and mode of a copy, in the order that leaves no moment in which it grants too much.

use std::io;
use std::path::Path;

use crate::copier::Copier;
use crate::node::Node;
use crate::report::Done;
use crate::settings::Settings;
use crate::stat::{MODE_BITS, Stat};
use crate::xattrs::{self, SPECIAL_BITS};

/// The mode that a new file is made with, and what is kept back until its owner is right.
#[derive(Clone, Copy, Debug)]
pub struct Creation {
    /// Permission bits that it should have in the end, before the umask.
    pub mode: u32,
    /// Those of them that it does not get yet.
    pub withheld: u32,
}

impl Creation {
    /// For a copy of `source`.
    pub fn of(source: &Stat, s: &Settings) -> Creation {
        let mode = source.mode & MODE_BITS;
        let held_back = match (s.preserve.ownership, source.is_dir()) {
            // The owner is to change: until then nobody but the owner may touch it.
            (true, _) => 0o077,
            // Somebody could put things into the directory while it is being filled.
            (false, true) => 0o022,
            (false, false) => 0,
        };
        Creation { mode, withheld: mode & held_back }
    }

    /// The bits to create with.
    pub fn first(&self) -> u32 {
        self.mode & !self.withheld
    }
}

impl Copier<'_> {
    /// Gives `to` the times of `source`.
    pub fn keep_times(&self, source: &Stat, to: Node) -> Done {
        to.set_times(source).map_err(|e| self.report.at("preserving times for", to.path(), &e))
    }

    /// Gives `to` the owner of `source` and returns the mode that it may have then: without set-user-id and the like
    /// if the owner could not be kept. `old` is the destination as it was, `None` if it is new.
    pub fn keep_owner(&self, source: &Stat, to: Node, old: Option<&Stat>) -> Done<u32> {
        if let Some(old) = old
            && self.settings.preserve.mode
        {
            // The new owner shall not have for a moment what the old mode grants and the new one does not.
            let special = if old.is_dir() { old.mode & SPECIAL_BITS } else { 0 };
            let restricted = (old.mode & source.mode & 0o700) | special;
            if old.mode & MODE_BITS & !restricted != 0 {
                to.set_mode(restricted).map_err(|e| self.report.at("clearing permissions for", to.path(), &e))?;
            }
        }
        match to.set_owner(Some(source.uid), source.gid) {
            Ok(()) => return Ok(source.mode),
            Err(e) if chown_may_fail(&e, self.settings) => {
                // Only root can give files away. The group may work all the same, else it stays.
                let _ = to.set_owner(None, source.gid);
            }
            Err(e) => return Err(self.report.at("failed to preserve ownership for", to.path(), &e)),
        }
        // They would act with the rights of somebody else than the source's owner.
        Ok(source.mode & !SPECIAL_BITS)
    }

    /// Extended attributes, if they are wanted.
    pub fn keep_xattrs(&self, from: Node, to: Node) -> Done {
        if self.settings.preserve.xattr || self.settings.preserve.context {
            xattrs::copy(from, to, self.settings, self.report)?;
        }
        Ok(())
    }

    /// Gives `to` mode and ACLs of `from`.
    pub fn keep_mode(&self, from: Node, to: Node, mode: u32) -> Done {
        xattrs::copy_permissions(from, to, mode)
            .map_err(|e| self.report.at("preserving permissions for", to.path(), &e))
    }

    /// Gives a new file the mode of any new file.
    pub fn plain_mode(&self, to: Node, directory: bool, base: u32) -> Done {
        xattrs::set_permissions(to, base & !self.settings.umask, directory)
            .map_err(|e| self.report.at("setting permissions for", to.path(), &e))
    }

    /// Everything that a copy other than a regular file or a symbolic link still needs. `made`: how it was created,
    /// `None` if it was there; `full`: a mode that it was given for the time being and must lose.
    pub fn finish_attributes(&self, source: (&Path, &Stat), to: Node, old: Option<&Stat>, made: Made) -> Done {
        let (path, stat) = source;
        let s = self.settings;
        if s.preserve.timestamps {
            self.keep_times(stat, to)?;
        }
        let mut mode = stat.mode;
        if s.preserve.ownership && old.is_none_or(|old| !old.same_owner(stat)) {
            mode = self.keep_owner(stat, to, old)?;
        }
        self.keep_xattrs(Node::Named(path), to)?;
        if s.preserve.mode {
            return self.keep_mode(Node::Named(path), to, mode);
        }
        if s.preserve.not_mode && old.is_none() {
            let any = stat.is_dir() || stat.kind() == libc::S_IFSOCK;
            return self.plain_mode(to, stat.is_dir(), if any { 0o777 } else { 0o666 });
        }
        let withheld = made.withheld & !s.umask;
        if withheld != 0 || made.lifted {
            let wanted = (made.mode | withheld) & MODE_BITS;
            to.set_mode(wanted).map_err(|e| self.report.at("preserving permissions for", to.path(), &e))?;
        }
        Ok(())
    }
}

/// How something was created, for what is left to do to its mode.
#[derive(Clone, Copy, Debug, Default)]
pub struct Made {
    /// The mode that it got from the kernel.
    pub mode: u32,
    /// Bits that were kept back.
    pub withheld: u32,
    /// It was made accessible to its owner for the time being.
    pub lifted: bool,
}

/// Not being root is no failure when an owner cannot be kept.
pub fn chown_may_fail(error: &io::Error, s: &Settings) -> bool {
    !s.privileged && matches!(error.raw_os_error(), Some(libc::EPERM | libc::EINVAL))
}
