//! Sizes, blocks and identifiers: the small types that every layer speaks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes in a block, the unit of presence: 4 KiB, the page size and the sector size of most disks.
pub const BLOCK: u64 = 4096;

/// Largest volume, in bytes: 2^32 blocks of 4 KiB (block numbers are the `u32` of a roaring bitmap).
pub const MAX_VOLUME: u64 = (u32::MAX as u64 + 1) * BLOCK - BLOCK;

/// Number of blocks that `bytes` bytes touch, the last one perhaps in part.
pub const fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK)
}

/// Identity of a layer or a volume in one pool: never used twice in the life of a pool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Id(pub u64);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Id> for String {
    fn from(id: Id) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for Id {
    type Error = String;
    fn try_from(text: String) -> Result<Id, String> {
        text.parse()
    }
}

impl FromStr for Id {
    type Err = String;
    fn from_str(text: &str) -> Result<Id, String> {
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("not an id (16 hexadecimal digits): {text:?}"));
        }
        u64::from_str_radix(text, 16).map(Id).map_err(|e| e.to_string())
    }
}

/// Parses a size as people write it: `4096`, `64K`, `40G`, `1.5T`, `200MiB`. Powers of 1024; the result is in bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size: write a number and K, M, G, T, P or E, such as 40G");
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let unit = unit.trim().to_ascii_uppercase();
    let letters = unit.strip_suffix("IB").or_else(|| unit.strip_suffix('B')).unwrap_or(&unit);
    let shift = match letters {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        "E" => 60,
        _ => return Err(bad()),
    };
    let too_large = || format!("{text:?} is larger than any file can be");
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1u64 << shift).ok_or_else(too_large);
    }
    let digits = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let value: f64 = number.parse().map_err(|_| bad())?;
    if !digits || !value.is_finite() {
        return Err(bad());
    }
    let value = value * (1u64 << shift) as f64;
    if value >= u64::MAX as f64 { Err(too_large()) } else { Ok(value.round() as u64) }
}

/// Writes a size for people, in powers of 1024: `512`, `64K`, `1.5G`. Whole values are exact and parse back.
pub fn format_size(bytes: u64) -> String {
    const UNITS: [(u32, &str); 6] = [(60, "E"), (50, "P"), (40, "T"), (30, "G"), (20, "M"), (10, "K")];
    for (shift, letter) in UNITS {
        let unit = 1u64 << shift;
        if bytes >= unit {
            return if bytes.is_multiple_of(unit) {
                format!("{}{letter}", bytes / unit)
            } else {
                format!("{:.1}{letter}", bytes as f64 / unit as f64)
            };
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64K"), Ok(65536));
        assert_eq!(parse_size("40G"), Ok(40 << 30));
        assert_eq!(parse_size("1.5T"), Ok(3 << 39));
        assert_eq!(parse_size("200MiB"), Ok(200 << 20));
        assert_eq!(parse_size("0"), Ok(0));
        for bad in ["", "G", "-1", "1X", "1e9", "40 G B", "nan", "16E", "99999999999999999999"] {
            assert!(parse_size(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn sizes_are_written_short() {
        assert_eq!(format_size(0), "0");
        assert_eq!(format_size(1023), "1023");
        assert_eq!(format_size(65536), "64K");
        assert_eq!(format_size(3 << 29), "1.5G");
    }

    #[test]
    fn ids_parse_back() {
        let id = Id(0xfeed);
        assert_eq!(id.to_string().parse::<Id>(), Ok(id));
        assert!("../etc/passwd".parse::<Id>().is_err());
        assert!("+00000000000feed".parse::<Id>().is_err());
    }
}
