//! A qcow2 linked clone served over FUSE by qemu-storage-daemon: the peer that does the same job in the same way.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::failure::{During, Failure, Outcome};
use crate::run;

/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// An export, which ends when this is dropped.
pub struct Export {
    child: Child,
    /// The file that shows the disk.
    pub file: PathBuf,
}

impl Export {
    /// What is missing for one.
    pub fn missing() -> Option<String> {
        run::missing(&["qemu-img", "qemu-storage-daemon"]).or_else(crate::bench::no_fuse)
    }

    /// A new linked clone of the raw image `base`, with its overlay in `dir`.
    pub fn new(base: &Path, dir: &Path, name: &str) -> Outcome<Export> {
        let overlay = dir.join(format!("{name}.qcow2"));
        create_linked(base, &overlay)?;
        let file = dir.join(format!("{name}.export"));
        std::fs::File::create_new(&file).during("make", &file)?;
        let aio = r#""cache":{"direct":true},"aio":"io_uring""#;
        let backing = format!(r#"{{"driver":"raw","file":{{"driver":"file","filename":{base:?},{aio}}}}}"#);
        let disk = format!(
            r#"{{"driver":"qcow2","node-name":"disk","file":{{"driver":"file","filename":{overlay:?},{aio}}},"backing":{backing}}}"#
        );
        let export = format!("type=fuse,id=export,node-name=disk,mountpoint={},writable=on", file.display());
        let mut command = run::command("qemu-storage-daemon");
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.args(["--blockdev", &disk, "--export", &export]);
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = spawned.map_err(|error| Failure::line(format!("qemu-storage-daemon: {error}")))?;
        let mut export = Export { child, file };
        export.wait_until_served(std::fs::metadata(base).during("look at", base)?.len())?;
        Ok(export)
    }

    fn wait_until_served(&mut self, size: u64) -> Outcome<()> {
        let began = Instant::now();
        loop {
            run::check()?;
            if std::fs::metadata(&self.file).is_ok_and(|meta| meta.len() == size) {
                return Ok(());
            }
            if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return Err(Failure::line("qemu-storage-daemon ended at once: it may lack FUSE exports"));
            }
            if began.elapsed() > PATIENCE {
                return Err(Failure::line("qemu-storage-daemon does not serve its export"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        // SAFETY: a child that nobody has waited for yet.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        let began = Instant::now();
        while self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            if began.elapsed() > PATIENCE {
                drop(self.child.kill());
                drop(self.child.wait());
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if std::fs::metadata(&self.file).is_err() {
            run::finish(run::command("umount").arg("-l").arg(&self.file));
        }
    }
}

/// A qcow2 file that reads from `base` what it does not have.
pub fn create_linked(base: &Path, overlay: &Path) -> Outcome<Duration> {
    let mut command = run::command("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(base).arg(overlay);
    Ok(run::output(&mut command)?.1)
}
