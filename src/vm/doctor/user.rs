//! The user that qemu runs as, and whether that user can get at a file.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const QEMU_CONF: &str = "/etc/libvirt/qemu.conf";

/// The user of the system's machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qemu {
    pub name: String,
    pub uid: u32,
    pub gids: Vec<u32>,
    /// libvirt gives a machine's disks to that user and back.
    pub owns_disks: bool,
}

impl Qemu {
    /// As qemu.conf says, else as the distributions have it. `None` where there is no such user.
    pub fn find() -> Option<Qemu> {
        let conf = fs::read_to_string(QEMU_CONF).unwrap_or_default();
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let groups = fs::read_to_string("/etc/group").unwrap_or_default();
        let owns_disks = setting(&conf, "dynamic_ownership").is_none_or(|v| v != "0");
        let named = setting(&conf, "user").map(|name| name.trim_start_matches('+').to_owned());
        let names = named.map_or(vec!["libvirt-qemu".into(), "qemu".into()], |name| vec![name]);
        names.iter().find_map(|name| lookup(name, &users, &groups)).map(|found| Qemu { owns_disks, ..found })
    }

    /// The first directory on the way to `path` that this user cannot go through. An ACL that lets the user through is
    /// not seen here: ask the system, where that can be done.
    pub fn stopped_at(&self, path: &Path) -> Option<PathBuf> {
        let mut above: Vec<&Path> = path.ancestors().filter(|p| !p.as_os_str().is_empty()).collect();
        above.reverse();
        let closed = |dir: &&&Path| fs::metadata(dir).is_ok_and(|look| look.is_dir() && !self.may_enter(&look));
        above.iter().find(closed).filter(|dir| !has_acl(dir)).map(|dir| dir.to_path_buf())
    }

    /// Whether this user can look for a name in `dir`, tried; `None` where we may not act as another user. A name that
    /// is not there: what is known of one that is might not be asked for again.
    pub fn sees(&self, dir: &Path) -> Option<bool> {
        if !rustix::process::geteuid().is_root() || self.stopped_at(dir).is_some() {
            return None;
        }
        let name = dir.join(format!("clonefs-doctor-{}", std::process::id()));
        let mut command = Command::new("stat");
        command.arg(name).env("LC_ALL", "C").stdin(Stdio::null()).uid(self.uid).gid(*self.gids.first()?);
        let said = String::from_utf8_lossy(&command.output().ok()?.stderr).into_owned();
        Some(!said.contains("Permission denied") && !said.contains("Operation not permitted"))
    }

    fn may_enter(&self, look: &fs::Metadata) -> bool {
        enters(self, look.uid(), look.gid(), look.mode())
    }
}

fn enters(user: &Qemu, uid: u32, gid: u32, mode: u32) -> bool {
    let bit = match () {
        () if user.uid == 0 => 0o111,
        () if user.uid == uid => 0o100,
        () if user.gids.contains(&gid) => 0o010,
        () => 0o001,
    };
    mode & bit != 0
}

fn has_acl(dir: &Path) -> bool {
    let mut buffer = [0u8; 1];
    // An answer of any size, also one that does not fit, says that there is one.
    matches!(rustix::fs::getxattr(dir, "system.posix_acl_access", &mut buffer), Ok(_) | Err(rustix::io::Errno::RANGE))
}

/// A setting of qemu.conf that is not commented out.
fn setting(conf: &str, name: &str) -> Option<String> {
    conf.lines().rev().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == name).then(|| value.trim().trim_matches('"').to_owned())
    })
}

/// A user by name, or by number, out of the texts of passwd(5) and group(5).
fn lookup(name: &str, users: &str, groups: &str) -> Option<Qemu> {
    let line = users
        .lines()
        .map(|l| l.split(':').collect::<Vec<_>>())
        .find(|f| f.len() > 3 && (f[0] == name || f[2] == name))?;
    let (uid, gid) = (line[2].parse().ok()?, line[3].parse().ok()?);
    let member = |fields: &Vec<&str>| fields.len() > 3 && fields[3].split(',').any(|m| m == line[0]);
    let more =
        groups.lines().map(|l| l.split(':').collect::<Vec<_>>()).filter(member).filter_map(|f| f[2].parse().ok());
    Some(Qemu { name: line[0].to_owned(), uid, gids: std::iter::once(gid).chain(more).collect(), owns_disks: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nlibvirt-qemu:x:64055:107::/var:/bin/false\n";
    const GROUPS: &str = "kvm:x:107:\nlibvirt-qemu:x:64055:libvirt-qemu\ndisk:x:6:other\n";

    #[test]
    fn users_are_found_with_their_groups() {
        let user = lookup("libvirt-qemu", USERS, GROUPS).unwrap();
        assert_eq!((user.uid, user.gids), (64055, vec![107, 64055]));
        assert_eq!(lookup("0", USERS, GROUPS).unwrap().name, "root");
        assert!(lookup("qemu", USERS, GROUPS).is_none());
    }

    #[test]
    fn settings_are_read_and_comments_are_not() {
        let conf = "#user = \"root\"\nuser = \"qemu\"\n dynamic_ownership = 0\n";
        assert_eq!(setting(conf, "user").as_deref(), Some("qemu"));
        assert_eq!(setting(conf, "dynamic_ownership").as_deref(), Some("0"));
        assert_eq!(setting(conf, "group"), None);
    }

    #[test]
    fn the_right_bit_decides() {
        let user = lookup("libvirt-qemu", USERS, GROUPS).unwrap();
        assert!(enters(&user, 0, 0, 0o701) && !enters(&user, 0, 0, 0o770));
        assert!(enters(&user, 0, 107, 0o710) && !enters(&user, 0, 107, 0o707));
        assert!(enters(&user, 64055, 0, 0o100) && !enters(&user, 64055, 107, 0o077));
    }

    #[test]
    fn the_first_closed_directory_is_named() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let inner = dir.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        let nobody = Qemu { name: "n".into(), uid: 4_000_000, gids: vec![4_000_000], owns_disks: true };
        fs::set_permissions(dir.path().join("a"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(nobody.stopped_at(&inner.join("disk.img")), None);
        fs::set_permissions(dir.path().join("a"), fs::Permissions::from_mode(0o750)).unwrap();
        assert_eq!(nobody.stopped_at(&inner.join("disk.img")), Some(dir.path().join("a")));
    }
}
