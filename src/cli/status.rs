//! `clonefs status`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use super::args::StatusArgs;
use super::failure::{FAILED, Failure, INTERRUPTED, Outcome};
use super::{interrupt, place, text};
use crate::client::{self, InTime};
use crate::error::{Error, Kind, Result};
use crate::protocol::{JobStatus, Level, PoolStatus, SpaceStatus, Trouble};
use crate::units::format_size;

/// For how long a daemon may take to answer.
pub const LIMIT: Duration = Duration::from_secs(5);
/// Jobs that are shown; the rest is counted.
const JOBS_SHOWN: usize = 20;
const BAR_WIDTH: usize = 20;
/// Clears a terminal and goes to its upper left corner.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Shows the state of one pool, or of all that are mounted.
pub fn status(args: StatusArgs) -> Outcome {
    let places = place::resolve_all(args.path.as_deref())?;
    let mut asked = InTime::new(LIMIT, ask);
    if args.watch {
        interrupt::watch();
    }
    loop {
        let mut pools = asked.ask(&places);
        if let [only @ Err(_)] = &mut pools[..] {
            // Nothing else to show.
            return std::mem::replace(only, Err(Error::new(Kind::Io, "read the status")))
                .map(drop)
                .map_err(Failure::from);
        }
        if args.json {
            print_json(&places, &pools, args.watch)?;
        } else {
            let terminal = text::on_terminal();
            let clear = if args.watch && terminal { CLEAR } else { "" };
            let shown = places.iter().zip(&pools).map(|(place, pool)| match pool {
                Ok(pool) => describe(pool, terminal),
                Err(error) => silent(place, error, terminal),
            });
            text::print(format!("{clear}{}", shown.collect::<Vec<_>>().join("\n")))?;
        }
        if !args.watch {
            // All is said; but whoever looks at the exit code alone must see it too.
            return if pools.iter().any(is_failure) { Err(Failure::Exit(FAILED)) } else { Ok(()) };
        }
        sleep(Duration::from_secs(1));
        if interrupt::check("watch the status").is_err() {
            return Err(Failure::Exit(INTERRUPTED));
        }
    }
}

/// A mount that the caller may not look at is another user's own; it is shown, but nothing is wrong with it.
pub fn is_failure<T>(pool: &Result<T>) -> bool {
    pool.as_ref().is_err_and(|error| !matches!(error.os_error(), Some(libc::EACCES | libc::EPERM)))
}

fn silent(place: &Path, error: &Error, terminal: bool) -> String {
    let place = if terminal { text::safe(place.as_os_str()) } else { place.display().to_string() };
    format!("pool      at {place}: NO ANSWER\n  {error}\n")
}

/// A mounted pool of which no status could be had, as JSON.
#[derive(serde::Serialize)]
struct Silent {
    pool: String,
    mountpoint: String,
    error: String,
}

impl Silent {
    fn new(place: &Path, error: &Error) -> Silent {
        Silent {
            pool: place::pool_at(place),
            mountpoint: place.to_string_lossy().into_owned(),
            error: error.to_string(),
        }
    }
}

/// One pool is an object, several are a list; while watching, each look is one line.
fn print_json(places: &[PathBuf], pools: &[Result<PoolStatus>], watch: bool) -> Outcome {
    let value = match pools {
        [Ok(pool)] => serde_json::to_value(pool),
        pools => {
            let each = places.iter().zip(pools).map(|(place, pool)| match pool {
                Ok(pool) => serde_json::to_value(pool),
                Err(error) => serde_json::to_value(Silent::new(place, error)),
            });
            each.collect::<std::result::Result<Vec<_>, _>>().map(serde_json::Value::from)
        }
    };
    let value = value.map_err(|e| Error::new(Kind::Invalid, "write JSON").because(e))?;
    if watch { text::print(format!("{value}\n")) } else { text::print_json(&value) }
}

fn ask(path: &Path) -> Result<PoolStatus> {
    // The root of a dead mount cannot be looked at, and is asked itself.
    let is_file = std::fs::metadata(path).is_ok_and(|meta| !meta.is_dir());
    let dir = if is_file { path.parent().unwrap_or(path) } else { path };
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    client::status(dir)?.ok_or_else(|| {
        Error::new(Kind::Unsupported, "read the status of")
            .at(path)
            .because("its daemon does not answer for the pool")
            .remedy("unmount it and mount it again")
    })
}

fn describe(pool: &PoolStatus, terminal: bool) -> String {
    let name = |text: &str| if terminal { text::safe(text.as_ref()) } else { text.to_owned() };
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "pool      {} on {}, {} of {} free{}",
        name(&pool.pool),
        pool.backing,
        format_size(pool.free_bytes),
        format_size(pool.total_bytes),
        if pool.reflink { ", shares blocks itself (reflink)" } else { "" },
    );
    let mounted =
        if pool.mountpoint == pool.pool { "over itself".to_owned() } else { format!("at {}", name(&pool.mountpoint)) };
    let _ = writeln!(
        out,
        "mounted   {mounted}, served by process {} (clonefs {}, {})",
        pool.pid, pool.version, pool.engine
    );
    if !matches!(pool.passthrough.as_str(), "" | "off") {
        let _ = writeln!(out, "past us   passthrough={}, {} files open", pool.passthrough, pool.open_past);
    }
    match (&pool.cannot_clone, pool.can_clone) {
        (_, true) => {
            let _ = writeln!(
                out,
                "clones    {}, {}",
                text::count(pool.overlays, "overlay"),
                text::count(pool.layers, "shared layer")
            );
        }
        (why, false) => {
            let why = why.as_deref().unwrap_or("the daemon does not say why");
            let _ = writeln!(out, "clones    cannot be made here: {}", name(why));
        }
    }
    if pool.space.level > Level::Fine {
        let _ =
            writeln!(out, "space     {}% full: {}", pool.space.used_percent, pool.space.level.says().to_uppercase());
    }
    if let Some(marks) = watermarks(&pool.space) {
        let _ = writeln!(out, "marks     {marks}");
    }
    let _ = writeln!(out, "deepening {}", deepening(pool));
    for job in pool.jobs.iter().take(JOBS_SHOWN) {
        let _ = writeln!(out, "  {}", describe_job(job, &name(&job.path)));
    }
    let more = pool.job_count.saturating_sub(pool.jobs.len().min(JOBS_SHOWN) as u64);
    if more > 0 {
        let _ = writeln!(out, "  and {more} more");
    }
    describe_troubles(&pool.troubles, &name, &mut out);
    if pool.troubles_hidden > 0 {
        let _ = writeln!(out, "and trouble with {} that root can see", text::count(pool.troubles_hidden, "file"));
    }
    out
}

/// The watermarks, where there are others than the warning.
fn watermarks(space: &SpaceStatus) -> Option<String> {
    if space.stop_deepening.is_none() && space.refuse_clones.is_none() {
        return None;
    }
    let marks =
        [("warn", &space.warn), ("stop deepening", &space.stop_deepening), ("refuse clones", &space.refuse_clones)];
    let set = marks.iter().filter_map(|(name, mark)| mark.as_ref().map(|mark| format!("{name} at {mark}")));
    Some(set.collect::<Vec<_>>().join(", "))
}

fn deepening(pool: &PoolStatus) -> String {
    let limit = match pool.rate_limit {
        0 => "no rate limit".to_owned(),
        rate => format!("at most {}/s", format_size(rate)),
    };
    let paused = if pool.paused { ", PAUSED (clonefs resume goes on)" } else { "" };
    let jobs = if pool.job_count == 0 { "nothing to do".to_owned() } else { text::count(pool.job_count, "job") };
    format!("{}, {limit}, {jobs}{paused}", pool.deepen)
}

fn describe_job(job: &JobStatus, name: &str) -> String {
    let name = if name.is_empty() { "(name not known yet)" } else { name };
    let left = match job.eta {
        Some(seconds) => format!("{} left", text::duration(seconds)),
        None => "time left unknown".to_owned(),
    };
    let bar = text::bar(job.progress, BAR_WIDTH);
    let (percent, to_copy, rate) = (text::percent(job.progress), format_size(job.to_copy), format_size(job.rate));
    format!("{bar} {percent:>6}  {to_copy} to copy  {rate}/s  {left}  {}  {name}", job.step)
}

fn describe_troubles(troubles: &[Trouble], name: &dyn Fn(&str) -> String, out: &mut String) {
    if troubles.is_empty() {
        return;
    }
    out.push_str("trouble\n");
    for trouble in troubles {
        let _ = writeln!(out, "  {}: {}", name(&trouble.path), name(&trouble.problem));
        let _ = writeln!(out, "    {}", name(&trouble.remedy));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> PoolStatus {
        PoolStatus {
            pool: "/srv/vms".into(),
            mountpoint: "/srv/vms".into(),
            pid: 42,
            version: "0.1.0".into(),
            pool_id: None,
            backing: "ext4".into(),
            free_bytes: 10 << 30,
            total_bytes: 40 << 30,
            reflink: false,
            can_clone: true,
            cannot_clone: None,
            engine: "threads".into(),
            passthrough: "off".into(),
            open_past: 0,
            deepen: "auto".into(),
            paused: false,
            rate_limit: 200 << 20,
            events: Default::default(),
            requests: 0,
            copied_bytes: 0,
            space: SpaceStatus::default(),
            overlays: 3,
            layers: 1,
            jobs: Vec::new(),
            job_count: 0,
            troubles_hidden: 0,
            troubles: Vec::new(),
            scrub: None,
        }
    }

    fn job(eta: Option<u64>) -> JobStatus {
        let path = "vm\x1b.img".into();
        JobStatus { path, step: "deepening".into(), progress: 50.0, to_copy: 1 << 30, rate: 100 << 20, eta }
    }

    #[test]
    fn a_pool_at_rest_takes_four_lines() {
        let wanted = "pool      /srv/vms on ext4, 10G of 40G free\n\
                      mounted   over itself, served by process 42 (clonefs 0.1.0, threads)\n\
                      clones    3 overlays, 1 shared layer\n\
                      deepening auto, at most 200M/s, nothing to do\n";
        assert_eq!(describe(&pool(), true), wanted);
    }

    #[test]
    fn jobs_have_a_bar_and_an_honest_time() {
        let pool = PoolStatus { jobs: vec![job(Some(75)), job(None)], job_count: 300, ..pool() };
        let text = describe(&pool, true);
        assert!(text.contains("[##########----------]  50.0%  1G to copy  100M/s  1 m 15 s left  deepening"), "{text}");
        assert!(text.contains("time left unknown"), "{text}");
        assert!(text.contains("and 298 more"), "{text}");
        assert!(text.contains(r"vm\u{1b}.img") && !text.contains('\x1b'), "{text}");
    }

    #[test]
    fn a_filling_disk_and_the_marks_are_shown() {
        let space = SpaceStatus {
            used_percent: 96,
            level: Level::StopDeepening,
            warn: Some("90%".into()),
            stop_deepening: Some("95%".into()),
            refuse_clones: None,
        };
        let text = describe(&PoolStatus { space, ..pool() }, true);
        assert!(text.contains("space     96% full: DEEPENING HAS STOPPED\n"), "{text}");
        assert!(text.contains("marks     warn at 90%, stop deepening at 95%\n"), "{text}");
    }

    #[test]
    fn trouble_comes_with_its_remedy() {
        let trouble = Trouble {
            path: "base.img".into(),
            problem: "changed without clonefs".into(),
            remedy: "restore it from a backup".into(),
        };
        let pool = PoolStatus {
            troubles: vec![trouble],
            scrub: None,
            can_clone: false,
            cannot_clone: Some("no hard links".into()),
            paused: true,
            ..pool()
        };
        let text = describe(&pool, false);
        assert!(
            text.ends_with("trouble\n  base.img: changed without clonefs\n    restore it from a backup\n"),
            "{text}"
        );
        assert!(text.contains("cannot be made here: no hard links") && text.contains("PAUSED"), "{text}");
    }
}
