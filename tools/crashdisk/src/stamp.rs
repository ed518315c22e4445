//! Stamped sectors: 512 bytes that say which volume, sector and version they were written as, so that a sector found
//! after a crash cannot be mistaken for another.

/// Bytes in a sector, the unit that the oracle judges.
pub const SECTOR: usize = 512;

const MAGIC: u32 = 0x6B_44_52_43;

/// What a sector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// Zeros.
    Zero,
    /// What volume `volume` wrote there as its version `version`.
    Stamp {
        /// The writer.
        volume: u32,
        /// The version.
        version: u64,
    },
    /// Nothing that was ever written at this place.
    Garbage,
}

impl std::fmt::Display for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Content::Zero => f.write_str("zeros"),
            Content::Stamp { volume, version } => write!(f, "version {version} of volume {volume}"),
            Content::Garbage => f.write_str("bytes that nobody wrote there"),
        }
    }
}

/// The bytes of `count` sectors from `first` on, as volume `volume` writes them in version `version`.
pub fn stamped(volume: u32, first: u64, count: u64, version: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count as usize * SECTOR);
    for sector in first..first + count {
        let start = bytes.len();
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&volume.to_le_bytes());
        bytes.extend_from_slice(&sector.to_le_bytes());
        bytes.extend_from_slice(&version.to_le_bytes());
        let seed = version ^ sector.rotate_left(24) ^ u64::from(volume).rotate_left(48);
        let mut filler = fastrand::Rng::with_seed(seed);
        while bytes.len() < start + SECTOR - 4 {
            bytes.extend_from_slice(&filler.u32(..).to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[start..]);
        bytes.extend_from_slice(&crc.to_le_bytes());
    }
    bytes
}

/// What the 512 bytes `bytes`, found as sector `sector` of a volume, hold.
pub fn read_stamp(bytes: &[u8], sector: u64) -> Content {
    if bytes.iter().all(|&b| b == 0) {
        return Content::Zero;
    }
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|n| bytes[at + n]));
    let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| bytes[at + n]));
    let sound = bytes.len() == SECTOR
        && word(0) == MAGIC
        && long(8) == sector
        && word(SECTOR - 4) == crc32c::crc32c(&bytes[..SECTOR - 4]);
    if sound { Content::Stamp { volume: word(4), version: long(16) } } else { Content::Garbage }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_known_only_at_its_place_and_whole() {
        let bytes = stamped(3, 100, 2, 9);
        assert_eq!(bytes.len(), 1024);
        let (first, second) = bytes.split_at(512);
        assert_eq!(read_stamp(first, 100), Content::Stamp { volume: 3, version: 9 });
        assert_eq!(read_stamp(second, 101), Content::Stamp { volume: 3, version: 9 });
        assert_eq!(read_stamp(second, 100), Content::Garbage);
        assert_eq!(read_stamp(&[0; 512], 100), Content::Zero);
        let mut mixed = first.to_vec();
        mixed[300..].copy_from_slice(&stamped(3, 100, 1, 8)[300..]);
        assert_eq!(read_stamp(&mixed, 100), Content::Garbage);
    }
}
