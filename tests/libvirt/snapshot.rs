//! `clonefs domain snapshot`, and clones of what one holds.

use serde_json::Value;

use crate::guest::{Tiny, disk, domain, with_os};
use crate::host::{self, Host};
use crate::live::records;
use crate::support::{noise, wait_until};

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// The names of all snapshots of files in the pool.
fn snapshots(host: &Host) -> Vec<String> {
    host.names(&host.pool(".snapshots"))
}

#[test]
fn a_snapshot_of_a_running_machine_is_of_one_instant_and_can_be_cloned_and_gone_back_to() {
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
    let more = || {
        let last = tiny.acknowledged("gold");
        wait_until(|| tiny.acknowledged("gold") > last + 10);
        tiny.acknowledged("gold")
    };
    let both = |name: &str| ["vda", "vdb"].map(|d| records(&host.read(&host.pool(&format!("{name}-{d}.img")))));
    let acknowledged = more();
    let made = json(&host.clonefs_ok("domain snapshot create gold one --json"));
    assert_eq!((&made["running"], &made["whole"]), (&true.into(), &true.into()), "{made}");
    assert!(made["suspended_ms"].is_null(), "nothing has to be held still: {made}");
    more();
    let refused = host.refused("domain snapshot rollback gold one");
    assert!(refused.contains("it is running"), "{refused}");
    // A machine that runs may be cloned from a snapshot: that does not change.
    host.clonefs_ok("domain clone gold web --snapshot one");
    let [(first, whole), (second, whole_too)] = both("web");
    assert!(whole && whole_too && second >= acknowledged, "{acknowledged} {first} {second}");
    assert!(second == first || second + 1 == first, "{first} {second}");
    host.virsh_ok("destroy gold");
    assert_ne!(both("gold"), both("web"));
    host.clonefs_ok("domain snapshot rollback gold one");
    assert_eq!(both("gold"), both("web"));
    host.clonefs_ok("domain snapshot remove gold one");
    assert!(snapshots(&host).is_empty(), "{:?}", snapshots(&host));
    assert_eq!(both("gold"), [(first, true), (second, true)]);
}

/// A domain with everything that a snapshot holds: a qcow2 image over another, a raw one, NVRAM, TPM; and a disk that it
/// does not hold.
fn rich(host: &Host) -> String {
    let (base, top, data) = (host.pool("base.qcow2"), host.pool("gold.qcow2"), host.pool("gold-data.img"));
    host.shell(&format!(
        "qemu-img create -q -f qcow2 {base} 8M; qemu-io -f qcow2 -c 'write -P 7 0 1M' {base} >/dev/null
         qemu-img create -q -f qcow2 -F qcow2 -b {base} {top}; qemu-io -f qcow2 -c 'write -P 9 1M 1M' {top} >/dev/null
         head -c 1M /dev/zero > {0}/CODE.fd; mkdir {0}/nvram",
        host.outside("")
    ));
    host.write(&data, &noise(1, 1 << 20));
    let vars = format!("{}/nvram/gold_VARS.fd", host.outside(""));
    host.write(&vars, b"vars of then");
    host.write(&host.outside("boot.iso"), b"iso");
    let os = format!(
        "<type arch='x86_64' machine='q35'>hvm</type><loader readonly='yes' type='pflash'>{}</loader><nvram>{vars}</nvram>",
        host.outside("CODE.fd")
    );
    let devices = format!(
        "{}{}<disk type='file' device='cdrom'><source file='{}'/><target dev='sda' bus='sata'/></disk>
         <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>",
        disk(&top, "qcow2", "vda"),
        disk(&data, "raw", "vdb"),
        host.outside("boot.iso")
    );
    host.define(&with_os("gold", &os, &devices));
    let uuid = host.virsh_ok("domuuid gold").trim().to_owned();
    let state = format!("/var/lib/libvirt/swtpm/{uuid}/tpm2");
    host.shell(&format!("mkdir -p {state}; echo then > {state}/tpm2-00.permall"));
    format!("{state}/tpm2-00.permall")
}

#[test]
fn a_domain_is_again_what_its_snapshot_holds() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    let tpm = rich(&host);
    let (top, data) = (host.pool("gold.qcow2"), host.pool("gold-data.img"));
    let vars = format!("{}/nvram/gold_VARS.fd", host.outside(""));
    let state = || (host.xml("gold"), host.read(&top), host.read(&data), host.read(&vars), host.read(&tpm));
    let names =
        || (host.names(&host.pool("")), host.names(&host.outside("nvram")), host.names("/var/lib/libvirt/swtpm"));
    let (then, named) = (state(), names());
    host.clonefs_ok("domain snapshot create gold one");
    assert_eq!((state(), names()), (then.clone(), named.clone()));

    let change = |xml: &str| {
        host.shell(&format!("qemu-io -f qcow2 -c 'write -P 1 0 2M' {top} >/dev/null; qemu-img resize -q {top} 16M"));
        host.write(&data, b"other");
        host.write(&vars, b"other");
        host.write(&tpm, b"other");
        host.define(&xml.replace("<vcpu placement='static'>1<", "<vcpu placement='static'>2<"));
    };
    change(&then.0);
    host.clonefs_ok("domain snapshot create gold two");
    let later = state();
    assert_ne!(later.0, then.0);

    let list = json(&host.clonefs_ok("domain snapshot list gold --json"));
    let listed: Vec<&str> =
        list.as_array().expect("a list").iter().map(|s| s["name"].as_str().expect("a name")).collect();
    assert_eq!(listed, ["one", "two"]);
    assert!(host.clonefs_ok("domain snapshot list gold").lines().nth(1).is_some_and(|l| l.contains("vda,vdb")));
    let shown = host.clonefs_ok("domain snapshot show gold one");
    for word in ["shut off", "gold.qcow2 (", "base.qcow2 (", "gold-data.img (1M", "gold_VARS.fd", "without    sda"] {
        assert!(shown.contains(word), "no {word} in {shown}");
    }
    assert!(host.clonefs_ok("domain snapshot show gold one --xml").contains("<vcpu placement='static'>1<"));

    // A new machine of it, while the old one is what it is now.
    host.clonefs_ok("domain clone gold web --snapshot one");
    assert_eq!(state(), later);
    let read = "qemu-io -f qcow2 -c 'read -P 7 0 1M' -c 'read -P 9 1M 1M'";
    let said = host.shell(&format!("{read} {0}; qemu-img info --backing-chain {0}", host.pool("web.qcow2")));
    assert!(!said.contains("failed") && said.contains("web-below1.qcow2") && !said.contains("base.qcow2"), "{said}");
    assert_eq!(host.read(&host.pool("web-data.img")), then.2);
    assert_eq!(host.read(&host.outside("nvram/web_VARS.fd")), b"vars of then");
    let uuid = host.virsh_ok("domuuid web").trim().to_owned();
    assert_eq!(host.read(&format!("/var/lib/libvirt/swtpm/{uuid}/tpm2/tpm2-00.permall")), b"then\n");
    assert!(host.xml("web").contains("<vcpu placement='static'>1<"));
    host.virsh_ok("undefine web --nvram");

    // Back, forth, and back after what was held is all there is.
    for (name, want) in [("one", &then), ("two", &later), ("one", &then)] {
        host.clonefs_ok(&format!("domain snapshot rollback gold {name}"));
        assert_eq!(&state(), want, "{name}");
    }
    assert_eq!(host.names(&host.outside("nvram")), named.1);
    assert_eq!(snapshots(&host).len(), 8, "{:?}", snapshots(&host));
    // A disk of the source that is gone is still in the snapshot.
    host.shell(&format!("rm {data}"));
    host.clonefs_ok(&format!(
        "domain clone gold again --snapshot one --disk vda=skip --disk vdb={}",
        host.pool("d.img")
    ));
    assert_eq!(host.read(&host.pool("d.img")), then.2);
    let said = host.refused("domain snapshot rollback gold one");
    assert!(said.contains("is gone"), "{said}");
}

#[test]
fn snapshots_of_domains_are_refused_with_one_clear_line_and_leave_nothing_behind() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    rich(&host);
    host.write(&host.outside("out.img"), b"x");
    host.define(&domain("out", &disk(&host.outside("out.img"), "raw", "vda")));
    host.define(&domain("none", ""));
    let image = host.pool("inside.qcow2");
    host.shell(&format!("qemu-img create -q -f qcow2 {image} 1M"));
    host.define(&domain("inside", &disk(&image, "qcow2", "vda")));
    host.virsh_ok("snapshot-create-as inside theirs");
    host.clonefs_ok("domain snapshot create gold one");
    host.clonefs_ok("domain snapshot create inside ours");
    host.virsh_ok("snapshot-create-as inside ours");
    let everything =
        || (snapshots(&host), host.names(&host.pool("")), host.domains(), host.names(&host.outside("nvram")));
    let before = everything();
    for (line, hint) in [
        ("snapshot create nobody x", "virsh list --all"),
        ("snapshot create gold one", "choose another name"),
        ("snapshot create inside theirs", "one of libvirt's"),
        ("snapshot create gold a/b", "a name has no '/'"),
        ("snapshot create out x", "in no mounted pool"),
        ("snapshot create none x", "no disk in a file"),
        ("snapshot create gold x --skip vdz", "it has vda"),
        ("snapshot create gold x --quiesce", "not running"),
        ("snapshot show gold two", "snapshot list gold"),
        ("snapshot remove gold one two", "snapshot list gold"),
        ("snapshot rollback gold two", "snapshot list gold"),
        ("clone inside web --snapshot ours", "both have a snapshot"),
        ("clone gold web --snapshot two", "two"),
    ] {
        let said = host.refused(&format!("domain {line}"));
        assert!(said.contains(hint) && said.lines().count() == 1, "{line}: {said}");
        assert_eq!(everything(), before, "{line}");
    }

    // A rollback that fails half-way leads back: here to NVRAM whose directory is gone.
    let data = host.pool("gold-data.img");
    host.write(&data, b"now");
    host.shell(&format!("mv {0} {0}.away", host.outside("nvram")));
    let said = host.refused("domain snapshot rollback gold one");
    assert!(said.contains("nvram"), "{said}");
    assert_eq!((host.read(&data), snapshots(&host)), (b"now".to_vec(), before.0.clone()));
    host.shell(&format!("mv {0}.away {0}", host.outside("nvram")));
    // What lies below a disk may be others' too: it is not rolled back, and has to be what it was.
    host.shell(&format!("qemu-io -f qcow2 -c 'write -P 8 0 64k' {} >/dev/null", host.pool("base.qcow2")));
    let said = host.refused("domain snapshot rollback gold one");
    assert!(said.contains("base.qcow2") && said.contains("written to since"), "{said}");
    assert_eq!(host.read(&data), b"now");
    // Half of it was removed by hand.
    host.clonefs_ok(&format!("snapshot remove {data}@one"));
    assert!(host.clonefs_ok("domain snapshot list gold").contains("incomplete"));
    for line in ["snapshot rollback gold one", "clone gold web --snapshot one"] {
        let said = host.refused(&format!("domain {line}"));
        assert!(said.contains("gold-data.img@one"), "{said}");
    }
    // Another file of that name, with a snapshot of that name, is not taken for it.
    host.shell(&format!("mv {data} {data}.old; echo x > {data}; sleep 4"));
    host.clonefs_ok(&format!("snapshot create {data}@one"));
    let said = host.refused("domain clone gold web --snapshot one");
    assert!(said.contains("another one"), "{said}");
    host.clonefs_ok("domain snapshot remove gold one");
    assert!(snapshots(&host).iter().any(|name| name == "gold-data.img@one"));
    assert_eq!(host.clonefs_ok("domain snapshot list gold").lines().count(), 1);
    // What another user could have written is not believed.
    host.clonefs_ok("domain snapshot create gold mine");
    let record = snapshots(&host).into_iter().find(|name| name.starts_with(".domain-") && name.ends_with("@mine"));
    let record = host.pool(&record.expect("a record"));
    host.shell(&format!("cp {}/{} {record}.x", host.pool(".snapshots"), record.rsplit_once('/').expect("a path").1));
    let forged = record.trim_end_matches("@mine");
    host.shell(&format!("mv {record}.x {forged}9; chown 1234 {forged}9"));
    host.clonefs_ok(&format!("snapshot create {forged}9@forged"));
    let said = host.refused("domain clone gold web --snapshot forged");
    assert!(said.contains("another user"), "{said}");
}
