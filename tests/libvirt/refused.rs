//! What `clonefs domain clone` refuses, and that nothing is left behind.

use crate::guest::{Tiny, disk, domain};
use crate::host::{self, Host};
use crate::support::noise;

/// Everything that a clone could leave behind.
fn everything(host: &Host) -> Vec<Vec<String>> {
    let nvram = host.names("/var/lib/libvirt/qemu/nvram");
    let mut outside = host.names(&host.outside(""));
    // What a machine that was started has said is libvirt's to keep.
    outside.retain(|name| !name.ends_with(".log"));
    vec![host.domains(), host.names(&host.pool("")), outside, nvram]
}

#[test]
fn what_cannot_be_cloned_is_refused_with_one_clear_line() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    host.write(&host.pool("gold.img"), &noise(1, 1 << 20));
    host.write(&host.outside("out.img"), &noise(2, 1 << 20));
    host.define(&domain("gold", &disk(&host.pool("gold.img"), "raw", "vda")));
    host.define(&domain("out", &disk(&host.outside("out.img"), "raw", "vda")));
    host.define(&domain("gone", &disk(&host.pool("gone.img"), "raw", "vda")));
    let volume =
        "<disk type='volume' device='disk'><source pool='idle' volume='v'/><target dev='vda' bus='virtio'/></disk>";
    host.virsh_ok(&format!("pool-define-as idle dir --target {}", host.pool("")));
    host.define(&domain("byvolume", volume));
    host.write(&host.pool("taken.img"), b"mine");
    let before = everything(&host);
    for (line, hint) in [
        ("none web", "virsh list --all"),
        ("gold gold", "has this name"),
        ("gold out", "has this name"),
        ("gold a/b", "slash"),
        ("gold web --disk vdz=skip", "it has vda"),
        ("gold web --disk vda=idle/x", "pool-start"),
        ("gold web --disk vda=nopool/x", "pool-list"),
        ("gold web --disk vda=size=1K", "smaller than its source"),
        ("gold taken", "exists already"),
        ("gold web --live --quiesce", "not running"),
        ("gold web --hostname a_b", "hyphens"),
        ("out web --no-copy", "--no-copy"),
        ("gone web", "No such file"),
        ("byvolume web", "pool-start"),
        ("gold web --connect qemu:///nosuch", "connect"),
        ("gold web --customize false", "exit code 1"),
        // The first goes through, the second does not.
        (
            "gold vm{} --count 3 --customize [${IFS}$CLONEFS_DOMAIN${IFS}=${IFS}vm1${IFS}]",
            "on \"vm2\": it ended with exit code 1",
        ),
    ] {
        let said = host.refused(&format!("domain clone {line}"));
        assert!(
            said.contains(hint) && said.lines().filter(|l| !l.contains("so it is copied")).count() == 1,
            "{line}: {said}"
        );
        assert_eq!(everything(&host), before, "{line}");
    }
    assert_eq!(host.read(&host.pool("taken.img")), b"mine");
    // From outside of the pool it is copied, and said.
    let done = host.clonefs(["domain", "clone", "out", "web"]).success();
    assert!(done.stderr.contains("so it is copied"), "{done:?}");
    assert_eq!(host.read(&host.outside("web.img")), noise(2, 1 << 20));

    // Who may not talk to libvirt; and where there is none.
    let before = everything(&host);
    let clonefs = host.outside("clonefs");
    host.shell(&format!(
        "cp {} {clonefs}; chmod 755 {clonefs}; chmod 600 /run/libvirt/libvirt-sock*",
        env!("CARGO_BIN_EXE_clonefs")
    ));
    let user = |line: &str| {
        let line = format!("--reuid 1 --regid 1 --clear-groups {clonefs} domain {line} -c qemu:///system");
        host.run("setpriv", line.split(' ')).code(1).stderr
    };
    for line in ["clone gold web9", "snapshot create gold web9", "snapshot list gold"] {
        let said = user(line);
        assert!(said.contains("join the group libvirt") && said.lines().count() == 1, "{line}: {said}");
    }
    let daemon = "kill $(cat /run/libvirtd.pid); while [[ -e /run/libvirtd.pid ]]; do sleep 0.1; done";
    host.shell(daemon);
    for line in ["clone gold web9", "snapshot create gold web9", "snapshot rollback gold one", "clone gold web9 --live"]
    {
        let said = host.refused(&format!("domain {line}"));
        assert!(said.contains("start libvirt") && said.lines().count() == 1, "{line}: {said}");
    }
    host.shell(&format!("rm {clonefs}"));
    assert_eq!((host.names(&host.pool("")), host.names(&host.outside(""))), (before[1].clone(), before[2].clone()));
}

#[test]
fn a_failure_at_any_step_leaves_nothing_behind() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    let tiny = Tiny::new(&host);
    host.write(&host.pool("gold.img"), &noise(1, 1 << 20));
    host.write("/var/lib/libvirt/qemu/nvram/gold_VARS.fd", b"vars");
    let xml = tiny.domain("gold", "job=idle", &disk(&host.pool("gold.img"), "raw", "vda"));
    let code = host.outside("CODE.fd");
    host.write(&code, &[0; 4096]);
    let firmware = format!(
        "</type><loader readonly='yes' type='pflash'>{code}</loader><nvram>/var/lib/libvirt/qemu/nvram/gold_VARS.fd</nvram>"
    );
    host.define(&xml.replace("</type>", &firmware));
    host.clonefs_ok(&format!("pool define vms {}", host.pool("")));
    let before = everything(&host);
    // The start fails: its kernel is gone.
    let kernel = host.outside("tiny/vmlinux");
    host.shell(&format!("mv {kernel} {kernel}.away"));
    let said = host.refused("domain clone gold vm{} --count 2 --start");
    assert!(said.contains("start domain \"vm1\""), "{said}");
    host.shell(&format!("mv {kernel}.away {kernel}"));
    assert_eq!(everything(&host), before);
    // libvirt had been told of the files.
    let volumes = host.virsh_ok("vol-list vms");
    assert!(volumes.contains("gold.img") && !volumes.contains("vm1"), "{volumes}");
    // The definition fails: another domain took the name while the disks were made.
    let other = host.outside("other.xml");
    host.write(&other, domain("web", "").as_bytes());
    let take = format!("virsh -q define {other} >/dev/null");
    let done = host.clonefs(["domain", "clone", "gold", "web", "--customize", &take]).code(1);
    assert!(done.stderr.contains("already exists"), "{done:?}");
    let theirs = host.xml("web");
    assert!(!theirs.contains("gold") && !theirs.contains("web.img"), "{theirs}");
    host.virsh_ok("undefine web");
    host.shell(&format!("rm {other}"));
    assert_eq!(everything(&host), before);
    // The pool's daemon is gone.
    host.clonefs(["domain", "clone", "gold", "web", "--customize", &format!("umount -l {}; exit 1", host.pool(""))])
        .code(1);
    assert_eq!(host.domains(), before[0]);
}

#[test]
fn states_that_do_not_match_the_disks_are_refused() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    let tiny = Tiny::new(&host);
    host.write(&host.pool("gold.img"), &noise(1, 1 << 20));
    host.write(&host.outside("out.img"), &noise(1, 1 << 20));
    host.define(&tiny.domain("gold", "job=idle", &disk(&host.pool("gold.img"), "raw", "vda")));
    host.define(&tiny.domain("out", "job=idle", &disk(&host.outside("out.img"), "raw", "vda")));
    host.virsh_ok("start gold");
    host.virsh_ok("start out");
    let said = host.refused("domain clone gold web");
    assert!(said.contains("it is running") && said.contains("--live"), "{said}");
    let said = host.refused("domain clone out web --live");
    assert!(said.contains("torn"), "{said}");
    // No agent in there answers.
    let said = host.refused("domain clone gold web --live --quiesce");
    assert!(said.contains("qemu-guest-agent"), "{said}");
    host.virsh_ok("suspend gold");
    let said = host.refused("domain clone gold web");
    assert!(said.contains("it is paused"), "{said}");
    // It stays paused: it was not us who suspended it.
    host.clonefs_ok("domain clone gold web --live");
    assert_eq!(host.virsh_ok("domstate gold").trim(), "paused");
    host.virsh_ok("destroy gold");
    host.virsh_ok("destroy out");
    let transient = host.outside("transient.xml");
    host.write(&transient, tiny.domain("passing", "job=idle", "").as_bytes());
    host.virsh_ok(&format!("create {transient}"));
    let said = host.refused("domain clone passing web2 --live");
    assert!(said.contains("transient"), "{said}");
    host.virsh_ok("destroy passing");
    host.virsh_ok("start gold");
    host.virsh_ok("managedsave gold");
    let said = host.refused("domain clone gold web3");
    assert!(said.contains("managedsave-remove"), "{said}");
    assert_eq!(host.domains(), ["gold", "out", "web"]);
}

#[test]
fn a_lun_is_left_with_a_warning_and_not_started() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    host.write(&host.pool("gold.img"), b"x");
    let lun = "<disk type='block' device='disk'><source dev='/dev/null'/><target dev='vdb' bus='virtio'/></disk>";
    host.define(&domain("gold", &format!("{}{lun}", disk(&host.pool("gold.img"), "raw", "vda"))));
    let said = host.refused("domain clone gold web --start");
    assert!(said.contains("vdb") && said.contains("--disk vdb=skip"), "{said}");
    let done = host.clonefs(["domain", "clone", "gold", "web"]).success();
    assert!(done.stderr.contains("never run both at once"), "{done:?}");
    assert!(host.xml("web").contains("<source dev='/dev/null'/>"));
    host.clonefs_ok("domain clone gold other --luns skip");
    assert!(!host.xml("other").contains("/dev/null"));
    assert_eq!(host.domains(), ["gold", "other", "web"]);
}
