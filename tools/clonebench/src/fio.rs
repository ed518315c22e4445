//! fio, which does the input and output.

use std::path::Path;

use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::run;

/// One job of fio.
#[derive(Clone, Debug)]
pub struct Job {
    /// `randread`, `randwrite`, `read` or `write`.
    pub kind: &'static str,
    /// Bytes of one request.
    pub block: u64,
    /// Requests in flight.
    pub depth: u32,
    /// Seconds.
    pub seconds: f64,
    /// Ends when everything was touched once; otherwise it goes on for the whole time.
    pub once: bool,
    /// More options.
    pub more: &'static [&'static str],
}

/// What fio has found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Requests a second.
    pub iops: f64,
    /// MiB a second.
    pub mib: f64,
    /// The 99th percentile of latency in milliseconds.
    pub p99: f64,
}

impl Job {
    /// Random 4 KiB requests.
    pub fn random(kind: &'static str, depth: u32, seconds: f64) -> Job {
        Job { kind, block: 4096, depth, seconds, once: false, more: &[] }
    }

    /// Sequential 1 MiB requests.
    pub fn sequential(kind: &'static str, seconds: f64) -> Job {
        Job { kind, block: 1 << 20, depth: 4, seconds, once: false, more: &[] }
    }

    /// What to type to do the same by hand.
    pub fn words(&self) -> String {
        let mut words = format!(
            "fio --direct=1 --rw={} --bs={} --iodepth={} --ioengine={} --runtime={}s",
            self.kind,
            self.block,
            self.depth,
            self.engine(),
            self.seconds
        );
        if !self.once {
            words += " --time_based";
        }
        for more in self.more {
            words += " ";
            words += more;
        }
        words
    }

    fn engine(&self) -> &'static str {
        if self.depth == 1 { "psync" } else { "libaio" }
    }

    /// Does it to `file`, which has `size` bytes.
    pub fn run(&self, file: &Path, size: u64) -> Outcome<Found> {
        let mut command = run::command("fio");
        command.args(["--name=clonebench", "--direct=1", "--randrepeat=0", "--output-format=json"]);
        command.arg(format!("--filename={}", file.display())).arg(format!("--size={size}"));
        command.arg(format!("--rw={}", self.kind)).arg(format!("--bs={}", self.block));
        command.arg(format!("--iodepth={}", self.depth)).arg(format!("--ioengine={}", self.engine()));
        command.arg(format!("--runtime={}ms", self.seconds * 1000.0));
        // Its own files of state belong nowhere else.
        command.args(["--allow_file_create=0", "--eta=never", "--disk_util=0", "--thread"]);
        if !self.once {
            command.arg("--time_based");
        }
        command.args(self.more);
        let (json, _) = run::output(&mut command)?;
        parse(&json, self.kind.ends_with("write"))
    }
}

fn parse(json: &str, writes: bool) -> Outcome<Found> {
    let start = json.find('{').unwrap_or(0);
    let value: Value =
        serde_json::from_str(&json[start..]).map_err(|error| Failure::line(format!("fio's output: {error}")))?;
    let job = &value["jobs"][0];
    let side = &job[if writes { "write" } else { "read" }];
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    // With a sync at the end the time of fio's own rate does not count it; the job's does.
    let (requests, bytes) = (number(&side["total_ios"]), number(&side["io_bytes"]));
    let seconds = number(&side["runtime"]).max(1.0) / 1000.0;
    if requests == 0.0 {
        return Err(Failure::line("fio did nothing"));
    }
    let p99 = number(&side["clat_ns"]["percentile"]["99.000000"]) / 1e6;
    Ok(Found { iops: requests / seconds, mib: bytes / seconds / f64::from(1 << 20), p99 })
}
