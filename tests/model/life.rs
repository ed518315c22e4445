//! Groups, snapshots, and the ways back.

use std::path::PathBuf;
use std::sync::Arc;

use clonefs::engine::pool::{CloneOptions, Member};
use clonefs::engine::volume::Volume;

use super::ops::{Name, Op};
use super::oracle::{Outcome, differ};
use super::world::{Done, World, file_name, text, unless_refused};

/// What every snapshot is called.
const NAME: &str = "s";

impl World {
    /// Clones two volumes as of one moment.
    pub fn group(&mut self, from: [Name; 2], to: [Name; 2]) -> Outcome<Done> {
        let sources = [self.volume(from[0])?, self.volume(from[1])?];
        let targets = [self.create(to[0])?, self.create(to[1])?];
        let members: Vec<Member> = sources
            .into_iter()
            .zip(targets)
            .map(|(source, target)| Member { source, target, options: CloneOptions::default() })
            .collect();
        let done = unless_refused(self.pool().clone_group(&members))?;
        if done == Done::Refused {
            // The whole group is, and the files stay empty.
            to.into_iter().for_each(|name| self.oracle.create(name));
        }
        Ok(done)
    }

    /// Makes snapshots of some volumes, of one moment.
    pub fn snapshot(&mut self, names: &[Name]) -> Outcome<Done> {
        let mut volumes: Vec<(Arc<Volume>, PathBuf)> = Vec::new();
        for name in names {
            volumes.push((self.volume(*name)?, file_name(*name)));
        }
        unless_refused(self.pool().create_snapshots(&volumes, NAME, None))
    }

    pub fn remove_snapshot(&mut self, name: Name) -> Outcome {
        let id = self.pool().find_snapshot(&file_name(name), NAME).ok_or("the snapshot is gone")?;
        self.pool().remove_snapshot(id).map_err(text)
    }

    /// The volume of a name, which nobody has open.
    fn shut(&mut self, name: Name) -> Outcome<Arc<Volume>> {
        self.close_all();
        let pool = self.pool();
        let stat = pool.fs().stat(&file_name(name)).map_err(text)?;
        pool.volume(stat.key, &file_name(name)).map_err(text)
    }

    pub fn roll_back(&mut self, name: Name) -> Outcome<Done> {
        let volume = self.shut(name)?;
        let id = self.pool().find_snapshot(&file_name(name), NAME).ok_or("the snapshot is gone")?;
        unless_refused(self.pool().roll_back(&volume, id))
    }

    /// It is refused where the volume does not read from that any more.
    pub fn reset(&mut self, name: Name) -> Outcome<Done> {
        let volume = self.shut(name)?;
        let done = unless_refused(self.pool().reset(&volume, None))?;
        if done == Done::Yes {
            let mut now = vec![0xaa; volume.size().map_err(text)? as usize];
            volume.read(0, &mut now).map_err(text)?;
            self.oracle.was_reset(name, now)?;
        }
        Ok(done)
    }

    /// Every snapshot shows what it showed when it was made.
    pub fn compare_snapshots(&self) -> Outcome {
        for (name, expect) in &self.oracle.snapshots {
            let pool = self.pool();
            let id = pool.find_snapshot(&file_name(*name), NAME).ok_or(format!("the snapshot of v{name} is gone"))?;
            let volume = pool.volume_by_id(id).map_err(text)?.ok_or("a snapshot has no volume")?;
            let mut bytes = vec![0xaa; expect.len() + 10];
            let got = volume.read(0, &mut bytes).map_err(text)?;
            differ(&format!("the snapshot of v{name}"), &bytes[..got], expect)?;
        }
        Ok(())
    }

    pub fn remove_snapshots(&mut self) -> Outcome {
        for name in self.oracle.snapshots.keys().copied().collect::<Vec<_>>() {
            self.apply(&Op::RemoveSnapshot(name))?;
        }
        Ok(())
    }
}
