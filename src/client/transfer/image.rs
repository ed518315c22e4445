//! What an image file says about itself, read with suspicion: an image may come from anywhere.
//!
//! Headers are checked here, before qemu-img sees the file, so that one that names other files, asks for absurd tables
//! or is not of its format gets a clear error. The bytes that were checked are the bytes that qemu-img gets.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::ImportFormat;
use crate::units::{MAX_VOLUME, format_size};

/// How many first bytes of an image are looked at and kept: the largest qcow2 cluster, which holds all of a header.
pub const PREFIX: u64 = 2 << 20;

/// Longest file name that a qcow2 header may hold, by its specification.
const MAX_NAME: u32 = 1023;
/// Largest L1 table that QEMU loads.
const MAX_L1: u64 = 32 << 20;

/// What a header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The file that it reads absent data from.
    pub backing: Option<Reference>,
    /// The file that holds its data.
    pub data_file: Option<Reference>,
    /// The unit in which the file grows: a file that ends within one is cut short if that part is ever read.
    pub granule: Option<u64>,
}

/// Another file that an image names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Its name; relative to the directory of the image.
    pub name: PathBuf,
    /// Its format as the image says.
    pub format: Option<String>,
}

/// Why an image is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not of this format, or damaged.
    Bad(String),
    /// It is valid, but cannot be imported.
    Unsupported(String, &'static str),
    /// Its virtual size is more than a volume can have.
    TooLarge(u64),
}

fn bad<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Bad(why.into()))
}

/// Checks the first bytes of an image, at most [`PREFIX`], of a file of `len` bytes.
pub fn check(format: ImportFormat, prefix: &[u8], len: u64) -> Result<Header, Refusal> {
    match format {
        ImportFormat::Raw => check_size(len).map(|()| Header::default()),
        ImportFormat::Qcow2 => check_qcow2(prefix),
        ImportFormat::Vmdk => check_vmdk(prefix),
        ImportFormat::Vhdx => check_magic(prefix, 0, b"vhdxfile").map(|()| Header::default()),
        ImportFormat::Vdi => check_vdi(prefix, len),
    }
}

/// Refuses a virtual size that no volume can have.
pub fn check_size(bytes: u64) -> Result<(), Refusal> {
    if bytes > MAX_VOLUME { Err(Refusal::TooLarge(bytes)) } else { Ok(()) }
}

fn check_magic(prefix: &[u8], at: usize, magic: &[u8]) -> Result<(), Refusal> {
    match prefix.get(at..at + magic.len()) {
        Some(found) if found == magic => Ok(()),
        _ => bad("the file does not begin like an image of this format"),
    }
}

/// The `N` bytes at `at`.
fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Refusal> {
    let found = bytes.get(at..).and_then(|b| b.first_chunk::<N>());
    found.copied().ok_or_else(|| Refusal::Bad("the file ends within its header".into()))
}

fn be32(bytes: &[u8], at: usize) -> Result<u32, Refusal> {
    field(bytes, at).map(u32::from_be_bytes)
}

fn be64(bytes: &[u8], at: usize) -> Result<u64, Refusal> {
    field(bytes, at).map(u64::from_be_bytes)
}

fn le32(bytes: &[u8], at: usize) -> Result<u32, Refusal> {
    field(bytes, at).map(u32::from_le_bytes)
}

fn le64(bytes: &[u8], at: usize) -> Result<u64, Refusal> {
    field(bytes, at).map(u64::from_le_bytes)
}

// ---- qcow2 -------------------------------------------------------------------------------------------------------

const QCOW2_CORRUPT: u64 = 1 << 1;
const QCOW2_DATA_FILE: u64 = 1 << 2;
/// Dirty, corrupt, data file, compression type, extended L2 entries.
const QCOW2_KNOWN_FEATURES: u64 = 0x1f;
const QCOW2_BACKING_FORMAT: u32 = 0xe279_2aca;
const QCOW2_DATA_FILE_NAME: u32 = 0x4441_5441;

fn check_qcow2(prefix: &[u8]) -> Result<Header, Refusal> {
    check_magic(prefix, 0, b"QFI\xfb")?;
    let version = be32(prefix, 4)?;
    let (features, header_len) = match version {
        2 => (0, 72),
        3 => (be64(prefix, 72)?, be32(prefix, 100)?),
        _ => return bad(format!("qcow2 has versions 2 and 3, not {version}")),
    };
    let cluster_bits = be32(prefix, 20)?;
    if !(9..=21).contains(&cluster_bits) {
        return bad(format!("a qcow2 cluster has 2^9 to 2^21 bytes, not 2^{cluster_bits}"));
    }
    let cluster = 1u64 << cluster_bits;
    let header = &prefix[..prefix.len().min(cluster as usize)];
    if (version == 3 && header_len < 104) || u64::from(header_len) > cluster {
        return bad(format!("its header cannot have {header_len} bytes"));
    }
    check_size(be64(header, 24)?)?;
    if be32(header, 32)? != 0 {
        return Err(Refusal::Unsupported("it is encrypted".into(), "decrypt it with qemu-img convert first"));
    }
    let l1_bytes = u64::from(be32(header, 36)?) * 8;
    if l1_bytes > MAX_L1 {
        return bad(format!("its L1 table cannot have {l1_bytes} bytes"));
    }
    if features & !QCOW2_KNOWN_FEATURES != 0 {
        let what = format!("it needs qcow2 features that are not known here ({features:#x})");
        return Err(Refusal::Unsupported(what, "convert it with the qemu-img that made it"));
    }
    if features & QCOW2_CORRUPT != 0 {
        return bad("it is marked as corrupt; qemu-img check -r all may repair it");
    }
    let (format, data_name) = qcow2_extensions(header, header_len as usize)?;
    Ok(Header {
        backing: qcow2_backing(header)?.map(|name| Reference { name, format }),
        data_file: qcow2_data_file(features, data_name)?,
        granule: Some(cluster),
    })
}

/// Makes a checked qcow2 header name no backing file. The one that is meant is given to qemu-img as a descriptor, and
/// it takes that only where the header has no name.
pub fn forget_backing(prefix: &mut [u8]) {
    if let Some(offset_and_length) = prefix.get_mut(8..20) {
        offset_and_length.fill(0);
    }
}

fn qcow2_backing(header: &[u8]) -> Result<Option<PathBuf>, Refusal> {
    let (offset, len) = (be64(header, 8)?, be32(header, 16)?);
    if offset == 0 {
        return Ok(None);
    }
    let name = usize::try_from(offset).ok().and_then(|o| header.get(o..o.checked_add(len as usize)?));
    match name {
        Some(name) if !name.is_empty() && len <= MAX_NAME => Ok(Some(path_of(name))),
        _ => bad("the name of its backing file does not lie in its header"),
    }
}

fn qcow2_data_file(features: u64, name: Option<PathBuf>) -> Result<Option<Reference>, Refusal> {
    match name {
        _ if features & QCOW2_DATA_FILE == 0 => Ok(None),
        Some(name) => Ok(Some(Reference { name, format: Some("raw".into()) })),
        None => bad("it keeps its data in another file and does not name that"),
    }
}

/// Format of the backing file and name of the data file.
fn qcow2_extensions(header: &[u8], mut at: usize) -> Result<(Option<String>, Option<PathBuf>), Refusal> {
    let (mut format, mut data_name) = (None, None);
    // A header without the end mark ends with its cluster, or where the backing file's name begins.
    let end = match be64(header, 8)? {
        0 => header.len(),
        name => header.len().min(usize::try_from(name).unwrap_or(usize::MAX)),
    };
    while at + 8 <= end {
        let (kind, len) = (be32(header, at)?, be32(header, at + 4)? as usize);
        let data = header.get(at + 8..).and_then(|b| b.get(..len));
        match (kind, data) {
            (0, _) => break,
            (_, None) => return bad("an extension of its header is longer than the header"),
            (QCOW2_BACKING_FORMAT, Some(name)) => format = Some(String::from_utf8_lossy(name).into_owned()),
            (QCOW2_DATA_FILE_NAME, Some(name)) => data_name = Some(path_of(name)),
            _ => {}
        }
        at += 8 + len.next_multiple_of(8);
    }
    Ok((format, data_name))
}

fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

// ---- vmdk --------------------------------------------------------------------------------------------------------

const VMDK_COMPRESSED: u32 = 1 << 16;

fn check_vmdk(prefix: &[u8]) -> Result<Header, Refusal> {
    let several = |what: &str| {
        Err(Refusal::Unsupported(what.into(), "make one file of it with qemu-img convert, then import that"))
    };
    if prefix.starts_with(b"# Disk DescriptorFile") {
        return several("it is a descriptor, which keeps its data in other files");
    }
    if prefix.starts_with(b"COWD") {
        return several("it is an ESX redo log");
    }
    check_magic(prefix, 0, b"KDMV")?;
    let (capacity, grain) = (le64(prefix, 12)?, le64(prefix, 20)?);
    let (offset, sectors, flags) = (le64(prefix, 28)?, le64(prefix, 36)?, le32(prefix, 8)?);
    if capacity == 0 {
        return several("it has no data of its own");
    }
    check_size(capacity.saturating_mul(512))?;
    if !grain.is_power_of_two() || !(8..=4096).contains(&grain) {
        return bad(format!("a grain of a vmdk image cannot have {grain} sectors"));
    }
    if offset == 0 || sectors == 0 {
        return several("it is one part of an image of several files");
    }
    let text = offset.checked_mul(512).and_then(|o| usize::try_from(o).ok()).and_then(|o| prefix.get(o..));
    let Some(text) = text.filter(|_| sectors <= 1024) else {
        return bad("its descriptor does not lie at its beginning");
    };
    check_descriptor(&text[..text.len().min(sectors as usize * 512)])?;
    // Compressed grains have any length; those that are cut short do not decompress.
    let granule = if flags & VMDK_COMPRESSED != 0 { None } else { Some(grain * 512) };
    Ok(Header { granule, ..Header::default() })
}

/// Checks the descriptor that is embedded in a vmdk image.
fn check_descriptor(text: &[u8]) -> Result<(), Refusal> {
    let text = text.split(|&b| b == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let value = |key: &str| {
        let line = text.lines().find_map(|l| l.trim().strip_prefix(key)?.trim_start().strip_prefix('='));
        line.map(|v| v.trim().trim_matches('"').to_owned())
    };
    let kind = value("createType").unwrap_or_default();
    let extents = text.lines().filter(|l| ["RW ", "RDONLY ", "NOACCESS "].iter().any(|a| l.trim().starts_with(a)));
    let remedy = "make one file of it with qemu-img convert, then import that";
    if text.contains("parentFileNameHint") || value("parentCID").is_some_and(|c| !c.eq_ignore_ascii_case("ffffffff")) {
        return Err(Refusal::Unsupported("it is a snapshot over another file".into(), remedy));
    }
    if !matches!(kind.as_str(), "monolithicSparse" | "streamOptimized") || extents.count() != 1 {
        return Err(Refusal::Unsupported(format!("it is of type {kind:?}, which is more than one file"), remedy));
    }
    Ok(())
}

// ---- vdi ---------------------------------------------------------------------------------------------------------

/// Offset and number of entries of the block map of a vdi image that [`check`] has passed, and how many blocks its
/// file holds: no entry may be as large as that.
pub fn vdi_map(prefix: &[u8]) -> Result<(u64, u32, u32), Refusal> {
    Ok((le32(prefix, 0x154)?.into(), le32(prefix, 0x180)?, le32(prefix, 0x184)?))
}

/// Whether an entry of the block map of a vdi image, which has `allocated` blocks, stands for a block.
pub fn vdi_entry_is_valid(entry: u32, allocated: u32) -> bool {
    // The two highest values stand for "absent" and "zeros".
    entry >= 0xffff_fffe || entry < allocated
}

fn check_vdi(prefix: &[u8], len: u64) -> Result<Header, Refusal> {
    check_magic(prefix, 0x40, &0xbeda_107f_u32.to_le_bytes())?;
    check_size(le64(prefix, 0x170)?)?;
    let (map, data) = (u64::from(le32(prefix, 0x154)?), u64::from(le32(prefix, 0x158)?));
    let (block, blocks, allocated) = (le32(prefix, 0x178)?, le32(prefix, 0x180)?, le32(prefix, 0x184)?);
    if !(1..=2).contains(&le32(prefix, 0x4c)?) {
        let remedy = "make one file of it with VBoxManage clonemedium, then import that";
        return Err(Refusal::Unsupported("it is a snapshot over another file".into(), remedy));
    }
    if allocated > blocks || map + u64::from(blocks) * 4 > data.next_multiple_of(512) {
        return bad("its block map contradicts itself");
    }
    let end = data + u64::from(allocated) * u64::from(block);
    if end > len {
        return bad(format!("it is cut short: it has {} and should have {}", format_size(len), format_size(end)));
    }
    Ok(Header::default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A qcow2 header of version 3 with a backing file, its format and nothing else.
    fn qcow2() -> Vec<u8> {
        let mut header = vec![0u8; 65536];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"QFI\xfb\0\0\0\x03");
        put(8, &1000u64.to_be_bytes());
        put(16, &8u32.to_be_bytes());
        put(20, &16u32.to_be_bytes());
        put(24, &(1u64 << 30).to_be_bytes());
        put(36, &2u32.to_be_bytes());
        put(100, &104u32.to_be_bytes());
        put(104, &QCOW2_BACKING_FORMAT.to_be_bytes());
        put(108, &3u32.to_be_bytes());
        put(112, b"raw");
        put(1000, b"base.img");
        header
    }

    #[test]
    fn a_backing_file_is_found_with_its_format_and_can_be_forgotten() {
        let mut header = qcow2();
        let base = Reference { name: "base.img".into(), format: Some("raw".into()) };
        let found = check(ImportFormat::Qcow2, &header, 1 << 20).unwrap();
        assert_eq!(found, Header { backing: Some(base), data_file: None, granule: Some(65536) });
        forget_backing(&mut header);
        assert_eq!(check(ImportFormat::Qcow2, &header, 1 << 20).unwrap().backing, None);
    }

    #[test]
    fn a_name_or_an_extension_outside_the_header_is_refused() {
        for (at, value) in [(8, 65530u64), (8, u64::MAX), (108, 0x0100_0000_0000_0000)] {
            let mut header = qcow2();
            header[at..at + 8].copy_from_slice(&value.to_be_bytes());
            assert!(matches!(check(ImportFormat::Qcow2, &header, 1 << 20), Err(Refusal::Bad(_))), "{at}");
        }
    }

    /// Files that begin as they should and go on as they like.
    fn images() -> impl Strategy<Value = (ImportFormat, Vec<u8>)> {
        let begin = prop_oneof![
            Just((ImportFormat::Qcow2, qcow2())),
            Just((ImportFormat::Vmdk, b"KDMV".to_vec())),
            Just((ImportFormat::Vhdx, b"vhdxfile".to_vec())),
            Just((ImportFormat::Vdi, [&[0u8; 0x40][..], &0xbeda_107f_u32.to_le_bytes(), &[1, 0, 1, 0]].concat())),
        ];
        let changes = prop::collection::vec((4usize..1100, prop_oneof![Just(0u8), Just(255), any::<u8>()]), 0..80);
        (begin, changes, 4usize..2000).prop_map(|((format, mut bytes), changes, len)| {
            bytes.resize(len.max(bytes.len().min(1200)), 0);
            for (at, value) in changes {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            (format, bytes)
        })
    }

    proptest! {
        #[test]
        fn no_header_makes_the_check_panic((format, bytes) in images(), len in any::<u64>()) {
            if let Ok(header) = check(format, &bytes, len) {
                prop_assert!(header.granule.is_none_or(|g| g.is_power_of_two() && (512..=PREFIX).contains(&g)));
                if format == ImportFormat::Vdi {
                    prop_assert!(vdi_map(&bytes).is_ok());
                }
            }
        }
    }
}
