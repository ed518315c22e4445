//! Opens that go past the daemon.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use fuser::{BackingId, Errno, FileHandle, FopenFlags, InitFlags, KernelConfig, ReplyOpen};

use crate::engine::io::{FileRef, Powers, acting_as};
use crate::engine::namespace::Registered;

/// Asks the kernel for it; whether it has it.
pub fn ask_for_it(config: &mut KernelConfig) -> bool {
    let granted = config.set_max_stack_depth(1).is_ok() && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
    if !granted {
        tracing::warn!("no passthrough: this kernel has none");
    }
    granted
}

/// Tells the kernel of a backing file.
pub fn register(reply: &ReplyOpen, file: &FileRef) -> io::Result<Registered> {
    let fd = file.fd().ok_or_else(|| io::Error::from_raw_os_error(libc::EOPNOTSUPP))?;
    // The kernel reads and writes with the identity that it is told of the file with: with the owner's, writers do not
    // come to the blocks that the filesystem keeps for root.
    let owner = file.stat()?;
    // SAFETY: `file` keeps the descriptor open during the call.
    let open = || reply.open_backing(unsafe { BorrowedFd::borrow_raw(fd) });
    let backing: BackingId = acting_as(owner.uid, owner.gid, Powers::WRITE, open)??;
    Ok(Arc::new(backing))
}

/// Replies to an open that goes past the daemon if there is a backing file, and to the daemon otherwise.
pub fn reply_open(reply: ReplyOpen, handle: FileHandle, registered: Option<Registered>) {
    match registered.as_ref().map(|registered| registered.downcast_ref()) {
        None => reply.opened(handle, super::replies::open_flags()),
        Some(Some(backing)) => reply.opened_passthrough(handle, FopenFlags::empty(), backing),
        // Only `register` makes them.
        Some(None) => reply.error(Errno::EIO),
    }
}
