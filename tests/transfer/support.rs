//! Files, options and qemu-img for the tests of this directory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clonefs::client::transfer::{self, Cancel, ExportFormat, ExportOptions, ExportReport, ImportOptions, ImportReport};
use clonefs::error::Result;

use crate::fixtures::{self, Backing, Disk};

/// A directory that goes when it is dropped, and short names for files in it.
pub struct Dir(tempfile::TempDir);

impl Dir {
    pub fn new() -> Dir {
        Dir(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A sparse file of `size` bytes with some data at each of `places`.
    pub fn sparse(&self, name: &str, size: u64, places: &[u64]) -> PathBuf {
        let path = self.path(name);
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        for &at in places {
            file.write_all_at(&noise(5000.min(size - at) as usize, at), at).unwrap();
        }
        path
    }

    /// Names in it, in order.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// A pool on a filesystem of its own, mounted at a directory of its own.
pub struct Pool {
    pub dir: Dir,
    pub disk: Disk,
}

/// Runs `test` on a new, empty pool on each kind of filesystem, mounted with these options.
pub fn on_each(options: &[&str], test: impl Fn(Pool)) {
    if !fixtures::ready() {
        return;
    }
    for kind in Backing::ALL {
        eprintln!("-- {kind:?}");
        let disk = Disk::new(kind);
        std::fs::create_dir(disk.root().join("pool")).unwrap();
        test(Pool::mount(disk, options));
    }
}

impl Pool {
    fn mount(disk: Disk, options: &[&str]) -> Pool {
        let pool = Pool { dir: Dir::new(), disk };
        let arguments = [&["mount"], options].concat();
        clonefs(&arguments, &[&pool.disk.root().join("pool"), &pool.dir.path("")]);
        pool
    }

    /// Unmounts it and mounts it with other options.
    pub fn mount_again(&self, options: &[&str]) {
        clonefs(&["unmount"], &[&self.dir.path("")]);
        let arguments = [&["mount"], options].concat();
        clonefs(&arguments, &[&self.disk.root().join("pool"), &self.dir.path("")]);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // It waits for the daemon, which lives as long as any mount namespace has a copy of the mount.
        let unmount = Command::new("timeout")
            .args(["60", env!("CARGO_BIN_EXE_clonefs"), "unmount"])
            .arg(self.dir.path(""))
            .output();
        if !unmount.is_ok_and(|o| o.status.success()) {
            let _ = Command::new("umount").arg("-l").arg(self.dir.path("")).output();
        }
    }
}

/// Runs clonefs and expects success.
pub fn clonefs(words: &[&str], paths: &[&Path]) {
    let output = Command::new(env!("CARGO_BIN_EXE_clonefs")).args(words).args(paths).output().unwrap();
    assert!(output.status.success(), "clonefs {words:?} {paths:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Bytes that do not compress and are never zero in a row, the same for the same seed.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    fixtures::noise(seed, len)
}

/// Bytes on disk.
pub fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().blocks() * 512
}

pub fn export_options(source: &Path, out: &Path, format: ExportFormat) -> ExportOptions {
    ExportOptions {
        source: source.to_path_buf(),
        out: out.to_path_buf(),
        format,
        compress: None,
        cluster_size: None,
        force: false,
        cancel: Cancel::default(),
    }
}

pub fn export(options: ExportOptions) -> Result<ExportReport> {
    transfer::export(options, &mut |_: u64, _: u64| ())
}

pub fn import_options(image: &Path, dst: &Path) -> ImportOptions {
    ImportOptions {
        image: image.to_path_buf(),
        dst: dst.to_path_buf(),
        format: None,
        allow_backing: false,
        force: false,
        cancel: Cancel::default(),
    }
}

pub fn import(options: ImportOptions) -> Result<ImportReport> {
    transfer::import(options, &mut |_: u64, _: u64| ())
}

/// Runs qemu-img and expects success.
pub fn qemu_img(arguments: &[&str]) -> Output {
    let output = Command::new("qemu-img").args(arguments).output().expect("apt install qemu-utils");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {arguments:?}: {text}");
    output
}

/// Makes an image of the format that its name ends with from a raw file.
pub fn convert(raw: &Path, image: &Path, extra: &[&str]) {
    let format = image.extension().unwrap().to_str().unwrap();
    let names = [raw.to_str().unwrap(), image.to_str().unwrap()];
    qemu_img(&[&["convert", "-f", "raw", "-O", format], extra, &names].concat());
}

/// Expects that qemu-img finds the image clean, and the same disk in it as in the raw file.
pub fn assert_same_disk(image: &Path, format: &str, raw: &Path) {
    let (image, raw) = (image.to_str().unwrap(), raw.to_str().unwrap());
    if format != "raw" {
        qemu_img(&["check", "-f", format, image]);
    }
    qemu_img(&["compare", "-f", format, "-F", "raw", image, raw]);
}
