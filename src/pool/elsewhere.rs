//! Files of the pool that other processes hold open for writing without clonefs. They write past the mount, so such a
//! file cannot be cloned until they close it.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::mem::MaybeUninit;

use super::Pool;
use crate::door::Trouble;
use crate::error::{Error, Kind, Result};
use crate::io::FileKey;
use crate::volume::Volume;

/// All regular files on the device `dev` that other processes have open for writing, and who has.
pub fn writers(dev: u64) -> HashMap<FileKey, u32> {
    let mut found = HashMap::new();
    let me = std::process::id();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        if pid == me {
            continue;
        }
        for fd in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let Some(number) = fd.file_name().to_str().map(str::to_owned) else { continue };
            if opened_for_writing(pid, &number)
                && let Some(key) = key_of(&format!("/proc/{pid}/fd/{number}"))
                && key.dev == dev
            {
                found.insert(key, pid);
            }
        }
    }
    found
}

fn opened_for_writing(pid: u32, fd: &str) -> bool {
    let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
    let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).map(str::trim);
    flags.and_then(|f| i32::from_str_radix(f, 8).ok()).is_some_and(|f| f & libc::O_ACCMODE != libc::O_RDONLY)
}

/// Identity of what a path leads to, without asking its filesystem anew: that could be a mount that no longer answers.
fn key_of(path: &str) -> Option<FileKey> {
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
    let regular = st.stx_mode as u32 & libc::S_IFMT == libc::S_IFREG;
    regular.then(|| FileKey { dev: libc::makedev(st.stx_dev_major, st.stx_dev_minor), ino: st.stx_ino })
}

impl Pool {
    /// Looks for such files; for the start, before the pool is mounted.
    pub(super) fn look_elsewhere(&self) {
        let Some(root) = self.env.fs.root_fd().and_then(|_| self.env.fs.stat(std::path::Path::new("")).ok()) else {
            return;
        };
        *self.elsewhere.lock() = writers(root.key.dev).into_keys().collect::<HashSet<_>>();
    }

    /// Refuses to clone a file that somebody writes past the mount.
    pub(super) fn check_elsewhere(&self, source: &Volume) -> Result<()> {
        source.settle_bypass();
        let key = source.key();
        if !self.elsewhere.lock().contains(&key) {
            return Ok(());
        }
        let Some(pid) = writers(key.dev).get(&key).copied() else {
            self.elsewhere.lock().remove(&key);
            return Ok(());
        };
        Err(Error::new(Kind::Busy, "clone")
            .at(source.path())
            .because(format!("process {pid} opened it for writing before the pool was mounted"))
            .remedy("close it there, and open it again through the mount"))
    }

    /// The same for `status`.
    pub(super) fn elsewhere_troubles(&self) -> Vec<Trouble> {
        let keys = self.elsewhere.lock().clone();
        let Some(dev) = keys.iter().next().map(|k| k.dev) else { return Vec::new() };
        let open = writers(dev);
        let names = self.names();
        let still = keys.iter().filter_map(|key| Some((key, open.get(key)?)));
        still
            .filter_map(|(key, pid)| {
                let path = names.as_ref()?.path_of(*key)?;
                Some(Trouble {
                    path: path.to_string_lossy().into_owned(),
                    problem: format!("process {pid} writes it past the mount"),
                    remedy: "close it there, and open it again through the mount; until then it cannot be cloned"
                        .into(),
                })
            })
            .collect()
    }
}
