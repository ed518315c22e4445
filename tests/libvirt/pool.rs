//! A mounted pool as a libvirt directory pool: every volume command works as on any directory, also on clones.

use clonefs::protocol::VolumeState;

use crate::host::{self, Host};
use crate::support::noise;

/// A host whose clonefs pool is the libvirt pool "vms".
fn with_pool() -> Host {
    let host = Host::start();
    host.clonefs_ok(&format!("pool define vms {}", host.pool("")));
    host
}

/// A field of `virsh vol-info --bytes`.
fn info(host: &Host, volume: &str, field: &str) -> String {
    let info = host.virsh_ok(&format!("vol-info {volume} vms --bytes"));
    let line = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in {info}")).trim().to_owned()
}

#[test]
fn volumes_are_made_looked_at_resized_and_deleted() {
    if !host::ready() {
        return;
    }
    let host = with_pool();
    host.virsh_ok("vol-create-as vms a.img 4M --allocation 0");
    host.virsh_ok("vol-create-as vms full.img 4M");
    host.virsh_ok("vol-create-as vms b.qcow2 8M --format qcow2");
    let xml = host.outside("vol.xml");
    host.write(&xml, b"<volume><name>c.img</name><capacity unit='MiB'>2</capacity></volume>");
    host.virsh_ok(&format!("vol-create vms {xml}"));
    let list = host.virsh_ok("vol-list vms");
    for name in ["a.img", "full.img", "b.qcow2", "c.img"] {
        assert!(list.contains(name), "{list}");
    }
    assert_eq!(info(&host, "a.img", "Capacity"), format!("{} bytes", 4 << 20));
    assert_eq!(info(&host, "b.qcow2", "Capacity"), format!("{} bytes", 8 << 20));
    host.virsh_ok("vol-resize a.img 6M vms");
    host.virsh_ok("vol-resize b.qcow2 16M vms");
    assert_eq!(host.read(&host.pool("a.img")).len(), 6 << 20);
    assert_eq!(info(&host, "b.qcow2", "Capacity"), format!("{} bytes", 16 << 20));
    for name in ["a.img", "full.img", "b.qcow2", "c.img"] {
        host.virsh_ok(&format!("vol-delete {name} vms"));
    }
    assert!(host.names(&host.pool("")).is_empty());
    host.virsh_ok("pool-refresh vms");
    // It can be stopped, started and removed, and the files stay.
    host.write(&host.pool("stays.img"), b"x");
    for line in ["pool-destroy vms", "pool-start vms", "pool-destroy vms", "pool-undefine vms"] {
        host.virsh_ok(line);
    }
    assert_eq!(host.read(&host.pool("stays.img")), b"x");
}

#[test]
fn bytes_go_in_and_out_unchanged_and_clones_are_apart() {
    if !host::ready() {
        return;
    }
    let host = with_pool();
    let (given, got) = (host.outside("given"), host.outside("got"));
    let bytes = noise(1, 3 << 20);
    host.write(&given, &bytes);
    let download = |volume: &str| {
        host.virsh_ok(&format!("vol-download {volume} {got} vms"));
        host.read(&got)
    };
    host.virsh_ok(&format!("vol-create-as vms base.img {}", bytes.len()));
    host.virsh_ok(&format!("vol-upload base.img {given} vms"));
    assert_eq!(download("base.img"), bytes);
    // A clone by clonefs is a volume like any other as soon as the pool is refreshed.
    host.clonefs_ok(&format!("clone {} {}", host.pool("base.img"), host.pool("clone.img")));
    host.virsh_ok("pool-refresh vms");
    assert_eq!(host.info(&host.pool("clone.img")).state, VolumeState::Overlay);
    assert_eq!(download("clone.img"), bytes);
    assert_eq!(info(&host, "clone.img", "Capacity"), format!("{} bytes", bytes.len()));
    // A copy by libvirt, of the clone.
    host.virsh_ok("vol-clone clone.img copy.img vms");
    assert_eq!(download("copy.img"), bytes);
    // Part of it written anew, all of it wiped, it deleted: the source sees nothing of that.
    host.write(&given, &noise(2, 1 << 20));
    host.virsh_ok(&format!("vol-upload clone.img {given} vms --offset 1048576"));
    assert_eq!(download("clone.img")[1 << 20..2 << 20], noise(2, 1 << 20));
    assert_eq!(download("clone.img")[..1 << 20], bytes[..1 << 20]);
    host.virsh_ok("vol-wipe clone.img vms");
    assert!(download("clone.img").iter().all(|&b| b == 0));
    host.virsh_ok("vol-resize clone.img 8M vms");
    assert_eq!(download("base.img"), bytes);
    host.virsh_ok("vol-delete clone.img vms");
    assert_eq!(download("base.img"), bytes);
    // The source can go before its clone.
    host.clonefs_ok(&format!("clone {} {}", host.pool("base.img"), host.pool("last.img")));
    host.virsh_ok("pool-refresh vms");
    host.virsh_ok("vol-delete base.img vms");
    assert_eq!(download("last.img"), bytes);
}

#[test]
fn qcow2_volumes_are_cloned_by_libvirt_and_by_clonefs() {
    if !host::ready() {
        return;
    }
    let host = with_pool();
    let (base, clone, copy) = (host.pool("base.qcow2"), host.pool("clone.qcow2"), host.pool("copy.qcow2"));
    host.virsh_ok("vol-create-as vms base.qcow2 8M --format qcow2");
    host.shell(&format!("qemu-io -f qcow2 -c 'write -P 5 1M 2M' {base} >/dev/null"));
    host.clonefs_ok(&format!("clone {base} {clone}"));
    host.virsh_ok("pool-refresh vms");
    host.virsh_ok("vol-clone clone.qcow2 copy.qcow2 vms");
    // One that lies over the clone.
    host.virsh_ok(
        "vol-create-as vms over.qcow2 8M --format qcow2 --backing-vol clone.qcow2 --backing-vol-format qcow2",
    );
    host.shell(&format!("qemu-io -f qcow2 -c 'write -P 6 1M 1M' {clone} >/dev/null"));
    let same = host.shell(&format!("qemu-img compare {base} {copy}"));
    assert!(same.contains("identical"), "{same}");
    let read =
        host.shell(&format!("qemu-io -f qcow2 -c 'read -P 6 1M 1M' -c 'read -P 5 2M 1M' {}", host.pool("over.qcow2")));
    assert!(!read.contains("failed"), "{read}");
    for file in [&base, &clone, &copy] {
        host.shell(&format!("qemu-img check -q {file}"));
    }
}

#[test]
fn a_libvirt_pool_is_made_on_a_mount_only_and_wholly_or_not() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    let said = host.refused(&format!("pool define vms {}", host.outside("")));
    assert!(said.contains("clonefs mount"), "{said}");
    let said = host.refused(&format!("pool define vms {}", host.pool("none")));
    assert!(said.contains("No such file"), "{said}");
    host.clonefs(["pool", "define", "a/b", &host.pool("")]).code(2);
    assert_eq!(host.virsh_ok("pool-list --all --name").trim(), "");
    host.clonefs_ok(&format!("pool define vms {}", host.pool("")));
    let said = host.refused(&format!("pool define vms {}", host.pool("")));
    assert!(said.contains("already exists"), "{said}");
    assert_eq!(host.virsh_ok("pool-list --name").trim(), "vms");
}
