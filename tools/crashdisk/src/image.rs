//! Contents of a disk in memory: sparse, and cheap to copy, so that hundreds of crash states share one base.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

const PAGE: usize = 4096;

/// A disk of a fixed size. Pages that were never written, or hold only zeros, take no memory; a clone shares all pages
/// with the original until one of the two writes.
#[derive(Clone, Default)]
pub struct Image {
    size: u64,
    pages: HashMap<u64, Arc<[u8; PAGE]>>,
}

impl Image {
    /// A disk of `size` bytes, all zeros.
    pub fn new(size: u64) -> Image {
        Image { size, pages: HashMap::new() }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `out` with the bytes at `offset`; zeros past the end.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        for (page, start, piece) in pieces(offset, out.len() as u64) {
            let out = &mut out[piece.clone()];
            match self.pages.get(&page) {
                Some(bytes) => out.copy_from_slice(&bytes[start..start + piece.len()]),
                None => out.fill(0),
            }
        }
    }

    /// Puts `data` at `offset`. What lies past the end is dropped.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let room = self.size.saturating_sub(offset).min(data.len() as u64);
        for (page, start, piece) in pieces(offset, room) {
            let data = &data[piece];
            if data.len() == PAGE && data.iter().all(|&b| b == 0) {
                self.pages.remove(&page);
                continue;
            }
            let bytes = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(bytes)[start..start + data.len()].copy_from_slice(data);
        }
    }

    /// Makes `len` bytes at `offset` zeros.
    pub fn zero(&mut self, offset: u64, len: u64) {
        let room = self.size.saturating_sub(offset).min(len);
        for (page, start, piece) in pieces(offset, room) {
            if piece.len() == PAGE {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                Arc::make_mut(bytes)[start..start + piece.len()].fill(0);
            }
        }
    }

    /// Writes the disk to a sparse file, to look at with other tools.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::create(path)?;
        file.set_len(self.size)?;
        for (page, bytes) in &self.pages {
            let offset = page * PAGE as u64;
            let len = (self.size - offset).min(PAGE as u64) as usize;
            file.write_all_at(&bytes[..len], offset)?;
        }
        Ok(())
    }
}

/// Splits a range into what falls into each page: page number, start in the page, place in the range.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done;
        let start = (at % PAGE as u64) as usize;
        let count = (PAGE as u64 - start as u64).min(len - done);
        let piece = done as usize..(done + count) as usize;
        done += count;
        Some((at / PAGE as u64, start, piece))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_behaves_like_a_plain_array() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut plain = vec![0u8; 50_000];
        let mut image = Image::new(plain.len() as u64);
        for step in 0..2000 {
            let at = rng.usize(..plain.len());
            let len = rng.usize(..=(plain.len() - at).min(9000));
            if step % 3 == 0 {
                plain[at..at + len].fill(0);
                image.zero(at as u64, len as u64);
            } else {
                let data: Vec<u8> = (0..len).map(|_| rng.u8(..)).collect();
                plain[at..at + len].copy_from_slice(&data);
                image.write(at as u64, &data);
            }
            let mut seen = vec![1u8; plain.len()];
            image.read(0, &mut seen);
            assert!(seen == plain, "differs after step {step}");
        }
    }

    #[test]
    fn a_clone_does_not_see_later_writes() {
        let mut image = Image::new(8192);
        image.write(100, b"old");
        let copy = image.clone();
        image.write(100, b"new");
        let mut seen = [0; 3];
        copy.read(100, &mut seen);
        assert_eq!(&seen, b"old");
    }

    #[test]
    fn nothing_is_written_past_the_end() {
        let mut image = Image::new(4096);
        image.write(4090, &[7; 100]);
        image.zero(4090, u64::MAX - 4090);
        image.write(10_000, b"x");
        assert!(image.pages.len() == 1);
    }
}
