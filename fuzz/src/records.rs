//! The records of volumes and layers: `pool.json`, the catalogue, and the journal with the log that carries it.

#![no_main]

use clonefs::engine::store::catalogue::{self, Catalogue};
use clonefs::engine::store::record::Change;
use clonefs::engine::store::{FORMAT, PoolFile, log};
use libfuzzer_sys::fuzz_target;

const MAGIC: &[u8; 8] = b"cfsjrnl1";

fn replay(bytes: &[u8]) {
    let Ok(scan) = log::scan(bytes, MAGIC, 1) else { return };
    assert!(scan.valid as usize <= bytes.len());
    let mut catalogue = Catalogue::default();
    for record in scan.records {
        if let Ok(changes) = serde_json::from_slice::<Vec<Change>>(&bytes[record]) {
            changes.into_iter().for_each(|change| catalogue.apply(change));
        }
    }
}

/// What was understood can be written, and is understood again.
fn written_again(bytes: &[u8]) {
    let Ok(found) = catalogue::decode(bytes, FORMAT) else { return };
    let written = catalogue::encode(&found.catalogue, found.generation, FORMAT).expect("records can be written");
    let again = catalogue::decode(&written, FORMAT).expect("what was written can be read");
    assert!(again.damage.is_empty());
    assert_eq!(again.catalogue.volume_count(), found.catalogue.volume_count());
    assert_eq!(again.catalogue.layer_count(), found.catalogue.layer_count());
}

fuzz_target!(|bytes: &[u8]| {
    let _ = serde_json::from_slice::<PoolFile>(bytes);
    let _ = catalogue::decode(bytes, FORMAT);
    replay(bytes);
    let mut framed = log::header(MAGIC, 1).to_vec();
    framed.extend(bytes);
    replay(&framed);
    // Line by line with checksums that are right, as a hostile file has them.
    let (mut lines, mut records) = (Vec::new(), log::header(MAGIC, 1).to_vec());
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        lines.extend(format!("{:08x} ", crc32c::crc32c(line)).into_bytes());
        lines.extend(line);
        lines.push(b'\n');
        records.extend(log::encode(1, number as u64 + 1, number as u64, line));
    }
    written_again(&lines);
    replay(&records);
});
