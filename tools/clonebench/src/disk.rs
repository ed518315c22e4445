//! Filesystems of other kinds, on loop devices.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::failure::{During, Outcome};
use crate::run;

/// mkfs.btrfs looks at every mount of the machine, and fails if one is dead. So it is run where no FUSE filesystem is
/// mounted: in a mount namespace of its own.
const WITHOUT_FUSE: &str = r#"
while read -r _ place kind _; do
    case $kind in fuse*) umount -l "$(printf '%b' "$place")" ;; esac
done </proc/self/mounts
exec "$@""#;

/// A filesystem, unmounted when this is dropped; its image lies in the directory that it was made in.
pub struct Disk {
    root: PathBuf,
}

impl Disk {
    /// Makes and mounts one of `kind` (`ext4`, `xfs`, `btrfs`) with room for `size` bytes.
    pub fn new(dir: &Path, kind: &str, size: u64) -> Outcome<Disk> {
        let (image, root) = (dir.join(format!("{kind}.image")), dir.join(kind));
        let file = File::create_new(&image).during("make", &image)?;
        file.set_len(size.max(1 << 30)).during("make", &image)?;
        std::fs::create_dir(&root).during("make directory", &root)?;
        let quietly = if kind == "ext4" { "-qF" } else { "-qf" };
        let mut format = run::command("unshare");
        format.args(["--mount", "--propagation", "private", "sh", "-c", WITHOUT_FUSE, "sh"]);
        let mkfs = format!("mkfs.{kind}");
        run::output(format.arg(run::find(&mkfs).unwrap_or_else(|| mkfs.into())).arg(quietly).arg(&image))?;
        let disk = Disk { root };
        run::output(run::command("mount").args(["-o", "loop"]).arg(&image).arg(&disk.root))?;
        Ok(disk)
    }

    /// What is missing to make one of `kind`.
    pub fn missing(kind: &str) -> Option<String> {
        crate::bench::no_loops().or_else(|| run::missing(&[&format!("mkfs.{kind}"), "mount", "unshare"]))
    }

    /// Its root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The loop device goes with the mount.
        if !run::finish(run::command("umount").arg(&self.root)) {
            run::finish(run::command("umount").arg("-l").arg(&self.root));
        }
    }
}
