//! The `clonefs` command: raw flags, then what they mean here, then one small function for each command. Arguments,
//! output and exit codes live here; what is done to files is in [`crate::client`] and below.

mod args;
mod args_life;
mod args_policy;
mod args_vm;
mod check;
mod clone;
mod deepen;
mod diff;
mod doctor;
mod domain;
mod domain_snapshot;
mod events;
mod examples;
mod failure;
mod forest;
mod image;
mod interrupt;
mod list;
mod metrics;
mod mount;
mod place;
mod policy;
mod progress;
mod scrub;
mod shell;
mod snapshot;
mod status;
mod sync;
mod table;
mod template;
mod text;
mod tree;
mod usage;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};
use failure::Outcome;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// The definition of the command line, for manual pages and completions.
pub fn definition() -> clap::Command {
    Cli::command()
}

fn run(command: Command) -> Outcome {
    match command {
        Command::Mount(args) => mount::mount(args),
        Command::Unmount(args) => mount::unmount(args),
        Command::Init(args) => mount::init(args),
        Command::Clone(args) => clone::clone(args),
        Command::Snapshot(command) => snapshot::snapshot(command),
        Command::Reset(args) => snapshot::reset(&args),
        Command::Diff(args) => diff::diff(&args),
        Command::Resize(args) => snapshot::resize(&args),
        Command::Deepen(args) => deepen::deepen(args),
        Command::Pause(args) => deepen::pause(args),
        Command::Resume(args) => deepen::resume(args),
        Command::Wait(args) => deepen::wait(args),
        Command::List(args) => list::list(args),
        Command::Status(args) => status::status(args),
        Command::Tree(args) => tree::tree(args),
        Command::Usage(args) => usage::usage(args),
        Command::Events(args) => events::events(args),
        Command::Metrics(args) => metrics::metrics(args),
        Command::Policy(command) => policy::policy(command),
        Command::Export(args) => image::export(args),
        Command::Import(args) => image::import(args),
        Command::Check(args) => check::check(args),
        Command::Scrub(args) => scrub::scrub(args),
        Command::Sync(args) => sync::sync(args),
        Command::Domain(command) => domain::domain(command),
        Command::Pool(command) => domain::pool(command),
        Command::Doctor(args) => doctor::doctor(args),
        Command::Completions { shell } => shell::completions(shell),
        Command::Man { dir } => shell::man(&dir),
    }
}

/// Help and version, which are no errors, and command lines that make no sense.
fn refuse(error: &clap::Error) -> ExitCode {
    // Nowhere to tell that the output is closed.
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    // `check` has the exit codes of fsck, where 2 means something else.
    let check = std::env::args_os().nth(1).is_some_and(|word| word == "check" || word == "scrub");
    ExitCode::from(if check { check::USAGE } else { failure::USAGE })
}
