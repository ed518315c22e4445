//! `usage` and the watermarks on a mounted pool.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use serde_json::Value;
use support::cli::{Pool, noise, on_each, refused, run, shell};
use support::{Backing, wait_until};

fn json(pool: &Pool, args: &[&str]) -> Value {
    serde_json::from_str(&run(pool, args)).unwrap()
}

fn row(report: &Value, list: &str, name: &str) -> Value {
    report[list].as_array().unwrap().iter().find(|r| r["name"] == name).unwrap_or_else(|| panic!("{name}")).clone()
}

#[test]
fn usage_says_who_takes_what() {
    on_each(&["--deepen", "manual"], |pool| {
        pool.write("base.img", &noise(8 << 20));
        fs::create_dir(pool.path("lab")).unwrap();
        for clone in ["lab/one.img", "two.img"] {
            run(pool, &["clone", "base.img", clone]);
        }
        chown(pool.path("two.img"), Some(4321), Some(4321)).unwrap();
        shell(&format!(
            "dd if=/dev/urandom of={:?} bs=1M count=1 conv=notrunc,fsync status=none",
            pool.path("two.img")
        ));
        let report = json(pool, &["usage", "--json"]);
        let (base, one, two) = (
            row(&report, "volumes", "base.img"),
            row(&report, "volumes", "lab/one.img"),
            row(&report, "volumes", "two.img"),
        );
        let disk = fs::metadata(pool.path("base.img")).unwrap().blocks() * 512;
        assert!(disk >= 8 << 20, "{disk}");
        assert_eq!((&base["own"], &base["shared"], &base["freed"]), (&0.into(), &disk.into(), &0.into()));
        assert_eq!((&one["own"], &one["shared"], &one["present"]), (&0.into(), &disk.into(), &0.into()));
        assert_eq!(one["independence"], 8 << 20);
        assert_eq!((&two["present"], &two["independence"]), (&(1 << 20).into(), &(7 << 20).into()));
        assert_eq!(two["freed"], two["own"]);
        let own = two["own"].as_u64().unwrap();
        assert!(own >= 1 << 20, "{own}");
        let total = &report["total"];
        assert_eq!((&total["volumes"], &total["size"]), (&3.into(), &(24 << 20).into()));
        assert_eq!((total["own"].as_u64().unwrap(), &total["shared"]), (disk + own, &0.into()), "{total}");
        assert_eq!(total["demand"].as_u64().unwrap(), (24 << 20) - own, "{total}");

        let by_uid = json(pool, &["usage", "--by", "uid", "--json"]);
        assert_eq!(row(&by_uid, "groups", "4321")["own"], own);
        assert_eq!(row(&by_uid, "groups", "0")["shared"], disk);
        let by_tree = json(pool, &["usage", "--by", "tree", "--json"]);
        assert_eq!(row(&by_tree, "groups", "lab")["volumes"], 1);
        assert_eq!(row(&by_tree, "groups", ".")["size"], 16 << 20);

        let text = run(pool, &["usage"]);
        let line = text.lines().find(|l| l.starts_with("two.img")).unwrap();
        assert_eq!(line.split_whitespace().collect::<Vec<_>>()[1..3], ["8M", "1M"]);
        assert!(text.contains("3 volumes of 24M"), "{text}");
        assert!(run(pool, &["usage", "--by", "uid"]).contains("4321"));
        assert!(run(pool, &["usage", "two.img"]).contains("1 volume of 8M"));

        // What is said to come free does, and what is said to be copied is.
        run(pool, &["deepen", "--wait", "lab/one.img"]);
        let one = json(pool, &["usage", "lab/one.img", "--json"])["volumes"][0].clone();
        assert_eq!((&one["shared"], &one["independence"], &one["present"]), (&0.into(), &0.into(), &(8 << 20).into()));
        refused(pool, &["usage", "nothing"], 1);
        refused(pool, &["usage", "--by", "colour"], 2);
    });
}

/// Fills the filesystem until so many percent are in use.
fn fill(pool: &Pool, percent: u64) {
    let status = json(pool, &["status", "--json"]);
    let (free, total) = (status["free_bytes"].as_u64().unwrap(), status["total_bytes"].as_u64().unwrap());
    let leave = total * (100 - percent) / 100;
    assert!(free > leave, "{free} bytes are free, {leave} are to be left");
    shell(&format!("fallocate -l {} {:?}", free - leave, pool.disk.root().join("filler")));
}

fn level(pool: &Pool) -> String {
    json(pool, &["status", "--json"])["space"]["level"].as_str().unwrap().to_owned()
}

#[test]
fn watermarks_stop_deepening_and_then_clones() {
    support::cli::on(&[Backing::Ext4], &["-o", "warn=60%,stop-deepening=70%,refuse-clones=80%"], |pool| {
        pool.write("base.img", &noise(2 << 20));
        run(pool, &["clone", "base.img", "early.img", "--wait"]);
        assert_eq!(level(pool), "fine");

        fill(pool, 65);
        assert_eq!(level(pool), "warn");
        assert!(run(pool, &["status"]).contains("ROOM IS RUNNING OUT"));
        run(pool, &["clone", "base.img", "warned.img", "--wait"]);

        fs::remove_file(pool.disk.root().join("filler")).unwrap();
        fill(pool, 74);
        assert_eq!(level(pool), "stop-deepening");
        run(pool, &["clone", "base.img", "stopped.img"]);
        let said = refused(pool, &["wait", "stopped.img"], 1);
        assert!(said.contains("full") && said.contains("deepening has stopped"), "{said}");
        let said = refused(pool, &["deepen", "--wait", "stopped.img"], 1);
        assert!(said.contains("deepening has stopped"), "{said}");
        assert_eq!(json(pool, &["list", "--json", "stopped.img"])[0]["state"], "overlay");

        fs::remove_file(pool.disk.root().join("filler")).unwrap();
        fill(pool, 85);
        assert_eq!(level(pool), "refuse-clones");
        let said = refused(pool, &["clone", "base.img", "late.img"], 1);
        assert!(said.contains("clones are refused at 80%"), "{said}");
        assert!(!pool.path("late.img").exists());
        // No slow copy in place of the clone that was refused.
        let cp =
            pool.command(&[]).get_current_dir().map(|dir| format!("cd {dir:?}; cp base.img copy.img 2>&1")).unwrap();
        let output = std::process::Command::new("bash").args(["-c", &cp]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!output.status.success() && said.contains("No space left"), "{said}");
        // Writing is for the filesystem to refuse.
        pool.write("stopped.img", b"still written");

        fs::remove_file(pool.disk.root().join("filler")).unwrap();
        run(pool, &["clone", "base.img", "after.img"]);
        wait_until(|| json(pool, &["list", "--json", "after.img"])[0]["state"] == "independent");
        assert_eq!(level(pool), "fine");
    });
}

#[test]
fn a_watermark_that_makes_no_sense_is_named() {
    if !support::ready() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    for word in ["warn=0%", "stop-deepening=101%", "refuse-clones=much"] {
        let done = support::clonefs(["mount", path, "-o", word]).code(2);
        assert!(done.stderr.contains(word), "{}", done.stderr);
    }
}
