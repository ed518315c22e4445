//! A machine with UEFI firmware, and its clone: what the firmware keeps in NVRAM.

use crate::guest::{Tiny, disk};
use crate::host::{self, Host};

/// Debian's OVMF.
const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

#[test]
fn the_firmware_of_a_clone_starts_and_knows_what_that_of_its_source_knew() {
    if !host::ready() {
        return;
    }
    if !std::path::Path::new(CODE).exists() {
        assert!(std::env::var_os("CI").is_none(), "{CODE} is missing (the package ovmf)");
        eprintln!("SKIPPED: {CODE} is missing (the package ovmf)");
        return;
    }
    let host = Host::start();
    let tiny = Tiny::new(&host);
    host.write(&host.pool("gold.img"), &[1; 1 << 20]);
    let nvram = |name: &str| format!("/var/lib/libvirt/qemu/nvram/{name}_VARS.fd");
    let firmware = format!(
        "</type><loader readonly='yes' type='pflash'>{CODE}</loader><nvram template='{VARIABLES}'>{}</nvram>",
        nvram("gold")
    );
    let xml = tiny.domain("gold", "job=efi id=from-gold", &disk(&host.pool("gold.img"), "raw", "vda"));
    let xml = xml.replace("</type>", &firmware).replace("/vmlinux<", "/vmlinuz<").replace(">128<", ">256<");
    host.define(&xml);
    let words = |name: &str| {
        host.virsh_ok(&format!("start {name}"));
        tiny.wait_ok(name);
        tiny.said(name)
    };
    let said = words("gold");
    assert!(said[0].starts_with("BOOT ") && said[1] == "SET First", "{said:?}");
    let kept = host.read(&nvram("gold"));
    let fresh = std::fs::read(VARIABLES).expect("the firmware's own");
    assert!(kept.len() == fresh.len() && kept != fresh, "the firmware wrote nothing");

    host.clonefs_ok("domain clone gold web");
    assert!(host.read(&nvram("web")) == kept);
    // The same order to boot in, and what the guest set; it gets a variable of its own, which is nobody else's.
    let found = words("web");
    assert_eq!(found, [&*said[0], "FOUND from-gold", "SET Second", "OK"]);
    assert!(host.read(&nvram("web")) != kept);
    assert!(host.read(&nvram("gold")) == kept);
}
