//! Taking a live mount over: the exchange of INIT is played to fuser once more, the live device is put in the place of the
//! player's end, and the kernel sends again what the dead server had read and not answered.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use fuser::Session;

use super::attach;
use super::holder::{Held, Line};
use super::line::{self, Word};
use super::options::Options;
use crate::daemon::fuse::{Adapter, Once};
use crate::engine::io::FileKey;
use crate::engine::namespace::NameTree;
use crate::engine::note::{self, Reason, Slots};
use crate::error::{Error, Kind, Result};

/// Room for the first request, which the kernel wants to see whole pages of.
const ROOM: usize = 1 << 16;
/// `FUSE_NOTIFY_RESEND`.
const RESEND: i32 = 7;
/// `FUSE_HAS_RESEND` in the second word of flags of INIT.
const HAS_RESEND: u32 = 1 << (39 - 32);
/// Where the second word of flags lies in the request of INIT: 40 bytes of header, then version (2 words), readahead, flags.
const AT_FLAGS2: usize = 40 + 16;

/// Begins a server: the note is that of this process from now on. Gives, if a mount is to be taken over, which files its last
/// server had open.
///
/// # Errors
/// The note is not one that this program understands. A sync was cut off by the kill, and the filesystem says that
/// something was lost: the mount is not taken over then.
pub fn begin(held: &Held) -> Result<Option<Arc<HashSet<FileKey>>>> {
    let bad = |cause: io::Error| Error::io("take the mount over", cause);
    held.note.check().map_err(bad)?;
    note::install(held.note.clone());
    super::buffers::map_them();
    if !held.is_mounted() {
        return Ok(None);
    }
    if held.note.syncs_were_cut_off() {
        // The descriptor is from before the mount: what one of those syncs was told, this one is told too.
        if let Err(error) = rustix::fs::syncfs(&held.root) {
            note::withdraw(Reason::SyncFailed);
            return Err(bad(error.into()));
        }
        held.note.syncs_are_settled();
    }
    let mut damaged = false;
    let open: HashSet<u64> = held.note.handles(&mut damaged).0.iter().map(|(_, handle)| handle.node).collect();
    let nodes = held.note.nodes(&mut damaged).0;
    if damaged {
        return Err(Error::new(Kind::Damaged, "take the mount over").because("its note is damaged"));
    }
    Ok(Some(Arc::new(
        nodes.iter().filter(|(_, node)| open.contains(&node.id)).map(|(_, node)| node.file.key).collect(),
    )))
}

/// The pool could not be opened. What has to do with the disk is told once: another try could find nothing wrong.
pub fn failed(held: Option<&Held>, error: &Error) {
    let lost = matches!(error.kind(), Kind::Latched) || matches!(error.os_error(), Some(libc::EIO | libc::ENOSPC));
    if held.is_some_and(Held::is_mounted) && lost {
        note::withdraw(Reason::SyncFailed);
    }
}

/// Connects the names with the note: what is there is taken over, or what there will be is kept in it.
pub fn names(held: &mut Held, names: &NameTree) -> Result<Once> {
    let slots = Slots::open(held.note.clone());
    let keeper = Box::new(Line(held.line.clone()));
    if held.is_mounted() {
        names.take_over(&held.note, &slots, std::mem::take(&mut held.nameless), keeper)?;
    } else {
        names.keep(&held.note, keeper);
    }
    Ok(Once::new(slots))
}

/// The session of a mount that was just made.
pub fn first(
    adapter: impl FnOnce() -> Result<Adapter>,
    held: &Held,
    device: OwnedFd,
    dev: u64,
    options: &Options,
) -> Result<Session<Adapter>> {
    let failed = |e: io::Error| Error::io("mount", e);
    let mut request = vec![0; ROOM];
    let length = loop {
        match rustix::io::read(&device, &mut request) {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::NOENT | rustix::io::Errno::AGAIN) => {}
            other => break other.map_err(|e| failed(e.into()))?,
        }
    };
    request.truncate(length);
    let (session, reply) = play(adapter, &request, options)?;
    held.note.set_init(&request, &reply).map_err(failed)?;
    held.note.set_device(dev);
    rustix::io::write(&device, &reply).map_err(|e| failed(e.into()))?;
    if !can_resend(&request) {
        note::withdraw(Reason::NoResend);
    }
    line::tell(&held.line, Word::Device, Some(device.as_fd())).map_err(failed)?;
    put(&device, &session)?;
    Ok(session)
}

/// The session of a mount that another server has left.
pub fn again(adapter: impl FnOnce() -> Result<Adapter>, held: &Held, options: &Options) -> Result<Session<Adapter>> {
    let failed = |what: &str| Error::new(Kind::Io, "take the mount over").because(what.to_owned());
    let (request, agreed) = held.note.init().ok_or_else(|| failed("the exchange of INIT is not known"))?;
    let device = held.device.as_ref().ok_or_else(|| failed("there is no device"))?;
    let (session, reply) = play(adapter, &request, options)?;
    if reply != agreed {
        return Err(failed("this program would agree upon something else with the kernel"));
    }
    put(device, &session)?;
    resend(device)?;
    Ok(session)
}

/// Plays INIT to a new session; gives the session, on a socket of ours, and its reply.
fn play(
    adapter: impl FnOnce() -> Result<Adapter>,
    request: &[u8],
    options: &Options,
) -> Result<(Session<Adapter>, Vec<u8>)> {
    let failed = |e: io::Error| Error::io("agree with the kernel", e);
    let (mine, theirs) = line::pair().map_err(failed)?;
    rustix::io::write(&mine, request).map_err(|e| failed(e.into()))?;
    let config = attach::config(options, false);
    let session = Session::from_fd(adapter()?, theirs, config.acl, config).map_err(failed)?;
    let mut reply = vec![0; ROOM];
    let length = rustix::io::read(&mine, &mut reply).map_err(|e| failed(e.into()))?;
    reply.truncate(length);
    Ok((session, reply))
}

/// Puts the device in the place of the socket.
fn put(device: &OwnedFd, session: &Session<Adapter>) -> Result<()> {
    // SAFETY: both are open descriptors of this process; fuser goes on to own the second, which stays open.
    let result = unsafe { libc::dup3(device.as_raw_fd(), session.as_fd().as_raw_fd(), libc::O_CLOEXEC) };
    if result < 0 { Err(Error::io("take the device over", io::Error::last_os_error())) } else { Ok(()) }
}

/// Has the kernel send again what was read and not answered. Only while nobody reads.
fn resend(device: &OwnedFd) -> Result<()> {
    let mut message = Vec::from(16u32.to_ne_bytes());
    message.extend(RESEND.to_ne_bytes());
    message.extend(0u64.to_ne_bytes());
    match rustix::io::write(device, &message) {
        // Unmounted meanwhile: the session finds that out too, and ends in order.
        Ok(_) | Err(rustix::io::Errno::NODEV | rustix::io::Errno::PERM) => Ok(()),
        Err(error) => Err(Error::io("ask the kernel for unanswered requests", error.into())),
    }
}

fn can_resend(request: &[u8]) -> bool {
    let word = request
        .get(AT_FLAGS2..AT_FLAGS2 + 4)
        .map(|bytes| bytes.iter().rev().fold(0, |all, b| all << 8 | u32::from(*b)));
    let word = word.map(u32::from_le);
    word.is_some_and(|flags| flags & HAS_RESEND != 0)
}
