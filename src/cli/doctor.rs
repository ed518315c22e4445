//! `clonefs doctor`.

use std::ffi::OsStr;
use std::path::Path;

use super::args_vm::DoctorArgs;
use super::failure::{FAILED, Failure, Outcome};
use super::text;
use crate::vm::Virsh;
use crate::vm::doctor::{self, Finding, Level, Patient};

/// Looks at this host, and at a pool or a domain, and prints what was found.
pub fn doctor(args: DoctorArgs) -> Outcome {
    let patient = match args.patient.as_deref() {
        None => Patient::Host,
        // A name with a slash can be no domain.
        Some(name) if name.contains('/') || Path::new(name).is_dir() => Patient::Pool(Path::new(name)),
        Some(name) => Patient::Domain(name),
    };
    let mut findings = doctor::examine(&Virsh::new(args.connect), &patient)?;
    let ill = findings.iter().any(|finding| finding.level == Level::Problem);
    if args.quiet {
        findings.retain(|finding| finding.level != Level::Ok);
    }
    if args.json {
        text::print_json(&findings)?;
    } else {
        text::print(findings.iter().map(line).collect::<String>())?;
    }
    if ill { Err(Failure::Exit(FAILED)) } else { Ok(()) }
}

/// A finding in one line, or two with what to do.
fn line(finding: &Finding) -> String {
    let level = match finding.level {
        Level::Ok => "ok",
        Level::Advice => "advice",
        Level::Problem => "PROBLEM",
    };
    let safe = |words: &str| text::safe(OsStr::new(words));
    let mut line = format!("{level:8} {}: {}\n", finding.check, safe(&finding.found));
    if let Some(remedy) = &finding.remedy {
        line.push_str(&format!("         -> {}\n", safe(remedy)));
    }
    line
}
