//! `--quiesce`: with qemu's own guest agent, with one that is silent, and with one whose answer is lost.

use crate::guest::{Tiny, disk};
use crate::host::{self, Host};
use crate::support::wait_until;

/// A directory with a `virsh` that notes what it is told, and whose `domfsfreeze` does this after the real one.
fn noting_virsh(host: &Host, name: &str, after_freeze: &str) -> (String, String) {
    let (dir, log) = (host.outside(name), host.outside(&format!("{name}.calls")));
    let script = format!(
        "#!/bin/sh\necho \"$*\" >>{log}\ncase \"$*\" in\n*domfsfreeze*) /usr/bin/virsh \"$@\"; {after_freeze};;\n\
         *) exec /usr/bin/virsh \"$@\";;\nesac\n"
    );
    host.shell(&format!("mkdir {dir}"));
    host.write(&format!("{dir}/virsh"), script.as_bytes());
    host.shell(&format!("chmod +x {dir}/virsh"));
    (dir, log)
}

#[test]
fn the_guest_agent_freezes_filesystems_and_the_thaw_is_always_sent() {
    if !host::ready() {
        return;
    }
    let host = Host::start();
    let tiny = Tiny::new(&host);
    for (name, agent) in [("gold", "yes"), ("mute", "silent")] {
        let image = host.pool(&format!("{name}.img"));
        host.shell(&format!("truncate -s 64M {image}; mkfs.ext4 -q -F -N 20000 -E lazy_itable_init=0 {image}"));
        let job = format!("job=files n=15000 agent={agent}");
        host.define(&tiny.with_agent(&tiny.domain(name, &job, &disk(&image, "raw", "vda"))));
        host.virsh_ok(&format!("start {name}"));
    }
    let more = |name: &str| {
        let last = tiny.acknowledged(name);
        wait_until(|| tiny.acknowledged(name) > last + 5);
    };
    let words = |name: &str| tiny.said(name).into_iter().filter(|line| line.starts_with("AGENT")).collect::<Vec<_>>();
    let ping = ["qemu-agent-command", "gold", r#"{"execute":"guest-ping"}"#];
    wait_until(|| host.virsh(ping).status.success());
    more("gold");

    // A frozen filesystem has nothing in its journal that would have to be replayed.
    let replays = |image: &str| host.shell(&format!("dumpe2fs -h {image} 2>/dev/null")).contains("needs_recovery");
    host.clonefs_ok("domain clone gold still --live --quiesce");
    wait_until(|| words("gold") == ["AGENT freeze", "AGENT thaw"]);
    host.clonefs_ok("domain clone gold cut --live");
    assert!(!replays(&host.pool("still.img")) && replays(&host.pool("cut.img")));
    host.shell(&format!("e2fsck -fn {}", host.pool("still.img")));
    more("gold");
    host.clonefs_ok("domain snapshot create gold calm --quiesce");
    assert!(host.clonefs_ok("domain snapshot list gold").contains("quiesced"));
    assert!(!replays(&format!("{}/gold.img@calm", host.pool(".snapshots"))));
    more("gold");

    // It froze them, and the answer was lost.
    let before = (host.domains(), host.names(&host.pool("")));
    let clonefs = |dir: &str, line: &str, code: i32| {
        let line = format!("PATH={dir}:$PATH exec {} {line}", env!("CARGO_BIN_EXE_clonefs"));
        host.run("bash", ["-c", &line]).code(code).stderr
    };
    let (dir, log) = noting_virsh(&host, "lost", "echo lost >&2; exit 1");
    let thaws = || words("gold").iter().filter(|word| *word == "AGENT thaw").count();
    let thawed = thaws();
    let said = clonefs(&dir, "domain clone gold web --live --quiesce", 1);
    assert!(said.contains("qemu-guest-agent") && said.lines().count() == 1, "{said}");
    wait_until(|| thaws() == thawed + 1);
    more("gold");
    assert!(String::from_utf8(host.read(&log)).expect("text").contains("domfsthaw"));

    // Ctrl-C, pressed twice, must not leave it frozen.
    let (dir, _) = noting_virsh(&host, "stop", "kill -INT $PPID; kill -INT $PPID; exit 0");
    for line in ["domain clone gold web --live --quiesce", "domain snapshot create gold web --quiesce"] {
        let thawed = thaws();
        clonefs(&dir, line, 130);
        wait_until(|| thaws() == thawed + 1);
        more("gold");
    }

    // It is there and never answers.
    wait_until(|| host.virsh_ok("dumpxml mute").contains("state='connected'"));
    let (dir, log) = noting_virsh(&host, "silent", "exit $?");
    let said = clonefs(&dir, "domain clone mute web --live --quiesce", 1);
    assert!(said.contains("qemu-guest-agent") && said.lines().count() == 1, "{said}");
    let calls = String::from_utf8(host.read(&log)).expect("text");
    let at = |word: &str| calls.find(word).unwrap_or_else(|| panic!("no {word} in {calls}"));
    assert!(at("domfsfreeze") < at("domfsthaw"));
    more("mute");
    assert_eq!((host.domains(), host.names(&host.pool(""))), before);
    assert_eq!(host.clonefs_ok("domain snapshot list gold").lines().count(), 2);
}
