//! What a host lacks.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::super::virsh::{self, Virsh};
use super::Chart;
use super::user::Qemu;

/// With fewer open files a pool of some hundred machines runs into the limit.
const FEW_FILES: u64 = 16 << 10;
const QUICK: Duration = Duration::from_secs(10);

pub(super) fn examine(chart: &mut Chart, virsh: &Virsh, user: &Option<Qemu>) {
    let root = rustix::process::geteuid().is_root();
    device(chart);
    mounting(chart, root);
    kernel(chart);
    open_files(chart);
    programs(chart);
    libvirt(chart, virsh, user);
}

fn device(chart: &mut Chart) {
    match fs::File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => chart.ok("/dev/fuse", "usable"),
        Err(e) => chart.problem(
            "/dev/fuse",
            e.to_string(),
            "modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN",
        ),
    }
}

/// Whether machines of another user can be let in.
fn mounting(chart: &mut Chart, root: bool) {
    if root {
        return chart.ok("user_allow_other", "not needed: root mounts");
    }
    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if conf.lines().any(|line| line.trim() == "user_allow_other") {
        chart.ok("user_allow_other", "set in /etc/fuse.conf");
    } else {
        chart.problem(
            "user_allow_other",
            "not set in /etc/fuse.conf: a mount of yours is for you alone, and machines run as another user",
            "echo user_allow_other | sudo tee -a /etc/fuse.conf, or mount as root",
        );
    }
    if !in_path("fusermount3") {
        chart.problem("fusermount3", "not installed: only root can mount", "apt install fuse3");
    }
}

fn kernel(chart: &mut Chart) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let found = version(&release);
    match found {
        Some(found) if found < (5, 4) => {
            chart.problem("kernel", format!("{release}: too old for FUSE as clonefs uses it"), "Linux 5.4 or newer")
        }
        Some(found) if found < (6, 6) => chart.advice(
            "kernel",
            format!("{release}: writes of several threads to one disk wait for each other"),
            "Linux 6.6 or newer lets FUSE write in parallel",
        ),
        _ => chart.ok("kernel", release),
    }
    passthrough(chart, found);
    let uring = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    match uring.trim() {
        "1" | "2" => chart.advice(
            "io_uring",
            "switched off: disks with io='io_uring' do not start",
            "sysctl kernel.io_uring_disabled=0, or io='native'",
        ),
        _ => chart.ok("io_uring", "usable for disks with io='io_uring'"),
    }
    let transport = fs::read_to_string("/sys/module/fuse/parameters/enable_uring").unwrap_or_default();
    if !transport.trim().is_empty() {
        chart.ok("fuse enable_uring", format!("{}; clonefs does not need it", transport.trim()));
    }
    if fs::read_to_string("/sys/fs/selinux/enforce").is_ok_and(|v| v.trim() == "1") {
        let boolean = fs::read_to_string("/sys/fs/selinux/booleans/virt_use_fusefs").unwrap_or_default();
        match boolean.starts_with('1') {
            true => chart.ok("SELinux", "machines may use FUSE (virt_use_fusefs)"),
            false => chart.problem("SELinux", "machines may not use FUSE", "setsebool -P virt_use_fusefs on"),
        }
    }
}

/// Whether disks can be opened past the daemon.
fn passthrough(chart: &mut Chart, kernel: Option<(u32, u32)>) {
    if !rustix::process::geteuid().is_root() {
        chart.ok("passthrough", "only for a daemon that root has started; clonefs does not need it");
    } else if kernel.is_some_and(|found| found < (6, 9)) {
        chart.ok("passthrough", "not before Linux 6.9; clonefs does not need it");
    } else {
        chart.ok("passthrough", "possible: -o passthrough=writable for disks that need not be cloned while they run");
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn open_files(chart: &mut Chart) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    match limit {
        Some(limit) if limit < FEW_FILES => chart.advice(
            "open files",
            format!("at most {limit} for what is started here"),
            "LimitNOFILE=1048576 in clonefs@.service, or ulimit -Hn 1048576 as root",
        ),
        limit => chart.ok("open files", limit.map_or("no limit".into(), |limit| format!("at most {limit}"))),
    }
}

fn programs(chart: &mut Chart) {
    for (program, package, what) in [
        ("qemu-img", "qemu-utils", "chains of qcow2 images cannot be cloned"),
        ("virsh", "libvirt-clients", "clonefs domain and clonefs pool do not work"),
    ] {
        match in_path(program) {
            true => chart.ok(program, "installed"),
            false => chart.advice(program, format!("not installed: {what}"), format!("apt install {package}")),
        }
    }
}

pub(super) fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn libvirt(chart: &mut Chart, virsh: &Virsh, user: &Option<Qemu>) {
    match virsh.run_for("look for libvirt", &["uri"], QUICK) {
        Ok(uri) => chart.ok("libvirt", format!("answers at {}", uri.trim())),
        Err(e) => chart.advice("libvirt", e.to_string(), "apt install libvirt-daemon-system; systemctl start libvirtd"),
    }
    match user {
        Some(user) if user.owns_disks => {
            chart.ok("qemu's user", format!("{}, to whom libvirt gives the disks of a machine", user.name))
        }
        Some(user) => chart.advice(
            "qemu's user",
            format!("{}, and libvirt leaves the owner of disks as it is (dynamic_ownership = 0)", user.name),
            format!("chown {} the disks", user.name),
        ),
        None => chart.ok("qemu's user", "no system user of qemu: machines run as yourself"),
    }
    if Path::new("/sys/kernel/security/apparmor/policy/profiles").is_dir() {
        let enforced = run_quietly("aa-enabled");
        let rule = fs::read_to_string("/etc/apparmor.d/local/abstractions/libvirt-qemu").unwrap_or_default();
        if enforced && rule.trim().is_empty() {
            chart.advice(
                "AppArmor",
                "machines are confined; libvirt lets each have its own disks, but not what it does not know of (files below an image)",
                "echo '/PATH/OF/THE/POOL/** rwk,' >> /etc/apparmor.d/local/abstractions/libvirt-qemu",
            );
        } else {
            chart.ok("AppArmor", "nothing is in the way that is known");
        }
    }
}

fn run_quietly(program: &str) -> bool {
    virsh::run(&mut Command::new(program), QUICK).is_ok_and(|output| output.code == Some(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_read() {
        assert_eq!(version("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(version("6.18-rc1"), Some((6, 18)));
        assert_eq!(version("?"), None);
    }
}
