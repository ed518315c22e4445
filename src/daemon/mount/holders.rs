//! Who keeps a mount alive: processes with its files open, loop devices, mounts inside of it, other mount namespaces. Only
//! /proc and /sys are read, as a look at the files themselves could hang on any mount.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::table::{self, Entry, FS_TYPE};

/// Holders of one kind that a message names; the rest is counted.
const NAMED: usize = 8;

/// A mount as another mount namespace has it, and a process of that namespace.
struct Elsewhere {
    pid: u32,
    entry: Entry,
}

/// What keeps `entry` busy where this process sees it, each as a phrase.
pub fn users_of(entry: &Entry) -> Vec<String> {
    let ids = HashSet::from([entry.id]);
    let using = |pid: &u32| uses(*pid, &ids, entry);
    let processes = processes().into_iter().filter(using).map(process).collect();
    let mut found = shortened(processes, "processes");
    found.extend(loop_devices(&entry.mountpoint));
    let below = |other: &&Entry| other.id != entry.id && other.mountpoint.starts_with(&entry.mountpoint);
    let mounts = table::mounts().unwrap_or_default();
    let inside = mounts.iter().filter(below).map(|other| format!("what is mounted at {:?}", other.mountpoint));
    found.extend(shortened(inside.collect(), "mounts"));
    found
}

/// What keeps the filesystem of `entry` alive after it was taken out of the tree here, each as a phrase.
pub fn holders_of(entry: &Entry) -> Vec<String> {
    let copies = elsewhere(|other| other.dev == entry.dev && other.fs_type == FS_TYPE);
    let ids: HashSet<u64> = copies.iter().map(|copy| copy.entry.id).chain([entry.id]).collect();
    let known: HashSet<u32> = copies.iter().map(|copy| copy.pid).collect();
    let mut found = shortened(copies.iter().map(in_namespace).collect(), "mount namespaces");
    let using = |pid: &u32| !known.contains(pid) && uses(*pid, &ids, entry);
    found.extend(shortened(processes().into_iter().filter(using).map(process).collect(), "processes"));
    found.extend(loop_devices(&entry.mountpoint));
    found
}

/// Says that the pool at or above `path`, which is not mounted here, still is in another mount namespace.
pub fn lingering(path: &Path) -> Option<Lingering> {
    let path = path.canonicalize().ok()?;
    let its = |entry: &Entry| entry.fs_type == FS_TYPE && (path.starts_with(entry.pool()) || path == entry.mountpoint);
    let copies = elsewhere(its);
    let first = copies.first()?;
    let (pid, place) = (first.pid, first.entry.mountpoint.clone());
    let holders = shortened(copies.iter().map(|copy| named(copy.pid)).collect(), "mount namespaces");
    Some(Lingering { holders, pid, place })
}

/// A pool that is mounted in other mount namespaces only.
pub struct Lingering {
    holders: Vec<String>,
    pid: u32,
    place: PathBuf,
}

impl Lingering {
    /// Who holds it.
    pub fn says(&self) -> String {
        let verb = if self.holders.len() == 1 { "holds" } else { "hold" };
        format!("lingering: {} in another mount namespace still {verb} it", self.holders.join(", "))
    }

    /// How it is taken out there.
    pub fn remedy(&self) -> String {
        format!("end that process, or `nsenter -t {} -m umount {}`", self.pid, quoted(&self.place))
    }
}

fn in_namespace(copy: &Elsewhere) -> String {
    format!(
        "{} in another mount namespace (`nsenter -t {} -m umount {}` takes it out there)",
        named(copy.pid),
        copy.pid,
        quoted(&copy.entry.mountpoint)
    )
}

/// A path as one word of a shell. One with control characters is shown as `{:?}` does.
pub fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    match &text {
        text if text.chars().any(char::is_control) => format!("{path:?}"),
        text if text.chars().all(plain) => text.to_string(),
        text => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Mounts that other namespaces have and for which `is_meant` holds, one for each namespace, by the process with the
/// smallest number in it.
fn elsewhere(is_meant: impl Fn(&Entry) -> bool) -> Vec<Elsewhere> {
    let mut seen: HashSet<PathBuf> = fs::read_link("/proc/self/ns/mnt").into_iter().collect();
    let mut found = Vec::new();
    for pid in processes() {
        // A process that may not be looked at, or has ended.
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else { continue };
        if !seen.insert(namespace.clone()) {
            continue;
        }
        match table::mounts_of(pid) {
            Ok(mounts) => {
                let meant = mounts.into_iter().find(|entry| is_meant(entry));
                found.extend(meant.map(|entry| Elsewhere { pid, entry }));
            }
            Err(_) => drop(seen.remove(&namespace)),
        }
    }
    found
}

/// Numbers of all processes, in order.
fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut found: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    found.sort_unstable();
    found
}

/// `PID 7 (sleep)`.
pub fn named(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("PID {pid} ({})", name.trim().escape_debug())
}

fn process(pid: u32) -> String {
    format!("process {}", named(pid).trim_start_matches("PID "))
}

fn shortened(mut found: Vec<String>, what: &str) -> Vec<String> {
    if found.len() > NAMED {
        let rest = found.len() - NAMED;
        found.truncate(NAMED);
        found.push(format!("{rest} more {what}"));
    }
    found
}

/// Whether a process has something of the mounts with these numbers open or mapped, or as a directory of its own.
fn uses(pid: u32, ids: &HashSet<u64>, entry: &Entry) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let inside = |link: &str| fs::read_link(process.join(link)).is_ok_and(|to| to.starts_with(&entry.mountpoint));
    let here = fs::read_link(process.join("ns/mnt")).ok() == fs::read_link("/proc/self/ns/mnt").ok();
    (here && ["cwd", "root", "exe"].into_iter().any(inside)) || has_open(&process, ids) || has_mapped(&process, entry)
}

fn has_open(process: &Path, ids: &HashSet<u64>) -> bool {
    let Ok(descriptors) = fs::read_dir(process.join("fdinfo")) else { return false };
    descriptors.flatten().any(|descriptor| {
        let info = fs::read_to_string(descriptor.path()).unwrap_or_default();
        let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).and_then(|id| id.trim().parse().ok());
        id.is_some_and(|id: u64| ids.contains(&id))
    })
}

fn has_mapped(process: &Path, entry: &Entry) -> bool {
    let device = format!("{:02x}:{:02x}", libc::major(entry.dev), libc::minor(entry.dev));
    let maps = fs::read(process.join("maps")).unwrap_or_default();
    String::from_utf8_lossy(&maps).lines().any(|line| line.split(' ').nth(3) == Some(&device))
}

/// Loop devices over files below `mountpoint`.
fn loop_devices(mountpoint: &Path) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let named = |device: fs::DirEntry| {
        let file = fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        let file = Path::new(file.trim_end_matches('\n'));
        let inside = file.starts_with(mountpoint);
        inside.then(|| format!("the loop device /dev/{} (of {file:?})", device.file_name().to_string_lossy()))
    };
    let mut found: Vec<String> = devices.filter_map(named).collect();
    found.sort();
    shortened(found, "loop devices")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_can_be_given_to_a_shell() {
        assert_eq!(quoted(Path::new("/srv/a-b_c.d")), "/srv/a-b_c.d");
        assert_eq!(quoted(Path::new("/srv/a b'c")), r"'/srv/a b'\''c'");
        let lingering = Lingering { holders: vec!["PID 7 (sleep)".into()], pid: 7, place: "/srv/x".into() };
        assert_eq!(lingering.says(), "lingering: PID 7 (sleep) in another mount namespace still holds it");
        assert_eq!(lingering.remedy(), "end that process, or `nsenter -t 7 -m umount /srv/x`");
    }

    #[test]
    fn this_process_uses_what_it_has_open() {
        let me = std::process::id();
        let at = table::mounts().unwrap().into_iter().find(|entry| entry.mountpoint == Path::new("/proc")).unwrap();
        let _open = fs::File::open("/proc/self/status").unwrap();
        assert!(uses(me, &HashSet::from([at.id]), &at));
        assert!(!uses(me, &HashSet::new(), &Entry { mountpoint: "/no/such".into(), dev: 0xfff, ..at }));
        assert!(processes().contains(&me) && named(me).starts_with(&format!("PID {me} (")));
    }
}
