//! `clonefs domain clone` of domains that are shut off.

use clonefs::protocol::VolumeState;

use crate::guest::{Tiny, disk, domain, with_os};
use crate::host::{self, Host};
use crate::support::noise;

/// The text between two others.
fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    text.split_once(start)
        .and_then(|(_, rest)| rest.split_once(end))
        .unwrap_or_else(|| panic!("no {start} in {text}"))
        .0
}

#[test]
fn a_clone_has_its_own_disks_and_identity_and_else_the_same() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    let data = noise(1, 3 << 20);
    host.write(&host.pool("gold.img"), &data);
    host.shell(&format!("qemu-img create -q -f qcow2 {} 8M", host.pool("extra.qcow2")));
    host.write(&host.outside("boot.iso"), b"iso");
    let devices = format!(
        "{}{}<disk type='file' device='cdrom'><source file='{}'/><target dev='sda' bus='sata'/></disk>\
         <interface type='user'><mac address='52:54:00:11:22:33'/><model type='virtio'/></interface>",
        disk(&host.pool("gold.img"), "raw", "vda"),
        disk(&host.pool("extra.qcow2"), "qcow2", "vdb"),
        host.outside("boot.iso")
    );
    host.define(&domain("gold", &devices));
    let made = host.clonefs_ok("domain clone gold web --json");
    let made: serde_json::Value = serde_json::from_str(&made).expect("JSON");
    assert_eq!((&made[0]["name"], &made[0]["started"]), (&"web".into(), &false.into()));
    let how: Vec<&str> =
        made[0]["disks"].as_array().expect("disks").iter().map(|d| d["how"].as_str().expect("how")).collect();
    assert_eq!(how, ["cloned", "cloned", "shared"]);

    let (old, new) = (host.xml("gold"), host.xml("web"));
    assert_eq!(between(&new, "<uuid>", "<"), made[0]["uuid"]);
    assert_ne!(between(&old, "<uuid>", "<"), between(&new, "<uuid>", "<"));
    let mac = between(&new, "<mac address='", "'");
    assert!(mac.starts_with("52:54:00:") && mac != "52:54:00:11:22:33", "{mac}");
    assert!(new.contains(&host.outside("boot.iso")));
    assert_eq!(host.read(&host.pool("web.img")), data);
    assert_eq!(host.info(&host.pool("web.img")).state, VolumeState::Overlay);
    assert!(host.exists(&host.pool("web-vdb.qcow2")));
    // Nothing else differs: with what must be new put back, it is the same text.
    let back = new
        .replace("<name>web<", "<name>gold<")
        .replace(between(&new, "<uuid>", "<"), between(&old, "<uuid>", "<"))
        .replace(mac, "52:54:00:11:22:33")
        .replace("web.img", "gold.img")
        .replace("web-vdb.qcow2", "extra.qcow2");
    assert_eq!(back, old);
    // Neither sees what is written to the other.
    host.write(&host.pool("web.img"), b"new");
    assert_eq!(host.read(&host.pool("gold.img")), data);
}

#[test]
fn a_dry_run_says_what_would_differ_and_makes_nothing() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    host.write(&host.pool("gold.img"), b"x");
    host.define(&domain("gold", &disk(&host.pool("gold.img"), "raw", "vda")));
    let diff = host.clonefs_ok("domain clone gold vm{} --count 2 --dry-run");
    for line in ["-  <name>gold</name>", "+  <name>vm1</name>", "+  <name>vm2</name>", "--- gold", "+++ vm2"] {
        assert!(diff.lines().any(|l| l == line), "no {line} in {diff}");
    }
    assert!(diff.lines().any(|l| l.starts_with('+') && l.contains(&host.pool("vm1.img"))), "{diff}");
    assert_eq!(host.domains(), ["gold"]);
    assert_eq!(host.names(&host.pool("")), ["gold.img"]);
}

#[test]
fn modes_say_how_the_disks_relate() {
    if !host::ready() {
        return;
    }
    let host = Host::without_pool();
    host.mount("allow_other,deepen=auto");
    host.write(&host.pool("gold.img"), &noise(2, 2 << 20));
    host.define(&domain("gold", &disk(&host.pool("gold.img"), "raw", "vda")));
    host.clonefs_ok("domain clone gold a --mode linked");
    host.clonefs_ok("domain clone gold b --mode copy");
    host.clonefs_ok("domain clone gold c");
    assert_eq!(host.info(&host.pool("b.img")).state, VolumeState::Independent);
    // In its own time.
    crate::support::wait_until(|| host.info(&host.pool("c.img")).state == VolumeState::Independent);
    assert_eq!(host.info(&host.pool("a.img")).state, VolumeState::Overlay);
    for name in ["a", "b", "c"] {
        assert_eq!(host.read(&host.pool(&format!("{name}.img"))), noise(2, 2 << 20));
    }
}

#[test]
fn firmware_and_tpm_are_copied_byte_for_byte() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    host.write(&host.pool("gold.img"), b"x");
    host.shell("head -c 1M /dev/zero > /var/lib/libvirt/images/CODE.fd");
    host.write("/var/lib/libvirt/qemu/nvram/gold_VARS.fd", &noise(3, 4096));
    let os = "<type arch='x86_64' machine='q35'>hvm</type>\
              <loader readonly='yes' type='pflash'>/var/lib/libvirt/images/CODE.fd</loader>\
              <nvram>/var/lib/libvirt/qemu/nvram/gold_VARS.fd</nvram>";
    let tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>";
    host.define(&with_os("gold", os, &format!("{}{tpm}", disk(&host.pool("gold.img"), "raw", "vda"))));
    let uuid = between(&host.xml("gold"), "<uuid>", "<").to_owned();
    let state = "/var/lib/libvirt/swtpm";
    host.shell(&format!("mkdir -p {state}/{uuid}/tpm2 && echo secret > {state}/{uuid}/tpm2/tpm2-00.permall"));
    host.clonefs_ok("domain clone gold web");
    assert_eq!(host.read("/var/lib/libvirt/qemu/nvram/web_VARS.fd"), noise(3, 4096));
    let new = between(&host.xml("web"), "<uuid>", "<").to_owned();
    assert_eq!(host.read(&format!("{state}/{new}/tpm2/tpm2-00.permall")), b"secret\n");
    // The clone's are removed with it, the source's stay.
    host.virsh_ok("undefine web --nvram");
    assert!(host.exists("/var/lib/libvirt/qemu/nvram/gold_VARS.fd"));
    host.clonefs_ok("domain clone gold other --tpm new --disk vda=skip");
    let new = between(&host.xml("other"), "<uuid>", "<").to_owned();
    assert!(!host.exists(&format!("{state}/{new}")));
    assert!(!host.xml("other").contains("<disk"));
}

#[test]
fn a_clone_with_the_state_of_a_tpm_has_its_keys() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    let tiny = Tiny::new(&host);
    host.write(&host.pool("gold.img"), &noise(1, 1 << 20));
    let tpm = "<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>";
    let devices = format!("{}{tpm}", disk(&host.pool("gold.img"), "raw", "vda"));
    host.define(&tiny.domain("gold", "job=tpm acpi=off tpm_tis.force=1", &devices));
    let key = |name: &str| {
        tiny.wait_ok(name);
        tiny.said(name).into_iter().find(|line| line.starts_with("TPM ")).expect("a key")
    };
    host.virsh_ok("start gold");
    let gold = key("gold");
    host.clonefs_ok("domain clone gold web --start");
    host.clonefs_ok("domain clone gold other --tpm new --start");
    assert_eq!(key("web"), gold);
    assert_ne!(key("other"), gold);
}

#[test]
fn a_chain_of_qcow2_files_is_cloned_as_a_whole() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    let (base, top) = (host.pool("base.qcow2"), host.pool("gold.qcow2"));
    host.shell(&format!(
        "qemu-img create -q -f qcow2 {base} 8M; qemu-io -f qcow2 -c 'write -P 7 0 1M' {base} >/dev/null
         qemu-img create -q -f qcow2 -F qcow2 -b {base} {top}; qemu-io -f qcow2 -c 'write -P 9 1M 1M' {top} >/dev/null"
    ));
    host.define(&domain("gold", &disk(&top, "qcow2", "vda")));
    host.clonefs_ok("domain clone gold web --disk vda=size=16M");
    // The source's base changes, as a block commit changes it: the clone must not see that.
    host.shell(&format!("qemu-io -f qcow2 -c 'write -P 1 0 1M' {base} >/dev/null"));
    let clone = host.pool("web.qcow2");
    let read = "qemu-io -f qcow2 -c 'read -P 7 0 1M' -c 'read -P 9 1M 1M'";
    let said = host.shell(&format!("{read} {clone}; qemu-img info --backing-chain --output=json {clone}"));
    assert!(!said.contains("verification failed"), "{said}");
    assert!(said.contains("web-below1.qcow2") && !said.contains("base.qcow2"), "{said}");
    assert!(said.contains(&format!("\"virtual-size\": {}", 16 << 20)), "{said}");
}

#[test]
fn disks_named_by_pool_and_volume_stay_so() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    host.write(&host.pool("gold.img"), &noise(4, 1 << 20));
    host.clonefs_ok(&format!("pool define vms {}", host.pool("")));
    assert!(host.virsh_ok("pool-list").contains("active"));
    let by_volume = "<disk type='volume' device='disk'><driver name='qemu' type='raw'/><source pool='vms' volume='gold.img'/>\
                     <target dev='vda' bus='virtio'/></disk>";
    host.define(&domain("gold", by_volume));
    host.clonefs_ok("domain clone gold web --disk vda=vms/other.img,size=2M");
    assert!(host.xml("web").contains("<source pool='vms' volume='other.img'/>"), "{}", host.xml("web"));
    // The pool has been told.
    assert!(host.virsh_ok("vol-list vms").contains("other.img"));
    let bytes = host.read(&host.pool("other.img"));
    assert_eq!((bytes.len(), &bytes[..1 << 20]), (2 << 20, &*noise(4, 1 << 20)));
}

#[test]
fn snapshots_are_cloned_as_what_they_hold() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    let image = host.pool("gold.qcow2");
    let write =
        |file: &str, byte: u32| host.shell(&format!("qemu-io -f qcow2 -c 'write -P {byte} 0 1M' {file} >/dev/null"));
    let holds = |file: &str, byte: u32| {
        !host.shell(&format!("qemu-io -f qcow2 -c 'read -P {byte} 0 1M' {file}")).contains("failed")
    };
    host.shell(&format!("qemu-img create -q -f qcow2 {image} 8M"));
    host.define(&domain("gold", &disk(&image, "qcow2", "vda")));
    write(&image, 1);
    host.virsh_ok("snapshot-create-as gold inside");
    write(&image, 2);
    host.virsh_ok(&format!("snapshot-create-as gold over --disk-only --diskspec vda,file={}", host.pool("gold.over")));
    write(&host.pool("gold.over"), 3);
    for (clone, options, byte) in [("a", "--snapshot inside", 1), ("b", "--snapshot over", 2), ("c", "", 3)] {
        host.clonefs_ok(&format!("domain clone gold {clone} {options} --disk vda={}", host.pool(clone)));
        assert!(holds(&host.pool(clone), byte), "{clone}");
        assert!(host.virsh_ok(&format!("snapshot-list {clone} --name")).trim().is_empty());
    }
    let said = host.refused("domain clone gold d --snapshot none");
    assert!(said.contains("none"), "{said}");
    // What lay below was written to: it is not what the snapshot held.
    host.shell(&format!("qemu-img commit -q -f qcow2 {}", host.pool("gold.over")));
    host.define(&host.xml("gold").replace("gold.over", "gold.qcow2"));
    let said = host.refused("domain clone gold d --snapshot over");
    assert!(said.contains("no longer lies below"), "{said}");
    assert_eq!(host.domains(), ["a", "b", "c", "gold"]);
}

#[test]
fn a_clone_is_told_who_it_is() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    host.write(&host.pool("gold.img"), &noise(5, 1 << 20));
    host.define(&domain("gold", &disk(&host.pool("gold.img"), "raw", "vda")));
    let user = host.outside("user-data");
    host.write(&user, b"#cloud-config\nusers: []\n");
    let log = host.outside("log");
    let words = [
        "domain",
        "clone",
        "gold",
        "vm{}",
        "--count",
        "2",
        "--hostname",
        "{}.lan",
        "--user-data",
        &user,
        "--customize",
    ];
    host.clonefs(words.into_iter().chain([&*format!("echo $CLONEFS_DOMAIN $CLONEFS_DISK >> {log}")])).success();
    let want = format!("vm1 {}\nvm2 {}\n", host.pool("vm1.img"), host.pool("vm2.img"));
    assert_eq!(String::from_utf8(host.read(&log)).expect("text"), want);
    let meta = |name: &str| host.shell(&format!("mcopy -n -i {} ::meta-data -", host.pool(name)));
    assert!(meta("vm1-seed.img").contains("local-hostname: vm1.lan"));
    assert_ne!(
        between(&meta("vm1-seed.img"), "instance-id: ", "\n"),
        between(&meta("vm2-seed.img"), "instance-id: ", "\n")
    );
    assert!(host.shell(&format!("mcopy -n -i {} ::user-data -", host.pool("vm1-seed.img"))).contains("users: []"));
    assert!(host.xml("vm1").contains(&host.pool("vm1-seed.img")));
    // A clone of that has a seed of its own in the place of that one.
    host.clonefs_ok("domain clone vm1 web --hostname web");
    let xml = host.xml("web");
    assert!(xml.contains(&host.pool("web-seed.img")) && !xml.contains("vm1-seed"), "{xml}");
}
