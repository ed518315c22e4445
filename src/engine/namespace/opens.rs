//! Opening and closing regular files.

use std::sync::Arc;
use std::time::Duration;

use super::caller::Caller;
use super::handle::{Handle, OpenFile, is_plain_reader, opens_for_writing};
use super::ways::{Past, Register, Registered, Ways};
use super::{NameTree, snapshots, stale};
use crate::engine::volume::Volume;
use crate::error::Result;

/// How long an open for writing waits for handles that are just being closed.
const CLOSES: u32 = 10;
const CLOSE_PAUSE: Duration = Duration::from_millis(1);

impl NameTree {
    /// Opens a regular file. The kernel has checked permissions.
    pub fn open(&self, id: u64, flags: i32, caller: &Caller) -> Result<u64> {
        self.open_past(id, flags, caller, None).map(|(handle, _)| handle)
    }

    /// The same where the kernel can be told of a backing file: if it was, the open goes past the daemon.
    pub fn open_past(
        &self,
        id: u64,
        flags: i32,
        caller: &Caller,
        register: Option<Register>,
    ) -> Result<(u64, Option<Registered>)> {
        let changes = opens_for_writing(flags) || flags & libc::O_TRUNC != 0;
        let volume = self.volume(id)?;
        if changes && volume.is_snapshot() {
            return Err(snapshots::read_only("open for writing"));
        }
        // System calls, and so before the table's lock; dropped after it if another open came first.
        let mut past = self.prepare_past(id, &volume, flags, register);
        let (handle, registered) = self.add_handle(id, volume, flags, caller, &mut past)?;
        drop(past);
        if changes {
            // Now that it can be seen: a policy that comes into force looks for whoever writes after it did.
            let _asking = caller.asks();
            self.check_file_free("open for writing", id).inspect_err(|_| self.release(handle))?;
        }
        if is_plain_reader(flags) {
            // It may be cp, which looks at `st_blocks` next and then has to ask us, see `attributes`.
            self.attributes_changed(id);
        }
        Ok((handle, registered))
    }

    /// Waits a little for handles that come to the daemon to be closed: it hears of a close a moment after the program
    /// that made it, and machines' disks are opened several times in a row.
    pub(super) fn wait_for_closes(&self, id: u64) {
        let are_open = || {
            let table = self.table.lock();
            table.node(id).and_then(|node| node.open.as_ref()).is_some_and(|open| open.ways.are_to_daemon())
        };
        for _ in 0..CLOSES {
            if !are_open() {
                return;
            }
            std::thread::sleep(CLOSE_PAUSE);
        }
    }

    /// Adds a handle. It goes past the daemon if the others that are open do, or if it is the first and `past` is given.
    pub(super) fn add_handle(
        &self,
        id: u64,
        volume: Arc<Volume>,
        flags: i32,
        caller: &Caller,
        past: &mut Option<Past>,
    ) -> Result<(u64, Option<Registered>)> {
        let writes = opens_for_writing(flags);
        // Counted before the look at the name below: the name is removed before the pool is told that it was. So either
        // we see that it is gone, or the pool sees that the file is open.
        volume.open_handle(writes);
        let mut table = self.table.lock();
        let named = table.path(id).is_some();
        let Some(node) = table.node_mut(id).filter(|node| named || node.open.is_some()) else {
            drop(table);
            volume.close_handle(writes);
            return Err(stale());
        };
        let open = node.open.get_or_insert_with(|| OpenFile {
            volume,
            handles: 0,
            writers: 0,
            plain_readers: Vec::new(),
            privileges: Arc::default(),
            ways: Ways::None,
        });
        open.handles += 1;
        open.writers += u32::from(writes);
        if is_plain_reader(flags) {
            open.plain_readers.push(caller.pid);
        }
        let registered = open.ways.open(|| past.take()).map(|past| past.registered.clone());
        Ok((self.handles.add(Handle::new(id, open, flags, caller.pid)), registered))
    }

    /// Closes a regular file.
    pub fn release(&self, number: u64) {
        let Some(handle) = self.handles.remove(number) else { return };
        let writes = opens_for_writing(handle.flags);
        let mut past = None;
        let last = {
            let mut table = self.table.lock();
            let Some(node) = table.node_mut(handle.node) else { return };
            if let Some(open) = &mut node.open {
                open.handles -= 1;
                open.writers -= u32::from(writes);
                past = open.ways.close();
                if is_plain_reader(handle.flags)
                    && let Some(at) = open.plain_readers.iter().position(|pid| *pid == handle.pid)
                {
                    open.plain_readers.swap_remove(at);
                }
            }
            let last = node.open.take_if(|open| open.handles == 0);
            if last.is_some() {
                table.closed(handle.node);
            }
            last
        };
        drop(past);
        handle.volume.close_handle(writes);
        drop(last);
    }
}
