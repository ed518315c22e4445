//! Several files cloned as of one moment: each new file is told what it is to become, and then all of them at once.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::attributes::Apply;
use super::clone::check;
use super::place::Make;
use super::{CloneOptions, Draft, Source, Target, doors};
use crate::engine::store::new_id;
use crate::error::{Error, Kind, Result};
use crate::protocol::{CloneRequest, GroupRequest};

/// A group that is being put together. Nothing of it happens before [`Group::commit`].
pub struct Group {
    name: String,
    members: usize,
    /// Any of the files: the door to the whole group.
    door: Option<OwnedFd>,
}

impl Default for Group {
    fn default() -> Group {
        // Nobody can guess it, so nobody else can add to it.
        Group { name: format!("{}{}", new_id(), new_id()), members: 0, door: None }
    }
}

impl Group {
    /// Adds an empty file that is to become a clone of `source`, which must be in the same pool.
    pub(super) fn add(&mut self, source: &Source, file: OwnedFd, options: &CloneOptions) -> Result<()> {
        let CloneOptions { size, no_deepen, .. } = *options;
        let token = source.token()?;
        let request = CloneRequest { token, size, no_deepen, sync: true, group: Some(self.name.clone()) };
        doors::clone(&file, &request, source.path())?;
        self.members += 1;
        self.door = Some(file);
        Ok(())
    }

    /// Makes all of them clones, as of one moment, durably. `what` is what they are called in messages.
    pub(super) fn commit(self, what: &Path) -> Result<()> {
        let Some(door) = self.door else { return Ok(()) };
        doors::carry_out(door, &GroupRequest { group: self.name, members: self.members }, what)
    }
}

/// Clones of files of one pool, ready to be made as of one moment. Nothing remains of them if this is dropped.
pub struct Staged<'a> {
    drafts: Vec<Draft>,
    files: Vec<New<'a>>,
    group: Group,
}

impl<'a> Staged<'a> {
    /// Makes the files, empty, and tells the daemon what they are to become.
    pub fn new(members: &[(&'a Source, &Target, CloneOptions)]) -> Result<Staged<'a>> {
        let mut drafts = Vec::with_capacity(members.len());
        let mut files = Vec::with_capacity(members.len());
        for (source, target, options) in members {
            check(source, target, options)?;
            let make = if target.replace { Make::FileHidden } else { Make::FileInPlace };
            let (draft, file) = Draft::create(target, make)?;
            drafts.push(draft);
            files.push(New { source, file, options: *options, drop_acl: target.dir.gives_acl() });
        }
        let group = stage(&files)?;
        Ok(Staged { drafts, files, group })
    }

    /// Makes them clones, at one moment of this call, durably.
    pub fn commit(&mut self) -> Result<()> {
        std::mem::take(&mut self.group).commit(self.files.first().map_or(Path::new(""), |new| new.source.path()))
    }

    /// Gives them the attributes that a clone inherits: drafts for the caller to publish.
    pub fn finish(self) -> Result<Vec<Draft>> {
        finish(&self.files)?;
        Ok(self.drafts)
    }
}

/// Clones files of one pool as of one moment, under their own names into the new directory `target`: a draft that the
/// caller publishes, so that the group appears as a whole, or never.
pub fn clone_group_into(sources: &[Source], target: &Target, options: &CloneOptions) -> Result<Draft> {
    let (draft, root) = Draft::create(target, Make::DirectoryHidden)?;
    let mut files = Vec::with_capacity(sources.len());
    for source in sources {
        check(source, target, options)?;
        let name = source.path().file_name().unwrap_or_default();
        let place = || target.path().join(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&root, name, flags, Mode::RUSR | Mode::WUSR).map_err(|e| match e {
            Errno::EXIST => Error::new(Kind::Exists, "create")
                .at(place())
                .because("two files of the group have this name")
                .remedy("clone them in groups of their own, or the tree that they are in with -r"),
            e => doors::failed("create", &place(), e),
        })?;
        files.push(New { source, file, options: *options, drop_acl: target.dir.gives_acl() });
    }
    stage(&files)?.commit(sources.first().map_or(Path::new(""), Source::path))?;
    finish(&files)?;
    let failed = |e| doors::failed("create", &target.path(), e);
    // Until now nobody but the caller could come in.
    rustix::fs::fchmod(&root, Mode::from_raw_mode(0o777 & !umask())).map_err(failed)?;
    rustix::fs::fsync(&root).map_err(failed)?;
    Ok(draft)
}

/// A new, empty file and what it is to become.
struct New<'a> {
    source: &'a Source,
    file: OwnedFd,
    options: CloneOptions,
    drop_acl: bool,
}

fn stage(files: &[New]) -> Result<Group> {
    let mut group = Group::default();
    for New { source, file, options, .. } in files {
        if let Some(why) = source.copied_because()? {
            return Err(Error::new(Kind::Unsupported, "clone in a group")
                .at(source.path())
                .because(format!("it {why}, and so can only be copied"))
                .remedy("clone it by itself"));
        }
        group.add(source, file.try_clone().map_err(|e| Error::io("clone in a group", e))?, options)?;
    }
    Ok(group)
}

fn finish(files: &[New]) -> Result<()> {
    for New { source, file, options, drop_acl } in files {
        let apply = Apply { drop_acl: *drop_acl, times: options.keep_times };
        let failed = |e| doors::failed("set the attributes of the clone of", source.path(), e);
        source.attributes().apply(file, apply).map_err(failed)?;
        if options.sync {
            rustix::fs::fsync(file).map_err(failed)?;
        }
    }
    Ok(())
}

/// The umask of this process, without changing it for a moment.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
}
