//! The line between a server and its holder: a pair of sockets that nobody else has an end of.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::engine::io::FileKey;

/// What a server tells its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Keep this descriptor of the mount.
    Device,
    /// Keep this descriptor of an open file that has no name any more.
    Keep(FileKey),
    /// Close it.
    LetGo(FileKey),
}

/// Two ends.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Tells something, with a descriptor. Does not wait for the other end.
pub fn tell(line: &OwnedFd, word: Word, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let (kind, key) = match word {
        Word::Device => (1u64, FileKey { dev: 0, ino: 0 }),
        Word::Keep(key) => (2, key),
        Word::LetGo(key) => (3, key),
    };
    let bytes: Vec<u8> = [kind, key.dev, key.ino].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut extra = SendAncillaryBuffer::new(&mut space);
    let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
    if !files.is_empty() {
        extra.push(SendAncillaryMessage::ScmRights(&files));
    }
    sendmsg(line, &[IoSlice::new(&bytes)], &mut extra, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    Ok(())
}

/// What was told, if anything was.
pub fn hear(line: &OwnedFd) -> io::Result<Option<(Word, Option<OwnedFd>)>> {
    let mut bytes = [0; 24];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut extra = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = match recvmsg(line.as_fd(), &mut [IoSliceMut::new(&mut bytes)], &mut extra, flags) {
        Ok(received) if received.bytes == bytes.len() => received.bytes,
        Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    debug_assert_eq!(received, bytes.len());
    let file = extra.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    let number = |at: usize| bytes[8 * at..][..8].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
    let number = |at: usize| if cfg!(target_endian = "little") { number(at) } else { number(at).swap_bytes() };
    let key = FileKey { dev: number(1), ino: number(2) };
    Ok(match number(0) {
        1 => Some((Word::Device, file)),
        2 => Some((Word::Keep(key), file)),
        3 => Some((Word::LetGo(key), file)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_arrive_with_their_descriptors() {
        let (one, other) = pair().unwrap();
        assert!(hear(&other).unwrap().is_none());
        let key = FileKey { dev: 3, ino: u64::MAX - 5 };
        tell(&one, Word::Device, Some(one.as_fd())).unwrap();
        tell(&one, Word::Keep(key), Some(one.as_fd())).unwrap();
        tell(&one, Word::LetGo(key), None).unwrap();
        let (word, file) = hear(&other).unwrap().unwrap();
        assert!(word == Word::Device && file.is_some());
        let (word, file) = hear(&other).unwrap().unwrap();
        assert!(word == Word::Keep(key) && file.is_some());
        let (word, file) = hear(&other).unwrap().unwrap();
        assert!(word == Word::LetGo(key) && file.is_none());
    }
}
