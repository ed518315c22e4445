//! Recording: a fresh filesystem on a recorder disk, a workload on it, and the log of what reached the disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clonefs::error::{Context, Error, Kind, Result};

use crate::disk::{Disk, Sink};
use crate::image::Image;
use crate::log::{END, Header, LogWriter, START};
use crate::sys::{self, LoopDevice, Mount};

/// Filesystems that crashdisk makes and mounts.
pub const FILESYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// How a recording is made.
#[derive(Clone, Debug)]
pub struct Recording {
    /// One of [`FILESYSTEMS`].
    pub filesystem: String,
    /// Size of the disk in bytes. xfs needs 300 MiB, btrfs 110 MiB.
    pub size: u64,
    /// Mount options; `None` for [`default_options`].
    pub options: Option<String>,
    /// Start write-back of a random file this often. The kernel may write any dirty page at any moment, in any order:
    /// this makes it do so within the few seconds of a recording. `None`: only what the kernel does by itself.
    pub writeback: Option<Duration>,
}

/// Where the workload works.
#[derive(Clone, Debug)]
pub struct Site {
    /// The mounted filesystem, empty.
    pub mnt: PathBuf,
    /// File that takes marks: each line written to it goes into the log, in order with the disk's writes.
    pub mark: PathBuf,
}

/// Options that make a filesystem interesting to crash: commits every second, and no refusal of a known UUID.
pub fn default_options(filesystem: &str) -> &'static str {
    match filesystem {
        "xfs" => "nouuid",
        _ => "commit=1",
    }
}

impl Recording {
    /// A recording on `filesystem` with sizes and options that suit it.
    pub fn new(filesystem: &str) -> Recording {
        Recording {
            filesystem: filesystem.to_string(),
            size: 512 << 20,
            options: None,
            writeback: Some(Duration::from_millis(2)),
        }
    }

    /// Records `workload` into a log at `log`. Needs root, and a mount name space that may be changed (see
    /// [`sys::isolate`]). The error of the workload comes back as it is; then the log has no end and does not open.
    pub fn run(&self, log: &Path, workload: impl FnOnce(&Site) -> Result<()>) -> Result<()> {
        let options = self.options.clone().unwrap_or_else(|| default_options(&self.filesystem).to_string());
        let header = Header { size: self.size, filesystem: self.filesystem.clone(), options };
        let dir = tempfile::Builder::new().prefix("crashdisk.").tempdir();
        let dir = dir.context("make directory in", std::env::temp_dir())?;
        let place = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).context("make directory", &path).map(|()| path)
        };
        let (fuse, mnt, raw) = (place("fuse")?, place("mnt")?, place("raw")?);

        let sink = Sink::File(LogWriter::create(log, &header)?);
        let disk = Disk::mount(&fuse, Image::new(self.size), sink)?;
        let device = LoopDevice::attach(&disk.file())?;
        make_filesystem(&self.filesystem, device.path())?;
        let mount = Mount::new(device.path(), &mnt, &self.filesystem, &header.options)?;
        // Write-back goes through a second view of the tree, which stays on this filesystem whatever the workload
        // mounts over its directories.
        let view = Mount::bind(&mnt, &raw)?;
        sys::sync_filesystem(&mnt)?;
        disk.mark(START)?;
        let writeback = self.writeback.map(|pause| Writeback::start(&raw, pause));
        let site = Site { mnt, mark: disk.mark_file() };
        let outcome = workload(&site);
        drop(writeback);
        if outcome.is_ok() {
            disk.mark(END)?;
        }
        let sink = disk.stop_log()?;
        let finished = if let Sink::File(log) = sink { log.finish() } else { Ok(()) };
        view.unmount()?;
        let unmounted = mount.unmount();
        let path = device.path().to_path_buf();
        drop(device);
        if self.filesystem == "btrfs" {
            sys::btrfs_forget(&path);
        }
        outcome.and(finished).and(unmounted)
    }
}

/// Makes a filesystem on a device with its own tools.
fn make_filesystem(filesystem: &str, device: &Path) -> Result<()> {
    let arguments: &[&str] = match filesystem {
        "ext4" => &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
        "xfs" | "btrfs" => &["-q", "-f"],
        _ => {
            let error = Error::new(Kind::Unsupported, format!("make filesystem {filesystem:?}"));
            return Err(error.remedy("use ext4, xfs or btrfs"));
        }
    };
    let tool = format!("mkfs.{filesystem}");
    let output = Command::new(&tool).args(arguments).arg(device).output().context("run", &tool)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
    Err(Error::new(Kind::Invalid, "make filesystem on").at(device).because(format!("{tool}: {said}")))
}

/// A thread that starts write-back of random files, without waiting for it and without any flush.
struct Writeback {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writeback {
    fn start(root: &Path, pause: Duration) -> Writeback {
        let stop = Arc::new(AtomicBool::new(false));
        let (root, stopped) = (root.to_path_buf(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut rng = fastrand::Rng::new();
            while !stopped.load(Ordering::Relaxed) {
                if let Some(file) = random_file(&root, &mut rng) {
                    start_writeback(&file);
                }
                std::thread::sleep(pause);
            }
        });
        Writeback { stop, thread: Some(thread) }
    }
}

impl Drop for Writeback {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One regular file somewhere below `dir`: a random step at each level, so files beside many others are rarer.
fn random_file(dir: &Path, rng: &mut fastrand::Rng) -> Option<PathBuf> {
    let entries: Vec<_> = std::fs::read_dir(dir).ok()?.filter_map(|e| e.ok()).collect();
    let entry = rng.choice(entries)?;
    let kind = entry.file_type().ok()?;
    match (kind.is_dir(), kind.is_file()) {
        (true, _) => random_file(&entry.path(), rng),
        (_, true) => Some(entry.path()),
        _ => None,
    }
}

fn start_writeback(path: &Path) {
    use std::os::fd::AsRawFd;
    // The workload may delete the file at any moment: then there is nothing to write back.
    let Ok(file) = std::fs::File::open(path) else { return };
    // SAFETY: the descriptor is open during the call.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}
