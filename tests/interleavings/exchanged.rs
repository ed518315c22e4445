//! Somebody who can write to the backing directory gives names to other files between two calls of ours.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use clonefs::engine::io::{FileKey, Fs, HostFs, Rename, SetTime};
use clonefs::engine::namespace::{Caller, Change, Creation, NameTree, ROOT, Settings};
use clonefs::engine::pool::{CloneOptions, Finished, Names, Pool, PoolOptions, Spot};
use clonefs::error::Result;

/// Finds a file by looking, and the first time gives its name to `other` before it can be used.
struct Racer {
    fs: Arc<dyn Fs>,
    done: AtomicBool,
}

impl Racer {
    fn over(fs: &Arc<dyn Fs>) -> Arc<dyn Names> {
        Arc::new(Racer { fs: fs.clone(), done: AtomicBool::new(false) })
    }
}

impl Names for Racer {
    fn swap(
        &self,
        key: FileKey,
        _hint: Option<&Path>,
        swap: &mut dyn FnMut(&Spot) -> Result<FileKey>,
    ) -> Result<Option<FileKey>> {
        let spot = Spot::find(&*self.fs, Path::new("file")).unwrap();
        assert!(spot.has(key));
        if !self.done.swap(true, Ordering::Relaxed) {
            exchange(&self.fs, "file", "other");
        }
        swap(&spot).map(Some)
    }

    fn path_of(&self, _key: FileKey) -> Option<PathBuf> {
        Some("file".into())
    }

    fn flush_cached(&self, _key: FileKey) {}
}

fn exchange(fs: &Arc<dyn Fs>, one: &str, two: &str) {
    fs.rename(Path::new(one), Path::new(two), Rename::Exchange).unwrap();
}

fn content(path: PathBuf) -> Vec<u8> {
    fs::read(path).unwrap()
}

/// A pool with `file` and `other`.
fn pool() -> (tempfile::TempDir, Arc<dyn Fs>, Arc<Pool>) {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::write(dir.path().join("file"), vec![1; 20_000]).unwrap();
    fs::write(dir.path().join("other"), "another's").unwrap();
    let fs: Arc<dyn Fs> = Arc::new(HostFs::open_dir(dir.path()).unwrap());
    let options = PoolOptions { deepen_auto: false, ..PoolOptions::default() };
    let pool = Pool::open(fs.clone(), options).unwrap();
    (dir, fs, pool)
}

fn volume(fs: &Arc<dyn Fs>, pool: &Pool, name: &str) -> Arc<clonefs::engine::volume::Volume> {
    pool.volume(fs.stat(Path::new(name)).unwrap().key, Path::new(name)).unwrap()
}

fn clone(fs: &Arc<dyn Fs>, pool: &Arc<Pool>, source: &str, target: &str) {
    fs.open(Path::new(target), clonefs::engine::io::Open::CreateNew(0o600)).unwrap();
    let (source, target) = (volume(fs, pool, source), volume(fs, pool, target));
    pool.clone_volume(&source, &target, &CloneOptions::default()).unwrap();
}

#[test]
fn a_freeze_does_not_replace_what_got_the_name_of_its_file() {
    let (dir, fs, pool) = pool();
    clone(&fs, &pool, "file", "clone");
    let racer = Racer::over(&fs);
    pool.set_names(Arc::downgrade(&racer));
    let other = fs::metadata(dir.path().join("other")).unwrap().ino();
    // The freeze fails: the clone gets a copy, and the file is changed in place, whatever its name is now.
    volume(&fs, &pool, "file").write(0, &[2]).unwrap();
    assert_eq!(content(dir.path().join("file")), b"another's");
    assert_eq!(fs::metadata(dir.path().join("file")).unwrap().ino(), other);
    assert_eq!(content(dir.path().join("other")), [vec![2], vec![1; 19_999]].concat());
    let mut bytes = vec![0; 20_000];
    assert_eq!(volume(&fs, &pool, "clone").read(0, &mut bytes).unwrap(), 20_000);
    assert_eq!(bytes, vec![1; 20_000]);
    assert_eq!(fs::read_dir(dir.path().join(".clonefs/tmp")).unwrap().count(), 0);
}

#[test]
fn a_finish_does_not_replace_what_got_the_name_of_its_stub() {
    let (dir, fs, pool) = pool();
    fs::rename(dir.path().join("file"), dir.path().join("base")).unwrap();
    clone(&fs, &pool, "base", "file");
    let racer = Racer::over(&fs);
    pool.set_names(Arc::downgrade(&racer));
    let file = volume(&fs, &pool, "file");
    file.write(0, &vec![3; 20_480]).unwrap();
    file.set_size(20_000).unwrap();
    assert!(pool.finish(&file).is_err());
    assert_eq!(content(dir.path().join("file")), b"another's");
    // Given back, it ends as it should.
    exchange(&fs, "file", "other");
    assert_eq!(pool.finish(&file).unwrap(), Finished::Plain);
    assert_eq!(content(dir.path().join("file")), vec![3; 20_000]);
    assert_eq!(content(dir.path().join("other")), b"another's");
}

const ROOT_USER: Caller = Caller { uid: 0, gid: 0, pid: 0 };

fn creation(mode: u32) -> Creation {
    Creation { mode, umask: 0, rdev: 0, caller: ROOT_USER }
}

#[test]
fn nothing_is_done_to_a_file_that_got_the_name_of_another() {
    let (dir, fs, pool) = pool();
    let names = NameTree::new(pool.clone(), Settings::default()).unwrap();
    pool.set_names(Arc::downgrade(&names) as Weak<dyn Names>);
    let root = dir.path();
    for name in ["d", "e"] {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join("inside"), name).unwrap();
    }
    let node = |name: &str| names.lookup(ROOT, OsStr::new(name)).unwrap().node;
    let (file, other, d) = (node("file"), node("other"), node("d"));
    let exchange = |one: &str, two: &str| exchange(&fs, one, two);
    exchange("file", "other");
    exchange("d", "e");
    let change = |mode| Change { mode, uid: None, gid: None, size: None, atime: SetTime::Keep, mtime: SetTime::Keep };
    let stale = |result: Result<()>, what: &str| {
        assert_eq!(result.err().map(|e| e.errno()), Some(libc::ESTALE), "{what}");
    };
    stale(names.change(file, &change(Some(0o4777)), &ROOT_USER), "mode");
    let times = Change { mtime: SetTime::Now, ..change(None) };
    stale(names.change(other, &times, &ROOT_USER), "times");
    stale(names.change(other, &Change { uid: Some(7), ..change(None) }, &ROOT_USER), "owner");
    stale(names.set_xattr(file, OsStr::new("user.note"), b"x", 0, &ROOT_USER), "attribute");
    stale(names.link(file, ROOT, OsStr::new("link")).map(drop), "link");
    // The directory is another one now: nothing in it is what the kernel asked for.
    let inside = OsStr::new("inside");
    stale(names.lookup(d, inside).map(drop), "look up");
    stale(names.make(d, OsStr::new("new"), &creation(libc::S_IFDIR | 0o755)).map(drop), "make");
    stale(names.unlink(d, inside, &ROOT_USER), "remove");
    exchange("d", "e");
    // One that is held is acted on wherever it is: the kernel has checked that one.
    names.lookup(d, inside).unwrap();
    exchange("d", "e");
    names.make(d, OsStr::new("new"), &creation(libc::S_IFDIR | 0o755)).unwrap();
    assert!(root.join("e/new").is_dir() && !root.join("d/new").exists());
    for name in ["file", "other"] {
        assert_eq!(fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o7777, 0o644);
    }
    // A link in the place of a directory leads nowhere.
    fs::rename(root.join("e"), root.join("f")).unwrap();
    symlink(root.join("d"), root.join("e")).unwrap();
    let linked = names.lookup(ROOT, OsStr::new("e")).unwrap().node;
    assert!(names.lookup(linked, inside).is_err());
}
