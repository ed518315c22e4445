//! The rows: each is a few measurements that belong together.

pub mod cache;
pub mod clone;
mod curves;
mod deepen;
mod depth;
mod fresh;
mod io;
mod many;
mod stall;

use crate::args::Args;
use crate::bench::{Bench, no_fuse};
use crate::failure::{Failure, Outcome};
use crate::report::Found;
use crate::run;

/// A row.
pub struct Row {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it measures.
    pub about: &'static str,
    /// What is missing here for it.
    pub missing: fn(&Bench) -> Option<String>,
    /// Bytes it takes on the disk, at most.
    pub space: fn(&Args) -> u64,
    /// Measures it.
    pub run: fn(&Bench) -> Outcome<Found>,
}

/// For metadata, tails and what filesystems take for themselves.
const REST: u64 = 256 << 20;

fn images(args: &Args, count: u64) -> u64 {
    args.settled().size * count + REST
}

fn with_fio(_: &Bench) -> Option<String> {
    no_fuse().or_else(|| run::missing(&["fio"]))
}

fn with_passthrough(bench: &Bench) -> Option<String> {
    with_fio(bench).or_else(|| io::no_passthrough(bench))
}

fn with_fuse(_: &Bench) -> Option<String> {
    no_fuse()
}

/// All of them, in the order in which they are measured.
pub const ALL: &[Row] = &[
    Row {
        name: "io",
        about: "an independent volume through the mount beside the same file without it",
        missing: with_fio,
        space: |args| images(args, 2),
        run: |bench| io::run(bench).map(Found::from),
    },
    Row {
        name: "passthrough",
        about: "the same with -o passthrough=writable, for a file that is open for reading and writing",
        missing: with_passthrough,
        space: |args| images(args, 2),
        run: |bench| io::run_past(bench).map(Found::from),
    },
    Row {
        name: "fresh",
        about: "a new clone: first writes and reads of the parent, beside a sparse file and a qcow2 linked clone",
        missing: with_fio,
        space: |args| images(args, 4),
        run: |bench| fresh::run(bench).map(Found::from),
    },
    Row {
        name: "depth",
        about: "reads through many layers beside reads through one",
        missing: with_fio,
        space: |args| images(args, 2),
        run: |bench| depth::run(bench).map(Found::from),
    },
    Row {
        name: "clone",
        about: "how long a clone takes, each way, of an image in one piece and of a fragmented one",
        missing: with_fuse,
        space: |args| images(args, 6) + args.settled().extents * 8192 * 4,
        run: |bench| clone::run(bench).map(Found::from),
    },
    Row {
        name: "many",
        about: "many clones of one image, one after another: clones a second, and the last beside the first",
        missing: with_fuse,
        space: |args| images(args, 1),
        run: |bench| many::run(bench).map(Found::from),
    },
    Row {
        name: "stall",
        about: "the longest write of a source while it is cloned again and again",
        missing: with_fuse,
        space: |args| images(args, 3),
        run: |bench| stall::run(bench).map(Found::from),
    },
    Row {
        name: "deepen",
        about: "deepening beside cp --sparse=always, and what it does to another volume",
        missing: with_fio,
        space: |args| images(args, 6),
        run: |bench| deepen::run(bench).map(Found::from),
    },
    Row {
        name: "cache",
        about: "32 clones of one image read in full: bytes that come from the disk",
        missing: with_fuse,
        space: |args| images(args, 1),
        run: |bench| cache::run(bench).map(Found::from),
    },
    Row {
        name: "curves",
        about: "what a clone costs against size, fragmentation, depth and number of clones, for the plots of --report",
        missing: with_fio,
        space: |args| images(args, 6) + args.settled().extents * 8192 * 4,
        run: curves::run,
    },
];

/// The rows that were asked for.
pub fn chosen(names: &[String]) -> Outcome<Vec<&'static Row>> {
    let known = |name: &String| {
        ALL.iter().find(|row| row.name == name).ok_or_else(|| {
            let all: Vec<&str> = ALL.iter().map(|row| row.name).collect();
            Failure::line(format!("there is no row {name:?}; there are {}", all.join(", ")))
        })
    };
    if names.is_empty() { Ok(ALL.iter().collect()) } else { names.iter().map(known).collect() }
}
