//! libvirt's storage pools, as far as clones meet them: where one lies, and that it notices new files.

use std::path::{Path, PathBuf};

use super::virsh::Virsh;
use super::xml::Element;
use crate::client;
use crate::error::{Error, Kind, Result};

/// Where the files of an active libvirt pool lie.
pub fn directory(virsh: &Virsh, pool: &str) -> Result<PathBuf> {
    let doing = format!("look at libvirt pool {pool:?}");
    let xml = virsh.xml(&doing, &["pool-dumpxml", "--pool", pool])?;
    let kind = xml.get("type").unwrap_or_default().into_owned();
    if !matches!(kind.as_str(), "dir" | "fs" | "netfs") {
        return Err(Error::new(Kind::Unsupported, doing)
            .because(format!("it is a pool of type {kind:?}, whose volumes are no files of a directory"))
            .remedy("name a directory pool: clonefs pool define NAME PATH makes one"));
    }
    check_active(virsh, pool, &doing)?;
    match xml.find("target/path").map(Element::text) {
        Some(path) if path.starts_with('/') => Ok(PathBuf::from(path)),
        _ => Err(Error::new(Kind::Invalid, doing).because("it names no directory")),
    }
}

fn check_active(virsh: &Virsh, pool: &str, doing: &str) -> Result<()> {
    let info = virsh.run(doing, &["pool-info", "--pool", pool])?;
    let active =
        info.lines().any(|line| line.split_once(':').is_some_and(|(k, v)| k == "State" && v.trim() == "running"));
    if active {
        return Ok(());
    }
    Err(Error::new(Kind::Invalid, doing.to_owned())
        .because("the pool is not active")
        .remedy(format!("start it: virsh pool-start {pool}")))
}

/// The file of a volume.
pub fn volume_path(virsh: &Virsh, pool: &str, volume: &str) -> Result<PathBuf> {
    let doing = format!("look for volume {volume:?} of libvirt pool {pool:?}");
    check_active(virsh, pool, &doing)?;
    let path = virsh.run(&doing, &["vol-path", "--pool", pool, "--vol", volume])?;
    Ok(PathBuf::from(path.trim_end_matches('\n')))
}

/// Active directory pools and where they lie.
pub fn active(virsh: &Virsh) -> Result<Vec<(String, PathBuf)>> {
    let list = virsh.run("list the libvirt pools", &["pool-list", "--name", "--type", "dir,fs,netfs"])?;
    let names = list.lines().map(str::trim).filter(|name| !name.is_empty());
    // One that was stopped meanwhile is not active any more.
    Ok(names.filter_map(|name| directory(virsh, name).ok().map(|path| (name.to_owned(), path))).collect())
}

/// Tells libvirt of new files in these directories, as far as its pools hold them. Best effort: the domain names its
/// disks by path, and the next refresh finds them in any case.
pub fn refresh(virsh: &Virsh, directories: &[PathBuf]) {
    let Ok(pools) = active(virsh) else { return };
    for (name, path) in pools {
        if directories.iter().any(|d| same(d, &path)) {
            let _ = virsh.run("refresh a libvirt pool", &["pool-refresh", "--pool", &name]);
        }
    }
}

/// Whether two paths are of one directory.
pub fn same(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Defines and starts a libvirt directory pool over a directory of a clonefs mount. All or nothing.
pub fn define(virsh: &Virsh, name: &str, path: &Path, autostart: bool) -> Result<PathBuf> {
    let doing = "define a libvirt pool at";
    let full = path.canonicalize().map_err(|e| Error::io(doing, e).at(path))?;
    if client::mount_at(&full)?.is_none() {
        return Err(client::not_here(doing, path));
    }
    if !full.is_dir() {
        return Err(Error::new(Kind::Invalid, doing).at(path).because("it is not a directory"));
    }
    let (Some(target), Ok(())) = (full.to_str(), check_name(name)) else {
        return Err(Error::new(Kind::Invalid, doing)
            .at(path)
            .because("names of libvirt pools and their paths are plain text"));
    };
    virsh.run(
        &format!("define libvirt pool {name:?}"),
        &["pool-define-as", "--name", name, "--type", "dir", "--target", target],
    )?;
    let started =
        virsh.run_long(&format!("start libvirt pool {name:?}"), &["pool-start", "--pool", name]).and_then(|_| {
            match autostart {
                true => {
                    virsh.run(&format!("mark libvirt pool {name:?} for autostart"), &["pool-autostart", "--pool", name])
                }
                false => Ok(String::new()),
            }
        });
    if let Err(error) = started {
        // The error that led here is the one to report.
        let _ = virsh.run("take the pool back", &["pool-destroy", "--pool", name]);
        let _ = virsh.run("take the pool back", &["pool-undefine", "--pool", name]);
        return Err(error);
    }
    Ok(full)
}

/// Names that libvirt takes for domains and pools, and that are one part of a path.
pub fn check_name(name: &str) -> std::result::Result<(), String> {
    let refuse = |why: &str| Err(format!("{name:?} cannot be a name: {why}"));
    match name {
        "" => refuse("it is empty"),
        "." | ".." => refuse("it means a directory"),
        _ if name.contains('/') => refuse("it has a slash"),
        _ if name.starts_with('-') => refuse("it would be taken for an option"),
        _ if name.trim() != name => refuse("it begins or ends with white space"),
        _ if name.chars().any(char::is_control) => refuse("it has control characters"),
        _ if name.len() > 200 => refuse("it is longer than 200 bytes"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_anything_is_done() {
        let long = "x".repeat(201);
        for bad in ["", ".", "..", "a/b", "-a", " a", "a ", "a\nb", "a\u{7f}", &long] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        for good in ["vm1", "a b", "vm-1.example.org", "\u{e9}"] {
            check_name(good).unwrap();
        }
    }

    #[test]
    fn a_directory_outside_of_all_mounts_is_no_pool() {
        let dir = tempfile::tempdir().unwrap();
        let error = define(&Virsh::default(), "x", dir.path(), false).unwrap_err().to_string();
        assert!(error.contains("clonefs mount"), "{error}");
    }
}
