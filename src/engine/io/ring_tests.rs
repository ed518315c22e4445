//! The ring by itself: what arrives, what does not, and that nothing is let go of too early.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::engine::io::{Fs, HostFs, Open};

/// A ring; `None`, said loudly, where this machine has none.
fn ring() -> Option<Ring> {
    match Ring::start() {
        Ok(ring) => Some(ring),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "io_uring: {error}");
            eprintln!("SKIPPED: io_uring cannot be used here: {error}");
            None
        }
    }
}

/// A file of these bytes, and what keeps it.
fn file(bytes: &[u8]) -> (tempfile::TempDir, FileRef) {
    let dir = tempfile::tempdir().unwrap();
    let fs = HostFs::open_dir(dir.path()).unwrap();
    let file = fs.open(Path::new("file"), Open::CreateNew(0o600)).unwrap();
    file.write_at(bytes, 0).unwrap();
    evict(&file);
    (dir, file)
}

/// Nothing of it is in the page cache any more.
fn evict(file: &FileRef) {
    file.sync_data().unwrap();
    // SAFETY: the descriptor is open.
    unsafe { libc::posix_fadvise(file.fd().unwrap(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// Bytes that differ from block to block.
fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 % 251 + i / 4096) as u8).collect()
}

type End = io::Result<Vec<u8>>;

/// Begins a read through the file's own descriptor, or another one.
fn begin(ring: &Ring, fd: RawFd, file: &FileRef, offset: u64, len: usize) -> Receiver<End> {
    let (tell, told) = channel();
    let read = ring.prepare_on(fd, file, offset, len).unwrap();
    ring.begin(read, move |end| drop(tell.send(end.map(|buffer| buffer.to_vec()))));
    told
}

fn pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    std::io::pipe().unwrap()
}

#[test]
fn many_reads_bring_their_own_bytes() {
    let (Some(ring), data) = (ring(), bytes(1 << 20)) else { return };
    let (_dir, file) = file(&data);
    let fd = file.fd().unwrap();
    // More than go to the kernel in one call.
    let ends: Vec<_> = (0..3 * ENTRIES as usize)
        .map(|i| {
            let (at, len) = (i * 37 % 200 * 4096, [4096, 8192, 65536, 1000][i % 4]);
            (at, len, begin(&ring, fd, &file, at as u64, len))
        })
        .collect();
    for (at, len, end) in ends {
        assert!(end.recv().unwrap().unwrap() == data[at..at + len], "{len} bytes at {at}");
    }
}

#[test]
fn what_is_not_in_the_cache_can_be_read_directly() {
    let (Some(ring), data) = (ring(), bytes(64 << 10)) else { return };
    let (_dir, file) = file(&data);
    // Where the filesystem has direct reads at all.
    let Some(read) = ring.prepare(&file, true, 8192, 4096) else { return };
    let (tell, told) = channel();
    ring.begin(read.keeping("anything"), move |end| drop(tell.send(end.map(|buffer| buffer.to_vec()))));
    assert!(told.recv().unwrap().unwrap() == data[8192..12288]);
    for (offset, len) in [(512, 4096), (0, 4095), (0, 0)] {
        assert!(ring.prepare(&file, true, offset, len).is_none(), "{len} bytes at {offset}");
    }
    // Its page is in the cache now, and nobody knows whether it will ever be on the disk.
    file.write_at(&[1; 4096], 8192).unwrap();
    assert!(ring.prepare(&file, true, 8192, 4096).is_none());
    assert!(ring.prepare(&file, true, 0, 4096).is_some(), "the page beside it");
    evict(&file);
    assert!(ring.prepare(&file, true, 8192, 4096).is_some());
}

#[test]
fn the_end_of_the_file_is_an_error() {
    let (Some(ring), data) = (ring(), bytes(10_000)) else { return };
    let (_dir, file) = file(&data);
    let fd = file.fd().unwrap();
    for offset in [8192, 9999, 10_000, 1 << 40] {
        let error = begin(&ring, fd, &file, offset, 4096).recv().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "at {offset}");
    }
    assert!(begin(&ring, fd, &file, 0, 10_000).recv().unwrap().unwrap() == data);
}

#[test]
fn after_an_error_the_file_is_read_in_the_ordinary_way() {
    let (Some(ring), data) = (ring(), bytes(8192)) else { return };
    let (dir, file) = file(&data);
    let unreadable = std::fs::File::options().write(true).open(dir.path().join("file")).unwrap();
    let error = begin(&ring, unreadable.as_raw_fd(), &file, 0, 4096).recv().unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    assert!(ring.prepare(&file, true, 0, 4096).is_none());
    let mut found = vec![0; 8192];
    assert_eq!(file.read_direct(&mut found, 0).unwrap(), 8192);
    assert!(found == data);
}

#[test]
fn reads_that_hang_hold_nobody_up_and_end_in_any_order() {
    let Some(ring) = ring() else { return };
    let (_dir, file) = file(&bytes(4096));
    let mut pipes: Vec<_> = (0..50).map(|_| pipe()).collect();
    let ends: Vec<_> = pipes.iter().map(|(from, _)| begin(&ring, from.as_raw_fd(), &file, 0, 4096)).collect();
    begin(&ring, file.fd().unwrap(), &file, 0, 4096).recv().unwrap().unwrap();
    for (number, ((_, to), end)) in pipes.iter_mut().zip(&ends).enumerate().rev() {
        assert!(end.try_recv().is_err(), "{number} has ended by itself");
        to.write_all(&[number as u8; 4096]).unwrap();
        assert!(end.recv().unwrap().unwrap() == [number as u8; 4096]);
    }
}

#[test]
fn the_end_of_the_ring_waits_for_what_is_in_flight() {
    let Some(ring) = ring() else { return };
    let (_dir, file) = file(&bytes(4096));
    let (from, mut to) = pipe();
    let held = Arc::new(());
    let (tell, told) = channel();
    let read = ring.prepare_on(from.as_raw_fd(), &file, 0, 4096).unwrap().keeping(held.clone());
    ring.begin(read, move |end| drop(tell.send(end.map(|buffer| buffer.to_vec()))));
    let shared = ring.shared.clone();
    let ending = thread::spawn(move || drop(ring));
    while !shared.queue.lock().closed {
        thread::yield_now();
    }
    assert!(told.try_recv().is_err());
    assert_eq!(Arc::strong_count(&held), 2, "what is in flight was let go of");
    to.write_all(&[5; 4096]).unwrap();
    ending.join().unwrap();
    // The thread is gone, and with it everything that it had.
    assert!(told.try_recv().unwrap().unwrap() == [5; 4096]);
    assert_eq!((Arc::strong_count(&held), Arc::strong_count(&shared)), (1, 1));
    assert_eq!(shared.count.load(Ordering::Relaxed), 0);
}

#[test]
fn a_panic_of_one_is_not_the_end_of_others() {
    let Some(ring) = ring() else { return };
    let (_dir, file) = file(&bytes(4096));
    let fd = file.fd().unwrap();
    ring.begin(ring.prepare_on(fd, &file, 0, 4096).unwrap(), |_| panic!("as a bug would"));
    assert!(begin(&ring, fd, &file, 0, 4096).recv().unwrap().is_ok());
}

#[test]
fn there_is_a_limit_to_what_is_in_flight() {
    let Some(ring) = ring() else { return };
    let (_dir, file) = file(&bytes(4096));
    let fd = file.fd().unwrap();
    let mut many: Vec<Read> = (0..MOST).map(|_| ring.prepare_on(fd, &file, 0, 4096).unwrap()).collect();
    assert!(ring.prepare_on(fd, &file, 0, 4096).is_none());
    many.pop();
    assert!(ring.prepare_on(fd, &file, 0, 4096).is_some());
}

/// From now on this thread, and those it starts, get EPERM from one system call.
fn forbid(call: libc::c_long) {
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        // The number of the call is the first word; EPERM for this one, all others go on.
        step((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, 0),
        step((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 0, 1, call as u32),
        step((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter live until the calls return; they change nothing but this thread's rights.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}

#[test]
fn a_ring_that_is_forbidden_is_refused_at_the_start() {
    for call in [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register] {
        let refused = thread::spawn(move || {
            forbid(call);
            Ring::start().err().and_then(|error| error.raw_os_error())
        });
        assert_eq!(refused.join().unwrap(), Some(libc::EPERM), "call {call}");
    }
}
