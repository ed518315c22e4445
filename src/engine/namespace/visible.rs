//! Which paths may be told to whom: those that the caller could have found without us.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use std::os::fd::BorrowedFd;

use super::NameTree;
use super::caller::Caller;
use crate::engine::io::Fs;
use crate::engine::policy::POOL;
use crate::engine::store::JOURNAL;
use crate::error::{Error, Result};
use crate::protocol::{PoolStatus, Trouble};

/// Looks with the rights of one caller.
struct Eyes<'a> {
    fs: &'a dyn Fs,
    uid: u32,
    /// Directories, and whether the caller may list them.
    listed: HashMap<PathBuf, bool>,
}

impl Eyes<'_> {
    /// Whether the caller can come to what is at a path, and owns it or may list the directories that lead there. What is
    /// not there is seen by nobody.
    fn sees(&mut self, path: &Path) -> bool {
        let Ok(stat) = self.fs.stat(path) else { return false };
        stat.uid == self.uid || path.ancestors().skip(1).all(|directory| self.lists(directory))
    }

    fn lists(&mut self, directory: &Path) -> bool {
        if let Some(known) = self.listed.get(directory) {
            return *known;
        }
        let can = self.open(directory).is_some();
        self.listed.insert(directory.to_owned(), can);
        can
    }

    fn open(&self, directory: &Path) -> Option<()> {
        // SAFETY: fs keeps its root directory open for as long as it lives, which is longer than this function runs.
        let root = unsafe { BorrowedFd::borrow_raw(self.fs.root_fd()?) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        openat2(root, place, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS).ok().map(drop)
    }
}

impl NameTree {
    /// Which of these paths, relative to the pool, a caller may be told. Not for a thread that others wait for.
    pub(super) fn which_seen(&self, caller: &Caller, paths: &[&str]) -> Vec<bool> {
        if caller.is_administrator() {
            return vec![true; paths.len()];
        }
        let mut eyes = Eyes { fs: self.fs.as_ref(), uid: caller.uid, listed: HashMap::new() };
        let look = || Ok::<_, Error>(paths.iter().map(|path| *path == POOL || eyes.sees(Path::new(path))).collect());
        // Of a caller for whom we cannot act nothing is known.
        caller.act(look).unwrap_or_else(|_| vec![false; paths.len()])
    }

    /// Takes out of a status what a caller may not be told.
    pub(super) fn only_seen(&self, mut status: PoolStatus, caller: &Caller) -> PoolStatus {
        if caller.is_administrator() {
            return status;
        }
        let damaged = status.scrub.as_mut().map(|scrub| std::mem::take(&mut scrub.damaged)).unwrap_or_default();
        let paths = status.jobs.iter().map(|job| job.path.as_str());
        let troubles = status.troubles.iter().chain(&damaged);
        let paths: Vec<&str> = paths.chain(troubles.map(|trouble| trouble.path.as_str())).collect();
        let mut seen = self.which_seen(caller, &paths).into_iter();
        status.jobs.retain(|_| seen.next().unwrap_or(false));
        let mut keep = |troubles: &mut Vec<Trouble>| {
            // That of the journal concerns all, and names nobody.
            troubles.retain(|trouble| seen.next().unwrap_or(false) || trouble.path == JOURNAL);
        };
        let all = status.troubles.len();
        keep(&mut status.troubles);
        status.troubles_hidden = (all - status.troubles.len()) as u64;
        if let Some(scrub) = &mut status.scrub {
            scrub.damaged = damaged;
            keep(&mut scrub.damaged);
        }
        status
    }

    /// The path that a volume was cloned from, if its owner asks, or somebody who could find it.
    pub(super) fn origin_seen(&self, owner: u32, origin: Option<String>, caller: &Caller) -> Option<String> {
        origin.filter(|path| caller.uid == owner || self.which_seen(caller, &[path.as_str()]) == [true])
    }

    /// All policies that a caller may be told of, as JSON.
    pub(super) fn list_policies(&self, caller: &Caller) -> Result<Vec<u8>> {
        let mut listing = self.pool.policies().list();
        if !caller.is_administrator() {
            let paths: Vec<&str> = listing.policies.keys().map(String::as_str).collect();
            let mut seen = self.which_seen(caller, &paths).into_iter();
            listing.policies.retain(|_, _| seen.next().unwrap_or(false));
            // It says what is in the file.
            listing.trouble = listing.trouble.map(|_| "the file of the policies cannot be read".to_owned());
        }
        super::doors::json(&listing)
    }
}
