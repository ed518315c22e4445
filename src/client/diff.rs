//! What differs between two volumes of one pool: the daemon says from its maps where they can differ, and only there the
//! bytes are compared.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Progress, doors, mounts, xattr};
use crate::error::{Context, Error, Kind, Result};
use crate::protocol::{self, DiffPage};
use crate::units::BLOCK;

/// Compared at once.
const PIECE: u64 = 1 << 20;

/// What differs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Sizes of both, in bytes.
    pub sizes: [u64; 2],
    /// Offset and length of what differs, in order, in whole blocks up to the end of the longer one. The shorter one is
    /// taken to go on with zeros.
    pub extents: Vec<(u64, u64)>,
}

impl Difference {
    /// All bytes that differ.
    pub fn bytes(&self) -> u64 {
        self.extents.iter().map(|(_, len)| len).sum()
    }

    fn add(&mut self, offset: u64, len: u64) {
        match self.extents.last_mut() {
            Some((at, have)) if *at + *have == offset => *have += len,
            _ => self.extents.push((offset, len)),
        }
    }
}

/// Compares two volumes. `maps_only`: nothing is read, and blocks that were written with the same bytes count as different.
pub fn diff(one: &Path, other: &Path, maps_only: bool, progress: Progress) -> Result<Difference> {
    let (a, b) = (open(one)?, open(other)?);
    let token = doors::token(&b, other)?;
    let sizes = [&a, &b].map(|file| file.metadata().map(|meta| meta.len()).unwrap_or_default());
    let end = sizes[0].max(sizes[1]);
    let mut found = Difference { sizes, extents: Vec::new() };
    let mut from = Some(0);
    while let Some(start) = from {
        let name = format!("{}{token}.{start}", protocol::DIFF);
        let json = xattr::fget(&a, name.as_ref()).map_err(|e| doors::failed("compare", one, e))?;
        let page: DiffPage = serde_json::from_slice(&json).map_err(|e| {
            Error::new(Kind::Unsupported, "compare").at(one).because(e).remedy("unmount and mount again")
        })?;
        for (offset, len) in page.extents {
            let len = len.min(end.saturating_sub(offset));
            if maps_only && len > 0 {
                found.add(offset, len);
            } else {
                compare([(&a, one), (&b, other)], offset..offset + len, &mut found)?;
            }
            progress(offset + len, end)?;
        }
        from = page.next;
    }
    Ok(found)
}

fn open(path: &Path) -> Result<File> {
    let file = File::open(path).context("open", path)?;
    if mounts::mount_of(&file)?.is_none() {
        return Err(doors::not_here("compare", path));
    }
    Ok(file)
}

fn compare(files: [(&File, &Path); 2], range: std::ops::Range<u64>, found: &mut Difference) -> Result<()> {
    let mut buffers = [vec![0; PIECE as usize], vec![0; PIECE as usize]];
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(PIECE) as usize;
        for (buffer, (file, path)) in buffers.iter_mut().zip(files) {
            let read = read_full(file, &mut buffer[..len], at).context("read", path)?;
            buffer[read..len].fill(0);
        }
        let blocks = buffers[0][..len].chunks(BLOCK as usize).zip(buffers[1][..len].chunks(BLOCK as usize));
        for (n, (a, b)) in blocks.enumerate() {
            if a != b {
                found.add(at + n as u64 * BLOCK, a.len() as u64);
            }
        }
        at += len as u64;
    }
    Ok(())
}

/// Reads until the buffer is full or the file ends.
fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64)? {
            0 => break,
            read => done += read,
        }
    }
    Ok(done)
}
