//! What a domain keeps beside its disks: the variables of its UEFI firmware (NVRAM) and the state of its emulated TPM.

use std::path::PathBuf;

use super::parts::Part;
use super::rewrite::renamed;
use super::virsh::Virsh;
use super::xml::Element;
use crate::error::{Error, Kind, Result};

const SYSTEM_TPM: &str = "/var/lib/libvirt/swtpm";

/// Whether the clone gets the TPM's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TpmPolicy {
    /// Byte for byte: disks that are encrypted to the TPM open in the clone too.
    Copy,
    /// The clone starts with a new TPM.
    New,
}

/// Writes the clone's own NVRAM and TPM into its XML; gives what has to be copied for that. What was never started has
/// none of it yet: then libvirt makes the clone's as it would have made the source's.
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
    Ok(Some(Part { what: "nvram", from, to, kept: None }))
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
            Part { what: "tpm", from, to, kept: None }
        }
        None => {
            let base = tpm_base(virsh)?;
            Part { what: "tpm", from: base.join(old.1), to: base.join(new.1), kept: None }
        }
    };
    Ok((policy == TpmPolicy::Copy).then_some(part))
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
