//! Recognising a `cp` that could make a clone.
//!
//! cp and install of coreutils 9.1 copy a file by one copy_file_range, which is a clone, only if it has no holes by
//! `st_blocks`; they look at that right after they have opened it for reading. A copy that leaves the mount must not be
//! told so: it would lose its holes. Where a copy goes, only the command line says.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Whether the program of a process is one that looks at `st_blocks` before it copies.
pub fn is_copier(command: &str) -> bool {
    matches!(command, "cp" | "install")
}

/// Whether a command line, run in `directory`, copies from below `mountpoint` to elsewhere. Paths are taken by the
/// letter: when no source lies below the mount point that way (there is a symbolic link on the way, or the process has
/// another root), nothing can be said.
pub fn copies_out(arguments: &[u8], directory: &Path, mountpoint: &Path) -> bool {
    let mut target = None;
    let mut files = Vec::new();
    let mut words = arguments.split(|byte| *byte == 0).skip(1).filter(|word| !word.is_empty());
    let mut options = true;
    while let Some(word) = words.next() {
        if !options || !word.starts_with(b"-") || word == b"-" {
            files.push(word);
        } else if word == b"--" {
            options = false;
        } else if word == b"-t" || word == b"--target-directory" {
            target = words.next();
        } else if let Some(value) = word.strip_prefix(b"--target-directory=").or_else(|| word.strip_prefix(b"-t")) {
            target = Some(value);
        }
    }
    let Some(target) = target.or_else(|| files.pop()) else { return false };
    let inside = |word: &[u8]| normal(directory, word).starts_with(mountpoint);
    files.iter().any(|file| inside(file)) && !inside(target)
}

/// `word` seen from `directory`, without `.` and `..`.
fn normal(directory: &Path, word: &[u8]) -> PathBuf {
    let mut path = PathBuf::new();
    for component in directory.join(OsStr::from_bytes(word)).components() {
        match component {
            Component::ParentDir => drop(path.pop()),
            Component::CurDir => {}
            other => path.push(other),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(directory: &str, command: &str) -> bool {
        copies_out(command.replace(' ', "\0").as_bytes(), Path::new(directory), Path::new("/pool"))
    }

    #[test]
    fn a_copy_that_leaves_the_mount_is_seen() {
        assert!(out("/", "cp pool/a /tmp/b"));
        assert!(out("/pool", "cp a ../tmp"));
        assert!(out("/pool/d", "cp -a a b /backup/"));
        assert!(out("/pool", "cp -t /tmp a b"));
        assert!(out("/pool", "cp a --target-directory=/tmp"));
        assert!(out("/pool", "install -m 600 -- a -b/../../x"));
        assert!(out("/tmp", "cp /pool/a ."));
    }

    #[test]
    fn a_copy_that_stays_or_cannot_be_told_is_not() {
        assert!(!out("/pool", "cp a b"));
        assert!(!out("/", "cp --sparse=auto pool/a pool/d/../b"));
        assert!(!out("/pool/d", "cp a -t.."));
        assert!(!out("/tmp", "cp /elsewhere/a /pool/b"));
        // A symbolic link to the pool.
        assert!(!out("/images", "cp a b"));
        assert!(!out("/pool", "cp"));
        assert!(!out("/pool", "cp a"));
    }
}
