//! A volume out.

use std::os::fd::RawFd;

use serde_json::json;

use super::copy;
use super::nbd::Export;
use super::output::{Output, fd_path};
use super::qemu::{QemuImg, Target, nbd_node};
use super::source::Source;
use super::{Compression, ExportFormat, ExportOptions, ExportReport, PointInTime, Progress};
use crate::error::{Error, Kind, Result};

const OPERATION: &str = "export";

/// Bytes in a qcow2 cluster.
const CLUSTERS: std::ops::RangeInclusive<u64> = 512..=2 << 20;

pub fn export(options: &ExportOptions, progress: &mut dyn Progress) -> Result<ExportReport> {
    check_options(options)?;
    let source = Source::open(&options.source, OPERATION)?;
    let output = Output::create(&options.out, &source, options.force, OPERATION)?;
    progress.update(0, source.size());
    let reflinked = match options.format {
        ExportFormat::Raw if !source.is_pinned() => copy::reflink(&source, &output),
        _ => None,
    };
    match options.format {
        ExportFormat::Raw if reflinked.is_some() => {}
        ExportFormat::Raw => copy::copy(&source, &output, &options.cancel, progress, OPERATION)?,
        ExportFormat::Vmdk if source.size() == 0 => {
            return Err(Error::new(Kind::Invalid, OPERATION).at(source.path()).because("vmdk has no empty disks"));
        }
        ExportFormat::Qcow2 | ExportFormat::Vmdk => convert(options, &source, &output, progress)?,
    }
    let size = reflinked.unwrap_or(source.size());
    progress.update(size, size);
    let allocated = output.publish(&options.cancel)?;
    let point_in_time = if source.is_one_moment() { PointInTime::Exact } else { PointInTime::NotGuaranteed };
    Ok(ExportReport { size, allocated, point_in_time, reflinked: reflinked.is_some() })
}

fn check_options(options: &ExportOptions) -> Result<()> {
    let invalid = |what: String| Err(Error::new(Kind::Invalid, OPERATION).at(&options.out).because(what));
    if options.format != ExportFormat::Qcow2 {
        if options.compress.is_some() {
            return invalid(format!("{} has no choice of compression: only qcow2 has", options.format));
        }
        if options.cluster_size.is_some() {
            return invalid(format!("{} has no cluster size: only qcow2 has one", options.format));
        }
    }
    match options.cluster_size {
        Some(size) if !size.is_power_of_two() || !CLUSTERS.contains(&size) => {
            invalid(format!("a cluster of {size} bytes: it has to be a power of two from 512 to 2M"))
        }
        _ => Ok(()),
    }
}

/// Has qemu-img write the output.
fn convert(options: &ExportOptions, source: &Source, output: &Output, progress: &mut dyn Progress) -> Result<()> {
    let qemu = QemuImg {
        operation: OPERATION,
        path: source.path(),
        output: Some(Target { file: output.file(), max_len: None, max_allocated: None }),
        cancel: &options.cancel,
    };
    let size = source.size();
    let exports = [Export::new(source, &[])];
    let arguments = |fds: &[RawFd]| arguments(options, fds, &fd_path(output.file()));
    let mut percent = |p: f64| progress.update((size as f64 * p / 100.0) as u64, size);
    let finished = qemu.run(&exports, arguments, &mut percent)?;
    if finished.code == 0 { Ok(()) } else { Err(qemu.failed(&finished, output)) }
}

fn arguments(options: &ExportOptions, fds: &[RawFd], target: &str) -> Vec<String> {
    let node = json!({"driver": "raw", "read-only": true, "file": nbd_node(fds[0])});
    let mut arguments: Vec<String> = ["convert", "-p", "-O"].map(str::to_owned).to_vec();
    arguments.push(options.format.to_string());
    let settings = match options.format {
        ExportFormat::Vmdk => "subformat=streamOptimized".to_owned(),
        _ => {
            let cluster = options.cluster_size.unwrap_or(64 << 10);
            let kind = options.compress.map(|c| match c {
                Compression::Zstd => ",compression_type=zstd",
                Compression::Zlib => ",compression_type=zlib",
            });
            format!("compat=1.1,cluster_size={cluster}{}", kind.unwrap_or_default())
        }
    };
    if options.compress.is_some() {
        arguments.push("-c".to_owned());
    }
    arguments.extend(["-o".to_owned(), settings, format!("json:{node}"), target.to_owned()]);
    arguments
}
