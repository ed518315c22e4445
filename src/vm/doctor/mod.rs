//! Looks for what keeps virtual machines from running on a pool: this host, the mount, libvirt, the disks of a domain.
//! Nothing is changed. Each finding that is not well says the line that mends it.

mod domain;
mod host;
mod pool;
mod user;

use std::path::Path;

use serde::Serialize;

use super::virsh::Virsh;
use crate::error::Result;

/// How a finding is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// All is well.
    Ok,
    /// It works, and could be better.
    Advice,
    /// Machines do not run, or lose data.
    Problem,
}

/// What was found about one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do.
    pub remedy: Option<String>,
}

/// What a doctor looks at.
#[derive(Clone, Debug)]
pub enum Patient<'a> {
    /// This host alone.
    Host,
    /// And a pool.
    Pool(&'a Path),
    /// And the disks of a domain, with the pools that they lie in.
    Domain(&'a str),
}

/// Looks at everything.
pub fn examine(virsh: &Virsh, patient: &Patient) -> Result<Vec<Finding>> {
    let mut chart = Chart::default();
    let user = user::Qemu::find();
    host::examine(&mut chart, virsh, &user);
    match patient {
        Patient::Host => {}
        Patient::Pool(path) => pool::examine(&mut chart, virsh, path, &user)?,
        Patient::Domain(name) => domain::examine(&mut chart, virsh, name, &user)?,
    }
    Ok(chart.findings)
}

/// The findings so far.
#[derive(Debug, Default)]
struct Chart {
    findings: Vec<Finding>,
}

impl Chart {
    fn ok(&mut self, check: &'static str, found: impl Into<String>) {
        self.findings.push(Finding { check, level: Level::Ok, found: found.into(), remedy: None });
    }

    fn advice(&mut self, check: &'static str, found: impl Into<String>, remedy: impl Into<String>) {
        let remedy = Some(remedy.into());
        self.findings.push(Finding { check, level: Level::Advice, found: found.into(), remedy });
    }

    fn problem(&mut self, check: &'static str, found: impl Into<String>, remedy: impl Into<String>) {
        let remedy = Some(remedy.into());
        self.findings.push(Finding { check, level: Level::Problem, found: found.into(), remedy });
    }
}

/// A path as a word of a shell's line.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if text.chars().all(plain) { text.into_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedies_can_be_pasted_whatever_the_path() {
        assert_eq!(quoted(Path::new("/srv/vms-1")), "/srv/vms-1");
        assert_eq!(quoted(Path::new("/srv/it's $HOME")), r"'/srv/it'\''s $HOME'");
    }
}
