//! Maps of layers: the log, its records, and the bitmaps in them.

#![no_main]

use clonefs::engine::layer::map;
use clonefs::engine::store::log;
use clonefs::units::Id;
use libfuzzer_sys::fuzz_target;

const MAGIC: &[u8; 8] = b"cfsmap01";

fn sealed<'a>(payloads: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut bytes = log::header(MAGIC, 1).to_vec();
    for (number, payload) in payloads.enumerate() {
        bytes.extend(log::encode(1, number as u64 + 1, number as u64, payload));
    }
    bytes
}

/// A record with these two bitmaps, of which the first has the length that the record says.
fn record(bytes: &[u8]) -> Vec<u8> {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let mut payload = vec![0; 20];
    payload.extend((first.len() as u32).to_le_bytes());
    payload.extend(first);
    payload.extend(second);
    payload
}

fuzz_target!(|bytes: &[u8]| {
    let _ = clonefs::engine::layer::unsynced::decode(bytes, 1);
    let _ = map::decode(bytes, Id(1));
    let _ = map::decode(&sealed([bytes].into_iter()), Id(1));
    let wrapped = record(bytes);
    if let Ok((presence, _)) = map::decode(&sealed([wrapped.as_slice()].into_iter()), Id(1)) {
        // What a hostile bitmap says must be usable as any other is.
        let present = presence.present;
        let again: roaring::RoaringBitmap = present.iter().take(1 << 16).collect();
        assert!(again.len() <= present.len());
        assert!(present.range(7..9).count() <= 2);
        let mut more = present.clone();
        more.insert_range(5..70_000);
        more -= &present;
        assert!(more.is_disjoint(&present));
    }
});
