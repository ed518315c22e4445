//! Requests: each becomes one call of the name tree or of an open [`Handle`].

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags as FuseWriteFlags,
};

use super::changes::{attribute_removed, attribute_set, changed, linked, written};
use super::convert::{absent, attr, change, device, file_type, flags_of_rename, whence};
use super::once::turn;
use super::replies::{
    code, open_flags, reply_attributes, reply_empty, reply_found, reply_with, reply_written, reply_xattr, trusted,
};
use super::{Adapter, Lifetimes, edge, past};
use crate::engine::io::{FileRef, writes_for};
use crate::engine::namespace::{Caller, Creation, Handle, Listed, Register, WriteFlags, get_takes_long, set_may_wait};
use crate::protocol;

/// Largest read or write request, the most that the kernel sends without a change of its settings.
const MAX_WRITE: u32 = 1 << 20;
/// Background requests (asynchronous direct I/O, read-ahead) that may be in flight.
const MAX_BACKGROUND: u16 = 512;
/// Most bytes of one copy_file_range, as its reply has 32 bits: whole blocks.
const MAX_COPY: u64 = 0xffff_f000;

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
        ];
        for flag in wanted {
            // What an older kernel lacks costs speed, or shared mappings, and nothing else.
            if config.add_capabilities(flag).is_err() {
                tracing::warn!("this kernel's FUSE lacks {flag:?}");
            }
        }
        // It makes the mount count as one that lies on another, so it is not asked for in vain.
        if self.names.wants_passthrough() {
            self.passthrough = past::ask_for_it(config);
        }
        let too_small = |_| io::Error::from_raw_os_error(libc::EPROTO);
        config.set_max_write(MAX_WRITE).map_err(too_small)?;
        config.set_max_background(MAX_BACKGROUND).map_err(|_| io::Error::from_raw_os_error(libc::EPROTO))?;
        Ok(())
    }

    // ---- names ---------------------------------------------------------------------------------------------------

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _turn = turn!(self, "lookup", req, reply);
        edge("lookup", || match self.names.lookup_by(parent.0, name, &caller(req)) {
            // Number 0: there is no such name, and the kernel may remember that.
            Err(error) if error.errno() == libc::ENOENT => {
                let never = absent(fuser::FileType::RegularFile);
                let short = self.names.is_transient(parent.0, name);
                let lifetime = if short { Duration::ZERO } else { self.lifetimes.attributes };
                reply.entry_with_ttls(&Duration::ZERO, &lifetime, &never, Generation(0));
            }
            Ok(found) if self.names.is_transient(parent.0, name) => {
                reply_found(&found, &Lifetimes { names: Duration::ZERO, ..self.lifetimes }, reply);
            }
            result => self.reply_entry(result, reply),
        });
    }

    fn forget(&self, _: &Request, id: INodeNo, count: u64) {
        edge("forget", || self.names.forget(id.0, count));
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        let how = Creation { mode, umask, rdev: device(rdev), caller: caller(req) };
        let turn = self.once.turn("mknod", req);
        let make = || self.names.make(parent.0, name, &how);
        edge("mknod", || self.reply_entry(self.made(&turn, (parent.0, name), &caller(req), make), reply));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let how = Creation { mode: mode & 0o7777 | libc::S_IFDIR, umask, rdev: 0, caller: caller(req) };
        let turn = self.once.turn("mkdir", req);
        let make = || self.names.make(parent.0, name, &how);
        edge("mkdir", || self.reply_entry(self.made(&turn, (parent.0, name), &caller(req), make), reply));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let turn = self.once.turn("symlink", req);
        let make = || self.names.symlink(parent.0, name, target, caller(req));
        edge("symlink", || self.reply_entry(self.made(&turn, (parent.0, name), &caller(req), make), reply));
    }

    fn readlink(&self, _: &Request, id: INodeNo, reply: ReplyData) {
        edge("readlink", || match self.names.readlink(id.0) {
            Ok(target) => reply.data(target.as_os_str().as_encoded_bytes()),
            Err(error) => reply.error(code("readlink", &error)),
        });
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let caller = caller(req);
        let _asking = caller.asks();
        let turn = self.once.turn("unlink", req);
        let remove = || self.names.unlink(parent.0, name, &caller);
        edge("unlink", || reply_empty("unlink", self.removed(&turn, (parent.0, name), remove), reply));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let turn = self.once.turn("rmdir", req);
        let remove = || self.names.rmdir(parent.0, name, &caller(req));
        edge("rmdir", || reply_empty("rmdir", self.removed(&turn, (parent.0, name), remove), reply));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let caller = caller(req);
        let _asking = caller.asks();
        let turn = self.once.turn("rename", req);
        edge("rename", || {
            let (from, to) = ((parent.0, name), (newparent.0, newname));
            let result = flags_of_rename(flags).and_then(|how| self.renamed(&turn, from, to, how, &caller));
            reply_empty("rename", result, reply);
        });
    }

    fn link(&self, req: &Request, id: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let (names, name, lifetimes) = (self.names.clone(), newname.to_owned(), self.lifetimes);
        let (turn, on) = (self.once.turn("link", req), self.once.is_on());
        let link = move || match linked(&names, &turn, on, id.0, (newparent.0, &name)) {
            Ok(found) => reply_found(&found, &lifetimes, reply),
            Err(error) => reply.error(code("link", &error)),
        };
        self.workers.run("link", req.uid(), link);
    }

    // ---- attributes ----------------------------------------------------------------------------------------------

    fn getattr(&self, req: &Request, id: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let turn = turn!(self, "getattr", req, reply);
        let (lifetime, caller) = (self.lifetimes.attributes, caller(req));
        edge("getattr", || match self.names.attributes(id.0) {
            Ok(truth) if self.names.may_be_copied(id.0, &truth, &caller) => {
                self.lookers.reply(&self.names, (id, truth), caller, lifetime, (reply, turn));
            }
            result => {
                reply_with(result, lifetime, reply);
                drop(turn);
            }
        });
    }

    fn setattr(
        &self,
        req: &Request,
        id: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (change, caller) = (change(mode, uid, gid, size, atime, mtime), caller(req));
        let (names, lifetime) = (self.names.clone(), self.lifetimes.attributes);
        let (once, turn) = (self.once.clone(), self.once.turn("setattr", req));
        let asks_first = names.asks_first(id.0, &change);
        let set = move || {
            let _writing = writes_for(caller.uid);
            match changed(&once, &turn, id.0, size.is_some(), || names.change(id.0, &change, &caller)) {
                Ok(()) => reply_attributes(&names, id, lifetime, reply),
                Err(error) => reply.error(code("setattr", &error)),
            }
        };
        if asks_first { self.changers.run("setattr", caller.uid, set) } else { edge("setattr", set) }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        edge("statfs", || match self.names.pool().fs().info() {
            Ok(fs) => {
                let unit = fs.block_size as u32;
                reply.statfs(fs.blocks, fs.free, fs.available, fs.files, fs.files_free, unit, fs.name_max, unit);
            }
            Err(error) => reply.error(Errno::from(error)),
        });
    }

    fn getxattr(&self, req: &Request, id: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (caller, turn) = (caller(req), turn!(self, "getxattr", req, reply));
        if !get_takes_long(name) {
            let get = || self.names.get_xattr(id.0, name, &caller);
            return edge("getxattr", || reply_xattr("getxattr", get(), size, reply));
        }
        let (names, name) = (self.names.clone(), name.to_owned());
        self.workers.run("getxattr", caller.uid, move || {
            reply_xattr("getxattr", names.get_xattr(id.0, &name, &caller), size, reply);
            drop(turn);
        });
    }

    fn setxattr(&self, req: &Request, id: INodeNo, name: &OsStr, value: &[u8], flags: i32, _: u32, reply: ReplyEmpty) {
        let caller = caller(req);
        let (turn, on) = (self.once.turn("setxattr", req), self.once.is_on());
        if !set_may_wait(name) {
            let set = || attribute_set((&self.names, &turn, on), id.0, (name, value, flags), &caller);
            return edge("setxattr", || reply_empty("setxattr", set(), reply));
        }
        self.set_attribute(turn, id.0, (name, value, flags), caller, reply);
    }

    fn listxattr(&self, req: &Request, id: INodeNo, size: u32, reply: ReplyXattr) {
        edge("listxattr", || reply_xattr("listxattr", self.names.list_xattr(id.0, &caller(req)), size, reply));
    }

    fn removexattr(&self, req: &Request, id: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (turn, on) = (self.once.turn("removexattr", req), self.once.is_on());
        let remove = || attribute_removed(&self.names, &turn, on, id.0, name, &caller(req));
        edge("removexattr", || reply_empty("removexattr", remove(), reply));
    }

    // ---- open files ----------------------------------------------------------------------------------------------

    fn open(&self, req: &Request, id: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let turn = self.once.turn("open", req);
        edge("open", || {
            if self.once.is_on() {
                let open = || self.names.open(id.0, flags.0, &caller(req));
                return match self.opened(&turn, id.0, open) {
                    Ok(handle) => past::reply_open(reply, FileHandle(handle), None),
                    Err(error) => reply.error(code("open", &error)),
                };
            }
            let register = |file: &FileRef| past::register(&reply, file);
            let register: Option<Register> = self.passthrough.then_some(&register);
            match self.names.open_past(id.0, flags.0, &caller(req), register) {
                Ok((handle, registered)) => past::reply_open(reply, FileHandle(handle), registered),
                Err(error) => reply.error(code("open", &error)),
            }
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let how = Creation { mode: mode & 0o7777 | libc::S_IFREG, umask, rdev: 0, caller: caller(req) };
        let turn = self.once.turn("create", req);
        let make = || self.names.create(parent.0, name, &how, flags);
        edge("create", || match self.made_open(&turn, (parent.0, name), (flags, &how.caller), make) {
            Ok((found, handle)) => {
                let (attr, generation) = (attr(&found.attributes), Generation(found.generation));
                let lifetime = trusted(self.lifetimes.attributes, &found.attributes);
                reply.created(&lifetime, &attr, generation, FileHandle(handle), open_flags());
            }
            Err(error) => reply.error(code("create", &error)),
        });
    }

    fn read(
        &self,
        req: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // One that the ring goes on with is not suspected any more: the ring's thread touches nothing but its buffer.
        let _turn = turn!(self, "read", req, reply);
        edge("read", || self.reading.read(self.names.handles().get(handle.0), offset, size, reply));
    }

    fn write(
        &self,
        req: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        how: FuseWriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let cached = how.contains(FuseWriteFlags::FUSE_WRITE_CACHE);
        let kill_ids = how.contains(FuseWriteFlags::FUSE_WRITE_KILL_SUIDGID).then(|| caller(req));
        let how = WriteFlags { kill_ids, cached, sync: flags.0 };
        let handle = match self.names.handles().get(handle.0) {
            Ok(handle) => handle,
            Err(error) => return reply.error(code("write", &error)),
        };
        // What the kernel writes back from its cache is nobody's request: it is the owner's.
        let whose = (!cached).then(|| req.uid());
        let (once, turn) = (self.once.clone(), self.once.turn("write", req));
        if handle.volume.asks_first() {
            let data = data.to_vec();
            let write = move || {
                let _writing = whose.map(writes_for);
                reply_written(written(&once, &turn, &handle, (offset, &data), how), reply);
            };
            return self.changers.run("write", req.uid(), write);
        }
        edge("write", || {
            let _writing = whose.map(writes_for);
            reply_written(written(&once, &turn, &handle, (offset, data), how), reply);
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Nothing is held back here. The kernel hears that it need not ask at each close; it still pushes its pages.
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, req: &Request, _: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let _turn = turn!(self, "fsync", req, reply);
        edge("fsync", || self.with_handle("fsync", handle, reply, |handle| handle.sync(data_only)));
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        edge("release", || self.names.release(handle.0));
        reply.ok();
    }

    fn fallocate(
        &self,
        req: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let (names, caller) = (self.names.clone(), caller(req));
        let (once, turn) = (self.once.clone(), self.once.turn("fallocate", req));
        let asks_first = names.handles().get(handle.0).is_ok_and(|handle| handle.volume.asks_first());
        let allocate = move || {
            let _writing = writes_for(caller.uid);
            let open = names.handles().get(handle.0);
            let allocate = |open: &Handle| names.allocate(open, mode, offset, length, &caller);
            let done = open.and_then(|open| changed(&once, &turn, open.node, true, || allocate(&open)));
            reply_empty("fallocate", done, reply);
        };
        if asks_first { self.changers.run("fallocate", caller.uid, allocate) } else { edge("fallocate", allocate) }
    }

    fn lseek(&self, req: &Request, _: INodeNo, handle: FileHandle, offset: i64, how: i32, reply: ReplyLseek) {
        edge("lseek", || {
            let (handle, whence, offset) =
                match (self.names.handles().get(handle.0), whence(how), u64::try_from(offset)) {
                    (Ok(handle), Ok(whence), Ok(offset)) => (handle, whence, offset),
                    (Err(error), ..) | (_, Err(error), _) => return reply.error(code("lseek", &error)),
                    _ => return reply.error(Errno::ENXIO),
                };
            let names = self.names.clone();
            let may_wait = names.seek_may_wait(&handle);
            let seek = move || match names.seek(&handle, offset, whence) {
                Ok(at) => reply.offset(at as i64),
                Err(error) => reply.error(code("lseek", &error)),
            };
            if may_wait { self.workers.run("lseek", req.uid(), seek) } else { seek() }
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _: INodeNo,
        handle_in: FileHandle,
        offset_in: u64,
        _: INodeNo,
        handle_out: FileHandle,
        offset_out: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let turn = self.once.turn("copy_file_range", req);
        let (from, to) = ((handle_in.0, offset_in), (handle_out.0, offset_out));
        self.copy_range(turn, from, to, len.min(MAX_COPY), (caller(req), reply));
    }

    fn ioctl(
        &self,
        req: &Request,
        _: INodeNo,
        handle: FileHandle,
        flags: IoctlFlags,
        command: u32,
        argument: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        let ours = [protocol::IOC_TOKEN, protocol::IOC_CLONE, protocol::IOC_PIN].contains(&command);
        if !ours || flags.contains(IoctlFlags::FUSE_IOCTL_DIR) {
            return reply.error(Errno::ENOTTY);
        }
        let turn = turn!(self, "ioctl", req, reply);
        self.control(turn, handle.0, (command, argument), caller(req), reply);
    }

    // ---- open directories ----------------------------------------------------------------------------------------

    fn opendir(&self, req: &Request, id: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let turn = self.once.turn("opendir", req);
        edge("opendir", || match self.opened(&turn, id.0, || self.names.open_directory(id.0)) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(error) => reply.error(code("opendir", &error)),
        });
    }

    fn readdir(&self, req: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let _turn = turn!(self, "readdir", req, reply);
        edge("readdir", || {
            let listed = self.names.list(handle.0, offset, &caller(req), |offset, entry| {
                !reply.add(INodeNo(entry.ino), offset, file_type(entry.kind), &entry.name)
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(code("readdir", &error)),
            }
        });
    }

    fn readdirplus(&self, req: &Request, id: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let _turn = turn!(self, "readdirplus", req, reply);
        edge("readdirplus", || {
            let caller = caller(req);
            let add = |offset, entry: Listed| self.add_plus(id.0, offset, &entry, &caller, &mut reply);
            match self.names.list(handle.0, offset, &caller, add) {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(code("readdirplus", &error)),
            }
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        edge("releasedir", || self.names.release_directory(handle.0));
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, id: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        edge("fsyncdir", || reply_empty("fsyncdir", self.names.sync_directory(id.0), reply));
    }
}
