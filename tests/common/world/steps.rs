//! Operations of several steps, each noted in the model before the pool is asked.

use std::sync::Arc;

use clonefs::engine::io::{Open, Rename};
use clonefs::engine::pool::{CloneOptions, Member, Pool};
use clonefs::engine::volume::Volume;
use clonefs::units::Id;

use super::{SIZE, World};
use crate::common::ops::Name;
use crate::common::served::{Outcome, SNAPSHOT, contents, file_name, pattern, text, volume_at};

impl World {
    pub(super) fn write(&mut self, name: Name, offset: u64, len: usize) -> Outcome {
        let data = pattern(self.serial, offset, len);
        self.serial += 1;
        let before = self.model.now(name).expect("it is there").clone();
        self.edit(name, |bytes| put(bytes, offset as usize, &data));
        let volume = self.volume(name)?;
        let mut done = 0;
        loop {
            let written = volume.write_part(offset + done as u64, &data[done..], false).map_err(text);
            done += written.as_ref().map_or(0, |written| *written);
            if written.is_err() || done < len {
                self.only(name, &before, offset, &data[..done])?;
            }
            written?;
            if done == len {
                let number = self.model.get(name).expect("it is there");
                let whole = self.model.volumes[number].versions.last_mut().expect("it was just noted");
                put(whole, offset as usize, &data);
                return Ok(());
            }
        }
    }

    /// A write came so far and no further: nothing else may have changed (R13).
    fn only(&mut self, name: Name, before: &[u8], offset: u64, data: &[u8]) -> Outcome {
        let number = self.model.get(name).expect("it is there");
        let versions = &mut self.model.volumes[number].versions;
        let mut bytes = before.to_vec();
        if !data.is_empty() {
            put(&mut bytes, offset as usize, data);
        }
        *versions.last_mut().expect("it was just noted") = bytes;
        // While all calls fail nothing can be read.
        match contents(&*self.volume(name)?) {
            Ok(got) => self.expect(name, &got, "a write that failed or came short"),
            Err(_) => Ok(()),
        }
    }

    fn create(&mut self, name: Name) -> Outcome<Arc<Volume>> {
        let file = self.pool.fs().open(&file_name(name), Open::CreateNew(0o644)).map_err(text)?;
        let volume = self.pool.created(&file_name(name), file).map_err(text)?;
        volume.open_handle(true);
        self.open.insert(name, (volume.clone(), true));
        Ok(volume)
    }

    pub(super) fn clone(&mut self, from: Name, to: Name, sync: bool) -> Outcome {
        let versions = self.model.volumes[self.model.get(from).expect("it is there")].versions.clone();
        let source = self.open(from, false)?;
        let number = self.model.create(to, versions);
        self.model.volumes[number].base = Some(self.model.volumes[number].now().clone());
        let target = self.create(to)?;
        let options = CloneOptions { sync, ..CloneOptions::default() };
        self.pool.clone_volume(&source, &target, &options).map_err(text)
    }

    pub(super) fn group(&mut self) -> Outcome {
        let mut members = Vec::new();
        for (from, to) in [(0, 6), (1, 7)] {
            // Durable before it is there at all, so it can be nothing but what the source is now.
            let now = self.model.now(from).expect("it is there").clone();
            let source = self.open(from, false)?;
            let number = self.model.create(to, vec![now.clone()]);
            self.model.volumes[number].base = Some(now);
            self.model.group.push(number);
            members.push(Member { source, target: self.create(to)?, options: CloneOptions::default() });
        }
        self.pool.clone_group(&members).map_err(text)
    }

    pub(super) fn snapshot(&mut self, names: &[Name]) -> Outcome {
        let mut volumes = Vec::new();
        for name in names {
            let now = self.model.now(*name).expect("it is there").clone();
            volumes.push((self.open(*name, false)?, file_name(*name)));
            let number = self.model.create(SNAPSHOT + name, vec![now]);
            // Never seen half made.
            self.model.volumes[number].fresh = false;
            self.model.group.push(number);
        }
        self.pool.create_snapshots(&volumes, "s", None).map_err(text)
    }

    pub(super) fn reset(&mut self, name: Name) -> Outcome {
        let number = self.model.get(name).expect("it is there");
        let base = self.model.volumes[number].base.clone().expect("it is a clone");
        let now = self.model.now(name).expect("it is there").clone();
        self.edit(name, |bytes| *bytes = base);
        let volume = volume_at(&self.pool, &file_name(name))?;
        self.close_links(name);
        match self.pool.reset(&volume, None) {
            // It does not read from that any more.
            Err(e) if e.errno() == libc::EOPNOTSUPP => {
                self.edit(name, |bytes| *bytes = now);
                Ok(())
            }
            other => other.map_err(text),
        }
    }

    pub(super) fn clone_over(&mut self, from: Name, to: Name) -> Outcome {
        let (source, target) = (self.open(from, false)?, self.volume(to)?);
        self.edit(to, Vec::clear);
        target.set_size(0).map_err(text)?;
        for version in self.model.volumes[self.model.get(from).expect("it is there")].versions.clone() {
            self.edit(to, |bytes| *bytes = version);
        }
        // A reset goes back to this clone from now on.
        let number = self.model.get(to).expect("it is there");
        self.model.volumes[number].base = Some(self.model.volumes[number].now().clone());
        self.pool.clone_volume(&source, &target, &CloneOptions::default()).map_err(text)
    }

    pub(super) fn rename(&mut self, from: Name, to: Name) -> Outcome {
        let pool = self.pool.clone();
        let there = match pool.fs().stat(&file_name(to)) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => None,
            other => Some(other.map_err(text)?.key),
        };
        self.model.rename(from, to);
        pool.fs().rename(&file_name(from), &file_name(to), Rename::Replace).map_err(text)?;
        if let Some(key) = there {
            pool.removed(key);
        }
        self.close(to);
        if let Some(handle) = self.open.remove(&from) {
            handle.0.set_path(&file_name(to));
            self.open.insert(to, handle);
        }
        pool.reap_dead().map_err(text)
    }

    pub(super) fn copy(&mut self, from: Name, to: Name) -> Outcome {
        self.model.create(to, vec![Vec::new()]);
        let target = self.create(to)?;
        self.copy_pieces(from, to, &target)
    }

    /// Into a file that is there and keeps its size, if that is larger.
    pub(super) fn copy_into(&mut self, from: Name, to: Name) -> Outcome {
        let target = self.volume(to)?;
        self.copy_pieces(from, to, &target)
    }

    pub(super) fn blank(&mut self, name: Name) -> Outcome {
        let volume = self.volume(name)?;
        self.edit(name, Vec::clear);
        volume.set_size(0).map_err(text)?;
        self.edit(name, |bytes| bytes.resize(SIZE + 30_000, 0));
        volume.set_size(SIZE as u64 + 30_000).map_err(text)
    }

    pub(super) fn link(&mut self, from: Name, to: Name) -> Outcome {
        let volume = self.open(from, false)?;
        self.model.link(from, to);
        self.pool.before_link(&volume).map_err(text)?;
        self.pool.fs().link(&file_name(from), &file_name(to)).map_err(text)
    }

    /// A new file that was given its size: all zeros.
    pub(super) fn zeros(&mut self, name: Name) -> Outcome {
        self.model.create(name, vec![Vec::new()]);
        let target = self.create(name)?;
        self.edit(name, |bytes| bytes.resize(SIZE + 20_000, 0));
        target.set_size(SIZE as u64 + 20_000).map_err(text)
    }

    fn copy_pieces(&mut self, from: Name, to: Name, target: &Arc<Volume>) -> Outcome {
        let source_number = self.model.get(from).expect("it is there");
        let source = self.open(from, false)?;
        let number = self.model.get(to).expect("it is there");
        let size = self.model.volumes[source_number].now().len() as u64;
        let mut at = 0;
        while at < size {
            let len = (size - at).min(128 << 10);
            // What is shared is what the source will have after a crash.
            for version in self.model.volumes[source_number].versions.clone() {
                let mut bytes = self.model.volumes[number].now().clone();
                let part =
                    |v: &[u8]| v.get(at as usize..((at + len) as usize).min(v.len())).unwrap_or_default().to_vec();
                put(&mut bytes, at as usize, &part(&version));
                let end = bytes.len().max((at + len) as usize);
                bytes.resize(end, 0);
                self.model.volumes[number].push(bytes);
            }
            let done = self.pool.copy_range(&source, at, target, at, len).map_err(text)?;
            if done != len {
                return Err(format!("copied {done} bytes of {len}"));
            }
            at += len;
        }
        Ok(())
    }
}

pub(super) fn adopt_frozen(pool: &Arc<Pool>) -> Outcome {
    let ids: Vec<Id> = pool.store().catalogue().layers().map(|l| l.id).collect();
    for id in ids {
        if let Some(layer) = pool.frozen_layer(id).map_err(text)? {
            pool.adopt_frozen(&layer, &|| false).map_err(text)?;
        }
    }
    Ok(())
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if bytes.len() < offset + data.len() {
        bytes.resize(offset + data.len(), 0);
    }
    bytes[offset..offset + data.len()].copy_from_slice(data);
}
