//! Work on domains that is stopped half-way, by a signal, a full disk or a source that goes: nothing of it is left.

use crate::guest::{disk, domain};
use crate::host::{self, Host};
use crate::support::noise;

const MIB: usize = 1 << 20;

fn everything(host: &Host) -> (Vec<String>, Vec<String>, Vec<String>) {
    (host.domains(), host.names(&host.pool("")), host.names(&host.outside("")))
}

#[test]
fn a_signal_during_a_clone_leaves_nothing_behind() {
    if !host::ready() {
        return;
    }
    let host = Host::without_pool();
    host.mount("allow_other,deepen=manual,rate=1M");
    host.write(&host.pool("gold.img"), &noise(1, 64 * MIB));
    host.define(&domain("gold", &disk(&host.pool("gold.img"), "raw", "vda")));
    host.define(&domain("out", &disk(&host.outside("out.img"), "raw", "vda")));
    host.write(&host.outside("out.img"), b"x");
    let before = everything(&host);
    let clonefs = env!("CARGO_BIN_EXE_clonefs");
    // While it waits until the clones are independent, which takes a minute each.
    for signal in ["INT", "TERM"] {
        let said = host.shell(&format!(
            "{clonefs} domain clone gold 'vm{{}}' --count 2 --mode copy 2>&1 & pid=$!
             until [[ -e {} ]]; do kill -0 $pid; sleep 0.05; done; sleep 0.3
             kill -{signal} $pid; code=0; wait $pid || code=$?; echo code $code",
            host.pool("vm2.img")
        ));
        assert!(said.contains("code 130"), "{said}");
        assert_eq!(everything(&host), before, "{signal}");
    }
    // Between steps: after the disks were made, and before the domain is defined.
    for source in ["gold", "out"] {
        let stop = "kill -INT $PPID";
        host.clonefs(["domain", "clone", source, "web", "--customize", stop]).code(130);
        assert_eq!(everything(&host), before, "{source}");
    }
}

#[test]
fn a_full_disk_during_a_clone_leaves_nothing_behind() {
    if !host::ready() {
        return;
    }
    let host = Host::without_pool();
    let (image, pool) = (host.outside("disk"), host.pool(""));
    host.shell(&format!(
        "truncate -s 48M {image}; mkfs.ext4 -q -m 0 {image}; mount -o loop {image} {pool}; rmdir {pool}/lost+found"
    ));
    host.mount("allow_other,deepen=manual");
    host.write(&host.pool("gold.img"), &noise(1, 30 * MIB));
    host.write(&host.outside("out.img"), &noise(2, 30 * MIB));
    host.define(&domain("gold", &disk(&host.pool("gold.img"), "raw", "vda")));
    host.define(&domain("out", &disk(&host.outside("out.img"), "raw", "vda")));
    let before = everything(&host);
    // A copy into the pool, and a clone that is to be independent: there is no room for either.
    for line in [format!("out web --disk vda={}", host.pool("web.img")), "gold web --mode copy".to_owned()] {
        let done = host.run("timeout", format!("120 {} domain clone {line}", env!("CARGO_BIN_EXE_clonefs")).split(' '));
        let said = done.code(1).stderr;
        assert!(said.contains("space") || said.contains("room"), "{line}: {said}");
        assert_eq!(everything(&host), before, "{line}");
    }
    // There is room for a clone that shares.
    host.clonefs_ok("domain clone gold web");
    host.clonefs_ok("domain snapshot create gold one");
    host.shell(&format!("cmp {} {}", host.pool("gold.img"), host.pool("web.img")));
    // And not even for that.
    host.shell(&format!("head -c 45M /dev/zero | tr '\\0' x >{} || true; sync", host.pool("fill")));
    for line in ["clone gold other", "snapshot create gold two"] {
        let before = everything(&host);
        let done = host.clonefs(format!("domain {line}").split(' '));
        if done.status.success() {
            // What was kept for that was enough.
            continue;
        }
        assert_eq!(everything(&host), before, "{line}: {done:?}");
        assert_eq!(host.clonefs_ok("domain snapshot list gold").lines().count(), 2);
    }
}

/// A directory with a `virsh` that does this before it does what it is told, if that matches a pattern.
fn virsh_that(host: &Host, name: &str, told: &str, does: &str) -> String {
    let dir = host.outside(name);
    host.shell(&format!("mkdir {dir}"));
    let script = format!("#!/bin/sh\ncase \"$*\" in\n{told}) {does};;\nesac\nexec /usr/bin/virsh \"$@\"\n");
    host.write(&format!("{dir}/virsh"), script.as_bytes());
    host.shell(&format!("chmod +x {dir}/virsh"));
    dir
}

#[test]
fn a_source_that_vanishes_leaves_nothing_behind() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    let image = host.pool("gold.img");
    host.write(&image, &noise(1, MIB));
    host.define(&domain("gold", &disk(&image, "raw", "vda")));
    let xml = host.xml("gold");
    // Its disk, when that was looked at and before it is cloned: the addresses in use come between.
    let away = virsh_that(&host, "away", "-q", &format!("mv {image} {image}.away"));
    // Itself, when its disk was cloned and before the clone is defined.
    let undefine = "/usr/bin/virsh -q undefine gold >/dev/null";
    let gone = virsh_that(&host, "gone", "*domstate*", undefine);
    let before = everything(&host);
    let clonefs = env!("CARGO_BIN_EXE_clonefs");
    for (dir, hint) in [(&away, "gold.img"), (&gone, "failed to get domain")] {
        for line in ["clone gold web", "clone gold vm{} --count 2 --mode linked"] {
            let done = host.run("bash", ["-c", &format!("PATH={dir}:$PATH exec {clonefs} domain {line}")]);
            let said = done.code(1).stderr;
            assert!(said.contains(hint) && said.lines().count() == 1, "{line}: {said}");
            if dir == &away {
                host.shell(&format!("mv {image}.away {image}"));
            } else {
                assert_eq!(host.domains(), [""; 0]);
                host.define(&xml);
            }
            assert_eq!(everything(&host), before, "{line}");
        }
    }
    assert!(host.read(&image) == noise(1, MIB));
}
