//! Clones: of the base, of images that are being written, of clones. A clone must not change however long it lives,
//! whatever becomes of its source, while it is deepened, and until it is deleted.

use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::fs::File;
use std::hash::Hasher;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::Shared;
use super::support::{clonefs, noise};

/// Bytes of an image.
const SIZE: usize = 4 << 20;
/// Between two clones.
const PAUSE: Duration = Duration::from_millis(50);
/// Clones that live at the same time.
const ALIVE: usize = 40;

/// The image that nobody writes.
pub fn base(root: &Path) -> PathBuf {
    root.join("base.img")
}

/// The image of a writer.
pub fn image(root: &Path, number: usize) -> PathBuf {
    root.join(format!("writer{number}.img"))
}

/// Makes the base.
pub fn make_base(root: &Path) {
    std::fs::write(base(root), noise(1, SIZE)).expect("base");
}

/// Clones by the program.
pub fn clone(source: &Path, target: &Path) {
    clonefs([OsStr::new("clone"), source.as_os_str(), target.as_os_str()]).success();
}

fn hash(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut file = File::open(path).expect("open a clone");
    loop {
        match file.read(&mut buffer).expect("read a clone") {
            0 => return hasher.finish(),
            got => hasher.write(&buffer[..got]),
        }
    }
}

/// One that lives.
struct Clone {
    path: PathBuf,
    hash: u64,
}

/// Makes, compares and deletes clones until the time is over; what is left then is compared once more.
pub fn run(root: &Path, writers: usize, shared: &Shared) {
    let mut alive: VecDeque<Clone> = VecDeque::new();
    let expected = hash(&base(root));
    for number in 0.. {
        let began = Instant::now();
        if shared.stopping() {
            break;
        }
        let path = root.join(format!("clone{number}.img"));
        // In turn: an image that is being written, a clone, the base.
        let source = match number % 3 {
            0 => image(root, number % writers),
            1 => alive.get(number % alive.len().max(1)).map_or_else(|| base(root), |clone| clone.path.clone()),
            _ => base(root),
        };
        if source.exists() {
            let known = alive.iter().find(|clone| clone.path == source).map(|clone| clone.hash);
            clone(&source, &path);
            shared.clones.fetch_add(1, Ordering::Relaxed);
            let found = hash(&path);
            let known = known.or((source == base(root)).then_some(expected));
            assert!(known.is_none_or(|known| known == found), "{path:?} is not what its source {source:?} is");
            alive.push_back(Clone { path, hash: found });
        }
        if alive.len() > ALIVE
            && let Some(old) = alive.remove(number % ALIVE)
        {
            compare(&old, shared);
            std::fs::remove_file(&old.path).expect("delete a clone");
            shared.deleted.fetch_add(1, Ordering::Relaxed);
        }
        thread::sleep(PAUSE.saturating_sub(began.elapsed()));
    }
    alive.iter().for_each(|clone| compare(clone, shared));
    assert!(hash(&base(root)) == expected, "the base has changed");
}

fn compare(clone: &Clone, shared: &Shared) {
    assert!(hash(&clone.path) == clone.hash, "{:?} has changed", clone.path);
    shared.compared.fetch_add(1, Ordering::Relaxed);
}
