//! Points in time: pinned handles, and mappings, whose stores the kernel alone knows of.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use clonefs::protocol;

use crate::read_write;
use crate::support::{Mapping, errno, ioctl, noise, on_each_filesystem, seek, wait_until};

#[test]
fn a_pinned_handle_reads_one_moment() {
    on_each_filesystem(|pool| {
        let bytes = noise(1, 300_000);
        pool.write("file", &bytes);
        let pinned = File::open(pool.at("file")).unwrap();
        ioctl(&pinned, protocol::IOC_PIN, &mut []).unwrap();
        let writer = read_write(&pool.at("file"));
        writer.write_all_at(&[7; 50_000], 100).unwrap();
        writer.set_len(200_000).unwrap();
        let read = |file: &File| {
            let mut bytes = vec![0; 400_000];
            let mut done = 0;
            while let len @ 1.. = file.read_at(&mut bytes[done..], done as u64).unwrap() {
                done += len;
            }
            bytes.truncate(done);
            bytes
        };
        assert!(read(&pinned) == bytes);
        assert_eq!(seek(&pinned, 0, libc::SEEK_HOLE).unwrap(), 300_000);
        assert_eq!(read(&writer).len(), 200_000);
        // A second pin keeps the first moment.
        ioctl(&pinned, protocol::IOC_PIN, &mut []).unwrap();
        assert!(read(&pinned) == bytes);
        // Reading on after the file was removed.
        fs::remove_file(pool.at("file")).unwrap();
        assert!(read(&pinned) == bytes);

        pool.write("file", &bytes);
        let both = read_write(&pool.at("file"));
        ioctl(&both, protocol::IOC_PIN, &mut []).unwrap();
        assert_eq!(errno(both.write_at(b"x", 0)), libc::EBADF);
        let write_only = OpenOptions::new().write(true).open(pool.at("file")).unwrap();
        assert_eq!(errno(ioctl(&write_only, protocol::IOC_PIN, &mut [])), libc::EBADF);
        // Nothing is left behind when it is closed.
        drop((pinned, both, write_only, writer));
        fs::remove_file(pool.at("file")).unwrap();
        wait_until(|| (pool.mounted().status().overlays, pool.mounted().status().layers) == (0, 0));
    });
}

#[test]
fn stores_through_a_mapping_are_in_the_clone_and_found_as_data() {
    on_each_filesystem(|pool| {
        let path = pool.write("file", &vec![0; 1 << 20]);
        let file = read_write(&path);
        file.set_len(0).unwrap();
        file.set_len(1 << 20).unwrap();
        let mut mapping = Mapping::new(&file, 1 << 20).unwrap();
        for round in 0u8..5 {
            let at = 100_000 * usize::from(round);
            mapping.bytes()[at..at + 9].copy_from_slice(b"by a store"[..9].as_ref());
            mapping.bytes()[at + 9] = round;
            let data = seek(&file, at as i64 / 4096 * 4096, libc::SEEK_DATA).unwrap();
            assert_eq!(data, at as i64 / 4096 * 4096, "round {round}");
            let clone = format!("clone-{round}");
            pool.clone("file", &clone);
            // A store after the clone is not in it.
            let before = mapping.bytes().to_vec();
            mapping.bytes()[at] = b'X';
            assert!(pool.read(&clone) == before, "round {round}");
            let mut direct = vec![0; 10];
            file.read_exact_at(&mut direct, at as u64).unwrap();
            assert_eq!(direct[0], b'X');
            mapping.bytes()[at] = b'b';
        }
        // Also when only the mapping is left of the open file.
        drop(file);
        mapping.bytes()[777_777] = 7;
        let pinned = File::open(&path).unwrap();
        ioctl(&pinned, protocol::IOC_PIN, &mut []).unwrap();
        mapping.bytes()[777_777] = 8;
        let mut byte = [0];
        pinned.read_exact_at(&mut byte, 777_777).unwrap();
        assert_eq!(byte, [7]);
        drop(mapping);
        assert_eq!(pool.read("file")[777_777], 8);
    });
}

#[test]
fn a_mapping_sees_what_is_written_and_the_other_way_round() {
    on_each_filesystem(|pool| {
        pool.write("base", &noise(1, 100_000));
        pool.clone("base", "clone");
        for name in ["base", "clone"] {
            let file = read_write(&pool.at(name));
            let mut mapping = Mapping::new(&file, 100_000).unwrap();
            assert!(mapping.bytes() == noise(1, 100_000));
            file.write_all_at(b"written", 5000).unwrap();
            assert_eq!(&mapping.bytes()[5000..5007], b"written");
            mapping.bytes()[5000..5006].copy_from_slice(b"stored");
            let mut bytes = [0; 7];
            file.read_exact_at(&mut bytes, 5000).unwrap();
            assert_eq!(&bytes, b"storedn");
            assert_eq!(&pool.read(name)[5000..5007], b"storedn");
        }
    });
}
