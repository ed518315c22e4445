//! The same for operations on names and attributes, asked of the tree of names as the FUSE layer asks it. Each either
//! does all or nothing, whatever call fails: the tree shows what was there before or what was to be, says the same after
//! a restart, handles that were open go on with their bytes, and the operation can be tried again.

use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, Weak};

use clonefs::engine::io::{FileKind, Fs, Rename, SetTime};
use clonefs::engine::namespace::{Caller, Change, Creation, NameTree, ROOT, Settings, WriteFlags};
use clonefs::engine::pool::{CloneOptions, Names, Pool, PoolOptions};

use crate::after::LATCHED;
use crate::common::recover::clean;
use crate::common::rng::Rng;
use crate::common::served::{Outcome, pattern, text};
use crate::common::simfs::image::Image;
use crate::common::simfs::{Crash, Options, POWER, SimFs};
use crate::common::world::WRONG;
use crate::modes::Mode;
use crate::run::{Tally, in_parallel, wanted};
use crate::view::{STAMP, View, bytes_of, look, look_at};

/// A user of the mount.
const USER: Caller = Caller { uid: 1000, gid: 1000, pid: 0 };
/// What is there; the first three are open in half of the runs.
const FILES: [&str; 4] = ["plain", "base", "clone", "dir/inner"];

type Work = fn(&Tree) -> clonefs::error::Result<()>;

/// The operations: one call each, as a request of the kernel makes it.
const ALL: &[(&str, Work)] = &[
    ("create a file", |t| t.create("new")),
    ("create a file in a directory", |t| t.create("dir/new")),
    ("make a directory", |t| t.make("new", libc::S_IFDIR | 0o755)),
    ("make a FIFO", |t| t.make("new", libc::S_IFIFO | 0o644)),
    ("rename a plain file", |t| t.rename("plain", "dir/new", Rename::Replace)),
    ("rename a source", |t| t.rename("base", "new", Rename::NoReplace)),
    ("rename a clone", |t| t.rename("clone", "new", Rename::Replace)),
    ("rename a directory", |t| t.rename("dir", "new", Rename::Replace)),
    ("rename a plain file over a source", |t| t.rename("plain", "base", Rename::Replace)),
    ("rename a source over a plain file", |t| t.rename("base", "plain", Rename::Replace)),
    ("rename a plain file over a clone", |t| t.rename("plain", "clone", Rename::Replace)),
    ("rename a clone over its source", |t| t.rename("clone", "base", Rename::Replace)),
    ("rename a source over its clone", |t| t.rename("base", "clone", Rename::Replace)),
    ("exchange a plain file and a clone", |t| t.rename("plain", "clone", Rename::Exchange)),
    ("exchange a source and its clone", |t| t.rename("base", "clone", Rename::Exchange)),
    ("link a plain file", |t| t.link("plain", "dir/new")),
    ("link a source", |t| t.link("base", "new")),
    ("link a clone", |t| t.link("clone", "new")),
    ("unlink a plain file", |t| t.unlink("plain")),
    ("unlink a source", |t| t.unlink("base")),
    ("unlink a clone", |t| t.unlink("clone")),
    ("remove a directory", |t| t.rmdir("empty")),
    ("chmod a plain file", |t| t.change("plain", |c| c.mode = Some(0o604))),
    ("chmod a source", |t| t.change("base", |c| c.mode = Some(0o604))),
    ("take the right to read a source", |t| t.change("base", |c| c.mode = Some(0o200))),
    ("chmod a clone", |t| t.change("clone", |c| c.mode = Some(0o604))),
    ("chown a source", |t| t.change("base", |c| (c.uid, c.gid) = (Some(7), Some(8)))),
    ("chown a clone", |t| t.change("clone", |c| (c.uid, c.gid) = (Some(7), Some(8)))),
    ("truncate a plain file", |t| t.change("plain", |c| c.size = Some(5000))),
    ("truncate a source", |t| t.change("base", |c| c.size = Some(5000))),
    ("truncate a clone", |t| t.change("clone", |c| c.size = Some(5000))),
    ("set the time of a plain file", |t| t.change("plain", |c| c.mtime = SetTime::At(STAMP))),
    ("set the time of a source", |t| t.change("base", |c| c.mtime = SetTime::At(STAMP))),
    ("set the time of a clone", |t| t.change("clone", |c| c.mtime = SetTime::At(STAMP))),
    ("set an attribute of a source", |t| t.note("base", Some(b"other"))),
    ("set an attribute of a clone", |t| t.note("clone", Some(b"other"))),
    ("remove an attribute of a clone", |t| t.note("clone", None)),
    ("write to a source", |t| t.write("base")),
    ("look everything up", |t| look(&t.names).map(drop)),
];

/// A tree of names on a simulated disk.
pub struct Tree {
    pool: Arc<Pool>,
    pub names: Arc<NameTree>,
}

impl Tree {
    fn on(fs: &Arc<SimFs>) -> Outcome<Tree> {
        let fs: Arc<dyn Fs> = fs.clone();
        let options = PoolOptions { deepen_auto: false, ..PoolOptions::default() };
        let pool = Pool::open(fs, options).map_err(|e| format!("the pool does not open: {e}"))?;
        let names = NameTree::new(pool.clone(), Settings::default()).map_err(text)?;
        let weak: Weak<NameTree> = Arc::downgrade(&names);
        pool.set_names(weak as Weak<dyn Names>);
        match pool.status().troubles.first() {
            None => Ok(Tree { pool, names }),
            Some(trouble) => Err(format!("a trouble: {trouble:?}")),
        }
    }

    /// Node of the directory of a path, and the name in it. The kernel keeps what it has looked up.
    fn place<'a>(&self, path: &'a str) -> clonefs::error::Result<(u64, &'a OsStr)> {
        match path.split_once('/') {
            None => Ok((ROOT, OsStr::new(path))),
            Some((directory, name)) => Ok((self.names.lookup(ROOT, OsStr::new(directory))?.node, OsStr::new(name))),
        }
    }

    fn node(&self, path: &str) -> clonefs::error::Result<u64> {
        let (parent, name) = self.place(path)?;
        Ok(self.names.lookup(parent, name)?.node)
    }

    fn create(&self, path: &str) -> clonefs::error::Result<()> {
        let (parent, name) = self.place(path)?;
        let how = Creation { mode: libc::S_IFREG | 0o666, umask: 0o022, rdev: 0, caller: USER };
        let (_, handle) = self.names.create(parent, name, &how, libc::O_RDWR | libc::O_EXCL)?;
        self.names.release(handle);
        Ok(())
    }

    fn make(&self, path: &str, mode: u32) -> clonefs::error::Result<()> {
        let (parent, name) = self.place(path)?;
        self.names.make(parent, name, &Creation { mode, umask: 0o022, rdev: 0, caller: USER }).map(drop)
    }

    fn rename(&self, from: &str, to: &str, how: Rename) -> clonefs::error::Result<()> {
        self.names.rename(self.place(from)?, self.place(to)?, how, &USER)
    }

    fn link(&self, from: &str, to: &str) -> clonefs::error::Result<()> {
        let node = self.node(from)?;
        let (parent, name) = self.place(to)?;
        self.names.link(node, parent, name).map(drop)
    }

    fn unlink(&self, path: &str) -> clonefs::error::Result<()> {
        let (parent, name) = self.place(path)?;
        self.names.unlink(parent, name, &USER)
    }

    fn rmdir(&self, path: &str) -> clonefs::error::Result<()> {
        let (parent, name) = self.place(path)?;
        self.names.rmdir(parent, name, &USER)
    }

    fn change(&self, path: &str, edit: impl FnOnce(&mut Change)) -> clonefs::error::Result<()> {
        let (atime, mtime) = (SetTime::Keep, SetTime::Keep);
        let mut change = Change { mode: None, uid: None, gid: None, size: None, atime, mtime };
        edit(&mut change);
        self.names.change(self.node(path)?, &change, &USER)
    }

    fn note(&self, path: &str, value: Option<&[u8]>) -> clonefs::error::Result<()> {
        let (node, name) = (self.node(path)?, OsStr::new("user.note"));
        match value {
            Some(value) => self.names.set_xattr(node, name, value, 0, &USER),
            None => self.names.remove_xattr(node, name),
        }
    }

    fn write(&self, path: &str) -> clonefs::error::Result<()> {
        let number = self.names.open(self.node(path)?, libc::O_RDWR, &USER)?;
        let handle = self.names.handles().get(number)?;
        let written = handle.write(8192, &pattern(9, 8192, 4096), WriteFlags::default());
        self.names.release(number);
        written.map(drop)
    }

    /// Makes what the operations find.
    fn furnish(&self) -> clonefs::error::Result<()> {
        for directory in ["dir", "empty"] {
            self.make(directory, libc::S_IFDIR | 0o755)?;
        }
        for (serial, path) in (1..).zip(["plain", "base", "dir/inner"]) {
            self.create(path)?;
            self.fill(path, &pattern(serial, 0, 30_000))?;
            self.note(path, Some(b"me"))?;
        }
        self.create("clone")?;
        let (source, target) = (self.volume("base")?, self.volume("clone")?);
        self.pool.clone_volume(&source, &target, &CloneOptions::default())?;
        self.note("clone", Some(b"me"))?;
        self.fill("clone", &pattern(4, 0, 6000))?;
        self.pool.shutdown()
    }

    fn volume(&self, path: &str) -> clonefs::error::Result<Arc<clonefs::engine::volume::Volume>> {
        let number = self.names.open(self.node(path)?, libc::O_RDWR, &USER)?;
        Ok(self.names.handles().get(number)?.volume.clone())
    }

    fn fill(&self, path: &str, bytes: &[u8]) -> clonefs::error::Result<()> {
        let volume = self.volume(path)?;
        volume.write(0, bytes)?;
        volume.sync(false)
    }
}

/// A disk with everything on it, all durable.
fn furnished() -> Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    let make = || {
        let fs = SimFs::new(Options::default());
        let tree = Tree::on(&fs).expect("an empty pool opens");
        tree.furnish().expect("nothing fails here");
        fs.sync_fs().expect("nothing fails here");
        fs.crash(Crash::LoseAll, &mut Rng::new(1))
    };
    IMAGE.get_or_init(make).clone()
}

/// One operation to be tried: its number, whether its files are open meanwhile, how a call fails.
#[derive(Clone, Copy)]
struct Try {
    name: &'static str,
    work: Work,
    held: bool,
    mode: Mode,
}

/// Every operation with every kind of failure at every call.
pub fn all(modes: &[Mode]) -> Tally {
    let tries = ALL.iter().filter(|(name, _)| wanted(name)).flat_map(|(name, work)| {
        let one = move |(held, mode): (bool, &Mode)| Try { name, work: *work, held, mode: *mode };
        modes.iter().flat_map(|mode| [(true, mode), (false, mode)]).map(one)
    });
    in_parallel(&tries.collect::<Vec<_>>(), each_call)
}

fn each_call(this: &Try, tally: &mut Tally) {
    tally.operations += 1;
    for at in 1.. {
        let mut called = String::new();
        let outcome = catch_unwind(AssertUnwindSafe(|| one(this, at, &mut called)));
        let wrong = match outcome {
            Ok(Ok(true)) => None,
            Ok(Ok(false)) => break,
            Ok(Err(why)) => Some(why),
            Err(panic) => Some(format!("panic: {:?}", panic.downcast_ref::<String>())),
        };
        tally.failed += 1;
        if let Some(why) = wrong {
            let Try { name, held, mode, .. } = this;
            tally.violations.push(format!("{name} ({mode}, call {at}: {called}; open meanwhile: {held}): {why}"));
        }
    }
}

/// What the tree shows before and after the operation, if nothing fails.
struct Expected {
    before: View,
    after: View,
}

impl Expected {
    fn of(work: Work) -> Outcome<Expected> {
        let tree = Tree::on(&SimFs::from_image(furnished(), Options::default()))?;
        let before = look(&tree.names).map_err(text)?;
        work(&tree).map_err(|e| format!("without a failure: {e}"))?;
        Ok(Expected { before, after: look(&tree.names).map_err(text)? })
    }

    /// What may be seen after an error: all, nothing, or a file that is made and has not been given to its owner.
    fn allows(&self, seen: &View) -> Outcome {
        if *seen == self.before || *seen == self.after {
            return Ok(());
        }
        let mut rest = seen.clone();
        let made = rest.extract_if(.., |path, _| !self.before.contains_key(path)).collect::<View>();
        let unfinished = made.iter().all(|(path, is)| is.bytes.is_empty() && self.after.contains_key(path));
        if rest == self.before && unfinished && self.after.len() > self.before.len() {
            return Ok(());
        }
        Err(format!("neither before nor after: {:?}", difference(seen, &self.before, &self.after)))
    }

    /// What may be there after a power cut: each file as before or as after; what is the same in both is there.
    fn allows_after_power_cut(&self, seen: &View) -> Outcome {
        for (path, is) in seen {
            let known = [self.before.get(path), self.after.get(path)];
            let same = known.iter().flatten().any(|then| then.kind == is.kind && then.bytes == is.bytes);
            let fresh = !self.before.contains_key(path) && is.bytes.is_empty();
            // A directory's new name and its old one are one change; what is in it goes with it.
            if !same && !fresh {
                return Err(format!("{path} is neither as before nor as after"));
            }
        }
        for (path, then) in &self.before {
            if self.after.get(path).is_some_and(|after| after.bytes == then.bytes) && !seen.contains_key(path) {
                return Err(format!("{path} is gone"));
            }
        }
        Ok(())
    }
}

/// Paths at which a view is like neither of two others.
fn difference(seen: &View, before: &View, after: &View) -> Vec<String> {
    let paths = seen.keys().chain(before.keys()).chain(after.keys());
    let mut paths: Vec<&String> =
        paths.filter(|p| seen.get(*p) != before.get(*p) || seen.get(*p) != after.get(*p)).collect();
    paths.sort();
    paths.dedup();
    paths.into_iter().map(|p| format!("{p}: {:?}", seen.get(p))).collect()
}

/// One operation with one failure; `false`: it did not come to that call.
fn one(this: &Try, at: u64, called: &mut String) -> Outcome<bool> {
    let options = Options { sync_names: at.is_multiple_of(2), ..Options::default() };
    let expected = Expected::of(this.work)?;
    let fs = SimFs::from_image(furnished(), options);
    let tree = Tree::on(&fs)?;
    let mut handles = Vec::new();
    for path in FILES {
        let node = tree.node(path).map_err(text)?;
        if this.held {
            let number = tree.names.open(node, libc::O_RDWR, &USER).map_err(text)?;
            handles.push((path, tree.names.handles().get(number).map_err(text)?));
        }
    }
    let nodes = FILES.map(|path| (path, tree.node(path).expect("it was just found")));
    fs.start_log();
    fs.set_fault(Some(this.mode.fault(at)));
    let result = (this.work)(&tree);
    let hit = fs.failed() > 0;
    *called = fs.take_log().get(at as usize - 1).cloned().unwrap_or_default();
    if !hit {
        return result.map(|()| false).map_err(text);
    }
    let mut rng = Rng::new(at);
    if this.mode == Mode::Kill {
        killed(&fs, options, &expected, &mut rng)?;
        return Ok(true);
    }
    fs.set_fault(None);
    let seen = look(&tree.names).map_err(|e| format!("afterwards ({result:?}): {e}"))?;
    match &result {
        Err(error) if text(error).contains(WRONG) => return Err(text(error)),
        Ok(()) if seen != expected.after => {
            return Err(format!("said to be done: {:?}", difference(&seen, &expected.after, &expected.after)));
        }
        Ok(()) => {}
        Err(error) => expected.allows(&seen).map_err(|why| format!("{error}: {why}"))?,
    }
    for (path, handle) in &handles {
        let got = bytes_of(handle).map_err(|e| format!("the open file {path}: {e}"))?;
        let changed = expected.after.get(*path).is_some_and(|after| after.bytes == got);
        if expected.before[*path].bytes != got && !changed {
            return Err(format!("the open file {path} has other bytes"));
        }
    }
    // The kernel knows these nodes until it forgets them, whatever has become of their names.
    for (path, node) in nodes {
        let known = look_at(&tree.names, node).map_err(|e| format!("the node of {path}: {e}"))?;
        if known.kind != FileKind::File {
            return Err(format!("the node of {path} is something else now"));
        }
    }
    later(this, &tree, &fs, options, &expected, &seen, &mut rng)?;
    Ok(true)
}

/// What comes after a failure: a restart, a power cut, another try.
fn later(
    this: &Try,
    tree: &Tree,
    fs: &Arc<SimFs>,
    options: Options,
    expected: &Expected,
    seen: &View,
    rng: &mut Rng,
) -> Outcome {
    let again = reopened(fs.crash(Crash::Kill, rng), options).map_err(|why| format!("a restart: {why}"))?;
    // A write that could not be noted, or a change that could not be synced, may be there or not.
    let changed = *seen != expected.before && *seen != expected.after;
    if again != *seen && (changed || again != expected.before && again != expected.after) {
        return Err(format!("a restart shows something else: {:?}", difference(&again, seen, seen)));
    }
    power_cut(fs, options, expected, rng)?;
    if *seen == expected.before && expected.before != expected.after {
        match (this.work)(tree).map_err(text) {
            Err(why) if why.contains(LATCHED) => return Ok(()),
            other => other.map_err(|why| format!("tried again: {why}"))?,
        }
        let seen = look(&tree.names).map_err(text)?;
        if seen != expected.after {
            return Err(format!("tried again: {:?}", difference(&seen, &expected.after, &expected.after)));
        }
    }
    Ok(())
}

/// The daemon died at a call.
fn killed(fs: &Arc<SimFs>, options: Options, expected: &Expected, rng: &mut Rng) -> Outcome {
    let seen = reopened(fs.crash(Crash::Kill, rng), options).map_err(|why| format!("the next start: {why}"))?;
    expected.allows(&seen).map_err(|why| format!("the next start: {why}"))?;
    power_cut(fs, options, expected, rng)
}

fn power_cut(fs: &Arc<SimFs>, options: Options, expected: &Expected, rng: &mut Rng) -> Outcome {
    let kind = POWER[rng.below(POWER.len() as u64) as usize];
    let here = |why| format!("a power cut ({kind:?}): {why}");
    let seen = reopened(fs.crash(kind, rng), options).map_err(here)?;
    expected.allows_after_power_cut(&seen).map_err(here)
}

/// What a pool on this disk shows; check finds it clean.
fn reopened(image: Image, options: Options) -> Outcome<View> {
    let fs = SimFs::from_image(image, options);
    clean(&fs)?;
    let tree = Tree::on(&fs)?;
    let seen = look(&tree.names).map_err(text)?;
    clean(&fs)?;
    Ok(seen)
}
