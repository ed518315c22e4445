//! What the pool says of how volumes differ, beside a comparison of their bytes.

use std::sync::Arc;

use clonefs::engine::pool::Pool;

use super::model::Found;
use super::served::{Outcome, text, volume_of};

const BLOCK: usize = 4096;

/// Every block that differs is named; what is past the end of one of them counts as zeros.
pub fn compare_differences(pool: &Arc<Pool>, found: &Found) -> Outcome {
    for (one, a) in found {
        for (other, b) in found.range(one + 1..) {
            let volumes = (volume_of(pool, *one)?, volume_of(pool, *other)?);
            if Arc::ptr_eq(&volumes.0, &volumes.1) {
                continue;
            }
            let mut named = Vec::new();
            let mut from = Some(0);
            while let Some(at) = from {
                let part = pool.differences(&volumes.0, &volumes.1, at, 1).map_err(text)?;
                named.extend(part.runs);
                from = part.next;
            }
            let block = |bytes: &[u8], number: usize| {
                let start = (number * BLOCK).min(bytes.len());
                let mut block = bytes[start..(start + BLOCK).min(bytes.len())].to_vec();
                block.resize(BLOCK, 0);
                block
            };
            for number in 0..a.len().max(b.len()).div_ceil(BLOCK) {
                let told = named.iter().any(|run| run.contains(&(number as u64)));
                if !told && block(a, number) != block(b, number) {
                    return Err(format!(
                        "block {number} of v{one} and v{other} differs, and diff says that it does not"
                    ));
                }
            }
        }
    }
    Ok(())
}
