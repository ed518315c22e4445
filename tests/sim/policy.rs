//! Crashes while policies are changed: what was in force before, or what is to be, and never anything else.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use clonefs::engine::policy::{Patch, Policy};
use clonefs::engine::pool::Pool;

use crate::common::rng::Rng;
use crate::common::served::serve;
use crate::common::simfs::{Options, SimFs};
use crate::common::world::World;

fn policies(pool: &Arc<Pool>) -> BTreeMap<String, Policy> {
    let listing = pool.policies().list();
    assert_eq!(listing.trouble, None);
    listing.policies
}

#[test]
fn a_change_of_policies_is_there_whole_or_not_at_all() {
    let changes = [
        ("v0.img", "protect", true.into()),
        ("", "deepen", "idle".into()),
        ("v0.img", "snapshots", "hourly=24,daily=7".into()),
        ("", "rate", "200M".into()),
        ("v0.img", "protect", serde_json::Value::Null),
        ("", "deepen", "manual".into()),
    ];
    let mut states = 0;
    for seed in 0..8 {
        let options = Options { sync_names: seed % 2 == 0, ..Options::default() };
        let world = World::new(SimFs::new(options), options.sync_names).unwrap();
        for (number, (path, name, value)) in changes.iter().enumerate() {
            let before = policies(&world.pool);
            let patch = Patch::from([((*name).to_owned(), value.clone())]);
            world.fs.start_capture(Rng::new(seed * 100 + number as u64), 4);
            world.pool.change_policy(Path::new(path), &patch, |_, _| Ok(())).unwrap();
            let (during, after) = world.fs.stop_capture();
            let now = policies(&world.pool);
            assert!(before != now && !during.is_empty());
            let moments = during.iter().map(|moment| (moment, false)).chain(after.iter().map(|moment| (moment, true)));
            for (moment, acknowledged) in moments {
                let (pool, _names) = serve(&SimFs::from_image(moment.image.clone(), options)).unwrap();
                let found = policies(&pool);
                assert!(found == now || !acknowledged && found == before, "{:?}: {found:?}", moment.before);
                states += 1;
            }
        }
    }
    println!("policies: {states} states");
}
