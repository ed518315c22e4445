//! How long a machine's writes take, as qemu counts them: from the moment in which the guest asks until it is told.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::host::Host;

/// Upper ends of the classes of times, in microseconds: finer than what is to be seen.
fn classes() -> Vec<u64> {
    let steps = [(250, 20_000), (1000, 100_000), (10_000, 1_000_000), (1_000_000, 60_000_000)];
    let mut ends = Vec::new();
    for (step, limit) in steps {
        let first = ends.last().copied().unwrap_or(0) + step;
        ends.extend((first..=limit).step_by(step as usize));
    }
    ends
}

/// How many requests took how long, from the start to a moment.
#[derive(Clone, Default)]
pub struct Counts {
    /// Writes.
    pub writes: Vec<u64>,
    /// Flushes: the guest asks that all of that be durable.
    pub flushes: Vec<u64>,
}

/// The longest write and flush between two moments, in microseconds.
#[derive(Clone, Copy)]
pub struct Longest {
    pub write: u64,
    pub flush: u64,
}

/// The clock of a machine's only disk.
pub struct Meter<'a> {
    host: &'a Host,
    domain: &'a str,
}

impl<'a> Meter<'a> {
    /// Has qemu count.
    pub fn new(host: &'a Host, domain: &'a str) -> Meter<'a> {
        let meter = Meter { host, domain };
        let disks = meter.ask("query-blockstats", json!({}));
        let device = disks.as_array().expect("disks").iter().find_map(|disk| disk["qdev"].as_str()).expect("a disk");
        let ends: Vec<u64> = classes().iter().map(|us| us * 1000).collect();
        let classes = json!({ "id": device, "boundaries-write": ends, "boundaries-flush": ends });
        meter.ask("block-latency-histogram-set", classes);
        meter
    }

    fn ask(&self, command: &str, arguments: Value) -> Value {
        let call = json!({ "execute": command, "arguments": arguments }).to_string();
        let said = self.host.virsh(["qemu-monitor-command", self.domain, &call]).success().stdout;
        serde_json::from_str::<Value>(&said).expect("JSON")["return"].clone()
    }

    /// What was counted until now.
    pub fn read(&self) -> Counts {
        let disks = self.ask("query-blockstats", json!({}));
        let bins = |which: &str| -> Vec<u64> {
            let bins = disks.as_array().into_iter().flatten().find_map(|d| d["stats"][which]["bins"].as_array());
            bins.expect("counts").iter().map(|n| n.as_u64().expect("a number")).collect()
        };
        Counts { writes: bins("wr_latency_histogram"), flushes: bins("flush_latency_histogram") }
    }
}

impl Counts {
    /// The longest of those that ended after `before`.
    pub fn longest_since(&self, before: &Counts) -> Longest {
        let longest = |now: &[u64], then: &[u64]| {
            let class = now.iter().zip(then).rposition(|(now, then)| now > then);
            class.map_or(0, |class| classes().get(class).copied().unwrap_or(u64::MAX))
        };
        Longest { write: longest(&self.writes, &before.writes), flush: longest(&self.flushes, &before.flushes) }
    }
}

/// What was measured, by what was done meanwhile.
#[derive(Default)]
pub struct Figures(BTreeMap<String, Vec<Longest>>);

impl Figures {
    /// One more piece of time.
    pub fn add(&mut self, done: String, longest: Longest) {
        self.0.entry(done).or_default().push(longest);
    }

    /// As a table: of the longest of each piece the median, the 99th in a hundred, and the longest of all.
    pub fn print(&self) {
        println!(
            "{:<44} {:>8} {:>10} {:>10} {:>10}",
            "longest in each piece of time, ms", "pieces", "p50", "p99", "max"
        );
        for (done, pieces) in &self.0 {
            let writes: Vec<u64> = pieces.iter().map(|longest| longest.write).collect();
            let flushes = pieces.iter().map(|longest| longest.flush).collect();
            for (kind, mut sorted) in [("write", writes), ("flush", flushes)] {
                sorted.sort_unstable();
                let rank = |percent: usize| {
                    let place = (sorted.len() * percent).div_ceil(100).max(1) - 1;
                    format!("{:.2}", sorted[place] as f64 / 1000.0)
                };
                let title = format!("{kind}, {done}");
                println!("{title:<44} {:>8} {:>10} {:>10} {:>10}", sorted.len(), rank(50), rank(99), rank(100));
            }
        }
    }
}
