//! Groups, snapshots, and the ways back.

use std::path::PathBuf;
use std::sync::Arc;

use clonefs::pool::{CloneOptions, Member};
use clonefs::volume::Volume;

use super::ops::Name;
use super::world::{Outcome, World, differ, file_name, text};

/// What every snapshot is called.
const NAME: &str = "s";

impl World {
    /// Clones two volumes as of one moment.
    pub fn group(&mut self, from: [Name; 2], to: [Name; 2]) -> Outcome {
        let sources = [self.volume(from[0])?, self.volume(from[1])?];
        let targets = [self.create(to[0])?, self.create(to[1])?];
        let members: Vec<Member> = sources
            .into_iter()
            .zip(targets)
            .map(|(source, target)| Member { source, target, options: CloneOptions::default() })
            .collect();
        match self.pool().clone_group(&members) {
            // A file of several names can only be copied: then the whole group is refused, and the files stay empty.
            Err(e) if e.errno() == libc::EOPNOTSUPP => return Ok(()),
            other => other.map_err(text)?,
        }
        for (from, to) in from.into_iter().zip(to) {
            let bytes = self.bytes(from);
            self.bases.insert(to, bytes.clone());
            self.edit(to, |b| *b = bytes);
        }
        Ok(())
    }

    /// Makes snapshots of some volumes, of one moment.
    pub fn snapshot(&mut self, names: &[Name]) -> Outcome {
        let mut volumes: Vec<(Arc<Volume>, PathBuf)> = Vec::new();
        for name in names {
            volumes.push((self.volume(*name)?, file_name(*name)));
        }
        match self.pool().create_snapshots(&volumes, NAME, None) {
            Err(e) if e.errno() == libc::EOPNOTSUPP => return Ok(()),
            other => other.map_err(text)?,
        }
        for name in names {
            let bytes = self.bytes(*name);
            self.snapshots.insert(*name, bytes);
        }
        Ok(())
    }

    pub fn remove_snapshot(&mut self, name: Name) -> Outcome {
        let id = self.pool().find_snapshot(&file_name(name), NAME).ok_or("the snapshot is gone")?;
        self.snapshots.remove(&name);
        self.pool().remove_snapshot(id).map_err(text)
    }

    /// The volume of a name, which nobody has open.
    fn shut(&mut self, name: Name) -> std::result::Result<Arc<Volume>, String> {
        self.close_all();
        let pool = self.pool();
        let stat = pool.fs().stat(&file_name(name)).map_err(text)?;
        pool.volume(stat.key, &file_name(name)).map_err(text)
    }

    pub fn roll_back(&mut self, name: Name) -> Outcome {
        let volume = self.shut(name)?;
        let id = self.pool().find_snapshot(&file_name(name), NAME).ok_or("the snapshot is gone")?;
        match self.pool().roll_back(&volume, id) {
            // It has several names.
            Err(e) if e.errno() == libc::EOPNOTSUPP => return Ok(()),
            other => other.map_err(text)?,
        }
        let bytes = self.snapshots[&name].clone();
        self.edit(name, |b| *b = bytes);
        Ok(())
    }

    pub fn reset(&mut self, name: Name) -> Outcome {
        let volume = self.shut(name)?;
        match self.pool().reset(&volume, None) {
            // It does not read from that any more.
            Err(e) if e.errno() == libc::EOPNOTSUPP => return Ok(()),
            other => other.map_err(text)?,
        }
        let bytes = self.bases.get(&name).cloned().ok_or("it was reset to what it never was")?;
        self.edit(name, |b| *b = bytes);
        Ok(())
    }

    /// Every snapshot shows what it showed when it was made.
    pub fn compare_snapshots(&self) -> Outcome {
        for (name, expect) in &self.snapshots {
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
        for name in self.snapshots.keys().copied().collect::<Vec<_>>() {
            self.remove_snapshot(name)?;
        }
        Ok(())
    }
}
