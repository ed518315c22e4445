//! The doors of [`crate::protocol`]: virtual attributes and ioctls.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::caller::Caller;
use super::handle::Handle;
use super::{HIDDEN, NameTree, errno, stale};
use crate::engine::events::log::{self, Cursor};
use crate::engine::events::{Event, What};
use crate::engine::io::{File, FileKind, Open, Whence};
use crate::engine::pool::CloneOptions;
use crate::engine::pool::check::{Report, check_unlocked};
use crate::engine::volume::Volume;
use crate::error::{Context, Error, Kind, Result};
use crate::protocol::{self, CloneRequest, DeepenAction, DeepenRequest, DiffPage, PoolStatus, VolumeInfo};
use crate::units::BLOCK;

/// Longest value of an attribute that the kernel lets through.
const LONGEST_VALUE: usize = 65536;
/// How often a check of a served pool looks again at what it found, and how long it waits before.
const CHECK_AGAIN: usize = 4;
const CHECK_PAUSE: Duration = Duration::from_millis(50);

/// Extents in one answer: it fits into an attribute however long the numbers are.
const DIFF_RUNS: usize = 1000;
/// Bytes of a token; in text it is twice as many hexadecimal digits.
const TOKEN_BYTES: usize = 16;

/// Whether two descriptors are of one file.
fn is_same(one: &dyn File, other: &dyn File) -> bool {
    matches!((one.stat(), other.stat()), (Ok(one), Ok(other)) if one.key == other.key)
}

impl NameTree {
    pub(super) fn get_door(&self, id: u64, name: &OsStr, caller: &Caller) -> Result<Vec<u8>> {
        let kind = self.kind(id)?;
        match (kind, name.to_str().unwrap_or_default()) {
            (FileKind::Directory, protocol::STATUS) => shortened(self.status(caller), |status| {
                status.jobs.truncate(status.jobs.len() / 2);
                status.troubles.truncate(status.troubles.len() / 2);
            }),
            (FileKind::File | FileKind::Directory, protocol::POLICY) => self.get_policy(id),
            (FileKind::Directory, protocol::POLICIES) => self.list_policies(caller),
            (FileKind::Directory, name) if is_events(name) => self.read_events(name, caller),
            (FileKind::Directory, protocol::CHECK) => shortened(self.check(caller)?, |report| {
                report.problems.truncate(report.problems.len() / 2);
            }),
            (FileKind::File, protocol::SNAPSHOT) => json(&self.describe_snapshot(id)?),
            (FileKind::File, name) if name.starts_with(protocol::DIFF) => json(&self.diff(id, name)?),
            (FileKind::File, protocol::TOKEN) => Ok(self.pool.token(&self.volume(id)?, caller.uid)?.into_bytes()),
            (FileKind::File, name) => self.describe_volume(id, name, caller),
            _ => Err(no_such_attribute()),
        }
    }

    /// Where a file and the one that a token in the attribute's name stands for can differ.
    fn diff(&self, id: u64, name: &str) -> Result<DiffPage> {
        let request = name.strip_prefix(protocol::DIFF).and_then(|rest| rest.split_once('.'));
        let request = request.and_then(|(token, from)| Some((token, from.parse().ok()?)));
        let (token, from) = request.ok_or_else(no_such_attribute)?;
        let other = self.pool.redeem(token)?;
        let volume = self.volume(id)?;
        for node in [volume.key(), other.key()] {
            crate::engine::pool::Names::flush_cached(self, node);
        }
        let found = self.pool.differences(&volume, &other, from, DIFF_RUNS)?;
        let extent = |run: &std::ops::Range<u64>| (run.start * BLOCK, (run.end - run.start) * BLOCK);
        let mut next = found.next;
        if found.runs.len() > DIFF_RUNS {
            next = Some(found.runs[DIFF_RUNS].start);
        }
        Ok(DiffPage { extents: found.runs.iter().take(DIFF_RUNS).map(extent).collect(), next })
    }

    fn describe_volume(&self, id: u64, name: &str, caller: &Caller) -> Result<Vec<u8>> {
        let text: fn(VolumeInfo) -> String = match name {
            protocol::USAGE => return json(&self.pool.usage(&self.volume(id)?)?),
            protocol::INFO => return json(&self.info(id, caller)?),
            protocol::STATE => |info| info.state.word().to_owned(),
            protocol::PROGRESS => |info| format_percent(info.progress),
            protocol::PARENT => |info| info.parent.unwrap_or_default(),
            protocol::ORIGIN => |info| info.origin.unwrap_or_default(),
            protocol::DEPTH => |info| info.depth.to_string(),
            protocol::UNIQUE_BYTES => |info| info.unique_bytes.to_string(),
            protocol::SHARED_BYTES => |info| info.shared_bytes.to_string(),
            _ => return Err(no_such_attribute()),
        };
        Ok(text(self.info(id, caller)?).into_bytes())
    }

    fn info(&self, id: u64, caller: &Caller) -> Result<VolumeInfo> {
        let mut info = self.pool.info(&self.volume(id)?)?;
        if info.origin.is_some() {
            let owner = self.honest_attributes(id)?.stat.uid;
            info.origin = self.origin_seen(owner, info.origin, caller);
        }
        Ok(info)
    }

    fn status(&self, caller: &Caller) -> PoolStatus {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let status = self.only_seen(self.pool.status(), caller);
        PoolStatus {
            pool: text(&self.settings.pool),
            mountpoint: text(&self.settings.mountpoint),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            passthrough: self.settings.passthrough.word().to_owned(),
            open_past: self.count_past(),
            ..status
        }
    }

    /// What is wrong on disk. A change under way can look wrong for a moment; damage looks wrong each time.
    fn check(&self, caller: &Caller) -> Result<Report> {
        administrators_only("check a pool that is served", caller)?;
        self.pool.flush()?;
        let mut report = check_unlocked(&self.fs)?;
        for _ in 0..CHECK_AGAIN {
            if report.problems.is_empty() {
                break;
            }
            std::thread::sleep(CHECK_PAUSE);
            let again = check_unlocked(&self.fs)?;
            report.problems.retain(|problem| again.problems.contains(problem));
        }
        Ok(report)
    }

    pub(super) fn set_door(&self, id: u64, name: &OsStr, value: &[u8], caller: &Caller) -> Result<()> {
        let kind = self.kind(id)?;
        match (kind, name.to_str().unwrap_or_default()) {
            (FileKind::File, protocol::CLONE) => {
                self.told("clone", id, caller, || self.clone_by_request(id, value, caller))
            }
            (FileKind::File, protocol::GROUP) => self.told("group", id, caller, || self.carry_out_group(value, caller)),
            (FileKind::File, protocol::CLONE_FROM) => {
                self.told("clone", id, caller, || self.clone_by_path(id, value, caller))
            }
            (FileKind::File, protocol::SNAPSHOT) => {
                self.told("snapshot", id, caller, || self.snapshot(id, value, caller))
            }
            (FileKind::File, protocol::RESET) => self.told("reset", id, caller, || self.reset(id, value, caller)),
            (FileKind::File, protocol::RESIZE) => self.told("resize", id, caller, || {
                let request = serde_json::from_slice(value).map_err(|e| bad_request("resize", e))?;
                self.set_volume_size(id, &request, caller)
            }),
            (FileKind::File | FileKind::Directory, protocol::DEEPEN) => {
                self.told("deepen", id, caller, || self.deepen(id, kind, value, caller))
            }
            (FileKind::File | FileKind::Directory, protocol::POLICY) => {
                self.told("policy", id, caller, || self.set_policy(id, value, caller))
            }
            (FileKind::Directory, protocol::FLUSH) => self.flush(value, caller),
            (FileKind::Directory, protocol::SCRUB) => self.scrub(value, caller),
            _ => Err(Error::new(Kind::Permission, "set an attribute that is reserved for clonefs")),
        }
    }

    fn scrub(&self, value: &[u8], caller: &Caller) -> Result<()> {
        administrators_only("scrub a pool", caller)?;
        if value != b"start" {
            return Err(Error::new(Kind::Invalid, "scrub").because("the only request is `start`"));
        }
        self.pool.begin_scrub();
        Ok(())
    }

    fn clone_by_request(&self, target: u64, value: &[u8], caller: &Caller) -> Result<()> {
        let request: CloneRequest = serde_json::from_slice(value).map_err(|e| bad_request("clone", e))?;
        let source = self.pool.redeem(&request.token)?;
        let CloneRequest { size, no_deepen, sync, group, .. } = request;
        let options = CloneOptions { size, no_deepen, sync, ..CloneOptions::default() };
        if let Some(group) = group {
            return self.join_group(group, &source, target, options, caller);
        }
        self.clone_into(&source, target, &options, caller)
    }

    fn clone_by_path(&self, target: u64, value: &[u8], caller: &Caller) -> Result<()> {
        let path = self.resolve(target, Path::new(OsStr::from_bytes(value)))?;
        // The caller's own rights decide, on every directory of the path and on the file: stubs carry the volume's mode,
        // owner and ACL, so this is the kernel's own check.
        let open = || self.fs.open(&path, Open::Read).context("open the source of a clone", &path);
        let file = caller.act(open)?;
        // Whoever copies a file with its attributes (`cp -a`, `rsync -X`) brings this one along, with a path that a
        // stranger chose, and then gives the copy the stranger's mode. So this door opens only what strangers may read.
        let everybody = match crate::engine::io::effective_uid() {
            // The same file: the path may lead to another one by now.
            0 => Caller::stranger().act(open).is_ok_and(|theirs| is_same(&*theirs, &*file)),
            _ => file.stat().context("look at", &path)?.mode & 0o004 != 0,
        };
        if !everybody {
            return Err(errno("clone by path", libc::EACCES)
                .at(&path)
                .remedy("not everybody may read the source: use `clonefs clone`, or a token (user.clonefs.token)"));
        }
        let key = file.stat().context("look at", &path)?.key;
        let source = self.pool.volume(key, &path)?;
        if source.key() != key {
            return Err(stale().at(&path));
        }
        self.clone_into(&source, target, &CloneOptions::default(), caller)
    }

    /// Path below the root that a user means by `path`, seen from the directory of the file `from`. Links are not
    /// followed, and `..` is taken by the letter.
    fn resolve(&self, from: u64, path: &Path) -> Result<PathBuf> {
        let outside = || Error::new(Kind::CrossPool, "clone from").at(path).because("it is not inside this mount");
        let start = match path.strip_prefix(&self.settings.mountpoint) {
            _ if path.as_os_str().is_empty() => return Err(bad_request("clone from", "the path is empty")),
            Ok(below) => below.to_owned(),
            Err(_) if path.is_absolute() => return Err(outside()),
            Err(_) => self.path(from)?.parent().unwrap_or(Path::new("")).join(path),
        };
        let mut resolved = PathBuf::new();
        for component in start.components() {
            match component {
                Component::Normal(name) => resolved.push(name),
                Component::ParentDir if !resolved.pop() => return Err(outside()),
                _ => {}
            }
        }
        if resolved.starts_with(HIDDEN) {
            return Err(errno("clone from", libc::ENOENT).at(path));
        }
        Ok(resolved)
    }

    fn clone_into(&self, source: &Arc<Volume>, id: u64, options: &CloneOptions, caller: &Caller) -> Result<()> {
        let target = self.volume(id)?;
        if target.size()? != 0 {
            return Err(Error::new(Kind::Exists, "clone into")
                .at(self.path(id).unwrap_or_default())
                .because("the destination is not empty"));
        }
        self.drop_privileges(id, &target, caller)?;
        self.pool.clone_volume(source, &target, options)?;
        self.grown(id, &target)
    }

    /// Does what makes a clone. That it was refused is an event, as that it was made is one.
    fn told<T>(&self, operation: &str, target: u64, caller: &Caller, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _asking = caller.asks();
        work().inspect_err(|error| {
            let refused = !matches!(error.kind(), Kind::Io | Kind::Damaged | Kind::Changed | Kind::Latched);
            let refused = refused || matches!(error.os_error(), Some(libc::EACCES | libc::EPERM));
            let path = self.path(target).unwrap_or_default();
            let what = if refused { What::Refused } else { What::Failed };
            self.pool.events().tell(Event::new(what, path).because(format!("{operation}: {error}")));
        })
    }

    /// Administrators see all events, others those of what they have asked for.
    fn read_events(&self, name: &str, caller: &Caller) -> Result<Vec<u8>> {
        let place = name.strip_prefix(protocol::EVENTS).and_then(|rest| rest.strip_prefix('.'));
        let from = place.map_or(Ok(Cursor::default()), str::parse)?;
        self.pool.events().settle();
        let mut page = log::read(self.fs.as_ref(), from)?;
        if !caller.is_administrator() {
            page.events.retain(|event| event.uid == Some(caller.uid));
        }
        json(&page)
    }

    fn deepen(&self, id: u64, kind: FileKind, value: &[u8], caller: &Caller) -> Result<()> {
        let request = deepen_request(value)?;
        if kind == FileKind::Directory {
            administrators_only("control the background work of a pool", caller)?;
            return self.pool.deepen(None, &request);
        }
        let owner = self.honest_attributes(id)?.stat.uid;
        if caller.uid != owner {
            administrators_only("control the background work of another user's volume", caller)?;
        }
        if request.rate.is_some() {
            // It is one rate for all volumes, whichever file it is asked for at.
            administrators_only("set the rate of a pool", caller)?;
        }
        if request.action == DeepenAction::Start {
            self.check_may_deepen(id)?;
        }
        self.pool.deepen(Some(&self.volume(id)?), &request)
    }

    fn flush(&self, value: &[u8], caller: &Caller) -> Result<()> {
        administrators_only("flush a pool", caller)?;
        if value != b"sync" {
            return Err(bad_request("flush", "the value is not \"sync\""));
        }
        let written = self.table.lock().open_for_writing();
        for id in written {
            self.flush_node(id);
        }
        // Plain files that nobody has open, names and attributes are the backing filesystem's.
        self.fs.sync_fs().context("sync filesystem", "")?;
        self.pool.flush()
    }

    /// A token for the file of a handle that is open for reading, as bytes.
    pub fn token_of(&self, handle: &Handle, caller: &Caller) -> Result<Vec<u8>> {
        if !handle.can_read() {
            return Err(errno("read from a handle that is open for writing only", libc::EBADF));
        }
        let text = self.pool.token(&handle.volume, caller.uid)?;
        (0..TOKEN_BYTES)
            .map(|at| text.get(2 * at..2 * at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok()))
            .collect::<Option<Vec<u8>>>()
            .ok_or_else(|| Error::new(Kind::Io, "write a token as bytes"))
    }

    /// The clone ioctl, on a handle that is open for writing. Can wait for write-back: not for a FUSE thread.
    pub fn clone_by_ioctl(&self, handle: &Handle, argument: &[u8], caller: &Caller) -> Result<()> {
        handle.check_writable()?;
        let (token, options) = clone_argument(argument)?;
        self.told("clone", handle.node, caller, || {
            self.clone_into(&self.pool.redeem(&token)?, handle.node, &options, caller)
        })
    }

    /// Pins a handle to this moment. Can wait for write-back: not for a FUSE thread.
    pub fn pin(&self, handle: &Handle) -> Result<()> {
        if !handle.can_read() {
            return Err(errno("read from a handle that is open for writing only", libc::EBADF));
        }
        if !handle.is_pinned() {
            handle.pin_to(self.pool.pin(&handle.volume)?);
        }
        Ok(())
    }

    /// copy_file_range(2). Can wait for write-back: not for a FUSE thread. May copy less than `len`.
    pub fn copy_range(
        &self,
        (source, from): (&Handle, u64),
        (target, to): (&Handle, u64),
        len: u64,
        caller: &Caller,
    ) -> Result<u64> {
        target.check_writable()?;
        if source.is_pinned() {
            // The kernel falls back to reading and writing, and reads the point in time that this handle shows.
            return Err(Error::new(Kind::Unsupported, "copy a range of a pinned handle"));
        }
        self.drop_privileges(target.node, &target.volume, caller)?;
        let copy = || self.pool.copy_range(&source.volume, from, &target.volume, to, len);
        let copied = self.told("clone", target.node, caller, copy)?;
        target.sync_as_opened(target.flags)?;
        Ok(copied)
    }

    /// Next data or hole, after what was stored through mappings has arrived. Whether it may have to wait for that, and
    /// so must not run on a FUSE thread, says [`NameTree::seek_may_wait`].
    pub fn seek(&self, handle: &Handle, offset: u64, whence: Whence) -> Result<u64> {
        if !handle.is_pinned() {
            self.flush_node(handle.node);
        }
        handle.seek(offset, whence)
    }

    /// The kernel can hold pages of the file that have to come here before data and holes are known.
    pub fn seek_may_wait(&self, handle: &Handle) -> bool {
        let table = self.table.lock();
        let open = table.node(handle.node).and_then(|node| node.open.as_ref());
        !handle.is_pinned() && open.is_some_and(|open| open.writers > 0)
    }
}

pub(super) fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::new(Kind::Invalid, "write JSON").because(e))
}

/// As JSON that fits into an attribute; `shorten` takes half of what can be left out.
fn shortened<T: Serialize>(mut value: T, shorten: impl Fn(&mut T)) -> Result<Vec<u8>> {
    let mut text = json(&value)?;
    for _ in 0..usize::BITS {
        if text.len() <= LONGEST_VALUE {
            break;
        }
        shorten(&mut value);
        text = json(&value)?;
    }
    Ok(text)
}

fn format_percent(percent: f64) -> String {
    // Rounded down: 100 means that nothing is missing.
    if percent >= 100.0 { "100".to_owned() } else { format!("{:.1}", (percent * 10.0).floor() / 10.0) }
}

fn deepen_request(value: &[u8]) -> Result<DeepenRequest> {
    let action = match value {
        b"start" => DeepenAction::Start,
        b"pause" => DeepenAction::Pause,
        b"resume" => DeepenAction::Resume,
        _ => return serde_json::from_slice(value).map_err(|e| bad_request("deepen", e)),
    };
    Ok(DeepenRequest { action, rate: None, physical: false })
}

/// Token and options in the argument of the clone ioctl.
fn clone_argument(argument: &[u8]) -> Result<(String, CloneOptions)> {
    let (Some(token), Some(size), Some(flags)) =
        (argument.get(..TOKEN_BYTES), number_at(argument, 16), number_at(argument, 24))
    else {
        return Err(bad_request("clone", "the argument is shorter than 32 bytes"));
    };
    if flags & !(protocol::CLONE_NO_DEEPEN | protocol::CLONE_SYNC | protocol::CLONE_NO_COPY) != 0 {
        return Err(bad_request("clone", format!("unknown flags {flags:#x}")));
    }
    let options = CloneOptions {
        size: (size != 0).then_some(size),
        no_deepen: flags & protocol::CLONE_NO_DEEPEN != 0,
        sync: flags & protocol::CLONE_SYNC != 0,
        no_copy: flags & protocol::CLONE_NO_COPY != 0,
        ..CloneOptions::default()
    };
    Ok((token.iter().map(|byte| format!("{byte:02x}")).collect(), options))
}

fn is_events(name: &str) -> bool {
    name.strip_prefix(protocol::EVENTS).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Decodes `bytes` as each kind of request that a door takes, and does nothing with it. For fuzzing.
#[doc(hidden)]
pub fn decode_requests(bytes: &[u8]) {
    let _ = (clone_argument(bytes), deepen_request(bytes), serde_json::from_slice::<CloneRequest>(bytes));
}

fn number_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

pub(super) fn administrators_only(what: &'static str, caller: &Caller) -> Result<()> {
    if caller.is_administrator() { Ok(()) } else { Err(Error::new(Kind::Permission, what)) }
}

fn no_such_attribute() -> Error {
    errno("read a virtual attribute", libc::ENODATA)
}

pub(super) fn bad_request(what: &'static str, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(Kind::Invalid, what).because(cause)
}
