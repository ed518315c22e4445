//! A directory tree cloned: directories, links and special files as `cp -a` makes them, every regular file a clone, and
//! all of them as of one moment.
//!
//! First everything is made, empty. Then the files become clones, all at once. Then, from the leaves up, files and
//! directories get their attributes.
//!
//! The tree grows under a hidden name and gets its own when it is complete. Everything is opened relative to the open
//! directory above it and never through a symbolic link, so that nobody can lead the walk elsewhere.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use super::attributes::{Apply, Attributes, kept_mode, times};
use super::clone::{check, fill};
use super::group::Group;
use super::place::Make;
use super::{CloneOptions, Draft, Progress, Source, Target, doors};
use crate::error::{Error, Kind, Result};

/// What came of a tree.
pub struct Tree {
    /// The tree, to be published.
    pub draft: Draft,
    /// Paths, below the tree's root, of the regular files in it.
    pub files: Vec<PathBuf>,
    /// How many of those are copies, because their source lies outside of any pool.
    pub copied: usize,
}

/// Clones the directory `source` as `target`, as a draft that the caller publishes. Nothing remains of it on an error.
pub fn clone_tree(source: &Path, target: &Target, options: &CloneOptions, progress: Progress) -> Result<Tree> {
    let top = open_directory(rustix::fs::CWD, source.as_os_str(), source)?;
    refuse_itself(&top, target, source)?;
    let (draft, root) = Draft::create(target, Make::DirectoryHidden)?;
    let options = CloneOptions { keep_times: true, size: None, ..*options };
    let mut walk = Walk {
        target,
        options,
        progress,
        root: &root,
        links: HashMap::new(),
        more_names: Vec::new(),
        group: Group::default(),
        unfinished: Vec::new(),
        files: Vec::new(),
        copied: 0,
    };
    walk.directory(&top, source, &root, Path::new(""))?;
    std::mem::take(&mut walk.group).commit(source)?;
    walk.finish()?;
    let Walk { files, copied, .. } = walk;
    Ok(Tree { draft, files, copied })
}

struct Walk<'a> {
    target: &'a Target,
    options: CloneOptions,
    progress: Progress<'a>,
    root: &'a OwnedFd,
    /// First name in the new tree of each file that has several in the old one.
    links: HashMap<(u64, u64), PathBuf>,
    /// Its other names, with the first.
    more_names: Vec<(PathBuf, PathBuf)>,
    /// Files that are to become clones.
    group: Group,
    /// What has yet to get its attributes, what is in a directory before the directory.
    unfinished: Vec<Unfinished>,
    files: Vec<PathBuf>,
    copied: usize,
}

/// A file or directory that was made.
struct Unfinished {
    below: PathBuf,
    directory: bool,
    attributes: Attributes,
}

/// One name of the tree while it is being copied.
struct Item<'a> {
    from_dir: BorrowedFd<'a>,
    to_dir: BorrowedFd<'a>,
    name: &'a OsStr,
    /// What the source is called in messages.
    shown: PathBuf,
    /// Where the copy stands below the new tree's root.
    below: PathBuf,
    stat: Stat,
}

impl Walk<'_> {
    /// Makes what the directory `from` holds in the new directory `to`.
    fn directory(&mut self, from: &OwnedFd, shown: &Path, to: &OwnedFd, below: &Path) -> Result<()> {
        let look = |e| doors::failed("read directory", shown, e);
        for entry in Dir::read_from(from).map_err(look)? {
            let entry = entry.map_err(look)?;
            let name = os_name(entry.file_name());
            if name == "." || name == ".." {
                continue;
            }
            let shown = shown.join(name);
            let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| doors::failed("look at", &shown, e))?;
            let below = below.join(name);
            self.item(Item { from_dir: from.as_fd(), to_dir: to.as_fd(), name, shown, below, stat })?;
        }
        let stat = rustix::fs::fstat(from).map_err(look)?;
        let attributes =
            Attributes::read(from, &stat).map_err(|e| doors::failed("read the attributes of", shown, e))?;
        self.unfinished.push(Unfinished { below: below.to_path_buf(), directory: true, attributes });
        Ok(())
    }

    /// Gives everything its attributes. Until then nobody but the caller can have come into the tree.
    fn finish(&self) -> Result<()> {
        for (first, below) in &self.more_names {
            let linked = rustix::fs::linkat(self.root, first, self.root, below, AtFlags::empty());
            linked.map_err(|e| self.cannot_make(below, e))?;
        }
        for one in &self.unfinished {
            let failed = |e| self.cannot_make(&one.below, e);
            let (kind, name) = match (one.directory, one.below.as_os_str()) {
                (true, below) if below.is_empty() => (OFlags::RDONLY | OFlags::DIRECTORY, OsStr::new(".")),
                (true, below) => (OFlags::RDONLY | OFlags::DIRECTORY, below),
                (false, below) => (OFlags::WRONLY, below),
            };
            let flags = kind | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(self.root, name, flags, Mode::empty()).map_err(failed)?;
            let apply = Apply { drop_acl: self.target.dir.gives_acl(), times: true };
            one.attributes.apply(&file, apply).map_err(failed)?;
            // The names in it must be durable before its own can be.
            if one.directory || self.options.sync {
                rustix::fs::fsync(&file).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn item(&mut self, item: Item) -> Result<()> {
        let kind = FileType::from_raw_mode(item.stat.st_mode);
        if kind == FileType::Directory {
            let from = open_directory(item.from_dir, item.name, &item.shown)?;
            let make = |e| self.cannot_make(&item.below, e);
            rustix::fs::mkdirat(item.to_dir, item.name, Mode::RWXU).map_err(make)?;
            let to = open_directory(item.to_dir, item.name, &self.target.path().join(&item.below))?;
            return self.directory(&from, &item.shown, &to, &item.below);
        }
        if item.stat.st_nlink > 1 {
            let inode = (item.stat.st_dev, item.stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                // Not yet: what is to become a clone has one name.
                self.more_names.push((first.clone(), item.below));
                return Ok(());
            }
            self.links.insert(inode, item.below.clone());
        }
        match kind {
            FileType::RegularFile => self.file(item),
            FileType::Symlink => self.symlink(&item).map_err(|e| self.cannot_make(&item.below, e)),
            _ => self.special(&item).map_err(|e| self.cannot_make(&item.below, e)),
        }
    }

    fn file(&mut self, item: Item) -> Result<()> {
        let follow = AtFlags::SYMLINK_NOFOLLOW;
        let source = Source::open_at(item.from_dir, item.name, &item.shown, follow, Some(&self.target.dir))?;
        check(&source, self.target, &self.options)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(item.to_dir, item.name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| self.cannot_make(&item.below, e))?;
        if source.copied_because()?.is_some() {
            fill(&source, self.target, &file, &self.options, self.progress)?;
            self.copied += 1;
        } else {
            self.group.add(&source, file, &self.options)?;
            let attributes = source.into_attributes();
            self.unfinished.push(Unfinished { below: item.below.clone(), directory: false, attributes });
        }
        self.files.push(item.below);
        Ok(())
    }

    fn symlink(&self, item: &Item) -> rustix::io::Result<()> {
        let link = rustix::fs::readlinkat(item.from_dir, item.name, Vec::new())?;
        rustix::fs::symlinkat(link.as_c_str(), item.to_dir, item.name)?;
        give_owner(item)?;
        give_times(item)
    }

    fn special(&self, item: &Item) -> rustix::io::Result<()> {
        let kind = FileType::from_raw_mode(item.stat.st_mode);
        rustix::fs::mknodat(item.to_dir, item.name, kind, Mode::RUSR | Mode::WUSR, item.stat.st_rdev)?;
        let mode = kept_mode(item.stat.st_mode & 0o7777, give_owner(item)?);
        // Follows no link: the name was made a moment ago in a directory that nobody else can enter.
        rustix::fs::chmodat(item.to_dir, item.name, Mode::from_raw_mode(mode), AtFlags::empty())?;
        give_times(item)
    }

    fn cannot_make(&self, below: &Path, error: Errno) -> Error {
        doors::failed("create", &self.target.path().join(below), error)
    }
}

/// Gives a link or special file its owner as far as possible; tells whether it has it now.
fn give_owner(item: &Item) -> rustix::io::Result<bool> {
    let (uid, gid) = (Uid::from_raw(item.stat.st_uid), Gid::from_raw(item.stat.st_gid));
    match rustix::fs::chownat(item.to_dir, item.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::PERM | Errno::INVAL) => {
            let _ = rustix::fs::chownat(item.to_dir, item.name, None, Some(gid), AtFlags::SYMLINK_NOFOLLOW);
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

fn give_times(item: &Item) -> rustix::io::Result<()> {
    rustix::fs::utimensat(item.to_dir, item.name, &times(&item.stat), AtFlags::SYMLINK_NOFOLLOW)
}

fn open_directory(dir: impl AsFd, name: &OsStr, shown: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(|e| doors::failed("open directory", shown, e))
}

/// A tree cannot be cloned to a place inside itself: the walk would meet its own copy.
fn refuse_itself(top: &OwnedFd, target: &Target, source: &Path) -> Result<()> {
    let identity = |stat: Stat| (stat.st_dev, stat.st_ino);
    let tree = identity(rustix::fs::fstat(top).map_err(|e| doors::failed("look at", source, e))?);
    let up = |path: &Path, e| doors::failed("look at", path, e);
    let mut dir = open_above(&target.dir, ".").map_err(|e| up(target.dir.path(), e))?;
    let mut last = None;
    loop {
        let here = identity(rustix::fs::fstat(&dir).map_err(|e| up(target.dir.path(), e))?);
        if here == tree {
            return Err(Error::new(Kind::Invalid, "clone")
                .at(source)
                .because(format!("{:?} is inside of it", target.path()))
                .remedy("choose a destination outside of the tree"));
        }
        if last.replace(here) == Some(here) {
            return Ok(());
        }
        dir = match open_above(&dir, "..") {
            Ok(above) => above,
            // Above a directory that the caller may not search it cannot have opened the tree through here.
            Err(Errno::ACCESS) => return Ok(()),
            Err(e) => return Err(up(target.dir.path(), e)),
        };
    }
}

fn open_above(dir: impl AsFd, name: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(dir, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn os_name(name: &CStr) -> &OsStr {
    OsStr::from_bytes(name.to_bytes())
}
