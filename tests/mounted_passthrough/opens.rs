//! Opens of one file beside each other: which of them go past the daemon, and that all show the same bytes.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fixture::{Aligned, BLOCK, KINDS, Mapping, SIZE, image, open, past, with};
use crate::support::{self, Backing, Pool, clonefs, errno, run, wait_until};

#[test]
fn all_opens_beside_one_past_the_daemon_fit_and_show_the_same() {
    with("writable", &KINDS, |pool| {
        let mut bytes = image(pool, "disk", 1);
        let path = pool.at("disk");
        let writer = open(&path);
        assert_eq!(past(pool), 1);
        let ways: [(&str, i32); 6] = [
            ("read", libc::O_RDONLY),
            ("write", libc::O_RDWR),
            ("direct", libc::O_RDWR | libc::O_DIRECT),
            ("sync", libc::O_RDWR | libc::O_DSYNC),
            ("append", libc::O_RDWR | libc::O_APPEND),
            ("read direct", libc::O_RDONLY | libc::O_DIRECT),
        ];
        for (n, (name, flags)) in ways.into_iter().enumerate() {
            let writes = flags & libc::O_ACCMODE == libc::O_RDWR;
            let other = OpenOptions::new().read(true).write(writes).custom_flags(flags & !libc::O_ACCMODE).open(&path);
            let other = other.unwrap_or_else(|e| panic!("{name}: {e}"));
            writer.write_all_at(&[n as u8; BLOCK], (n * BLOCK) as u64).unwrap();
            bytes[n * BLOCK..(n + 1) * BLOCK].fill(n as u8);
            let mut found = Aligned([0; BLOCK]);
            other.read_exact_at(&mut found.0, (n * BLOCK) as u64).unwrap();
            assert_eq!(found.0, [n as u8; BLOCK], "{name}");
        }
        let mapping = Mapping::new(&writer);
        mapping.store(9 * BLOCK, b"mapped");
        bytes[9 * BLOCK..9 * BLOCK + 6].copy_from_slice(b"mapped");
        assert_eq!(mapping.byte(0), 0);
        // The mapping reaches the file after its handle is closed, and all others go the same way meanwhile.
        drop(writer);
        wait_until(|| past(pool) == 0);
        mapping.store(10 * BLOCK, b"unseen");
        bytes[10 * BLOCK..10 * BLOCK + 6].copy_from_slice(b"unseen");
        let reader = File::open(&path).unwrap();
        assert_eq!(past(pool), 1);
        let other = Mapping::reading(&reader);
        mapping.store(11 * BLOCK, b"!");
        bytes[11 * BLOCK] = b'!';
        assert_eq!(other.byte(11 * BLOCK), b'!');
        assert!(pool.read("disk") == bytes && fs::read(pool.below("disk")).unwrap() == bytes);
        drop((mapping, other, reader));
        wait_until(|| past(pool) == 0);
        assert!(pool.read("disk") == bytes);
        // What it may not go past the daemon with.
        let again = open(&path);
        assert_eq!(errno(fs::set_permissions(&path, fs::Permissions::from_mode(0o4755))), libc::EBUSY);
        drop(again);
        wait_until(|| past(pool) == 0);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
        let _daemon = open(&path);
        assert_eq!(past(pool), 0);
    });
}

#[test]
fn beside_a_handle_of_the_daemon_all_come_to_the_daemon() {
    with("writable", &[Backing::Ext4], |pool| {
        let bytes = image(pool, "disk", 2);
        let path = pool.at("disk");
        let reader = File::open(&path).unwrap();
        let writer = open(&path);
        assert_eq!(past(pool), 0);
        let mapping = Mapping::new(&writer);
        drop((reader, writer));
        // The mapping alone holds it now. An open past the daemon would be refused with EIO.
        let writer = open(&path);
        assert_eq!(past(pool), 0);
        writer.write_all_at(b"written", 0).unwrap();
        mapping.store(BLOCK, b"stored");
        drop((mapping, writer));
        let mut expect = bytes;
        expect[..7].copy_from_slice(b"written");
        expect[BLOCK..BLOCK + 6].copy_from_slice(b"stored");
        // What the kernel has cached of it is not shown again after it was written to past the daemon.
        assert!(pool.read("disk") == expect);
        let writer = wait_for_past(pool, "disk");
        writer.write_all_at(b"PAST", 2 * BLOCK as u64).unwrap();
        drop(writer);
        wait_until(|| past(pool) == 0);
        expect[2 * BLOCK..2 * BLOCK + 4].copy_from_slice(b"PAST");
        let mapping = Mapping::new(&open(&path));
        assert_eq!([mapping.byte(2 * BLOCK), mapping.byte(0)], *b"Pw");
        drop(mapping);
        assert!(pool.read("disk") == expect);
        // New files, empty ones, overlays, and files with clones.
        let new = File::create_new(pool.at("new")).unwrap();
        new.write_all_at(&[1; 2 * BLOCK], 0).unwrap();
        assert_eq!(past(pool), 0);
        drop(new);
        fs::write(pool.at("empty"), "").unwrap();
        wait_until(|| past(pool) == 0);
        pool.clone("disk", "clone");
        for name in ["empty", "clone", "disk"] {
            let _file = open(&pool.at(name));
            assert_eq!(past(pool), 0, "{name}");
        }
    });
}

/// An open that goes past the daemon, once it has heard of all closes.
fn wait_for_past(pool: &Pool, name: &str) -> File {
    let mut file = None;
    wait_until(|| {
        drop(file.take());
        file = Some(open(&pool.at(name)));
        past(pool) == 1
    });
    file.unwrap()
}

#[test]
fn opens_and_closes_at_once_never_fail() {
    with("writable", &[Backing::Ext4], |pool| {
        let bytes = image(pool, "disk", 3);
        let (pool, path, went_past) = (&*pool, pool.at("disk"), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (path, bytes, went_past): (_, &[u8], _) = (&path, &bytes, &went_past);
                scope.spawn(move || {
                    for turn in 0..300 {
                        let file = if (turn + thread) % 3 == 0 { File::open(path).unwrap() } else { open(path) };
                        let mut found = [0; 64];
                        file.read_exact_at(&mut found, 4096 * thread as u64).unwrap();
                        assert_eq!(found, bytes[4096 * thread..][..64]);
                        if turn % 50 == 0 {
                            went_past.fetch_add(past(pool), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert!(went_past.load(Ordering::Relaxed) > 0, "some went past the daemon");
        wait_until(|| past(pool) == 0);
    });
}

#[test]
fn what_else_is_done_to_a_file_that_is_open_past_the_daemon_is_seen_by_its_handles() {
    with("writable", &[Backing::Ext4], |pool| {
        let mut bytes = image(pool, "disk", 17);
        let path = pool.at("disk");
        let writer = open(&path);
        assert_eq!(past(pool), 1);
        let seen = |bytes: &[u8], what: &str| {
            let mut found = vec![0; bytes.len() + 1];
            assert_eq!(writer.read_at(&mut found, 0).unwrap(), bytes.len(), "{what}");
            assert!(found[..bytes.len()] == *bytes, "{what}");
            assert_eq!(writer.metadata().unwrap().len(), bytes.len() as u64, "{what}");
        };
        clonefs([Path::new("resize"), &path, Path::new("5M")]).success();
        bytes.resize(5 << 20, 0);
        seen(&bytes, "resized");
        let mut end = OpenOptions::new().append(true).open(&path).unwrap();
        std::io::Write::write_all(&mut end, b"end").unwrap();
        bytes.extend(b"end");
        seen(&bytes, "appended to");
        writer.set_len(SIZE as u64).unwrap();
        bytes.truncate(SIZE);
        seen(&bytes, "truncated");
        let (mode, len) = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 8 * BLOCK);
        // SAFETY: the descriptor is open.
        assert_eq!(unsafe { libc::fallocate(writer.as_raw_fd(), mode, BLOCK as i64, len as i64) }, 0);
        bytes[BLOCK..BLOCK + len].fill(0);
        seen(&bytes, "with a hole");
        writer.sync_all().unwrap();
        fs::hard_link(&path, pool.at("second")).unwrap();
        fs::rename(&path, pool.at("moved")).unwrap();
        assert!(pool.read("moved") == bytes && pool.read("second") == bytes);
        pool.write("over", b"another file");
        fs::rename(pool.at("over"), pool.at("moved")).unwrap();
        fs::remove_file(pool.at("second")).unwrap();
        writer.write_all_at(b"nameless", 0).unwrap();
        bytes[..8].copy_from_slice(b"nameless");
        seen(&bytes, "without a name");
        assert_eq!(pool.read("moved"), b"another file");
        drop((writer, end));
        wait_until(|| past(pool) == 0);
        pool.clone("moved", "clone");
        pool.unmount();
        clonefs([Path::new("check"), pool.root()]).success();
    });
}

#[test]
fn a_daemon_without_the_privilege_serves_every_open_itself() {
    if !support::ready() {
        return;
    }
    let unshare = |script: &str, at: &Path| {
        let mut command = Command::new("unshare");
        let program = env!("CARGO_BIN_EXE_clonefs");
        run(command.args(["--user", "--map-root-user", "--mount", "bash", "-ec", script, program]).arg(at))
    };
    let pool = Pool::unmounted(Backing::Ext4);
    if !unshare("true", pool.root()).status.success() {
        eprintln!("SKIPPED: no user namespaces here");
        return;
    }
    let script = r#"
        "$0" mount -o passthrough=writable,deepen=manual "$1"
        trap '"$0" unmount "$1"' EXIT
        cd /
        head -c 100000 /dev/urandom > "$1/disk"
        exec 3<>"$1/disk" 4<"$1/disk"
        echo written >&3
        "$0" status "$1" | grep "passthrough=writable, 0 files open"
        "$0" clone "$1/disk" "$1/clone"
        cmp "$1/disk" "$1/clone"
        head -c 8 <&4 | grep written
        exec 3>&- 4>&-
    "#;
    unshare(script, pool.root()).success();
    assert!(!pool.below(".clonefs/past").exists());
}
