//! What must hold of a pool that a power cut left.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clonefs::engine::compactor;
use clonefs::engine::io::{FileKind, Fs, HostFs};
use clonefs::engine::pool::Pool;
use clonefs::engine::pool::check::check;
use clonefs::protocol::{DeepenAction, DeepenRequest};

use super::below::{Looked, open};
use super::mounted::{Mounted, clonefs};
use super::{POOL, READY};
use crate::boot::Boot;
use crate::oracle::History;
use crate::replay::Crash;

/// What was found, or is wrong.
type Verdict<T = ()> = std::result::Result<T, String>;

/// Bytes by name.
type Found = BTreeMap<String, Vec<u8>>;

/// Longest time that deepening everything may take.
const PATIENCE: Duration = Duration::from_secs(120);

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Judges the states of a replay.
pub struct Verifier<'a> {
    /// Gives each power cut a boot of its own.
    pub boot: &'a Boot,
    /// The program, for the states that are judged through a real mount.
    pub program: Option<&'a Path>,
    /// Every so many states one is judged through a real mount.
    pub mounted_every: u64,
}

impl Verifier<'_> {
    /// Judges one state.
    pub fn verify(&self, crash: &Crash) -> Verdict {
        let mut history = History::read(crash.marks.iter().copied())?;
        if !crash.marks.contains(&READY) {
            // The pool's directory was not there for sure.
            return Ok(());
        }
        self.boot.next().map_err(text)?;
        let root = crash.mnt.join(POOL);
        history.set_plain(plain_files(&root).map_err(text)?);
        let digits = crash.name.split('.').map(|part| part.parse::<u64>().unwrap_or(0));
        let number = digits.sum::<u64>();
        match self.program {
            Some(program) if number.is_multiple_of(self.mounted_every) => through_mount(program, &root, &history),
            _ => self.as_library(&root, &history, number),
        }
    }

    /// Recovers, looks at everything, and does it again; of some states everything is deepened as well.
    fn as_library(&self, root: &Path, history: &History, number: u64) -> Verdict {
        clean(root, "before recovery")?;
        let looked = open(root).map_err(text)?;
        let found = look(&looked.pool)?;
        history.check_files(&found)?;
        drop(looked);
        let leftovers = clean(root, "after recovery")?;
        if leftovers > 0 {
            return Err(format!("{leftovers} files are left over after recovery"));
        }
        if number % 2 == 1 {
            self.boot.next().map_err(text)?;
        }
        let looked = open(root).map_err(|e| format!("the second recovery: {e}"))?;
        if look(&looked.pool)? != found {
            return Err("the second recovery gives other bytes than the first".into());
        }
        if number % 4 == 1 { drain(looked, root, &found) } else { Ok(()) }
    }
}

/// Files that no layer and no stub is: they have one name, and bytes.
fn plain_files(root: &Path) -> std::io::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let stat = entry.metadata()?;
        if stat.is_file() && stat.nlink() == 1 && stat.len() > 0 {
            found.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

/// `clonefs check` on disk; gives the number of files that the next mount removes.
fn clean(root: &Path, when: &str) -> Verdict<u64> {
    let fs: Arc<dyn Fs> = Arc::new(HostFs::open_dir(root).map_err(text)?);
    let report = check(&fs).map_err(|e| format!("check {when}: {e}"))?;
    match report.problems.first() {
        Some(problem) => Err(format!("check {when}: {}: {}", problem.path, problem.problem)),
        None => Ok(report.leftovers),
    }
}

/// All that users see.
fn look(pool: &Arc<Pool>) -> Verdict<Found> {
    let mut found = Found::new();
    for entry in pool.fs().list(Path::new("")).map_err(text)? {
        let name = entry.name.to_string_lossy().into_owned();
        let stat = pool.fs().stat(Path::new(&name)).map_err(text)?;
        if stat.kind() == FileKind::File {
            let bytes = contents(pool, &name).map_err(|e| format!("{name}: {e}"))?;
            found.insert(name, bytes);
        }
    }
    Ok(found)
}

fn contents(pool: &Arc<Pool>, name: &str) -> clonefs::error::Result<Vec<u8>> {
    let stat = pool.fs().stat(Path::new(name)).map_err(|e| clonefs::error::Error::io("look", e))?;
    let shown = pool.describe(Path::new(name), stat)?.size;
    let volume = pool.volume(stat.key, Path::new(name))?;
    let size = volume.size()?;
    let mut bytes = vec![0xaa; size.max(shown) as usize + 1];
    let got = volume.read(0, &mut bytes)?;
    bytes.truncate(got);
    if (got as u64, shown) != (size, size) {
        let why = format!("it shows a size of {shown}, has {size}, and {got} can be read");
        return Err(clonefs::error::Error::new(clonefs::error::Kind::Damaged, "read").because(why));
    }
    Ok(bytes)
}

/// Has everything deepened; then only plain files are left, with the same bytes.
fn drain(looked: Looked, root: &Path, found: &Found) -> Verdict {
    let pool = &looked.pool;
    let request = DeepenRequest { action: DeepenAction::Start, rate: None, physical: false };
    for name in found.keys() {
        let stat = pool.fs().stat(Path::new(name)).map_err(text)?;
        let volume = pool.volume(stat.key, Path::new(name)).map_err(text)?;
        pool.deepen(Some(&volume), &request).map_err(|e| format!("deepen {name}: {e}"))?;
    }
    compactor::start(pool).map_err(text)?;
    let began = Instant::now();
    while pool.store().catalogue().volumes().next().is_some() {
        if began.elapsed() > PATIENCE {
            return Err(format!("deepening does not end: {:?}", pool.status().troubles));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let same = look(pool)? == *found;
    pool.shutdown().map_err(text)?;
    drop(looked);
    clean(root, "after deepening")?;
    let plain = |(name, bytes): (&String, &Vec<u8>)| std::fs::read(root.join(name)).is_ok_and(|read| read == *bytes);
    match found.iter().find(|file| !plain(*file)) {
        _ if !same => Err("deepening changes what is read".into()),
        Some((name, _)) => Err(format!("{name}, deepened, has other bytes")),
        None => Ok(()),
    }
}

/// As a user comes back after the cut: checks, mounts, reads, checks again, unmounts.
fn through_mount(program: &Path, root: &Path, history: &History) -> Verdict {
    let said = |when: &'static str| move |e: clonefs::error::Error| format!("{when}: {e}");
    clonefs(program, &["check"], root).map_err(said("before the mount"))?;
    let mount = Mounted::new(program, root, "deepen=manual").map_err(text)?;
    let read = history.check_dir(root);
    let checked = mount.check().map_err(said("mounted"));
    let unmounted = mount.unmount().map_err(text);
    read?;
    checked?;
    unmounted?;
    clonefs(program, &["check"], root).map_err(said("after the unmount")).map(drop)
}
