//! An image in.

use serde_json::Value;

use super::chain::{Image, refused};
use super::output::{Output, fd_path, write_error};
use super::qemu::{Finished, QemuImg, Target};
use super::{ImportFormat, ImportOptions, ImportReport, Progress, copy, image, source};
use crate::error::{Error, Kind, Result};
use crate::units::format_size;

const OPERATION: &str = "import";

/// What a file may occupy on disk beyond its data: preallocation and metadata of the filesystem.
const SLACK: u64 = 64 << 20;

pub fn import(options: &ImportOptions, progress: &mut dyn Progress) -> Result<ImportReport> {
    let format = options.format.or_else(|| ImportFormat::from_path(&options.image)).ok_or_else(|| {
        let cause = "its name does not say which format it has, and its content is not asked";
        let remedy = "--format raw, qcow2, vmdk, vhdx or vdi";
        Error::new(Kind::Invalid, OPERATION).at(&options.image).because(cause).remedy(remedy)
    })?;
    let image = Image::open(&options.image, format, options.allow_backing, OPERATION)?;
    let output = Output::create(&options.dst, image.source(), options.force, OPERATION)?;
    let size = match format {
        ImportFormat::Raw => copy_raw(options, &image, &output, progress)?,
        _ => convert(options, &image, &output, progress)?,
    };
    progress.update(size, size);
    let in_pool = source::on_clonefs(output.file());
    let allocated = output.publish(&options.cancel)?;
    Ok(ImportReport { format, size, allocated, in_pool })
}

fn copy_raw(options: &ImportOptions, image: &Image, output: &Output, progress: &mut dyn Progress) -> Result<u64> {
    let source = image.source();
    progress.update(0, source.size());
    let reflinked = if source.is_pinned() { None } else { copy::reflink(source, output) };
    if reflinked.is_none() {
        copy::copy(source, output, &options.cancel, progress, OPERATION)?;
    }
    Ok(reflinked.unwrap_or(source.size()))
}

/// Has qemu-img check the image and write the output. Returns the size.
fn convert(options: &ImportOptions, image: &Image, output: &Output, progress: &mut dyn Progress) -> Result<u64> {
    let mut qemu = QemuImg { operation: OPERATION, path: &options.image, output: None, cancel: &options.cancel };
    let size = virtual_size(&qemu, image)?;
    progress.update(0, size);
    for part in image.all().into_iter().filter(|i| i.format() != ImportFormat::Raw) {
        check_tables(&qemu, part)?;
    }
    let max_allocated = match image.format() {
        // qemu-img does not know where a vhdx image has no data, so that it cannot be measured. It is not compressed.
        ImportFormat::Vhdx => Some(image.source().size() + SLACK),
        _ => check_space(&qemu, image, output).map(|()| None)?,
    };
    // The limit holds should the image change under our hands: nothing past this size is ever written.
    qemu.output = Some(Target { file: output.file(), max_len: Some(size), max_allocated });
    let arguments = |fds: &[_]| {
        // Zeros become holes in the same units as in a raw copy.
        let words = ["convert", "-p", "-S", "64k", "-O", "raw", &image.node(fds), &fd_path(output.file())];
        words.map(str::to_owned).to_vec()
    };
    let mut percent = |p: f64| progress.update((size as f64 * p / 100.0) as u64, size);
    let finished = qemu.run(&image.exports(), arguments, &mut percent)?;
    if finished.code != 0 {
        return Err(qemu.failed(&finished, output));
    }
    let written = output.file().metadata().map_err(|e| Error::io(OPERATION, e).at(output.path()))?.len();
    if written != size {
        let cause = format!("its size was {size} bytes and is {written}: it was changed meanwhile");
        return Err(Error::new(Kind::Busy, OPERATION).at(&options.image).because(cause));
    }
    Ok(size)
}

/// What qemu-img says in JSON in answer to a question about the image.
fn answer(qemu: &QemuImg<'_>, finished: Finished) -> Result<Value> {
    if finished.code != 0 {
        return Err(qemu.rejected(&finished));
    }
    serde_json::from_slice(&finished.stdout).map_err(|_| unexpected(qemu, &finished.message))
}

fn question(words: &[&str], node: String) -> Vec<String> {
    words.iter().map(|&w| w.to_owned()).chain(["--output=json".to_owned(), node]).collect()
}

fn unexpected(qemu: &QemuImg<'_>, what: &str) -> Error {
    let cause = format!("qemu-img gave an answer that is not understood: {what}");
    Error::new(Kind::Unsupported, OPERATION)
        .at(qemu.path)
        .because(cause)
        .remedy("apt install qemu-utils (5.2 or later)")
}

fn virtual_size(qemu: &QemuImg<'_>, image: &Image) -> Result<u64> {
    // Asked for this, qemu-img opens no backing file and does not take one either.
    let arguments = |fds: &[_]| question(&["info"], image.own_node(fds));
    let answer = answer(qemu, qemu.run(&image.own_exports(), arguments, &mut |_| ())?)?;
    let size = answer["virtual-size"].as_u64().ok_or_else(|| unexpected(qemu, "no virtual-size"))?;
    image::check_size(size).map_err(|r| refused(r, image.format(), qemu.path, OPERATION))?;
    Ok(size)
}

/// Has qemu-img follow all tables of one image: it reads zeros, without an error, where one leads past the end of the
/// file.
fn check_tables(qemu: &QemuImg<'_>, image: &Image) -> Result<()> {
    const LEAKS_ONLY: i32 = 3;
    const NO_CHECK_FOR_THIS_FORMAT: i32 = 63;
    let arguments = |fds: &[_]| vec!["check".to_owned(), "-q".to_owned(), image.own_node(fds)];
    let finished = qemu.run(&image.own_exports(), arguments, &mut |_| ())?;
    match finished.code {
        0 | LEAKS_ONLY | NO_CHECK_FOR_THIS_FORMAT => Ok(()),
        _ => Err(qemu.rejected(&finished).at(image.source().path())),
    }
}

/// Refuses what will not fit before it fills the disk of everybody else.
fn check_space(qemu: &QemuImg<'_>, image: &Image, output: &Output) -> Result<()> {
    // As qcow2, since measuring for raw counts holes too. It is about the data that is not known to be zeros.
    let arguments = |fds: &[_]| question(&["measure", "-O", "qcow2"], image.node(fds));
    let answer = answer(qemu, qemu.run(&image.exports(), arguments, &mut |_| ())?)?;
    let needed = answer["required"].as_u64().ok_or_else(|| unexpected(qemu, "no required size"))?;
    let stored: u64 = image.all().into_iter().map(|i| i.source().allocated()).sum();
    let free = output.free_bytes()?;
    // Data that is stored in full may still be zeros, which take no space; compressed data is not.
    if needed > free && needed > stored {
        let full = write_error(std::io::Error::from_raw_os_error(libc::ENOSPC), output.path(), OPERATION);
        let (needed, free) = (format_size(needed), format_size(free));
        return Err(full.remedy(format!("it needs {needed} and {free} are free: free some space there")));
    }
    Ok(())
}
