//! The domain that is to be cloned: its definition, and whether it can be cloned as it stands.

use super::disks;
use super::virsh::Virsh;
use super::xml::Element;
use crate::error::{Error, Kind, Result};

/// A domain.
#[derive(Clone, Debug)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Its definition, with passwords: what the next start takes.
    pub xml: Element,
    /// What it runs with, if it runs.
    pub live: Option<Element>,
    /// Its processors are stopped, though it runs.
    pub paused: bool,
    /// It has a definition.
    persistent: bool,
    /// It was shut down with its memory saved.
    saved: bool,
}

/// How its present state is to be taken.
#[derive(Clone, Copy, Debug)]
pub struct Taking {
    /// What for: `clone`.
    pub verb: &'static str,
    /// It may be running.
    pub live: bool,
    /// Its guest agent is to freeze its filesystems.
    pub quiesce: bool,
}

impl Domain {
    /// Looks a domain up, whatever state it is in.
    pub fn look(virsh: &Virsh, name: &str, doing: &str) -> Result<Domain> {
        let info = virsh.run(doing, &["dominfo", "--domain", name])?;
        let field = |key: &str| {
            let fields = info.lines().filter_map(|line| line.split_once(':'));
            fields.filter(|(k, _)| *k == key).map(|(_, v)| v.trim().to_owned()).next().unwrap_or_default()
        };
        let uuid = field("UUID");
        let active = !matches!(field("Id").as_str(), "-" | "");
        let xml = virsh.xml(doing, &["dumpxml", "--inactive", "--security-info", "--domain", &uuid])?;
        let live =
            if active { Some(virsh.xml(doing, &["dumpxml", "--security-info", "--domain", &uuid])?) } else { None };
        Ok(Domain {
            name: field("Name"),
            uuid,
            xml,
            live,
            paused: matches!(field("State").as_str(), "paused" | "pmsuspended" | "crashed"),
            persistent: field("Persistent") != "no",
            saved: field("Managed save") == "yes",
        })
    }

    /// The same, and refuses what cannot be taken that way.
    pub fn find(virsh: &Virsh, name: &str, taking: Taking) -> Result<Domain> {
        let doing = format!("{} domain {name:?}", taking.verb);
        let domain = Domain::look(virsh, name, &doing)?;
        let refuse = |cause: &str, remedy: String| {
            Err(Error::new(Kind::Invalid, doing.clone()).because(cause.to_owned()).remedy(remedy))
        };
        if !domain.persistent {
            return refuse(
                "it is transient: it has no definition to keep",
                format!("virsh dumpxml {name} > f.xml; virsh define f.xml"),
            );
        }
        if domain.saved {
            return refuse(
                "it was saved with its memory, which its disks alone do not match",
                format!("start it and shut it down, or give its memory up: virsh managedsave-remove {name}"),
            );
        }
        if domain.active() && !taking.live {
            let cause = if domain.paused { "it is paused, not shut off" } else { "it is running" };
            return refuse(cause, "shut it down first, or use --live for the state of its disks at this moment".into());
        }
        if taking.quiesce && (!domain.active() || domain.paused) {
            return refuse("its guest agent cannot answer: it is not running", "leave --quiesce out".into());
        }
        domain.check_live_disks(&doing)?;
        Ok(domain)
    }

    /// What is being done with it, for messages.
    pub fn doing(&self, verb: &str) -> String {
        format!("{verb} domain {:?}", self.name)
    }

    /// Whether it runs.
    pub fn active(&self) -> bool {
        self.live.is_some()
    }

    /// A running domain may have other disks than the next start gives it.
    fn check_live_disks(&self, doing: &str) -> Result<()> {
        let Some(live) = &self.live else { return Ok(()) };
        let disks = |xml: &Element| -> Vec<Element> {
            let fixed = |disk: &&Element| !disk.is("device", "cdrom") && !disk.is("device", "floppy");
            disks::elements(xml).filter(fixed).cloned().collect()
        };
        let place = |disk: &Element| {
            let source = disk.child("source")?;
            ["file", "dev", "volume", "name"].iter().find_map(|a| source.get(a).map(|v| v.into_owned()))
        };
        let defined = disks(&self.xml);
        for disk in disks(live) {
            let target = disks::target(&disk);
            let refuse = |cause: String, remedy: &'static str| {
                Err(Error::new(Kind::Busy, doing.to_owned()).because(cause).remedy(remedy))
            };
            if disk.child("mirror").is_some() {
                return refuse(format!("a block job is at work on {target}"), "wait for it: virsh blockjob");
            }
            match defined.iter().find(|d| disks::target(d) == target) {
                None => {
                    return refuse(
                        format!("{target} is attached to the running machine only, not in its definition"),
                        "virsh attach-disk --config puts it there; virsh detach-disk takes it off",
                    );
                }
                Some(other) if place(other) != place(&disk) => {
                    return refuse(
                        format!("{target} of the running machine is another file than in its definition"),
                        "let the definition name what is running, or shut it down",
                    );
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Fails if it was started since it was looked at: its disks may then be of different moments.
    pub fn still_off(&self, virsh: &Virsh) -> Result<()> {
        let doing = format!("look at domain {:?}", self.name);
        if self.active() || virsh.run(&doing, &["domstate", "--domain", &self.uuid])?.trim() == "shut off" {
            return Ok(());
        }
        Err(Error::new(Kind::Busy, doing).because("it was started meanwhile").remedy("try again"))
    }
}
