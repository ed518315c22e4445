//! Writers: fio, which stamps each block with a checksum, its place and a sequence, and reads all of it back.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

use super::Shared;
use super::clones::{base, image};

/// Bytes that one round writes.
const PIECE: &str = "4m";

/// Whether fio is here. CI must have it.
pub fn can_run() -> bool {
    let found =
        Command::new("fio").arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    assert!(found || std::env::var_os("CI").is_none(), "fio is missing");
    if !found {
        eprintln!("SKIPPED: fio is missing");
    }
    found
}

/// Rounds of one writer, each with other ways to write. Between two rounds its image may become a clone of the base
/// again.
pub fn run(root: &Path, number: usize, shared: &Shared) {
    let mut round = 0_u64;
    while !shared.stopping() {
        let path = image(root, number);
        if round.is_multiple_of(4) && number.is_multiple_of(2) {
            // A new clone under another name, renamed over the image that was written so far.
            let fresh = path.with_extension("new");
            super::clones::clone(&base(root), &fresh);
            std::fs::rename(&fresh, &path).expect("rename over an image");
        }
        verify(&path, number, round);
        shared.rounds.fetch_add(1, Ordering::Relaxed);
        round += 1;
    }
}

/// Writes and reads back, with syncs.
fn verify(path: &Path, number: usize, round: u64) {
    let sizes = ["4k-4k", "512-512", "16k-16k", "1k-64k"];
    let size = sizes[(number + round as usize) % sizes.len()];
    let direct = if number.is_multiple_of(3) && size != "512-512" && size != "1k-64k" { "1" } else { "0" };
    let mut fio = Command::new("fio");
    fio.args(["--name=writer", "--rw=randwrite", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1"]);
    fio.args(["--verify_backlog=64", "--fsync=32", "--fallocate=none", "--overwrite=0", "--file_append=0"]);
    fio.args(["--size", PIECE, "--io_size", PIECE, "--output-format=terse", "--ioengine=psync"]);
    fio.arg(format!("--direct={direct}"))
        .arg(format!("--bsrange={size}"))
        .arg(format!("--randseed={}", number as u64 + 100 * round));
    fio.arg(format!("--filename={}", path.display()));
    let output = fio.stdin(Stdio::null()).output().expect("fio");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && !said.contains("verify:"), "writer {number}, round {round}: {fio:?}\n{said}");
}
