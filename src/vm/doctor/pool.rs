//! What a mounted pool lacks.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::super::pools;
use super::super::virsh::Virsh;
use super::user::Qemu;
use super::{Chart, quoted};
use crate::client::{self, Mount};
use crate::error::{Context, Result};
use crate::protocol::PoolStatus;
use crate::units::format_size;

/// A disk that is fuller than this will be full soon.
const FULL_PERCENT: u64 = 95;

pub(super) fn examine(chart: &mut Chart, virsh: &Virsh, path: &Path, user: &Option<Qemu>) -> Result<()> {
    let full = path.canonicalize().context("look at", path)?;
    let word = quoted(&full);
    let Some(mount) = client::mount_at(&full)? else {
        if let Some(mount) = client::mount_over(&full) {
            let cause = "the pool's own directory, which is mounted elsewhere: overlays are stubs here";
            chart.problem("mount", cause, format!("use {}", quoted(&mount.mountpoint)));
        } else {
            chart.problem("mount", "not a mounted pool", format!("clonefs mount {word} -o allow_other"));
        }
        return Ok(());
    };
    let status = match client::status(&full) {
        Ok(Some(status)) => status,
        other => {
            let cause = other.err().map_or("its daemon gives no status".into(), |e| e.to_string());
            let point = quoted(&mount.mountpoint);
            chart.problem("mount", cause, format!("clonefs unmount {point}; clonefs mount {point} -o allow_other"));
            return Ok(());
        }
    };
    chart.ok("mount", format!("{} on {}", status.pool, status.mountpoint));
    others(chart, &mount, user);
    way(chart, &full, user);
    backing(chart, &status);
    daemon(chart, &status);
    some_file(chart, &full);
    libvirt_pool(chart, virsh, &full);
    Ok(())
}

/// Whether another user may use the mount.
fn others(chart: &mut Chart, mount: &Mount, user: &Option<Qemu>) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let id = format!("{} ", mount.id);
    let option = table.lines().any(|l| l.starts_with(&id) && l.contains("allow_other"));
    // The option is there for allow_root as well: who can try does.
    let tried = user.as_ref().and_then(|user| user.sees(&mount.mountpoint));
    let allowed = tried.unwrap_or(option);
    let us = rustix::process::geteuid().as_raw();
    match user {
        _ if allowed => chart.ok("allow_other", "set: machines of another user can use it"),
        Some(user) if user.uid == us => chart.ok("allow_other", "not set, and not needed for machines of your own"),
        None => chart.ok("allow_other", "not set, and not needed for machines of your own"),
        Some(user) => chart.problem(
            "allow_other",
            format!("not set: machines run as {}, who cannot see the files", user.name),
            format!("clonefs unmount {0}; clonefs mount {0} -o allow_other", quoted(&mount.mountpoint)),
        ),
    }
}

/// Whether qemu can get there.
pub(super) fn way(chart: &mut Chart, path: &Path, user: &Option<Qemu>) {
    let Some(user) = user else { return };
    match user.stopped_at(path) {
        None => chart.ok("way to the files", format!("{} can go through every directory above", user.name)),
        Some(dir) => chart.problem(
            "way to the files",
            format!("{} cannot go through {dir:?}", user.name),
            format!("setfacl -m u:{}:x {1}, or chmod o+x {1}", user.name, quoted(&dir)),
        ),
    }
}

fn backing(chart: &mut Chart, status: &PoolStatus) {
    match &status.cannot_clone {
        Some(why) => chart.problem("clones", why.clone(), "put the pool on ext4, xfs or btrfs"),
        None => chart.ok(
            "clones",
            format!("can be made; {} below, reflinks: {}", status.backing, if status.reflink { "yes" } else { "no" }),
        ),
    }
    let used = 100 - (status.free_bytes.saturating_mul(100) / status.total_bytes.max(1)).min(100);
    let free = format!("{} of {} free", format_size(status.free_bytes), format_size(status.total_bytes));
    if used >= FULL_PERCENT {
        chart.advice(
            "space",
            free,
            "machines stop on a full disk: delete something, or clonefs list shows what a deletion frees",
        );
    } else {
        chart.ok("space", free);
    }
    for trouble in &status.troubles {
        chart.problem("volumes", format!("{}: {}", trouble.path, trouble.problem), trouble.remedy.clone());
    }
}

/// Whether the daemon may open as many files as it can come to need.
fn daemon(chart: &mut Chart, status: &PoolStatus) {
    let limits = fs::read_to_string(format!("/proc/{}/limits", status.pid)).unwrap_or_default();
    let line = limits.lines().find(|l| l.starts_with("Max open files"));
    let Some(limit) = line.and_then(|l| l.split_whitespace().nth(3)?.parse::<u64>().ok()) else { return };
    let needed = 1024 + 2 * (status.overlays + status.layers);
    if limit < needed {
        chart.advice(
            "open files of the daemon",
            format!("at most {limit}; {} overlays and {} layers can need {needed}", status.overlays, status.layers),
            "LimitNOFILE=1048576 in clonefs@.service, or ulimit -n before the mount",
        );
    } else {
        chart.ok("open files of the daemon", format!("at most {limit}"));
    }
}

/// What qemu does to a file, tried on one that is there.
fn some_file(chart: &mut Chart, dir: &Path) {
    let is_file = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|look| look.is_file());
    let Some(path) = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).find(is_file) else {
        return chart.ok("O_DIRECT and locks", "not tried: there is no file yet");
    };
    let file = match fs::File::options().read(true).custom_flags(libc::O_DIRECT | libc::O_NONBLOCK).open(&path) {
        Ok(file) => file,
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            return chart.problem(
                "O_DIRECT and locks",
                "files cannot be opened with O_DIRECT",
                "cache='writeback' in the disk's <driver>",
            );
        }
        Err(e) => return chart.ok("O_DIRECT and locks", format!("not tried: {path:?}: {e}")),
    };
    // SAFETY: zero is a valid value for every field of flock.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_RDLCK as _;
    // SAFETY: the command reads and writes the struct.
    let asked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if asked == -1 {
        chart.problem(
            "O_DIRECT and locks",
            "locks of open files (OFD) do not work, by which qemu keeps two machines from one disk",
            "a newer kernel",
        );
    } else {
        chart.ok("O_DIRECT and locks", "work");
    }
}

/// Whether libvirt knows the directory, and all that is in it.
fn libvirt_pool(chart: &mut Chart, virsh: &Virsh, dir: &Path) {
    let Ok(active) = pools::active(virsh) else { return };
    let Some((name, _)) = active.iter().find(|(_, path)| pools::same(path, dir)) else {
        return chart.advice(
            "libvirt pool",
            "no active libvirt pool is this directory: virsh vol-list and virt-manager do not see it",
            format!("clonefs pool define NAME {}", quoted(dir)),
        );
    };
    let listed = virsh.run("list the volumes", &["vol-list", "--pool", name]).unwrap_or_default();
    let hidden = |name: &str| name.starts_with('.');
    let files = fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_file()));
    let missing: Vec<String> = files
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|file| {
            !hidden(file)
                && !listed.lines().any(|line| line.split_whitespace().next() == file.split_whitespace().next())
        })
        .collect();
    match missing.len() {
        0 => chart.ok("libvirt pool", format!("{name} is active and up to date")),
        count => chart.advice(
            "libvirt pool",
            format!("{name} has not seen {count} of the files"),
            format!("virsh pool-refresh {name}"),
        ),
    }
}
