//! `crashdisk pool`: clonefs under power cuts, and under planted bugs.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use clonefs::error::{Context, Error, Kind, Result};
use crashdisk::log::Log;
use crashdisk::pool::{Bug, Effort, judge, record_mounted, record_planted};
use crashdisk::record::FILESYSTEMS;
use crashdisk::replay::{Outcome, Replay};

#[derive(Args)]
pub struct Arguments {
    /// Filesystem [default: all of them]
    #[arg(long, value_name = "FS", value_parser = FILESYSTEMS)]
    fs: Option<String>,
    /// Number of states of each filesystem
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    states: u32,
    /// States taken from one recording
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    per_recording: u32,
    /// For every tenth state one more with a second power cut, during recovery
    #[arg(long)]
    nested: bool,
    /// Seed [default: a new one]
    #[arg(long)]
    seed: Option<u64>,
    /// The program to mount with [default: clonefs beside this one]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Plant bugs, and see that they are found
    #[arg(long)]
    planted: bool,
    /// Keep the logs of recordings that show violations in this directory
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Check the states of a log that was kept
    #[arg(long, value_name = "FILE", conflicts_with_all = ["fs", "planted"])]
    log: Option<PathBuf>,
    /// Of that log, check only the state of this number
    #[arg(long, value_name = "N", requires = "log")]
    state: Option<u32>,
}

impl Arguments {
    /// Does it; `false` when something was found that must not be, or was not found that must be.
    pub fn run(&self) -> Result<bool> {
        let seed = self.seed.unwrap_or_else(|| u64::from(fastrand::u32(..)));
        let program = self.program()?;
        if let Some(path) = &self.log {
            let log = Log::open(path)?;
            let replay = Replay { states: self.states, seed, only: self.state, ..Replay::default() };
            let outcome = judge(&log, &replay, Some(&program))?;
            report(&outcome, path, seed);
            println!("states {}  violations {}  seed {seed}", outcome.checked, outcome.violations.len());
            return Ok(outcome.violations.is_empty());
        }
        let dir = tempfile::tempdir().context("make directory in", std::env::temp_dir())?;
        let filesystems = FILESYSTEMS.into_iter().filter(|name| self.fs.as_ref().is_none_or(|fs| fs == name));
        let filesystems: Vec<&str> = filesystems.collect();
        if self.planted {
            return self.plant(&filesystems, seed, dir.path());
        }
        let mut good = true;
        for fs in filesystems {
            good &= self.check(fs, seed, &program, dir.path())?;
        }
        Ok(good)
    }

    fn program(&self) -> Result<PathBuf> {
        let beside = || std::env::current_exe().map(|me| me.with_file_name("clonefs")).context("find", "clonefs");
        let program = self.program.clone().map_or_else(beside, Ok)?;
        if program.is_file() {
            return Ok(program);
        }
        Err(Error::new(Kind::NotFound, "find program").at(program).remedy("build it, or name it with --program"))
    }

    /// The states of one filesystem, from as many recordings as they take.
    fn check(&self, fs: &str, seed: u64, program: &Path, dir: &Path) -> Result<bool> {
        let (mut all, mut recordings) = (Outcome::default(), 0);
        while all.checked < self.states {
            let seed = seed.wrapping_add(recordings);
            let path = dir.join("log");
            record_mounted(fs, program, seed, Effort::default(), &path)?;
            recordings += 1;
            let log = Log::open(&path)?;
            let wanted = self.per_recording.min(self.states - all.checked);
            let twice = if self.nested { wanted / 10 } else { 0 };
            let single = Replay { states: wanted - twice, seed, ..Replay::default() };
            let nested = Replay { states: twice / 2, nested: 1, seed: !seed, ..Replay::default() };
            for replay in [single, nested].into_iter().filter(|replay| replay.states > 0) {
                let outcome = judge(&log, &replay, Some(program))?;
                if !outcome.violations.is_empty() {
                    report(&outcome, &self.keep_log(&path, fs, seed)?, replay.seed);
                }
                all.checked += outcome.checked;
                all.time += outcome.time;
                all.violations.extend(outcome.violations);
            }
        }
        println!(
            "{fs:6} states {}  violations {}  recordings {recordings}  seed {seed}  states/s {:.1}",
            all.checked,
            all.violations.len(),
            all.rate()
        );
        Ok(all.violations.is_empty())
    }

    /// Where the log is from now on.
    fn keep_log(&self, log: &Path, fs: &str, seed: u64) -> Result<PathBuf> {
        let Some(keep) = &self.keep else { return Ok(log.to_path_buf()) };
        std::fs::create_dir_all(keep).context("make directory", keep)?;
        let kept = keep.join(format!("{fs}-{seed}.log"));
        std::fs::copy(log, &kept).context("copy log to", &kept)?;
        Ok(kept)
    }

    /// One bug after the other; each must be seen on some filesystem.
    fn plant(&self, filesystems: &[&str], seed: u64, dir: &Path) -> Result<bool> {
        println!("{:20}{}", "planted bug", filesystems.iter().map(|fs| format!("{fs:>10}")).collect::<String>());
        let (log, mut good) = (dir.join("log"), true);
        for bug in Bug::ALL {
            print!("{:20}", bug.name());
            let mut seen = false;
            for fs in filesystems {
                record_planted(fs, bug, seed, Effort::default(), &log)?;
                let replay = Replay { states: self.states, seed, ..Replay::default() };
                let outcome = judge(&Log::open(&log)?, &replay, None)?;
                if bug == Bug::None && !outcome.violations.is_empty() {
                    println!();
                    report(&outcome, &self.keep_log(&log, fs, seed)?, seed);
                }
                seen |= !outcome.violations.is_empty();
                print!("{:>10}", format!("{}/{}", outcome.violations.len(), outcome.checked));
                let _ = std::io::stdout().flush();
            }
            println!();
            good &= seen == (bug != Bug::None);
        }
        println!("seed {seed}  {}", if good { "as it must be" } else { "NOT as it must be" });
        Ok(good)
    }
}

fn report(outcome: &Outcome, log: &Path, seed: u64) {
    for violation in &outcome.violations {
        println!(
            "violation in state {}: cut after record {} ({})",
            violation.name, violation.cut.point, violation.cut.mode
        );
        println!("    {}", violation.found.trim_end().replace('\n', "\n    "));
        let first = violation.name.split('.').next().unwrap_or(&violation.name);
        println!("    again: crashdisk pool --log {} --seed {seed} --state {first}", log.display());
    }
}
