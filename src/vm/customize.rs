//! Telling a clone who it is: a cloud-init seed, or a command that is run on its disks before it is defined.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::disks;
use super::image::Layer;
use super::rewrite::Identity;
use super::seed::{self, Seed};
use super::undo::Undo;
use super::xml::Element;
use crate::error::{Context, Error, Kind, Result};

/// So much of a disk tells whether it is a seed.
const LABEL_END: u64 = 34 << 10;
/// Longest host name.
const LONGEST_NAME: usize = 253;

/// What is to be changed in a clone, besides what must be.
#[derive(Clone, Debug, Default)]
pub struct Customize {
    /// Host name; `{}` stands for the name of the new domain.
    pub hostname: Option<String>,
    /// `user-data` for cloud-init.
    pub user_data: Option<String>,
    /// `meta-data` for cloud-init.
    pub meta_data: Option<String>,
    /// A shell command.
    pub command: Option<String>,
}

impl Customize {
    /// Whether the clone gets a seed.
    pub fn wants_seed(&self) -> bool {
        self.hostname.is_some() || self.user_data.is_some() || self.meta_data.is_some()
    }

    /// The host name of a clone.
    pub fn hostname(&self, new: &str) -> Result<Option<String>> {
        let Some(name) = self.hostname.as_ref().map(|name| name.replace("{}", new)) else { return Ok(None) };
        if is_hostname(&name) {
            return Ok(Some(name));
        }
        Err(Error::new(Kind::Invalid, "set the host name")
            .because(format!("{name:?} is none"))
            .remedy("letters, digits and hyphens, in parts with dots between"))
    }

    /// Writes the seed of a clone to a new file.
    pub fn write_seed(&self, new: &Identity, path: &Path, undo: &mut Undo) -> Result<()> {
        let hostname = self.hostname(&new.name)?;
        // With data but without a name the domain's will do, where it can be one.
        let named = self.meta_data.as_deref().unwrap_or_default().contains("local-hostname:");
        let hostname = hostname.or_else(|| (!named && is_hostname(&new.name)).then(|| new.name.clone()));
        let seed = Seed::new(&new.uuid, hostname.as_deref(), self.meta_data.as_deref(), self.user_data.as_deref());
        let image = seed.image()?;
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).context("create", path)?;
        undo.file(path);
        file.write_all(&image).and_then(|()| file.sync_all()).context("write", path)
    }

    /// Runs the command on the clone's disks.
    pub fn run(&self, new: &Identity, images: &[(String, Layer)]) -> Result<()> {
        let Some(line) = &self.command else { return Ok(()) };
        let doing = format!("run --customize on {:?}", new.name);
        let io = |e| Error::io(doing.clone(), e);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", line]).env("CLONEFS_DOMAIN", &new.name).env("CLONEFS_UUID", &new.uuid);
        if let Some(hostname) = self.hostname(&new.name)? {
            command.env("CLONEFS_HOSTNAME", hostname);
        }
        if let Some((_, first)) = images.first() {
            command.env("CLONEFS_DISK", &first.path).env("CLONEFS_FORMAT", &first.format);
        }
        for (disk, layer) in images {
            command
                .env(format!("CLONEFS_DISK_{disk}"), &layer.path)
                .env(format!("CLONEFS_FORMAT_{disk}"), &layer.format);
        }
        // Standard output is for what this program prints.
        let stderr = std::io::stderr();
        let shown = std::os::fd::AsFd::as_fd(&stderr).try_clone_to_owned().map_err(io)?;
        let status = command.stdin(Stdio::null()).stdout(shown).status().map_err(io)?;
        match (status.code(), status.signal()) {
            (Some(0), _) => Ok(()),
            (Some(code), _) => Err(Error::new(Kind::Io, doing).because(format!("it ended with exit code {code}"))),
            (None, signal) => {
                Err(Error::new(Kind::Io, doing).because(format!("it was killed by signal {}", signal.unwrap_or(0))))
            }
        }
    }
}

fn is_hostname(name: &str) -> bool {
    let part = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    name.len() <= LONGEST_NAME && name.split('.').all(part)
}

/// Puts a seed into a domain's XML, in place of the source's seed if it has one.
pub fn attach(domain: &mut Element, path: &Path) {
    let file = path.to_string_lossy();
    let Some(devices) = domain.child_mut("devices") else { return };
    if let Some(disk) = devices.elements_mut().find(|e| e.name() == "disk" && has_seed(e)) {
        disk.set("type", "file");
        disk.remove(|e| e.name() == "backingStore");
        if let Some(source) = disk.child_mut("source") {
            *source = Element::new("source").with("file", &file);
        }
        if let Some(driver) = disk.child_mut("driver") {
            driver.set("type", "raw");
        }
        return;
    }
    let buses: Vec<(String, String)> = devices
        .elements()
        .filter(|e| e.name() == "disk")
        .filter_map(|disk| {
            let target = disk.child("target")?;
            Some((disks::target(disk), target.get("bus")?.into_owned()))
        })
        .collect();
    let bus = buses.first().map_or("virtio", |(_, bus)| bus);
    // What these buses call a disk cannot be read-only.
    let device = if matches!(bus, "ide" | "sata" | "scsi" | "usb") { "cdrom" } else { "disk" };
    let prefix = match bus {
        "virtio" => "vd",
        "ide" => "hd",
        _ => "sd",
    };
    let free =
        ('a'..='z').map(|letter| format!("{prefix}{letter}")).find(|name| buses.iter().all(|(taken, _)| taken != name));
    let Some(target) = free else { return };
    devices.push(
        Element::new("disk")
            .with("type", "file")
            .with("device", device)
            .containing(Element::new("driver").with("name", "qemu").with("type", "raw"))
            .containing(Element::new("source").with("file", &file))
            .containing(Element::new("target").with("dev", &target).with("bus", bus))
            .containing(Element::new("readonly")),
    );
}

fn has_seed(disk: &Element) -> bool {
    let Some(path) = disk.child("source").and_then(|s| s.get("file")).map(|p| PathBuf::from(p.into_owned())) else {
        return false;
    };
    let mut start = Vec::new();
    // One that cannot be read is none that could be known.
    let is_file = std::fs::metadata(&path).is_ok_and(|look| look.is_file());
    is_file
        && File::open(&path).and_then(|file| file.take(LABEL_END).read_to_end(&mut start)).is_ok()
        && seed::is_seed(&start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::virsh::Virsh;

    fn who() -> Identity {
        Identity { name: "web1".into(), uuid: "u-1".into() }
    }

    #[test]
    fn host_names_are_checked() {
        for good in ["a", "web-1.example.org", &"a".repeat(63)] {
            assert!(is_hostname(good), "{good}");
        }
        for bad in ["", "a b", "-a", "a-", "a..b", "a_b", &"a".repeat(64), "a\n"] {
            assert!(!is_hostname(bad), "{bad:?}");
        }
        let customize = Customize { hostname: Some("{}.lan".into()), ..Customize::default() };
        assert_eq!(customize.hostname("web1").unwrap().unwrap(), "web1.lan");
        assert!(customize.hostname("web 1").unwrap_err().to_string().contains("hyphens"));
    }

    #[test]
    fn a_seed_is_added_once_and_then_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let virsh = Virsh::default();
        let mut undo = Undo::new(&virsh);
        let (first, second) = (dir.path().join("1"), dir.path().join("2"));
        for path in [&first, &second] {
            Customize { hostname: Some("h".into()), ..Customize::default() }
                .write_seed(&who(), path, &mut undo)
                .unwrap();
        }
        for (bus, target, device, new) in
            [("virtio", "vda", "disk", "vdb"), ("sata", "sda", "cdrom", "sdb"), ("ide", "hda", "cdrom", "hdb")]
        {
            let text = format!(
                "<domain><devices><disk type='file'><source file='/none'/><target dev='{target}' bus='{bus}'/></disk></devices></domain>"
            );
            let mut domain = Element::parse(&text, "test").unwrap();
            attach(&mut domain, &first);
            attach(&mut domain, &second);
            let disks: Vec<&Element> = domain.child("devices").unwrap().elements().collect();
            assert_eq!(disks.len(), 2);
            assert!(disks[1].is("device", device) && disks[1].child("readonly").is_some());
            assert_eq!(disks::target(disks[1]), new);
            assert_eq!(disks[1].child("source").unwrap().get("file").unwrap(), second.to_string_lossy());
        }
    }

    #[test]
    fn a_command_gets_the_disks_and_its_failure_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let layer = Layer { path: "/pool/web1.img".into(), format: "raw".into() };
        let run = |command: String| {
            Customize { command: Some(command), hostname: Some("{}.lan".into()), ..Customize::default() }
                .run(&who(), &[("vda".into(), layer.clone())])
        };
        let line =
            "$CLONEFS_DOMAIN $CLONEFS_UUID $CLONEFS_HOSTNAME $CLONEFS_DISK $CLONEFS_DISK_vda $CLONEFS_FORMAT_vda";
        run(format!("echo {line} > {}", out.display())).unwrap();
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "web1 u-1 web1.lan /pool/web1.img /pool/web1.img raw\n");
        assert!(run("exit 3".into()).unwrap_err().to_string().contains("exit code 3"));
        assert!(run("kill -9 $$".into()).unwrap_err().to_string().contains("signal 9"));
    }
}
