//! Filesystems on loop devices, for as long as a test needs them.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::run;

/// mkfs.btrfs looks at every mount of the machine, and fails if one is dead, as those of tests that kill a daemon are
/// for a while. So it is run where no FUSE filesystem is mounted: in a mount namespace of its own.
const WITHOUT_FUSE: &str = r#"
while read -r _ place kind _; do
    case $kind in fuse*) umount -l "$(printf '%b' "$place")" ;; esac
done </proc/self/mounts
exec "$@""#;

/// A kind of backing filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    Ext4,
    Xfs,
    Btrfs,
    Tmpfs,
}

impl Backing {
    /// Those that CI runs every test on.
    pub const ALL: [Backing; 4] = [Backing::Ext4, Backing::Xfs, Backing::Btrfs, Backing::Tmpfs];

    fn format(self, image: &Path, options: &[&str]) {
        let command: &[&str] = match self {
            Backing::Ext4 => &["mkfs.ext4", "-q", "-F"],
            Backing::Xfs => &["mkfs.xfs", "-q", "-f"],
            Backing::Btrfs => &["mkfs.btrfs", "-q", "-f"],
            Backing::Tmpfs => return,
        };
        let mut alone = Command::new("unshare");
        alone.args(["--mount", "--propagation", "private", "sh", "-c", WITHOUT_FUSE, "sh"]);
        run(alone.args(command).args(options).arg(image)).success();
    }
}

/// A mounted filesystem, unmounted when this is dropped.
pub struct Disk {
    /// What kind it is.
    pub kind: Backing,
    place: TempDir,
}

impl Disk {
    /// A filesystem of one GiB, of which only what is written takes space.
    pub fn new(kind: Backing) -> Disk {
        Disk::with_size(kind, 1 << 30)
    }

    /// A filesystem of `size` bytes.
    pub fn with_size(kind: Backing, size: u64) -> Disk {
        Disk::formatted(kind, size, &[])
    }

    /// The same, formatted with more options.
    pub fn formatted(kind: Backing, size: u64, options: &[&str]) -> Disk {
        let place = TempDir::with_prefix("clonefs-test-").expect("temporary directory");
        let (image, root) = (place.path().join("image"), place.path().join("disk"));
        std::fs::create_dir(&root).expect("mount point");
        let mut mount = Command::new("mount");
        if kind == Backing::Tmpfs {
            mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"]).arg(&root);
        } else {
            std::fs::File::create(&image).and_then(|file| file.set_len(size)).expect("image");
            kind.format(&image, options);
            mount.args(["-o", "loop"]).arg(&image).arg(&root);
        }
        let disk = Disk { kind, place };
        run(&mut mount).success();
        disk
    }

    /// Its root directory.
    pub fn root(&self) -> PathBuf {
        self.place.path().join("disk")
    }

    /// Mounts it again with these options, such as `ro`.
    pub fn remount(&self, options: &str) {
        run(Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(self.root())).success();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a daemon that a failed test left behind may still hold it. The loop device goes with the mount.
        run(Command::new("umount").arg("-l").arg(self.root()));
    }
}
