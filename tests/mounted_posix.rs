//! POSIX suites of others over a mount. What differs from the backing filesystem is listed in docs/posix.md.

mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use clonefs::protocol;
use support::{Backing, clonefs, get_xattr, on, run};

/// A program of a suite: in the search path, or where `scripts/setup --ci` puts it.
fn suite(name: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(cache.map(|cache| cache.join("clonefs/tools/bin")));
    let found = places.map(|place| place.join(name)).find(|program| program.exists());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "{name} is missing: scripts/setup --ci builds it");
        eprintln!("SKIPPED: {name} is missing: `cargo install {name}`, or scripts/setup --ci");
    }
    found
}

const PJDFSTEST: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
allow_remount = false
expected_failures = []
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// Test cases with another outcome than on the backing filesystem, and why.
const DIFFERENCES: [(&str, &str); 1] =
    [("link::link_count_max", "the C library derives LINK_MAX from the filesystem's type, and knows none for FUSE")];

/// Outcome of each test case in a directory.
fn pjdfstest(program: &Path, configuration: &Path, directory: &Path) -> BTreeMap<String, String> {
    fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // It ends with a failure when any case has one, on either side.
    let done = run(Command::new(program).arg("-c").arg(configuration).arg("-p").arg(directory));
    let outcome = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, outcome) = (words.next()?, words.next()?);
        let known = ["ok", "FAILED", "skipped", "success"].contains(&outcome);
        (name.contains("::") && known).then(|| (name.to_owned(), outcome.to_owned()))
    };
    let outcomes: BTreeMap<_, _> = done.stdout.lines().filter_map(outcome).collect();
    assert!(outcomes.len() > 350, "{} cases only: {done:?}", outcomes.len());
    outcomes
}

#[test]
fn pjdfstest_says_the_same_as_on_the_backing_filesystem() {
    let Some(program) = suite("pjdfstest") else { return };
    on(&[Backing::Ext4, Backing::Xfs], |pool| {
        pool.unmount();
        pool.mount("suid,dev,deepen=manual");
        let place = tempfile::TempDir::new().unwrap();
        let configuration = place.path().join("pjdfstest.toml");
        fs::write(&configuration, PJDFSTEST).unwrap();
        let native = pool.disk.root().join("native");
        fs::create_dir(&native).unwrap();
        let native = pjdfstest(&program, &configuration, &native);
        let mounted = pjdfstest(&program, &configuration, pool.root());
        let differ = |name: &&String| native.get(*name) != mounted.get(*name);
        let names: std::collections::BTreeSet<&String> = native.keys().chain(mounted.keys()).filter(differ).collect();
        let unexpected = |name: &&&String| DIFFERENCES.iter().all(|(known, _)| *known != name.as_str());
        let unexpected: Vec<_> = names.iter().filter(unexpected).collect();
        assert!(unexpected.is_empty(), "{unexpected:?}");
        assert!(mounted.values().filter(|outcome| *outcome == "FAILED").count() == 0, "{mounted:?}");
    });
}

const FSX: &str = r#"
flen = 1048576
[opsize]
max = 131072
[weights]
close_open = 2
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 2
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = 3
punch_hole = 5
sendfile = 5
posix_fadvise = 2
copy_file_range = 5
"#;

/// Processes that are ended whatever happens.
struct Running(Vec<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn fsx_finds_nothing_in_files_that_are_cloned_and_deepened_all_the_time() {
    let Some(program) = suite("fsx") else { return };
    on(&Backing::ALL, |pool| {
        let place = tempfile::TempDir::new().unwrap();
        let configuration = place.path().join("fsx.toml");
        fs::write(&configuration, FSX).unwrap();
        let start = |seed: u32| {
            let mut command = Command::new(&program);
            command.arg("-q").arg("-f").arg(&configuration).args(["-N", "1500", "-S", &seed.to_string(), "-P"]);
            command.arg(place.path()).arg(pool.at(format!("file-{seed}")));
            let log = fs::File::create(place.path().join(format!("log-{seed}"))).expect("log");
            command.stdout(Stdio::null()).stderr(log).spawn().expect("fsx")
        };
        let mut running = Running((1..=3).map(start).collect());
        let mut round = 0;
        while running.0.iter_mut().any(|child| child.try_wait().expect("wait").is_none()) {
            round += 1;
            for seed in 1..=3 {
                let (source, clone) = (pool.at(format!("file-{seed}")), pool.at(format!("clone-{seed}-{}", round % 3)));
                if source.exists() {
                    let force = OsStr::new("--force");
                    clonefs([OsStr::new("clone"), force, source.as_os_str(), clone.as_os_str()]).success();
                }
            }
            let deepened = pool.at(format!("file-{}", round % 3 + 1));
            if round % 4 == 0 && deepened.exists() {
                clonefs([OsStr::new("deepen"), deepened.as_os_str()]).success();
            }
        }
        for (child, seed) in running.0.iter_mut().zip(1..) {
            let log = || fs::read_to_string(place.path().join(format!("log-{seed}"))).expect("log");
            assert!(child.wait().expect("wait").success(), "fsx, seed {seed}, found something:\n{}", log());
        }
        assert!(round > 3, "{round} rounds only");
        let report = get_xattr(pool.root(), protocol::CHECK).expect("check");
        assert!(report.starts_with(b"{\"problems\":[]"), "{}", String::from_utf8_lossy(&report));
    });
}
