//! Several users on one mount, with a way into the backing directory: nobody gets what a plain filesystem would not have
//! given, whoever exchanges names beside the mount. Bounded here; `scripts/soak rights` goes on for as long as is said.

mod support;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::{
    Backing, Disk, Mount, Pool, as_user_in, c_path, errno, get_xattr, mknod, on, remove_xattr, rename, result, run,
    set_xattr,
};

/// Users; the first two are in [`GROUP`].
const USERS: [u32; 3] = [64_301, 64_302, 64_303];
const GROUP: u32 = 64_310;

fn as_one<T: Send>(user: u32, work: impl FnOnce() -> T + Send) -> T {
    let groups: &[u32] = if user == USERS[2] { &[] } else { &[GROUP] };
    as_user_in(user, user, groups, work)
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().expect("a number"))
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// A pool mounted elsewhere, so that its directory is in reach, and a plain directory beside it.
struct World {
    mount: Mount,
    pool: PathBuf,
    plain: PathBuf,
    disk: Disk,
}

impl World {
    fn new(kind: Backing) -> World {
        let disk = Disk::new(kind);
        let (pool, plain, at) = (disk.root().join("pool"), disk.root().join("plain"), disk.root().join("at"));
        for directory in [&pool, &plain, &at] {
            fs::create_dir(directory).expect("directory");
        }
        fs::set_permissions(disk.root(), PermissionsExt::from_mode(0o755)).expect("mode");
        fs::set_permissions(disk.root().parent().expect("place"), PermissionsExt::from_mode(0o755)).expect("mode");
        for root in [&pool, &plain] {
            furnish(root);
        }
        let mount = Mount::new(&pool, Some(&at), "allow_other,suid,dev");
        World { mount, pool, plain, disk }
    }
}

/// Directories of every kind.
const DIRECTORIES: [(&str, u32, u32, u32); 5] = [
    ("open", 0o777, 0, 0),
    ("sticky", 0o1777, 0, 0),
    ("own", 0o755, USERS[0], USERS[0]),
    ("group", 0o2775, 0, GROUP),
    ("sticky-group", 0o3770, USERS[1], GROUP),
];

fn furnish(root: &Path) {
    fs::set_permissions(root, PermissionsExt::from_mode(0o755)).expect("mode");
    for (name, mode, uid, gid) in DIRECTORIES {
        let directory = root.join(name);
        fs::create_dir(&directory).expect("directory");
        chown(&directory, Some(uid), Some(gid)).expect("owner");
        fs::set_permissions(&directory, PermissionsExt::from_mode(mode)).expect("mode");
        let of_root = directory.join("of-root");
        fs::write(&of_root, "root's").expect("file");
        fs::set_permissions(&of_root, PermissionsExt::from_mode(0o666)).expect("mode");
        fs::create_dir(directory.join("of-root-too")).expect("directory");
        fs::write(directory.join("of-root-too/kept"), "root's").expect("file");
    }
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Create(u32),
    Mkdir(u32),
    Symlink,
    Mknod(u32),
    Chmod(u32),
    Chown(u32, u32),
    Rename(u32),
    Unlink,
    Rmdir,
    Link,
    SetXattr,
    RemoveXattr,
    Times,
    Write,
    Read,
    Truncate,
}

const MODES: [u32; 8] = [0o644, 0o600, 0o755, 0o4755, 0o2755, 0o2644, 0o1777, 0o000];

fn act_of(dice: &mut Dice) -> Act {
    let mode = dice.one_of(&MODES);
    match dice.below(18) {
        0 | 1 => Act::Create(mode),
        2 => Act::Mkdir(mode),
        3 => Act::Symlink,
        4 => Act::Mknod(dice.one_of(&[libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFCHR]) | mode),
        5 | 6 => Act::Chmod(mode),
        // Not both left as they are: what that means is the kernel's own affair, see docs/posix.md.
        7 => Act::Chown(dice.one_of(&[u32::MAX, USERS[0], USERS[1], 0]), dice.one_of(&[GROUP, USERS[2], 0])),
        8 | 9 => Act::Rename(dice.one_of(&[0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE])),
        10 => Act::Unlink,
        11 => Act::Rmdir,
        12 => Act::Link,
        13 => Act::SetXattr,
        14 => Act::RemoveXattr,
        15 => Act::Times,
        16 => dice.one_of(&[Act::Write, Act::Truncate]),
        _ => Act::Read,
    }
}

fn perform(act: Act, path: &Path, other: &Path) -> io::Result<()> {
    let c = c_path(path);
    match act {
        Act::Create(mode) => OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map(drop),
        // SAFETY: the path is NUL-terminated.
        Act::Mkdir(mode) => result(unsafe { libc::mkdir(c.as_ptr(), mode) }).map(drop),
        Act::Symlink => symlink("nowhere", path),
        Act::Mknod(mode) => mknod(path, mode, 0),
        Act::Chmod(mode) => fs::set_permissions(path, PermissionsExt::from_mode(mode)),
        // SAFETY: the path is NUL-terminated.
        Act::Chown(uid, gid) => result(unsafe { libc::lchown(c.as_ptr(), uid, gid) }).map(drop),
        Act::Rename(flags) => rename(path, other, flags),
        Act::Unlink => fs::remove_file(path),
        Act::Rmdir => fs::remove_dir(path),
        Act::Link => fs::hard_link(path, other),
        Act::SetXattr => set_xattr(path, "user.note", b"by one of them"),
        Act::RemoveXattr => remove_xattr(path, "user.note"),
        Act::Times => {
            // SAFETY: the path is NUL-terminated; no times: now.
            result(unsafe { libc::utimensat(libc::AT_FDCWD, c.as_ptr(), std::ptr::null(), libc::AT_SYMLINK_NOFOLLOW) })
                .map(drop)
        }
        Act::Write => {
            let file = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
            file.write_all_at(b"written", 0)
        }
        Act::Truncate => OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path)?.set_len(3),
        Act::Read => File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path).map(drop),
    }
}

const NAMES: [&str; 6] = ["a", "b", "c", "d", "of-root", "of-root-too"];

fn place(dice: &mut Dice) -> PathBuf {
    Path::new(dice.one_of(&DIRECTORIES).0).join(dice.one_of(&NAMES))
}

/// What everybody sees of a tree.
fn shown(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).expect("directory") {
            let path = entry.expect("entry").path();
            if path.file_name() == Some(OsStr::new(".clonefs")) {
                continue;
            }
            let meta = fs::symlink_metadata(&path).expect("status");
            let name = path.strip_prefix(root).expect("below").display();
            let bytes = if meta.is_file() { fs::read(&path).expect("bytes") } else { Vec::new() };
            let note = get_xattr(&path, "user.note").is_ok();
            let links = if meta.is_dir() { 0 } else { meta.nlink() };
            let (mode, uid, gid) = (meta.mode(), meta.uid(), meta.gid());
            found.push(format!("{name} {mode:o} {uid} {gid} {links} {note} {bytes:?}"));
            if meta.is_dir() {
                todo.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn three_users_get_the_same_results_as_on_a_plain_filesystem() {
    if !support::ready() {
        return;
    }
    for kind in [Backing::Ext4, Backing::Xfs] {
        let world = World::new(kind);
        let seed = number("CLONEFS_RIGHTS_SEED", 20_261_128);
        let mut dice = Dice(seed | 1);
        for step in 0..number("CLONEFS_RIGHTS_STEPS", 1500) {
            let (user, act) = (dice.one_of(&USERS), act_of(&mut dice));
            let (at, to) = (place(&mut dice), place(&mut dice));
            let both = as_one(user, || {
                [world.mount.path(), &world.plain].map(|root| errno(perform(act, &root.join(&at), &root.join(&to))))
            });
            assert_eq!(both[0], both[1], "{kind:?} seed {seed} step {step}: {user} {act:?} {at:?} {to:?}");
        }
        let (mounted, plain) = (shown(world.mount.path()), shown(&world.plain));
        for (one, other) in mounted.iter().zip(&plain) {
            assert_eq!(one, other, "{kind:?} seed {seed}: mounted, plain");
        }
        assert_eq!(mounted.len(), plain.len());
        assert_eq!(shown(&world.pool), plain, "{kind:?} seed {seed}: the files below the mount");
    }
}

/// What is root's in a tree, by inode and time of making, as an inode number is used again.
fn of_root(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let Ok(meta) = fs::symlink_metadata(entry.path()) else { continue };
            if entry.file_name() == ".clonefs" {
                continue;
            }
            if meta.uid() == 0 {
                let made = meta.created().expect("time of making");
                found.push(format!("{} {made:?} {:o} {}", meta.ino(), meta.mode(), meta.gid()));
            }
            if meta.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// What a file holds, without waiting for anybody where it is a FIFO.
fn read_soon(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn who_exchanges_names_beside_the_mount_gets_nothing_of_others() {
    if !support::ready() {
        return;
    }
    let length = Duration::from_secs(number("CLONEFS_RIGHTS_SECONDS", 6));
    for kind in [Backing::Ext4, Backing::Xfs, Backing::Btrfs] {
        let world = World::new(kind);
        let outside = world.disk.root().join("outside");
        fs::create_dir(&outside).expect("directory");
        fs::write(outside.join("a"), "outside").expect("file");
        let secret = world.pool.join("own/secret");
        fs::create_dir(&secret).expect("directory");
        fs::write(secret.join("a"), "root's secret").expect("file");
        fs::set_permissions(&secret, PermissionsExt::from_mode(0o700)).expect("mode");
        let (before, elsewhere) = (of_root(&world.pool), of_root(&outside));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Nobody can do more to a directory than who owns it.
            let racer = scope.spawn(|| {
                as_one(USERS[0], || {
                    let own = world.pool.join("own");
                    let swap = |one: &str, other: &str| {
                        let _ = rename(&own.join(one), &own.join(other), libc::RENAME_EXCHANGE);
                    };
                    let _ = symlink(&outside, own.join("link"));
                    while !stop.load(Ordering::Relaxed) {
                        swap("a", "of-root");
                        swap("b", "of-root-too");
                        swap("c", "secret");
                        swap("d", "link");
                    }
                });
            });
            for (number, user) in USERS.into_iter().enumerate() {
                let (world, stop) = (&world, &stop);
                scope.spawn(move || {
                    as_one(user, || {
                        let mut dice = Dice(77 + number as u64);
                        let own = world.mount.path().join("own");
                        while !stop.load(Ordering::Relaxed) {
                            let act = act_of(&mut dice);
                            let name = dice.one_of(&["a", "b", "c", "d", "c/a", "d/a"]);
                            // The owner of the directory could remove what is in it, and then an inode number comes again.
                            if !matches!(act, Act::Unlink | Act::Rmdir | Act::Rename(_)) || name.len() == 1 {
                                let _ = perform(act, &own.join(name), &own.join("other"));
                            }
                            if let Ok(text) = read_soon(&own.join("c/a")) {
                                assert_ne!(text, "root's secret", "{user} reads what only root may");
                            }
                        }
                    });
                });
            }
            let begun = Instant::now();
            while begun.elapsed() < length {
                std::thread::sleep(Duration::from_millis(20));
                for file in of_root(&world.pool) {
                    // This walk itself can be led outside, by a link in the place of a directory.
                    if !before.contains(&file) && !elsewhere.contains(&file) {
                        stop.store(true, Ordering::Relaxed);
                        panic!("{kind:?}: {file} is root's and was not");
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
            racer.join().expect("racer");
        });
        assert_eq!(of_root(&outside), elsewhere, "{kind:?}: what lies outside");
        assert_eq!(fs::read_to_string(outside.join("a")).expect("file"), "outside");
        assert_eq!(fs::read_dir(&outside).expect("directory").count(), 1, "{kind:?}");
        // What root had is root's still, unless its owner removed it, which the owner of the directory may.
        for file in walk(&world.pool.join("own")) {
            let meta = fs::symlink_metadata(&file).expect("status");
            let text = read_soon(&file).unwrap_or_default();
            if meta.is_file() && text.starts_with("root's") {
                assert_eq!(meta.uid(), 0, "{kind:?}: {file:?} was root's");
            }
        }
    }
}

fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let path = entry.path();
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
            found.extend(walk(&path));
        }
        found.push(path);
    }
    found
}

fn overlay(lower: &Path, upper: &Path, work: &Path, merged: &Path) {
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    run(Command::new("mount").args(["-t", "overlay", "none", "-o", &options]).arg(merged)).success();
}

/// Names and bytes of what an overlay shows.
fn merged_files(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<(PathBuf, Vec<u8>)> = walk(root)
        .into_iter()
        .filter(|path| path.is_file())
        .map(|path| (path.strip_prefix(root).expect("below").to_path_buf(), fs::read(&path).expect("bytes")))
        .collect();
    files.sort();
    files
}

#[test]
fn a_renamed_file_leaves_a_whiteout_of_the_callers() {
    on(&[Backing::Ext4, Backing::Xfs, Backing::Btrfs], |pool| {
        let directory = pool.at("d");
        fs::create_dir(&directory).expect("directory");
        fs::set_permissions(&directory, PermissionsExt::from_mode(0o1777)).expect("mode");
        as_one(USERS[0], || {
            fs::write(directory.join("a"), "bytes").expect("file");
            rename(&directory.join("a"), &directory.join("b"), libc::RENAME_WHITEOUT).expect("rename with whiteout");
        });
        let whiteout = fs::symlink_metadata(directory.join("a")).expect("a whiteout");
        assert_eq!((whiteout.mode() & libc::S_IFMT, whiteout.rdev()), (libc::S_IFCHR, 0));
        assert_eq!(whiteout.uid(), USERS[0]);
        assert_eq!(fs::read(directory.join("b")).expect("file"), b"bytes");
        let both = libc::RENAME_WHITEOUT | libc::RENAME_EXCHANGE;
        assert_eq!(errno(rename(&directory.join("b"), &directory.join("a"), both)), libc::EINVAL);
    });
}

#[test]
fn an_overlayfs_has_its_upper_directory_on_the_mount() {
    on(&[Backing::Ext4, Backing::Xfs], |pool| {
        let place = pool.disk.root().join("overlay");
        for name in ["lower/sub/deep", "lower/gone", "merged"] {
            fs::create_dir_all(place.join(name)).expect("directory");
        }
        for name in ["file", "sub/one", "sub/deep/two", "gone/three"] {
            fs::write(place.join("lower").join(name), name).expect("file");
        }
        let (lower, merged) = (place.join("lower"), place.join("merged"));
        let (upper, work) = (pool.at("upper"), pool.at("work"));
        for directory in [&upper, &work] {
            fs::create_dir(directory).expect("directory");
        }
        overlay(&lower, &upper, &work, &merged);
        fs::remove_file(merged.join("file")).expect("remove a lower file");
        fs::remove_dir_all(merged.join("gone")).expect("remove a lower directory");
        fs::create_dir(merged.join("gone")).expect("an opaque directory");
        fs::write(merged.join("gone/new"), "new").expect("file");
        fs::rename(merged.join("sub/one"), merged.join("sub/moved")).expect("rename a lower file");
        OpenOptions::new().append(true).open(merged.join("sub/deep/two")).expect("copy up");
        fs::write(merged.join("sub/deep/two"), "changed").expect("file");
        fs::hard_link(merged.join("gone/new"), merged.join("linked")).expect("link");
        let seen = merged_files(&merged);
        let names: Vec<&str> = seen.iter().map(|(path, _)| path.to_str().expect("name")).collect();
        assert_eq!(names, ["gone/new", "linked", "sub/deep/two", "sub/moved"]);
        run(Command::new("umount").arg(&merged)).success();
        let whiteout = fs::symlink_metadata(upper.join("file")).expect("a whiteout");
        assert_eq!((whiteout.mode() & libc::S_IFMT, whiteout.rdev()), (libc::S_IFCHR, 0));
        assert_eq!(get_xattr(&upper.join("gone"), "trusted.overlay.opaque").expect("opaque"), b"y");
        // The same again, after both were mounted anew.
        pool.unmount();
        pool.mount("deepen=manual");
        overlay(&lower, &upper, &work, &merged);
        assert_eq!(merged_files(&merged), seen);
        run(Command::new("umount").arg(&merged)).success();
        assert_eq!(fs::read(lower.join("file")).expect("lower file"), b"file");
    });
}

/// What root of a user namespace does with an overlay of its own: attributes are `user.overlay.*` then.
const IN_A_NAMESPACE: &str = r#"
set -e
mount -t overlay none -o "userxattr,lowerdir=$1/lower,upperdir=$2/upper,workdir=$2/work" "$1/merged"
rm "$1/merged/file"
mv "$1/merged/one" "$1/merged/moved"
rm -r "$1/merged/sub"
mkdir "$1/merged/sub"
echo new >"$1/merged/sub/new"
cat "$1/merged/moved" "$1/merged/sub/new"
ls "$1/merged" "$1/merged/sub"
"#;

#[test]
fn an_overlayfs_of_a_user_namespace_has_its_upper_directory_on_the_mount() {
    if !support::ready() {
        return;
    }
    let user = USERS[0];
    let mut pool = Pool::unmounted(Backing::Ext4);
    pool.mount("deepen=manual,allow_other");
    fs::set_permissions(pool.disk.root(), PermissionsExt::from_mode(0o755)).expect("mode");
    fs::set_permissions(pool.disk.root().parent().expect("place"), PermissionsExt::from_mode(0o755)).expect("mode");
    let place = pool.disk.root().join("overlay");
    let (lower, of_user) = (place.join("lower"), pool.at("of-user"));
    fs::create_dir(&of_user).expect("directory");
    for directory in [lower.join("sub"), place.join("merged"), of_user.join("upper"), of_user.join("work")] {
        fs::create_dir_all(directory).expect("directory");
    }
    for name in ["file", "one", "sub/two"] {
        fs::write(lower.join(name), format!("{name}\n")).expect("file");
    }
    for path in walk(&place).into_iter().chain(walk(&of_user)).chain([of_user.clone(), place.clone()]) {
        chown(&path, Some(user), Some(user)).expect("owner");
    }
    let words = [format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".into()];
    let mut command = Command::new("setpriv");
    command.args(words).args(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", IN_A_NAMESPACE, "sh"]);
    let done = run(command.arg(&place).arg(&of_user)).success();
    let merged = place.join("merged");
    let expected = format!("one\nnew\n{}:\nmoved\nsub\n\n{}:\nnew\n", merged.display(), merged.join("sub").display());
    assert_eq!(done.stdout, expected);
    let whiteout = fs::symlink_metadata(of_user.join("upper/file")).expect("a whiteout");
    assert_eq!((whiteout.mode() & libc::S_IFMT, whiteout.rdev(), whiteout.uid()), (libc::S_IFCHR, 0, user));
    assert_eq!(get_xattr(&of_user.join("upper/sub"), "user.overlay.opaque").expect("opaque"), b"y");
}
