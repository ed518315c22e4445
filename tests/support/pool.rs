//! Pools and mounts, driven through the `clonefs` program as users do it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clonefs::protocol::{PoolStatus, STATUS, VolumeInfo};

use super::{Backing, Disk, get_xattr};

/// A program that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a program did.
#[derive(Debug)]
pub struct Done {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    /// Fails the test unless the program succeeded.
    pub fn success(self) -> Done {
        assert!(self.status.success(), "{self:?}");
        self
    }

    /// Fails the test unless it ended with this code.
    pub fn code(self, code: i32) -> Done {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        self
    }
}

/// Runs a program to its end; kills it when it hangs.
pub fn run(command: &mut Command) -> Done {
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait(&mut child, &format!("{command:?}"));
    let text = |thread: thread::JoinHandle<String>| thread.join().expect("reader");
    Done { status, stdout: text(stdout), stderr: text(stderr) }
}

fn collect(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait(child: &mut Child, what: &str) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return status;
        }
        if start.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("{what} hangs");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Runs the `clonefs` program.
pub fn clonefs<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Done {
    run(Command::new(env!("CARGO_BIN_EXE_clonefs")).args(arguments))
}

/// A clonefs mount, taken down when this is dropped.
pub struct Mount {
    path: PathBuf,
}

impl Mount {
    /// Mounts `pool` over itself, or at `mountpoint`.
    pub fn new(pool: &Path, mountpoint: Option<&Path>, options: &str) -> Mount {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clonefs"));
        command.arg("mount").args(["-o", options]).arg(pool).args(mountpoint);
        let mount = Mount { path: mountpoint.unwrap_or(pool).to_owned() };
        run(&mut command).success();
        mount
    }

    /// Takes care of a mount that was made in another way.
    pub fn adopt(path: &Path) -> Mount {
        Mount { path: path.to_owned() }
    }

    /// Its root.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the daemon says of itself.
    pub fn status(&self) -> PoolStatus {
        serde_json::from_slice(&get_xattr(&self.path, STATUS).expect("status")).expect("status")
    }

    /// Unmounts in order.
    pub fn unmount(self) {
        let mut last = None;
        when_let_go(|| {
            let done = last.insert(clonefs([OsStr::new("unmount"), self.path.as_os_str()]));
            done.status.success() || !done.stderr.contains("in use")
        });
        last.expect("an end").success();
    }

    /// Kills the daemon at once, as a crash would end it, and leaves the dead mount.
    pub fn kill(&self) {
        let pid = self.status().pid;
        // SAFETY: kill takes a pid and a signal.
        assert_eq!(unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) }, 0);
        // Its threads end one after the other; the last one takes the connection along.
        let gone = |error: std::io::Error| error.raw_os_error() == Some(libc::ENOTCONN);
        wait_until(|| !is_running(pid) && get_xattr(&self.path, STATUS).is_err_and(gone));
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // In a test that succeeds there is nothing left to take down.
        let mounts = || clonefs::daemon::mount::table::at(&self.path).ok().flatten();
        while mounts().is_some_and(|entry| entry.fs_type == clonefs::daemon::mount::table::FS_TYPE) {
            let daemon = get_xattr(&self.path, STATUS).ok();
            let daemon = daemon.and_then(|json| serde_json::from_slice::<PoolStatus>(&json).ok());
            if !run(Command::new("umount").arg("-l").arg(&self.path)).status.success() {
                break;
            }
            if let Some(daemon) = daemon.filter(|_| thread::panicking()) {
                // SAFETY: kill takes a pid and a signal.
                unsafe { libc::kill(daemon.pid as libc::pid_t, libc::SIGKILL) };
            }
        }
    }
}

/// Whether a process is there and not just waiting to be waited for.
pub fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Waits for something that must come; a test that waits for ever is killed and so fails.
pub fn wait_until(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "it does not happen");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Tries `unmount` again for a while, until it says that it is done. A program that another thread of a test starts at this
/// moment holds all that the test has open, until it has become that program.
pub fn when_let_go(mut unmount: impl FnMut() -> bool) {
    let start = Instant::now();
    while !unmount() && start.elapsed() < PATIENCE / 12 {
        thread::sleep(Duration::from_millis(50));
    }
}

/// A pool on a filesystem of its own, at first mounted over itself.
pub struct Pool {
    mount: Option<Mount>,
    /// The pool's directory as it was before the mount covered it: sees the backing files.
    below: File,
    directory: PathBuf,
    /// The filesystem.
    pub disk: Disk,
}

impl Pool {
    /// An empty pool that is not mounted.
    pub fn unmounted(kind: Backing) -> Pool {
        Pool::unmounted_on(Disk::new(kind))
    }

    /// The same on this filesystem.
    pub fn unmounted_on(disk: Disk) -> Pool {
        let directory = disk.root().join("pool");
        std::fs::create_dir(&directory).expect("pool");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
        std::fs::set_permissions(&directory, mode).expect("mode of the pool");
        let below = File::open(&directory).expect("pool");
        Pool { mount: None, below, directory, disk }
    }

    /// An empty pool, mounted over itself; clones are deepened only when asked.
    pub fn new(kind: Backing) -> Pool {
        let mut pool = Pool::unmounted(kind);
        pool.mount("deepen=manual");
        pool
    }

    /// Mounts it over itself.
    pub fn mount(&mut self, options: &str) {
        assert!(self.mount.is_none());
        self.mount = Some(Mount::new(&self.directory, None, options));
    }

    /// Unmounts it in order.
    pub fn unmount(&mut self) {
        self.mount.take().expect("a mount").unmount();
    }

    /// The mount was taken down, or killed, by other means.
    pub fn forget_mount(&mut self) {
        std::mem::forget(self.mount.take());
    }

    /// Kills the daemon and mounts again, as after a crash.
    pub fn crash(&mut self, options: &str) {
        self.mounted().kill();
        self.forget_mount();
        self.mount(options);
    }

    /// The mount.
    pub fn mounted(&self) -> &Mount {
        self.mount.as_ref().expect("a mount")
    }

    /// Root of the pool.
    pub fn root(&self) -> &Path {
        &self.directory
    }

    /// Path of a file in the pool, as users see it.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.join(name)
    }

    /// Path of the backing file of the same name.
    pub fn below(&self, name: impl AsRef<Path>) -> PathBuf {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.below);
        Path::new("/proc").join(std::process::id().to_string()).join(format!("fd/{fd}")).join(name)
    }

    /// Writes a file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.at(name);
        std::fs::write(&path, bytes).unwrap_or_else(|e| panic!("write {path:?}: {e}"));
        path
    }

    /// Reads a file.
    pub fn read(&self, name: &str) -> Vec<u8> {
        let path = self.at(name);
        std::fs::read(&path).unwrap_or_else(|e| panic!("read {path:?}: {e}"))
    }

    /// Clones by the program.
    pub fn clone(&self, source: &str, target: &str) {
        clonefs([OsStr::new("clone"), self.at(source).as_os_str(), self.at(target).as_os_str()]).success();
    }

    /// Deepens a file and waits until it is independent.
    pub fn deepen(&self, name: &str) {
        clonefs([OsStr::new("deepen"), OsStr::new("--wait"), self.at(name).as_os_str()]).success();
    }

    /// What the daemon says of a file.
    pub fn info(&self, name: &str) -> VolumeInfo {
        let json = get_xattr(&self.at(name), clonefs::protocol::INFO).expect("info");
        serde_json::from_slice(&json).expect("info")
    }
}
