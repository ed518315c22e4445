//! Command line of crashdisk: arguments, output, exit codes. 0: nothing found; 1: violations or failure; 2: usage.

mod command;
mod pool_command;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clonefs::error::{Context, Error, Kind, Result};
use clonefs::units::{format_size, parse_size};
use crashdisk::log::{Log, Record};
use crashdisk::ministore::Bug;
use crashdisk::record::{FILESYSTEMS, Recording};
use crashdisk::replay::{Outcome, Replay};
use crashdisk::states::Modes;
use crashdisk::{selftest, sys};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Records what a workload writes to a disk, and checks what a power cut could have left of it at any moment.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make a filesystem on a recorder disk and run COMMAND on it
    ///
    /// COMMAND finds the mounted filesystem at $CRASHDISK_MNT; each line that it writes to $CRASHDISK_MARK goes into the
    /// log, in order with the disk's writes. It runs in a process and mount name space of its own: what it leaves running
    /// is ended, and what it leaves mounted is unmounted.
    Record {
        /// Filesystem: ext4, xfs or btrfs
        #[arg(long, value_name = "FS", value_parser = FILESYSTEMS, default_value = "ext4")]
        fs: String,
        /// Size of the disk
        #[arg(long, value_parser = parse_size, default_value = "512M")]
        size: u64,
        /// Log to write
        #[arg(long, value_name = "FILE")]
        log: PathBuf,
        /// Mount options [default: commit=1, for xfs nouuid]
        #[arg(long, value_name = "OPTIONS")]
        mount_options: Option<String>,
        /// Start write-back of a random file this often; 0 for never
        #[arg(long, value_name = "MILLISECONDS", default_value_t = 2)]
        writeback: u64,
        /// The workload and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run COMMAND on what power cuts leave
    ///
    /// COMMAND finds the mounted filesystem at $CRASHDISK_MNT, a file with the marks before the cut at $CRASHDISK_MARKS,
    /// and the name of the state in $CRASHDISK_STATE. It exits with 0 if all is as it must be; anything else is a
    /// violation, and what it printed says which. It may write: each state starts afresh.
    Replay {
        /// Log to replay
        #[arg(long, value_name = "FILE")]
        log: PathBuf,
        /// Filesystem that the log must be of
        #[arg(long, value_name = "FS", value_parser = FILESYSTEMS)]
        fs: Option<String>,
        #[command(flatten)]
        choice: Choice,
        /// Check only the state of this number
        #[arg(long, value_name = "N")]
        state: Option<u32>,
        /// For every state, N more with a second power cut while COMMAND runs
        #[arg(long, value_name = "N", default_value_t = 0)]
        nested: u32,
        /// Stop at the first violation
        #[arg(long)]
        first: bool,
        /// Write the disk of the state given with --state to IMAGE and run nothing
        #[arg(long, value_name = "IMAGE", requires = "state", conflicts_with = "command")]
        save: Option<PathBuf>,
        /// A COMMAND that takes longer is ended, which is a violation
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        timeout: u64,
        /// The verification and its arguments
        #[arg(last = true, required_unless_present = "save")]
        command: Vec<String>,
    },
    /// Print a log, one line a record
    Dump {
        /// Log to print
        log: PathBuf,
    },
    /// See that planted bugs are found, and nothing where there is none
    Selftest {
        /// Filesystem [default: all of them]
        #[arg(long, value_name = "FS", value_parser = FILESYSTEMS)]
        fs: Option<String>,
        #[command(flatten)]
        choice: Choice,
    },
    /// Record clonefs at work in a mounted pool, and check that it survives power cuts
    ///
    /// With --planted: below FUSE, with one bug after the other planted under it, to see that they are found.
    Pool(pool_command::Arguments),
}

#[derive(Args)]
struct Choice {
    /// Number of states
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    states: u32,
    /// Seed: the same log and seed give the same states [default: a new one]
    #[arg(long)]
    seed: Option<u64>,
    /// What becomes of writes since the last flush: all, none, subset, torn or mixed
    #[arg(long, default_value = "mixed")]
    mode: Modes,
    /// Bytes that the disk writes as one [default: 4096 for btrfs, 512 for the others]
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    sector: Option<u64>,
}

impl Choice {
    fn replay(&self) -> Replay {
        let seed = self.seed.unwrap_or_else(|| u64::from(fastrand::u32(..)));
        Replay { states: self.states, seed, modes: self.mode, sector: self.sector, ..Replay::default() }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    command::watch_signals();
    match run(arguments.action) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("crashdisk: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Does it; `false` when something was found that must not be.
fn run(action: Action) -> Result<bool> {
    match action {
        Action::Record { fs, size, log, mount_options, writeback, command } => {
            let writeback = (writeback > 0).then(|| Duration::from_millis(writeback));
            let recording = Recording { filesystem: fs, size, options: mount_options, writeback };
            enter()?;
            recording.run(&log, |site| command::workload(&command, site))?;
            Ok(true)
        }
        Action::Replay { log: path, fs, choice, state, nested, first, save, timeout, command } => {
            let log = Log::open(&path)?;
            if fs.as_ref().is_some_and(|fs| *fs != log.header.filesystem) {
                let error = Error::new(Kind::Invalid, format!("this is a log of {}:", log.header.filesystem));
                return Err(error.at(&path));
            }
            let replay = Replay { only: state, nested, first, ..choice.replay() };
            if let Some(save) = save {
                replay.image(&log)?.save(&save).context("write image", &save)?;
                return Ok(true);
            }
            enter()?;
            let bar = progress(state.map_or(replay.states, |_| 1) * (1 + nested));
            let verifier = command::Verifier::new(&command, Duration::from_secs(timeout))?;
            let outcome = replay.run(&log, |crash| {
                bar.inc(1);
                verifier.verify(crash)
            })?;
            bar.finish_and_clear();
            report(&outcome, &replay, &path, &command);
            Ok(outcome.violations.is_empty())
        }
        Action::Dump { log } => dump(&Log::open(&log)?),
        Action::Selftest { fs, choice } => {
            enter()?;
            run_selftest(fs.as_deref(), &choice.replay())
        }
        Action::Pool(arguments) => {
            enter()?;
            arguments.run()
        }
    }
}

/// Gets ready to mount.
fn enter() -> Result<()> {
    if let Some(missing) = sys::missing() {
        let error = Error::new(Kind::Permission, "mount filesystems").because(format!("{missing} is missing"));
        return Err(error.remedy("run it as root on a machine with FUSE and loop devices"));
    }
    sys::isolate()
}

fn progress(length: u32) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(u64::from(length)), ProgressDrawTarget::hidden());
    if std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::stderr());
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} states, {per_sec}, {eta} left");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Prints the figures, and for each violation what was found and the command that shows it again.
fn report(outcome: &Outcome, replay: &Replay, log: &std::path::Path, command: &[String]) {
    for violation in &outcome.violations {
        let (cut, found) = (violation.cut, violation.found.trim_end().replace('\n', "\n    "));
        println!(
            "violation in state {}: cut after record {} of the {}, unflushed writes {} ({})",
            violation.name,
            cut.point,
            if violation.name.contains('.') { "recovery" } else { "log" },
            violation.unflushed,
            cut.mode,
        );
        println!("    {found}");
        let mut words = vec!["crashdisk".into(), "replay".into(), "--log".into(), log.display().to_string()];
        let sector = replay.sector.map(|sector| format!(" --sector {sector}")).unwrap_or_default();
        let nested = if replay.nested > 0 { format!(" --nested {}", replay.nested) } else { String::new() };
        let options =
            format!("--seed {} --mode {} --state {}{nested}{sector} --", replay.seed, replay.modes, cut_id(violation));
        words.extend(options.split(' ').map(String::from));
        words.extend_from_slice(command);
        println!("    again: {}", words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "));
    }
    println!(
        "states {}  violations {}  seed {}  mode {}  states/s {:.1}",
        outcome.checked,
        outcome.violations.len(),
        replay.seed,
        replay.modes,
        outcome.rate()
    );
}

/// Number of the first cut.
fn cut_id(violation: &crashdisk::replay::Violation) -> &str {
    violation.name.split('.').next().unwrap_or(&violation.name)
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

fn dump(log: &Log) -> Result<bool> {
    use std::io::Write;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut print = || -> std::io::Result<()> {
        writeln!(out, "# {} on {}, {}", log.header.filesystem, format_size(log.header.size), log.header.options)?;
        for (index, record) in log.records.iter().enumerate() {
            match record {
                Record::Write { offset, data } => writeln!(out, "{index} write {offset} {}", data.len())?,
                Record::Zero { offset, len } => writeln!(out, "{index} zero {offset} {len}")?,
                Record::Discard { offset, len } => writeln!(out, "{index} discard {offset} {len}")?,
                Record::Flush => writeln!(out, "{index} flush")?,
                Record::Mark(text) => writeln!(out, "{index} mark {}", text.escape_debug())?,
            }
        }
        out.flush()
    };
    print().context("write to", "standard output").map(|()| true)
}

fn run_selftest(fs: Option<&str>, replay: &Replay) -> Result<bool> {
    let filesystems: Vec<&str> = FILESYSTEMS.into_iter().filter(|name| fs.is_none_or(|fs| fs == *name)).collect();
    println!("{:20}{}", "planted bug", filesystems.iter().map(|fs| format!("{fs:>10}")).collect::<String>());
    let mut good = true;
    for bug in Bug::ALL {
        print!("{:20}", bug.name());
        for fs in &filesystems {
            let outcome = selftest::run(fs, bug, replay)?;
            let found = outcome.violations.len();
            good &= match bug {
                Bug::None => found == 0,
                _ => found > 0 || !selftest::expected(fs, bug),
            };
            print!("{:>10}", format!("{found}/{}", outcome.checked));
            let _ = std::io::Write::flush(&mut std::io::stdout());
        }
        println!();
    }
    println!("seed {}  {}", replay.seed, if good { "as it must be" } else { "NOT as it must be" });
    Ok(good)
}
