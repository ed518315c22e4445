//! What the doors of a mount take: JSON in attributes, the argument of the clone ioctl, marks of stubs. And the answers,
//! which the command line reads: a mount can be a stranger's.

#![no_main]

use clonefs::engine::namespace;
use clonefs::engine::pool::stub::Mark;
use clonefs::protocol::{PoolStatus, VolumeInfo};
use clonefs::units::Id;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    namespace::decode_requests(bytes);
    let _ = Mark::parse(bytes, Some(Id(1)));
    let _ = serde_json::from_slice::<VolumeInfo>(bytes);
    let _ = serde_json::from_slice::<PoolStatus>(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = text.parse::<Id>();
    }
});
