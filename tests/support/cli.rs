//! Pools for the tests of the command line: each on a filesystem of its own, mounted at another place, with commands
//! that run in the mount's root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::{Backing, Disk, ready, when_let_go};

/// A mounted pool; unmounted when it is dropped.
pub struct Pool {
    mountpoint: tempfile::TempDir,
    /// The filesystem below; it goes after the mount.
    pub disk: Disk,
}

/// Runs `test` on a new, empty pool on each kind of filesystem, mounted with these arguments.
pub fn on_each(args: &[&str], test: impl Fn(&Pool)) {
    on(&Backing::ALL, args, test);
}

/// The same on these kinds.
pub fn on(kinds: &[Backing], args: &[&str], test: impl Fn(&Pool)) {
    if !ready() {
        return;
    }
    for kind in kinds {
        eprintln!("-- {kind:?}");
        test(&Pool::mount(*kind, args));
    }
}

impl Pool {
    /// Mounts an empty directory of a new filesystem at another one.
    pub fn mount(kind: Backing, args: &[&str]) -> Pool {
        let pool = Pool { mountpoint: tempfile::tempdir().unwrap(), disk: Disk::new(kind) };
        let open = || std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(pool.mountpoint.path(), open()).unwrap();
        fs::create_dir(pool.backing()).unwrap();
        fs::create_dir(pool.path("")).unwrap();
        pool.mount_again(args);
        pool
    }

    /// Mounts it after [`Pool::unmount`].
    pub fn mount_again(&self, args: &[&str]) {
        let mut command = Command::new("timeout");
        command.arg("60").arg(env!("CARGO_BIN_EXE_clonefs")).arg("mount").args(args);
        let output = command.arg(self.backing()).arg(self.path("")).output().unwrap();
        assert!(output.status.success(), "mount failed: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Unmounts it.
    pub fn unmount(&self) {
        let output = self.run_unmount();
        assert!(output.status.success(), "unmount failed: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn run_unmount(&self) -> Output {
        let mut last = None;
        when_let_go(|| {
            let mut command = Command::new("timeout");
            command.arg("60").arg(env!("CARGO_BIN_EXE_clonefs")).arg("unmount").arg(self.path(""));
            let output = last.insert(command.output().unwrap());
            output.status.success() || !String::from_utf8_lossy(&output.stderr).contains("in use")
        });
        last.expect("an end")
    }

    /// The directory below the mount.
    pub fn backing(&self) -> PathBuf {
        self.disk.root().join("pool")
    }

    /// A path in the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        let root = self.mountpoint.path().join("mnt");
        if name.is_empty() { root } else { root.join(name) }
    }

    /// Makes a file.
    pub fn write(&self, name: &str, data: &[u8]) {
        fs::write(self.path(name), data).unwrap();
    }

    /// Reads a file.
    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Names in the root, sorted.
    pub fn names(&self) -> Vec<String> {
        names(&self.path(""))
    }

    /// A clonefs command in the root.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clonefs"));
        command.args(args).current_dir(self.path(""));
        command
    }

    /// Runs a clonefs command in the root.
    pub fn clonefs(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Value of an attribute.
    pub fn attribute(&self, file: &str, name: &str) -> String {
        shell(&format!("getfattr --only-values -n {name} {:?}", self.path(file)))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let output = self.run_unmount();
        let point = self.path("").display().to_string();
        let gone = || !fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&point);
        // Detached, but the daemon goes on: a mount namespace that another program made meanwhile has a copy of the
        // mount, and only that program can end it.
        let copied = output.status.code() == Some(124) && gone();
        if !output.status.success() && !copied {
            let _ = Command::new("umount").arg("-l").arg(self.path("")).output();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            // A second panic would hide the first.
            assert!(std::thread::panicking(), "unmount failed: {} {said}", output.status);
        }
    }
}

/// Runs a command that must succeed and say nothing on standard error; gives its output.
#[track_caller]
pub fn run(pool: &Pool, args: &[&str]) -> String {
    let output = pool.clonefs(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{args:?}: {} {said}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must fail with `code`; gives what it said.
#[track_caller]
pub fn refused(pool: &Pool, args: &[&str], code: i32) -> String {
    let output = pool.clonefs(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert!(output.stdout.is_empty(), "{args:?} printed {:?}", String::from_utf8_lossy(&output.stdout));
    said
}

/// Runs a line of bash that must succeed; gives its output.
#[track_caller]
pub fn shell(line: &str) -> String {
    let output = Command::new("bash").args(["-euc", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Bytes that do not compress and never repeat.
pub fn noise(len: usize) -> Vec<u8> {
    super::noise(9, len)
}
