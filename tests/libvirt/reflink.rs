//! tools/ficlone: programs that ask for clones with FICLONE, and libvirt's copies of qcow2 volumes.

use std::path::{Path, PathBuf};
use std::process::Command;

use clonefs::protocol::VolumeState;

use crate::host::{self, Host};
use crate::support::{noise, run};

/// The preload library, built if need be.
pub fn library() -> PathBuf {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "--package", "ficlone"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    run(&mut build).success();
    Path::new(env!("CARGO_BIN_EXE_clonefs")).with_file_name("libficlone.so")
}

#[test]
fn a_refused_reflink_becomes_a_clone_on_a_mount_and_stays_refused_elsewhere() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    let library = library();
    let with = |line: &str| {
        let mut command = host.command("env");
        run(command.arg(format!("LD_PRELOAD={}", library.display())).args(["bash", "-euc", line]))
    };
    let bytes = noise(1, 3 << 20);
    let (base, outside) = (host.pool("base.img"), host.outside("base.img"));
    host.write(&base, &bytes);
    host.write(&outside, &bytes);
    // Without it, it cannot be: else the rest of this proves nothing.
    host.run("cp", ["--reflink=always", &base, &host.pool("no")]).code(1);
    with(&format!("cp --reflink=always {base} {}", host.pool("a.img"))).success();
    assert_eq!(host.read(&host.pool("a.img")), bytes);
    assert_eq!(host.info(&host.pool("a.img")).state, VolumeState::Overlay);
    // Onto a file with other contents, longer than the source: what is behind stays, as FICLONE has it.
    host.write(&host.pool("long.img"), &noise(2, 4 << 20));
    with(&format!("xfs_io -c 'reflink {base}' {}", host.pool("long.img"))).success();
    let long = host.read(&host.pool("long.img"));
    assert!(long[..3 << 20] == bytes && long[3 << 20..] == noise(2, 4 << 20)[3 << 20..]);
    // A range, to another place.
    with(&format!("xfs_io -f -c 'reflink {base} 65536 1048576 131072' {}", host.pool("range.img"))).success();
    let range = host.read(&host.pool("range.img"));
    assert!(range.len() == (1 << 20) + 131072 && range[1 << 20..] == bytes[65536..][..131072]);
    assert!(range[..1 << 20].iter().all(|&b| b == 0));
    // What ioctl_ficlonerange(2) refuses: offsets and lengths within a block, an overlap in one file, what the source has not,
    // and a source's last block, cut off, in the middle of a file.
    let odd = host.pool("odd.img");
    host.write(&odd, &noise(3, 70_000));
    for (source, range) in [
        (&base, "1 0 65536"),
        (&base, "0 1 65536"),
        (&base, "0 0 65000"),
        (&base, "0 0 4194304"),
        (&host.pool("long.img"), "0 4096 65536"),
        (&odd, "0 0 70000"),
    ] {
        let line = format!("xfs_io -c 'reflink {source} {range}' {} 2>&1 || true", host.pool("long.img"));
        let said = with(&line).success().stdout.clone();
        assert!(said.contains("Invalid argument"), "{source} {range}: {said}");
    }
    assert_eq!(host.read(&host.pool("long.img")), long);
    // Elsewhere nothing changes: from one filesystem to another, and on one that has no clones.
    with(&format!("cp --reflink=always {outside} {}", host.pool("b.img"))).code(1);
    with(&format!("cp --reflink=always {base} {}", host.outside("b.img"))).code(1);
    with(&format!("mount -t tmpfs tmpfs /mnt; cp {outside} /mnt/a; cp --reflink=always /mnt/a /mnt/b")).code(1);
    // Other calls go through.
    let said =
        with(&format!("lsattr {outside}; stty -a </dev/null || true; xfs_io -c 'fiemap -v' {outside}")).success();
    assert!(!said.stdout.is_empty());
    assert_eq!(host.read(&base), bytes);
}

#[test]
fn libvirt_clones_at_once_with_the_library_and_the_wrapper() {
    if !host::ready() {
        return;
    }
    // A directory with the wrapper and the clonefs that it calls.
    let programs = tempfile::tempdir().expect("a directory");
    let wrapper = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/ficlone/qemu-img");
    std::fs::copy(wrapper, programs.path().join("qemu-img")).expect("the wrapper");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_clonefs"), programs.path().join("clonefs")).expect("clonefs");
    let host = Host::with_environment(&[("LIBVIRTD_PRELOAD", &library()), ("LIBVIRTD_PATH", programs.path())]);
    host.mount("allow_other,deepen=manual");
    host.clonefs_ok(&format!("pool define vms {}", host.pool("")));
    let bytes = noise(3, 6 << 20);
    host.write(&host.pool("base.img"), &bytes);
    let raw = host.outside("raw");
    host.write(&raw, &bytes);
    let (base, clone) = (host.pool("base.qcow2"), host.pool("clone.qcow2"));
    host.shell(&format!("qemu-img convert -f raw -O qcow2 {raw} {base}"));
    host.virsh_ok("pool-refresh vms");
    host.virsh_ok("vol-clone base.img clone.img vms --reflink");
    assert!(host.read(&host.pool("clone.img")) == bytes);
    assert_eq!(host.info(&host.pool("clone.img")).state, VolumeState::Overlay);
    assert!(host.info(&host.pool("clone.img")).unique_bytes < 1 << 20);
    host.virsh_ok("vol-clone base.qcow2 clone.qcow2 vms");
    let same = host.shell(&format!("qemu-img compare {base} {clone}; qemu-img check -q {clone}"));
    assert!(same.contains("identical"), "{same}");
    assert_eq!(host.info(&clone).state, VolumeState::Overlay);
    // One that lies over another is converted to one that does not.
    host.virsh_ok("vol-create-as vms over.qcow2 6M --format qcow2 --backing-vol base.qcow2 --backing-vol-format qcow2");
    host.virsh_ok("vol-clone over.qcow2 flat.qcow2 vms");
    let flat = host.pool("flat.qcow2");
    let same = host.shell(&format!("qemu-img compare {base} {flat}; qemu-img info {flat}"));
    assert!(same.contains("identical") && !same.contains("backing file"), "{same}");
}

#[test]
fn the_wrapper_adds_one_option_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let real = dir.path().join("qemu-img");
    std::fs::write(&real, "#!/bin/sh\nprintf '%s|' \"$@\"\nexit 7\n").expect("a program");
    std::fs::set_permissions(&real, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/ficlone");
    let path = format!("{}:{}:/usr/bin:/bin", tools.display(), dir.path().display());
    let called =
        |words: &[&str]| run(Command::new(tools.join("qemu-img")).args(words).env("PATH", &path)).code(7).stdout;
    assert_eq!(
        called(&["convert", "-O", "qcow2", "-o", "compat=1.1", "a b", "c"]),
        "convert|-C|-O|qcow2|-o|compat=1.1|a b|c|"
    );
    for same in [
        &["info", "a"][..],
        &["convert", "-c", "a", "b"],
        &["convert", "-pc", "a", "b"],
        &["convert", "-C", "a", "b"],
        &["convert", "-S", "4k", "a", "b"],
        &["convert", "-f", "qcow2", "-O", "qcow2", "-c", "/a", "/b"],
        &["convert", "--compress", "a", "b"],
        &["convert", "--salvage", "a", "b"],
        &["create", "-f", "raw", "a", "1M"],
    ] {
        assert_eq!(called(same), same.join("|") + "|");
    }
    let none = run(Command::new(tools.join("qemu-img")).arg("info").env("PATH", "/nowhere"));
    assert_eq!(none.status.code(), Some(127), "{none:?}");
}
