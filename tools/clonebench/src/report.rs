//! What was measured, as text and as JSON.

use serde::Serialize;

use crate::bench::Bench;
use crate::curve::Curve;
use crate::rounds::{Series, median, quantile, ratio};

/// Where the bar is.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bar {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
    /// There is none.
    None,
}

/// A figure that is compared with a bar.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// What it is, such as `clonefs / native`.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// What it should be.
    pub bar: Bar,
    /// Whether it is; `None` without a bar.
    pub met: Option<bool>,
}

/// One measurement: contenders, and what their figures come to.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// What was measured.
    pub name: String,
    /// Unit of the figures.
    pub unit: &'static str,
    /// How it was done.
    pub how: String,
    /// The figures.
    pub series: Vec<Series>,
    /// Ratios and other results.
    pub verdicts: Vec<Verdict>,
}

impl Verdict {
    /// A figure and its bar.
    pub fn new(name: impl Into<String>, value: f64, bar: Bar) -> Verdict {
        let met = match bar {
            Bar::AtLeast(least) => Some(value >= least),
            Bar::AtMost(most) => Some(value <= most),
            Bar::None => None,
        };
        Verdict { name: name.into(), value, bar, met }
    }

    /// The bar and whether it is met, in words; nothing if there is none.
    pub fn bar(&self) -> String {
        let met = if self.met == Some(true) { "met" } else { "MISSED" };
        match self.bar {
            Bar::AtLeast(least) => format!("at least {}: {met}", number(least)),
            Bar::AtMost(most) => format!("at most {}: {met}", number(most)),
            Bar::None => String::new(),
        }
    }
}

impl Table {
    /// A table without verdicts yet.
    pub fn new(name: impl Into<String>, unit: &'static str, how: impl Into<String>, series: Vec<Series>) -> Table {
        Table { name: name.into(), unit, how: how.into(), series, verdicts: Vec::new() }
    }

    /// The series of a contender that is known to be there.
    pub fn of(&self, name: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.name == name)
    }

    /// The median of a contender; not a number if it did not run.
    pub fn median(&self, name: &str) -> f64 {
        self.of(name).map_or(f64::NAN, |series| median(&series.figures))
    }

    /// Adds the ratio of two contenders, if both ran.
    pub fn compare(mut self, of: &str, to: &str, bar: Bar) -> Table {
        if let (Some(a), Some(b)) = (self.of(of), self.of(to)) {
            let verdict = Verdict::new(format!("{of} / {to}"), ratio(a, b), bar);
            self.verdicts.push(verdict);
        }
        self
    }

    /// Adds another figure.
    pub fn verdict(mut self, verdict: Verdict) -> Table {
        self.verdicts.push(verdict);
        self
    }
}

/// What a row has found.
#[derive(Default)]
pub struct Found {
    /// Measurements.
    pub tables: Vec<Table>,
    /// How figures change with something.
    pub curves: Vec<Curve>,
}

impl From<Vec<Table>> for Found {
    fn from(tables: Vec<Table>) -> Found {
        Found { tables, curves: Vec::new() }
    }
}

/// A row that was not measured.
#[derive(Debug, Serialize)]
pub struct NotRun {
    /// The row.
    pub row: String,
    /// Why.
    pub why: String,
}

/// Everything.
#[derive(Debug, Serialize)]
pub struct Report {
    machine: String,
    kernel: String,
    filesystem: String,
    clonefs: String,
    rounds: u32,
    seconds: f64,
    size: u64,
    /// The measurements.
    pub tables: Vec<Table>,
    /// What is plotted.
    pub curves: Vec<Curve>,
    /// What was not measured.
    pub not_run: Vec<NotRun>,
}

impl Report {
    /// An empty one.
    pub fn new(bench: &Bench) -> Report {
        let settings = bench.settings;
        Report {
            machine: machine(),
            kernel: read_line("/proc/sys/kernel/osrelease"),
            filesystem: filesystem(bench),
            clonefs: bench.clonefs.display().to_string(),
            rounds: settings.rounds,
            seconds: settings.seconds,
            size: settings.size,
            tables: Vec::new(),
            curves: Vec::new(),
            not_run: Vec::new(),
        }
    }

    /// Adds what a row has measured.
    pub fn add(&mut self, found: Found) {
        self.tables.extend(found.tables);
        self.curves.extend(found.curves);
    }

    /// Adds a row that was not measured.
    pub fn not_run(&mut self, row: &str, why: &str) {
        self.not_run.push(NotRun { row: row.to_owned(), why: why.to_owned() });
    }

    /// As JSON.
    pub fn json(&self) -> String {
        // Numbers and strings only: this cannot fail.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Where this was measured.
    pub fn headline(&self) -> String {
        let Report { machine, kernel, filesystem, rounds, .. } = self;
        format!("{machine}, Linux {kernel}, {filesystem}; medians of {rounds} rounds")
    }

    /// As text.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.headline());
        for table in &self.tables {
            text += &format!("\n{} ({})\n    {}\n", table.name, table.unit, table.how);
            for series in &table.series {
                let (low, high) = (quantile(&series.figures, 0.0), quantile(&series.figures, 1.0));
                let (middle, low, high) = (number(median(&series.figures)), number(low), number(high));
                text += &format!("    {:<34} {middle:>10}   ({low} to {high})\n", series.name);
            }
            for verdict in &table.verdicts {
                text += &line(verdict);
            }
        }
        for curve in &self.curves {
            text += &curve.text();
        }
        for row in &self.not_run {
            text += &format!("\n{}: not run: {}\n", row.row, row.why);
        }
        text
    }
}

fn line(verdict: &Verdict) -> String {
    let bar = verdict.bar();
    let gap = if bar.is_empty() { "" } else { "   " };
    format!("    = {:<32} {:>10}{gap}{bar}\n", verdict.name, number(verdict.value))
}

/// A number with as many digits as mean something.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

fn read_line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn machine() -> String {
    let info = read_line("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("processor");
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{count} x {}", model.trim_start_matches([' ', '\t', ':']))
}

fn filesystem(bench: &Bench) -> String {
    let path = bench.work.path();
    let mounts = clonefs::daemon::mount::table::mounts().unwrap_or_default();
    let over = mounts.iter().filter(|mount| path.starts_with(&mount.mountpoint));
    let nearest = over.max_by_key(|mount| mount.mountpoint.as_os_str().len());
    nearest.map_or_else(|| "unknown filesystem".to_owned(), |mount| mount.fs_type.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_met_or_missed() {
        assert_eq!(Verdict::new("a", 0.8, Bar::AtLeast(0.75)).met, Some(true));
        assert_eq!(Verdict::new("a", 0.8, Bar::AtMost(0.75)).met, Some(false));
        assert!(line(&Verdict::new("a / b", f64::NAN, Bar::AtLeast(0.75))).contains("MISSED"));
    }
}
