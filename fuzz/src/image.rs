//! Headers of images that are imported.

#![no_main]

use clonefs::client::transfer::{ImportFormat, image};
use libfuzzer_sys::fuzz_target;

const FORMATS: [ImportFormat; 5] =
    [ImportFormat::Raw, ImportFormat::Qcow2, ImportFormat::Vmdk, ImportFormat::Vhdx, ImportFormat::Vdi];

fuzz_target!(|bytes: &[u8]| {
    for format in FORMATS {
        let _ = image::check(format, bytes, bytes.len() as u64);
        let _ = image::check(format, bytes, u64::MAX);
    }
    if let Ok((_, _, allocated)) = image::vdi_map(bytes) {
        let _ = image::vdi_entry_is_valid(7, allocated);
    }
    let mut copy = bytes.to_vec();
    image::forget_backing(&mut copy);
    assert_eq!(copy.len(), bytes.len());
    if let Ok(header) = image::check(ImportFormat::Qcow2, &copy, copy.len() as u64) {
        assert!(header.backing.is_none(), "a backing file was not forgotten");
    }
});
