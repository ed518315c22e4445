//! Other programs that clone machines, on a mounted pool: virt-clone, and virtomate where it is installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use clonefs::protocol::VolumeState;

use crate::guest::{disk, domain};
use crate::host::{self, Host};
use crate::reflink::library;
use crate::support::{noise, run};

/// A host whose libvirt has the preload library, with a pool "vms" and a machine "gold" in it.
fn with_gold() -> Host {
    let host = Host::with_environment(&[("LIBVIRTD_PRELOAD", &library())]);
    host.mount("allow_other,deepen=manual");
    host.clonefs_ok(&format!("pool define vms {}", host.pool("")));
    host.write(&host.pool("gold.img"), &noise(1, 3 << 20));
    host.virsh_ok("pool-refresh vms");
    let card = "<interface type='user'><mac address='52:54:00:11:22:33'/></interface>";
    host.define(&domain("gold", &format!("{}{card}", disk(&host.pool("gold.img"), "raw", "vda"))));
    host
}

#[test]
fn virt_clone_works_and_clones_at_once_with_the_library() {
    if !host::ready() {
        return;
    }
    if !run(Command::new("which").arg("virt-clone")).status.success() {
        assert!(std::env::var_os("CI").is_none(), "virt-clone is missing");
        eprintln!("SKIPPED: virt-clone is not installed");
        return;
    }
    let host = with_gold();
    for (name, option) in [("copied", ""), ("cloned", "--reflink")] {
        let file = host.pool(&format!("{name}.img"));
        let line =
            format!("virt-clone -q --connect qemu:///system --original gold --name {name} --file {file} {option}");
        host.shell(&line);
        assert_eq!(host.read(&file), noise(1, 3 << 20));
    }
    assert_eq!(host.info(&host.pool("cloned.img")).state, VolumeState::Overlay);
    assert_eq!(host.domains(), ["cloned", "copied", "gold"]);
    // And what it made can be cloned here.
    host.clonefs_ok("domain clone cloned ours");
    assert_eq!(host.read(&host.pool("ours.img")), noise(1, 3 << 20));
}

/// How virtomate is run, with Debian's Python and its libvirt module: from a directory that `VIRTOMATE` names, or that
/// scripts/setup has filled.
fn virtomate() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))?;
    let named = std::env::var_os("VIRTOMATE").map(PathBuf::from);
    named
        .into_iter()
        .chain([cache.join("clonefs/tools/virtomate")])
        .find(|dir| dir.join("virtomate/__main__.py").exists())
}

#[test]
fn virtomate_lists_imports_copies_links_and_reflinks() {
    if !host::ready() {
        return;
    }
    // It comes from PyPI, which not everybody can reach: nothing fails without it.
    let Some(directory) = virtomate() else {
        eprintln!("SKIPPED: virtomate is not installed (scripts/setup --ci)");
        return;
    };
    let host = with_gold();
    let call = |words: &str| {
        let mut command = host.command("env");
        command.arg(format!("PYTHONPATH={}", directory.display())).args(["/usr/bin/python3", "-m", "virtomate"]);
        run(command.args(["-c", "qemu:///system"]).args(words.split_whitespace())).success().stdout
    };
    let bytes = noise(1, 3 << 20);
    for mode in ["copy", "linked", "reflink"] {
        call(&format!("domain-clone gold {mode} --mode {mode}"));
    }
    let images = |host: &Host, name: &str| {
        let xml = host.xml(name);
        xml.split_once("<source file='").and_then(|(_, rest)| rest.split_once('\'')).expect("a disk").0.to_owned()
    };
    for mode in ["copy", "reflink"] {
        assert!(host.read(&images(&host, mode)) == bytes, "{mode}");
    }
    assert_eq!(host.info(&images(&host, "reflink")).state, VolumeState::Overlay);
    let raw = host.outside("linked.raw");
    host.shell(&format!("qemu-img convert -O raw {} {raw}", images(&host, "linked")));
    assert!(host.read(&raw) == bytes);
    let given = host.outside("given.img");
    host.write(&given, &noise(2, 1 << 20));
    call(&format!("volume-import {given} vms imported.img"));
    assert!(host.read(&host.pool("imported.img")) == noise(2, 1 << 20));
    let list = call("volume-list vms");
    for name in ["gold.img", "imported.img"] {
        assert!(list.contains(name), "{list}");
    }
}
