//! Names and attributes through a mount are those of the backing filesystem: random operations by several users give
//! the same results on both, and each special case has its test.

mod directories;
mod files;
mod positions;
mod programs;
mod rights;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use support::on_each_filesystem;
use support::same::{Sides, Steps};

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap_or_else(|e| panic!("chmod {path:?}: {e}"));
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn random_operations_give_the_results_of_the_backing_filesystem() {
    let seeds: Vec<u64> = match std::env::var("CLONEFS_TEST_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => vec![1, 2],
    };
    on_each_filesystem(|pool| {
        for &seed in &seeds {
            let sides = Sides::new(pool, &format!("run-{seed}"));
            sides.compare_steps(Steps::new(seed, 3000));
        }
    });
}
