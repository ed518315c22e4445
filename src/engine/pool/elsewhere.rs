//! Files of the pool that other processes hold open for writing without clonefs. They write past the mount, so such a
//! file cannot be cloned until they close it.
//!
//! They are looked for when the pool is opened, in all processes of the machine; none can come later, as the mount is in
//! the way then. Such a look takes time: a status shows what the last one has found, and has another made on a thread of
//! its own, now and then, while there is any such file.

use std::collections::HashMap;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Pool;
use super::report::LIST_LIMIT;
use crate::engine::io::FileKey;
use crate::engine::volume::Volume;
use crate::error::{Error, Kind, Result};
use crate::protocol::Trouble;

/// What a status shows is not older than this when a new look begins.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Files that other processes have open for writing since before the mount, and a process that has.
#[derive(Default)]
pub(super) struct Elsewhere {
    files: HashMap<FileKey, u32>,
    looked: Option<Instant>,
    /// A look is under way.
    looking: bool,
}

/// All regular files on the device `dev` that other processes have open for writing, and who has.
fn writers(dev: u64) -> HashMap<FileKey, u32> {
    let me = std::process::id();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let others = processes.filter_map(|process| process.file_name().to_str()?.parse().ok()).filter(|pid| *pid != me);
    others.flat_map(|pid| written_by(pid).into_iter().map(move |key| (key, pid))).filter(|f| f.0.dev == dev).collect()
}

/// The regular files that a process has open for writing.
fn written_by(pid: u32) -> Vec<FileKey> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let written = |fd: std::fs::DirEntry| {
        let fd = fd.file_name().to_str().filter(|fd| opened_for_writing(pid, fd))?.to_owned();
        key_of(&format!("/proc/{pid}/fd/{fd}"), Kinds::Files)
    };
    descriptors.filter_map(written).collect()
}

fn opened_for_writing(pid: u32, fd: &str) -> bool {
    let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
    let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).map(str::trim);
    flags.and_then(|f| i32::from_str_radix(f, 8).ok()).is_some_and(|f| f & libc::O_ACCMODE != libc::O_RDONLY)
}

/// What is looked for.
#[derive(Clone, Copy)]
pub(super) enum Kinds {
    /// Regular files.
    Files,
    /// Directories.
    Directories,
}

/// Identity of what a path leads to, without asking its filesystem anew: that could be a mount that no longer answers.
pub(super) fn key_of(path: &str, kinds: Kinds) -> Option<FileKey> {
    let path = CString::new(path).ok()?;
    let mut st = MaybeUninit::<libc::statx>::uninit();
    let flags = libc::AT_STATX_DONT_SYNC;
    let mask = libc::STATX_INO | libc::STATX_TYPE;
    // SAFETY: path is NUL-terminated and st has room for a statx.
    let result = unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, mask, st.as_mut_ptr()) };
    if result != 0 {
        return None;
    }
    // SAFETY: the call succeeded, so the structure is filled.
    let st = unsafe { st.assume_init() };
    let wanted = match kinds {
        Kinds::Files => libc::S_IFREG,
        Kinds::Directories => libc::S_IFDIR,
    };
    (u32::from(st.stx_mode) & libc::S_IFMT == wanted)
        .then(|| FileKey { dev: libc::makedev(st.stx_dev_major, st.stx_dev_minor), ino: st.stx_ino })
}

impl Pool {
    /// Looks for such files; for the start, before the pool is mounted.
    pub(super) fn look_elsewhere(&self) {
        let Some(root) = self.env.fs.root_fd().and_then(|_| self.env.fs.stat(std::path::Path::new("")).ok()) else {
            return;
        };
        let files = writers(root.key.dev);
        *self.elsewhere.lock() = Elsewhere { files, looked: Some(Instant::now()), looking: false };
    }

    /// Refuses to clone a file that somebody writes past the mount.
    pub(super) fn check_elsewhere(&self, source: &Volume) -> Result<()> {
        source.settle_bypass();
        let key = source.key();
        let known = self.elsewhere.lock().files.get(&key).copied();
        let Some(known) = known else { return Ok(()) };
        // The one that had it has it still, or has passed it on.
        let still = written_by(known).contains(&key).then_some(known);
        let Some(pid) = still.or_else(|| self.look_elsewhere_again().and_then(|files| files.get(&key).copied())) else {
            return Ok(());
        };
        Err(Error::new(Kind::Busy, "clone")
            .at(source.path())
            .because(format!("process {pid} opened it for writing before the pool was mounted"))
            .remedy("close it there, and open it again through the mount"))
    }

    /// Takes out what nobody has open any more. What there is then; `None`: there was nothing to look for.
    fn look_elsewhere_again(&self) -> Option<HashMap<FileKey, u32>> {
        let dev = self.elsewhere.lock().files.keys().next()?.dev;
        let open = writers(dev);
        let mut elsewhere = self.elsewhere.lock();
        elsewhere.files.retain(|key, pid| open.get(key).inspect(|now| *pid = **now).is_some());
        elsewhere.looked = Some(Instant::now());
        Some(elsewhere.files.clone())
    }

    /// The same for `status`, as it was a few seconds ago.
    pub(super) fn elsewhere_troubles(self: &Arc<Self>) -> Vec<Trouble> {
        let files: Vec<(FileKey, u32)> = {
            let mut elsewhere = self.elsewhere.lock();
            let due = elsewhere.looked.is_none_or(|looked| looked.elapsed() >= LOOK_AGAIN);
            if due && !elsewhere.looking && !elsewhere.files.is_empty() {
                elsewhere.looking = true;
                self.look_in_background();
            }
            elsewhere.files.iter().take(LIST_LIMIT).map(|(key, pid)| (*key, *pid)).collect()
        };
        let Some(names) = self.names().filter(|_| !files.is_empty()) else { return Vec::new() };
        let trouble = |(key, pid): (FileKey, u32)| {
            let path = names.path_of(key)?.to_string_lossy().into_owned();
            let problem = format!("process {pid} writes it past the mount");
            let remedy = "close it there, and open it again through the mount; until then it cannot be cloned";
            Some(Trouble { path, problem, remedy: remedy.into() })
        };
        files.into_iter().filter_map(trouble).collect()
    }

    /// For whoever has set `looking`.
    fn look_in_background(self: &Arc<Self>) {
        let pool = Arc::downgrade(self);
        let look = move || {
            if let Some(pool) = pool.upgrade() {
                pool.look_elsewhere_again();
                pool.elsewhere.lock().looking = false;
            }
        };
        // Without a thread there is no other look.
        drop(std::thread::Builder::new().name("clonefs-elsewhere".into()).spawn(look));
    }
}
