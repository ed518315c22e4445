//! Loop devices, mounts and name spaces: what the machine needs from the kernel, given back when it is dropped.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clonefs::error::{Context, Error, Kind, Result};

/// Longest wait for something that the kernel does in its own time, such as the last close of a device.
const PATIENCE: Duration = Duration::from_secs(10);

/// What this process lacks to record and replay; `None` when it has all.
pub fn missing() -> Option<&'static str> {
    // SAFETY: geteuid takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return Some("root");
    }
    ["/dev/fuse", "/dev/loop-control"].into_iter().find(|device| !Path::new(device).exists())
}

/// Moves this thread (and all threads and processes that it starts from now on) into a mount name space of its own:
/// whatever is mounted there is gone when they are, also after kill -9. Needs root.
pub fn isolate() -> Result<()> {
    // SAFETY: unshare takes no pointers.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    check(done).context("make a mount name space", "/")?;
    let (none, root) = (c"none".as_ptr(), c"/".as_ptr());
    // SAFETY: the strings end in NUL and outlive the call; a change of propagation takes no type and no data.
    let done = unsafe { libc::mount(none, root, std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE, std::ptr::null()) };
    check(done).context("make mounts private", "/")
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Asks all work to stop at the next state. A signal handler may call this.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// Whether [`interrupt`] was called.
pub fn was_interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|e| Error::new(Kind::Invalid, "use path").at(path).because(e))
}

/// Unmounts without waiting for anyone; for clean-up.
pub(crate) fn detach(path: &Path) {
    if let Ok(path) = c_path(path) {
        // SAFETY: the path ends in NUL and outlives the call.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

// ---- loop devices --------------------------------------------------------------------------------------------------

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_config` of `linux/loop.h`, with the `struct loop_info64` in it.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    device_inode_rdevice_offset_sizelimit: [u64; 5],
    number: u32,
    encrypt_type_and_key_size: [u32; 2],
    flags: u32,
    names_and_key: [u8; 64 + 64 + 32],
    init: [u64; 2],
    reserved: [u64; 8],
}

/// A block device over a file. The kernel detaches it when it is no longer mounted and this is dropped.
pub struct LoopDevice {
    path: PathBuf,
    _device: File,
}

impl LoopDevice {
    /// Attaches `file` to a free loop device, with direct I/O.
    pub fn attach(file: &Path) -> Result<LoopDevice> {
        let backing = OpenOptions::new().read(true).write(true).open(file).context("open disk", file)?;
        let control_path = Path::new("/dev/loop-control");
        let control = OpenOptions::new().read(true).write(true).open(control_path);
        let control = control.context("open", control_path)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            // SAFETY: this request takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            check(number).context("find a free loop device", control_path)?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            match configure(&path, &backing) {
                Ok(device) => return Ok(LoopDevice { path, _device: device }),
                // Someone else was faster, or its node is not there yet.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::ENOENT | libc::ENXIO)) => {
                    if Instant::now() > deadline {
                        return Err(e).context("attach loop device", path);
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(e) => return Err(e).context("attach loop device", path),
            }
        }
    }

    /// Path of the device, such as `/dev/loop3`.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn configure(path: &Path, backing: &File) -> io::Result<File> {
    let device = OpenOptions::new().read(true).write(true).open(path)?;
    // SAFETY: every field of the structure is an integer or an array of integers, for which zeros are valid.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = backing.as_raw_fd() as u32;
    config.flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO;
    // SAFETY: the request reads one `struct loop_config`, which `config` is.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &config) })?;
    Ok(device)
}

// ---- mounts --------------------------------------------------------------------------------------------------------

/// A mounted filesystem; unmounted when it is dropped.
pub struct Mount {
    target: Option<PathBuf>,
}

impl Mount {
    /// Mounts `device` on the directory `target`.
    pub fn new(device: &Path, target: &Path, filesystem: &str, options: &str) -> Result<Mount> {
        let kind = c_path(Path::new(filesystem))?;
        let data = c_path(Path::new(options))?;
        let (from, to) = (c_path(device)?, c_path(target)?);
        // SAFETY: the strings end in NUL and outlive the call.
        let done = unsafe { libc::mount(from.as_ptr(), to.as_ptr(), kind.as_ptr(), 0, data.as_ptr().cast()) };
        check(done).context("mount", device)?;
        Ok(Mount { target: Some(target.to_path_buf()) })
    }

    /// Shows the tree under `source` at `target` as well, without what is mounted in it later.
    pub fn bind(source: &Path, target: &Path) -> Result<Mount> {
        let (from, to) = (c_path(source)?, c_path(target)?);
        let none = std::ptr::null();
        // SAFETY: the strings end in NUL and outlive the call; a bind mount takes no type and no data.
        let done = unsafe { libc::mount(from.as_ptr(), to.as_ptr(), none, libc::MS_BIND, none.cast()) };
        check(done).context("bind mount", target)?;
        Ok(Mount { target: Some(target.to_path_buf()) })
    }

    /// Unmounts it, and waits for that. An error when someone still uses it after ten seconds.
    pub fn unmount(mut self) -> Result<()> {
        let Some(target) = self.target.take() else { return Ok(()) };
        let path = c_path(&target)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            // SAFETY: the path ends in NUL and outlives the call.
            match check(unsafe { libc::umount2(path.as_ptr(), 0) }) {
                Ok(()) => return Ok(()),
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(e) => {
                    detach(&target);
                    let hint = "a process still uses it: the command must end all that it started";
                    return Err(e).context("unmount", &target).map_err(|e| e.remedy(hint));
                }
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(target) = &self.target {
            detach(target);
        }
    }
}

/// Makes btrfs forget what it remembers of a device: it refuses to mount an older state of a filesystem while it knows
/// a newer one under another name. Does nothing where there is no btrfs.
pub fn btrfs_forget(device: &Path) {
    /// `_IOW(0x94, 5, struct btrfs_ioctl_vol_args)`
    const BTRFS_IOC_FORGET_DEV: libc::c_ulong = 0x5000_9405;
    let Ok(control) = OpenOptions::new().read(true).write(true).open("/dev/btrfs-control") else { return };
    let mut arguments = [0u8; 4096];
    let name = device.as_os_str().as_bytes();
    arguments[8..8 + name.len()].copy_from_slice(name);
    // SAFETY: the request reads a structure of 4096 bytes (a number, then a path that ends in NUL), which this is.
    unsafe { libc::ioctl(control.as_raw_fd(), BTRFS_IOC_FORGET_DEV, arguments.as_ptr()) };
}

/// Writes everything on the filesystem of `path` to its disk.
pub fn sync_filesystem(path: &Path) -> Result<()> {
    let dir = File::open(path).context("open", path)?;
    // SAFETY: the descriptor is open during the call.
    check(unsafe { libc::syncfs(dir.as_raw_fd()) }).context("sync filesystem", path)
}
