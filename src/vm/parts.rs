//! Small files that belong to a domain beside its disks, taken as a whole and put elsewhere byte for byte, with owners
//! and modes.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::undo::Undo;
use crate::error::{Context, Error, Kind, Result};

/// Larger is neither NVRAM nor the state of a TPM.
const LARGEST: u64 = 64 << 20;

/// A file or directory that the clone gets a copy of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// `nvram` or `tpm`.
    pub what: &'static str,
    /// The source's.
    pub from: PathBuf,
    /// The clone's.
    pub to: PathBuf,
    /// What the source's was, where it is not taken as it is now.
    pub kept: Option<Tree>,
}

impl Part {
    /// Whether the source has it.
    pub fn is_there(&self) -> bool {
        self.kept.is_some() || self.from.exists()
    }

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
        match &self.kept {
            Some(tree) => tree.write(&self.to, undo),
            None => Tree::read(&self.from)?.write(&self.to, undo),
        }
    }
}

/// A file, or a directory with all that is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// Directories come before what is in them.
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Below the top, which itself is "".
    path: PathBuf,
    uid: u32,
    gid: u32,
    mode: u32,
    /// Of a file.
    #[serde(with = "hex", default, skip_serializing_if = "Option::is_none")]
    bytes: Option<Vec<u8>>,
}

impl Tree {
    /// Takes what is there now.
    pub fn read(from: &Path) -> Result<Tree> {
        let mut tree = Tree::default();
        let mut room = LARGEST;
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            let place = below(from, &path);
            // The top may be a link to it; what is below is not followed out of it.
            let top = path.as_os_str().is_empty();
            let look = if top { fs::metadata(&place) } else { fs::symlink_metadata(&place) };
            let look = look.context("look at", &place)?;
            let entry = Entry { uid: look.uid(), gid: look.gid(), mode: look.mode() & 0o7777, path, bytes: None };
            if look.is_dir() {
                for found in fs::read_dir(&place).context("read directory", &place)? {
                    waiting.push(entry.path.join(found.context("read directory", &place)?.file_name()));
                }
                tree.entries.push(entry);
            } else if look.is_file() {
                let bytes = read_file(&place, &mut room)?;
                tree.entries.push(Entry { bytes: Some(bytes), ..entry });
            }
            // A lock or a socket belongs to the process that made it.
        }
        Ok(tree)
    }

    /// Makes it anew at another place, durably. What is there already is never replaced.
    pub fn write(&self, to: &Path, undo: &mut Undo) -> Result<()> {
        for Entry { path, uid, gid, mode, bytes } in &self.entries {
            if path.components().any(|part| !matches!(part, Component::Normal(_))) {
                return Err(Error::new(Kind::Damaged, "create").at(path).because("it is no path below another"));
            }
            let place = below(to, path);
            match bytes {
                None => {
                    fs::DirBuilder::new().mode(0o700).create(&place).context("create", &place)?;
                    undo.directory(&place);
                }
                Some(bytes) => {
                    let mut options = OpenOptions::new();
                    options.write(true).create_new(true).mode(0o600);
                    let mut file = options.open(&place).context("create", &place)?;
                    undo.file(&place);
                    file.write_all(bytes).and_then(|()| file.sync_all()).context("write", &place)?;
                }
            }
            // The owner first: giving it away takes special bits off the mode.
            chown(&place, Some(*uid), Some(*gid)).context("give the owner to", &place)?;
            fs::set_permissions(&place, fs::Permissions::from_mode(*mode)).context("give the mode to", &place)?;
        }
        Ok(())
    }
}

/// Without a slash at the end, which the path of a file must not have.
fn below(top: &Path, path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { top.to_path_buf() } else { top.join(path) }
}

fn read_file(path: &Path, room: &mut u64) -> Result<Vec<u8>> {
    let file = File::open(path).context("open", path)?;
    let mut bytes = Vec::new();
    file.take(*room + 1).read_to_end(&mut bytes).context("read", path)?;
    let large = || Error::new(Kind::TooLarge, "copy").at(path).because("it is far larger than NVRAM or a TPM's state");
    *room = room.checked_sub(bytes.len() as u64).ok_or_else(large)?;
    Ok(bytes)
}

/// Bytes as text.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    const DIGITS: &[u8; 16] = b"0123456789abcdef";

    pub fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        let digits = |byte: &u8| [byte >> 4, byte & 15].map(|half| char::from(DIGITS[usize::from(half)]));
        serializer.serialize_str(&bytes.iter().flatten().flat_map(digits).collect::<String>())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let half = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
        let byte = |pair: &[u8]| match pair {
            [high, low] => Some(half(*high)? << 4 | half(*low)?),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(byte).collect();
        bytes.map(Some).ok_or_else(|| D::Error::custom("these are not bytes in hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::virsh::Virsh;

    #[test]
    fn a_state_is_copied_byte_for_byte_with_mode_and_without_replacing_anything() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("uuid1"), dir.path().join("uuid2"));
        fs::create_dir_all(from.join("tpm2")).unwrap();
        fs::write(from.join("tpm2/state"), [0, 1, 255]).unwrap();
        fs::set_permissions(from.join("tpm2/state"), fs::Permissions::from_mode(0o640)).unwrap();
        let virsh = Virsh::default();
        let part = Part { what: "tpm", from: from.clone(), to: to.clone(), kept: None };
        part.check().unwrap();
        let mut undo = Undo::new(&virsh);
        part.copy(&mut undo).unwrap();
        assert_eq!(fs::read(to.join("tpm2/state")).unwrap(), [0, 1, 255]);
        assert_eq!(fs::metadata(to.join("tpm2/state")).unwrap().mode() & 0o777, 0o640);
        assert!(part.check().unwrap_err().to_string().contains("exists"));
        assert!(part.copy(&mut Undo::new(&virsh)).is_err());
        drop(undo);
        assert!(!to.exists());
        // What was kept is put there in place of what is there now, also after it was written down.
        let kept = serde_json::to_string(&Tree::read(&from).unwrap()).unwrap();
        fs::write(from.join("tpm2/state"), [9]).unwrap();
        let part = Part { kept: serde_json::from_str(&kept).unwrap(), ..part };
        let mut undo = Undo::new(&virsh);
        part.copy(&mut undo).unwrap();
        assert_eq!(fs::read(to.join("tpm2/state")).unwrap(), [0, 1, 255]);
    }

    #[test]
    fn what_is_no_state_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let virsh = Virsh::default();
        let text = |path: &str, bytes: &str| {
            format!(r#"{{"entries":[{{"path":"{path}","uid":0,"gid":0,"mode":0,"bytes":"{bytes}"}}]}}"#)
        };
        for (path, bytes) in [("../x", "00"), ("/x", "00")] {
            let tree: Tree = serde_json::from_str(&text(path, bytes)).unwrap();
            let error = tree.write(&dir.path().join("to"), &mut Undo::new(&virsh)).unwrap_err().to_string();
            assert!(error.contains("no path below"), "{error}");
        }
        for bytes in ["0", "0g", "zz"] {
            assert!(serde_json::from_str::<Tree>(&text("", bytes)).is_err(), "{bytes}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let big = dir.path().join("big");
        File::create(&big).unwrap().set_len(LARGEST + 1).unwrap();
        let error = Tree::read(&big).unwrap_err().to_string();
        assert!(error.contains("larger than NVRAM"), "{error}");
    }
}
