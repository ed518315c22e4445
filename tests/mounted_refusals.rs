//! What cannot work is refused with the file, the cause and the remedy, and leaves everything as it was: pools that
//! cannot be served, filesystems that lack something, metadata that is damaged.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clonefs::protocol::VolumeState;
use support::{Backing, Done, Mount, Pool, clonefs, errno, is_running, noise, on, on_each_filesystem, run, wait_until};

const MIB: usize = 1 << 20;

fn command(pool: &Pool, words: &[&str]) -> Done {
    run(Command::new(env!("CARGO_BIN_EXE_clonefs")).args(words).current_dir(pool.root()))
}

fn writable(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// All files of a pool that is not mounted, with their bytes.
fn contents(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                files.push((path.clone(), fs::read(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn a_pool_of_a_newer_format_is_refused_and_left_alone() {
    on_each_filesystem(|pool| {
        let bytes = noise(1, 100_000);
        pool.write("base", &bytes);
        pool.clone("base", "vm");
        pool.unmount();
        let (path, root) = (pool.at(".clonefs/pool.json"), pool.root().to_str().unwrap());
        let text = fs::read_to_string(&path).unwrap();
        let newer = text.replace("\"format\":1", "\"format\":2").replace("\"format\": 1", "\"format\": 2");
        assert_ne!(newer, text);
        fs::write(&path, newer).unwrap();
        let before = contents(pool.root());
        for (arguments, code) in [(&["mount", root][..], 1), (&["check", root], 8), (&["init", root], 1)] {
            let said = clonefs(arguments).code(code).stderr;
            assert!(said.contains("pool.json") && said.contains("format") && said.contains("newer"), "{said}");
        }
        assert!(contents(pool.root()) == before);
        fs::write(&path, text).unwrap();
        pool.mount("deepen=manual");
        assert!(pool.read("vm") == bytes);
    });
}

#[test]
fn a_pool_that_is_served_is_locked_for_others() {
    on_each_filesystem(|pool| {
        pool.write("base", b"x");
        pool.clone("base", "vm");
        let pid = pool.mounted().status().pid;
        // Detached, so that nothing shows that it is served but the lock.
        let open = File::open(pool.at("vm")).unwrap();
        clonefs([Path::new("unmount"), Path::new("--lazy"), pool.root()]).success();
        let root = pool.root().to_str().unwrap();
        for (arguments, code) in
            [(vec!["init", root], 1), (vec!["check", root], 8), (vec!["check", root, "--repair"], 8)]
        {
            let done = clonefs(&arguments).code(code);
            assert!(done.stderr.contains(&format!("process {pid}")), "{arguments:?}: {done:?}");
        }
        drop(open);
        wait_until(|| !is_running(pid));
        pool.forget_mount();
        pool.mount("deepen=manual");
        assert_eq!(pool.read("vm"), b"x");
    });
}

#[test]
fn a_read_only_pool_is_read_and_nothing_else() {
    on(&[Backing::Ext4, Backing::Xfs, Backing::Btrfs], |pool| {
        let bytes = noise(2, 100_000);
        pool.write("base", &bytes);
        pool.clone("base", "vm");
        pool.unmount();
        let before = contents(pool.root());
        pool.disk.remount("ro");
        pool.mount("");
        for arguments in [&["clone", "base", "new"][..], &["deepen", "vm"], &["clone", "--force", "base", "vm"]] {
            let said = command(pool, arguments).code(1).stderr;
            assert!(said.contains("Read-only") || said.contains("read-only"), "{said}");
        }
        let status = pool.mounted().status();
        assert!(!status.can_clone && status.cannot_clone.as_deref().unwrap().contains("read-only"), "{status:?}");
        assert!(pool.read("vm") == bytes);
        assert_eq!(names(pool.root()), ["base", "vm"]);
        command(pool, &["check"]).success();
        pool.unmount();
        pool.disk.remount("rw");
        assert!(contents(pool.root()) == before);
    });
}

#[test]
fn a_filesystem_without_extended_attributes_serves_files_and_says_why_it_cannot_clone() {
    if !support::ready() {
        return;
    }
    let place = tempfile::TempDir::new().unwrap();
    run(Command::new("mount").args(["-t", "ramfs", "none"]).arg(place.path())).success();
    let root = place.path().join("pool");
    fs::create_dir(&root).unwrap();
    {
        let mount = Mount::new(&root, None, "");
        let bytes = noise(3, 300_000);
        fs::write(root.join("base"), &bytes).unwrap();
        let clone =
            || run(Command::new(env!("CARGO_BIN_EXE_clonefs")).args(["clone", "base", "vm"]).current_dir(&root));
        let said = clone().code(1).stderr;
        assert!(said.contains("extended attributes") && said.contains("ramfs"), "{said}");
        assert_eq!(names(&root), ["base"]);
        let status = mount.status();
        assert!(status.cannot_clone.is_some_and(|why| why.contains("extended attributes")));
        // cp falls back to a copy by itself.
        run(Command::new("cp").arg(root.join("base")).arg(root.join("copy"))).success();
        assert!(fs::read(root.join("copy")).unwrap() == bytes);
        mount.unmount();
        assert_eq!(names(&root), ["base", "copy"]);
    }
    run(Command::new("umount").arg(place.path())).success();
}

#[test]
fn a_source_that_cannot_be_linked_is_copied_and_the_reason_told() {
    on(&[Backing::Ext4, Backing::Xfs, Backing::Btrfs], |pool| {
        let bytes = noise(4, 100_000);
        let path = pool.write("base", &bytes);
        pool.write("other", &bytes);
        command(pool, &["clone", "other", "first"]).success();
        // The log of events of a pool that was just made is read after the next start.
        pool.unmount();
        pool.mount("deepen=manual");
        run(Command::new("chattr").arg("+i").arg(pool.below("base"))).success();
        let done = command(pool, &["clone", "base", "copy"]);
        run(Command::new("chattr").arg("-i").arg(pool.below("base"))).success();
        done.success();
        assert!(pool.read("copy") == bytes);
        let told = run(Command::new(env!("CARGO_BIN_EXE_clonefs")).arg("events").arg(pool.root())).success().stdout;
        assert!(told.contains("copied, as "), "{told}");
        assert_eq!(names(pool.root()), ["base", "copy", "first", "other"]);
        command(pool, &["check"]).success();
        command(pool, &["clone", "base", "vm"]).success();
        writable(&path).write_all_at(b"x", 0).unwrap();
        assert!(pool.read("vm") == bytes);
    });
}

/// The record of a volume in the catalogue of a pool that is not mounted.
fn record(pool: &Pool, name: &str) -> serde_json::Value {
    let text = fs::read_to_string(pool.at(".clonefs/catalogue")).unwrap();
    let lines = text.lines().filter_map(|line| serde_json::from_str(line.split_once(' ')?.1).ok());
    let mut volumes = lines.filter_map(|line: serde_json::Value| line.get("volume").cloned());
    volumes.find(|volume| volume["path"] == name).unwrap_or_else(|| panic!("{name} is not in {text}"))
}

/// A file of a volume's own layer.
fn file(pool: &Pool, name: &str, kind: &str) -> PathBuf {
    let id = record(pool, name)["file"].as_str().unwrap().to_owned();
    pool.at(format!(".clonefs/layers/{id}.{kind}"))
}

/// Changes a byte in the middle of a file.
fn spoil(path: &Path, at: u64) {
    let mut byte = [0];
    let file = writable(path);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x5a], at).unwrap();
}

/// A way to damage a file that belongs to one volume: what it is, which file, and how.
type Damage = (&'static str, &'static str, fn(&Path));

const DAMAGE: [Damage; 3] = [
    ("a record in the middle of its map", "map", |path| spoil(path, 80)),
    ("the header of its map", "map", |path| spoil(path, 3)),
    ("its data is lost", "data", |path| fs::remove_file(path).unwrap()),
];

/// A pool of `base` and its clones `hurt` and `sound`, each with blocks of its own.
fn base_and_clones(pool: &Pool) -> Vec<u8> {
    let bytes = noise(5, MIB);
    pool.write("base", &bytes);
    for name in ["hurt", "sound"] {
        pool.clone("base", name);
        // Three records in its map, each made durable before the next.
        let file = writable(&pool.at(name));
        for block in [3, 100, 200] {
            file.write_all_at(b"its own", block * 4096).unwrap();
            file.sync_all().unwrap();
        }
    }
    bytes
}

/// `hurt` gives EIO and is named everywhere, and everything else goes on.
fn assert_only_one_is_hurt(pool: &Pool, base: &[u8], sound: &[u8]) {
    let read = || File::open(pool.at("hurt")).and_then(|file| file.read_at(&mut [0; 8192], 400_000));
    assert_eq!(errno(read()), libc::EIO);
    let write = || File::options().write(true).open(pool.at("hurt")).and_then(|file| file.write_at(b"x", 0));
    assert_eq!(errno(write()), libc::EIO);
    assert_eq!(pool.info("hurt").state, VolumeState::Failed, "{:?}", pool.info("hurt"));
    let status = command(pool, &["status"]).success().stdout;
    assert!(status.contains("hurt"), "{status}");
    let list = command(pool, &["list"]).stdout;
    let line = list.lines().find(|line| line.starts_with("hurt")).unwrap();
    assert!(line.contains("failed"), "{line}");
    let said = command(pool, &["clone", "hurt", "new"]).code(1).stderr;
    assert!(said.contains("hurt"), "{said}");
    let said = command(pool, &["deepen", "--wait", "hurt"]).code(1).stderr;
    assert!(said.contains("hurt"), "{said}");
    command(pool, &["check"]).code(4);
    // Who copies by the size, as tar does, would not even try to read an empty file.
    assert!(fs::metadata(pool.at("hurt")).unwrap().len() > 0);

    assert!(pool.read("base") == base && pool.read("sound") == sound);
    let file = writable(&pool.at("sound"));
    file.write_all_at(&sound[500_000..500_100], 500_000).unwrap();
    file.sync_all().unwrap();
    command(pool, &["clone", "sound", "new"]).success();
    assert!(pool.read("new") == sound);
    fs::remove_file(pool.at("new")).unwrap();
    assert_eq!(names(pool.root()), ["base", "hurt", "sound"]);
}

#[test]
fn damaged_files_cost_one_volume_which_gives_eio_and_is_named() {
    on_each_filesystem(|pool| {
        let base = base_and_clones(pool);
        let (hurt, sound) = (pool.read("hurt"), pool.read("sound"));
        for (what, kind, damage) in DAMAGE {
            eprintln!("   {what}");
            pool.unmount();
            let path = file(pool, "hurt", kind);
            let whole = fs::read(&path).unwrap();
            damage(&path);
            pool.mount("deepen=manual");
            assert_only_one_is_hurt(pool, &base, &sound);
            // Nothing was thrown away: when the file is put back, the volume is.
            pool.unmount();
            fs::write(&path, whole).unwrap();
            pool.mount("deepen=manual");
            assert!(pool.read("hurt") == hurt && pool.read("sound") == sound);
            command(pool, &["check"]).success();
        }
    });
}

#[test]
fn a_damaged_record_costs_one_volume_which_gives_eio_and_is_named() {
    on_each_filesystem(|pool| {
        let base = base_and_clones(pool);
        let sound = pool.read("sound");
        pool.unmount();
        let path = pool.at(".clonefs/catalogue");
        let text = fs::read_to_string(&path).unwrap();
        let id = record(pool, "hurt")["id"].as_str().unwrap().to_owned();
        let line = text.lines().find(|line| line.contains(&format!("\"volume\":{{\"id\":\"{id}\""))).unwrap();
        fs::write(&path, text.replace(line, &line.replace("origin", "orgiin"))).unwrap();
        pool.mount("deepen=manual");
        assert_only_one_is_hurt(pool, &base, &sound);
    });
}

#[test]
fn a_journal_or_catalogue_that_is_damaged_never_costs_a_plain_file() {
    on_each_filesystem(|pool| {
        let bytes = noise(6, MIB);
        for name in ["base", "plain"] {
            pool.write(name, &bytes);
        }
        pool.clone("base", "vm");
        pool.unmount();
        let catalogue = pool.at(".clonefs/catalogue");
        let text = fs::read(&catalogue).unwrap();
        for damaged in [&text[..0], &text[..40], &b"\0".repeat(4096)[..], &noise(7, 5000)[..]] {
            fs::write(&catalogue, damaged).unwrap();
            let done = clonefs([Path::new("mount"), pool.root()]);
            if done.status.success() {
                let mount = Mount::adopt(pool.root());
                assert!(pool.read("base") == bytes && pool.read("plain") == bytes);
                assert_eq!(errno(fs::read(pool.at("vm"))), libc::EIO, "a stub must never pass for the volume");
                let status = mount.status();
                assert!(!status.troubles.is_empty(), "{status:?}");
                mount.unmount();
            } else {
                assert!(done.stderr.contains("catalogue") && done.status.code() == Some(1), "{done:?}");
            }
            assert!(fs::read(pool.at("base")).unwrap() == bytes && fs::read(pool.at("plain")).unwrap() == bytes);
        }
        fs::write(&catalogue, &text).unwrap();
        pool.mount("deepen=manual");
        assert!(pool.read("vm") == bytes, "nothing was removed while the metadata was damaged");
        wait_until(|| pool.mounted().status().troubles.is_empty());
    });
}
