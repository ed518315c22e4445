//! Opening the metadata: first use, ordinary start, and start after a crash.

use crate::sync::atomic::{AtomicBool, AtomicU64};
use std::path::Path;
use std::sync::Arc;

use crate::sync::{Mutex, RwLock};

use super::catalogue::{self, Catalogue, Checkpoint};
use super::log::{self, Log, Scan};
use super::record::Change;
use super::{
    CATALOGUE, DIR, FORMAT, Inner, JOURNAL, JOURNAL_MAGIC, JOURNAL_RESERVE, LAYERS, METADATA_LIMIT, POOL, PoolFile,
    STUBS, Store, TMP, persist, tmp_path,
};
use crate::engine::io::{Fs, Open, Rename};
use crate::error::{Context, Error, Kind, Result};
use crate::units::BLOCK;

/// What the journal file turned out to be.
enum Journal {
    /// The catalogue has overtaken it.
    Stale,
    /// It continues the catalogue.
    Continues(Scan, Vec<u8>),
    /// It cannot be used, and why.
    Bad(String),
}

fn missing(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

pub(super) fn read(fs: &dyn Fs, path: &str) -> std::io::Result<Option<Vec<u8>>> {
    match fs.open(Path::new(path), Open::Read) {
        Ok(file) => log::read_all(file.as_ref(), METADATA_LIMIT).map(Some),
        Err(e) if missing(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Opens the metadata of a pool; see [`Store::open`].
pub fn open(fs: Arc<dyn Fs>, read_only: bool) -> Result<Store> {
    let mut damage = Vec::new();
    let mut unusable = false;
    let inner = match read_pool_file(fs.as_ref())? {
        None => {
            if let Some(why) = pool_file_lost(fs.as_ref())? {
                damage.push(why);
                unusable = true;
            }
            Inner::empty()
        }
        Some(pool) => {
            let checkpoint = read_catalogue(fs.as_ref(), &mut damage, &mut unusable)?;
            recover(fs.as_ref(), pool, checkpoint, read_only, &mut damage, &mut unusable)?
        }
    };
    Ok(Store {
        fs,
        read_only,
        damage,
        unusable,
        synced: AtomicU64::new(0),
        inner: RwLock::new(inner),
        syncing: Mutex::new(()),
        latched: AtomicBool::new(false),
    })
}

impl Inner {
    pub(super) fn empty() -> Inner {
        Inner {
            pool: None,
            catalogue: Catalogue::default(),
            journal: None,
            generation: 0,
            checkpoint_len: 0,
            committed: 0,
        }
    }
}

/// `pool.json` is written last when a pool is made: without it there is no pool yet, whatever else is there.
pub(super) fn read_pool_file(fs: &dyn Fs) -> Result<Option<PoolFile>> {
    let Some(bytes) = read(fs, POOL).context("read pool file", POOL)? else { return Ok(None) };
    let damaged = |why: String| {
        Error::new(Kind::Damaged, "read pool file")
            .at(POOL)
            .because(why)
            .remedy("run `clonefs check --repair` on the pool")
    };
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    let format = value.get("format").and_then(serde_json::Value::as_u64);
    if format.is_some_and(|f| f > FORMAT as u64) {
        let known = format!("it has format {}, and this clonefs knows formats up to {FORMAT}", format.unwrap_or(0));
        let error = Error::new(Kind::NewerFormat, "open pool").at(POOL).because(known);
        return Err(error.remedy("use a newer clonefs"));
    }
    let pool: PoolFile = serde_json::from_value(value).map_err(|e| damaged(e.to_string()))?;
    if pool.format != FORMAT || pool.block_size != BLOCK {
        return Err(damaged(format!("format {}, block size {}", pool.format, pool.block_size)));
    }
    Ok(Some(pool))
}

/// Without its file a pool is made anew when it is needed; but not over records that are there.
pub(super) fn pool_file_lost(fs: &dyn Fs) -> Result<Option<String>> {
    let lines = read(fs, CATALOGUE).context("read catalogue", CATALOGUE)?;
    let records = lines.as_deref().map(catalogue::salvage).unwrap_or_default().catalogue;
    let any = records.volume_count() + records.layer_count() > 0;
    Ok(any.then(|| format!("{POOL}: it is missing, although there are records")))
}

fn read_catalogue(fs: &dyn Fs, damage: &mut Vec<String>, unusable: &mut bool) -> Result<Checkpoint> {
    let bytes = read(fs, CATALOGUE).context("read catalogue", CATALOGUE)?;
    let decoded = bytes.ok_or("it is missing".to_owned()).and_then(|b| catalogue::decode(&b, FORMAT));
    Ok(decoded.unwrap_or_else(|why| {
        damage.push(format!("{CATALOGUE}: {why}"));
        *unusable = true;
        Checkpoint::default()
    }))
}

fn read_journal(fs: &dyn Fs, generation: u64) -> Result<Journal> {
    let Some(bytes) = read(fs, JOURNAL).context("read journal", JOURNAL)? else {
        // The first one is there before the file that makes this a pool, and only another one ever takes its place.
        return Ok(Journal::Bad("it is missing".into()));
    };
    Ok(match log::scan(&bytes, JOURNAL_MAGIC, generation) {
        Ok(scan) => Journal::Continues(scan, bytes),
        // A crash between the two renames of a checkpoint leaves the journal of the generation before; another one
        // during the recovery from that, of one more before.
        Err(log::Flaw::Foreign) if log::salt(&bytes, JOURNAL_MAGIC).is_some_and(|salt| salt < generation) => {
            Journal::Stale
        }
        Err(flaw) => Journal::Bad(flaw.to_string()),
    })
}

/// Replays the journal over the checkpoint and opens it for appending.
fn recover(
    fs: &dyn Fs,
    pool: PoolFile,
    checkpoint: Checkpoint,
    read_only: bool,
    damage: &mut Vec<String>,
    unusable: &mut bool,
) -> Result<Inner> {
    damage.extend(checkpoint.damage.iter().map(|d| format!("{CATALOGUE}: {d}")));
    let mut inner = Inner {
        pool: Some(pool),
        catalogue: checkpoint.catalogue,
        journal: None,
        generation: checkpoint.generation,
        checkpoint_len: 0,
        committed: 0,
    };
    if *unusable {
        return Ok(inner);
    }
    let scan = match read_journal(fs, checkpoint.generation)? {
        Journal::Stale => None,
        Journal::Bad(why) => {
            damage.push(format!("{JOURNAL}: {why}"));
            *unusable = true;
            return Ok(inner);
        }
        Journal::Continues(scan, bytes) => {
            for record in &scan.records {
                match serde_json::from_slice::<Vec<Change>>(&bytes[record.clone()]) {
                    Ok(changes) => changes.into_iter().for_each(|c| inner.catalogue.apply(c)),
                    Err(why) => {
                        damage.push(format!("{JOURNAL}: byte {}: {why}", record.start));
                        *unusable = true;
                        return Ok(inner);
                    }
                }
            }
            Some(scan)
        }
    };
    if read_only {
        return Ok(inner);
    }
    match scan {
        Some(scan) if scan.valid > 0 && !damage.is_empty() => {
            let file = fs.open(Path::new(JOURNAL), Open::Write).context("open journal", JOURNAL)?;
            inner.journal = Some(Log::resume(file, inner.generation, &scan).context("open journal", JOURNAL)?);
        }
        // Nothing is damaged: begin afresh. What the journal held is then durable, whatever it was before.
        scan => {
            let generation = inner.generation;
            match write_checkpoint(fs, &mut inner) {
                // A full disk stops no start, or nothing could be deleted from it.
                Err(error) if error.is_no_space() && inner.generation == generation => {
                    go_on(fs, &mut inner, scan).context("open journal", JOURNAL)?;
                }
                other => other?,
            }
        }
    }
    Ok(inner)
}

/// Goes on with the journal that there is, or makes an empty one of a stale one, in place.
fn go_on(fs: &dyn Fs, inner: &mut Inner, scan: Option<Scan>) -> std::io::Result<()> {
    let file = fs.open(Path::new(JOURNAL), Open::Write)?;
    let journal = match scan {
        Some(scan) if scan.valid > 0 => Log::resume(file, inner.generation, &scan)?,
        _ => {
            // The catalogue holds all of it, and must do so durably before it goes.
            fs.sync_dir(Path::new(DIR))?;
            file.set_len(0)?;
            Log::create(file, JOURNAL_MAGIC, inner.generation, JOURNAL_RESERVE)?
        }
    };
    journal.file().sync_data()?;
    inner.journal = Some(journal);
    Ok(())
}

/// Writes a checkpoint of the next generation and begins its journal.
pub fn write_checkpoint(fs: &dyn Fs, inner: &mut Inner) -> Result<()> {
    let generation = inner.generation + 1;
    let bytes = catalogue::encode(&inner.catalogue, generation, FORMAT)
        .map_err(|e| Error::new(Kind::Invalid, "encode catalogue").because(e))?;
    // The journal is made first, so that a full disk stops this before anything has changed.
    let temporary = tmp_path();
    let made = (|| {
        let file = fs.open(&temporary, Open::CreateNew(0o600))?;
        let journal = Log::create(file, JOURNAL_MAGIC, generation, JOURNAL_RESERVE)?;
        journal.file().sync_data()?;
        Ok(journal)
    })();
    let journal =
        made.inspect_err(|_: &std::io::Error| drop(fs.unlink(&temporary))).context("make a new journal", &temporary)?;
    let replacement = super::write_temporary(fs, &bytes)
        .and_then(|new| fs.rename(&new, Path::new(CATALOGUE), Rename::Replace).inspect_err(|_| drop(fs.unlink(&new))))
        .inspect_err(|_| drop(fs.unlink(&temporary)));
    replacement.context("write metadata", CATALOGUE)?;
    // From here on the old journal is history: its changes are in the catalogue, and a change that it took now would
    // not be read. If the new one cannot take its place, nothing more can be committed until the next start.
    inner.journal = None;
    inner.generation = generation;
    inner.checkpoint_len = bytes.len() as u64;
    fs.sync_dir(Path::new(DIR)).context("write metadata", CATALOGUE)?;
    fs.rename(&temporary, Path::new(JOURNAL), Rename::Replace).context("replace journal", JOURNAL)?;
    fs.sync_dir(Path::new(DIR)).context("replace journal", JOURNAL)?;
    inner.journal = Some(journal);
    Ok(())
}

/// Makes `.clonefs`. `pool.json` comes last: a crash before that leaves a directory that the next attempt reuses.
pub fn initialise(fs: &dyn Fs, inner: &mut Inner) -> Result<()> {
    for dir in [DIR, LAYERS, STUBS, TMP] {
        match fs.mkdir(Path::new(dir), 0o700) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                if fs.root_fd().is_some() {
                    // Somebody can have made it since the pool was opened.
                    let look = |path: &str| fs.stat(Path::new(path)).context("look at directory", path);
                    let (stat, above) = (look(dir)?, look("")?);
                    super::check_owner((stat.uid, stat.mode), above.uid, rustix::process::geteuid().as_raw())?;
                }
                fs.chmod(Path::new(dir), 0o700).context("make metadata directory", dir)?;
            }
            Err(e) => return Err(Error::io("make metadata directory", e).at(dir)),
        }
    }
    let mut fresh = Inner::empty();
    write_checkpoint(fs, &mut fresh)?;
    for dir in [DIR, ""] {
        fs.sync_dir(Path::new(dir)).context("make metadata directory", dir)?;
    }
    let pool = PoolFile::new();
    write_pool_file(fs, &pool)?;
    *inner = Inner { pool: Some(pool), ..fresh };
    Ok(())
}

/// Writes the file that makes a directory a pool, durably.
pub(super) fn write_pool_file(fs: &dyn Fs, pool: &PoolFile) -> Result<()> {
    let bytes =
        serde_json::to_vec_pretty(pool).map_err(|e| Error::new(Kind::Invalid, "encode pool file").because(e))?;
    persist(fs, Path::new(POOL), &bytes)
}
