//! `clonefs metrics`: the text format of Prometheus.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use super::args::MetricsArgs;
use super::failure::{Outcome, note};
use super::status::{LIMIT, is_failure};
use super::{place, text};
use crate::client::{self, InTime, Total};
use crate::error::{Context, Error, Result};
use crate::protocol::{Level, PoolStatus};

/// For how long all pools together may take to say what their volumes take.
const LIMIT_OF_USAGE: Duration = Duration::from_secs(300);

/// Prints the figures of one pool, or of all that are mounted.
pub fn metrics(args: MetricsArgs) -> Outcome {
    let usage = args.usage;
    let limit = if usage { LIMIT_OF_USAGE } else { LIMIT };
    let ask = move |place: &Path| {
        let status = client::status(place)?.ok_or_else(|| client::not_here("read the status of", place))?;
        let total = match usage {
            true => Some(Total::of(&client::usage(Path::new(&status.mountpoint))?, &status)),
            false => None,
        };
        Ok((status, total))
    };
    let places = place::resolve_all(args.path.as_deref())?;
    let (mut pools, mut silent) = (Vec::new(), Vec::new());
    for (place, answer) in places.iter().zip(InTime::new(limit, ask).ask(&places)) {
        match answer {
            Ok(pool) => pools.push(pool),
            Err(error) if places.len() == 1 => return Err(error.into()),
            // The page says so; the reason is for people.
            Err(error) => {
                note(&error.to_string());
                if is_failure::<()>(&Err(error)) {
                    silent.push(place::pool_at(place));
                }
            }
        }
    }
    let page = page(&pools, &silent);
    match args.output {
        None => text::print(page),
        Some(file) => Ok(replace(&file, &page)?),
    }
}

/// Whoever reads the file sees the old page or the new one.
fn replace(file: &Path, page: &str) -> Result<()> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The collector reads what ends in .prom: the new file must not while it is being written.
    let mut new = tempfile::Builder::new().prefix(".clonefs-metrics-").tempfile_in(parent).context("write", file)?;
    new.write_all(page.as_bytes()).context("write", file)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    new.as_file().set_permissions(mode).context("write", file)?;
    new.persist(file).map_err(|e| Error::io("write", e.error).at(file))?;
    Ok(())
}

/// Name, help and value of what volumes take.
type Figure = (&'static str, &'static str, fn(&Total) -> f64);

/// One metric of each pool.
struct Page<'a> {
    text: String,
    pools: &'a [(PoolStatus, Option<Total>)],
}

fn page(pools: &[(PoolStatus, Option<Total>)], silent: &[String]) -> String {
    let mut page = Page { text: String::new(), pools };
    page.up(silent);
    page.info();
    page.gauge("filesystem_size_bytes", "Size of the backing filesystem.", |s| s.total_bytes);
    page.gauge("filesystem_free_bytes", "Bytes that users can still have of it.", |s| s.free_bytes);
    page.gauge("watermark_level", "0 fine, 1 warning, 2 deepening stopped, 3 clones refused.", |s| {
        match s.space.level {
            Level::Fine => 0,
            Level::Warn => 1,
            Level::StopDeepening => 2,
            Level::RefuseClones => 3,
        }
    });
    page.gauge("can_clone", "1 if clones can be made.", |s| s.can_clone.into());
    page.gauge("paused", "1 while all background work is paused.", |s| s.paused.into());
    page.gauge("overlays", "Volumes that need other files.", |s| s.overlays);
    page.gauge("layers", "Frozen layers.", |s| s.layers);
    page.gauge("jobs", "Volumes that background work is at or will come to.", |s| s.job_count);
    page.gauge("to_copy_bytes", "Bytes that the jobs under way have still to copy.", |s| {
        s.jobs.iter().filter(|job| job.step != "waiting").map(|job| job.to_copy).sum()
    });
    page.gauge("troubles", "Things that need a person, see clonefs status.", |s| {
        s.troubles.len() as u64 + s.troubles_hidden
    });
    page.counter("requests_total", "Reads and writes of volumes.", |s| s.requests);
    page.counter("copied_bytes_total", "Bytes that background work has copied.", |s| s.copied_bytes);
    page.events();
    page.usage();
    page.text
}

impl Page<'_> {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP clonefs_{name} {help}\n# TYPE clonefs_{name} {kind}");
    }

    fn each(&mut self, name: &str, kind: &str, help: &str, value: impl Fn(&PoolStatus) -> u64) {
        self.head(name, kind, help);
        for (status, _) in self.pools {
            let _ = writeln!(self.text, "clonefs_{name}{{pool=\"{}\"}} {}", label(&status.pool), value(status));
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Fn(&PoolStatus) -> u64) {
        self.each(name, "gauge", help, value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Fn(&PoolStatus) -> u64) {
        self.each(name, "counter", help, value);
    }

    fn up(&mut self, silent: &[String]) {
        self.head("up", "gauge", "1 if the daemon of the pool answers.");
        let up = self.pools.iter().map(|(status, _)| (&status.pool, 1));
        for (pool, up) in up.chain(silent.iter().map(|pool| (pool, 0))) {
            let _ = writeln!(self.text, "clonefs_up{{pool=\"{}\"}} {up}", label(pool));
        }
    }

    fn info(&mut self) {
        self.head("info", "gauge", "1, with what the pool is.");
        for (status, _) in self.pools {
            let (pool, version, backing) = (label(&status.pool), label(&status.version), label(&status.backing));
            let _ =
                writeln!(self.text, "clonefs_info{{pool=\"{pool}\",version=\"{version}\",backing=\"{backing}\"}} 1");
        }
    }

    fn events(&mut self) {
        self.head("events_total", "counter", "Events by kind, see clonefs events.");
        for (status, _) in self.pools {
            for (kind, count) in &status.events {
                let (pool, kind) = (label(&status.pool), label(kind));
                let _ = writeln!(self.text, "clonefs_events_total{{pool=\"{pool}\",event=\"{kind}\"}} {count}");
            }
        }
    }

    fn usage(&mut self) {
        let figures: [Figure; 6] = [
            ("volumes", "Volumes.", |t| t.all.volumes as f64),
            ("volume_size_bytes", "Sizes of all volumes.", |t| t.all.size as f64),
            ("used_bytes", "Bytes on disk that their data takes.", |t| (t.all.own + t.all.shared) as f64),
            ("independence_bytes", "Bytes that making all of them independent would copy.", |t| {
                t.all.independence as f64
            }),
            ("demand_bytes", "Bytes that they can still ask for when written in full.", |t| t.all.demand as f64),
            ("overcommit_ratio", "More than 1: there is not room for all that they can ask for.", |t| t.overcommit),
        ];
        if self.pools.iter().all(|(_, total)| total.is_none()) {
            return;
        }
        for (name, help, value) in figures {
            self.head(name, "gauge", help);
            for (status, total) in self.pools.iter().filter_map(|(status, total)| Some((status, total.as_ref()?))) {
                let _ = writeln!(self.text, "clonefs_{name}{{pool=\"{}\"}} {}", label(&status.pool), value(total));
            }
        }
    }
}

/// A value between quotes, as the format wants it.
fn label(text: &str) -> String {
    text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_cannot_end_early() {
        assert_eq!(label("a\"b\\c\nd"), r#"a\"b\\c\nd"#);
    }
}
