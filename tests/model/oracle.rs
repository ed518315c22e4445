//! What every volume must hold: for each name its bytes, for each operation what it makes of them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::ops::{Name, Op};

pub type Outcome<T = ()> = Result<T, String>;

/// The bytes of a file; hard links share one.
#[derive(Clone, Debug, Default)]
pub struct Contents(Rc<RefCell<Vec<u8>>>);

impl Contents {
    pub fn bytes(&self) -> Vec<u8> {
        self.0.borrow().clone()
    }

    /// Whether these are the bytes of one and the same file.
    pub fn same(&self, other: &Contents) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

/// All files.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    files: BTreeMap<Name, Contents>,
    /// What files may have been when they were made as clones. A copy of ranges makes a clone of an empty file, or just
    /// copies, so there can be several.
    bases: BTreeMap<Name, Vec<Vec<u8>>>,
    /// What snapshots show, by the name that their volume had then.
    pub snapshots: BTreeMap<Name, Vec<u8>>,
}

impl Oracle {
    pub fn names(&self) -> Vec<Name> {
        self.files.keys().copied().collect()
    }

    pub fn has(&self, name: Name) -> bool {
        self.files.contains_key(&name)
    }

    pub fn contents(&self, name: Name) -> &Contents {
        &self.files[&name]
    }

    pub fn bytes(&self, name: Name) -> Vec<u8> {
        self.files[&name].bytes()
    }

    /// Whether some file has several names.
    pub fn has_links(&self) -> bool {
        self.files.values().any(|one| self.files.values().filter(|other| one.same(other)).count() > 1)
    }

    pub fn edit(&mut self, name: Name, edit: impl FnOnce(&mut Vec<u8>)) {
        edit(&mut self.files[&name].0.borrow_mut());
    }

    /// A new, empty file.
    pub fn create(&mut self, name: Name) {
        self.files.insert(name, Contents::default());
        self.bases.remove(&name);
    }

    /// Whether an operation makes sense now.
    pub fn possible(&self, op: &Op) -> bool {
        let has = |name: &Name| self.has(*name);
        match op {
            Op::Create(name) => !has(name),
            Op::Punch { name, len, .. } | Op::Zero { name, len, .. } | Op::Reserve { name, len, .. } => {
                has(name) && *len > 0
            }
            Op::Write { name, .. } | Op::Sync(name) | Op::SetSize { name, .. } | Op::Pin(name) => has(name),
            Op::Fill { name, .. } | Op::Adopt(name) | Op::Finish(name) | Op::Remove(name) => has(name),
            Op::Reset(name) => has(name),
            Op::Clone { from, to, .. } | Op::CopyByPieces { from, to, .. } | Op::Link { from, to } => {
                has(from) && !has(to)
            }
            Op::CopyRange { from, to, .. } => has(from) && has(to) && !self.contents(*from).same(self.contents(*to)),
            Op::Rename { from, to } => has(from) && from != to,
            Op::Group { from, to } => {
                let there = from.iter().all(has) && from[0] != from[1];
                there && to[0] != to[1] && !to.iter().any(has)
            }
            Op::Snapshot(names) => {
                let fresh = |name: &Name| has(name) && !self.snapshots.contains_key(name);
                names.iter().all(fresh) && (names.len() != 2 || names[0] != names[1])
            }
            Op::RemoveSnapshot(name) => self.snapshots.contains_key(name),
            Op::Rollback(name) => has(name) && self.snapshots.contains_key(name),
            Op::Unpin | Op::AdoptFrozen | Op::Flush | Op::Reap | Op::Remount | Op::KillAndRemount => true,
        }
    }

    /// An operation that was possible has been done.
    pub fn done(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Create(name) => self.create(*name),
            Op::Write { name, offset, len, byte } => self.edit(*name, |bytes| put(bytes, *offset, &data(*len, *byte))),
            Op::SetSize { name, size } => self.edit(*name, |bytes| bytes.resize(*size as usize, 0)),
            Op::Punch { name, offset, len } => self.edit(*name, |bytes| wipe(bytes, *offset, *len)),
            Op::Zero { name, offset, len, keep_size } => self.edit(*name, |bytes| {
                wipe(bytes, *offset, *len);
                grow(bytes, if *keep_size { 0 } else { offset + len });
            }),
            Op::Reserve { name, offset, len, keep_size } => {
                self.edit(*name, |bytes| grow(bytes, if *keep_size { 0 } else { offset + len }));
            }
            Op::Clone { from, to, grow, .. } => self.cloned(*from, *to, *grow),
            Op::CopyRange { from, to, offset, to_offset, len } => {
                let whole = self.bytes(*from);
                let bytes = part(&whole, *offset, *len);
                if self.bytes(*to).is_empty() && *to_offset == 0 && bytes == whole {
                    self.bases.entry(*to).or_default().push(whole);
                }
                self.edit(*to, |b| put(b, *to_offset, &bytes));
            }
            Op::CopyByPieces { from, to, piece, skip, .. } => {
                let bytes = self.bytes(*from);
                self.create(*to);
                if *piece >= bytes.len() as u64 {
                    self.bases.insert(*to, vec![bytes.clone()]);
                }
                for (at, len) in pieces(bytes.len() as u64, *piece, *skip) {
                    self.edit(*to, |b| put(b, at, &part(&bytes, at, len)));
                }
                self.edit(*to, |b| b.resize(bytes.len(), 0));
            }
            Op::Remove(name) => drop(self.files.remove(name)),
            Op::Rename { from, to } => self.renamed(*from, *to),
            Op::Link { from, to } => {
                self.files.insert(*to, self.files[from].clone());
                self.bases.remove(to);
                self.bases.get(from).cloned().map(|base| self.bases.insert(*to, base));
            }
            Op::Group { from, to } => from.iter().zip(to).for_each(|(from, to)| self.cloned(*from, *to, 0)),
            Op::Snapshot(names) => {
                for name in names {
                    self.snapshots.insert(*name, self.bytes(*name));
                }
            }
            Op::RemoveSnapshot(name) => drop(self.snapshots.remove(name)),
            Op::Rollback(name) => {
                let bytes = self.snapshots[name].clone();
                self.edit(*name, |b| *b = bytes);
            }
            _ => {}
        }
        Ok(())
    }

    /// A file was made again what it was as a clone, and holds this now.
    pub fn was_reset(&mut self, name: Name, now: Vec<u8>) -> Outcome {
        if !self.bases.get(&name).is_some_and(|bases| bases.contains(&now)) {
            return Err(format!("it was reset to {} bytes that it never was", now.len()));
        }
        self.edit(name, |b| *b = now);
        Ok(())
    }

    fn cloned(&mut self, from: Name, to: Name, more: u64) {
        let mut bytes = self.bytes(from);
        bytes.resize(bytes.len() + more as usize, 0);
        self.create(to);
        self.bases.insert(to, vec![bytes.clone()]);
        self.edit(to, |b| *b = bytes);
    }

    fn renamed(&mut self, from: Name, to: Name) {
        // Two names of one file: nothing happens then.
        if self.files.get(&to).is_some_and(|there| there.same(&self.files[&from])) {
            return;
        }
        let contents = self.files.remove(&from).expect("the operation was possible");
        self.files.insert(to, contents);
        self.bases.remove(&to);
        self.bases.remove(&from).map(|base| self.bases.insert(to, base));
    }
}

/// What a write writes: never zeros.
pub fn data(len: u64, byte: u8) -> Vec<u8> {
    (0..len).map(|i| byte.wrapping_add((i / 512) as u8).max(1)).collect()
}

/// The pieces that a copy by pieces copies; as for a file with holes, some are left out.
pub fn pieces(size: u64, piece: u64, skip: u64) -> impl Iterator<Item = (u64, u64)> {
    let all = (0..).map(move |number| (number, number * piece)).take_while(move |(_, at)| *at < size);
    let taken = all.filter(move |(number, _)| skip == 0 || number % 4 != skip - 1);
    taken.map(move |(_, at)| (at, piece.min(size - at)))
}

/// What there is of a range.
pub fn part(bytes: &[u8], offset: u64, len: u64) -> Vec<u8> {
    let start = (offset as usize).min(bytes.len());
    let end = ((offset + len) as usize).min(bytes.len());
    bytes[start..end].to_vec()
}

fn put(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    grow(bytes, offset + data.len() as u64);
    bytes[offset as usize..offset as usize + data.len()].copy_from_slice(data);
}

fn grow(bytes: &mut Vec<u8>, len: u64) {
    if bytes.len() < len as usize {
        bytes.resize(len as usize, 0);
    }
}

fn wipe(bytes: &mut [u8], offset: u64, len: u64) {
    let end = ((offset + len) as usize).min(bytes.len());
    if (offset as usize) < end {
        bytes[offset as usize..end].fill(0);
    }
}

pub fn differ(what: &str, got: &[u8], expect: &[u8]) -> Outcome {
    if got.len() != expect.len() {
        return Err(format!("{what} has {} bytes instead of {}", got.len(), expect.len()));
    }
    match got.iter().zip(expect).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => Err(format!("{what} has {:#04x} instead of {:#04x} at byte {at}", got[at], expect[at])),
    }
}

/// Whatever is called a hole must be zeros. `seek` finds the next data (`true`) or hole (`false`); `None`: no more data.
pub fn check_holes(expect: &[u8], seek: impl Fn(u64, bool) -> Outcome<Option<u64>>) -> Outcome {
    let end = expect.len() as u64;
    let mut at = 0;
    while at < end {
        let data = seek(at, true)?.unwrap_or(end);
        if let Some(bad) = expect[at as usize..data as usize].iter().position(|b| *b != 0) {
            return Err(format!("byte {} is called a hole, but is not zero", at as usize + bad));
        }
        if data == end {
            break;
        }
        at = seek(data, false)?.ok_or("data has no end")?;
        if at <= data {
            return Err(format!("the hole after byte {data} is at {at}"));
        }
    }
    Ok(())
}
