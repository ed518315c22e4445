//! The clone's definition out of the source's: what must be new is, everything else stays. docs/domain.md has the table
//! with the reason for each; disks, NVRAM and TPM are decided in [`super::disks`] and [`super::firmware`].

use super::identity::{self, Macs};
use super::xml::Element;
use crate::error::Result;

/// Who the clone is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
}

/// Changes what must be new. Gives a line for each thing that stays although it may not serve two machines at once.
pub fn rewrite(domain: &mut Element, new: &Identity, macs: &mut Macs) -> Result<Vec<String>> {
    let old = domain.child("name").map(Element::text).unwrap_or_default();
    let mut notes = Vec::new();
    // Of a running domain.
    domain.unset("id");
    set_text(domain, "name", &new.name);
    set_text(domain, "uuid", &new.uuid);
    smbios(domain, &new.uuid);
    if domain.child("genid").is_some() {
        // A guest that sees another one knows that it was cloned: that is what it is for.
        set_text(domain, "genid", &identity::new_uuid()?);
    }
    for device in domain.child_mut("devices").into_iter().flat_map(Element::elements_mut) {
        match device.name() {
            "interface" => interface(device, macs, &mut notes)?,
            "graphics" => graphics(device),
            "serial" | "parallel" | "console" | "channel" | "redirdev" | "smartcard" => {
                character(device, &old, new, &mut notes);
            }
            "vsock" => vsock(device),
            "hostdev" => notes.push("it has a device of the host, which only one running machine can have".into()),
            "tpm" => tpm_device(device, &mut notes),
            "audio" => file_attribute(device, "path", &old, new),
            _ => {}
        }
    }
    for (element, what) in [("qemu:commandline", "arguments"), ("qemu:override", "properties")] {
        if domain.child(element).is_some() {
            notes.push(format!("its own {what} for qemu stay as they are: look for files and ports in <{element}>"));
        }
    }
    Ok(notes)
}

fn set_text(domain: &mut Element, name: &str, text: &str) {
    match domain.child_mut(name) {
        Some(element) => element.set_text(text),
        None => {
            let mut element = Element::new(name);
            element.set_text(text);
            domain.push(element);
        }
    }
}

/// libvirt wants the UUID in the SMBIOS tables, if there is one, to be the domain's.
fn smbios(domain: &mut Element, uuid: &str) {
    for sysinfo in domain.elements_mut().filter(|e| e.name() == "sysinfo") {
        for entry in sysinfo.elements_mut().filter(|e| e.name() == "system").flat_map(Element::elements_mut) {
            if entry.name() == "entry" && entry.is("name", "uuid") {
                entry.set_text(uuid);
            }
        }
    }
}

fn interface(device: &mut Element, macs: &mut Macs, notes: &mut Vec<String>) -> Result<()> {
    if let Some(mac) = device.child_mut("mac") {
        let new = macs.new_like(&mac.get("address").unwrap_or_default())?;
        mac.set("address", &new);
    }
    if device.is("type", "hostdev") {
        notes.push("it has a network card of the host, which only one running machine can have".into());
    }
    if device.is("type", "vhostuser") {
        notes.push("its vhost-user socket serves one machine only".into());
    }
    // The name of the card on the host: libvirt chooses one.
    device.remove(|e| e.name() == "target");
    if let Some(parameters) = device.find_mut("virtualport/parameters") {
        // The identity of the card at the switch.
        for id in ["interfaceid", "instanceid"] {
            if parameters.get(id).is_some() {
                parameters.set(id, &identity::new_uuid()?);
            }
        }
    }
    Ok(())
}

/// Ports and sockets of the screen: libvirt chooses free ones when it starts.
fn graphics(device: &mut Element) {
    let spice = device.is("type", "spice");
    let listens = device.elements().any(|e| e.name() == "listen" && !e.is("type", "none") && !e.is("type", "socket"));
    let has_port = ["port", "tlsPort", "autoport"].iter().any(|a| device.get(a).is_some());
    if matches!(device.get("type").as_deref(), Some("vnc" | "spice" | "rdp")) && (listens || has_port) {
        device.unset("tlsPort");
        match spice {
            true => device.unset("port"),
            false => device.set("port", "-1"),
        }
        device.set("autoport", "yes");
    }
    if device.get("websocket").is_some() {
        device.set("websocket", "-1");
    }
    device.unset("socket");
    for listen in device.elements_mut().filter(|e| e.is("type", "socket")) {
        listen.unset("socket");
    }
}

/// Serial ports and their like: files and sockets get a name of their own.
fn character(device: &mut Element, old: &str, new: &Identity, notes: &mut Vec<String>) {
    let kind = device.get("type").unwrap_or_default().into_owned();
    let agent = device.name() == "channel" && device.child("target").is_some_and(|t| t.is("type", "virtio"));
    // Where it is now, of a running domain.
    device.unset("tty");
    if kind == "pty" {
        device.remove(|e| e.name() == "source" && e.get("path").is_some_and(|p| p.starts_with("/dev/pts/")));
    }
    for part in device.elements_mut() {
        match (part.name(), kind.as_str()) {
            ("log", _) => file_attribute(part, "file", old, new),
            ("source", "file" | "pipe") => file_attribute(part, "path", old, new),
            ("source", "unix") if part.is("mode", "bind") || agent => file_attribute(part, "path", old, new),
            ("source", "tcp" | "udp") if part.is("mode", "bind") => notes.push(format!(
                "its {} port {} stays: two machines that run at once cannot both listen there",
                kind,
                part.get("service").unwrap_or_default()
            )),
            ("source", "dev") => notes.push(format!(
                "it has the host's {}, which only one running machine can have",
                part.get("path").unwrap_or_default()
            )),
            _ => {}
        }
    }
    // libvirt chooses these by itself, below a directory that has the domain's number in its name.
    device.remove(|e| e.name() == "source" && e.get("path").is_some_and(|p| p.contains("/libvirt/qemu/channel/")));
}

fn vsock(device: &mut Element) {
    if let Some(cid) = device.child_mut("cid") {
        cid.set("auto", "yes");
        cid.unset("address");
    }
}

/// An emulated TPM is the domain's own (see [`super::firmware`]); one of the host cannot be shared.
fn tpm_device(device: &Element, notes: &mut Vec<String>) {
    if device.child("backend").is_some_and(|b| b.is("type", "passthrough")) {
        notes.push("it has the host's TPM, which only one running machine can have".into());
    }
}

fn file_attribute(element: &mut Element, attribute: &str, old: &str, new: &Identity) {
    if let Some(path) = element.get(attribute).map(|path| own_path(&path, old, &new.name)) {
        element.set(attribute, &path);
    }
}

/// A path of the clone's own in place of one of the source: with its name where the source's name was, else with its
/// name added.
pub fn own_path(path: &str, old: &str, new: &str) -> String {
    let (dir, file) = path.rsplit_once('/').map_or(("", path), |(dir, file)| (&path[..=dir.len()], file));
    if let Some(renamed) = renamed(file, old, new) {
        return format!("{dir}{renamed}");
    }
    match file.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => format!("{dir}{stem}-{new}.{extension}"),
        _ => format!("{dir}{file}-{new}"),
    }
}

/// A file's name with `new` in place of `old`, if that stands in it as a word of its own.
pub fn renamed(file: &str, old: &str, new: &str) -> Option<String> {
    let is_word = |c: char| c.is_alphanumeric();
    let (at, _) = file
        .match_indices(old)
        .filter(|(_, word)| !word.is_empty())
        .find(|(at, word)| !file[..*at].ends_with(is_word) && !file[at + word.len()..].starts_with(is_word))?;
    Some(format!("{}{new}{}", &file[..at], &file[at + old.len()..]))
}
