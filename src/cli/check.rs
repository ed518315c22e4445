//! `clonefs check`, with the exit codes of fsck.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::args::CheckArgs;
use super::failure::{Failure, Outcome};
use super::text;
use crate::client::{self, mount_at, mount_over};
use crate::daemon::mount::nested;
use crate::engine::io::{Fs, HostFs};
use crate::engine::pool::check::{self, Report};
use crate::engine::pool::repair::{self, Repaired};
use crate::error::{Context, Error, Kind, Result};

/// How long pools below a directory that is none are looked for.
const SEARCH: Duration = Duration::from_secs(60);

/// Exit code for damage that was repaired, all of it.
const REPAIRED: u8 = 1;
/// Exit code for damage that was found and left as it is.
pub const DAMAGED: u8 = 4;
/// Exit code when the check could not be made.
pub const NOT_CHECKED: u8 = 8;
/// Exit code for a command line that makes no sense.
pub const USAGE: u8 = 16;

/// Checks a pool: through its daemon while it is mounted, on disk while it is not.
pub fn check(args: CheckArgs) -> Outcome {
    if args.repair {
        return mend(&args);
    }
    let report =
        find(args.pool.as_deref()).and_then(|place| place.check()).map_err(|e| Failure::Code(NOT_CHECKED, e))?;
    if args.json {
        text::print_json(&report)?;
    } else {
        text::print(describe(&report, text::on_terminal()))?;
    }
    if report.problems.is_empty() { Ok(()) } else { Err(Failure::Exit(DAMAGED)) }
}

fn mend(args: &CheckArgs) -> Outcome {
    let result = find(args.pool.as_deref()).and_then(|place| match place {
        Place::OnDisk(path) => place_repair(&path, &args.accept),
        Place::Mounted(root) => {
            Err(Error::new(Kind::Busy, "repair").at(root).because("it is mounted").remedy("`clonefs unmount` it first"))
        }
    });
    let repaired = result.map_err(|e| Failure::Code(NOT_CHECKED, e))?;
    if args.json {
        text::print_json(&repaired)?;
    } else {
        let terminal = text::on_terminal();
        let mut out = Vec::new();
        for what in &repaired.done {
            out.extend(text::name(what.as_ref(), terminal));
            out.push(b'\n');
        }
        if let Some(kept) = &repaired.kept {
            out.extend(format!("the old metadata is in {kept}\n").into_bytes());
        }
        out.extend(describe(&repaired.report, terminal));
        text::print(out)?;
    }
    match (repaired.report.problems.is_empty(), repaired.done.is_empty()) {
        (true, true) => Ok(()),
        (true, false) => Err(Failure::Exit(REPAIRED)),
        (false, _) => Err(Failure::Exit(DAMAGED)),
    }
}

fn place_repair(pool: &Path, accept: &[PathBuf]) -> Result<Repaired> {
    let fs: Arc<dyn Fs> = Arc::new(HostFs::open_dir(pool).context("open directory", pool)?);
    let root = std::fs::canonicalize(pool).context("open directory", pool)?;
    let inside = |path: &PathBuf| {
        let absolute = std::fs::canonicalize(path).context("find file", path)?;
        absolute
            .strip_prefix(&root)
            .map(Path::to_path_buf)
            .map_err(|_| Error::new(Kind::CrossPool, "accept").at(path).because("it is not in the pool"))
    };
    let accept: Vec<PathBuf> = accept.iter().map(inside).collect::<Result<_>>()?;
    repair::repair(&fs, &accept)
}

/// Where the pool is to be checked.
enum Place {
    /// Root of its mount.
    Mounted(PathBuf),
    /// The pool itself.
    OnDisk(PathBuf),
}

fn find(pool: Option<&Path>) -> Result<Place> {
    let path = pool.unwrap_or(Path::new("."));
    match mount_at(path)?.or_else(|| mount_over(path)) {
        Some(mount) => Ok(Place::Mounted(mount.mountpoint)),
        None if pool.is_some() => on_disk(path),
        None => Err(Error::new(Kind::Unsupported, "find the pool of the current directory")
            .because("not on a mounted pool")
            .remedy("name the pool to check")),
    }
}

/// A pool, or a directory that has none of another's files: in a pool's directory there are stubs in place of files, and
/// whoever took those for damage would delete them.
fn on_disk(path: &Path) -> Result<Place> {
    let full = path.canonicalize().context("find the path of", path)?;
    let other =
        if nested::is_pool(&full) { None } else { nested::above(&full).or_else(|| nested::below(&full, SEARCH)) };
    let Some(other) = other else { return Ok(Place::OnDisk(path.to_path_buf())) };
    let lies = if full.starts_with(&other) { "lies above it" } else { "lies below it" };
    Err(Error::new(Kind::Invalid, "check")
        .at(path)
        .because(format!("it is no pool; the pool {other:?} {lies}"))
        .remedy(format!("check {other:?} itself")))
}

impl Place {
    fn check(&self) -> Result<Report> {
        match self {
            Place::Mounted(root) => client::check(root),
            Place::OnDisk(path) => {
                let fs: Arc<dyn Fs> = Arc::new(HostFs::open_dir(path).context("open directory", path)?);
                check::check(&fs)
            }
        }
    }
}

fn describe(report: &Report, terminal: bool) -> Vec<u8> {
    let mut out = Vec::new();
    for problem in &report.problems {
        out.extend(text::name(problem.path.as_ref(), terminal));
        out.extend_from_slice(b": ");
        out.extend(text::name(problem.problem.as_ref(), terminal));
        out.extend_from_slice(b"\n    ");
        out.extend(text::name(problem.remedy.as_ref(), terminal));
        out.push(b'\n');
    }
    let Report { volumes, layers, blocks, leftovers, problems } = report;
    let found = match problems.len() {
        0 => "clean".to_owned(),
        problems => text::count(problems as u64, "problem"),
    };
    let left =
        if *leftovers > 0 { format!(", {leftovers} leftovers that the next mount removes") } else { String::new() };
    let (volumes, layers) = (text::count(*volumes, "overlay"), text::count(*layers, "shared layer"));
    out.extend(format!("{found}: {volumes}, {layers}, {blocks} blocks{left}\n").into_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::pool::check::Problem;

    #[test]
    fn each_problem_has_its_remedy_below_it() {
        let problem = Problem { path: "vm\n".into(), problem: "torn".into(), remedy: "restore it".into() };
        let report = Report { problems: vec![problem], volumes: 2, layers: 1, blocks: 9, leftovers: 3 };
        let wanted = "vm\\n: torn\n    restore it\n\
                      1 problem: 2 overlays, 1 shared layer, 9 blocks, 3 leftovers that the next mount removes\n";
        assert_eq!(String::from_utf8(describe(&report, true)).unwrap(), wanted);
        let clean = describe(&Report::default(), false);
        assert_eq!(clean, b"clean: 0 overlays, 0 shared layers, 0 blocks\n");
    }
}
