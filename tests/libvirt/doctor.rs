//! `clonefs doctor` on a host with a real libvirt: what is well, and what is not, with the line that mends it.

use crate::guest::{disk, disk_with, domain};
use crate::host::{self, Host};
use crate::support::Done;

/// What was found: check, level, found, remedy.
fn examine(host: &Host, patient: &str, code: i32) -> Vec<[String; 4]> {
    findings(host.clonefs(["doctor", "--json", patient]).code(code))
}

fn examine_any(host: &Host, patient: &str) -> Vec<[String; 4]> {
    findings(host.clonefs(["doctor", "--json", patient]))
}

fn findings(done: Done) -> Vec<[String; 4]> {
    let findings: Vec<serde_json::Value> = serde_json::from_str(&done.stdout).expect("JSON");
    let text = |finding: &serde_json::Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    findings.iter().map(|f| ["check", "level", "found", "remedy"].map(|field| text(f, field))).collect()
}

#[track_caller]
fn assert_found(findings: &[[String; 4]], check: &str, level: &str, hint: &str) {
    let found = findings.iter().any(|f| f[0] == check && f[1] == level && (f[2].contains(hint) || f[3].contains(hint)));
    assert!(found, "no {level} {check} with {hint} in {findings:#?}");
}

#[test]
fn a_pool_that_is_well_is_said_to_be_well() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    host.write(&host.pool("a.img"), &[1; 8192]);
    host.clonefs_ok(&format!("pool define vms {}", host.pool("")));
    host.define(&domain("one", &disk(&host.pool("a.img"), "raw", "vda")));
    for patient in [host.pool(""), "one".to_owned()] {
        let findings = examine(&host, &patient, 0);
        for check in [
            "/dev/fuse",
            "mount",
            "allow_other",
            "way to the files",
            "clones",
            "O_DIRECT and locks",
            "libvirt",
            "libvirt pool",
        ] {
            assert_found(&findings, check, "ok", "");
        }
    }
    let findings = examine(&host, "one", 0);
    for check in ["disk", "cache", "discard"] {
        assert_found(&findings, check, "ok", "vda");
    }
    let said = host.clonefs_ok(&format!("doctor --quiet {}", host.pool("")));
    assert!(!said.contains("ok "), "{said}");
}

#[test]
fn what_is_wrong_with_a_pool_is_found_with_its_remedy() {
    if !host::ready() {
        return;
    }
    let host = Host::without_pool();
    let pool = host.pool("");
    assert_found(&examine(&host, &pool, 1), "mount", "problem", &format!("clonefs mount {pool} -o allow_other"));
    host.mount("allow_root,deepen=manual");
    assert_found(&examine(&host, &pool, 1), "allow_other", "problem", "-o allow_other");
    assert_found(&examine(&host, &pool, 1), "libvirt pool", "advice", "clonefs pool define");
    host.clonefs_ok(&format!("unmount {pool}"));
    host.mount("allow_other,deepen=manual");
    host.clonefs_ok(&format!("pool define vms {pool}"));
    host.write(&host.pool("new.img"), b"x");
    assert_found(&examine(&host, &pool, 0), "libvirt pool", "advice", "virsh pool-refresh vms");
    let inner = host.pool("inner");
    host.shell(&format!("mkdir -m 700 {inner}"));
    assert_found(
        &examine(&host, &inner, 1),
        "way to the files",
        "problem",
        &format!("setfacl -m u:libvirt-qemu:x {inner}"),
    );
    let said = host.refused("doctor /no/such/place");
    assert!(said.contains("No such file"), "{said}");
    let said = host.refused("doctor nosuchdomain");
    assert!(said.contains("list --all"), "{said}");
}

#[test]
fn what_is_wrong_with_the_disks_of_a_domain_is_found() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    host.write(&host.pool("base.img"), &[1; 1 << 20]);
    host.clonefs_ok(&format!("clone {} {}", host.pool("base.img"), host.pool("clone.img")));
    host.shell(&format!("qemu-img create -q -f qcow2 {} 1M", host.pool("c.qcow2")));
    host.write(&host.outside("out.img"), b"x");
    let devices = [
        disk_with(&host.pool("clone.img"), "type='raw' cache='unsafe'", "vda"),
        disk_with(&host.pool("c.qcow2"), "type='raw' cache='none' discard='unmap'", "vdb"),
        disk(&host.outside("out.img"), "raw", "vdc"),
        disk(&host.outside("none.img"), "raw", "vdd"),
        disk_with(&host.pool("base.img"), "type='raw'", "vde"),
    ];
    host.define(&domain("one", &devices.concat()));
    let findings = examine(&host, "one", 1);
    assert_found(&findings, "cache", "advice", "vda ignores what the guest syncs");
    assert_found(&findings, "discard", "advice", "discard='unmap' in the <driver> of vda");
    assert_found(&findings, "format", "advice", "vdb is raw for libvirt");
    assert_found(&findings, "disk", "advice", "vdc");
    assert_found(&findings, "disk", "problem", "vdd");
    assert_found(&findings, "cache", "advice", "vde is cached twice");
    // Without its mount the clone is a stub, from which nobody should boot.
    host.clonefs_ok(&format!("unmount {}", host.pool("")));
    assert_found(&examine(&host, "one", 1), "disk", "problem", "stub");
}

/// Each thing that a host can lack, as the system shows it, put over what this one has.
#[test]
fn what_is_wrong_with_a_host_is_found_with_its_remedy() {
    if !host::ready() {
        return;
    }
    let host = Host::without_pool();
    let dir = host.outside("");
    host.shell(&format!(
        "mount -t tmpfs t /proc/sys/kernel; echo 4.19.0-1-amd64 >/proc/sys/kernel/osrelease
         echo 2 >/proc/sys/kernel/io_uring_disabled
         mount -t tmpfs t /sys/fs; mkdir -p /sys/fs/selinux/booleans; echo 1 >/sys/fs/selinux/enforce
         echo '0 0' >/sys/fs/selinux/booleans/virt_use_fusefs
         mount -t tmpfs t /sys/kernel/security; mkdir -p /sys/kernel/security/apparmor/policy/profiles
         echo 'dynamic_ownership = 0' >>/etc/libvirt/qemu.conf
         mkdir {dir}/bin; printf '#!/bin/sh\n' >{dir}/bin/aa-enabled; chmod 755 {dir}/bin/aa-enabled
         cp {} {dir}/clonefs; chmod 755 {dir}/clonefs; : >{dir}/fuse.conf; mount --bind {dir}/fuse.conf /etc/fuse.conf
         mkdir -p {dir}/abstractions; d=/etc/apparmor.d/local/abstractions
         if [[ -d $d ]]; then mount --bind {dir}/abstractions $d; fi",
        env!("CARGO_BIN_EXE_clonefs")
    ));
    let doctor = |before: &str| {
        let line = format!("PATH={dir}/bin:$PATH; {before} {dir}/clonefs doctor --json");
        findings(host.run("bash", ["-c", &line]).code(1))
    };
    let found = doctor("prlimit --nofile=1000:1000");
    for (check, level, hint) in [
        ("kernel", "problem", "Linux 5.4 or newer"),
        ("io_uring", "advice", "sysctl kernel.io_uring_disabled=0"),
        ("passthrough", "ok", "not before Linux 6.9"),
        ("SELinux", "problem", "setsebool -P virt_use_fusefs on"),
        ("AppArmor", "advice", "abstractions/libvirt-qemu"),
        ("qemu's user", "advice", "chown libvirt-qemu"),
        ("open files", "advice", "ulimit -Hn 1048576"),
        ("user_allow_other", "ok", "root mounts"),
    ] {
        assert_found(&found, check, level, hint);
    }
    host.shell("echo 6.1.0 >/proc/sys/kernel/osrelease; echo '1 1' >/sys/fs/selinux/booleans/virt_use_fusefs");
    let found = doctor("setpriv --reuid 1 --regid 1 --clear-groups");
    assert_found(&found, "kernel", "advice", "Linux 6.6 or newer");
    assert_found(&found, "SELinux", "ok", "");
    assert_found(&found, "user_allow_other", "problem", "tee -a /etc/fuse.conf");
    assert_found(&found, "passthrough", "ok", "only for a daemon that root has started");
    // No virsh, no qemu-img; and libvirt does not answer.
    host.shell(&format!("ln -s /usr/bin/env {dir}/bin/env"));
    let none = host.run("env", ["-i", &format!("PATH={dir}/bin"), &format!("{dir}/clonefs"), "doctor", "--json"]);
    let found = findings(none.code(0));
    assert_found(&found, "qemu-img", "advice", "apt install qemu-utils");
    assert_found(&found, "virsh", "advice", "apt install libvirt-clients");
    assert_found(&found, "libvirt", "advice", "systemctl start libvirtd");
}

#[test]
fn what_is_wrong_below_a_pool_is_found_with_its_remedy() {
    if !host::ready() {
        return;
    }
    let host = Host::without_pool();
    let (image, pool) = (host.outside("disk"), host.pool(""));
    host.shell(&format!(
        "truncate -s 32M {image}; mkfs.ext4 -q -m 0 {image}; mount -o loop {image} {pool}; rmdir {pool}/lost+found"
    ));
    host.mount("allow_other,deepen=manual");
    host.clonefs_ok(&format!("pool define vms {pool}"));
    host.write(&host.pool("gold.img"), &[1; 8192]);
    host.clonefs_ok(&format!("clone {} {}", host.pool("gold.img"), host.pool("web.img")));
    host.virsh_ok("pool-refresh vms");
    for check in ["clones", "space", "O_DIRECT and locks", "libvirt pool"] {
        assert_found(&examine(&host, &pool, 0), check, "ok", "");
    }
    // Changed without clonefs: the clone cannot be read any more.
    host.clonefs_ok(&format!("unmount {pool}"));
    host.shell(&format!("echo changed >>{}", host.pool("gold.img")));
    host.mount("allow_other,deepen=manual");
    host.shell(&format!("cat {} >/dev/null 2>&1 || true", host.pool("web.img")));
    assert_found(&examine(&host, &pool, 1), "volumes", "problem", "web.img");
    host.shell(&format!("head -c 32M /dev/zero | tr '\\0' x >{} || true", host.pool("x")));
    assert_found(&examine(&host, &pool, 1), "space", "advice", "clonefs list");
    host.shell(&format!("rm {}", host.pool("web.img")));
    crate::support::wait_until(|| !examine_any(&host, &pool).iter().any(|f| f[0] == "volumes"));
    host.clonefs_ok(&format!("unmount {pool}"));
    host.shell(&format!("umount {pool}"));
}
