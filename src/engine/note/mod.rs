//! The note: what one server of a mount leaves for the next one, in memory that outlives it.
//!
//! The holder (`mount::holder`) makes it as a memfd and keeps it; each server maps it. It is written by plain stores, so
//! that a server that is killed at any instruction leaves what it had stored by then. A record counts only once its state
//! word says so, which is stored last. Nothing here is ever on a disk: after a power cut there is no note.
//!
//! What is in it, why that is enough, and what it costs says `docs/continuity.md`.
//!
//! ```text
//! header    4 KiB   magic, version, counts, flags, the exchange of INIT with a checksum
//! slots     4096 records of 64 bytes: requests that were begun and not answered
//! handles   2^20 records of 64 bytes: open files and directories
//! nodes     2^21 records of 96 bytes: what the kernel knows
//! links     2^21 records of 288 bytes: under which names
//! ```

mod records;
mod slots;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::protocol::Continuity;
pub use records::{HandleRecord, LinkRecord, NodeRecord, Place, Places};
pub use slots::{By, Left, RESENT, Slot, SlotState, Slots, WORDS as SLOT_WORDS, by, maker};

/// "cfsnote1".
const MAGIC: u64 = u64::from_le_bytes(*b"cfsnote1");
/// Raised by every change of the layout, or of what a field means.
const VERSION: u64 = 1;

/// Words of the header.
const WORDS_HEADER: u64 = 512;
/// Words of the slots, handles, nodes, links: how many records, and how long one is.
const SLOTS: (u64, u64) = (1 << 12, 8);
const HANDLES: (u64, u64) = (1 << 20, 8);
const NODES: (u64, u64) = (1 << 21, 12);
const LINKS: (u64, u64) = (1 << 21, 36);
const AT_SLOTS: u64 = WORDS_HEADER;
const AT_HANDLES: u64 = AT_SLOTS + SLOTS.0 * SLOTS.1;
const AT_NODES: u64 = AT_HANDLES + HANDLES.0 * HANDLES.1;
const AT_LINKS: u64 = AT_NODES + NODES.0 * NODES.1;
const WORDS: u64 = AT_LINKS + LINKS.0 * LINKS.1;

/// Longest half of the INIT exchange that is kept, in bytes.
const LONGEST_INIT: usize = 1024;

/// Places of single words in the header.
#[derive(Clone, Copy)]
enum Word {
    Magic,
    Version,
    /// How many servers have served.
    Server,
    /// How many servers have begun, also those that never came to serve.
    Begun,
    /// See [`Note::withdraw`]; 0 while the mount can be taken over.
    Withdrawn,
    /// 1 once the mount was taken down in order, or is no more.
    Ended,
    /// The last generation of a node.
    Generation,
    /// The last number that was made up for a node.
    MadeUp,
    /// Device number of the mount.
    Device,
    /// Syncs that were begun, and that have ended.
    SyncsBegun,
    SyncsEnded,
    /// Records that were ever used, of each table.
    UsedHandles,
    UsedNodes,
    UsedLinks,
    /// Lengths of request and reply of INIT, and the checksum of both.
    InitRequest,
    InitReply,
    InitSum,
    /// The process that holds the mount.
    Holder,
    /// 1 if the last server has died by its own fault.
    Fault,
}

/// Words of the header at which the two halves of INIT lie.
const AT_REQUEST: u64 = 64;
const AT_REPLY: u64 = 64 + LONGEST_INIT as u64 / 8;

/// Why a mount cannot be taken over any more; a crash of its server ends it then, as without a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A sync has failed: what of the file is on the disk nobody knows, and a new descriptor would be told that all is well.
    SyncFailed,
    /// What is written and not synced could not be noted: a new server would not know it.
    Unsynced,
    /// More is open, or known to the kernel, than the note has room for.
    Full,
    /// The kernel cannot send requests again.
    NoResend,
}

impl Reason {
    const ALL: [Reason; 4] = [Reason::SyncFailed, Reason::Unsynced, Reason::Full, Reason::NoResend];

    fn number(self) -> u64 {
        Reason::ALL.iter().position(|reason| *reason == self).map_or(u64::MAX, |at| at as u64 + 1)
    }

    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Reason::SyncFailed => "a sync has failed, and a new server could not know that",
            Reason::Unsynced => "what is not synced cannot be noted",
            Reason::Full => "more files are open or known than the note has room for",
            Reason::NoResend => "the kernel (before 6.9) cannot send requests again",
        }
    }
}

/// A mapped note. All methods may be called from any thread.
pub struct Note {
    base: *mut AtomicU64,
    file: OwnedFd,
}

// SAFETY: `base` points to a shared mapping of atomics that lives as long as this value.
unsafe impl Send for Note {}
// SAFETY: the same; all access is through atomics.
unsafe impl Sync for Note {}

impl Note {
    /// A new, empty note.
    ///
    /// # Errors
    /// As memfd_create(2), ftruncate(2) and mmap(2).
    pub fn create() -> io::Result<Note> {
        // SAFETY: the name is NUL-terminated.
        let fd = unsafe { libc::memfd_create(c"clonefs-note".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and owned by nobody else.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        rustix::fs::ftruncate(&file, WORDS * 8)?;
        let note = Note::map(file)?;
        note.set(Word::Version, VERSION);
        note.set(Word::Magic, MAGIC);
        Ok(note)
    }

    fn map(file: OwnedFd) -> io::Result<Note> {
        let (length, access) = ((WORDS * 8) as usize, libc::PROT_READ | libc::PROT_WRITE);
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: a new mapping of a file of that length; it replaces nothing.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, file.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Note { base: base.cast(), file }) }
    }

    /// Fails if this is no note that this program understands.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] says what is wrong.
    pub fn check(&self) -> io::Result<()> {
        let wrong = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        if self.get(Word::Magic) != MAGIC {
            return wrong("the note of the mount is damaged".to_owned());
        }
        if self.get(Word::Version) != VERSION {
            return wrong(format!("the note has version {}, this program knows {VERSION}", self.get(Word::Version)));
        }
        if self.served() && self.init().is_none() {
            return wrong("the exchange of INIT in the note is damaged".to_owned());
        }
        Ok(())
    }

    /// One word. Every access is through here.
    fn word(&self, at: u64) -> &AtomicU64 {
        assert!(at < WORDS, "word {at} lies beyond the note");
        // SAFETY: the mapping has WORDS words, is aligned to a page, and lives as long as `self`. Other processes that map
        // it (a holder, which only reads) use atomics too.
        unsafe { &*self.base.add(at as usize) }
    }

    fn get(&self, word: Word) -> u64 {
        self.word(word as u64).load(Ordering::Acquire)
    }

    fn set(&self, word: Word, value: u64) {
        self.word(word as u64).store(value, Ordering::Release);
    }

    fn bytes(&self, at: u64, length: usize) -> Vec<u8> {
        let words = (0..length.div_ceil(8) as u64).map(|index| self.word(at + index).load(Ordering::Relaxed));
        let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        bytes.truncate(length);
        bytes
    }

    fn set_bytes(&self, at: u64, bytes: &[u8]) {
        for (chunk, at) in bytes.chunks(8).zip(at..) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(at).store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
    }

    /// Remembers what kernel and server have agreed upon. The bytes are those of the messages.
    pub fn set_init(&self, request: &[u8], reply: &[u8]) -> io::Result<()> {
        if request.len() > LONGEST_INIT || reply.len() > LONGEST_INIT {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        self.set_bytes(AT_REQUEST, request);
        self.set_bytes(AT_REPLY, reply);
        self.set(Word::InitRequest, request.len() as u64);
        self.set(Word::InitReply, reply.len() as u64);
        self.set(Word::InitSum, sum_of(request, reply));
        Ok(())
    }

    /// Request and reply of INIT; `None` if there are none, or not as they were.
    pub fn init(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let lengths = (self.get(Word::InitRequest) as usize, self.get(Word::InitReply) as usize);
        if lengths.0 == 0 || lengths.0 > LONGEST_INIT || lengths.1 > LONGEST_INIT {
            return None;
        }
        let (request, reply) = (self.bytes(AT_REQUEST, lengths.0), self.bytes(AT_REPLY, lengths.1));
        (self.get(Word::InitSum) == sum_of(&request, &reply)).then_some((request, reply))
    }

    /// A server begins. Gives its number, which no other server of this mount has.
    pub fn begin(&self) -> u64 {
        self.word(Word::Begun as u64).fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The number of the server that began last.
    pub fn begun(&self) -> u64 {
        self.get(Word::Begun)
    }

    /// The server that began last serves.
    pub fn set_served(&self) {
        self.set(Word::Server, self.begun());
    }

    /// Whether any server has served, so that there is a mount to take over.
    pub fn served(&self) -> bool {
        self.get(Word::Server) != 0
    }

    /// Whether the server that began last has come to serve.
    pub fn last_served(&self) -> bool {
        self.get(Word::Server) == self.begun()
    }

    /// The mount is no more: nobody has to take it over.
    pub fn set_ended(&self) {
        self.set(Word::Ended, 1);
    }

    /// Whether it is no more.
    pub fn ended(&self) -> bool {
        self.get(Word::Ended) != 0
    }

    /// From now on a crash of the server ends the mount. The first reason stays; says whether this is the first.
    pub fn withdraw(&self, reason: Reason) -> bool {
        let word = self.word(Word::Withdrawn as u64);
        word.compare_exchange(0, reason.number(), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Why a crash would end the mount, if that is so.
    pub fn withdrawn(&self) -> Option<&'static str> {
        match self.get(Word::Withdrawn) {
            0 => None,
            number => Some(Reason::ALL.get(number as usize - 1).map_or("of an unknown reason", |reason| reason.text())),
        }
    }

    /// The last server has died by its own fault, not by somebody's kill.
    pub fn set_fault(&self) {
        self.set(Word::Fault, 1);
    }

    /// Whether it has; told once.
    fn take_fault(&self) -> bool {
        self.word(Word::Fault as u64).swap(0, Ordering::AcqRel) != 0
    }

    /// Remembers the device number of the mount.
    pub fn set_device(&self, device: u64) {
        self.set(Word::Device, device);
    }

    /// The device number of the mount.
    pub fn device(&self) -> u64 {
        self.get(Word::Device)
    }

    /// The process that holds the mount.
    pub fn set_holder(&self, pid: u32) {
        self.set(Word::Holder, pid.into());
    }

    /// The process that holds the mount.
    pub fn holder(&self) -> u32 {
        self.get(Word::Holder) as u32
    }

    /// The last generation of a node, and the last number that was made up for one.
    pub fn counters(&self) -> (u64, u64) {
        (self.get(Word::Generation), self.get(Word::MadeUp))
    }

    /// Remembers them. Stored before the node that has them is.
    pub fn set_counters(&self, generation: u64, made_up: u64) {
        self.set(Word::Generation, generation);
        self.set(Word::MadeUp, made_up);
    }

    /// Whether syncs had been begun and had not ended when the server before died: one of them may have been told of an
    /// error that nobody else will be.
    pub fn syncs_were_cut_off(&self) -> bool {
        self.get(Word::SyncsBegun) != self.get(Word::SyncsEnded)
    }

    /// All syncs that were begun are accounted for.
    pub fn syncs_are_settled(&self) {
        self.set(Word::SyncsEnded, self.get(Word::SyncsBegun));
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.cast(), (WORDS * 8) as usize) };
        let _ = &self.file;
    }
}

fn sum_of(request: &[u8], reply: &[u8]) -> u64 {
    crc32c::crc32c_append(crc32c::crc32c(request), reply).into()
}

/// The note of the mount that this process serves, if it has one. One process serves one mount.
static NOTE: OnceLock<Arc<Note>> = OnceLock::new();

/// Makes `note` that of this process.
pub fn install(note: Arc<Note>) {
    drop(NOTE.set(note));
}

/// A crash must end the mount from now on, for this reason. Nothing where there is no note.
pub fn withdraw(reason: Reason) {
    if let Some(note) = NOTE.get()
        && note.withdraw(reason)
    {
        tracing::warn!("a crash of this process would end the mount from now on: {}", reason.text());
    }
}

/// The mount that this process serves is to end with it.
pub fn end() {
    if let Some(note) = NOTE.get() {
        note.set_ended();
    }
}

/// Whether the mount of this process has a holder.
pub fn is_kept() -> bool {
    NOTE.get().is_some()
}

/// What happens when this process dies, for the status; `None`: its mount ends.
pub fn status() -> Option<Continuity> {
    let note = NOTE.get()?;
    let ends = note.withdrawn().map(str::to_owned);
    Some(Continuity { holder: note.holder(), servers: note.begun(), ends })
}

/// A sync of a file or of the filesystem is under way for as long as this lives.
pub struct Syncing(());

/// To be called before a sync whose failure the kernel tells once.
pub fn syncing() -> Syncing {
    if let Some(note) = NOTE.get() {
        note.word(Word::SyncsBegun as u64).fetch_add(1, Ordering::AcqRel);
    }
    Syncing(())
}

impl Drop for Syncing {
    fn drop(&mut self) {
        if let Some(note) = NOTE.get() {
            note.word(Word::SyncsEnded as u64).fetch_add(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_keeps_the_exchange_of_init_and_sees_that_it_was_changed() {
        let note = Note::create().unwrap();
        note.check().unwrap();
        note.set_init(b"the request", b"a reply").unwrap();
        assert_eq!(note.init(), Some((b"the request".to_vec(), b"a reply".to_vec())));
        note.begin();
        note.set_served();
        note.check().unwrap();
        note.set_bytes(AT_REQUEST, b"The");
        assert_eq!(note.init(), None);
        assert!(note.check().is_err());
    }

    #[test]
    fn a_note_of_another_version_is_refused() {
        let note = Note::create().unwrap();
        note.set(Word::Version, VERSION + 1);
        assert!(note.check().unwrap_err().to_string().contains("version 2"));
        note.set(Word::Magic, 7);
        assert!(note.check().unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn the_first_reason_stays() {
        let note = Note::create().unwrap();
        assert_eq!(note.withdrawn(), None);
        assert!(note.withdraw(Reason::Full));
        assert!(!note.withdraw(Reason::SyncFailed));
        assert_eq!(note.withdrawn(), Some(Reason::Full.text()));
    }
}
