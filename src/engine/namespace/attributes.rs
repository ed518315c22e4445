//! Status of nodes and changes of it: mode, owner, times, size.

use std::io;
use std::sync::Arc;

use super::caller::{CAP_FSETID, Caller};
use super::copying;
use super::handle::Handle;
use super::{NameTree, TRIES, Target, errno, snapshots, stale};
use crate::engine::events::{Event, What};
use crate::engine::io::{FileKey, FileKind, SetTime, Stat};
use crate::engine::volume::Volume;
use crate::error::{Context, Error, Kind, Result};
use crate::protocol::ResizeRequest;

/// I/O size that regular files report: libvirt copies volumes in pieces of it.
const BLKSIZE: u32 = 1 << 20;

/// Status of a node as users see it.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    /// `st_ino`.
    pub ino: u64,
    /// All other fields.
    pub stat: Stat,
    /// Meant for the one who asked, and for nobody else.
    pub private: bool,
}

/// What to change of a node; `None` and [`SetTime::Keep`] leave things as they are.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size of a regular file.
    pub size: Option<u64>,
    /// Time of last access.
    pub atime: SetTime,
    /// Time of last change of contents.
    pub mtime: SetTime,
}

impl NameTree {
    /// Status of a node.
    pub fn attributes(&self, id: u64) -> Result<Attributes> {
        if snapshots::is_here(id) { self.snapshots_attributes(id) } else { self.honest_attributes(id) }
    }

    /// Whether [`NameTree::attributes_for_copier`] could tell `asker` something else than these attributes. Quick.
    pub fn may_be_copied(&self, id: u64, attributes: &Attributes, asker: &Caller) -> bool {
        let stat = &attributes.stat;
        let sparse = stat.kind() == FileKind::File && stat.blocks.saturating_mul(512) < stat.size;
        sparse
            && !snapshots::is_here(id)
            && self.reads_plainly(id, asker)
            && copying::program(&asker.executable()).is_some()
    }

    /// Status of a node as `asker` is to see it: cp and install see a file that they are certain to copy within this mount
    /// without holes, see `copying`. It looks at the process, whose memory can be a file of a filesystem that does not answer:
    /// call it where nobody else has to wait.
    pub fn attributes_for_copier(&self, id: u64, asker: &Caller) -> Result<Attributes> {
        let mut attributes = self.attributes(id)?;
        if self.may_be_copied(id, &attributes, asker) && self.is_copied_within(id, asker) {
            let stat = &mut attributes.stat;
            stat.blocks = stat.size.div_ceil(512);
            attributes.private = true;
        }
        Ok(attributes)
    }

    pub(super) fn honest_attributes(&self, id: u64) -> Result<Attributes> {
        for _ in 0..TRIES {
            let open = {
                let table = self.table.lock();
                let node = table.node(id).ok_or_else(stale)?;
                if let (Some(gone), None) = (node.gone, &node.open) {
                    return Ok(Attributes { ino: table.shown(id), stat: gone, private: false });
                }
                node.open.as_ref().map(|open| open.volume.clone())
            };
            let (path, backing) = match open.as_ref().and_then(|volume| volume.file()) {
                Some(file) => {
                    let path = self.path(id).unwrap_or_default();
                    (path.clone(), file.stat().context("look at", path)?)
                }
                None => {
                    let _namespace = self.namespace.read();
                    self.verified(id)?
                }
            };
            let stat = self.described(&path, backing);
            if self.is_still(id, open.as_ref(), backing.key) {
                return Ok(Attributes { ino: self.table.lock().shown(id), stat: stat?, private: false });
            }
        }
        Err(errno("look at a file that is replaced all the time", libc::EBUSY))
    }

    /// Whether `key` is the backing file of a node still. Where it is not, another one took its place between the look at
    /// it and what the pool said of it, and the two do not go together: a stub would show its own size.
    pub(super) fn is_still(&self, id: u64, open: Option<&Arc<Volume>>, key: FileKey) -> bool {
        // Waits for a swap that is under way.
        let _namespace = self.namespace.read();
        match open {
            Some(volume) => volume.key() == key,
            None => self.table.lock().node(id).is_some_and(|node| node.key == key),
        }
    }

    /// Status of a backing file as users see it.
    pub(super) fn described(&self, path: &std::path::Path, stat: Stat) -> Result<Stat> {
        if stat.kind() != FileKind::File {
            return Ok(if stat.kind() == FileKind::Directory { self.times.shown(stat) } else { stat });
        }
        let stat = self.pool.describe(path, stat)?;
        Ok(Stat { blksize: BLKSIZE, ..stat })
    }

    fn reads_plainly(&self, id: u64, asker: &Caller) -> bool {
        let table = self.table.lock();
        let open = table.node(id).and_then(|node| node.open.as_ref());
        open.is_some_and(|open| open.plain_readers.contains(&asker.pid))
    }

    /// Whether a change of attributes may have to wait until a file is frozen or copied. Quick.
    pub fn asks_first(&self, id: u64, change: &Change) -> bool {
        let times = change.mtime != SetTime::Keep;
        if change.size.is_none() && change.mode.is_none() && !times {
            return false;
        }
        let table = self.table.lock();
        let Some(node) = table.node(id).filter(|node| node.kind == FileKind::File) else { return false };
        match &node.open {
            Some(open) => open.volume.asks_first(),
            None => self.pool.is_shared(node.key),
        }
    }

    /// Changes attributes. The kernel has checked that the caller may do it.
    pub fn change(&self, id: u64, change: &Change, caller: &Caller) -> Result<()> {
        self.check_changeable(id)?;
        self.directory_changed(id);
        if change.uid.is_some() || change.gid.is_some() {
            // The backing filesystem clears setuid, setgid and capabilities of what is not a directory.
            self.change_owner(id, change.uid, change.gid)?;
        }
        if let Some(mode) = change.mode {
            self.change_mode(id, mode)?;
        }
        if let Some(size) = change.size {
            self.resize(id, size, caller)?;
        }
        if change.atime != SetTime::Keep || change.mtime != SetTime::Keep {
            self.set_times(id, change.atime, change.mtime)?;
        }
        Ok(())
    }

    fn change_owner(&self, id: u64, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let volume = {
            let table = self.table.lock();
            let node = table.node(id).ok_or_else(stale)?;
            let open = node.open.as_ref().map(|open| open.volume.clone());
            (open, node.key, node.kind)
        };
        let volume = match volume {
            (Some(open), ..) => open,
            // What an overlay holds belongs to its owner too.
            (None, key, FileKind::File) if self.pool.is_stub(key) => self.volume(id)?,
            _ => return self.with_target(id, "change the owner of", |target| target.chown(uid, gid)),
        };
        volume.chown(uid, gid).context("change the owner of", volume.path())
    }

    fn change_mode(&self, id: u64, mode: u32) -> Result<()> {
        let mode = mode & 0o7777;
        // Without it the owner, who may be the user that this daemon runs as, could not read a shared layer any more.
        if mode & libc::S_IRUSR == 0 && self.kind(id)? == FileKind::File {
            self.pool.before_touch(&self.volume(id)?)?;
        }
        let change = || self.with_target(id, "change the mode of", |target| target.chmod(mode));
        if mode & (libc::S_ISUID | libc::S_ISGID) == 0 {
            change()?;
        } else {
            self.unless_past(id, "give privileges to", change)?;
        }
        self.privileges_may_have_changed(id);
        Ok(())
    }

    fn resize(&self, id: u64, size: u64, caller: &Caller) -> Result<()> {
        let volume = self.volume(id)?;
        let _asking = caller.asks();
        if volume.writers() == 0 {
            // Whoever has it open for writing was allowed to: it may have made the file.
            self.check_file_free("set the size", id)?;
        }
        self.drop_privileges(id, &volume, caller)?;
        volume.set_size(size)
    }

    /// Another size for a volume, whoever has it open. Less than it has only if that was said, and nobody has it open.
    pub(super) fn set_volume_size(&self, id: u64, request: &ResizeRequest, caller: &Caller) -> Result<()> {
        self.check_volume_free("resize", id)?;
        let volume = self.volume(id)?;
        let refuse = |kind, why: String| Error::new(kind, "resize").at(volume.path()).because(why);
        let may = |now: u64| {
            if request.size >= now {
                return Ok(());
            }
            if !request.shrink {
                let remedy = "--shrink cuts off what lies beyond";
                return Err(refuse(Kind::Invalid, format!("it has {now} bytes")).remedy(remedy));
            }
            if volume.handles() > 0 {
                return Err(refuse(Kind::Busy, "it is open".into()).remedy("shut down what uses it first"));
            }
            Ok(())
        };
        self.drop_privileges(id, &volume, caller)?;
        volume.set_size_if(request.size, &may)?;
        let size = format!("to {} bytes", request.size);
        self.pool.events().tell(Event::new(What::Resized, volume.path()).because(size));
        self.grown(id, &volume)
    }

    /// Before a caller changes bytes by other means than a write, for which the kernel would tell us what to take away.
    pub(super) fn drop_privileges(&self, id: u64, volume: &Arc<Volume>, caller: &Caller) -> Result<()> {
        let privileges = {
            let table = self.table.lock();
            table.node(id).and_then(|node| node.open.as_ref()).map(|open| open.privileges.clone()).unwrap_or_default()
        };
        privileges.drop_for_write(volume, self.loses_ids(volume, caller))
    }

    /// The caller, if a write by it takes setuid or setgid bits away. Only files that have some cost a look at /proc.
    pub(super) fn loses_ids<'a>(&self, volume: &Arc<Volume>, caller: &'a Caller) -> Option<&'a Caller> {
        let mode = volume.file().and_then(|file| file.stat().ok()).map_or(0, |stat| stat.mode);
        (mode & (libc::S_ISUID | libc::S_ISGID) != 0 && !caller.capable(CAP_FSETID)).then_some(caller)
    }

    /// fallocate(2).
    pub fn allocate(&self, handle: &Handle, mode: i32, offset: u64, len: u64, caller: &Caller) -> Result<()> {
        handle.allocate(mode, offset, len, self.loses_ids(&handle.volume, caller))
    }

    fn set_times(&self, id: u64, atime: SetTime, mtime: SetTime) -> Result<()> {
        if mtime != SetTime::Keep && self.kind(id)? == FileKind::File {
            self.pool.before_touch(&self.volume(id)?)?;
        }
        self.with_target(id, "set the times of", |target| target.set_times(atime, mtime))
    }

    /// The next write to the file looks for privileges again.
    pub(super) fn privileges_may_have_changed(&self, id: u64) {
        let table = self.table.lock();
        if let Some(open) = table.node(id).and_then(|node| node.open.as_ref()) {
            open.privileges.may_have_changed();
        }
    }
}

impl Target {
    pub(super) fn chmod(&self, mode: u32) -> io::Result<()> {
        match self {
            Target::Open(file) => file.chmod(mode),
            Target::Held(file) => file.chmod(mode),
        }
    }

    fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        match self {
            Target::Open(file) => file.chown(uid, gid),
            Target::Held(file) => file.chown(uid, gid),
        }
    }

    fn set_times(&self, atime: SetTime, mtime: SetTime) -> io::Result<()> {
        match self {
            Target::Open(file) => file.set_times(atime, mtime),
            Target::Held(file) => file.set_times(atime, mtime),
        }
    }

    pub(super) fn stat(&self) -> io::Result<Stat> {
        match self {
            Target::Open(file) => file.stat(),
            Target::Held(file) => file.stat(),
        }
    }
}
