//! clonebench: what clonefs costs on this disk, beside the disk itself and every other way to clone.
//!
//! Everything that is compared runs in one process's rounds, one after the other, so that a busy machine slows all of
//! them; what counts is the median of the ratios of the rounds.

mod args;
mod bench;
mod curve;
mod disk;
mod failure;
mod file;
mod fio;
mod html;
mod page;
mod plot;
mod pool;
mod qsd;
mod report;
mod rounds;
mod rows;
mod run;
mod work;

use std::process::ExitCode;

use clap::Parser;

use args::Args;
use bench::Bench;
use failure::Failure;
use page::Page;
use report::Report;

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        for row in rows::ALL {
            println!("{:<10} {}", row.name, row.about);
        }
        return ExitCode::SUCCESS;
    }
    run::note_signals();
    match measure(&args) {
        Ok(report) if args.json => {
            println!("{}", report.json());
            ExitCode::SUCCESS
        }
        Ok(report) => {
            print!("{}", report.text());
            ExitCode::SUCCESS
        }
        Err(Failure::Stopped) => {
            eprintln!("clonebench: stopped; everything it made is removed");
            ExitCode::from(130)
        }
        Err(failure) => {
            eprintln!("clonebench: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// All rows that were asked for. What cannot run here is named before the first begins.
fn measure(args: &Args) -> Result<Report, Failure> {
    let chosen = rows::chosen(&args.rows)?;
    let page = args.report.as_deref().map(Page::new).transpose()?;
    let bench = Bench::new(args)?;
    let mut report = Report::new(&bench);
    let mut able = Vec::new();
    for row in chosen {
        match (row.missing)(&bench) {
            Some(why) => {
                bench.say(&format!("{}: not run: {why}", row.name));
                report.not_run(row.name, &why);
            }
            None => able.push(row),
        }
    }
    let need = able.iter().map(|row| (row.space)(args)).max().unwrap_or(0);
    bench.check_space(need)?;
    for row in able {
        bench.say(&format!("{}: {}", row.name, row.about));
        match (row.run)(&bench) {
            Ok(found) => report.add(found),
            Err(Failure::Stopped) => return Err(Failure::Stopped),
            // One row that fails does not take the others along.
            Err(failure) => {
                bench.say(&format!("{}: failed: {failure}", row.name));
                report.not_run(row.name, &format!("failed: {failure}"));
            }
        }
    }
    if let Some(page) = page {
        page.keep(&html::page(&report)?)?;
    }
    Ok(report)
}
