//! Whether a file can do without its place in the tree later: what a freeze and a finish will need is tried before a clone
//! is made, on that file, for that directory. Nothing of it stays.
//!
//! A plain file with clones gives its name to a stub with the first write, and a volume that is complete gives the name of
//! its stub to its data file. Both fail where the directory takes no such file (a project of its own, chattr, encryption, no
//! right to it), and the first also where the stub's mark has no room beside the attributes. All of that can change later,
//! so a freeze that fails has another way out, see `detach`.

use std::io;
use std::path::{Path, PathBuf};

use super::{Pool, stub};
use crate::engine::io::{File, FileRef, Open, Stat};
use crate::engine::store::{DIR, LAYERS, SNAPSHOTS, STUBS, TMP, new_id, tmp_path};
use crate::engine::volume::{State, Volume};
use crate::error::{Context, Error, Kind, Result};

/// Why a file can be copied only.
#[derive(Clone, Debug)]
pub(super) struct Unfit(pub String);

impl Unfit {
    /// The refusal of `doing` for this reason.
    pub(super) fn error(&self, doing: &'static str, volume: &Volume) -> Error {
        let remedy = "a copy needs no more than the file: cp --reflink=never";
        Error::new(Kind::Unsupported, doing).at(volume.path()).because(self.0.clone()).remedy(remedy)
    }
}

impl Pool {
    /// Why a plain file that has no clones yet could not be frozen; `None`: it could, or need not be.
    pub(super) fn unfit_source(&self, volume: &Volume) -> Result<Option<Unfit>> {
        let file = match &*volume.gate().read() {
            State::Plain(plain) if plain.shared.is_none() => plain.file.clone(),
            _ => return Ok(None),
        };
        let stat = file.stat().context("look at source", volume.path())?;
        let project = match self.check_directory(&self.directory_of(volume), &stat) {
            Err(unfit) => return Ok(Some(unfit)),
            Ok(project) => project,
        };
        let attributes = !file.list_xattr().unwrap_or_default().is_empty();
        let anybody = rustix::process::geteuid().is_root();
        if !attributes && anybody && project.is_none() {
            // Owner, mode and times of a file can be given to any other, and the mark has room.
            return Ok(None);
        }
        self.try_stub(Some(&file), project, volume)
    }

    /// Why a file could not be finished where it is, were it a clone.
    pub(super) fn unfit_target(&self, volume: &Volume) -> Result<Option<Unfit>> {
        let Some(file) = volume.file() else { return Ok(None) };
        let stat = file.stat().context("look at destination", volume.path())?;
        match self.check_directory(&self.directory_of(volume), &stat) {
            Err(unfit) => Ok(Some(unfit)),
            Ok(None) => Ok(None),
            project => self.try_stub(None, project.unwrap_or_default(), volume),
        }
    }

    fn directory_of(&self, volume: &Volume) -> PathBuf {
        let known = self.names().and_then(|names| names.path_of(volume.key()));
        known.unwrap_or_else(|| volume.path()).parent().map(Path::to_path_buf).unwrap_or_default()
    }

    /// Whether files of the pool can take the place of this one in its directory, and the project that they must have.
    fn check_directory(&self, directory: &Path, stat: &Stat) -> std::result::Result<Option<u32>, Unfit> {
        let fs = &self.env.fs;
        // What is not known is no reason: a directory that was just renamed, say.
        let Ok(demands) = fs.demands(directory) else { return Ok(None) };
        let unfit = |why: String| Err(Unfit(format!("its directory {directory:?} {why}")));
        if let Some(errno) = demands.refused {
            let error = io::Error::from_raw_os_error(errno);
            return unfit(format!("cannot be changed by this daemon ({error}), and a clone changes it later"));
        }
        if demands.immutable || demands.append_only {
            let flag = if demands.immutable { "+i" } else { "+a" };
            return unfit(format!("takes no other file in its place (chattr {flag})"));
        }
        if demands.policy.is_some() && fs.demands(Path::new(LAYERS)).is_ok_and(|ours| ours.policy != demands.policy) {
            return unfit("is encrypted, and the pool's own files are not encrypted so".to_owned());
        }
        let me = rustix::process::geteuid();
        let sticky = !me.is_root() && stat.uid != me.as_raw();
        if sticky && fs.stat(directory).is_ok_and(|of| of.mode & libc::S_ISVTX != 0 && of.uid != me.as_raw()) {
            return unfit("is sticky, and the file is another user's than the daemon's".to_owned());
        }
        Ok(demands.project)
    }

    /// Makes what a freeze would make of `like`, and removes it. A lack of room that passes is not the file's, and so what
    /// fails is tried once more.
    fn try_stub(&self, like: Option<&FileRef>, project: Option<u32>, volume: &Volume) -> Result<Option<Unfit>> {
        match self.try_stub_once(like, project, volume)? {
            Some(_) => self.try_stub_once(like, project, volume),
            None => Ok(None),
        }
    }

    fn try_stub_once(&self, like: Option<&FileRef>, project: Option<u32>, volume: &Volume) -> Result<Option<Unfit>> {
        let (fs, path) = (&self.env.fs, tmp_path());
        let pool = self.env.store.pool_id().ok_or_else(|| Error::new(Kind::Damaged, "make stub"))?;
        let made = fs.open(&path, Open::CreateNew(0o600)).context("make stub", &path)?;
        let what = std::cell::Cell::new("it");
        let tried = (|| {
            if let Some(file) = like {
                what.set("its owner and attributes cannot be given to another file");
                stub::copy_attributes(file.as_ref(), made.as_ref())?;
                what.set("its attributes leave no room for the mark that a file with clones needs");
                stub::mark(made.as_ref(), pool, new_id()).map_err(io_error)?;
            }
            what.set("its directory wants a project, which no file can be given");
            project.map_or(Ok(()), |project| made.set_project(project))
        })();
        let _ = fs.unlink(&path);
        match tried {
            Ok(()) => Ok(None),
            Err(error) if is_lasting(&error) => Ok(Some(Unfit(format!("{}: {error}", what.get())))),
            Err(error) => Err(Error::io("try to make a stub for", error).at(volume.path())),
        }
    }

    /// Does `rename`, which gives `file` a name in `directory`. Where that takes files of its own project only, the file
    /// belongs to the project for as long as the rename takes.
    pub(super) fn in_project(
        &self,
        file: &dyn File,
        directory: &Path,
        rename: &dyn Fn() -> io::Result<()>,
    ) -> io::Result<()> {
        match rename() {
            Err(error) if error.raw_os_error() == Some(libc::EXDEV) => {
                let Some(project) = self.env.fs.demands(directory)?.project else { return Err(error) };
                let before = file.project()?;
                file.set_project(project)?;
                let renamed = rename();
                // A failure of it leaves the file with the directory's project, where it may be in any case.
                let _ = file.set_project(before);
                renamed
            }
            other => other,
        }
    }

    /// Gives an open file one more name among the pool's own files. These may have got a project from the pool's root, as
    /// new directories do.
    pub(super) fn link_in(&self, file: &dyn File, to: &Path) -> io::Result<()> {
        match file.link_to(to) {
            Err(error) if error.raw_os_error() == Some(libc::EXDEV) => {
                let fs = &self.env.fs;
                if fs.demands(to.parent().unwrap_or(Path::new("")))?.project.is_none() {
                    return Err(error);
                }
                // The one that holds the others first: files are renamed from these to it.
                for directory in [DIR, LAYERS, STUBS, SNAPSHOTS, TMP] {
                    match fs.take_any_project(Path::new(directory)) {
                        Err(e) if e.raw_os_error() != Some(libc::ENOENT) => return Err(e),
                        _ => {}
                    }
                }
                file.link_to(to)
            }
            other => other,
        }
    }
}

/// The system's error below one of ours.
fn io_error(error: Error) -> io::Error {
    io::Error::from_raw_os_error(error.os_error().unwrap_or(libc::EIO))
}

/// Whether it would be the same the next time: the fault is not the disk's, but what the file or its directory is like.
pub(super) fn is_lasting(error: &io::Error) -> bool {
    let lasting = [
        libc::EXDEV,
        libc::EPERM,
        libc::EACCES,
        libc::EROFS,
        libc::ENOSPC,
        libc::EDQUOT,
        libc::E2BIG,
        libc::ERANGE,
        libc::EMLINK,
        libc::EINVAL,
        libc::EOPNOTSUPP,
        libc::ENOTTY,
    ];
    error.raw_os_error().is_some_and(|errno| lasting.contains(&errno))
}
