//! Export and import of disk images: a volume out as raw, qcow2 or vmdk, an image in as a raw volume.
//!
//! [`export`] reads one point in time of a volume, through one descriptor that is pinned with
//! [`IOC_PIN`](crate::protocol::IOC_PIN), even while the volume is being written. [`import`] makes a raw sparse file of an
//! image; where that file lies in a mounted pool it is a volume that can be cloned.
//!
//! Guarantees of both:
//! - The output appears under its name complete and durable, or not at all: it is written without a name (or under a
//!   hidden temporary one), synced, given its name in one step, and its directory is synced.
//! - An output name that is a symbolic link is refused, with `force` too. Without `force` an existing file is refused
//!   in the step that would have replaced it, so no race can lose a file.
//! - Nothing is printed, and a set [`Cancel`] flag ends the work within a second, with nothing left behind.
//!
//! **Why qemu-img writes and reads the formats.** The crate `imago` 0.2.6, by a maintainer of QEMU's block layer, reads
//! and writes qcow2 in Rust, but writes no compressed clusters and reads no zstd, and it knows neither vhdx nor vdi nor
//! how to write vmdk: qemu-img would be needed beside it, and two mechanisms are worse than one. qemu-img knows all of
//! them, is on every machine that runs virtual machines, is what the result will be read by, and meets a hostile image
//! in a process of its own with limits. What it lacks is a way to read a descriptor (it has no `--add-fd`, and opening
//! `/proc/self/fd/N` makes a new descriptor that is not pinned); `nbd.rs` is that way. Raw files need no qemu-img.

mod chain;
mod copy;
mod export;
pub mod image;
mod image_in_use;
mod import;
mod nbd;
mod output;
mod qemu;
mod source;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Kind, Result};

/// Told how far the work is. A closure `FnMut(u64, u64)` will do.
pub trait Progress {
    /// `done` of `total` bytes of the volume are dealt with; holes count as done. Called about ten times a second,
    /// never with less than before.
    fn update(&mut self, done: u64, total: u64);
}

impl<F: FnMut(u64, u64)> Progress for F {
    fn update(&mut self, done: u64, total: u64) {
        self(done, total);
    }
}

/// Ends an export or import early: keep a clone and [`set`](Cancel::set) it, from a signal handler too.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks the work to stop; it fails with [`Kind::Interrupted`].
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to stop.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What [`export`] can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// The bytes themselves, sparse.
    Raw,
    /// QEMU's copy-on-write format, version 3.
    Qcow2,
    /// VMware's format, subformat streamOptimized (compressed, for uploads).
    Vmdk,
}

/// What [`import`] can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportFormat {
    /// The bytes themselves.
    Raw,
    /// QEMU's format.
    Qcow2,
    /// VMware's format, in one file.
    Vmdk,
    /// Hyper-V's format.
    Vhdx,
    /// VirtualBox's format.
    Vdi,
}

/// How [`export`] compresses; qcow2 only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Small and fast; read by QEMU 5.1 and later.
    Zstd,
    /// Read by every QEMU.
    Zlib,
}

/// What to export, and how.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// The volume: a regular file, in a mounted pool or anywhere else.
    pub source: PathBuf,
    /// The file to make.
    pub out: PathBuf,
    /// Its format.
    pub format: ExportFormat,
    /// Compress; qcow2 only.
    pub compress: Option<Compression>,
    /// Bytes in a cluster, a power of two from 512 to 2M; qcow2 only. `None`: 64K.
    pub cluster_size: Option<u64>,
    /// Replace `out` if it exists and is a regular file.
    pub force: bool,
    /// Ends the work early.
    pub cancel: Cancel,
}

/// Which moment of the source was exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointInTime {
    /// The volume as it was at one moment after the call began, whatever was written meanwhile.
    Exact,
    /// The source is not on a clonefs mount, or its pool cannot clone: writes made during the export are in it or not,
    /// piece by piece.
    NotGuaranteed,
}

/// What [`export`] did.
#[derive(Clone, Copy, Debug)]
pub struct ExportReport {
    /// Size of the volume in bytes.
    pub size: u64,
    /// Bytes that the new file occupies on its filesystem.
    pub allocated: u64,
    /// Which moment of the source it is.
    pub point_in_time: PointInTime,
    /// The new file shares its blocks with the source (reflink): nothing was copied.
    pub reflinked: bool,
}

/// What to import, and how.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// The image file.
    pub image: PathBuf,
    /// The raw file to make.
    pub dst: PathBuf,
    /// Format of `image`; `None` goes by its extension ([`ImportFormat::from_path`]), never by its content.
    pub format: Option<ImportFormat>,
    /// Read the backing and data files that a qcow2 image names.
    pub allow_backing: bool,
    /// Replace `dst` if it exists and is a regular file.
    pub force: bool,
    /// Ends the work early.
    pub cancel: Cancel,
}

/// What [`import`] did.
#[derive(Clone, Copy, Debug)]
pub struct ImportReport {
    /// Format that the image was read as.
    pub format: ImportFormat,
    /// Size of the new file in bytes.
    pub size: u64,
    /// Bytes that it occupies on its filesystem.
    pub allocated: u64,
    /// It lies on a clonefs mount, so it can be cloned.
    pub in_pool: bool,
}

impl ImportFormat {
    /// The format that the extension of `path` stands for: raw, img, qcow2, vmdk, vhdx or vdi, in any case.
    pub fn from_path(path: &Path) -> Option<ImportFormat> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        if extension == "img" { Some(ImportFormat::Raw) } else { extension.parse().ok() }
    }
}

impl FromStr for ExportFormat {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<ExportFormat, String> {
        match text {
            "raw" => Ok(ExportFormat::Raw),
            "qcow2" => Ok(ExportFormat::Qcow2),
            "vmdk" => Ok(ExportFormat::Vmdk),
            _ => Err(format!("{text:?} is not a format that can be written: raw, qcow2 or vmdk")),
        }
    }
}

impl fmt::Display for ExportFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ExportFormat::Raw => "raw",
            ExportFormat::Qcow2 => "qcow2",
            ExportFormat::Vmdk => "vmdk",
        })
    }
}

impl FromStr for ImportFormat {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<ImportFormat, String> {
        match text {
            "raw" => Ok(ImportFormat::Raw),
            "qcow2" => Ok(ImportFormat::Qcow2),
            "vmdk" => Ok(ImportFormat::Vmdk),
            "vhdx" => Ok(ImportFormat::Vhdx),
            "vdi" => Ok(ImportFormat::Vdi),
            _ => Err(format!("{text:?} is not a format that can be read: raw, qcow2, vmdk, vhdx or vdi")),
        }
    }
}

impl fmt::Display for ImportFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ImportFormat::Raw => "raw",
            ImportFormat::Qcow2 => "qcow2",
            ImportFormat::Vmdk => "vmdk",
            ImportFormat::Vhdx => "vhdx",
            ImportFormat::Vdi => "vdi",
        })
    }
}

impl FromStr for Compression {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Compression, String> {
        match text {
            "zstd" => Ok(Compression::Zstd),
            "zlib" => Ok(Compression::Zlib),
            _ => Err(format!("{text:?} is not a compression: zstd or zlib")),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Compression::Zstd => "zstd",
            Compression::Zlib => "zlib",
        })
    }
}

/// Writes one point in time of a volume to a new file. See the module for what it guarantees.
///
/// Errors: [`Kind::Exists`] for an `out` that exists without `force`; [`Kind::Invalid`] for options that do not go
/// together, an `out` that is a symbolic link or no regular file, a source that is none; [`Kind::NotFound`];
/// [`Kind::Unsupported`] where qemu-img is needed and missing; [`Kind::Interrupted`]; [`Kind::Io`].
pub fn export(options: ExportOptions, progress: &mut dyn Progress) -> Result<ExportReport> {
    export::export(&options, progress)
}

/// Makes a raw sparse file of a disk image. See the module for what it guarantees.
///
/// Errors: as [`export`], and [`Kind::Invalid`] for an image that is not of its format, is damaged, or names other
/// files without leave; [`Kind::TooLarge`] for a virtual size over [`MAX_VOLUME`](crate::units::MAX_VOLUME);
/// [`Kind::Busy`] for an image that a virtual machine has open for writing.
pub fn import(options: ImportOptions, progress: &mut dyn Progress) -> Result<ImportReport> {
    import::import(&options, progress)
}

/// The error of work that was cancelled.
fn interrupted(operation: &'static str, path: &Path) -> Error {
    Error::new(Kind::Interrupted, operation).at(path)
}
