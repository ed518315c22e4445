//! What `qemu-img` knows of an image: the chain of files below it; and the little that a cloned image needs changed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::virsh::{self, NotRun};
use crate::error::{Error, Kind, Result};

const QEMU_IMG: &str = "qemu-img";
const PATIENCE: Duration = Duration::from_secs(300);
/// Files below an image, the image included; more is a mistake or an attack.
const MOST_FILES: usize = 64;

/// A file of an image and its format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The file.
    pub path: PathBuf,
    /// Its format, as in libvirt's XML.
    pub format: String,
}

/// The files that make up an image, the image itself first. A raw image is one file and is not looked into: what is
/// in it belongs to the guest, which could write there what looks like another format.
pub fn chain(path: &Path, format: &str) -> Result<Vec<Layer>> {
    let top = Layer { path: path.to_path_buf(), format: format.to_owned() };
    if format == "raw" {
        return Ok(vec![top]);
    }
    let file = path.to_string_lossy();
    let json = qemu_img(path, &["info", "-U", "--output=json", "--backing-chain", "-f", format, &file])?;
    let bad = |cause: &str| Error::new(Kind::Unsupported, "read the image").at(path).because(cause.to_owned());
    let infos: Vec<Value> = serde_json::from_str(&json).map_err(|_| bad("the answer of qemu-img is not understood"))?;
    if infos.is_empty() || infos.len() > MOST_FILES {
        return Err(bad("it has too many files below it"));
    }
    layers(&infos, top).map_err(|cause| bad(&cause))
}

fn layers(infos: &[Value], top: Layer) -> std::result::Result<Vec<Layer>, String> {
    let mut layers = vec![top];
    for info in infos {
        let text = |name: &str| info.get(name).and_then(Value::as_str);
        if info.pointer("/format-specific/data/data-file").is_some() {
            return Err("its data is in an external data file".into());
        }
        if info.pointer("/format-specific/type").and_then(Value::as_str) == Some("vmdk")
            && info.pointer("/format-specific/data/extents").and_then(Value::as_array).is_some_and(|e| e.len() > 1)
        {
            return Err("it is made of several files".into());
        }
        let Some(_) = text("backing-filename") else { continue };
        let full = text("full-backing-filename").filter(|full| full.starts_with('/'));
        let full = full.ok_or("the file below it is no local file")?;
        let format = text("backing-filename-format").ok_or_else(|| {
            format!("it does not say which format the file below it ({full:?}) has, and guessing is not safe")
        })?;
        layers.push(Layer { path: PathBuf::from(full), format: format.to_owned() });
    }
    if layers.len() == infos.len() { Ok(layers) } else { Err("the files below it are not all there".into()) }
}

/// Makes `image` lie over `backing` in place of the file with the same contents that it lies over now.
pub fn rebase(image: &Layer, backing: &Layer) -> Result<()> {
    let (file, below) = (image.path.to_string_lossy(), backing.path.to_string_lossy());
    qemu_img(&image.path, &["rebase", "-u", "-f", &image.format, "-F", &backing.format, "-b", &below, &file])?;
    Ok(())
}

/// Makes an image larger.
pub fn grow(image: &Layer, size: u64) -> Result<()> {
    qemu_img(&image.path, &["resize", "-f", &image.format, &image.path.to_string_lossy(), &size.to_string()])?;
    Ok(())
}

/// Makes an image what it was when this internal snapshot was taken.
pub fn apply_snapshot(image: &Layer, snapshot: &str) -> Result<()> {
    qemu_img(&image.path, &["snapshot", "-a", snapshot, &image.path.to_string_lossy()])?;
    Ok(())
}

fn qemu_img(path: &Path, arguments: &[&str]) -> Result<String> {
    const DOING: &str = "run qemu-img on";
    let mut command = Command::new(QEMU_IMG);
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null());
    match virsh::run(&mut command, PATIENCE) {
        Ok(output) if output.code == Some(0) => Ok(output.stdout),
        Ok(output) => {
            let said: String =
                output.stderr.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(600).collect();
            Err(Error::new(Kind::Io, DOING).at(path).because(said))
        }
        Err(NotRun::Io(e)) if e.kind() == std::io::ErrorKind::NotFound => Err(Error::new(Kind::Unsupported, DOING)
            .at(path)
            .because("qemu-img is not installed")
            .remedy("install it: apt install qemu-utils")),
        Err(NotRun::Io(e)) => Err(Error::io(DOING, e).at(path)),
        Err(NotRun::Hangs(_)) => Err(Error::new(Kind::Busy, DOING).at(path).because("it does not end")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(infos: Value) -> std::result::Result<Vec<Layer>, String> {
        let top = Layer { path: "/p/top".into(), format: "qcow2".into() };
        layers(infos.as_array().unwrap(), top)
    }

    #[test]
    fn a_chain_is_followed_by_what_the_images_say() {
        let over = json!({"backing-filename": "b", "full-backing-filename": "/p/b", "backing-filename-format": "raw"});
        let layers = read(json!([over, {}])).unwrap();
        assert_eq!(layers[1], Layer { path: "/p/b".into(), format: "raw".into() });
        assert_eq!(read(json!([{}])).unwrap().len(), 1);
    }

    #[test]
    fn chains_that_cannot_be_cloned_are_refused_with_the_reason() {
        let guess = json!([{"backing-filename": "b", "full-backing-filename": "/p/b"}, {}]);
        assert!(read(guess).unwrap_err().contains("which format"));
        let remote = json!([{"backing-filename": "nbd://h", "backing-filename-format": "raw"}, {}]);
        assert!(read(remote).unwrap_err().contains("no local file"));
        let outside = json!([{"format-specific": {"type": "qcow2", "data": {"data-file": "d"}}}]);
        assert!(read(outside).unwrap_err().contains("external data file"));
        let parts = json!([{"format-specific": {"type": "vmdk", "data": {"extents": [{}, {}]}}}]);
        assert!(read(parts).unwrap_err().contains("several files"));
    }

    #[test]
    fn a_raw_image_is_not_looked_into() {
        let layers = chain(Path::new("/no/such/file"), "raw").unwrap();
        assert_eq!(layers.len(), 1);
    }
}
