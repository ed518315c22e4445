//! A machine that runs under load and is cloned every second: what each clone holds, and what the machine feels of it.
//!
//! `CLONEFS_LIVE_CLONES=60` takes a clone every second for a minute; without it there are a few. What the machine feels
//! is printed (docs/domain.md says how to run it), not judged: that is for a quiet host.

use std::time::{Duration, Instant};

use crate::guest::{Tiny, disk};
use crate::host::{self, Host};
use crate::meter::{Figures, Meter};
use crate::support::wait_until;

/// How many clones are taken.
fn clones() -> u32 {
    std::env::var("CLONEFS_LIVE_CLONES").map_or(4, |count| count.parse().expect("a number"))
}

/// A clone, and the last file and the last row that were acknowledged before it was asked for.
struct Clone {
    image: String,
    file: u32,
    row: u32,
}

/// Bytes of file `number` of the tiny guest.
fn file(number: u32) -> Vec<u8> {
    format!("x-{number}\n").bytes().cycle().take(4096).collect()
}

/// Does something at the beginning of each of `count` seconds; notes the longest write and flush while it is done, and
/// in what remains of the second.
fn each_second(count: u32, meter: &Meter, figures: &mut Figures, what: &str, mut act: impl FnMut(u32)) {
    let start = Instant::now();
    let mut before = meter.read();
    for number in 1..=count {
        act(number);
        let done = meter.read();
        figures.add(format!("during {what}"), done.longest_since(&before));
        // Where that took longer than a second, the next begins at once.
        let end = start + Duration::from_secs(u64::from(number));
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        before = meter.read();
        figures.add(format!("rest of that second ({what})"), before.longest_since(&done));
    }
    println!("{what}: {count} seconds took {:.1} s", start.elapsed().as_secs_f64());
}

/// Replays the journal of the clone's filesystem, mounted at `at`, and looks at all that was acknowledged.
fn check(host: &Host, clone: &Clone, at: &str) {
    let Clone { image, file: last, row } = clone;
    // Mounting it replays the journal of the filesystem, opening the database that of the database.
    host.shell(&format!("mount -o loop {image} {at}"));
    for number in 1..=*last {
        let bytes = host.read(&format!("{at}/x.{number}"));
        assert!(bytes == file(number), "{image}: file {number} of {last}");
    }
    let rows = "import sqlite3, sys
db = sqlite3.connect(sys.argv[1] + '/db')
print(db.execute('PRAGMA integrity_check').fetchone()[0])
rows = db.execute('SELECT n, x FROM t ORDER BY n').fetchall()
want = [(n, 'x-%d' % n + '00' * 200) for n in range(1, len(rows) + 1)]
print('same' if rows == want else 'other', len(rows))
db.close()";
    let said = host.run("/usr/bin/python3", ["-c", rows, at]).success().stdout;
    let found = said.strip_prefix("ok\nsame ").and_then(|count| count.trim().parse::<u32>().ok());
    assert!(found.is_some_and(|count| count >= *row), "{image}: {said} of {row} rows");
    host.shell(&format!("umount {at}; e2fsck -fn {image}"));
}

/// A guest writes files and rows of a database, syncs each and says so, and writes besides without a pause. Each clone
/// that is taken meanwhile has a filesystem that is clean once its journal is replayed, and every file and row that was
/// acknowledged before.
#[test]
fn a_live_clone_each_second_is_clean_and_has_all_that_was_acknowledged() {
    if !host::ready() {
        return;
    }
    let count = clones();
    let host = Host::start();
    let tiny = Tiny::new(&host);
    let image = host.pool("gold.img");
    host.shell(&format!("truncate -s 192M {image}; mkfs.ext4 -q -F -N 40000 -E lazy_itable_init=0 {image}"));
    let domain = tiny.domain("gold", "job=much n=35000", &disk(&image, "raw", "vda"));
    host.define(&tiny.with(&domain, "database"));
    host.virsh_ok("start gold");
    wait_until(|| tiny.acknowledged("gold") > 2 && tiny.last("gold", "ROW ") > 5);

    let meter = Meter::new(&host, "gold");
    let mut figures = Figures::default();
    // Without a clone: nothing at all for as long as one takes, and then all that one takes of the host's processors.
    let quiet = if count < 60 { 1 } else { count };
    each_second(quiet, &meter, &mut figures, "nothing", |_| std::thread::sleep(Duration::from_millis(250)));
    each_second(quiet, &meter, &mut figures, "a dry run", |_| {
        host.clonefs_ok("domain clone gold x --live --dry-run");
    });
    let mut clones = Vec::new();
    let mut times = Vec::new();
    each_second(count, &meter, &mut figures, "a clone", |number| {
        let (file, row) = (tiny.acknowledged("gold"), tiny.last("gold", "ROW "));
        let start = Instant::now();
        host.clonefs_ok(&format!("domain clone gold c{number} --live"));
        times.push(start.elapsed().as_secs_f64());
        clones.push(Clone { image: host.pool(&format!("c{number}.img")), file, row });
    });
    assert_eq!(host.virsh_ok("domstate gold").trim(), "running");
    let (file, row) = (tiny.acknowledged("gold"), tiny.last("gold", "ROW "));
    assert!(row > clones[0].row && file >= clones[0].file, "it came to a halt");
    host.virsh_ok("destroy gold");

    times.sort_by(f64::total_cmp);
    println!("a clone took {:.2} s, the longest {:.2} s", times[times.len() / 2], times[times.len() - 1]);
    figures.print();
    let start = Instant::now();
    // Two at a time: that is how many processors small machines have.
    std::thread::scope(|scope| {
        for (number, clones) in clones.chunks(clones.len().div_ceil(2)).enumerate() {
            let (host, at) = (&host, host.outside(&format!("at{number}")));
            host.shell(&format!("mkdir {at}"));
            scope.spawn(move || clones.iter().for_each(|clone| check(host, clone, &at)));
        }
    });
    println!("{count} clones with up to {file} files and {row} rows checked in {:.1} s", start.elapsed().as_secs_f64());
}
