//! The node table by itself: numbers, names, and what is left of a file without one.

use super::*;

fn key(ino: u64) -> FileKey {
    FileKey { dev: 1, ino }
}

fn table() -> Table {
    Table::new(key(2))
}

fn file(table: &mut Table, parent: u64, name: &str, ino: u64) -> u64 {
    table.enter(parent, OsStr::new(name), key(ino), FileKind::File)
}

fn dir(table: &mut Table, parent: u64, name: &str, ino: u64) -> u64 {
    table.enter(parent, OsStr::new(name), key(ino), FileKind::Directory)
}

fn path(table: &Table, id: u64) -> String {
    table.path(id).map_or("-".into(), |path| path.to_str().unwrap().into())
}

#[test]
fn a_renamed_directory_takes_its_files_along() {
    let mut table = table();
    let outer = dir(&mut table, ROOT, "a", 10);
    let inner = dir(&mut table, outer, "b", 11);
    let leaf = file(&mut table, inner, "c", 12);
    assert_eq!(path(&table, leaf), "a/b/c");
    table.renamed((outer, OsStr::new("b")), (ROOT, OsStr::new("z")), None);
    assert_eq!(path(&table, leaf), "z/c");
    assert_eq!(table.parent(inner), ROOT);
}

#[test]
fn a_number_is_the_inode_number_unless_it_is_taken() {
    let mut table = table();
    let a = file(&mut table, ROOT, "a", 10);
    assert_eq!(a, 10);
    // The file is frozen: another inode has its name, and an unrelated new file gets the old inode number.
    table.rekey(key(10), key(20));
    let b = file(&mut table, ROOT, "b", 10);
    assert!(b > MADE_UP);
    assert_eq!(file(&mut table, ROOT, "a", 20), 10);
    // The root's own number and the protocol's number for it.
    assert!(dir(&mut table, ROOT, "c", 2) > MADE_UP);
    assert!(file(&mut table, ROOT, "d", 1) > MADE_UP);
    assert_eq!(table.shown(ROOT), 2);
}

#[test]
fn files_of_other_devices_have_numbers_of_their_own() {
    let mut table = table();
    let here = file(&mut table, ROOT, "a", 10);
    let there = table.enter(ROOT, OsStr::new("b"), FileKey { dev: 7, ino: 10 }, FileKind::File);
    assert_ne!(here, there);
    assert_eq!(there & ((1 << FOREIGN_INO_BITS) - 1), 10);
    let huge = table.enter(ROOT, OsStr::new("c"), FileKey { dev: 7, ino: u64::MAX }, FileKind::File);
    assert!(huge > MADE_UP);
}

#[test]
fn a_forgotten_node_is_gone_and_so_are_directories_held_by_it_alone() {
    let mut table = table();
    let a = dir(&mut table, ROOT, "a", 10);
    let b = dir(&mut table, a, "b", 11);
    let c = file(&mut table, b, "c", 12);
    table.forget(a, 1);
    table.forget(b, 1);
    assert_eq!(path(&table, c), "a/b/c");
    let before = table.node(c).unwrap().generation;
    table.forget(c, 1);
    assert_eq!(table.nodes.len(), 1);
    assert_eq!(table.by_key.len(), 1);
    let again = dir(&mut table, ROOT, "a", 10);
    assert_eq!(again, a);
    let c = file(&mut table, again, "c", 12);
    assert_ne!(table.node(c).unwrap().generation, before);
}

#[test]
fn a_file_keeps_its_other_names() {
    let mut table = table();
    let a = file(&mut table, ROOT, "a", 10);
    assert_eq!(file(&mut table, ROOT, "b", 10), a);
    assert_eq!(table.paths(a).len(), 2);
    table.removed(ROOT, OsStr::new("b"), status(10));
    assert_eq!(path(&table, a), "a");
    table.removed(ROOT, OsStr::new("a"), status(10));
    assert_eq!(path(&table, a), "-");
    assert_eq!(table.node(a).unwrap().gone.unwrap().nlink, 0);
    assert_eq!(table.find(key(10)), None);
    // The inode number comes back while the kernel still holds the old node.
    let new = file(&mut table, ROOT, "a", 10);
    assert_ne!(new, a);
}

#[test]
fn a_rename_over_another_file_leaves_that_without_a_name() {
    let mut table = table();
    let (a, b) = (file(&mut table, ROOT, "a", 10), file(&mut table, ROOT, "b", 11));
    table.renamed((ROOT, OsStr::new("a")), (ROOT, OsStr::new("b")), Some(status(11)));
    assert_eq!((path(&table, a), path(&table, b)), ("b".into(), "-".into()));
    assert_eq!(table.child(ROOT, OsStr::new("a")), None);
}

#[test]
fn an_exchange_swaps_names() {
    let mut table = table();
    let d = dir(&mut table, ROOT, "d", 9);
    let (a, b) = (file(&mut table, ROOT, "a", 10), file(&mut table, d, "b", 11));
    table.exchanged((ROOT, OsStr::new("a")), (d, OsStr::new("b")));
    assert_eq!((path(&table, a), path(&table, b)), ("d/b".into(), "a".into()));
    // Only one side is known.
    table.exchanged((d, OsStr::new("b")), (ROOT, OsStr::new("x")));
    assert_eq!(path(&table, a), "x");
    assert_eq!(table.child(d, OsStr::new("b")), None);
}

#[test]
fn a_name_that_is_found_to_be_another_file_moves_over() {
    let mut table = table();
    let a = file(&mut table, ROOT, "a", 10);
    let b = file(&mut table, ROOT, "a", 11);
    assert_eq!((path(&table, a), path(&table, b)), ("-".into(), "a".into()));
    // Same inode number, other kind: it cannot be the same file.
    let c = dir(&mut table, ROOT, "a", 11);
    assert_ne!(b, c);
}

fn status(ino: u64) -> Stat {
    let time = Default::default();
    Stat {
        key: key(ino),
        mode: libc::S_IFREG | 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        blksize: 4096,
        atime: time,
        mtime: time,
        ctime: time,
        birth: None,
    }
}
