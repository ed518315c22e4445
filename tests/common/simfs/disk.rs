//! What calls do to the state: contents, names, durability, space.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path};
use std::sync::Arc;

use clonefs::engine::io::{FileKey, Stat, Timestamp};

use super::image::{Attr, BLOCK, Block, Change, Entry, Node, ROOT, SECTOR};
use super::{Fault, Lie, Pending, State, errno};

impl State {
    /// Time goes on with every change.
    fn tick(&mut self) -> Timestamp {
        self.now.clock += 1;
        Timestamp { seconds: self.now.clock, nanos: 0 }
    }

    /// Applies a change to what is seen, and notes it as pending.
    pub fn change(&mut self, change: Change) {
        self.now.apply(&change, u8::MAX);
        self.pending.push(Pending { change, lost: false });
    }

    /// Notes the time of a change of contents.
    fn modified(&mut self, ino: u64) {
        let at = self.tick();
        let last = self.pending.iter_mut().rev().find(|p| p.change.attr_of() == Some(ino));
        match last.map(|p| &mut p.change) {
            Some(Change::Mtime { at: old, .. }) => {
                *old = at;
                self.now.apply(&Change::Mtime { ino, at }, u8::MAX);
            }
            _ => self.change(Change::Mtime { ino, at }),
        }
    }

    /// Directory and name of a path.
    pub fn parent(&self, path: &Path) -> io::Result<(u64, OsString)> {
        let name = match path.components().next_back() {
            Some(Component::Normal(name)) => name.to_owned(),
            _ => return Err(errno(libc::EINVAL)),
        };
        let dir = self.lookup(path.parent().unwrap_or(Path::new("")))?;
        if self.node(dir)?.is_dir() { Ok((dir, name)) } else { Err(errno(libc::ENOTDIR)) }
    }

    pub fn lookup(&self, path: &Path) -> io::Result<u64> {
        let mut at = ROOT;
        for part in path.components() {
            let Component::Normal(name) = part else { return Err(errno(libc::EINVAL)) };
            at = self.entry(at, name).ok_or_else(|| errno(libc::ENOENT))?;
        }
        Ok(at)
    }

    pub fn entry(&self, dir: u64, name: &OsStr) -> Option<u64> {
        self.now.nodes.get(&dir)?.entries.get(name).copied()
    }

    pub fn stat(&self, ino: u64) -> io::Result<Stat> {
        let node = self.node(ino)?;
        Ok(Stat {
            key: FileKey { dev: 7, ino },
            mode: node.attr.mode,
            nlink: node.nlink,
            uid: node.attr.uid,
            gid: node.attr.gid,
            rdev: 0,
            size: node.size,
            blocks: node.blocks.len() as u64 * 8,
            blksize: BLOCK as u32,
            atime: node.attr.atime,
            mtime: node.attr.mtime,
            ctime: node.attr.mtime,
            birth: None,
        })
    }

    /// A new file without a name. It is on disk from now on, for names that reach the disk to lead to.
    pub fn make(&mut self, mode: u32) -> u64 {
        let ino = self.now.next;
        self.now.next += 1;
        let now = self.tick();
        let mut node = Node::new(mode, now);
        (node.attr.uid, node.attr.gid) = acting();
        let node = Arc::new(node);
        self.durable.nodes.insert(ino, node.clone());
        self.now.nodes.insert(ino, node);
        ino
    }

    /// Changes entries of directories, all or none of them.
    pub fn rename(&mut self, entries: Vec<Entry>) {
        for entry in &entries {
            for (ino, up) in [(entry.new, true), (entry.old, false)] {
                if let Some(node) = ino.and_then(|i| self.now.node(i)) {
                    node.nlink = if up { node.nlink + 1 } else { node.nlink.saturating_sub(1) };
                }
            }
            if let Some(new) = entry.new {
                self.labels.insert(new, entry.name.to_string_lossy().into_owned());
            }
        }
        let olds: Vec<u64> = entries.iter().filter_map(|e| e.old).collect();
        self.change(Change::Names(entries));
        olds.into_iter().for_each(|ino| self.forget_unused(ino));
    }

    /// A file without names and handles is gone.
    pub fn forget_unused(&mut self, ino: u64) {
        let gone =
            self.now.nodes.get(&ino).is_some_and(|n| n.nlink == 0) && self.open.get(&ino).is_none_or(|c| *c == 0);
        if gone {
            self.now.nodes.remove(&ino);
            self.reserved.remove(&ino);
        }
    }

    /// Room for block `block` of a file.
    fn take_space(&mut self, ino: u64, block: u64, reserve: bool) -> io::Result<()> {
        let Some(space) = self.options.space else { return Ok(()) };
        let has = self.now.nodes.get(&ino).is_some_and(|n| n.blocks.contains_key(&block))
            || self.reserved.get(&ino).is_some_and(|r| r.contains_key(&block));
        if !has && self.used() >= space {
            return Err(errno(libc::ENOSPC));
        }
        if reserve && !has {
            self.reserved.entry(ino).or_default().insert(block, ());
        } else if !reserve && let Some(reserved) = self.reserved.get_mut(&ino) {
            reserved.remove(&block);
        }
        Ok(())
    }

    /// Blocks in use.
    pub fn used(&self) -> u64 {
        let written: usize = self.now.nodes.values().map(|n| n.blocks.len()).sum();
        let reserved: usize = self.reserved.values().map(|r| r.len()).sum();
        (written + reserved) as u64
    }

    /// Writes until the disk is full; returns how many bytes, and why not all.
    pub fn write(&mut self, ino: u64, data: &[u8], offset: u64) -> (usize, io::Result<()>) {
        self.run_delayed(ino);
        self.notice(ino, data);
        let data = &*self.forge(ino, data, offset);
        let misplaced = self.options.lie == Lie::MisplacedWrite && self.label(ino).ends_with(".data");
        let offset = if misplaced && data.len() as u64 == BLOCK { offset + BLOCK } else { offset };
        let mut done = 0;
        let mut result = Ok(());
        while done < data.len() && result.is_ok() {
            let at = offset + done as u64;
            let (block, inside) = (at / BLOCK, (at % BLOCK) as usize);
            let len = (data.len() - done).min(BLOCK as usize - inside);
            let bytes = &data[done..done + len];
            result = self.take_space(ino, block, false).and_then(|()| self.write_block(ino, block, inside, bytes));
            done += if result.is_ok() { len } else { 0 };
        }
        if done > 0 {
            result = result.and(self.grow(ino, offset + done as u64));
            self.modified(ino);
        }
        (done, result)
    }

    fn write_block(&mut self, ino: u64, block: u64, inside: usize, data: &[u8]) -> io::Result<()> {
        let old = self.node(ino)?.blocks.get(&block);
        let mut after: Block = old.cloned().unwrap_or_else(|| Arc::new([0; BLOCK as usize]));
        Arc::make_mut(&mut after)[inside..inside + data.len()].copy_from_slice(data);
        let (first, last) = (inside / SECTOR, (inside + data.len() - 1) / SECTOR);
        let mask = (first..=last).fold(0u8, |mask, sector| mask | 1 << sector);
        // The page as a whole is what is seen; what reaches the disk is sectors of it.
        self.now.apply(&Change::Write { ino, block, after: after.clone(), mask: u8::MAX }, u8::MAX);
        self.pending.push(Pending { change: Change::Write { ino, block, after, mask }, lost: false });
        Ok(())
    }

    fn grow(&mut self, ino: u64, end: u64) -> io::Result<()> {
        let size = self.node(ino)?.size;
        // A size that a failed sync has lost comes back with the next write, as it does with the page.
        let durable = self.durable.nodes.get(&ino).map_or(0, |node| node.size);
        let coming = |p: &Pending| !p.lost && matches!(p.change, Change::Grow { ino: of, .. } if of == ino);
        let lost = durable < end && !self.pending.iter().any(coming);
        if end > size || lost {
            self.change(Change::Grow { ino, size: end.max(size) });
        }
        Ok(())
    }

    pub fn set_len(&mut self, ino: u64, len: u64) -> io::Result<()> {
        self.run_delayed(ino);
        self.node(ino)?;
        self.change(Change::SetLen { ino, len });
        if let Some(reserved) = self.reserved.get_mut(&ino) {
            reserved.retain(|block, ()| *block < len.div_ceil(BLOCK));
        }
        self.modified(ino);
        Ok(())
    }

    pub fn allocate(&mut self, ino: u64, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        let (keep, hole, zero) = (libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE);
        let end = offset + len;
        if mode & (hole | zero) != 0 {
            if mode & hole != 0 && self.options.lie == Lie::DelayedPunch {
                self.delayed.push((ino, offset, end));
            } else {
                self.punch(ino, offset, end)?;
            }
            self.modified(ino);
        } else {
            for block in offset / BLOCK..end.div_ceil(BLOCK) {
                self.take_space(ino, block, true)?;
            }
        }
        if mode & keep == 0 {
            self.grow(ino, end)?;
        }
        Ok(())
    }

    fn punch(&mut self, ino: u64, offset: u64, end: u64) -> io::Result<()> {
        let end = end.min(self.node(ino)?.size.next_multiple_of(BLOCK));
        let (first, last) = (offset.div_ceil(BLOCK), end / BLOCK);
        if first > last {
            return self.zero_part(ino, offset, end);
        }
        self.zero_part(ino, offset, first * BLOCK)?;
        self.zero_part(ino, last * BLOCK, end)?;
        if first < last {
            self.change(Change::Punch { ino, from: first, to: last });
            if let Some(reserved) = self.reserved.get_mut(&ino) {
                reserved.retain(|block, ()| !(first..last).contains(block));
            }
        }
        Ok(())
    }

    /// Zeros a part of one block that is there.
    fn zero_part(&mut self, ino: u64, from: u64, to: u64) -> io::Result<()> {
        if from < to && self.node(ino)?.blocks.contains_key(&(from / BLOCK)) {
            self.write_block(ino, from / BLOCK, (from % BLOCK) as usize, &vec![0; (to - from) as usize])?;
        }
        Ok(())
    }

    fn run_delayed(&mut self, ino: u64) {
        let (due, rest) = std::mem::take(&mut self.delayed).into_iter().partition(|(i, _, _)| *i == ino);
        self.delayed = rest;
        let due: Vec<(u64, u64, u64)> = due;
        due.into_iter().for_each(|(ino, from, to)| drop(self.punch(ino, from, to)));
    }

    pub fn read(&self, ino: u64, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let node = self.node(ino)?;
        let len = node.size.saturating_sub(offset).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let inside = (at % BLOCK) as usize;
            let step = (len - done).min(BLOCK as usize - inside);
            match node.blocks.get(&(at / BLOCK)) {
                Some(block) => buf[done..done + step].copy_from_slice(&block[inside..inside + step]),
                None => buf[done..done + step].fill(0),
            }
            done += step;
        }
        Ok(len)
    }

    /// Next byte in a block that is there, or in one that is not.
    pub fn seek(&self, ino: u64, offset: u64, data: bool) -> io::Result<u64> {
        let node = self.node(ino)?;
        let mut at = offset;
        while at < node.size {
            if node.blocks.contains_key(&(at / BLOCK)) == data {
                return Ok(at);
            }
            at = (at / BLOCK + 1) * BLOCK;
        }
        if data || offset >= node.size { Err(errno(libc::ENXIO)) } else { Ok(node.size) }
    }

    /// Sets attributes; `edit` makes the changes from the present ones.
    pub fn set_attr(&mut self, ino: u64, edit: impl FnOnce(&Attr) -> Change) -> io::Result<()> {
        let change = edit(&self.node(ino)?.attr);
        self.change(change);
        Ok(())
    }

    pub(super) fn label(&self, ino: u64) -> &str {
        self.labels.get(&ino).map_or("", String::as_str)
    }

    /// What the file is called, for messages.
    pub fn called(&self, ino: u64) -> String {
        format!("{}#{ino}", self.label(ino))
    }

    /// Makes durable what `which` says, in the order of the changes, with what it rests on.
    fn settle_pending(&mut self, which: impl Fn(&Change) -> bool) {
        let mut chosen: Vec<bool> = self.pending.iter().map(|p| which(&p.change)).collect();
        choose_older(&self.pending, &mut chosen);
        let mut chosen = chosen.into_iter();
        let (settled, rest) =
            std::mem::take(&mut self.pending).into_iter().partition(|_| chosen.next().unwrap_or_default());
        self.pending = rest;
        let settled: Vec<Pending> = settled;
        settled.iter().filter(|p| !p.lost).for_each(|p| self.durable.apply(&p.change, u8::MAX));
    }

    pub fn sync_file(&mut self, ino: u64, attributes: bool) {
        if self.leaves_out_sync(ino) {
            return;
        }
        let names = self.options.sync_names;
        if names && self.options.lone_names {
            let (settled, rest) = names_alone(&self.pending, ino);
            self.pending = rest;
            settled.iter().for_each(|change| self.durable.apply(change, u8::MAX));
        }
        self.settle_pending(|change| {
            change.data_of() == Some(ino)
                || attributes && change.attr_of() == Some(ino)
                || names && change.names_of(ino)
        });
    }

    pub fn sync_dir(&mut self, dir: u64) {
        if self.options.lie != Lie::NoDirSync {
            self.settle_pending(|change| change.names_in(dir) || change.attr_of() == Some(dir));
        }
    }

    pub fn sync_fs(&mut self) {
        let lie = self.options.lie;
        self.settle_pending(|change| match lie {
            Lie::NoFileSync => change.data_of().is_none(),
            Lie::NoDirSync => !matches!(change, Change::Names(_)),
            _ => true,
        });
    }

    /// A sync of a file that fails: what was to be written is clean from now on, and lost (R14).
    pub fn sync_failed(&mut self, ino: u64) {
        for pending in &mut self.pending {
            if pending.change.data_of() == Some(ino) {
                pending.lost = true;
            }
        }
    }

    /// Whether this call is to fail, and how.
    pub fn due_fault(&mut self) -> Option<Fault> {
        let fault = self.fault.as_ref()?;
        let due = (fault.at..fault.at + fault.count).contains(&self.calls);
        if due {
            self.failed += 1;
        }
        due.then(|| self.fault.clone()).flatten()
    }
}

/// User and group that this thread makes files for: those it acts as, else root.
fn acting() -> (u32, u32) {
    // SAFETY: these calls take plain numbers, touch no memory and cannot fail; an id of -1 changes nothing.
    let (uid, gid, me) = unsafe { (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX), libc::geteuid()) };
    if uid as u32 == me { (0, 0) } else { (uid as u32, gid as u32) }
}

/// What a sync of a file makes durable of its names where that is all: changes that give or take one, and what is left.
/// Older changes of the same entries, of other files, say no more of these.
pub fn names_alone(pending: &[Pending], ino: u64) -> (Vec<Change>, Vec<Pending>) {
    let (mut settled, mut rest) = (Vec::new(), Vec::new());
    let mut done: Vec<(u64, &OsStr)> = Vec::new();
    for Pending { change, lost } in pending.iter().rev() {
        match change {
            Change::Names(entries) if change.names_of(ino) => {
                done.extend(entries.iter().map(|e| (e.dir, e.name.as_os_str())));
                settled.push(change.clone());
            }
            Change::Names(entries) => {
                let said = |e: &&Entry| !done.contains(&(e.dir, e.name.as_os_str()));
                let left: Vec<Entry> = entries.iter().filter(said).cloned().collect();
                if !left.is_empty() {
                    rest.push(Pending { change: Change::Names(left), lost: *lost });
                }
            }
            other => rest.push(Pending { change: other.clone(), lost: *lost }),
        }
    }
    settled.reverse();
    rest.reverse();
    (settled, rest)
}

/// An entry of a directory cannot reach the disk without the older changes of the same entry, nor a size that was set
/// without the sizes set before: filesystems keep a log of both.
pub fn choose_older(pending: &[Pending], chosen: &mut [bool]) {
    let mut needed: Vec<(u64, &OsStr)> = Vec::new();
    let mut sized: Vec<u64> = Vec::new();
    for (number, pending) in pending.iter().enumerate().rev() {
        if let Change::SetLen { ino, .. } = &pending.change {
            chosen[number] |= sized.contains(ino);
            if chosen[number] {
                sized.push(*ino);
            }
        }
        let Change::Names(entries) = &pending.change else { continue };
        chosen[number] |= entries.iter().any(|e| needed.contains(&(e.dir, &e.name)));
        if chosen[number] {
            needed.extend(entries.iter().map(|e| (e.dir, e.name.as_os_str())));
        }
    }
}
