//! What the daemon tells the kernel, and asks of it, unasked.

use fuser::{INodeNo, Notifier};

use crate::engine::namespace::Kernel;

/// The kernel's end of a mount.
pub struct KernelEnd(pub Notifier);

impl Kernel for KernelEnd {
    fn flush_pages(&self, node: u64) {
        // Offset 0, length 0: the whole file. Dirty pages are written to us before the call returns.
        if let Err(error) = self.0.inval_inode(INodeNo(node), 0, 0) {
            tracing::warn!("cannot get cached pages of node {node} from the kernel: {error}");
        }
    }

    fn attributes_changed(&self, node: u64) {
        // A negative offset: attributes only, no pages.
        if let Err(error) = self.0.inval_inode(INodeNo(node), -1, 0) {
            tracing::warn!("cannot tell the kernel that node {node} has changed: {error}");
        }
    }

    fn grown(&self, node: u64, offset: u64, last: u8) {
        // The kernel takes a new size from what is stored into its cache, if that is at least one byte.
        if let Err(error) = self.0.store(INodeNo(node), offset, &[last]) {
            tracing::warn!("cannot tell the kernel the new size of node {node}: {error}");
        }
    }
}
