//! Events, metrics and the daemon's own messages, on a mounted pool.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use support::{Backing, Pool, as_user, clonefs, noise, on, on_each_filesystem, run, wait_until};

/// Events as `clonefs events --json` prints them.
fn events(at: &Path, more: &[&str]) -> Vec<Value> {
    let path = at.to_str().expect("path");
    let done = clonefs([&["events", "--json", path], more].concat()).success();
    done.stdout.lines().map(|line| serde_json::from_str(line).expect("an event")).collect()
}

/// Kinds and paths, in order.
fn told(at: &Path) -> Vec<(String, String)> {
    let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
    events(at, &[]).iter().map(|event| (text(event, "event"), text(event, "path"))).collect()
}

fn has(at: &Path, what: &str, path: &str) -> bool {
    told(at).contains(&(what.to_owned(), path.to_owned()))
}

fn find(at: &Path, what: &str, path: &str) -> Value {
    wait_until(|| has(at, what, path));
    events(at, &[]).into_iter().rfind(|e| e["event"] == what && e["path"].as_str().unwrap_or_default() == path).unwrap()
}

#[test]
fn what_happens_is_told_with_who_asked_and_why() {
    on_each_filesystem(|pool| {
        let root = pool.root().to_owned();
        pool.write("base", &noise(1, 1 << 20));
        pool.clone("base", "vm");
        let cloned = find(&root, "cloned", "vm");
        assert_eq!((&cloned["from"], &cloned["uid"]), (&"base".into(), &0.into()));
        assert!(cloned["pid"].as_u64().is_some_and(|pid| pid > 1), "{cloned}");
        assert!(has(&root, "created", "vm"));

        pool.deepen("vm");
        let deepened = find(&root, "deepened", "vm");
        assert!(deepened.get("uid").is_none(), "{deepened}");

        // A file with something in it is no place for a clone.
        let refused = support::set_xattr(&pool.at("vm"), clonefs::protocol::CLONE_FROM, b"base");
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EEXIST));
        let refused = find(&root, "refused", "vm");
        assert!(refused["why"].as_str().unwrap().contains("not empty"), "{refused}");

        fs::rename(pool.write("other", b"x"), pool.at("vm")).unwrap();
        let replaced = find(&root, "deleted", "vm");
        assert!(replaced["why"].as_str().unwrap().contains("other"), "{replaced}");
        fs::set_permissions(pool.at("vm"), std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        as_user(4321, 4321, || fs::write(pool.at("theirs"), b"x").unwrap());
        as_user(4321, 4321, || fs::remove_file(pool.at("theirs")).unwrap());
        assert_eq!(find(&root, "deleted", "theirs")["uid"], 4321);

        // Others see what they asked for, and nothing of what root did.
        let (program, path) = (env!("CARGO_BIN_EXE_clonefs"), root.clone());
        let seen = as_user(4321, 4321, move || run(Command::new(program).args(["events", "--json"]).arg(path)));
        let seen: Vec<Value> = seen.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(!seen.is_empty() && seen.iter().all(|event| event["uid"] == 4321), "{seen:?}");

        let text = clonefs([std::ffi::OsStr::new("events"), root.as_os_str()]).success().stdout;
        assert!(text.lines().any(|line| line.contains("  cloned       vm  from base  (user 0, process ")), "{text}");
        assert!(events(&root, &["--since", "2100-01-01"]).is_empty());
        assert!(!events(&root, &["--since", "1h"]).is_empty());

        // The log goes on, and the pool's own directory can be read when it is not mounted.
        let before = events(&root, &[]).len();
        pool.unmount();
        let after = told(&root);
        assert!(after.len() > before && after.last().unwrap().0 == "unmounted", "{after:?}");
    });
}

#[test]
fn an_adoption_and_a_refusal_for_another_user_are_told() {
    on(&[Backing::Ext4], |pool| {
        let root = pool.root().to_owned();
        pool.write("base", &noise(1, 1 << 20));
        pool.clone("base", "vm");
        fs::set_permissions(pool.at("base"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let target = pool.at("stolen");
        as_user(4321, 4321, || {
            fs::write(&target, b"").unwrap();
            let refused = support::set_xattr(&target, clonefs::protocol::CLONE_FROM, b"base");
            assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EACCES));
        });
        assert_eq!(find(&root, "refused", "stolen")["uid"], 4321);
        fs::remove_file(pool.at("base")).unwrap();
        pool.deepen("vm");
        find(&root, "adopted", "vm");
        let status = pool.mounted().status();
        assert_eq!((status.events["adopted"], status.events["refused"]), (1, 1), "{:?}", status.events);
    });
}

#[test]
fn the_life_of_a_volume_is_told() {
    on(&[Backing::Ext4], |pool| {
        let root = pool.root().to_owned();
        let words = |words: &str| {
            let words = words.split(' ').map(|word| word.replace("POOL", root.to_str().unwrap()));
            clonefs(words.collect::<Vec<_>>())
        };
        pool.write("base", &noise(1, 1 << 20));
        words("clone --no-deepen POOL/base POOL/vm").success();
        words("snapshot create POOL/vm@one").success();
        words("resize POOL/vm 2M").success();
        words("snapshot rollback POOL/vm@one").success();
        words("reset POOL/vm").success();
        words("snapshot create POOL/base POOL/vm@both").success();
        words("snapshot rename POOL/vm@one uno").success();
        words("snapshot remove POOL/vm@uno").success();
        let open = fs::File::open(pool.at("vm")).unwrap();
        words("reset POOL/vm").code(1);
        words("resize POOL/vm 1K --shrink").code(1);
        words("snapshot rollback POOL/vm@both").code(1);
        drop(open);
        words("snapshot create POOL/vm@both").code(1);
        for (what, path, from) in [
            ("snapshot", "vm@one", "vm"),
            ("resized", "vm", ""),
            ("rolled-back", "vm", "vm@one"),
            ("reset", "vm", ""),
            ("snapshot", "base@both", "base"),
            ("snapshot", "vm@both", "vm"),
            ("unsnapshot", "vm@uno", ""),
        ] {
            let event = find(&root, what, path);
            assert_eq!((event["from"].as_str().unwrap_or_default(), &event["uid"]), (from, &0.into()), "{event}");
        }
        let refused = |why: &str| {
            let is = |event: &Value| event["event"] == "refused" && event["why"].as_str().unwrap().contains(why);
            wait_until(|| events(&root, &[]).iter().any(is));
        };
        ["reset: ", "resize: ", "snapshot: "].into_iter().for_each(refused);
        let status = pool.mounted().status();
        assert_eq!((status.events["snapshot"], status.events["refused"]), (3, 4), "{:?}", status.events);
    });
}

#[test]
fn following_shows_events_as_they_happen() {
    on(&[Backing::Tmpfs], |pool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clonefs"));
        command.args(["events", "--follow", "--json"]).arg(pool.root()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        pool.write("base", b"x");
        pool.clone("base", "vm");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let cloned = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
        let cloned = cloned.into_iter().find(|event| event["event"] == "cloned");
        assert_eq!(cloned.unwrap()["path"], "vm");
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

/// As the manual says of all commands.
#[test]
fn following_and_watching_end_with_the_code_of_an_interruption() {
    on(&[Backing::Ext4], |pool| {
        pool.write("base", b"x");
        pool.clone("base", "vm");
        for words in [["events", "--follow"], ["status", "--watch"]] {
            for signal in [libc::SIGINT, libc::SIGTERM] {
                let mut command = Command::new(env!("CARGO_BIN_EXE_clonefs"));
                command.args(words).arg(pool.root()).stdout(Stdio::piped()).stderr(Stdio::piped());
                let mut child = command.spawn().unwrap();
                let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
                // It is at work.
                assert!(lines.next().unwrap().is_ok());
                // SAFETY: kill takes a pid and a signal.
                unsafe { libc::kill(child.id() as i32, signal) };
                while lines.next().is_some() {}
                assert_eq!(child.wait().unwrap().code(), Some(130), "{words:?}");
                let mut said = String::new();
                std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
                assert_eq!(said, "");
            }
        }
    });
}

#[test]
fn a_log_that_is_torn_or_cannot_be_written_stops_nothing() {
    on(&[Backing::Ext4], |pool| {
        let root = pool.root().to_owned();
        pool.write("base", &noise(1, 1 << 20));
        pool.clone("base", "vm0");
        wait_until(|| has(&root, "cloned", "vm0"));
        pool.mounted().kill();
        pool.forget_mount();
        let log = pool.below(".clonefs/events.000001.jsonl");
        fs::File::options().append(true).open(&log).unwrap().write_all(b"{\"time\":\"torn").unwrap();
        pool.mount("deepen=manual");
        pool.clone("base", "vm1");
        wait_until(|| has(&root, "cloned", "vm1"));
        assert!(has(&root, "cloned", "vm0"));
        pool.unmount();

        // A directory in the place of the log: nothing can be written, and all else goes on.
        fs::remove_file(&log).unwrap();
        fs::create_dir(&log).unwrap();
        pool.mount("deepen=manual");
        pool.clone("base", "vm2");
        pool.deepen("vm2");
        assert_eq!(pool.read("vm2"), noise(1, 1 << 20));
        assert_eq!(pool.mounted().status().events["deepened"], 1);
        // When it can be written again, what waited is.
        fs::remove_dir(&log).unwrap();
        wait_until(|| has(&root, "deepened", "vm2"));
        pool.unmount();
        clonefs([std::ffi::OsStr::new("check"), root.as_os_str()]).success();
    });
}

#[test]
fn a_pool_without_clones_gets_no_log() {
    on(&[Backing::Tmpfs], |pool| {
        pool.write("plain", b"x");
        assert!(events(pool.root(), &[]).is_empty());
        pool.unmount();
        assert!(!pool.root().join(".clonefs").exists());
    });
}

/// Lines of the text format: a comment, or a name with labels and a number.
fn samples(page: &str) -> Vec<(String, f64)> {
    let value = |line: &str| {
        let (name, value) = line.rsplit_once(' ').expect("a value");
        assert!(name.starts_with("clonefs_") && name.ends_with('}'), "{line}");
        (name.to_owned(), value.parse().expect("a number"))
    };
    page.lines().filter(|line| !line.starts_with('#')).map(value).collect()
}

#[test]
fn metrics_are_what_prometheus_reads() {
    on(&[Backing::Ext4], |pool: &mut Pool| {
        pool.write("base", &noise(1, 1 << 20));
        pool.clone("base", "vm");
        let path = pool.root().to_str().unwrap().to_owned();
        let page = clonefs(["metrics", "--usage", &path]).success().stdout;
        let find = |page: &str, name: &str| {
            let name = format!("clonefs_{name}");
            let found = samples(page).into_iter().find(|(n, _)| n.starts_with(&name));
            found.unwrap_or_else(|| panic!("{name} in {page}"))
        };
        assert_eq!(find(&page, "overlays{").1, 1.0);
        assert_eq!(find(&page, "volumes{").1, 2.0);
        assert_eq!(find(&page, "independence_bytes{").1, f64::from(1 << 20));
        assert!(find(&page, "filesystem_size_bytes{").1 > 1e8);
        let cloned = samples(&page).into_iter().find(|(name, _)| name.contains("event=\"cloned\"")).unwrap();
        assert_eq!(cloned.1, 1.0);
        assert!(cloned.0.contains(&format!("pool=\"{path}\"")), "{cloned:?}");
        // Each metric is introduced once.
        let types: Vec<&str> = page.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let mut once = types.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), types.len());

        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("clonefs.prom");
        fs::write(&file, "old").unwrap();
        clonefs(["metrics", &path, "--output", file.to_str().unwrap()]).success();
        assert!(!samples(&fs::read_to_string(&file).unwrap()).is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        clonefs(["metrics", &path, "--output", "/nonexistent/x.prom"]).code(1);
    });
}

#[test]
fn the_dashboard_asks_for_metrics_that_exist() {
    let dashboard =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/grafana-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/metrics.rs")).unwrap();
    let mut asked = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            for part in expression.split("clonefs_").skip(1) {
                let name: String = part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                assert!(source.contains(&format!("\"{name}\"")), "{name} in {expression}");
                asked += 1;
            }
        }
    }
    assert!(asked > 8, "{asked}");
}

#[test]
fn in_a_service_messages_carry_their_priority() {
    if !support::ready() {
        return;
    }
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let (pool, log) = (dir.path().join("pool"), dir.path().join("log"));
    fs::create_dir(&pool).unwrap();
    let file = fs::File::create(&log).unwrap();
    let meta = file.metadata().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_clonefs"));
    command.args(["mount", "--foreground"]).arg(&pool).stderr(file);
    let mut child = command.env("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino())).spawn().unwrap();
    let mount = support::Mount::adopt(&pool);
    wait_until(|| fs::read_to_string(&log).unwrap().contains("serving"));
    mount.unmount();
    assert!(child.wait().unwrap().success());
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.lines().all(|line| line.starts_with("<6>")), "{text}");
}
