//! A host for virtual machines in namespaces of its own: a private libvirtd, and a mounted pool. All of it ends with
//! the value, or with the test process, whatever happens to that.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use clonefs::protocol::VolumeInfo;

use crate::support::{self, Done, get_xattr, run, wait_until};

/// Whether there is a libvirt to test with. Use it as `if !host::ready() { return }`.
pub fn ready() -> bool {
    if !support::ready() {
        return false;
    }
    let programs = ["libvirtd", "virtlogd", "virsh", "qemu-system-x86_64", "qemu-img", "unshare", "nsenter"];
    let missing: Vec<&str> =
        programs.into_iter().filter(|p| !run(Command::new("which").arg(p)).status.success()).collect();
    if missing.is_empty() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "libvirt tests need {}", missing.join(", "));
    eprintln!("SKIPPED: libvirt tests need {}", missing.join(", "));
    false
}

/// The host.
pub struct Host {
    unshare: Child,
    /// The first process in its namespaces.
    init: u32,
    dir: tempfile::TempDir,
}

impl Host {
    /// Starts it and mounts an empty pool.
    pub fn start() -> Host {
        let host = Host::without_pool();
        host.mount("allow_other,deepen=manual");
        host
    }

    /// Starts it.
    pub fn without_pool() -> Host {
        Host::with_environment(&[])
    }

    /// Starts it with these variables for its script.
    pub fn with_environment(variables: &[(&str, &Path)]) -> Host {
        let dir = tempfile::Builder::new().prefix("libvirt-").tempdir().expect("a directory");
        // The user that machines run as has to get through.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
        std::fs::create_dir(dir.path().join("pool")).expect("pool");
        std::fs::create_dir(dir.path().join("outside")).expect("outside");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/libvirt/private-libvirtd");
        let mut command = Command::new("unshare");
        command.args(["-m", "-n", "-p", "-f", "--kill-child", "--mount-proc", "--propagation", "private"]);
        command.arg(script).arg(dir.path().join("state")).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.envs(variables.iter().copied());
        let mut unshare = command.spawn().expect("unshare");
        let mut lines = BufReader::new(unshare.stdout.take().expect("stdout")).lines();
        let said: Vec<String> = lines.by_ref().map_while(Result::ok).take_while(|line| line != "ready").collect();
        let init = child_of(unshare.id()).unwrap_or_else(|| panic!("libvirtd did not start: {said:?}"));
        // Read on, so that nobody in there is stopped by a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Host { unshare, init, dir }
    }

    /// Mounts the pool.
    pub fn mount(&self, options: &str) {
        self.clonefs(["mount", "-o", options, &self.pool("")]).success();
    }

    /// A path in the pool.
    pub fn pool(&self, name: &str) -> String {
        self.path("pool", name)
    }

    /// A path outside of the pool.
    pub fn outside(&self, name: &str) -> String {
        self.path("outside", name)
    }

    fn path(&self, dir: &str, name: &str) -> String {
        let dir = self.dir.path().join(dir);
        let path = if name.is_empty() { dir } else { dir.join(name) };
        path.to_str().expect("a path").to_owned()
    }

    /// A path as it is reached from outside of the namespaces.
    pub fn reach(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// A program in the namespaces.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.init.to_string(), "-m", "-n", "-p", "--", program])
            .env("LC_ALL", "C")
            .current_dir("/");
        command
    }

    /// Runs a program in the namespaces.
    pub fn run<S: AsRef<OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = S>) -> Done {
        run(self.command(program).args(arguments))
    }

    /// Runs a line of bash in the namespaces, which must succeed; gives its output.
    #[track_caller]
    pub fn shell(&self, line: &str) -> String {
        self.run("bash", ["-euc", line]).success().stdout
    }

    /// Runs virsh.
    pub fn virsh<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Done {
        let mut command = self.command("virsh");
        run(command.arg("-q").args(arguments))
    }

    /// Runs virsh with the words of a line, which must succeed; gives its output.
    #[track_caller]
    pub fn virsh_ok(&self, line: &str) -> String {
        self.virsh(line.split_whitespace()).success().stdout
    }

    /// Runs clonefs.
    pub fn clonefs<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Done {
        self.run(env!("CARGO_BIN_EXE_clonefs"), arguments)
    }

    /// Runs clonefs with the words of a line, which must succeed; gives its output.
    #[track_caller]
    pub fn clonefs_ok(&self, line: &str) -> String {
        self.clonefs(line.split_whitespace()).success().stdout
    }

    /// Runs clonefs with the words of a line, which must fail with code 1; gives what it said.
    #[track_caller]
    pub fn refused(&self, line: &str) -> String {
        let done = self.clonefs(line.split_whitespace()).code(1);
        assert!(done.stdout.is_empty(), "{done:?}");
        done.stderr
    }

    /// Writes a file.
    pub fn write(&self, path: &str, bytes: &[u8]) {
        std::fs::write(self.reach(path), bytes).unwrap_or_else(|e| panic!("write {path}: {e}"));
    }

    /// Reads a file.
    pub fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.reach(path)).unwrap_or_else(|e| panic!("read {path}: {e}"))
    }

    /// Whether a file is there.
    pub fn exists(&self, path: &str) -> bool {
        self.reach(path).exists()
    }

    /// Names in a directory, sorted.
    pub fn names(&self, dir: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.reach(dir)).unwrap_or_else(|e| panic!("list {dir}: {e}"));
        let mut names: Vec<String> =
            entries.map(|e| e.expect("entry").file_name().into_string().expect("name")).collect();
        names.sort();
        names
    }

    /// What the daemon says of a file in the pool.
    pub fn info(&self, path: &str) -> VolumeInfo {
        let json = get_xattr(&self.reach(path), clonefs::protocol::INFO).expect("info");
        serde_json::from_slice(&json).expect("info")
    }

    /// Defines a domain from its XML.
    #[track_caller]
    pub fn define(&self, xml: &str) {
        let path = self.outside("define.xml");
        self.write(&path, xml.as_bytes());
        self.virsh(["define", &path]).success();
    }

    /// The XML of a domain's next start.
    pub fn xml(&self, domain: &str) -> String {
        self.virsh(["dumpxml", "--inactive", "--security-info", domain]).success().stdout
    }

    /// Names of all domains, sorted.
    pub fn domains(&self) -> Vec<String> {
        let list = self.virsh_ok("list --all --name");
        let mut names: Vec<String> = list.lines().filter(|l| !l.is_empty()).map(str::to_owned).collect();
        names.sort();
        names
    }

    /// Waits until a domain is in this state.
    pub fn wait_state(&self, domain: &str, state: &str) {
        wait_until(|| self.virsh(["domstate", domain]).stdout.trim() == state);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Standard input ends, and with it the first process, and with that everything.
        drop(self.unshare.stdin.take());
        let _ = self.unshare.wait();
        // The daemon of the pool ends with its mount; until then the directory below cannot be removed in full.
        let path = self.dir.path().to_owned();
        wait_until(|| std::fs::remove_dir_all(&path).is_ok() || !path.exists());
    }
}

/// The child of a process that has one.
fn child_of(parent: u32) -> Option<u32> {
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let above: u32 = stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()?;
        (above == parent).then_some(pid)
    })
}
