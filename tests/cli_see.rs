//! `list`, `status`, `tree`, `deepen`, `pause`, `resume`, `wait`, `export` and `import` on a mounted pool.

mod support;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use serde_json::Value;
use support::cli::{Pool, names, noise, on_each, refused, run, shell};

fn json(pool: &Pool, args: &[&str]) -> Value {
    serde_json::from_str(&run(pool, args)).unwrap()
}

/// Pools whose clones stay overlays, with `base.img` of 8 MiB and clones `vm1.img`, `vm2.img`.
fn on_each_lab(test: impl Fn(&Pool, Vec<u8>)) {
    on_each(&["--deepen", "manual"], |pool| {
        let image = noise(8 << 20);
        pool.write("base.img", &image);
        run(pool, &["clone", "base.img", "--count", "2", "vm{}.img"]);
        test(pool, image);
    });
}

#[test]
fn list_shows_what_each_volume_is() {
    on_each_lab(|pool, _| {
        fs::create_dir(pool.path("sub")).unwrap();
        pool.write("sub/plain", b"x");
        let rows = json(pool, &["list", "--json"]);
        let row = |name: &str| rows.as_array().unwrap().iter().find(|r| r["name"] == name).unwrap().clone();
        assert_eq!(rows.as_array().unwrap().len(), 4);
        let vm1 = row("vm1.img");
        assert_eq!((&vm1["state"], &vm1["size"], &vm1["depth"]), (&"overlay".into(), &(8 << 20).into(), &1.into()));
        assert_eq!(
            (&vm1["origin"], &vm1["path"]),
            (&"base.img".into(), &pool.path("vm1.img").to_str().unwrap().into())
        );
        assert_eq!(row("base.img")["state"], "independent");
        assert_eq!(row("sub/plain")["size"], 1);
        let text = run(pool, &["list"]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0][..3], ["NAME", "SIZE", "STATE"]);
        let listed: Vec<&str> = lines[1..].iter().map(|line| line[0]).collect();
        assert_eq!(listed, ["base.img", "sub/plain", "vm1.img", "vm2.img"]);
        assert_eq!(lines[3][1..5], ["8M", "overlay", "0.0%", "1"]);
        assert_eq!(run(pool, &["list", "sub"]).lines().count(), 2);
        assert_eq!(json(pool, &["list", "--json", "vm1.img"])[0]["state"], "overlay");
        let elsewhere = pool.backing();
        assert_eq!(json(pool, &["list", "--json", elsewhere.to_str().unwrap()]).as_array().unwrap().len(), 4);
    });
}

#[test]
fn names_are_exact_in_a_pipe_and_harmless_on_a_terminal() {
    on_each(&[], |pool| {
        let evil = std::ffi::OsStr::from_bytes(b"a\x1b[2J\xff");
        fs::write(pool.path("").join(evil), b"x").unwrap();
        let output = pool.clonefs(&["list"]);
        assert!(output.stdout.windows(evil.len()).any(|w| w == evil.as_bytes()));
        let rows = json(pool, &["list", "--json"]);
        assert!(rows[0]["path_hex"].as_str().unwrap().ends_with("611b5b324aff"), "{rows}");
        let list = format!("{} list {}", env!("CARGO_BIN_EXE_clonefs"), pool.path("").display());
        let output = Command::new("script").args(["-qec", &list, "/dev/null"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(r"a\u{1b}[2J\xff") && !text.contains("\x1b["), "{text:?}");
    });
}

#[test]
fn tree_shows_who_shares_with_whom() {
    on_each_lab(|pool, _| {
        pool.write("alone", b"x");
        shell(&format!("printf mine | dd of={:?} conv=notrunc status=none", pool.path("vm1.img")));
        run(pool, &["clone", "vm1.img", "vm3.img"]);
        let text = run(pool, &["tree"]);
        let names: Vec<&str> = text.lines().map(|line| line.split("  [").next().unwrap()).collect();
        assert_eq!(
            names,
            ["base.img", "|-- vm1.img", "|   `-- vm3.img", "`-- vm2.img", "1 file shares nothing with another"]
        );
        fs::remove_file(pool.path("base.img")).unwrap();
        let text = run(pool, &["tree", "vm2.img"]);
        assert!(text.contains("vm2.img  [overlay 0.0%") && text.contains("layer "), "{text}");
    });
}

#[test]
fn deepening_makes_an_ordinary_file_and_wait_says_when() {
    on_each_lab(|pool, image| {
        let said = refused(pool, &["wait", "vm1.img"], 1);
        assert!(said.contains("nothing is deepening it") && said.contains("clonefs deepen"), "{said}");
        run(pool, &["deepen", "vm1.img", "--wait"]);
        assert_eq!(pool.attribute("vm1.img", "user.clonefs.state"), "independent");
        assert!(fs::read(pool.backing().join("vm1.img")).unwrap() == image);
        assert_eq!(pool.attribute("vm2.img", "user.clonefs.state"), "overlay");
        run(pool, &["wait", "vm1.img", "base.img"]);
        run(pool, &["clone", "base.img", "vm3.img", "--wait"]);
        assert!(fs::read(pool.backing().join("vm3.img")).unwrap() == image);
        run(pool, &["deepen", "."]);
        run(pool, &["wait", "."]);
        for name in pool.names() {
            assert!(fs::read(pool.backing().join(&name)).unwrap() == image, "{name}");
        }
        assert_eq!(json(pool, &["status", "--json"])["overlays"], 0);
    });
}

#[test]
fn a_paused_volume_stays_as_it_is_until_resumed() {
    on_each_lab(|pool, image| {
        run(pool, &["pause", "vm1.img"]);
        assert_eq!(pool.attribute("vm1.img", "user.clonefs.state"), "paused");
        let said = refused(pool, &["wait", "vm1.img"], 1);
        assert!(said.contains("paused") && said.contains("clonefs resume"), "{said}");
        pool.unmount();
        pool.mount_again(&["--deepen", "auto"]);
        run(pool, &["wait", "vm2.img"]);
        assert_eq!(pool.attribute("vm1.img", "user.clonefs.state"), "paused");
        run(pool, &["resume", "vm1.img"]);
        run(pool, &["wait", "vm1.img"]);
        assert!(fs::read(pool.backing().join("vm1.img")).unwrap() == image);
    });
}

#[test]
fn status_tells_who_serves_the_pool_and_what_goes_on() {
    on_each_lab(|pool, _| {
        let status = json(pool, &["status", "--json"]);
        assert_eq!(status["pool"], pool.backing().to_str().unwrap());
        assert_eq!(status["mountpoint"], pool.path("").to_str().unwrap());
        assert_eq!((&status["deepen"], &status["overlays"]), (&"manual".into(), &2.into()));
        let pid = status["pid"].as_u64().unwrap();
        assert!(shell(&format!("cat /proc/{pid}/comm")).starts_with("clonefs"));
        let text = run(pool, &["status"]);
        assert!(text.contains("2 overlays") && text.contains(&format!("process {pid} ")), "{text}");
        run(pool, &["deepen", "--rate", "128K", "--physical", "vm1.img"]);
        // 8 MiB take a minute at that rate, so that it goes on below however slow the machine is; the compactor begins when
        // it has seen what else there is to do.
        let mut text = run(pool, &["status"]);
        for _ in 0..500 {
            if text.contains("vm1.img") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
            text = run(pool, &["status"]);
        }
        assert!(text.contains("at most 128K/s") && text.contains("[") && text.contains("vm1.img"), "{text}");
        assert_eq!(json(pool, &["status", "--json", pool.backing().to_str().unwrap()])["rate_limit"], 128 << 10);
        let line =
            format!("timeout 60 {} status --json --watch {:?} | head -2", env!("CARGO_BIN_EXE_clonefs"), pool.path(""));
        let two = shell(&line);
        let pids: Vec<Value> = two.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["pid"].clone()).collect();
        assert_eq!(pids, [pid, pid]);
        run(pool, &["pause", "."]);
        assert!(run(pool, &["status"]).contains("PAUSED"));
        assert!(refused(pool, &["wait", "vm1.img"], 1).contains("paused"));
        run(pool, &["resume", "."]);
        run(pool, &["deepen", "--rate", "0", "vm1.img", "--wait"]);
    });
}

#[test]
fn a_pool_is_checked_mounted_and_not() {
    on_each_lab(|pool, _| {
        let report = json(pool, &["check", "--json"]);
        assert_eq!((&report["problems"], &report["volumes"]), (&Value::Array(vec![]), &2.into()));
        assert!(run(pool, &["check", "."]).starts_with("clean: 2 overlays, 1 shared layer"));
        let backing = pool.backing().display().to_string();
        assert!(run(pool, &["check", &backing]).starts_with("clean"));
        assert!(refused(pool, &["init", &backing], 1).contains("mounted"));
        pool.unmount();
        let check = || Command::new(env!("CARGO_BIN_EXE_clonefs")).args(["check", &backing]).output().unwrap();
        assert_eq!(check().status.code(), Some(0));
        shell(&format!("rm {backing:?}/.clonefs/stubs/*"));
        let output = check();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(4), "{said}");
        assert!(said.contains("vm1.img") && said.contains("problems"), "{said}");
        pool.mount_again(&[]);
    });
}

#[test]
fn a_volume_goes_out_as_an_image_and_comes_back() {
    on_each_lab(|pool, image| {
        let out = tempfile::tempdir().unwrap();
        let path = |name: &str| out.path().join(name).to_str().unwrap().to_owned();
        let (raw, qcow2) = (path("vm.raw"), path("vm.qcow2"));
        run(pool, &["export", "vm1.img", &raw, "--format", "raw"]);
        assert!(fs::read(&raw).unwrap() == image);
        assert!(refused(pool, &["export", "vm1.img", &raw, "--format", "raw"], 1).contains("vm.raw"));
        run(pool, &["export", "vm1.img", &qcow2, "--format", "qcow2", "--compress", "zstd"]);
        shell(&format!("qemu-img check -q {qcow2:?} && qemu-img compare -f raw -F qcow2 {raw:?} {qcow2:?}"));
        run(pool, &["import", &qcow2, "back.img"]);
        assert!(pool.read("back.img") == image);
        run(pool, &["clone", "back.img", "vm9.img"]);
        assert!(pool.read("vm9.img") == image);
        assert_eq!(names(out.path()), ["vm.qcow2", "vm.raw"]);
    });
}
