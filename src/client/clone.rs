//! One file cloned: instantly where source and target are in the same pool, by a copy where the source is outside.

use std::os::fd::AsFd;

use super::attributes::Apply;
use super::place::Make;
use super::{Draft, Progress, Source, Target, copy_in, doors};
use crate::error::{Error, Kind, Result};
use crate::protocol::CloneRequest;
use crate::units::{MAX_VOLUME, format_size};

/// How to clone.
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneOptions {
    /// Size of the clone in bytes, not below the source's; the rest reads as zeros. `None`: the source's.
    pub size: Option<u64>,
    /// Leave it an overlay until told to deepen it.
    pub no_deepen: bool,
    /// It is durable when it is published.
    pub sync: bool,
    /// Give it the times of the source, as for the files of a tree; otherwise it is modified now, as a new file.
    pub keep_times: bool,
}

/// Makes `target` a clone of `source`, with the attributes that a clone inherits, as a draft that the caller
/// publishes. Nothing remains of it on an error.
///
/// A source outside of all pools is copied, see [`Source::in_pool`].
pub fn clone_file(source: &Source, target: &Target, options: &CloneOptions, progress: Progress) -> Result<Draft> {
    check(source, target, options)?;
    // A copy takes its time: until it is complete it has no name that anybody could take for the clone.
    let make = if !source.in_pool() || target.replace { Make::FileHidden } else { Make::FileInPlace };
    let (draft, file) = Draft::create(target, make)?;
    fill(source, target, &file, options, progress)?;
    Ok(draft)
}

/// As [`clone_file`], but always by a copy, and so also from one pool to another or to a directory outside of all
/// pools, see [`Directory::open_anywhere`](super::Directory::open_anywhere).
pub fn copy_file(source: &Source, target: &Target, options: &CloneOptions, progress: Progress) -> Result<Draft> {
    check_size(source, options)?;
    refuse_itself(source, target)?;
    let (draft, file) = Draft::create(target, Make::FileHidden)?;
    copy_in::copy(source, &file, options.size.unwrap_or(source.size()), progress)?;
    finish(source, target, &file, options)?;
    Ok(draft)
}

/// Fills an empty file that was just created in `target`'s directory, and gives it the source's attributes.
pub(super) fn fill(
    source: &Source,
    target: &Target,
    file: impl AsFd,
    options: &CloneOptions,
    progress: Progress,
) -> Result<()> {
    let file = file.as_fd();
    if !source.in_pool() {
        copy_in::copy(source, file, options.size.unwrap_or(source.size()), progress)?;
    } else {
        let CloneOptions { size, no_deepen, sync, .. } = *options;
        doors::clone(
            file,
            &CloneRequest { token: source.token()?, size, no_deepen, sync, group: None },
            source.path(),
        )?;
    }
    finish(source, target, file, options)
}

/// Gives a file that is filled the attributes of its source.
fn finish(source: &Source, target: &Target, file: impl AsFd, options: &CloneOptions) -> Result<()> {
    let file = file.as_fd();
    let apply = Apply { drop_acl: target.dir.gives_acl(), times: options.keep_times };
    source.attributes().apply(file, apply).map_err(|e| doors::failed("set the attributes of", &target.path(), e))?;
    if options.sync {
        rustix::fs::fsync(file).map_err(|e| doors::failed("make durable", &target.path(), e))?;
    }
    Ok(())
}

/// Everything that can be refused before anything is made.
pub(super) fn check(source: &Source, target: &Target, options: &CloneOptions) -> Result<()> {
    if source.in_pool() && source.stat().st_dev != target.dir.device() {
        return Err(Error::new(Kind::CrossPool, "clone")
            .at(source.path())
            .because(format!("{:?} is on another mount than it", target.path()))
            .remedy("clones are made within one pool; cp copies between pools"));
    }
    check_size(source, options)?;
    refuse_itself(source, target)
}

fn check_size(source: &Source, options: &CloneOptions) -> Result<()> {
    let largest = options.size.unwrap_or(source.size()).max(source.size());
    if largest > MAX_VOLUME {
        let cause = format!("{largest} bytes are more than a volume can have ({})", format_size(MAX_VOLUME));
        return Err(Error::new(Kind::TooLarge, "clone").at(source.path()).because(cause));
    }
    if let Some(size) = options.size.filter(|&size| size < source.size()) {
        let cause = format!("a clone of {size} bytes would be smaller than its source of {}", source.size());
        return Err(Error::new(Kind::Invalid, "clone")
            .at(source.path())
            .because(cause)
            .remedy("give a larger --size; a clone can be shrunk with truncate once it is made"));
    }
    Ok(())
}

/// With `replace`: the target must not be the source's own name.
fn refuse_itself(source: &Source, target: &Target) -> Result<()> {
    let there = rustix::fs::statat(&target.dir, &target.name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
    match there {
        Ok(stat) if stat.st_dev == source.stat().st_dev && stat.st_ino == source.stat().st_ino => {
            Err(Error::new(Kind::Invalid, "clone")
                .at(source.path())
                .because("source and destination are the same file")
                .remedy("choose another name"))
        }
        _ => Ok(()),
    }
}
