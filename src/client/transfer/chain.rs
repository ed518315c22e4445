//! An image with the files that it reads: opened here, each under an explicit name and format, and handed to qemu-img
//! as descriptors. qemu-img never resolves a name that stands in an image.

use std::io;
use std::os::fd::RawFd;
use std::path::Path;

use serde_json::{Value, json};

use super::image::{self, Header, PREFIX, Reference, Refusal};
use super::nbd::Export;
use super::qemu::nbd_node;
use super::source::Source;
use super::{ImportFormat, image_in_use};
use crate::error::{Error, Kind, Result};
use crate::units::{MAX_VOLUME, format_size};

/// Longest chain of backing files; a loop ends here too.
const MAX_DEPTH: usize = 64;

/// An image that has been checked, with those it needs.
#[derive(Debug)]
pub struct Image {
    source: Source,
    format: ImportFormat,
    prefix: Vec<u8>,
    granule: Option<u64>,
    backing: Option<Box<Image>>,
    data_file: Option<Box<Image>>,
}

impl Image {
    /// Opens and checks `path`, and what it names if `allow_backing`.
    pub fn open(path: &Path, format: ImportFormat, allow_backing: bool, operation: &'static str) -> Result<Image> {
        Image::open_at_depth(path, format, allow_backing, operation, 0)
    }

    fn open_at_depth(
        path: &Path,
        format: ImportFormat,
        allow_backing: bool,
        operation: &'static str,
        depth: usize,
    ) -> Result<Image> {
        let fail = |kind| Error::new(kind, operation).at(path);
        if depth > MAX_DEPTH {
            return Err(fail(Kind::Invalid).because(format!("more than {MAX_DEPTH} files lie above this one")));
        }
        let source = Source::open(path, operation)?;
        if !source.is_pinned() && image_in_use::lock(source.file()) == image_in_use::State::Written {
            let remedy = "shut the virtual machine down, or import a snapshot";
            return Err(fail(Kind::Busy).because("a virtual machine has it open for writing").remedy(remedy));
        }
        let mut prefix = match format {
            ImportFormat::Raw => Vec::new(),
            _ => read_prefix(&source).map_err(|e| Error::io(operation, e).at(path))?,
        };
        let header = image::check(format, &prefix, source.size()).map_err(|r| refused(r, format, path, operation))?;
        if format == ImportFormat::Vdi {
            check_vdi_map(&source, &prefix, operation)?;
        }
        let Header { backing, data_file, granule } = header;
        if format == ImportFormat::Qcow2 {
            image::forget_backing(&mut prefix);
        }
        let follow = |what: &str, reference: Option<Reference>| {
            let Some(reference) = reference else { return Ok(None) };
            if !allow_backing {
                let cause = format!("it names a {what} {:?}, which is not read without leave", reference.name);
                let remedy = "--allow-backing reads it: give that for images that you trust";
                return Err(fail(Kind::Invalid).because(cause).remedy(remedy));
            }
            let (name, format) = resolve(path, what, &reference, operation)?;
            Image::open_at_depth(&name, format, allow_backing, operation, depth + 1).map(|i| Some(Box::new(i)))
        };
        let (backing, data_file) = (follow("backing file", backing)?, follow("data file", data_file)?);
        Ok(Image { source, format, prefix, granule, backing, data_file })
    }

    /// The file.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Each image of the chain; the order is that of [`Image::exports`] and of the descriptors for [`Image::node`].
    pub fn all(&self) -> Vec<&Image> {
        let mut all = vec![self];
        for below in [&self.data_file, &self.backing].into_iter().flatten() {
            all.extend(below.all());
        }
        all
    }

    /// Servers for all files.
    pub fn exports(&self) -> Vec<Export<'_>> {
        self.all().into_iter().map(|i| Export::new(&i.source, &i.prefix).with_granule(i.granule)).collect()
    }

    /// Servers for this image without its backing file.
    pub fn own_exports(&self) -> Vec<Export<'_>> {
        let own = [Some(self), self.data_file.as_deref()];
        own.into_iter().flatten().map(|i| Export::new(&i.source, &i.prefix).with_granule(i.granule)).collect()
    }

    /// The format.
    pub fn format(&self) -> ImportFormat {
        self.format
    }

    /// The block node for qemu-img, over the sockets `fds` of [`Image::exports`], as a name on its command line.
    pub fn node(&self, fds: &[RawFd]) -> String {
        format!("json:{}", self.build_node(&mut fds.iter().copied(), true))
    }

    /// The same over those of [`Image::own_exports`].
    pub fn own_node(&self, fds: &[RawFd]) -> String {
        format!("json:{}", self.build_node(&mut fds.iter().copied(), false))
    }

    fn build_node(&self, fds: &mut dyn Iterator<Item = RawFd>, with_backing: bool) -> Value {
        // Each image has its descriptor; -1 would make qemu-img fail, as it should.
        let file = nbd_node(fds.next().unwrap_or(-1));
        let mut node = json!({"driver": self.format.to_string(), "read-only": true, "file": file});
        if self.data_file.is_some() {
            node["data-file"] = nbd_node(fds.next().unwrap_or(-1));
        }
        if matches!(self.format, ImportFormat::Qcow2 | ImportFormat::Vmdk) {
            node["backing"] = match &self.backing {
                Some(backing) if with_backing => backing.build_node(fds, true),
                // Without this qemu-img would open what the header says.
                _ => Value::Null,
            };
        }
        node
    }
}

/// Path and format of a file that an image names.
fn resolve(
    image: &Path,
    what: &str,
    reference: &Reference,
    operation: &'static str,
) -> Result<(std::path::PathBuf, ImportFormat)> {
    let invalid = |cause: String| Error::new(Kind::Invalid, operation).at(image).because(cause);
    let name = reference.name.as_os_str().as_encoded_bytes();
    let first = name.split(|&b| b == b'/').next().unwrap_or_default();
    if first.contains(&b':') || name.contains(&0) {
        return Err(invalid(format!("its {what} {:?} is not the name of a file", reference.name)));
    }
    let format = match reference.format.as_deref() {
        Some("raw") => ImportFormat::Raw,
        Some("qcow2") => ImportFormat::Qcow2,
        Some(other) => return Err(invalid(format!("its {what} has format {other:?}, which is not followed"))),
        None => {
            let cause = format!("it does not say which format its {what} {:?} has", reference.name);
            return Err(invalid(cause).remedy("write it into the image: qemu-img rebase -u -F FORMAT -b FILE IMAGE"));
        }
    };
    // Joined to an absolute name this is the name itself.
    Ok((image.parent().unwrap_or(Path::new("")).join(&reference.name), format))
}

fn read_prefix(source: &Source) -> io::Result<Vec<u8>> {
    let mut prefix = vec![0u8; source.size().min(PREFIX) as usize];
    source.read_at(&mut prefix, 0)?;
    Ok(prefix)
}

/// Checks each entry of the block map: qemu-img reads zeros where one leads past the end of the file.
fn check_vdi_map(source: &Source, prefix: &[u8], operation: &'static str) -> Result<()> {
    let refused = |r| refused(r, ImportFormat::Vdi, source.path(), operation);
    let (offset, entries, allocated) = image::vdi_map(prefix).map_err(refused)?;
    let mut buffer = vec![0u8; 1 << 20];
    let (mut at, end) = (offset, offset + u64::from(entries) * 4);
    while at < end {
        let piece = &mut buffer[..(end - at).min(1 << 20) as usize];
        source.read_at(piece, at).map_err(|e| Error::io(operation, e).at(source.path()))?;
        let (words, _) = piece.as_chunks::<4>();
        if words.iter().any(|w| !image::vdi_entry_is_valid(u32::from_le_bytes(*w), allocated)) {
            return Err(refused(Refusal::Bad("its block map names a block that is not in the file".into())));
        }
        at += piece.len() as u64;
    }
    Ok(())
}

/// The error for an image that [`image::check`] does not pass.
pub fn refused(refusal: Refusal, format: ImportFormat, path: &Path, operation: &'static str) -> Error {
    let error = |kind| Error::new(kind, operation).at(path);
    match refusal {
        Refusal::Bad(why) => error(Kind::Invalid).because(format!("not a sound {format} image: {why}")),
        Refusal::Unsupported(why, remedy) => error(Kind::Unsupported).because(why).remedy(remedy),
        Refusal::TooLarge(bytes) => {
            let (is, may) = (format_size(bytes), format_size(MAX_VOLUME));
            error(Kind::TooLarge).because(format!("a disk of {is} is larger than a volume can be, {may}"))
        }
    }
}
