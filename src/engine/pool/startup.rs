//! The start: what a crash left over is removed, and what was changed without clonefs is found.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::Path;

use super::Pool;
use super::stub::{self, Mark};
use crate::engine::io::{FileKey, Open, Stat};
use crate::engine::layer::unsynced;
use crate::engine::store::record::{Change, LayerRecord, Stamp, VolumeRecord};
use crate::engine::store::{LAYERS, STUBS, TMP, data_path, map_path, stub_path};
use crate::error::{Context, Result};
use crate::protocol::Trouble;
use crate::units::Id;

impl Pool {
    pub(super) fn start_up(&self) -> Result<()> {
        self.look_elsewhere();
        self.look_for_past();
        self.probe()?;
        for problem in self.env.store.damage() {
            self.add_trouble(".clonefs", problem.clone(), "run `clonefs check --repair` on the unmounted pool");
        }
        if self.env.store.pool_id().is_none() {
            return Ok(());
        }
        let sound = self.env.store.damage().is_empty() && !self.options.read_only;
        if sound {
            self.sweep(TMP, |_| false)?;
            self.sweep_snapshots()?;
            self.drop_exchanged_stubs()?;
            self.drop_old_links()?;
        }
        let gone = self.index_stubs()?;
        if !self.env.store.damage().is_empty() {
            self.name_lost_volumes()?;
        }
        self.check_stamps()?;
        if !sound {
            // What follows, if anything, is not what it was noted for.
            return if self.options.read_only { Ok(()) } else { unsynced::discard(self.env.fs.as_ref()) };
        }
        self.release_orphans()?;
        if !gone.is_empty() {
            // That these names are gone must be durable before anything else is.
            self.env.fs.sync_fs().context("sync filesystem", "")?;
            let number = self.env.store.commit(gone.iter().map(|id| Change::DropVolume(*id)).collect())?;
            self.env.store.sync(number)?;
        }
        self.bind_old_snapshots()?;
        self.settle_debts()?;
        self.describe_stubs();
        self.reap_dead()?;
        self.sweep_layers()?;
        let ids: HashSet<String> = self.env.store.catalogue().volumes().map(|v| v.id.to_string()).collect();
        self.sweep(STUBS, |name| ids.contains(name))
    }

    pub(super) fn add_trouble(&self, path: impl Into<String>, problem: String, remedy: &str) {
        let trouble = Trouble { path: path.into(), problem, remedy: remedy.into() };
        self.findings.lock().troubles.push(trouble);
    }

    /// Finds out whether clones can be made here.
    fn probe(&self) -> Result<()> {
        if self.options.read_only {
            let _ = self.cannot_clone.set("the pool is read-only".into());
            return Ok(());
        }
        let info = self.env.fs.info().context("look at filesystem", "")?;
        let lacks = match info.type_name() {
            "vfat" | "exfat" => Some("hard links and extended attributes"),
            // Asking for one that is not there tells, and changes nothing.
            _ => match self.env.fs.get_xattr(Path::new(""), &stub::XATTR.into()) {
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Some("extended attributes of users"),
                _ => None,
            },
        };
        if let Some(lacks) = lacks {
            let _ = self.cannot_clone.set(format!("the backing filesystem ({}) has no {lacks}", info.type_name()));
        }
        let _ = self.reflink.set(matches!(info.type_name(), "xfs" | "btrfs" | "bcachefs"));
        Ok(())
    }

    /// A file that was cloned into twice can have the link of the volume that it was before as well, if a crash brought
    /// that back. It must be gone before links are counted.
    fn drop_old_links(&self) -> Result<()> {
        let entries = self.env.fs.list(Path::new(STUBS)).context("list stubs", STUBS)?;
        let known = |name: &OsStr| {
            let id = name.to_str().and_then(|name| name.parse::<Id>().ok());
            id.is_some_and(|id| self.env.store.catalogue().volume(id).is_some())
        };
        let (named, old): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| known(&entry.name));
        if old.is_empty() {
            return Ok(());
        }
        let key = |name: &OsStr| self.env.fs.stat(&Path::new(STUBS).join(name)).map(|stat| stat.key);
        let stubs: HashSet<FileKey> = named.iter().filter_map(|entry| key(&entry.name).ok()).collect();
        for entry in old {
            let path = Path::new(STUBS).join(&entry.name);
            if stubs.contains(&key(&entry.name).context("look at stub", &path)?) {
                self.env.fs.unlink(&path).context("remove stub", path)?;
            }
        }
        Ok(())
    }

    /// A crash in the middle of finishing a volume leaves its stub where its data was. The file of data has the user's
    /// name by then, so nothing but that name of the stub's is left of the volume.
    fn drop_exchanged_stubs(&self) -> Result<()> {
        let stubs = self.env.fs.list(Path::new(STUBS)).context("list stubs", STUBS)?;
        let numbers: HashSet<u64> = stubs.iter().map(|entry| entry.ino).collect();
        for entry in self.env.fs.list(Path::new(LAYERS)).context("list layers", LAYERS)? {
            if !numbers.contains(&entry.ino) {
                continue;
            }
            let path = Path::new(LAYERS).join(&entry.name);
            let key = self.env.fs.stat(&path).context("look at layer", &path)?.key;
            let is_stub = |stub: &&crate::engine::io::DirEntry| {
                stub.ino == entry.ino
                    && self.env.fs.stat(&Path::new(STUBS).join(&stub.name)).is_ok_and(|s| s.key == key)
            };
            if stubs.iter().find(is_stub).is_some() {
                self.env.fs.unlink(&path).context("remove stub", path)?;
            }
        }
        Ok(())
    }

    /// Learns the inode of each volume's stub. Returns the volumes whose stub the user has deleted, or that were never
    /// durable.
    fn index_stubs(&self) -> Result<Vec<Id>> {
        let records: Vec<VolumeRecord> = self.env.store.catalogue().volumes().cloned().collect();
        let mut gone = Vec::new();
        for record in records {
            let path = stub_path(record.id);
            match self.env.fs.stat(&path) {
                Ok(stat) if stat.nlink >= 2 => {
                    self.mark_again(&record)?;
                    self.strip_snapshot(&record, stat.mode)?;
                    self.tables.lock().stubs.insert(stat.key, record.id);
                }
                Ok(_) => gone.push(record.id),
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                    if !self.link_again(&record)? {
                        self.stub_is_missing(&record, &mut gone);
                    }
                }
                Err(e) => self.add_trouble(record.path, format!("its stub cannot be read: {e}"), "check the disk"),
            }
        }
        Ok(gone)
    }

    /// Gives a stub that is where it was last seen, and says of itself what it is, its link back.
    fn link_again(&self, record: &VolumeRecord) -> Result<bool> {
        let sound = self.env.store.damage().is_empty() && !self.options.read_only;
        let Some(pool) = self.env.store.pool_id().filter(|_| sound && !record.path.is_empty()) else {
            return Ok(false);
        };
        let path = Path::new(&record.path);
        let Ok(file) = self.env.fs.open(path, Open::Read) else { return Ok(false) };
        if stub::marked_as(file.as_ref(), pool) != Some(record.id) {
            return Ok(false);
        }
        let link = stub_path(record.id);
        // The file that was looked at, whatever the path leads to by now.
        file.link_to(&link).context("link stub", &link)?;
        self.env.fs.sync_dir(Path::new(STUBS)).context("sync stubs directory", STUBS)?;
        let key = self.env.fs.stat(&link).context("look at stub", &link)?.key;
        self.tables.lock().stubs.insert(key, record.id);
        Ok(true)
    }

    /// A crash can take the mark of a stub, or bring back that of a volume that it was before, and leave its names and
    /// its record.
    fn mark_again(&self, record: &VolumeRecord) -> Result<()> {
        let path = stub_path(record.id);
        let pool = self.env.store.pool_id().filter(|_| self.env.store.damage().is_empty() && !self.options.read_only);
        let Some(pool) = pool else { return Ok(()) };
        match self.env.fs.get_xattr(&path, &stub::XATTR.into()) {
            Ok(value) if self.is_outdated(&value, pool) => {}
            Err(e) if e.raw_os_error() == Some(libc::ENODATA) => {}
            _ => return Ok(()),
        }
        let file = self.env.fs.open(&path, Open::Write).context("open stub", &path)?;
        stub::mark(file.as_ref(), pool, record.id)?;
        file.sync_all().context("sync stub", path)
    }

    /// Whether a mark is that of a volume of this pool which is no more.
    fn is_outdated(&self, value: &[u8], pool: Id) -> bool {
        let Mark::Ours(id) = Mark::parse(value, Some(pool)) else { return false };
        self.env.store.catalogue().volume(id).is_none()
    }

    /// No link: a clone that a crash took back, or a volume that was just finished. With data of its own that is not
    /// in the tree, neither can be, and its bytes must not be thrown away.
    fn stub_is_missing(&self, record: &VolumeRecord, gone: &mut Vec<Id>) {
        let data = self.env.fs.stat(&data_path(record.file)).is_ok();
        let map = self.env.fs.stat(&map_path(record.file)).is_ok_and(|s| s.size > crate::engine::store::log::HEADER);
        if data && (map || record.complete) {
            let problem = format!("its stub is missing; its data is in {:?}", data_path(record.file));
            self.add_trouble(record.path.clone(), problem, "run `clonefs check --repair` on the unmounted pool");
        } else {
            gone.push(record.id);
        }
    }

    /// Compares the files that clones are read from, and that users can reach, with what they were.
    fn check_stamps(&self) -> Result<()> {
        let records: Vec<LayerRecord> = self.env.store.catalogue().layers().filter(|l| l.complete).cloned().collect();
        for record in records {
            // Nobody reads it: it is about to be dropped, and its file may be gone already.
            if self.env.store.catalogue().heir_count(record.id) == 0 {
                continue;
            }
            let path = data_path(record.file);
            let stat = match self.env.fs.stat(&path) {
                Ok(stat) => stat,
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) && self.never_durable(&record) => {
                    self.take_back(&record)?;
                    continue;
                }
                Err(e) => {
                    self.findings.lock().changed.insert(record.id);
                    self.add_trouble(path.to_string_lossy(), format!("cannot be read: {e}"), "restore it");
                    continue;
                }
            };
            match &record.stamp {
                Some(stamp) if stamp.matches(&stat) => {
                    self.tables.lock().shared.insert(stat.key, record.id);
                }
                Some(_) if self.never_durable(&record) => self.take_back(&record)?,
                Some(_) => self.report_changed(&record, stat.key),
                // Frozen by a record that is durable, and not yet renamed when the power went: it is the user's again.
                None if stat.nlink > 1 => self.stamp_again(record, &stat)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Whether the machine lost power before anything that reads this layer was synced, so that what reads it
    /// can be taken back.
    fn never_durable(&self, record: &LayerRecord) -> bool {
        let sound = self.env.store.damage().is_empty() && !self.options.read_only;
        sound && record.stamp.as_ref().is_some_and(|stamp| stamp.lost(&self.env.fs.boot_id()))
    }

    fn report_changed(&self, record: &LayerRecord, _key: FileKey) {
        let readers: Vec<(Id, String)> = {
            let catalogue = self.env.store.catalogue();
            let shown = |id| catalogue.volume(id).map(|volume| (id, volume.shown()));
            catalogue.heirs(record.id).filter_map(shown).collect()
        };
        let mut findings = self.findings.lock();
        findings.changed.insert(record.id);
        for (id, path) in readers {
            let problem = "the file it was cloned from was changed without clonefs; its blocks give EIO".into();
            let remedy =
                "restore that file, delete this clone, or take it as it is (`clonefs check --repair --accept`)";
            findings.of_volumes.push((id, Trouble { path, problem, remedy: remedy.into() }));
        }
    }

    /// The machine lost power before the source of a clone was synced, and the source is not what it was: the clone
    /// was never durable, and is taken back.
    fn take_back(&self, record: &LayerRecord) -> Result<()> {
        let mut layers = vec![record.id];
        let mut changes = Vec::new();
        while let Some(layer) = layers.pop() {
            let heirs: Vec<Id> = self.env.store.catalogue().heirs(layer).collect();
            for heir in heirs {
                if self.env.store.catalogue().volume(heir).is_some() {
                    self.reset_stub(heir)?;
                    changes.push(Change::DropVolume(heir));
                } else {
                    layers.push(heir);
                }
            }
            changes.push(Change::DropLayer(layer));
        }
        self.env.store.commit(changes)?;
        let committed = self.env.store.committed();
        self.env.store.sync(committed)
    }

    fn stamp_again(&self, mut record: LayerRecord, stat: &Stat) -> Result<()> {
        let (seconds, nanos) = (stat.mtime.seconds, stat.mtime.nanos);
        record.stamp = Some(Stamp { size: stat.size, seconds, nanos, firm: true, boot: self.env.fs.boot_id() });
        self.tables.lock().shared.insert(stat.key, record.id);
        if !self.options.read_only && self.env.store.damage().is_empty() {
            self.env.store.commit(vec![Change::Layer(record)])?;
        }
        Ok(())
    }

    /// A daemon that was killed took with it what its volumes owed: everything becomes durable now, so that they owe
    /// nothing, and files that are still what they were when they were cloned are known to be so.
    fn settle_debts(&self) -> Result<()> {
        if self.env.store.catalogue().volume_count() == 0 {
            return Ok(());
        }
        self.env.fs.sync_fs().context("sync filesystem", "")?;
        self.replay_unsynced()?;
        let changed = self.findings.lock().changed.clone();
        self.env.store.commit_with(|catalogue| {
            let loose = |l: &&LayerRecord| l.stamp.as_ref().is_some_and(|s| !s.firm) && !changed.contains(&l.id);
            let firm = |mut record: LayerRecord| {
                record.stamp = record.stamp.map(|stamp| Stamp { firm: true, ..stamp });
                Change::Layer(record)
            };
            catalogue.layers().filter(loose).cloned().map(firm).collect()
        })?;
        Ok(())
    }

    /// Writes the texts that a daemon before did not come to write: whoever looks at the pool without clonefs would take
    /// the stubs for empty images. All of it was just made durable, so each file is the stub that its record says.
    fn describe_stubs(&self) {
        let records: Vec<(Id, u64)> = self.env.store.catalogue().volumes().map(|v| (v.id, v.size)).collect();
        let (Some(pool), fs) = (self.env.store.pool_id(), &self.env.fs) else { return };
        for (id, size) in records {
            let path = stub_path(id);
            if !fs.stat(&path).is_ok_and(|stat| (stat.size == 0 || stat.size > stub::MAX_STUB) && stat.nlink >= 2) {
                continue;
            }
            // A failure costs the hint.
            if let Ok(file) = fs.open(&path, Open::Write)
                && stub::marked_as(file.as_ref(), pool) == Some(id)
            {
                let _ = stub::describe(file.as_ref(), id, size);
            }
        }
    }

    /// Links to stubs that no record names: clones that a crash took back. Their files are empty files again.
    fn release_orphans(&self) -> Result<()> {
        for entry in self.env.fs.list(Path::new(STUBS)).context("list stubs", STUBS)? {
            let id = entry.name.to_str().and_then(|n| n.parse::<Id>().ok());
            if let Some(id) = id.filter(|id| self.env.store.catalogue().volume(*id).is_none()) {
                self.reset_stub(id)?;
            }
        }
        Ok(())
    }

    /// Makes a stub whose volume never was an ordinary empty file, and removes its link.
    fn reset_stub(&self, id: Id) -> Result<()> {
        let path = stub_path(id);
        let file = match self.env.fs.open(&path, Open::Write) {
            Ok(file) => file,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(e) => return Err(crate::error::Error::io("open stub", e).at(path)),
        };
        let stat = file.stat().context("look at stub", &path)?;
        // The link can be left from a volume that this file was the stub of before it became another's.
        let other = self.tables.lock().stubs.get(&stat.key).is_some_and(|known| *known != id);
        if stat.nlink > 1 && !other {
            let mark = stub::mark_of(file.as_ref(), self.env.store.pool_id()).context("read mark of stub", &path)?;
            let text = || stub::holds_text(file.as_ref()).context("read stub", &path);
            if stat.size > 0 && mark != Mark::None && text()? {
                // Durably, before mark and link go: what is left without them passes for a user's file.
                file.set_len(0).and_then(|()| file.sync_data()).context("empty stub", &path)?;
            }
            stub::unmark(file.as_ref());
            self.tables.lock().stubs.remove(&stat.key);
        }
        self.env.fs.unlink(&path).context("remove stub", path)
    }

    /// Removes files of layers that no record names.
    fn sweep_layers(&self) -> Result<()> {
        let files: HashSet<String> = {
            let catalogue = self.env.store.catalogue();
            let all = catalogue.layers().map(|l| l.file).chain(catalogue.volumes().map(|v| v.file));
            all.map(|id| id.to_string()).collect()
        };
        self.sweep(LAYERS, |name| name.split_once('.').is_some_and(|(id, _)| files.contains(id)))
    }
}

impl Stamp {
    /// Whether it is from before a power loss, of a file that was not durable then.
    pub(super) fn lost(&self, boot: &str) -> bool {
        !self.firm && self.boot != boot
    }

    pub(super) fn matches(&self, stat: &Stat) -> bool {
        (self.size, self.seconds, self.nanos) == (stat.size, stat.mtime.seconds, stat.mtime.nanos)
    }
}
