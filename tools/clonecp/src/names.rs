//! Parts of file names, byte by byte: what the user wrote stays as it is, `..`, double slashes and all.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::stat::Stat;

/// Without slashes at its end; the root stays the root.
pub fn without_slashes(name: &Path) -> &Path {
    let bytes = name.as_os_str().as_bytes();
    let end = bytes.iter().rposition(|&b| b != b'/').map_or(bytes.len().min(1), |last| last + 1);
    Path::new(OsStr::from_bytes(&bytes[..end]))
}

/// The last component; empty for the root.
pub fn last(name: &Path) -> &OsStr {
    let bytes = without_slashes(name).as_os_str().as_bytes();
    let start = bytes.iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
    OsStr::from_bytes(&bytes[start..])
}

/// The directory that holds it; `.` where none is named.
pub fn parent(name: &Path) -> &Path {
    let bytes = without_slashes(name).as_os_str().as_bytes();
    match bytes.iter().rposition(|&b| b == b'/') {
        Some(slash) => without_slashes(Path::new(OsStr::from_bytes(&bytes[..slash.max(1)]))),
        None => Path::new("."),
    }
}

/// `name` below `directory`, also when `name` begins with a slash.
pub fn join(directory: &Path, name: &OsStr) -> PathBuf {
    let mut bytes = without_slashes(directory).as_os_str().as_bytes().to_vec();
    if bytes.last() != Some(&b'/') && name.as_bytes().first() != Some(&b'/') {
        bytes.push(b'/');
    }
    bytes.extend_from_slice(name.as_bytes());
    PathBuf::from(OsString::from_vec(bytes))
}

/// `name` with `suffix` after it.
pub fn with_suffix(name: &Path, suffix: &OsStr) -> PathBuf {
    let mut whole = name.as_os_str().to_owned();
    whole.push(suffix);
    PathBuf::from(whole)
}

/// `.` or `..`: a name that every directory has.
pub fn is_dot(name: &Path) -> bool {
    matches!(last(name).as_bytes(), b"." | b"..")
}

/// Two ways to write one name: the same last component in the same directory.
pub fn same(a: &Path, b: &Path) -> bool {
    last(a) == last(b)
        && match (Stat::of(parent(a)), Stat::of(parent(b))) {
            (Ok(a), Ok(b)) => a.id() == b.id(),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_where_the_slashes_are() {
        for (name, stem, tail, dir) in [
            ("a", "a", "a", "."),
            ("a/b//", "a/b", "b", "a"),
            ("a//b", "a//b", "b", "a"),
            ("/a", "/a", "a", "/"),
            ("///", "/", "", "/"),
            ("a/..", "a/..", "..", "a"),
        ] {
            let path = Path::new(name);
            assert_eq!(without_slashes(path), Path::new(stem), "{name}");
            assert_eq!(last(path), tail, "{name}");
            assert_eq!(parent(path), Path::new(dir), "{name}");
        }
    }

    #[test]
    fn names_are_joined_below_a_directory() {
        let joined = |a: &str, b: &str| join(Path::new(a), OsStr::new(b)).into_os_string();
        assert_eq!(joined("e/", "a"), "e/a");
        assert_eq!(joined("/", "a"), "/a");
        assert_eq!(joined("e", "/tmp/x"), "e/tmp/x");
        assert_eq!(joined("e", "./x"), "e/./x");
    }
}
