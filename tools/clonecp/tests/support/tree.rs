//! Everything that can be seen of a directory tree.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Times before this were set by the test and are compared exactly; later ones are "now".
const OLD: i64 = 1_600_000_000;

/// One file, in words: two files are alike if the words are.
pub type Tree = BTreeMap<PathBuf, Vec<String>>;

/// Looks at everything below `root`.
pub fn look(root: &Path) -> Tree {
    let mut paths = Vec::new();
    walk(root, Path::new(""), &mut paths);
    paths.sort();
    let mut first_name: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let mut tree = Tree::new();
    for path in paths {
        let whole = root.join(&path);
        let Ok(meta) = fs::symlink_metadata(&whole) else { continue };
        let first = first_name.entry((meta.dev(), meta.ino())).or_insert_with(|| path.clone()).clone();
        let mut words = vec![
            format!("mode {:o}", meta.mode()),
            format!("owner {}:{}", meta.uid(), meta.gid()),
            format!("links {}", meta.nlink()),
            format!("mtime {}", time(meta.mtime(), meta.mtime_nsec())),
        ];
        let kind = meta.file_type();
        if !meta.is_dir() {
            words.push(format!("same as {}", first.display()));
            words.push(format!("atime {}", time(meta.atime(), meta.atime_nsec())));
            words.push(format!("size {}", meta.size()));
            words.push(format!("blocks {}", meta.blocks()));
        }
        if kind.is_symlink() {
            words.push(format!("to {:?}", fs::read_link(&whole).ok()));
        } else if kind.is_file() {
            words.push(format!("contents {}", contents(&whole)));
        } else if kind.is_block_device() || kind.is_char_device() {
            words.push(format!("device {}", meta.rdev()));
        }
        words.extend(xattrs(&whole));
        tree.insert(path, words);
    }
    tree
}

/// Leaves out what begins with `what`.
pub fn forget(tree: &mut Tree, what: &str) {
    tree.values_mut().for_each(|words| words.retain(|word| !word.starts_with(what)));
}

/// What two trees do not have in common.
pub fn differences(theirs: &Tree, ours: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    let names: std::collections::BTreeSet<&PathBuf> = theirs.keys().chain(ours.keys()).collect();
    for name in names {
        match (theirs.get(name), ours.get(name)) {
            (Some(theirs), Some(ours)) if theirs == ours => {}
            (Some(theirs), Some(ours)) => {
                let only =
                    |a: &[String], b: &[String]| a.iter().filter(|w| !b.contains(w)).cloned().collect::<Vec<_>>();
                found.push(format!(
                    "{}: cp {:?}, clonecp {:?}",
                    name.display(),
                    only(theirs, ours),
                    only(ours, theirs)
                ));
            }
            (theirs, _) => {
                let whose = if theirs.is_some() { "cp" } else { "clonecp" };
                found.push(format!("{}: only with {whose}", name.display()));
            }
        }
    }
    found
}

fn walk(root: &Path, path: &Path, found: &mut Vec<PathBuf>) {
    found.push(path.to_path_buf());
    let Ok(entries) = fs::read_dir(root.join(path)) else { return };
    for entry in entries.flatten() {
        let below = path.join(entry.file_name());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(root, &below, found);
        } else {
            found.push(below);
        }
    }
}

fn time(seconds: i64, nanoseconds: i64) -> String {
    if seconds < OLD { format!("{seconds}.{nanoseconds:09}") } else { "now".into() }
}

/// Contents, shortened to length and a sum.
fn contents(path: &Path) -> String {
    sum(&fs::read(path).unwrap_or_default())
}

fn sum(bytes: &[u8]) -> String {
    let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |sum, &b| (sum ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    format!("{} bytes {sum:016x}", bytes.len())
}

/// Extended attributes with their values, ACLs among them.
pub fn xattrs(path: &Path) -> Vec<String> {
    let mut list = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, list.as_mut_slice()).unwrap_or(0);
    let mut found: Vec<String> = list[..length]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 65536];
            let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).unwrap_or(0);
            format!("xattr {}={}", String::from_utf8_lossy(name), sum(&value[..length]))
        })
        .collect();
    found.sort();
    found
}
