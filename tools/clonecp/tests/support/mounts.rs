//! Filesystems for a test, gone when it ends: images on loop devices, filesystems in memory, pools of clonefs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;

use tempfile::TempDir;

use super::{open_up, root, skipped};

/// A mounted filesystem.
pub struct Mounted {
    /// Where it is mounted; any user can get there and write there.
    pub path: PathBuf,
    /// A pool, which clonefs unmounts.
    pool: bool,
    /// Holds the image and the mount point.
    _directory: TempDir,
}

/// Runs its arguments as a command, in this mount namespace without any FUSE filesystem.
const WITHOUT_FUSE: &str = r#"
while read -r _ place kind _; do
    case $kind in fuse*) umount -l "$(printf '%b' "$place")" ;; esac
done </proc/self/mounts
exec "$@""#;

impl Mounted {
    /// A filesystem of `kind`: `ext4`, `xfs`, `btrfs` in an image of half a GiB, or `tmpfs` or `ramfs`. `None`, and a
    /// loud word, if that cannot be done here.
    pub fn new(test: &str, kind: &str, options: &str) -> Option<Mounted> {
        if !root() {
            skipped(&format!("{test} on {kind}"), "mounting needs root");
            return None;
        }
        // Not in memory: a filesystem in a file in a filesystem in memory is slower than it sounds.
        let directory = tempfile::Builder::new().prefix("clonecp-test-").tempdir_in("/tmp").expect("a directory");
        open_up(directory.path(), 0o755);
        let path = directory.path().join("m");
        std::fs::create_dir(&path).expect("mount point");
        let mut mount = Command::new("mount");
        mount.args(["-t", kind, "-o"]);
        if matches!(kind, "tmpfs" | "ramfs") {
            mount.args([if options.is_empty() { "rw" } else { options }, "none"]);
        } else {
            let image = directory.path().join("image");
            File::create(&image).and_then(|file| file.set_len(512 << 20)).expect("image");
            let force = if kind == "ext4" { "-F" } else { "-f" };
            // mkfs.btrfs fails if any FUSE mount of the machine is dead, as another test's can be for a while.
            let mut alone = Command::new("unshare");
            alone.args(["--mount", "--propagation", "private", "sh", "-c", WITHOUT_FUSE, "sh"]);
            if let Err(why) = done(alone.arg(format!("mkfs.{kind}")).args(["-q", force]).arg(&image)) {
                skipped(&format!("{test} on {kind}"), &why);
                return None;
            }
            mount.arg(if options.is_empty() { "loop".into() } else { format!("loop,{options}") }).arg(&image);
        }
        if let Err(why) = done(mount.arg(&path)) {
            skipped(&format!("{test} on {kind}"), &why);
            return None;
        }
        let mounted = Mounted { path, pool: false, _directory: directory };
        open_up(&mounted.path, 0o777);
        Some(mounted)
    }

    /// An empty pool on the filesystem of `/tmp`, with clones that stay overlays unless they are told otherwise.
    pub fn pool(test: &str) -> Option<Mounted> {
        if !root() || !Path::new("/dev/fuse").exists() {
            skipped(test, "a mount of clonefs for all users needs root and /dev/fuse");
            return None;
        }
        let directory = tempfile::Builder::new().prefix("clonecp-test-").tempdir_in("/tmp").expect("a directory");
        open_up(directory.path(), 0o755);
        let path = directory.path().join("pool");
        std::fs::create_dir(&path).expect("pool");
        open_up(&path, 0o777);
        let mut mount = clonefs(&["mount", "--deepen", "manual", "-o", "allow_other,default_permissions,suid,dev"]);
        done(mount.arg(&path)).expect("clonefs mount");
        Some(Mounted { path, pool: true, _directory: directory })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = if self.pool {
            done(clonefs(&["unmount"]).arg(&self.path))
        } else {
            done(Command::new("umount").arg(&self.path))
        };
        if let Err(why) = unmounted {
            eprintln!("{}: {why}", self.path.display());
            let _ = done(Command::new("umount").arg("-l").arg(&self.path));
        }
    }
}

/// The program of the workspace beside this one, built if need be, with a limit of two minutes.
pub fn clonefs(words: &[&str]) -> Command {
    static BUILT: Once = Once::new();
    let ours = Path::new(env!("CARGO_BIN_EXE_clonecp"));
    let path = ours.with_file_name("clonefs");
    BUILT.call_once(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "clonefs", "--bin", "clonefs"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        done(&mut build).expect("build clonefs");
    });
    let mut command = Command::new("timeout");
    command.arg("120").arg(path).args(words);
    command
}

/// Runs a command to its end; the error says what it said.
pub fn done(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{command:?}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
    if !output.status.success() {
        return Err(format!("{command:?}: {}: {said}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
