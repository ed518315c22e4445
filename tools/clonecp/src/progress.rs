//! A progress bar for a file that takes its time: on a terminal, after a second.

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::quote;

/// How long a copy may take before it shows.
const PATIENCE: Duration = Duration::from_secs(1);

/// The bar of one file, shown or not.
pub struct Progress<'a> {
    name: &'a Path,
    total: u64,
    done: u64,
    begin: Instant,
    bar: Option<ProgressBar>,
}

impl<'a> Progress<'a> {
    /// For a copy of `total` bytes of `name`.
    pub fn new(name: &'a Path, total: u64) -> Progress<'a> {
        Progress { name, total, done: 0, begin: Instant::now(), bar: None }
    }

    /// `bytes` more are done.
    pub fn advance(&mut self, bytes: u64) {
        self.done = self.done.saturating_add(bytes);
        // The terminal last: most files are done before it matters.
        if self.bar.is_none() && self.begin.elapsed() > PATIENCE && std::io::stderr().is_terminal() {
            self.bar = Some(self.open());
        }
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
        }
    }

    fn open(&self) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(self.total.max(self.done)), ProgressDrawTarget::stderr());
        let template = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(quote::shell(self.name)); // quoted: a name must not steer the terminal
        bar.with_elapsed(self.begin.elapsed())
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
