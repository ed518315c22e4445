//! A seed for cloud-init (NoCloud): a small disk labelled CIDATA with `meta-data` and `user-data` on it. A new instance
//! id makes cloud-init treat the clone as a new machine: new host name, new SSH host keys.
//!
//! The disk is written here, so that no other program is needed: FAT12 with sectors of 2048 bytes, which can be
//! mounted as a disk and as a CD-ROM. Layout: boot sector, two tables of one sector, a root directory of one, files.

use crate::error::{Error, Kind, Result};

const SECTOR: usize = 2048;
/// Sectors before the first cluster.
const HEAD: usize = 4;
/// Largest file: cloud-init reads no larger one from anywhere.
const LARGEST: usize = 512 << 10;
/// Clusters on the disk: room for both files, and what no program takes for less than a FAT12 can have.
const CLUSTERS: usize = 2 * LARGEST / SECTOR + 16;
/// 1 January 1980, the first day that FAT knows: the same contents are always the same bytes.
const DATE: [u8; 2] = [0x21, 0];

/// What a clone is told about itself.
#[derive(Clone, Debug)]
pub struct Seed {
    /// `meta-data`.
    pub meta_data: String,
    /// `user-data`.
    pub user_data: String,
}

impl Seed {
    /// The seed of a new machine. Of `meta_data` everything stays but the instance id and, if one is given, the host
    /// name.
    pub fn new(instance: &str, hostname: Option<&str>, meta_data: Option<&str>, user_data: Option<&str>) -> Seed {
        let replaced = |line: &&str| {
            line.starts_with("instance-id:") || (hostname.is_some() && line.starts_with("local-hostname:"))
        };
        let kept = meta_data.unwrap_or_default().lines().filter(|line| !replaced(line));
        let mut lines = vec![format!("instance-id: iid-{instance}")];
        lines.extend(hostname.map(|name| format!("local-hostname: {name}")));
        lines.extend(kept.map(str::to_owned));
        Seed { meta_data: lines.join("\n") + "\n", user_data: user_data.unwrap_or("#cloud-config\n{}\n").to_owned() }
    }

    /// The disk.
    pub fn image(&self) -> Result<Vec<u8>> {
        let files = [("meta-data", "META-D~1   ", &self.meta_data), ("user-data", "USER-D~1   ", &self.user_data)];
        let mut image = vec![0; (HEAD + CLUSTERS) * SECTOR];
        boot_sector(&mut image[..SECTOR]);
        let mut table = vec![0xff8, 0xfff];
        let mut root = entry(b"CIDATA     ", 8, 0, 0).to_vec();
        for (name, short, text) in files {
            if text.len() > LARGEST {
                return Err(Error::new(Kind::TooLarge, format!("write {name}"))
                    .because(format!("it has {} bytes, cloud-init takes {LARGEST} at most", text.len())));
            }
            let first = table.len();
            let count = text.len().div_ceil(SECTOR);
            table.extend((1..=count).map(|n| if n == count { 0xfff } else { (first + n) as u16 }));
            let short: &[u8; 11] = short.as_bytes().try_into().unwrap_or(b"FILE       ");
            root.extend(long_name(name, short));
            root.extend(entry(short, 0x20, if count == 0 { 0 } else { first as u16 }, text.len() as u32));
            let at = (HEAD + first - 2) * SECTOR;
            image[at..at + text.len()].copy_from_slice(text.as_bytes());
        }
        for copy in [SECTOR, 2 * SECTOR] {
            write_table(&mut image[copy..copy + SECTOR], &table);
        }
        image[3 * SECTOR..][..root.len()].copy_from_slice(&root);
        Ok(image)
    }
}

fn boot_sector(sector: &mut [u8]) {
    let total = (HEAD + CLUSTERS) as u16;
    let mut put = |at: usize, bytes: &[u8]| sector[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0xeb, 0x3c, 0x90]);
    put(3, b"CLONEFS ");
    put(11, &(SECTOR as u16).to_le_bytes());
    // Sectors in a cluster 1, reserved 1, tables 2.
    put(13, &[1, 1, 0, 2]);
    put(17, &((SECTOR / 32) as u16).to_le_bytes());
    put(19, &total.to_le_bytes());
    // A fixed disk; sectors in a table 1; a geometry that nobody asks for.
    put(21, &[0xf8, 1, 0, 32, 0, 1, 0]);
    // Drive, signature of what follows, serial number, label, type.
    put(36, &[0x80, 0, 0x29]);
    put(39, b"CFS1");
    put(43, b"CIDATA     FAT12   ");
    put(510, &[0x55, 0xaa]);
}

/// Entries of 12 bits, two in three bytes.
fn write_table(sector: &mut [u8], table: &[u16]) {
    for (n, &value) in table.iter().enumerate() {
        let at = n * 3 / 2;
        let [low, high] = value.to_le_bytes();
        if n % 2 == 0 {
            sector[at] = low;
            sector[at + 1] |= high;
        } else {
            sector[at] |= low << 4;
            sector[at + 1] = low >> 4 | high << 4;
        }
    }
}

/// A directory entry.
fn entry(name: &[u8; 11], attributes: u8, cluster: u16, size: u32) -> [u8; 32] {
    let mut entry = [0; 32];
    entry[..11].copy_from_slice(name);
    entry[11] = attributes;
    for date in [16, 18, 24] {
        entry[date..date + 2].copy_from_slice(&DATE);
    }
    entry[26..28].copy_from_slice(&cluster.to_le_bytes());
    entry[28..].copy_from_slice(&size.to_le_bytes());
    entry
}

/// The entry before an entry that holds a name in full: up to 13 characters here.
fn long_name(name: &str, short: &[u8; 11]) -> [u8; 32] {
    const PLACES: [usize; 13] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
    let mut entry = [0; 32];
    let characters = name.bytes().map(u16::from).chain([0]).chain(std::iter::repeat(0xffff));
    for (place, character) in PLACES.into_iter().zip(characters) {
        entry[place..place + 2].copy_from_slice(&character.to_le_bytes());
    }
    // The first and last of its kind; an attribute that old programs leave alone; a checksum of the short name.
    entry[0] = 0x41;
    entry[11] = 0x0f;
    entry[13] = short.iter().fold(0, |sum: u8, &byte| sum.rotate_right(1).wrapping_add(byte));
    entry
}

/// Whether a disk is such a seed, by its label.
pub fn is_seed(start: &[u8]) -> bool {
    let label = |at: usize, len: usize| {
        start.get(at..at + len).is_some_and(|l| l.trim_ascii_end().eq_ignore_ascii_case(b"cidata"))
    };
    let iso = start.get(32769..32774) == Some(b"CD001") && label(32808, 32);
    let fat = start.get(510..512) == Some(&[0x55, 0xaa]) && (label(43, 11) || label(71, 11));
    iso || fat
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_instance_is_new_and_the_rest_of_the_meta_data_stays() {
        let given = "instance-id: old\nlocal-hostname: old\npublic-keys:\n  - ssh-ed25519 AAAA\n";
        let seed = Seed::new("1234", Some("web1"), Some(given), None);
        assert_eq!(seed.meta_data, "instance-id: iid-1234\nlocal-hostname: web1\npublic-keys:\n  - ssh-ed25519 AAAA\n");
        let seed = Seed::new("1", None, Some(given), Some("#cloud-config\nusers: []\n"));
        assert!(seed.meta_data.contains("local-hostname: old") && seed.user_data.contains("users"));
    }

    #[test]
    fn the_label_tells_a_seed_from_other_disks() {
        let image = Seed::new("1", None, None, None).image().unwrap();
        assert!(is_seed(&image));
        let mut iso = vec![0; 40000];
        iso[32769..32774].copy_from_slice(b"CD001");
        iso[32808..32816].copy_from_slice(b"cidata  ");
        iso[32816..32840].fill(b' ');
        assert!(is_seed(&iso));
        iso[32808] = b'x';
        assert!(!is_seed(&iso) && !is_seed(&[]) && !is_seed(&[0; 512]));
    }

    #[test]
    fn other_programs_read_what_was_written() {
        if Command::new("mcopy").arg("--version").output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "mtools is missing");
            eprintln!("SKIPPED: mtools is not installed");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (disk, out) = (dir.path().join("seed.img"), dir.path().join("out"));
        // Many clusters in each file, so that the chains cross bytes of the table in all ways.
        let seed = Seed { meta_data: "m".repeat(5 * SECTOR + 1), user_data: "0123456789\n".repeat(40000) };
        std::fs::write(&disk, seed.image().unwrap()).unwrap();
        for (name, want) in [("meta-data", &seed.meta_data), ("user-data", &seed.user_data)] {
            let copied = Command::new("mcopy")
                .args(["-n", "-i"])
                .arg(&disk)
                .arg(format!("::{name}"))
                .arg(&out)
                .output()
                .unwrap();
            assert!(copied.status.success(), "{copied:?}");
            assert_eq!(&std::fs::read_to_string(&out).unwrap(), want);
            std::fs::remove_file(&out).unwrap();
        }
        let label = Command::new("blkid").args(["-p", "-o", "value", "-s", "LABEL"]).arg(&disk).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&label.stdout).trim(), "CIDATA");
        let check = Command::new("fsck.fat").arg("-n").arg(&disk).output().unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
        let large = Seed { meta_data: String::new(), user_data: "x".repeat(LARGEST + 1) };
        assert!(large.image().is_err());
    }
}
