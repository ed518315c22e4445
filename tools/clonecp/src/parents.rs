//! `--parents`: the directories that lead to a source, made again below the destination.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::attributes::chown_may_fail;
use crate::copier::Copier;
use crate::names;
use crate::node::Node;
use crate::quote::shell;
use crate::report::Done;
use crate::stat::Stat;
use crate::xattrs;

/// A directory on the way, and what it is still to be given.
pub struct Parent {
    source: PathBuf,
    destination: PathBuf,
    stat: Stat,
    /// Mode that it should have in the end although the mode of the source is not kept.
    mode: Option<u32>,
}

impl Copier<'_> {
    /// Makes the directories of `source` below `target`, as far as they are missing. Returns them, outermost first,
    /// for [`Copier::finish_parents`], and whether the last one is new.
    pub fn make_parents(&self, target: &Path, source: &Path) -> Done<(Vec<Parent>, bool)> {
        let s = self.settings;
        let keeps = s.preserve.ownership || s.preserve.mode || s.preserve.timestamps;
        let mut parents = Vec::new();
        let mut new = false;
        if names::parent(source) == Path::new(".") && !source.as_os_str().as_bytes().contains(&b'/') {
            return Ok((parents, new));
        }
        let last = names::join(target, names::parent(source).as_os_str());
        match Stat::of(&last) {
            Ok(stat) if stat.is_dir() => return Ok((parents, false)),
            Ok(_) => return Err(self.not_a_directory(&last)),
            Err(_) => {}
        }
        for part in leading(source) {
            let destination = names::join(target, part.as_os_str());
            let there = Stat::of(&destination);
            let mut parent = None;
            if keeps || there.is_err() {
                let stat = self.parent_stat(part)?;
                parent = Some(Parent { source: part.into(), destination: destination.clone(), stat, mode: None });
            }
            match (there, &mut parent) {
                (Ok(stat), _) if !stat.is_dir() => return Err(self.not_a_directory(&destination)),
                (Ok(_), _) => new = false,
                (Err(_), Some(parent)) => {
                    self.make_parent(parent)?;
                    new = true;
                }
                (Err(_), None) => {}
            }
            parents.extend(parent);
        }
        Ok((parents, new))
    }

    fn not_a_directory(&self, path: &Path) -> crate::report::Failed {
        self.report.fail(format_args!("{} exists but is not a directory", shell(path)))
    }

    fn parent_stat(&self, source: &Path) -> Done<Stat> {
        Stat::of(source)
            .and_then(|stat| if stat.is_dir() { Ok(stat) } else { Err(io::Error::from_raw_os_error(libc::ENOTDIR)) })
            .map_err(|e| self.report.at("failed to get attributes of", source, &e))
    }

    /// Makes one directory, such that its owner can fill it.
    fn make_parent(&self, parent: &mut Parent) -> Done {
        let s = self.settings;
        let path = &parent.destination;
        let wanted = if s.preserve.not_mode { 0o777 } else { parent.stat.mode & 0o777 };
        let held_back = if s.preserve.ownership {
            0o077
        } else if s.preserve.mode {
            0o022
        } else {
            0
        };
        let mut withheld = parent.stat.mode & held_back;
        DirBuilder::new()
            .mode(wanted & !withheld)
            .create(path)
            .map_err(|e| self.report.at("cannot make directory", path, &e))?;
        if s.verbose {
            // Without quotes, as cp writes these.
            let line = [parent.source.as_os_str().as_bytes(), b" -> ", path.as_os_str().as_bytes(), b"\n"].concat();
            self.report.verbose_bytes(&line);
        }
        let stat = Stat::of_link(path).map_err(|e| self.report.at("failed to get attributes of", path, &e))?;
        let closed = stat.mode & 0o700 != 0o700;
        if !s.preserve.mode {
            if withheld & !stat.mode != 0 {
                withheld &= !s.umask;
            }
            if withheld & !stat.mode != 0 || closed {
                parent.mode = Some(stat.mode | withheld);
            }
        }
        if closed {
            Node::Named(path)
                .set_mode(stat.mode | 0o700)
                .map_err(|e| self.report.at("setting permissions for", path, &e))?;
        }
        Ok(())
    }

    /// Gives the directories the attributes of their sources, innermost first.
    pub fn finish_parents(&self, parents: &[Parent]) -> Done {
        let s = self.settings;
        for Parent { source, destination, stat, mode } in parents.iter().rev() {
            let node = Node::Named(destination);
            let failed = |what, e: &io::Error| self.report.at(what, destination, e);
            if s.preserve.timestamps {
                node.set_times(stat).map_err(|e| failed("failed to preserve times for", &e))?;
            }
            if s.preserve.ownership
                && let Err(e) = node.set_owner(Some(stat.uid), stat.gid)
            {
                if !chown_may_fail(&e, s) {
                    return Err(failed("failed to preserve ownership for", &e));
                }
                // The group may work all the same, else it stays.
                let _ = node.set_owner(None, stat.gid);
            }
            if s.preserve.mode {
                xattrs::copy_permissions(Node::Named(source), node, stat.mode)
                    .map_err(|e| failed("preserving permissions for", &e))?;
            } else if let Some(mode) = mode {
                node.set_mode(*mode).map_err(|e| failed("failed to preserve permissions for", &e))?;
            }
        }
        Ok(())
    }
}

/// The directories that a path leads through, outermost first: `a`, `a/b` for `a/b/c`.
fn leading(path: &Path) -> impl Iterator<Item = &Path> {
    let bytes = names::without_slashes(path).as_os_str().as_bytes();
    let ends = (1..bytes.len()).filter(move |&i| bytes[i] == b'/' && bytes[i - 1] != b'/');
    ends.map(move |end| Path::new(OsStr::from_bytes(&bytes[..end])))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_path_leads_through_its_directories() {
        let parts = |path: &'static str| {
            super::leading(path.as_ref()).map(|p| p.to_str().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(parts("a/b//c/"), "a a/b");
        assert_eq!(parts("/x/y"), "/x");
        assert_eq!(parts("d/../a"), "d d/..");
        assert_eq!(parts("a"), "");
    }
}
