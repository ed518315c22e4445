//! What must hold of a disk that a crash left.

use std::path::Path;
use std::sync::Arc;

use clonefs::engine::io::Fs;
use clonefs::engine::pool::check::{Report, check};
use clonefs::engine::pool::{Finished, Pool};

use super::model::{Found, Model};
use super::ops::Name;
use super::relatives::compare_differences;
use super::served::{Outcome, contents, file_name, fill, look, serve, snapshot_id, text, volume_at};
use crate::common::rng::Rng;
use crate::common::simfs::image::Image;
use crate::common::simfs::{Crash, Lie, Moment, Options, POWER, SimFs};

/// How much is done with each disk.
#[derive(Clone, Copy, Debug)]
pub struct Thorough {
    /// Crashes during the recovery that are tried.
    pub nested: u64,
    /// Everything is deepened afterwards, and compared again.
    pub drain: bool,
}

/// What check says of a disk on which nothing is wrong.
pub fn clean(fs: &Arc<SimFs>) -> Outcome<Report> {
    let fs: Arc<dyn Fs> = fs.clone();
    let report = check(&fs).map_err(|e| format!("check fails: {e}"))?;
    match report.problems.first() {
        None => Ok(report),
        Some(problem) => Err(format!("check finds {problem:?}")),
    }
}

/// Opens the pool on a disk and looks at everything.
fn recover(fs: &Arc<SimFs>) -> Outcome<(Arc<Pool>, Arc<dyn clonefs::engine::pool::Names>, Found)> {
    clean(fs)?;
    let (pool, names) = serve(fs)?;
    let troubles = pool.status().troubles;
    if !troubles.is_empty() {
        return Err(format!("troubles: {troubles:?}"));
    }
    let found = look(&pool)?;
    let report = clean(fs)?;
    if report.leftovers > 0 {
        return Err(format!("{} files are left over after recovery", report.leftovers));
    }
    Ok((pool, names, found))
}

/// Judges what a crash left, by the model of what was under way.
pub fn examine(moment: &Moment, model: &Model, options: Options, rng: &mut Rng, how: Thorough) -> Outcome {
    let options = Options { lie: Lie::None, ..options };
    let fs = SimFs::from_image(moment.image.clone(), options);
    if std::env::var_os("CLONEFS_SIM_TRACE").is_none() {
        return judge(&fs, moment, model, options, rng, how);
    }
    fs.start_log();
    judge(&fs, moment, model, options, rng, how).map_err(|why| format!("{why}\n    {}", fs.take_log().join("\n    ")))
}

fn judge(fs: &Arc<SimFs>, moment: &Moment, model: &Model, options: Options, rng: &mut Rng, how: Thorough) -> Outcome {
    if how.nested > 0 {
        fs.start_capture(rng.clone(), 1);
    }
    let (pool, names, found) = recover(fs)?;
    let during = if how.nested > 0 { fs.stop_capture().0 } else { Vec::new() };
    let killed = moment.crash == Crash::Kill;
    model.explains(&found, killed)?;
    if rng.once_in(4) {
        compare_differences(&pool, &found)?;
    }
    attributes(fs, model)?;
    for _ in 0..how.nested.min(during.len() as u64) {
        let again = &during[rng.below(during.len() as u64) as usize];
        let here = |why| {
            format!("after a second crash ({:?}), during recovery, before {:?}: {why}", again.crash, again.before)
        };
        let (_, _, second) = recover(&SimFs::from_image(again.image.clone(), options)).map_err(here)?;
        // What only the daemon's death had left, the power can take away until the recovery is done.
        let power = killed && again.crash != Crash::Kill;
        if power { model.explains(&second, false) } else { same(&second, &found) }.map_err(here)?;
    }
    if how.drain {
        drain(fs, &pool, &found).map_err(|why| format!("deepened after recovery: {why}"))?;
    } else {
        // A second crash, with nothing written since the first, changes nothing.
        drop((pool, names));
        let crash = if rng.once_in(2) { Crash::Kill } else { POWER[rng.below(7) as usize] };
        let here = |why| format!("recovered twice ({crash:?}): {why}");
        let image: Image = fs.crash(crash, rng);
        let (_, _, second) = recover(&SimFs::from_image(image, options)).map_err(here)?;
        same(&second, &found).map_err(here)?;
    }
    Ok(())
}

fn same(got: &Found, expect: &Found) -> Outcome {
    if got == expect {
        return Ok(());
    }
    let sizes = |f: &Found| f.iter().map(|(n, b)| (*n, b.len())).collect::<Vec<_>>();
    let first = got.iter().find(|(name, bytes)| expect.get(name) != Some(bytes)).map(|(name, _)| name);
    Err(format!("{:?} instead of {:?}, v{first:?} first", sizes(got), sizes(expect)))
}

/// Owner, mode and attributes of the base go where it goes.
fn attributes(fs: &Arc<SimFs>, model: &Model) -> Outcome {
    for name in model.only_names_of(0) {
        let path = file_name(name);
        let stat = fs.stat(&path).map_err(text)?;
        let value = fs.get_xattr(&path, &"user.keep".into()).unwrap_or_default();
        if stat.mode & 0o7777 != 0o640 || value != b"me" {
            return Err(format!("v{name} has mode {:o} and the attribute {value:?}", stat.mode & 0o7777));
        }
    }
    Ok(())
}

/// Of several names of one file all but the first go.
fn drop_second_names(pool: &Arc<Pool>, found: &mut Found) -> Outcome {
    let mut keys = Vec::new();
    for name in found.keys().copied().collect::<Vec<Name>>() {
        let key = pool.fs().stat(&file_name(name)).map_err(text)?.key;
        if keys.contains(&key) {
            pool.fs().unlink(&file_name(name)).map_err(text)?;
            pool.removed(key);
            found.remove(&name);
        }
        keys.push(key);
    }
    Ok(())
}

/// Deepens everything; then only plain files are left, with the same bytes.
pub fn drain(fs: &Arc<SimFs>, pool: &Arc<Pool>, found: &Found) -> Outcome {
    // Without the snapshots, which stay what they are until they are removed.
    let mut found = found.clone();
    for name in found.keys().copied().collect::<Vec<Name>>() {
        if let Some(id) = snapshot_id(pool, name) {
            pool.remove_snapshot(id).map_err(text)?;
            found.remove(&name);
        }
    }
    drop_second_names(pool, &mut found)?;
    let found = &found;
    for round in 0..6 {
        let mut left = 0;
        for name in found.keys() {
            let volume = volume_at(pool, &file_name(*name))?;
            if round % 2 == 0 {
                pool.adopt_parent(&volume, &|| false).map_err(text)?;
            }
            while !fill(pool, &volume, 1 << 20).map_err(text)? {}
            let done = pool.finish(&volume).map_err(text)?;
            if done != Finished::Plain {
                left += 1;
            }
            if &contents(&volume)? != found.get(name).expect("a key of it") {
                return Err(format!("v{name} has other bytes"));
            }
        }
        pool.reap_dead().map_err(text)?;
        if left == 0 {
            break;
        }
    }
    same(&look(pool)?, found)?;
    pool.shutdown().map_err(text)?;
    clean(fs)?;
    for (name, expect) in found {
        let path = file_name(*name);
        let file = fs.open(&path, clonefs::engine::io::Open::Read).map_err(text)?;
        let mut bytes = vec![0; file.stat().map_err(text)?.size as usize];
        file.read_at(&mut bytes, 0).map_err(text)?;
        if &bytes != expect {
            return Err(format!("the plain file v{name} has other bytes ({} of {})", bytes.len(), expect.len()));
        }
        // Of larger files nobody asks for the mark; it can stay when a crash or an error comes into a clone over a file.
        let small = bytes.len() as u64 <= clonefs::engine::pool::stub::MAX_STUB;
        if small && fs.get_xattr(&path, &clonefs::engine::pool::stub::XATTR.into()).is_ok() {
            return Err(format!("the plain file v{name} is marked as a stub"));
        }
    }
    // A directory that a crash left before it was a pool is used, and cleaned, by the first clone.
    let dirs: &[&str] = if pool.store().pool_id().is_some() { &["layers", "stubs", "tmp", "snapshots"] } else { &[] };
    for dir in dirs {
        let left = fs.list(&Path::new(".clonefs").join(dir)).unwrap_or_default();
        if !left.is_empty() {
            return Err(format!("left in {dir}: {left:?}"));
        }
    }
    Ok(())
}
