//! Positions in a directory: what a reader gets who remembers one, closes the directory, and goes on in another open.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::support::{Backing, Pool, c_path, noise, on, on_each_filesystem, ready, result, seek};

/// Bytes that a reader takes at once: a few entries.
const LITTLE: usize = 600;

/// getdents64(2): names, each with the position after it.
fn read_names(directory: &fs::File, bytes: usize) -> Vec<(String, i64)> {
    let mut room = vec![0u8; bytes];
    let (fd, at) = (directory.as_raw_fd(), room.as_mut_ptr());
    // SAFETY: the descriptor is open, and the buffer is as long as said.
    let len = result(unsafe { libc::syscall(libc::SYS_getdents64, fd, at, bytes) }).expect("read a directory");
    let mut rest = &room[..len as usize];
    let mut found = Vec::new();
    // Inode number (8 bytes), position (8), length of the entry (2), kind (1), name.
    while !rest.is_empty() {
        let position = i64::from_ne_bytes(rest[8..16].try_into().unwrap());
        let (entry, others) = rest.split_at(u16::from_ne_bytes(rest[16..18].try_into().unwrap()).into());
        found.push((CStr::from_bytes_until_nul(&entry[19..]).unwrap().to_str().unwrap().to_owned(), position));
        rest = others;
    }
    found
}

/// Reads a directory as a server without state does: for each piece it is opened, and sought where the last piece ended.
fn read_in_pieces(directory: &Path, bytes: usize, mut between: impl FnMut(usize)) -> Vec<String> {
    let (mut position, mut found) = (0, Vec::new());
    for step in 0.. {
        let open = fs::File::open(directory).expect("open the directory");
        assert_eq!(seek(&open, position, libc::SEEK_SET).expect("seek"), position);
        let piece = read_names(&open, bytes);
        let Some((_, last)) = piece.last() else { break };
        position = *last;
        found.extend(piece.into_iter().map(|(name, _)| name));
        drop(open);
        between(step);
    }
    found
}

fn count(names: Vec<String>) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    names.into_iter().for_each(|name| *counts.entry(name).or_default() += 1);
    counts
}

#[test]
fn who_goes_on_in_another_open_gets_each_name_that_stays_once() {
    on_each_filesystem(|pool| {
        let images = ["stays-source", "stays-clone-1", "stays-clone-2"];
        pool.write("stays-source", &noise(1, 100_000));
        images[1..].iter().for_each(|clone| pool.clone("stays-source", clone));
        let stays: Vec<String> = (0..300).map(|number| format!("stays-{number}")).collect();
        stays.iter().chain(&(0..300).map(|number| format!("goes-{number}")).collect::<Vec<_>>()).for_each(|name| {
            pool.write(name, b"");
        });
        let root = pool.root().to_owned();
        let pool = std::cell::RefCell::new(pool);
        let found = read_in_pieces(&root, LITTLE, |step| {
            fs::write(root.join(format!("new-{step}")), "").expect("make");
            let (one, two) = (root.join(format!("goes-{step}")), root.join(format!("goes-{}", 299 - step)));
            drop((fs::remove_file(one), fs::rename(two, root.join(format!("moved-{step}")))));
            let mut pool = pool.borrow_mut();
            match step {
                // Other files come under the names of source and clone.
                3 => {
                    let source = fs::File::options().write(true).open(pool.at("stays-source")).expect("open");
                    source.write_all_at(b"frozen now", 0).expect("write");
                }
                5 => pool.deepen("stays-clone-1"),
                6 => pool.deepen("stays-clone-2"),
                8 => {
                    pool.unmount();
                    pool.mount("deepen=manual");
                }
                12 => pool.crash("deepen=manual"),
                _ => {}
            }
        });
        let counts = count(found);
        for name in images.into_iter().chain(stays.iter().map(String::as_str)).chain([".", ".."]) {
            assert_eq!(counts.get(name), Some(&1), "{name}");
        }
        assert!(!counts.contains_key(".clonefs"));
    });
}

#[test]
fn positions_that_were_told_lead_back_to_the_same_names() {
    on(&[Backing::Ext4, Backing::Btrfs], |pool| {
        (0..200).for_each(|number| drop(pool.write(&format!("file-{number}"), b"")));
        // SAFETY: the path is NUL-terminated, the stream is used below only, by this thread, and closed at the end; names
        // are copied before the next call.
        unsafe {
            let stream = libc::opendir(c_path(pool.root()).as_ptr());
            assert!(!stream.is_null());
            let next = || {
                let entry = libc::readdir64(stream);
                (!entry.is_null()).then(|| CStr::from_ptr((*entry).d_name.as_ptr()).to_str().unwrap().to_owned())
            };
            let mut told = vec![(libc::telldir(stream), next())];
            while told.last().unwrap().1.is_some() {
                told.push((libc::telldir(stream), next()));
            }
            assert_eq!(told.len(), 200 + 3);
            for (position, name) in told.iter().rev().chain(&told) {
                libc::seekdir(stream, *position);
                assert_eq!(next(), *name, "at {position}");
            }
            // What goes is not there any more, and the next one comes in its place.
            let (position, gone) = &told[100];
            fs::remove_file(pool.at(gone.as_ref().unwrap())).expect("remove");
            pool.write("new", b"");
            libc::rewinddir(stream);
            let again: Vec<String> = std::iter::from_fn(next).collect();
            assert!(again.contains(&"new".to_owned()) && !again.contains(gone.as_ref().unwrap()));
            libc::seekdir(stream, *position);
            let following = next();
            assert!(following == told[101].1 || following.as_deref() == Some("new"), "{following:?}");
            libc::closedir(stream);
        }
    });
}

/// Many names: more than are kept in memory at a time.
#[test]
fn two_hundred_thousand_names_come_once_each() {
    const NAMES: usize = 200_000;
    if !ready() {
        return;
    }
    let mut pool = Pool::unmounted(Backing::Tmpfs);
    fs::create_dir(pool.below("many")).expect("directory");
    (0..NAMES).for_each(|number| drop(fs::File::create(pool.below(format!("many/name-{number}"))).expect("file")));
    pool.mount("deepen=manual");
    let began = std::time::Instant::now();
    let open = fs::File::open(pool.at("many")).expect("open");
    let mut read = 0;
    while let more @ 1.. = read_names(&open, 32 << 10).len() {
        read += more;
    }
    assert_eq!(read, NAMES + 2);
    eprintln!("in one open: {:?}", began.elapsed());
    let began = std::time::Instant::now();
    let counts = count(read_in_pieces(&pool.at("many"), 32 << 10, |_| ()));
    eprintln!("an open for each piece: {:?}", began.elapsed());
    assert_eq!(counts.len(), NAMES + 2);
    assert!(counts.values().all(|count| *count == 1));
}
