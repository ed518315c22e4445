//! `clonefs domain clone --live`: running machines.

use crate::guest::{Tiny, disk};
use crate::host::{self, Host};
use crate::support::wait_until;

#[test]
fn a_live_clone_has_all_that_was_acknowledged_before() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    let tiny = Tiny::new(&host);
    host.shell(&format!("truncate -s 16M {}", host.pool("gold.img")));
    host.define(&tiny.domain("gold", "job=blocks n=100000 mib=16", &disk(&host.pool("gold.img"), "raw", "vda")));
    host.virsh_ok("start gold");
    let mut clones = Vec::new();
    for number in 1..=2 {
        let last = tiny.acknowledged("gold");
        wait_until(|| tiny.acknowledged("gold") >= last + 10);
        let acknowledged = tiny.acknowledged("gold");
        host.clonefs_ok(&format!("domain clone gold c{number} --live"));
        clones.push((format!("c{number}"), acknowledged));
    }
    host.virsh_ok("destroy gold");
    for (name, acknowledged) in clones {
        tiny.set_job(&name, &format!("job=check-blocks n={acknowledged} mib=16"));
        host.virsh_ok(&format!("start {name}"));
        tiny.wait_ok(&name);
    }
}

/// The highest record on a disk that `job=pair` writes, and whether all before it are there.
pub fn records(bytes: &[u8]) -> (u32, bool) {
    let number = |block: &[u8]| String::from_utf8_lossy(block).lines().next()?.strip_prefix("x-")?.parse::<u32>().ok();
    let found: Vec<Option<u32>> = bytes.chunks(4096).map(number).collect();
    let highest = found.iter().flatten().max().copied().unwrap_or(0);
    // Record n is in block n, modulo the size of the disk, so no block holds one that is too old.
    let size = found.len() as u32;
    let want = |block: u32| (0..=highest).rev().find(|n| n % size == block).filter(|&n| n > 0);
    (highest, (0..size).all(|block| found[block as usize] == want(block)))
}

#[test]
fn all_disks_of_a_live_clone_are_of_one_instant() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    let tiny = Tiny::new(&host);
    let disks = ["vda", "vdb"].map(|name| {
        let file = host.pool(&format!("gold-{name}.img"));
        host.shell(&format!("truncate -s 1M {file}"));
        disk(&file, "raw", name)
    });
    // Each record is written to the first disk, and only when that is done to the second.
    host.define(&tiny.domain("gold", "job=pair", &disks.concat()));
    host.virsh_ok("start gold");
    for number in 1..=5 {
        let last = tiny.acknowledged("gold");
        wait_until(|| tiny.acknowledged("gold") > last + 10);
        let acknowledged = tiny.acknowledged("gold");
        let made = host.clonefs_ok(&format!("domain clone gold c{number} --live --json"));
        let made: serde_json::Value = serde_json::from_str(&made).expect("JSON");
        assert!(made[0]["suspended_ms"].is_null(), "its disks lie in one pool: nothing has to be held still");
        let (first, whole) = records(&host.read(&host.pool(&format!("c{number}-vda.img"))));
        let (second, whole_too) = records(&host.read(&host.pool(&format!("c{number}-vdb.img"))));
        assert!(whole && whole_too, "{first} {second}");
        assert!(second >= acknowledged && (second == first || second + 1 == first), "{acknowledged} {first} {second}");
    }
    assert_eq!(host.virsh_ok("domstate gold").trim(), "running");
}
