//! The program, run in a pool, and what its snapshots are and show.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::support::{self, Pool, clonefs};

pub(super) const BLOCK: usize = 4096;

/// Runs `clonefs WORDS...`, with paths relative to the pool.
pub(super) fn command(pool: &Pool, words: &[&str]) -> support::Done {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_clonefs"));
    support::run(command.args(words).current_dir(pool.root()))
}

pub(super) fn ok(pool: &Pool, words: &[&str]) -> String {
    command(pool, words).success().stdout
}

/// The command fails with a message that has these words, and changes nothing.
pub(super) fn refused(pool: &Pool, words: &[&str], why: &str) {
    let before = names(pool);
    let done = command(pool, words).code(1);
    assert!(done.stderr.contains(why), "{words:?}: {}", done.stderr);
    assert_eq!(names(pool), before, "{words:?}");
}

/// All snapshots, by path.
pub(super) fn names(pool: &Pool) -> Vec<String> {
    let list: serde_json::Value = serde_json::from_str(&ok(pool, &["snapshot", "list", "--json"])).unwrap();
    let name =
        |row: &serde_json::Value| format!("{}@{}", row["volume"].as_str().unwrap(), row["name"].as_str().unwrap());
    let mut names: Vec<String> = list.as_array().unwrap().iter().map(name).collect();
    names.sort();
    names
}

pub(super) fn place(pool: &Pool, name: &str) -> PathBuf {
    pool.at(".snapshots").join(name)
}

pub(super) fn snapshot(pool: &Pool, name: &str) -> Vec<u8> {
    fs::read(place(pool, name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

pub(super) fn overwrite(pool: &Pool, name: &str, offset: usize, bytes: &[u8]) {
    let file = File::options().write(true).open(pool.at(name)).unwrap();
    file.write_all_at(bytes, offset as u64).unwrap();
}

pub(super) fn clean(pool: &mut Pool) {
    pool.unmount();
    clonefs([Path::new("check"), pool.root()]).success();
    pool.mount("deepen=manual");
}
