//! Clones, groups, snapshots, and the ways back, by the library that the command uses.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::rc::Rc;

use clonefs::client::{self, CloneOptions, Directory, SnapshotName, Source, Staged, Target, clone_file};
use clonefs::error::{Error, Kind};

use super::ops::{Name, Op};
use super::oracle::{Outcome, differ};
use super::world::{Done, World, text};

/// What every snapshot is called.
const NAME: &str = "s";

/// What is refused for a reason is not done, and no error.
fn unless_refused(result: Result<(), Error>) -> Outcome<Done> {
    match result {
        Ok(()) => Ok(Done::Yes),
        Err(e) if e.kind() == Kind::Unsupported || e.os_error() == Some(libc::EOPNOTSUPP) => Ok(Done::Refused),
        Err(e) => Err(text(e)),
    }
}

impl World<'_> {
    fn target(&self, directory: &Rc<Directory>, name: Name) -> Target {
        let name = self.path(name).file_name().unwrap_or_default().to_owned();
        Target { dir: directory.clone(), name, replace: false }
    }

    pub fn clone(&mut self, from: Name, to: Name, grow: u64) -> Outcome {
        let source = Source::open(&self.path(from)).map_err(text)?;
        let directory = Directory::open(&self.directory).map_err(text)?;
        let options = CloneOptions { size: Some(source.size() + grow), ..CloneOptions::default() };
        let draft = clone_file(&source, &self.target(&directory, to), &options, &mut |_, _| Ok(())).map_err(text)?;
        draft.publish(false).map(drop).map_err(text)
    }

    /// Clones two volumes as of one moment. Nothing is left of it if that is refused.
    pub fn group(&mut self, from: [Name; 2], to: [Name; 2]) -> Outcome<Done> {
        let directory = Directory::open(&self.directory).map_err(text)?;
        let open = |name: Name| Source::open(&self.path(name)).map_err(text);
        let sources = [open(from[0])?, open(from[1])?];
        let targets = to.map(|name| self.target(&directory, name));
        let members: Vec<_> =
            sources.iter().zip(&targets).map(|(source, target)| (source, target, CloneOptions::default())).collect();
        let make = || {
            let mut staged = Staged::new(&members)?;
            staged.commit()?;
            staged.finish()?.into_iter().try_for_each(|draft| draft.publish(false).map(drop))
        };
        unless_refused(make())
    }

    pub fn snapshot(&mut self, names: &[Name]) -> Outcome<Done> {
        let paths: Vec<PathBuf> = names.iter().map(|name| self.path(*name)).collect();
        // Those of a volume of several names stand under the name that was seen last, which only the daemon knows.
        if paths.iter().any(|path| std::fs::metadata(path).is_ok_and(|status| status.nlink() > 1)) {
            return Ok(Done::Refused);
        }
        unless_refused(client::create_snapshots(&paths, NAME))
    }

    fn snapshot_of(&self, name: Name) -> SnapshotName {
        SnapshotName { volume: self.path(name), name: NAME.to_owned() }
    }

    pub fn remove_snapshot(&mut self, name: Name) -> Outcome {
        client::remove_snapshot(&self.snapshot_of(name)).map_err(text)
    }

    pub fn roll_back(&mut self, name: Name) -> Outcome<Done> {
        self.close_all();
        unless_refused(client::roll_back(&self.snapshot_of(name)))
    }

    /// It is refused where the volume does not read from that any more.
    pub fn reset(&mut self, name: Name) -> Outcome<Done> {
        self.close_all();
        let done = unless_refused(client::reset(&self.path(name)))?;
        if done == Done::Yes {
            self.oracle.was_reset(name, std::fs::read(self.path(name)).map_err(text)?)?;
        }
        Ok(done)
    }

    /// Every snapshot shows what it showed when it was made.
    pub fn compare_snapshots(&self) -> Outcome {
        for (name, expect) in &self.oracle.snapshots {
            let place = self.snapshot_of(*name).find().map_err(text)?;
            let bytes = std::fs::read(place).map_err(|e| format!("the snapshot of v{name}: {e}"))?;
            differ(&format!("the snapshot of v{name}"), &bytes, expect)?;
        }
        Ok(())
    }

    pub fn remove_snapshots(&mut self) -> Outcome {
        for name in self.oracle.snapshots.keys().copied().collect::<Vec<_>>() {
            self.remove_snapshot(name)?;
            self.oracle.done(&Op::RemoveSnapshot(name))?;
        }
        Ok(())
    }
}
