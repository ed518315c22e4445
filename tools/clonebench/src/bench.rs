//! What all rows share: the settings, the place, the program, and what the user sees meanwhile.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clonefs::units::format_size;
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::{Args, Settings};
use crate::failure::{During, Failure, Outcome};
use crate::run;
use crate::work::Work;

/// One run of this program.
pub struct Bench {
    /// How much of everything.
    pub settings: Settings,
    /// Where everything is made.
    pub work: Work,
    /// The clonefs program.
    pub clonefs: PathBuf,
    /// Options of the mount.
    pub mount_options: String,
    /// Ways to clone that were asked for; all if empty.
    pub methods: Vec<String>,
    /// With progress, on a terminal.
    bar: ProgressBar,
}

impl Bench {
    /// Looks at everything that can be wrong before anything is measured.
    pub fn new(args: &Args) -> Outcome<Bench> {
        let clonefs = program(args)?;
        crate::rows::clone::check_methods(&args.methods)?;
        // Present whenever --list is not given.
        let dir = args.dir.as_deref().unwrap_or(Path::new("."));
        let work = Work::new(dir)?;
        let bar = if args.json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        bar.set_style(ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(200));
        let (mount_options, methods) = (args.mount_options.clone(), args.methods.clone());
        Ok(Bench { settings: args.settled(), work, clonefs, mount_options, methods, bar })
    }

    /// One line for the user.
    pub fn say(&self, line: &str) {
        if self.bar.is_hidden() {
            eprintln!("{line}");
        } else {
            self.bar.println(line);
        }
    }

    /// What is being done right now.
    pub fn step(&self, what: &str) -> Outcome<()> {
        self.bar.set_message(what.to_owned());
        run::check()
    }

    /// Fails unless so many bytes are free.
    pub fn check_space(&self, need: u64) -> Outcome<()> {
        let path = self.work.path();
        let fs = rustix::fs::statvfs(path).during("look at the filesystem of", path)?;
        let free = fs.f_bavail * fs.f_frsize;
        if free >= need {
            return Ok(());
        }
        Err(Failure::line(format!(
            "not enough space: {} are free, {} are needed; a smaller --size, or fewer --rows, need less",
            format_size(free),
            format_size(need)
        )))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The clonefs program to measure.
fn program(args: &Args) -> Outcome<PathBuf> {
    if let Some(path) = &args.clonefs {
        return if path.is_file() { Ok(path.clone()) } else { Err(Failure::line(format!("{path:?} is no program"))) };
    }
    let beside = std::env::current_exe().ok().map(|exe| exe.with_file_name("clonefs")).filter(|path| path.is_file());
    beside.or_else(|| run::find("clonefs")).ok_or_else(|| {
        Failure::line("no clonefs beside this program nor in PATH: build it (cargo build --release), or give --clonefs")
    })
}

/// What is missing here for loop devices with filesystems of their own.
pub fn no_loops() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root, to mount filesystems".to_owned());
    }
    let control = Path::new("/dev/loop-control");
    (!control.exists()).then(|| "there are no loop devices here".to_owned())
}

/// What is missing here to mount a pool.
pub fn no_fuse() -> Option<String> {
    match std::fs::File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => None,
        Err(error) => Some(format!("/dev/fuse: {error}")),
    }
}
