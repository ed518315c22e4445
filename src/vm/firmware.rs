//! What a domain keeps beside its disks: the variables of its UEFI firmware (NVRAM) and the state of its emulated TPM.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::rewrite::renamed;
use super::undo::Undo;
use super::virsh::Virsh;
use super::xml::Element;
use crate::error::{Context, Error, Kind, Result};

/// Larger files are neither NVRAM nor the state of a TPM.
const LARGEST: u64 = 256 << 20;
const SYSTEM_TPM: &str = "/var/lib/libvirt/swtpm";

/// Whether the clone gets the TPM's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TpmPolicy {
    /// Byte for byte: disks that are encrypted to the TPM open in the clone too.
    Copy,
    /// The clone starts with a new TPM.
    New,
}

/// A file or directory that the clone gets a copy of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// `nvram` or `tpm`.
    pub what: &'static str,
    /// The source's.
    pub from: PathBuf,
    /// The clone's.
    pub to: PathBuf,
}

/// Writes the clone's own NVRAM and TPM into its XML; gives what has to be copied for that.
pub fn rewrite(
    domain: &mut Element,
    old: (&str, &str),
    new: (&str, &str),
    tpm: TpmPolicy,
    virsh: &Virsh,
) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    parts.extend(nvram(domain, old.0, new.0)?);
    parts.extend(tpm_state(domain, old, new, tpm, virsh)?);
    for device in domain.child("devices").into_iter().flat_map(Element::elements) {
        if device.name() == "memory" && device.find("source/path").is_some() {
            return Err(Error::new(Kind::Unsupported, "clone the domain's memory devices")
                .because("it has a persistent memory device (NVDIMM) in a file, which two machines cannot share")
                .remedy(
                    "detach it from the source's definition first, or clone its file and define the clone by hand",
                ));
        }
    }
    Ok(parts)
}

fn nvram(domain: &mut Element, old: &str, new: &str) -> Result<Option<Part>> {
    let doing = "clone the NVRAM";
    let loader = domain.find("os/loader");
    let writable = loader.is_some_and(|l| l.is("type", "pflash") && l.is("readonly", "no"));
    let Some(nvram) = domain.find_mut("os/nvram") else {
        if writable {
            return Err(Error::new(Kind::Unsupported, doing)
                .because("its firmware is one writable file, which two machines cannot share")
                .remedy("give the source a read-only loader and an NVRAM of its own"));
        }
        return Ok(None);
    };
    let in_source = nvram.child("source").is_some();
    let path = match nvram.child("source") {
        Some(source) => source.get("file").map(|p| p.into_owned()),
        None => Some(nvram.text()).filter(|path| !path.is_empty()),
    };
    let from = match path {
        Some(path) => PathBuf::from(path),
        // libvirt chooses the path when it is started.
        None if !in_source => return Ok(None),
        None => {
            return Err(Error::new(Kind::Unsupported, doing)
                .because("it is no file")
                .remedy("clone it by hand and define the clone from virsh dumpxml"));
        }
    };
    let file = from.file_name().unwrap_or_default().to_string_lossy();
    let to = from.with_file_name(renamed(&file, old, new).unwrap_or_else(|| format!("{new}_VARS.fd")));
    let text = to.to_string_lossy();
    match nvram.child_mut("source") {
        Some(source) => source.set("file", &text),
        None => nvram.set_text(&text),
    }
    // One that was never started has none yet: libvirt makes the clone's from the template as well.
    Ok(from.exists().then_some(Part { what: "nvram", from, to }))
}

fn tpm_state(
    domain: &mut Element,
    old: (&str, &str),
    new: (&str, &str),
    policy: TpmPolicy,
    virsh: &Virsh,
) -> Result<Option<Part>> {
    let Some(backend) = domain.find_mut("devices/tpm/backend").filter(|b| b.is("type", "emulator")) else {
        return Ok(None);
    };
    let part = match backend.child_mut("source") {
        Some(source) => {
            let from = PathBuf::from(source.get("path").unwrap_or_default().into_owned());
            let file = from.file_name().unwrap_or_default().to_string_lossy();
            let to = from.with_file_name(renamed(&file, old.0, new.0).unwrap_or_else(|| format!("{file}-{}", new.0)));
            source.set("path", &to.to_string_lossy());
            Part { what: "tpm", from, to }
        }
        None => {
            let base = tpm_base(virsh)?;
            Part { what: "tpm", from: base.join(old.1), to: base.join(new.1) }
        }
    };
    Ok((policy == TpmPolicy::Copy && part.from.exists()).then_some(part))
}

/// Where libvirt keeps the state of emulated TPMs.
fn tpm_base(virsh: &Virsh) -> Result<PathBuf> {
    if virsh.is_system()? {
        return Ok(PathBuf::from(SYSTEM_TPM));
    }
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    let config = config
        .or_else(home)
        .ok_or_else(|| Error::new(Kind::Invalid, "find the state of the TPM").because("HOME is not set"))?;
    Ok(config.join("libvirt/qemu/swtpm"))
}

impl Part {
    /// Fails if the copy's name is taken.
    pub fn check(&self) -> Result<()> {
        match fs::symlink_metadata(&self.to) {
            Ok(_) => Err(Error::new(Kind::Exists, "create")
                .at(&self.to)
                .remedy("choose another name for the clone, or remove it")),
            Err(_) => Ok(()),
        }
    }

    /// Makes the copy, with owner and mode, or nothing.
    pub fn copy(&self, undo: &mut Undo) -> Result<()> {
        if fs::symlink_metadata(&self.from).context("look at", &self.from)?.is_dir() {
            copy_directory(&self.from, &self.to, undo)
        } else {
            copy_file(&self.from, &self.to, undo)
        }
    }
}

fn copy_directory(from: &Path, to: &Path, undo: &mut Undo) -> Result<()> {
    fs::DirBuilder::new().mode(0o700).create(to).context("create", to)?;
    undo.directory(to);
    for entry in fs::read_dir(from).context("read directory", from)? {
        let entry = entry.context("read directory", from)?;
        let kind = entry.file_type().context("look at", entry.path())?;
        let to = to.join(entry.file_name());
        if kind.is_dir() {
            copy_directory(&entry.path(), &to, undo)?;
        } else if kind.is_file() {
            copy_file(&entry.path(), &to, undo)?;
        }
        // A lock or a socket belongs to the process that made it.
    }
    let look = fs::metadata(from).context("look at", from)?;
    std::os::unix::fs::chown(to, Some(look.uid()), Some(look.gid())).context("give the owner to", to)?;
    fs::set_permissions(to, look.permissions()).context("give the mode to", to)
}

fn copy_file(from: &Path, to: &Path, undo: &mut Undo) -> Result<()> {
    let mut source = File::open(from).context("open", from)?;
    let look = source.metadata().context("look at", from)?;
    if look.len() > LARGEST {
        return Err(Error::new(Kind::TooLarge, "copy")
            .at(from)
            .because("it is far larger than NVRAM or a TPM's state"));
    }
    let mut target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).context("create", to)?;
    undo.file(to);
    let mut bytes = Vec::with_capacity(look.len() as usize);
    source.read_to_end(&mut bytes).context("read", from)?;
    std::io::Write::write_all(&mut target, &bytes).context("write", to)?;
    std::os::unix::fs::fchown(&target, Some(look.uid()), Some(look.gid())).context("give the owner to", to)?;
    target.set_permissions(fs::Permissions::from_mode(look.mode() & 0o7777)).context("give the mode to", to)?;
    target.sync_all().context("make durable", to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_copied_byte_for_byte_with_mode_and_without_replacing_anything() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("uuid1"), dir.path().join("uuid2"));
        fs::create_dir_all(from.join("tpm2")).unwrap();
        fs::write(from.join("tpm2/state"), [0, 1, 255]).unwrap();
        fs::set_permissions(from.join("tpm2/state"), fs::Permissions::from_mode(0o640)).unwrap();
        let virsh = Virsh::default();
        let part = Part { what: "tpm", from, to: to.clone() };
        part.check().unwrap();
        let mut undo = Undo::new(&virsh);
        part.copy(&mut undo).unwrap();
        assert_eq!(fs::read(to.join("tpm2/state")).unwrap(), [0, 1, 255]);
        assert_eq!(fs::metadata(to.join("tpm2/state")).unwrap().mode() & 0o777, 0o640);
        assert!(part.check().unwrap_err().to_string().contains("exists"));
        assert!(part.copy(&mut Undo::new(&virsh)).is_err());
        drop(undo);
        assert!(!to.exists());
    }
}
