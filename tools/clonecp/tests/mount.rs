//! `clonecp` on a mount of clonefs: clones through the daemon's door, whatever their size; copies where there is none.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use clonefs::protocol;
use rustix::fs::XattrFlags;

use support::mounts::Mounted;
use support::{Call, NOBODY, compare_all_in, program, run, scratch, tree, zoo};

const MIB: usize = 1 << 20;

/// Bytes in which no two blocks are alike.
fn image(length: usize, seed: u64) -> Vec<u8> {
    (0..length as u64 / 8 + 1).flat_map(|n| (n ^ seed << 40).to_le_bytes()).take(length).collect()
}

fn clonecp(directory: &Path, line: &str) -> support::Result {
    run(program(), directory, &Call::line(line))
}

#[track_caller]
fn succeeds(directory: &Path, line: &str) {
    let result = clonecp(directory, line);
    assert_eq!((result.status, result.stderr.as_str()), (Some(0), ""), "{line}");
}

/// An attribute of the daemon.
fn ask(path: &Path, name: &str) -> String {
    let mut value = vec![0; 4096];
    let length =
        rustix::fs::getxattr(path, name, value.as_mut_slice()).unwrap_or_else(|e| panic!("{name} of {path:?}: {e}"));
    String::from_utf8(value[..length].to_vec()).expect("text")
}

/// It is an overlay, which has nothing of its own yet.
#[track_caller]
fn is_fresh_clone(path: &Path) {
    assert_eq!(ask(path, protocol::STATE), "overlay", "{path:?}");
    assert_eq!(ask(path, protocol::UNIQUE_BYTES), "0", "{path:?}");
}

#[track_caller]
fn same_bytes(path: &Path, bytes: &[u8]) {
    assert!(fs::read(path).expect("read") == bytes, "{path:?} differs");
}

fn write_at(path: &Path, text: &[u8], place: u64) {
    File::options().write(true).open(path).and_then(|file| file.write_all_at(text, place)).expect("write");
}

#[test]
fn a_copy_on_the_mount_is_a_clone() {
    let Some(pool) = Mounted::pool("a_copy_on_the_mount_is_a_clone") else { return };
    let at = &pool.path;
    let bytes = image(24 * MIB + 77, 1);
    fs::write(at.join("base.img"), &bytes).expect("base");
    fs::create_dir_all(at.join("vms/p")).expect("vms");
    let lines = [
        "base.img default",
        "--reflink=always base.img always",
        "-a base.img archive",
        "-p --reflink base.img vms",
        "--sparse=always base.img sparse",
        "-r --parents vms/base.img vms/p",
        "-T base.img exact",
        "always second",
    ];
    for line in lines {
        succeeds(at, line);
    }
    for name in ["default", "always", "archive", "vms/base.img", "vms/p/vms/base.img", "sparse", "exact", "second"] {
        is_fresh_clone(&at.join(name));
        same_bytes(&at.join(name), &bytes);
    }
    // Neither side sees what the other writes, at whichever end of a chain it is.
    write_at(&at.join("always"), b"written to a clone", 4090);
    write_at(&at.join("base.img"), b"written to the source", 8 * MIB as u64 - 3);
    for name in ["default", "archive", "vms/base.img", "sparse", "exact", "second"] {
        same_bytes(&at.join(name), &bytes);
    }
    assert_eq!(fs::read(at.join("always")).expect("read")[4090..4108], *b"written to a clone");
    // Only what was asked for is a clone.
    succeeds(at, "--reflink=never default never");
    assert_eq!(ask(&at.join("never"), protocol::STATE), "independent");
    same_bytes(&at.join("never"), &bytes);
    succeeds(at, "--attributes-only -p default attributes");
    assert_eq!(fs::metadata(at.join("attributes")).expect("stat").len(), 0);
    // The source can go at once.
    fs::remove_file(at.join("base.img")).and_then(|()| fs::remove_file(at.join("always"))).expect("remove");
    same_bytes(&at.join("default"), &bytes);
    same_bytes(&at.join("second"), &bytes);
}

#[test]
fn size_is_no_matter() {
    let Some(pool) = Mounted::pool("size_is_no_matter") else { return };
    let at = &pool.path;
    // To read it would take days, and its holes written out have room nowhere.
    let file = File::create(at.join("huge")).expect("huge");
    file.set_len(8 << 40).expect("size");
    for place in [0, 1 << 40, (8 << 40) - 4096] {
        file.write_all_at(&image(4096, place), place).expect("write");
    }
    drop(file);
    for n in 0..50 {
        succeeds(at, &format!("--reflink=always huge clone{n}"));
    }
    let file = File::open(at.join("clone49")).expect("open");
    assert_eq!(file.metadata().expect("stat").len(), 8 << 40);
    let mut block = vec![0; 4096];
    for place in [0, 1 << 40, (8 << 40) - 4096] {
        file.read_exact_at(&mut block, place).expect("read");
        assert_eq!(block, image(4096, place));
    }
    is_fresh_clone(&at.join("clone49"));
}

#[test]
fn an_existing_file_is_overwritten_in_place() {
    let Some(pool) = Mounted::pool("an_existing_file_is_overwritten_in_place") else { return };
    let at = &pool.path;
    let (first, second) = (image(5 * MIB, 1), image(3 * MIB + 1, 2));
    fs::write(at.join("first"), &first).expect("first");
    fs::write(at.join("second"), &second).expect("second");
    fs::set_permissions(at.join("second"), fs::Permissions::from_mode(0o604)).expect("chmod");
    let inode = || fs::metadata(at.join("second")).expect("stat").ino();
    let before = inode();
    succeeds(at, "--reflink=always first second");
    let stat = fs::metadata(at.join("second")).expect("stat");
    assert_eq!((stat.ino(), stat.mode() & 0o7777, stat.len()), (before, 0o604, first.len() as u64));
    is_fresh_clone(&at.join("second"));
    same_bytes(&at.join("second"), &first);
    // What is a clone, or has clones, may not be able to become another file's clone in place: then it is copied.
    fs::write(at.join("third"), &second).expect("third");
    succeeds(at, "third other");
    succeeds(at, "other second");
    assert_eq!(inode(), before, "still the same file");
    same_bytes(&at.join("second"), &second);
    succeeds(at, "first third");
    same_bytes(&at.join("third"), &first);
    same_bytes(&at.join("other"), &second);
    // A new file in its place always can.
    for options in ["-b", "--remove-destination", "-a --backup=numbered"] {
        succeeds(at, &format!("--reflink=always {options} first other"));
        is_fresh_clone(&at.join("other"));
        same_bytes(&at.join("other"), &first);
        succeeds(at, &format!("--reflink=always {options} second other"));
        same_bytes(&at.join("other"), &second);
    }
    same_bytes(&at.join("other.~1~"), &second);
    same_bytes(&at.join("other.~2~"), &first);
    same_bytes(&at.join("first"), &first);
}

#[test]
fn attributes_are_those_that_cp_gives() {
    let Some(pool) = Mounted::pool("attributes_are_those_that_cp_gives") else { return };
    let lines = [
        "a new",
        "-a d new",
        "-av d t",
        "-r d new",
        "-rp -L d new",
        "-a x y su holes e",
        "-a a ha d e",
        "--sparse=always holes new",
        "--sparse=never holes new",
        "--reflink=never holes new",
        "holes b",
        "-p y x",
        "-a d/sub/deep new",
        "-ab -v d/f ro x t",
        "--preserve=all -r d new",
        "-a --no-preserve=mode d new",
        "--parents -a d/sub/deep/i e",
        "-al d new",
        "-a p so null e",
        "--attributes-only -p x b",
        "-u a b t",
        "-rf --remove-destination d t",
        "-p ro su b t",
        "-d ha a t",
        "a dang",
        "a a",
        "-n a b",
        "-f a ro",
        "-s a new",
        "-bv a b",
        "--backup=numbered -v exe t",
    ];
    let mut calls: Vec<Call> = lines.iter().map(|line| Call::line(line)).collect();
    calls.extend(lines.iter().map(|line| Call { as_nobody: true, ..Call::line(line) }));
    compare_all_in(&pool.path, "attributes on a mount", &calls, &|at| zoo::build(at));
}

#[test]
fn a_clone_has_the_attributes_of_a_copy() {
    let Some(pool) = Mounted::pool("a_clone_has_the_attributes_of_a_copy") else { return };
    let at = &pool.path;
    let bytes = image(2 * MIB, 5);
    for name in ["plain", "linked"] {
        fs::write(at.join(name), &bytes).expect(name);
    }
    fs::hard_link(at.join("linked"), at.join("link")).expect("link");
    fs::set_permissions(at.join("plain"), fs::Permissions::from_mode(0o4751)).expect("chmod");
    std::os::unix::fs::chown(at.join("plain"), Some(NOBODY), Some(NOBODY)).expect("chown");
    fs::set_permissions(at.join("plain"), fs::Permissions::from_mode(0o4751)).expect("chmod");
    let set = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(at.join("plain"), name, value, XattrFlags::empty()).expect(name)
    };
    set("user.note", b"a note");
    set("system.posix_acl_access", zoo::ACL);
    fs::set_permissions(at.join("plain"), fs::Permissions::from_mode(0o4764)).expect("chmod");
    zoo::touch(&at.join("plain"), 1_111_111_111);
    succeeds(at, "-a --reflink=always plain kept");
    is_fresh_clone(&at.join("kept"));
    let (from, to) = (fs::metadata(at.join("plain")).expect("stat"), fs::metadata(at.join("kept")).expect("stat"));
    assert_eq!((from.mode(), from.uid(), from.gid(), from.mtime()), (to.mode(), to.uid(), to.gid(), to.mtime()));
    assert_eq!(tree::xattrs(&at.join("plain")), tree::xattrs(&at.join("kept")));
    assert_eq!(tree::xattrs(&at.join("kept")).len(), 2, "{:?}", tree::xattrs(&at.join("kept")));
    // Another owner's set-user-id bit never comes along.
    let result = run(program(), at, &Call { as_nobody: true, ..Call::line("-a --reflink=always kept theirs") });
    assert_eq!(result.status, Some(0), "{result:?}");
    assert_eq!(fs::metadata(at.join("theirs")).expect("stat").mode() & 0o7777, 0o4764, "the owner's own");
    std::os::unix::fs::chown(at.join("kept"), Some(1), Some(1)).expect("chown");
    fs::set_permissions(at.join("kept"), fs::Permissions::from_mode(0o4764)).expect("chmod");
    let result = run(program(), at, &Call { as_nobody: true, ..Call::line("-a --reflink=always kept others") });
    assert_eq!(result.status, Some(0), "{result:?}");
    let others = fs::metadata(at.join("others")).expect("stat");
    assert_eq!((others.mode() & 0o7777, others.uid()), (0o764, NOBODY));
    // Two names of one file stay two names of one file, with one clone behind them.
    fs::create_dir(at.join("copy")).expect("mkdir");
    succeeds(at, "-a linked link copy");
    let inode = |name: &str| fs::metadata(at.join(name)).expect(name).ino();
    assert_eq!(inode("copy/linked"), inode("copy/link"));
    assert_ne!(inode("copy/linked"), inode("linked"));
    same_bytes(&at.join("copy/link"), &bytes);
}

#[test]
fn between_mounts_it_is_a_copy_or_a_failure() {
    let Some(pool) = Mounted::pool("between mounts") else { return };
    let Some(other) = Mounted::pool("between mounts") else { return };
    let outside = scratch();
    let bytes = image(4 * MIB + 5, 7);
    fs::write(pool.path.join("in"), &bytes).expect("in");
    fs::write(outside.path().join("out"), &bytes).expect("out");
    for (from, to) in [
        (pool.path.join("in"), other.path.join("new")),
        (pool.path.join("in"), outside.path().join("new")),
        (outside.path().join("out"), pool.path.join("new")),
    ] {
        let (from_text, to_text) = (from.display().to_string(), to.display().to_string());
        let result = clonecp(&pool.path, &format!("--reflink=always {from_text} {to_text}"));
        let message = format!("cp: failed to clone '{to_text}' from '{from_text}': Invalid cross-device link\n");
        assert_eq!((result.status, result.stderr), (Some(1), message));
        assert!(!to.exists(), "{to:?} was left");
        succeeds(&pool.path, &format!("-a {from_text} {to_text}"));
        same_bytes(&to, &bytes);
    }
    assert_eq!(ask(&other.path.join("new"), protocol::STATE), "independent");
}

#[test]
fn nobody_clones_what_he_may_not_read() {
    let Some(pool) = Mounted::pool("nobody_clones_what_he_may_not_read") else { return };
    let at = &pool.path;
    fs::write(at.join("secret"), image(MIB, 9)).expect("secret");
    fs::write(at.join("open"), image(MIB, 9)).expect("open");
    fs::set_permissions(at.join("secret"), fs::Permissions::from_mode(0o600)).expect("chmod");
    let user = |line: &str| run(program(), at, &Call { as_nobody: true, ..Call::line(line) });
    let result = user("secret mine");
    let message = "cp: cannot open 'secret' for reading: Permission denied\n";
    assert_eq!((result.status, result.stderr.as_str()), (Some(1), message));
    assert!(!at.join("mine").exists());
    assert_eq!(user("--reflink=always open mine").status, Some(0));
    is_fresh_clone(&at.join("mine"));
    assert_eq!(fs::metadata(at.join("mine")).expect("stat").uid(), NOBODY);
    // Nor overwrites what he may not write.
    let result = user("mine open");
    assert_eq!(result.stderr, "cp: cannot create regular file 'open': Permission denied\n");
    same_bytes(&at.join("open"), &image(MIB, 9));
}

#[test]
fn attributes_named_like_doors_are_not_orders() {
    let Some(pool) = Mounted::pool("attributes_named_like_doors_are_not_orders") else { return };
    let at = &pool.path;
    fs::write(at.join("secret"), image(MIB, 3)).expect("secret");
    fs::set_permissions(at.join("secret"), fs::Permissions::from_mode(0o600)).expect("chmod");
    // Somebody plants this in what root is about to copy in.
    let outside = scratch();
    let planted = outside.path().join("planted");
    fs::write(&planted, "").expect("planted");
    let secret = at.join("secret").display().to_string();
    for (name, value) in [(protocol::CLONE_FROM, secret.as_str()), (protocol::DEEPEN, "start"), ("user.harmless", "x")]
    {
        rustix::fs::setxattr(&planted, name, value.as_bytes(), XattrFlags::empty()).expect(name);
    }
    for options in ["-a", "--preserve=xattr", "--preserve=all"] {
        succeeds(at, &format!("{options} {} copy", planted.display()));
        assert_eq!(fs::metadata(at.join("copy")).expect("stat").len(), 0, "{options}");
        assert_eq!(tree::xattrs(&at.join("copy")).len(), 1, "{options}: {:?}", tree::xattrs(&at.join("copy")));
        fs::remove_file(at.join("copy")).expect("remove");
    }
}

#[test]
fn many_files_and_trees_of_clones_are_cloned() {
    let Some(pool) = Mounted::pool("many_files_and_trees_of_clones_are_cloned") else { return };
    let at = &pool.path;
    let bytes = image(2 * MIB, 4);
    fs::write(at.join("base"), &bytes).expect("base");
    fs::create_dir(at.join("many")).expect("many");
    let sources: Vec<String> = (0..30).map(|n| format!("base{n}")).collect();
    for name in &sources {
        succeeds(at, &format!("base {name}"));
    }
    succeeds(at, &format!("-a {} many", sources.join(" ")));
    succeeds(at, "-a many again");
    for name in &sources {
        is_fresh_clone(&at.join("again").join(name));
        same_bytes(&at.join("again").join(name), &bytes);
    }
    // An empty file is its own clone.
    fs::write(at.join("empty"), "").expect("empty");
    succeeds(at, "--reflink=always empty new");
    assert_eq!(fs::metadata(at.join("new")).expect("stat").len(), 0);
}

#[test]
fn a_plain_file_of_several_names_is_no_clone() {
    let Some(pool) = Mounted::pool("a_plain_file_of_several_names_is_no_clone") else { return };
    let at = &pool.path;
    let bytes = image(MIB, 9);
    fs::write(at.join("one"), &bytes).expect("write");
    fs::hard_link(at.join("one"), at.join("two")).expect("link");
    let result = clonecp(at, "--reflink=always one copy");
    assert_eq!(result.status, Some(1));
    assert!(result.stderr.contains("failed to clone") && result.stderr.contains("not supported"), "{}", result.stderr);
    assert!(!at.join("copy").exists());
    // What may copy does.
    succeeds(at, "one copy");
    same_bytes(&at.join("copy"), &bytes);
    assert_eq!(ask(&at.join("copy"), protocol::STATE), "independent");
    // With one name left it is a clone again.
    fs::remove_file(at.join("two")).expect("remove");
    succeeds(at, "--reflink=always one clone");
    is_fresh_clone(&at.join("clone"));
}
