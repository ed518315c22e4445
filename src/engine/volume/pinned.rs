//! A point in time of a volume, held by a reader: nothing on disk names it, and it ends with its holder.

use std::ops::Range;
use std::sync::Arc;

use super::Env;
use super::overlay::{read_segments, seek_segments};
use crate::engine::io::Whence;
use crate::engine::layer::resolve::{Segment, resolve};
use crate::engine::layer::{Hold, Layer};
use crate::error::{Error, Result};
use crate::units::{BLOCK, blocks};

/// The bytes a volume had at one moment.
pub struct Pinned {
    env: Arc<Env>,
    layer: Option<Hold>,
    /// Blocks of `layer` that can be seen.
    visible: u64,
    size: u64,
}

impl Pinned {
    /// The volume of `size` bytes over the frozen layer `layer`.
    pub fn new(env: Arc<Env>, layer: Option<Arc<Layer>>, visible: u64, size: u64) -> Pinned {
        Pinned { env, layer: layer.as_ref().map(Layer::hold), visible, size }
    }

    fn layout(&self, range: Range<u64>) -> Vec<Segment> {
        resolve(self.layer.as_deref(), self.visible, range)
    }

    /// Size in bytes at that moment.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads up to the end; returns how many bytes.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        if offset >= self.size {
            return Ok(0);
        }
        let len = (self.size - offset).min(buf.len() as u64) as usize;
        let end = offset + len as u64;
        read_segments(&self.layout(offset / BLOCK..blocks(end)), offset, &mut buf[..len])?;
        Ok(len)
    }

    /// Next data or hole; `ENXIO` past the end.
    pub fn seek(&self, offset: u64, whence: Whence) -> Result<u64> {
        if offset >= self.size {
            return Err(Error::io("seek", std::io::Error::from_raw_os_error(libc::ENXIO)));
        }
        seek_segments(self.size, offset, whence, |range| self.layout(range))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.layer = None;
        if let Ok(hooks) = self.env.hooks() {
            hooks.wake();
        }
    }
}
