//! Machines that run from a mounted pool.

use std::os::unix::fs::MetadataExt;

use crate::guest::{Tiny, disk, disk_with};
use crate::host::{self, Host};
use crate::support::{noise, wait_until};

/// Record `number` of the tiny guest's `job=blocks id=x`, and the offset at which it is among `mib` MiB.
fn record(number: usize, mib: usize) -> (usize, Vec<u8>) {
    let line = format!("x-{number}\n");
    let bytes: Vec<u8> = line.bytes().cycle().take(4096).collect();
    (number * 7919 % (mib * 256) * 4096, bytes)
}

#[test]
fn every_way_of_caching_and_of_io_works_on_a_clone() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    let tiny = Tiny::new(&host);
    let before = noise(1, 8 << 20);
    host.write(&host.pool("base.img"), &before);
    let ways = [
        ("none", "native", "unmap"),
        ("none", "io_uring", "on"),
        ("directsync", "threads", "off"),
        ("writeback", "threads", "unmap"),
        ("writethrough", "io_uring", "off"),
        ("unsafe", "threads", "off"),
    ];
    let name = |cache: &str, io: &str| format!("{cache}-{io}");
    // Two at a time: that is how many processors small machines have.
    for pair in ways.chunks(2) {
        for (cache, io, zeroes) in pair {
            let name = name(cache, io);
            let image = host.pool(&format!("{name}.img"));
            host.clonefs_ok(&format!("clone {} {image}", host.pool("base.img")));
            let driver = format!("type='raw' cache='{cache}' io='{io}' discard='unmap' detect_zeroes='{zeroes}'");
            host.define(&tiny.domain(&name, "job=blocks n=8 mib=8", &disk_with(&image, &driver, "vda")));
            host.virsh_ok(&format!("start {name}"));
        }
        for (cache, io, _) in pair {
            tiny.wait_ok(&name(cache, io));
        }
    }
    let mut want = before.clone();
    for (at, bytes) in (1..=8).map(|number| record(number, 8)) {
        want[at..at + 4096].copy_from_slice(&bytes);
    }
    for (cache, io, _) in ways {
        let image = host.pool(&format!("{}.img", name(cache, io)));
        assert!(host.read(&image) == want, "{cache} {io}: other bytes");
    }
    assert!(host.read(&host.pool("base.img")) == before);
}

#[test]
fn a_disk_is_locked_while_a_machine_has_it_and_only_then() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    let tiny = Tiny::new(&host);
    let image = host.pool("base.img");
    host.write(&image, &noise(1, 1 << 20));
    for name in ["one", "two"] {
        host.define(&tiny.domain(name, "job=idle", &disk(&image, "raw", "vda")));
    }
    host.virsh_ok("start one");
    let refused = host.virsh(["start", "two"]).code(1);
    assert!(refused.stderr.contains("lock"), "{refused:?}");
    // Another program is refused as well.
    let refused = host.run("qemu-img", ["resize", "-f", "raw", &image, "2M"]).code(1);
    assert!(refused.stderr.contains("lock"), "{refused:?}");
    // qemu dies without letting go of anything.
    host.shell("kill -9 $(cat /run/libvirt/qemu/one.pid)");
    host.wait_state("one", "shut off");
    host.virsh_ok("start two");
    host.virsh_ok("destroy two");
    host.virsh_ok("start one");
    // Its clone is another file and another lock.
    host.clonefs_ok("domain clone one three --live --start");
    assert_eq!(host.virsh_ok("domstate three").trim(), "running");
}

#[test]
fn libvirt_gives_disks_to_its_user_and_back() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    let tiny = Tiny::new(&host);
    host.write(&host.pool("base.img"), &noise(1, 1 << 20));
    let image = host.pool("clone.img");
    host.clonefs_ok(&format!("clone {} {image}", host.pool("base.img")));
    let owner = || std::fs::metadata(host.reach(&image)).expect("the image").uid();
    assert_eq!(owner(), 0);
    host.define(&tiny.domain("one", "job=idle", &disk(&image, "raw", "vda")));
    host.virsh_ok("start one");
    let user: u32 = host.shell("id -u libvirt-qemu").trim().parse().expect("a number");
    assert_eq!(owner(), user);
    host.virsh_ok("destroy one");
    assert_eq!(owner(), 0);
    assert_eq!(host.read(&image), noise(1, 1 << 20));
}

#[test]
fn snapshots_are_taken_committed_and_pulled_while_it_runs() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    let tiny = Tiny::new(&host);
    let (gold, image) = (host.pool("gold.qcow2"), host.pool("web.qcow2"));
    host.shell(&format!(
        "qemu-img create -q -f qcow2 {gold} 4M; qemu-io -f qcow2 -c 'write -P 3 3M 1M' {gold} >/dev/null"
    ));
    host.define(&tiny.domain("gold", "job=blocks n=100000 mib=2", &disk(&gold, "qcow2", "vda")));
    host.clonefs_ok("domain clone gold web --start");
    let progress = || {
        let last = tiny.acknowledged("web");
        wait_until(|| tiny.acknowledged("web") > last + 1);
    };
    progress();
    host.virsh_ok("snapshot-create-as web inside");
    progress();
    host.virsh_ok(&format!(
        "snapshot-create-as web over --disk-only --no-metadata --diskspec vda,file={}",
        host.pool("web.over")
    ));
    progress();
    host.virsh_ok("blockcommit web vda --active --pivot --wait");
    assert!(host.xml("web").contains("web.qcow2'"));
    progress();
    host.virsh_ok(&format!(
        "snapshot-create-as web more --disk-only --no-metadata --diskspec vda,file={}",
        host.pool("web.more")
    ));
    progress();
    host.virsh_ok("blockpull web vda --wait");
    progress();
    host.virsh_ok("destroy web");
    let last = tiny.acknowledged("web") as usize;
    // All that was acknowledged is in the one file that is left, and what nobody wrote is still there.
    host.shell(&format!("qemu-img convert -f qcow2 -O raw {} {}", host.pool("web.more"), host.outside("all.raw")));
    let bytes = host.read(&host.outside("all.raw"));
    for (at, want) in (1 + last.saturating_sub(500)..=last).map(|number| record(number, 2)) {
        assert!(bytes[at..at + 4096] == want, "the record at {at} of {last} records");
    }
    assert!(bytes[3 << 20..].iter().all(|&b| b == 3));
    host.shell(&format!("qemu-img check -q {image}; qemu-img check -q {}", host.pool("web.more")));
    assert!(host.virsh_ok("snapshot-list web --name").contains("inside"));
}

#[test]
fn what_the_guest_trims_comes_free_on_the_host_also_on_a_clone() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    let tiny = Tiny::new(&host);
    let (base, clone) = (host.pool("base.img"), host.pool("clone.img"));
    host.shell(&format!("truncate -s 64M {base}; mkfs.ext4 -q -F -m 0 -E lazy_itable_init=0 {base}"));
    host.clonefs_ok(&format!("clone {base} {clone}"));
    for image in [&clone, &base] {
        let name = image.rsplit_once('/').expect("a path").1.trim_end_matches(".img");
        host.define(&tiny.domain(name, "job=files n=1 mib=24", &disk(image, "raw", "vda")));
        host.virsh_ok(&format!("start {name}"));
        tiny.wait_ok(name);
        let before = host.info(image).unique_bytes;
        tiny.set_job(name, "job=trim mib=24");
        host.virsh_ok(&format!("start {name}"));
        tiny.wait_ok(name);
        let after = host.info(image).unique_bytes;
        // 24 MiB were written and trimmed: of that nothing may stay, but for the filesystem's own blocks.
        assert!(after < before + (4 << 20), "{name}: {before} bytes, then {after}");
    }
    host.shell(&format!("e2fsck -fn {base}; e2fsck -fn {clone}"));
}
