//! Opens whose reads and writes go past the daemon, straight to the file that has the bytes. That cannot be taken back while
//! the file is open: so as long as it lasts, another file must not become the one that has them.
//!
//! It can last longer than the daemon knows. A mapping that was made through such a handle holds the backing file itself:
//! the daemon hears of the close of the handle, and nothing of what is stored through the mapping after that. Nor does a
//! handle end with the daemon that gave it. So a volume *lingers* after its last handle, and so does every plain file that
//! is loaded once any was opened so since the machine was started, until the system says that nobody else has the file open.

use std::sync::Arc;
use std::time::Duration;

use super::plain::Durability;
use super::{State, Volume};
use crate::engine::io::FileRef;
use crate::engine::layer::Hold;
use crate::error::{Error, Kind, Result};
use crate::sync::atomic::Ordering;
use crate::units::{BLOCK, blocks};

/// How often, and after what pauses, a file is looked at that may still be open: the kernel closes it a moment after the
/// daemon has heard of it.
const LOOKS: usize = 10;
const PAUSE: Duration = Duration::from_millis(1);

/// The way past the daemon of one volume, until it is dropped.
pub struct Bypass {
    file: FileRef,
    held: Held,
}

#[expect(dead_code, reason = "a hold is held, not looked at")]
enum Held {
    /// A layer that nobody may drop or adopt.
    Layer(Hold),
    /// A plain file that nobody may freeze.
    Plain(Arc<Volume>, Arc<Durability>),
}

impl Bypass {
    /// The file that has all bytes.
    pub fn file(&self) -> &FileRef {
        &self.file
    }
}

impl Drop for Bypass {
    fn drop(&mut self) {
        if let Held::Plain(volume, durability) = &self.held {
            // What was written last is as little durable as if it had come through the daemon.
            durability.set_dirty();
            volume.lingering.store(true, Ordering::SeqCst);
            volume.bypasses.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Volume {
    /// A way past the daemon for reading, if this is a snapshot and one file has all of it. It never changes.
    pub fn bypass_reading(&self) -> Option<Bypass> {
        if !self.is_snapshot() {
            return None;
        }
        let gate = self.gate.try_read()?;
        let State::Overlay(overlay) = &*gate else { return None };
        let (size, visible) = (overlay.top.size(), overlay.top.overlap());
        let layer = overlay.top.parent().filter(|_| overlay.top.is_empty())?;
        let held = Held::Layer(layer.hold());
        let bypass = Bypass { file: layer.data().ok()??, held };
        // Nobody begins to change a layer's file while a snapshot reads it, or it is held.
        let whole = layer.complete() && !layer.adopting() && layer.bad().is_empty();
        // With another name it is the file of a volume too, which is written in place once nobody reads the layer; of
        // whoever reads it past the daemon, through a mapping or for a daemon that died, nothing is known then.
        let sized = bypass.file.stat().is_ok_and(|stat| stat.size == size && stat.nlink == 1);
        (whole && sized && layer.size() == size && visible >= blocks(size)).then_some(bypass)
    }

    /// A way past the daemon for reading and writing, if this is a plain file that nobody else reads and nobody is about
    /// to freeze. Until it is dropped the volume stays that, and [`Volume::check_not_bypassed`] fails.
    pub fn bypass_writing(self: &Arc<Self>) -> Option<Bypass> {
        // Held from start to end by whoever replaces the file. Nobody waits here: a thread that serves requests asks.
        let _switching = self.switching.try_lock()?;
        let gate = self.gate.try_read()?;
        let State::Plain(plain) = &*gate else { return None };
        let stat = plain.file.stat().ok()?;
        // An empty file can be about to become a clone. The kernel leaves it to the daemon to take privileges away from a
        // file that is written to, and the daemon will not see it.
        let capable = !matches!(plain.file.get_xattr(&"security.capability".into()),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)));
        if self.env.read_only || plain.shared.is_some() || stat.size < BLOCK || stat.mode & 0o6000 != 0 || capable {
            return None;
        }
        plain.check_latch().ok()?;
        // Whose end could not be seen must not begin. Not asked while another one lasts: the kernel may be opening the file
        // for that, and would fail it for being asked.
        let alone = self.bypasses.load(Ordering::SeqCst) == 0 && !self.lingering.load(Ordering::SeqCst);
        if !plain.file.is_writable() || (alone && !plain.file.is_sole().ok()?) {
            return None;
        }
        plain.touch();
        self.bypasses.fetch_add(1, Ordering::SeqCst);
        Some(Bypass { file: plain.file.clone(), held: Held::Plain(self.clone(), plain.durability.clone()) })
    }

    /// Whether writes go past the daemon, or may. Decided for as long as the gate is held exclusively.
    pub fn is_bypassed(&self) -> bool {
        self.bypasses.load(Ordering::SeqCst) > 0 || self.lingering.load(Ordering::SeqCst)
    }

    /// Its file was just made: nobody else can have it open.
    pub fn set_new(&self) {
        self.lingering.store(false, Ordering::SeqCst);
    }

    /// Finds out whether the last way past the daemon has come to its end. To be called with no lock held before
    /// [`Volume::is_bypassed`] is asked; it waits a few milliseconds at most.
    pub fn settle_bypass(&self) {
        for _ in 0..LOOKS {
            if !self.lingering.load(Ordering::SeqCst) || self.has_ended() {
                return;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// One look. None begins meanwhile.
    fn has_ended(&self) -> bool {
        let Some(_switching) = self.switching.try_lock() else { return false };
        let gate = self.gate.write();
        if self.bypasses.load(Ordering::SeqCst) > 0 {
            return true;
        }
        // What became a layer, or has clones, was looked at then.
        let ended = match &*gate {
            State::Plain(plain) => plain.shared.is_some() || plain.file.is_sole().unwrap_or(false),
            _ => true,
        };
        if ended {
            self.lingering.store(false, Ordering::SeqCst);
        }
        ended
    }

    /// Why it cannot be cloned, and what helps, while writes go past the daemon, or may.
    pub fn why_bypassed(&self) -> Option<(&'static str, &'static str)> {
        // Then whoever opens it now goes past the daemon too, and is not the reason.
        if self.lingering.load(Ordering::SeqCst) {
            let why =
                "it was open with passthrough, and a program still has it open or mapped, where writes are not seen";
            let remedy = "end that program; it can be one that was started before the pool was mounted";
            return Some((why, remedy));
        }
        let why = "it is open with passthrough, so what is written to it is not seen";
        let remedy = "close it first: shut the machine down; mounted without passthrough=writable, or kept on xfs or \
                      btrfs, it can be cloned while it is open";
        (self.bypasses.load(Ordering::SeqCst) > 0).then_some((why, remedy))
    }

    /// Fails while writes go past the daemon, or may.
    pub fn check_not_bypassed(&self, operation: &'static str) -> Result<()> {
        match self.why_bypassed() {
            None => Ok(()),
            Some((why, remedy)) => Err(Error::new(Kind::Busy, operation).at(self.path()).because(why).remedy(remedy)),
        }
    }
}
