//! Requests that can wait, for pages that the kernel holds or for a close: they run on `Workers`.

use std::ffi::OsStr;
use std::time::Duration;

use fuser::{ReplyEmpty, ReplyIoctl, ReplyWrite};

use super::Adapter;
use super::changes::{attribute_set, cloned, copied};
use super::once::Turn;
use super::replies::{code, reply_empty};
use crate::engine::io::writes_for;
use crate::engine::namespace::{Caller, set_wants_closed};
use crate::protocol;

/// For so long something open is taken for something that is being closed: the kernel tells of a close after it has
/// returned.
const CLOSING: Duration = Duration::from_secs(2);

impl Adapter {
    /// Sets an attribute that is a door.
    pub(super) fn set_attribute(
        &self,
        turn: Turn,
        id: u64,
        (name, value, flags): (&OsStr, &[u8], i32),
        caller: Caller,
        reply: ReplyEmpty,
    ) {
        let (names, on) = (self.names.clone(), self.once.is_on());
        let (tree, name, value) = (self.names.clone(), name.to_owned(), value.to_vec());
        let wants_closed = set_wants_closed(&name, &value);
        let set = move || {
            let set = attribute_set((&tree, &turn, on), id, (&name, &value, flags), &caller);
            reply_empty("setxattr", set, reply);
        };
        if wants_closed {
            let closed = (move || !names.is_open(id), CLOSING);
            self.workers.run_when("setxattr", caller.uid, closed, set);
        } else {
            self.workers.run("setxattr", caller.uid, set);
        }
    }

    /// Copies a range between two handles, each with its offset.
    pub(super) fn copy_range(
        &self,
        turn: Turn,
        from: (u64, u64),
        to: (u64, u64),
        length: u64,
        (caller, reply): (Caller, ReplyWrite),
    ) {
        let names = self.names.clone();
        self.workers.run("copy_file_range", caller.uid, move || {
            let _writing = writes_for(caller.uid);
            let copy = || {
                let (source, target) = (names.handles().get(from.0)?, names.handles().get(to.0)?);
                copied(&names, &turn, (&source, from.1), (&target, to.1), (length, &caller))
            };
            match copy() {
                Ok(bytes) => reply.written(bytes as u32),
                Err(error) => reply.error(code("copy_file_range", &error)),
            }
        });
    }

    /// An ioctl of ours on a handle.
    pub(super) fn control(
        &self,
        turn: Turn,
        number: u64,
        (command, argument): (u32, &[u8]),
        caller: Caller,
        reply: ReplyIoctl,
    ) {
        let (names, argument) = (self.names.clone(), argument.to_vec());
        self.workers.run("ioctl", caller.uid, move || {
            let answer = names.handles().get(number).and_then(|handle| match command {
                protocol::IOC_TOKEN => names.token_of(&handle, &caller),
                protocol::IOC_CLONE => cloned(&names, &turn, &handle, &argument, &caller).map(|()| Vec::new()),
                _ => names.pin_kept(number, &handle).map(|()| Vec::new()),
            });
            match answer {
                Ok(data) => reply.ioctl(0, &data),
                Err(error) => reply.error(code("ioctl", &error)),
            }
        });
    }
}
