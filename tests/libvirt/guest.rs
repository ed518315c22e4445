//! Machines for these tests: definitions, and the tiny guest that boots in two seconds.

use std::path::Path;
use std::process::Command;

use crate::host::Host;
use crate::support::{run, wait_until};

/// A definition with these elements among its devices. It boots the tiny guest if that was put in place by [`boot`].
pub fn domain(name: &str, devices: &str) -> String {
    with_os(name, "<type arch='x86_64' machine='q35'>hvm</type>", devices)
}

/// The same with this in its `<os>`.
pub fn with_os(name: &str, os: &str, devices: &str) -> String {
    format!(
        "<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>128</memory>
  <vcpu>1</vcpu>
  <os>{os}</os>
  <features><acpi/><apic/></features>
  <cpu mode='custom'><model>qemu64</model></cpu>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    {devices}
  </devices>
</domain>"
    )
}

/// A disk in a file, as careful people set it.
pub fn disk(file: &str, format: &str, target: &str) -> String {
    disk_with(file, &format!("type='{format}' cache='none' io='native' discard='unmap'"), target)
}

/// The same with these attributes of its driver.
pub fn disk_with(file: &str, driver: &str, target: &str) -> String {
    format!(
        "<disk type='file' device='disk'><driver name='qemu' {driver}/><source file='{file}'/><target dev='{target}' bus='virtio'/></disk>"
    )
}

/// The tiny guest, on a host.
pub struct Tiny<'a> {
    host: &'a Host,
    dir: String,
}

impl<'a> Tiny<'a> {
    /// Puts it in place.
    pub fn new(host: &'a Host) -> Tiny<'a> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/mk-tiny");
        let made = run(&mut Command::new(script)).success().stdout;
        let dir = host.outside("tiny");
        host.shell(&format!(
            "mkdir {dir} && cp {0}/vmlinux {0}/vmlinuz {0}/initrd {0}/agent {0}/database {dir}/ && chmod -R a+rX {dir}",
            made.trim()
        ));
        Tiny { host, dir }
    }

    /// The definition of a machine that does a job (see scripts/guest/tiny-init). What it says goes to [`Tiny::log`].
    pub fn domain(&self, name: &str, job: &str, devices: &str) -> String {
        let os = format!(
            "<type arch='x86_64' machine='q35'>hvm</type><kernel>{0}/vmlinux</kernel><initrd>{0}/initrd</initrd>\
             <cmdline>console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check 8250.nr_uarts=1 {job}</cmdline>",
            self.dir
        );
        let serial = format!(
            "{devices}<serial type='file'><source path='{}'/><target type='isa-serial' port='0'/></serial>",
            self.log(name)
        );
        with_os(name, &os, &serial)
    }

    /// A definition of the same with qemu's guest agent in the machine, and its channel. It says when it freezes and
    /// thaws filesystems; with `agent=silent` in the job it never answers.
    pub fn with_agent(&self, domain: &str) -> String {
        let channel = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices>";
        self.with(domain, "agent").replace("</devices>", channel)
    }

    /// A definition of the same with more programs in the machine: `agent` or `database` (see scripts/mk-tiny).
    pub fn with(&self, domain: &str, programs: &str) -> String {
        let dir = &self.dir;
        let initrd = format!("{dir}/initrd-{programs}");
        self.host.shell(&format!("cat {dir}/initrd {dir}/{programs} >{initrd}; chmod a+r {initrd}"));
        domain.replace("/initrd</initrd>", &format!("/initrd-{programs}</initrd>"))
    }

    /// Where a machine's serial port is written to.
    pub fn log(&self, name: &str) -> String {
        self.host.outside(&format!("{name}.log"))
    }

    /// What a machine has said so far.
    pub fn said(&self, name: &str) -> Vec<String> {
        let bytes = std::fs::read(self.host.reach(&self.log(name))).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).replace('\r', "");
        // The last line may be under way.
        let end = text.rfind('\n').map_or(0, |at| at + 1);
        text[..end].lines().filter_map(|line| line.strip_prefix("@@ ")).map(str::to_owned).collect()
    }

    /// The last number that a machine has acknowledged.
    pub fn acknowledged(&self, name: &str) -> u32 {
        self.last(name, "ACK ")
    }

    /// The number in the last line of a machine that begins so.
    pub fn last(&self, name: &str, word: &str) -> u32 {
        let said = self.said(name);
        said.iter().rev().find_map(|line| line.strip_prefix(word)?.parse().ok()).unwrap_or(0)
    }

    /// Waits until a machine has powered itself off, which must be after `OK`.
    #[track_caller]
    pub fn wait_ok(&self, name: &str) {
        wait_until(|| self.said(name).last().is_some_and(|l| l == "OK" || l == "FAILED"));
        let said = self.said(name);
        assert_eq!(said.last().map(String::as_str), Some("OK"), "{name} said {said:?}");
        self.host.wait_state(name, "shut off");
    }

    /// Gives another job to a machine that is shut off.
    pub fn set_job(&self, name: &str, job: &str) {
        let xml = self.host.xml(name);
        let (before, rest) = xml.split_once("8250.nr_uarts=1 ").expect("a command line");
        let (_, after) = rest.split_once("</cmdline>").expect("its end");
        self.host.define(&format!("{before}8250.nr_uarts=1 {job}</cmdline>{after}"));
    }
}
