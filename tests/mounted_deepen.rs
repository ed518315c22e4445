//! Deepening, sentence by sentence: what starts it, what it leaves, and what survives a stop in the middle.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use clonefs::protocol::{DEEPEN, VolumeState};
use support::{Backing, Mapping, Pool, clonefs, get_xattr, list_xattr, noise, on, on_each_filesystem, set_xattr};
use support::{run, wait_until};

const MIB: usize = 1 << 20;

fn writable(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

/// An order to the command, in the pool's root.
fn command(pool: &Pool, words: &[&str]) -> support::Done {
    run(Command::new(env!("CARGO_BIN_EXE_clonefs")).args(words).current_dir(pool.root()))
}

fn is_independent(pool: &Pool, name: &str) -> bool {
    pool.info(name).state == VolumeState::Independent
}

/// Nothing of clonefs is left but what an empty pool has.
fn assert_plain_files_only(pool: &Pool) {
    wait_until(|| (pool.mounted().status().overlays, pool.mounted().status().layers) == (0, 0));
    for directory in ["layers", "stubs", "tmp"] {
        let path = pool.below(Path::new(".clonefs").join(directory));
        wait_until(|| fs::read_dir(&path).unwrap().count() == 0);
    }
}

/// All that a file has besides its bytes; times of access are left out where reading the file changes them.
fn facts(path: &Path) -> String {
    let meta = fs::metadata(path).unwrap();
    let names = list_xattr(path).unwrap();
    let values: Vec<_> = names.iter().map(|name| (name, get_xattr(path, name).unwrap())).collect();
    let (mode, owner, size) = (meta.mode(), (meta.uid(), meta.gid()), meta.size());
    format!("{mode:o} {owner:?} {size} {}.{} {} {values:?}", meta.mtime(), meta.mtime_nsec(), meta.nlink())
}

#[test]
fn a_deepened_volume_is_an_ordinary_file_with_name_owner_mode_times_and_attributes() {
    on_each_filesystem(|pool| {
        let mut bytes = noise(1, MIB + 777);
        bytes.resize(5 * MIB, 0);
        bytes.extend(noise(2, 3 * MIB + 5));
        let base = File::create(pool.at("base")).unwrap();
        base.write_all_at(&bytes[..MIB + 777], 0).unwrap();
        base.write_all_at(&bytes[5 * MIB..], 5 * MIB as u64).unwrap();
        drop(base);
        fs::create_dir(pool.at("sub")).unwrap();
        pool.clone("base", "sub/vm");
        let path = pool.at("sub/vm");
        writable(&path).write_all_at(b"its own", 4_000_000).unwrap();
        bytes[4_000_000..4_000_007].copy_from_slice(b"its own");
        std::os::unix::fs::chown(&path, Some(1234), Some(77)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o2750)).unwrap();
        run(Command::new("setfacl").args(["-m", "u:7:r"]).arg(&path)).success();
        set_xattr(&path, "user.note", b"kept").unwrap();
        set_xattr(&path, "trusted.note", b"kept too").unwrap();
        run(Command::new("touch").args(["-d", "@1000000000.123456789"]).arg(&path)).success();
        let (before, inode) = (facts(&path), fs::metadata(&path).unwrap().ino());

        pool.deepen("sub/vm");
        assert_eq!(facts(&path), before);
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "programs that watch a file know it by its number");
        assert!(fs::read(&path).unwrap() == bytes);
        // A read through the mount is a read of the file below, which is there at once, under its name.
        let below = pool.below("sub/vm");
        assert_eq!(facts(&below), before);
        assert!(fs::read(&below).unwrap() == bytes);
        // What was a hole in the source takes no space here.
        assert!(fs::metadata(&below).unwrap().blocks() * 512 < 5 * MIB as u64);
        pool.unmount();
        assert_eq!(facts(&path), before);
        assert!(fs::read(&path).unwrap() == bytes);
    });
}

#[test]
fn open_handles_and_mappings_go_on_through_the_switch() {
    on_each_filesystem(|pool| {
        let mut bytes = noise(3, 4 * MIB);
        pool.write("base", &bytes);
        pool.clone("base", "vm");
        let (one, two) = (writable(&pool.at("vm")), writable(&pool.at("vm")));
        let mut mapping = Mapping::new(&two, 4 * MIB).unwrap();
        assert_eq!(mapping.bytes()[MIB], bytes[MIB]);
        one.write_all_at(b"before", 10).unwrap();
        mapping.bytes()[3 * MIB..3 * MIB + 6].copy_from_slice(b"stored");
        pool.deepen("vm");
        one.write_all_at(b"after", 100_000).unwrap();
        mapping.bytes()[2 * MIB..2 * MIB + 5].copy_from_slice(b"later");
        for (at, text) in [(10, "before"), (3 * MIB, "stored"), (100_000, "after"), (2 * MIB, "later")] {
            bytes[at..at + text.len()].copy_from_slice(text.as_bytes());
        }
        assert!(mapping.bytes() == bytes);
        one.sync_all().unwrap();
        assert!(pool.read("vm") == bytes);
        assert!(fs::read(pool.below("vm")).unwrap() == bytes);
        assert_eq!(one.metadata().unwrap().ino(), fs::metadata(pool.at("vm")).unwrap().ino());
    });
}

#[test]
fn a_volume_that_is_written_all_the_time_gets_there_too() {
    on_each_filesystem(|pool| {
        let mut bytes = noise(4, 8 * MIB);
        pool.write("base", &bytes);
        pool.clone("base", "vm");
        let stop = std::sync::atomic::AtomicBool::new(false);
        let written = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let file = writable(&pool.at("vm"));
                let mut round = 0u64;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    // Odd places, so that blocks have to be completed from the source.
                    file.write_all_at(&round.to_le_bytes(), round * 7919 % (8 * MIB as u64 - 8)).unwrap();
                    round += 1;
                }
                round
            });
            pool.deepen("vm");
            let end = std::time::Instant::now();
            while end.elapsed().as_millis() < 20 {
                std::thread::yield_now();
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            writer.join().unwrap()
        });
        for round in 0..written {
            let at = (round * 7919 % (8 * MIB as u64 - 8)) as usize;
            bytes[at..at + 8].copy_from_slice(&round.to_le_bytes());
        }
        assert!(pool.read("vm") == bytes);
        assert!(fs::read(pool.below("vm")).unwrap() == bytes);
    });
}

#[test]
fn deepening_starts_by_itself_and_ends_with_plain_files_only() {
    on_each_filesystem(|pool| {
        pool.unmount();
        let mut expected = vec![("base".to_owned(), noise(5, 2 * MIB + 99))];
        pool.write("base", &expected[0].1);
        pool.mount("deepen=manual");
        // Clones of clones, each with bytes of its own, written before and after they were cloned; the source too.
        for generation in 0..4usize {
            let (source, mut bytes) = expected[generation / 2 * 2].clone();
            let name = format!("vm{generation}");
            pool.clone(&source, &name);
            let text = format!("generation {generation}");
            for (who, of) in [(&name, &mut bytes), (&source, &mut expected[generation / 2 * 2].1)] {
                let at = (generation + 1) * 300_000 + who.len();
                writable(&pool.at(who)).write_all_at(text.as_bytes(), at as u64).unwrap();
                of[at..at + text.len()].copy_from_slice(text.as_bytes());
            }
            expected.push((name, bytes));
        }
        pool.clone("vm1", "deleted");
        fs::remove_file(pool.at("deleted")).unwrap();
        for (name, bytes) in &expected {
            assert!(pool.read(name) == *bytes, "{name}");
        }
        pool.unmount();
        pool.mount("deepen=auto");
        let names: Vec<_> = expected.iter().map(|(name, _)| name.as_str()).collect();
        wait_until(|| names.iter().all(|name| is_independent(pool, name)));
        for (name, bytes) in &expected {
            assert!(pool.read(name) == *bytes, "{name}");
        }
        assert_plain_files_only(pool);
        pool.unmount();
        for (name, bytes) in &expected {
            assert!(pool.read(name) == *bytes, "{name} without clonefs");
        }
        clonefs([Path::new("check"), pool.root()]).success();
    });
}

#[test]
fn the_last_heir_adopts_its_source_instead_of_copying_it() {
    on_each_filesystem(|pool| {
        let mut bytes = noise(6, 8 * MIB);
        pool.write("base", &bytes);
        let data = fs::metadata(pool.below("base")).unwrap().ino();
        pool.clone("base", "vm");
        writable(&pool.at("vm")).write_all_at(b"its own", 5 * MIB as u64 + 3).unwrap();
        bytes[5 * MIB + 3..5 * MIB + 10].copy_from_slice(b"its own");
        fs::remove_file(pool.at("base")).unwrap();
        // The kernel lets go of a removed file when it likes, and a small one would be copied by then.
        pool.unmount();
        pool.mount("deepen=manual");
        pool.deepen("vm");
        assert_eq!(fs::metadata(pool.below("vm")).unwrap().ino(), data, "it is the file of the source");
        assert!(fs::read(pool.below("vm")).unwrap() == bytes);
        assert_plain_files_only(pool);
    });
}

#[test]
fn blocks_are_shared_where_the_filesystem_can_unless_bytes_are_asked_for() {
    on_each_filesystem(|pool| {
        let bytes = noise(7, 48 * MIB);
        pool.write("base", &bytes);
        pool.clone("base", "shared");
        pool.clone("base", "physical");
        let free = || {
            run(Command::new("sync").arg("-f").arg(pool.disk.root())).success();
            let done = run(Command::new("stat").args(["-f", "-c", "%f %S"]).arg(pool.disk.root())).success();
            let numbers: Vec<u64> = done.stdout.split_whitespace().map(|word| word.parse().unwrap()).collect();
            numbers[0] * numbers[1]
        };
        let before = free();
        pool.deepen("shared");
        let between = free();
        command(pool, &["deepen", "--physical", "--wait", "physical"]).success();
        let after = free();
        let reflink = matches!(pool.disk.kind, Backing::Xfs | Backing::Btrfs);
        assert_eq!(pool.mounted().status().reflink, reflink);
        assert_eq!(before.saturating_sub(between) < 24 << 20, reflink, "{before} {between}");
        assert!(between.saturating_sub(after) > 40 << 20, "{between} {after}");
        for name in ["base", "shared", "physical"] {
            assert!(fs::read(pool.below(name)).unwrap() == bytes, "{name}");
        }
    });
}

/// The last block was shared with a file that was longer than its volume, as a crash can leave it.
#[test]
fn what_a_crash_left_beyond_the_end_is_not_shared() {
    on(&[Backing::Xfs, Backing::Btrfs], |pool| {
        let mut bytes = noise(17, MIB + 100);
        pool.write("base", &bytes);
        pool.clone("base", "vm");
        writable(&pool.at("vm")).write_all_at(&bytes, 0).unwrap();
        pool.unmount();
        let layers = fs::read_dir(pool.below(".clonefs/layers")).unwrap().map(|entry| entry.unwrap().path());
        let own = layers.filter(|path| path.extension().is_some_and(|e| e == "data"));
        let own = own.max_by_key(|path| fs::metadata(path).unwrap().modified().unwrap()).unwrap();
        assert_eq!(fs::metadata(&own).unwrap().len(), bytes.len() as u64);
        writable(&own).write_all_at(&[9; 3996], bytes.len() as u64).unwrap();
        pool.mount("deepen=manual");
        command(pool, &["clone", "--size", "2M", "vm", "larger"]).success();
        bytes.resize(2 * MIB, 0);
        assert!(pool.read("larger") == bytes);
        pool.deepen("larger");
        assert!(pool.read("larger") == bytes);
    });
}

/// Starts to deepen `vm` slowly and waits until `percent` of it are there.
fn deepen_to(pool: &Pool, percent: f64) {
    command(pool, &["deepen", "--physical", "--rate", "30M", "vm"]).success();
    wait_until(|| pool.info("vm").progress >= percent);
}

#[test]
fn progress_survives_an_orderly_end_and_a_crash() {
    on_each_filesystem(|pool| {
        let bytes = noise(8, MIB).repeat(144);
        pool.write("base", &bytes);
        pool.clone("base", "vm");
        deepen_to(pool, 10.0);
        pool.unmount();
        pool.mount("deepen=manual");
        // In order: all that was there is there still. Work that was asked for goes on, without being asked again.
        assert!(pool.info("vm").progress >= 10.0, "{:?}", pool.info("vm"));
        wait_until(|| pool.info("vm").progress > 50.0 || is_independent(pool, "vm"));
        if !is_independent(pool, "vm") {
            // A crash costs at most 64 MiB, of which two thirds of a slice are the most that is counted on here.
            pool.crash("deepen=manual");
            assert!(pool.info("vm").progress >= 5.0, "{:?}", pool.info("vm"));
        }
        command(pool, &["wait", "vm"]).success();
        assert!(fs::read(pool.below("vm")).unwrap() == bytes);
    });
}

#[test]
fn a_pause_holds_back_one_volume_or_all() {
    on_each_filesystem(|pool| {
        pool.unmount();
        pool.mount("deepen=auto");
        let bytes = noise(9, MIB);
        pool.write("base", &bytes);
        command(pool, &["pause", "."]).success();
        assert!(pool.mounted().status().paused);
        for name in ["one", "two"] {
            pool.clone("base", name);
        }
        let said = command(pool, &["wait", "one"]).code(1).stderr;
        assert!(said.contains("paused") && said.contains("clonefs resume"), "{said}");
        command(pool, &["pause", "one"]).success();
        command(pool, &["resume", "."]).success();
        command(pool, &["wait", "two"]).success();
        assert_eq!(pool.info("one").state, VolumeState::Paused);
        // It stays so over a restart.
        pool.unmount();
        pool.mount("deepen=auto");
        assert_eq!(pool.info("one").state, VolumeState::Paused);
        let said = command(pool, &["wait", "one"]).code(1).stderr;
        assert!(said.contains("paused"), "{said}");
        command(pool, &["resume", "one"]).success();
        command(pool, &["wait", "."]).success();
        for name in ["base", "one", "two"] {
            assert!(fs::read(pool.below(name)).unwrap() == bytes, "{name}");
        }
        assert_plain_files_only(pool);
    });
}

#[test]
fn waiting_ends_at_once_where_nothing_would_come_of_it() {
    on(&[Backing::Ext4], |pool| {
        pool.write("base", &noise(10, MIB));
        pool.clone("base", "vm");
        let said = command(pool, &["wait", "vm"]).code(1).stderr;
        assert!(said.contains("nothing is deepening it") && said.contains("clonefs deepen"), "{said}");
        // With --no-deepen also where the pool deepens by itself.
        pool.unmount();
        pool.mount("deepen=auto");
        command(pool, &["clone", "--no-deepen", "base", "kept"]).success();
        command(pool, &["wait", "vm"]).success();
        let said = command(pool, &["wait", "kept"]).code(1).stderr;
        assert!(said.contains("nothing is deepening it"), "{said}");
        // A source that was written to keeps what its clone needs until that is done with it.
        writable(&pool.at("base")).write_all_at(b"x", 0).unwrap();
        let said = command(pool, &["wait", "base"]).code(1).stderr;
        assert!(said.contains("nothing is deepening it"), "{said}");
        set_xattr(&pool.at("kept"), DEEPEN, b"start").unwrap();
        command(pool, &["wait", "base", "kept"]).success();
        assert_plain_files_only(pool);
    });
}

#[test]
fn what_waits_for_its_turn_is_in_the_status() {
    on(&[Backing::Ext4], |pool| {
        pool.write("base", &noise(11, 4 * MIB));
        for number in 0..5 {
            pool.clone("base", &format!("vm{number}"));
        }
        assert_eq!(pool.mounted().status().job_count, 0);
        command(pool, &["pause", "."]).success();
        command(pool, &["deepen", "vm1", "vm2", "vm3"]).success();
        let status = pool.mounted().status();
        let mut waiting: Vec<_> = status.jobs.iter().map(|job| (job.path.as_str(), job.step.as_str())).collect();
        waiting.sort_unstable();
        assert_eq!(waiting, [("vm1", "waiting"), ("vm2", "waiting"), ("vm3", "waiting")]);
        assert_eq!((status.job_count, status.jobs[0].to_copy), (3, 4 << 20));
        command(pool, &["resume", "."]).success();
        command(pool, &["wait", "vm1", "vm2", "vm3"]).success();
        wait_until(|| pool.mounted().status().job_count == 0);
        assert_eq!(pool.info("vm4").state, VolumeState::Overlay);
    });
}

#[test]
fn the_compactor_sleeps_while_there_is_nothing_to_do() {
    on(&[Backing::Ext4], |pool| {
        pool.unmount();
        pool.mount("deepen=auto");
        pool.write("base", &noise(12, MIB));
        pool.clone("base", "vm");
        command(pool, &["clone", "--no-deepen", "base", "kept"]).success();
        command(pool, &["wait", "vm"]).success();
        let pid = pool.mounted().status().pid;
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap().path());
        let named = |task: &Path| fs::read_to_string(task.join("comm")).unwrap().trim() == "clonefs-compact";
        let task = tasks.into_iter().find(|task| named(task)).expect("the compactor");
        let switches = || {
            let status = fs::read_to_string(task.join("status")).unwrap();
            let numbers = status.lines().filter(|line| line.contains("ctxt_switches"));
            numbers.map(|line| line.rsplit('\t').next().unwrap().parse::<u64>().unwrap()).sum::<u64>()
        };
        for round in 0.. {
            assert!(round < 20, "this machine is too slow");
            // Something to look at: from then on it has nothing to do for twenty seconds.
            let woken = std::time::Instant::now();
            command(pool, &["clone", "--no-deepen", "base", &format!("kept-{round}")]).success();
            let mut before = switches();
            wait_until(|| {
                std::thread::sleep(std::time::Duration::from_secs(1));
                std::mem::replace(&mut before, switches()) == switches()
            });
            // Reads and writes of what is not its business do not wake it either.
            for round in 0..200 {
                writable(&pool.at("vm")).write_all_at(b"x", round * 4096).unwrap();
                assert_eq!(pool.read("kept").len(), MIB);
            }
            let after = switches();
            if woken.elapsed().as_secs() < 15 {
                assert!(after - before <= 2, "{before} {after}");
                break;
            }
        }
    });
}
