//! Progress bars: on standard error, if that is a terminal, for work that takes more than a second.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::text;

/// Work that takes less than this shows no bar.
const QUICK: Duration = Duration::from_secs(1);
/// No guess at the time left is made before so much time has passed.
const UNSURE: Duration = Duration::from_secs(3);

/// What a bar counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, with a rate.
    Bytes,
    /// Things.
    Items,
}

/// The progress of one piece of work.
pub struct Meter {
    label: String,
    unit: Unit,
    started: Instant,
    terminal: bool,
    bar: Option<ProgressBar>,
}

impl Meter {
    /// Starts to count; `label` says what is being done.
    pub fn new(label: impl Into<String>, unit: Unit) -> Meter {
        let terminal = std::io::stderr().is_terminal();
        Meter { label: label.into(), unit, started: Instant::now(), terminal, bar: None }
    }

    /// `done` of `total` is done.
    pub fn update(&mut self, done: u64, total: u64) {
        if self.bar.is_none() && (!self.terminal || self.started.elapsed() < QUICK) {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(total).with_elapsed(self.started.elapsed()).with_style(style(self.unit));
            bar.set_message(self.label.clone());
            bar
        });
        bar.set_length(total);
        bar.set_position(done);
    }

    /// Changes what it says about the work.
    pub fn say(&mut self, label: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(label.clone());
        }
        self.label = label;
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The line that is drawn.
fn template(unit: Unit) -> &'static str {
    match unit {
        Unit::Bytes => "{msg} [{bar:24}] {percent}%  {binary_bytes} of {binary_total_bytes}  {rate}  {left}",
        Unit::Items => "{msg} [{bar:24}] {pos} of {len}  {left}",
    }
}

fn style(unit: Unit) -> ProgressStyle {
    // The templates are constants: that they are sound is tested below.
    ProgressStyle::with_template(template(unit))
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("#>-")
        .with_key("rate", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = write!(out, "{}/s", crate::units::format_size(state.per_sec() as u64));
        })
        .with_key("left", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = out.write_str(&left(state.elapsed(), state.eta(), state.per_sec()));
        })
}

/// The time left, or that it is not known.
fn left(elapsed: Duration, eta: Duration, per_second: f64) -> String {
    if elapsed < UNSURE || per_second <= 0.0 {
        "time left unknown".into()
    } else {
        format!("{} left", text::duration(eta.as_secs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_sound() {
        for unit in [Unit::Bytes, Unit::Items] {
            assert!(ProgressStyle::with_template(template(unit)).is_ok());
        }
    }

    #[test]
    fn the_time_left_is_unknown_until_there_is_a_rate() {
        let second = Duration::from_secs(1);
        assert_eq!(left(second, second * 100, 5.0), "time left unknown");
        assert_eq!(left(second * 10, Duration::ZERO, 0.0), "time left unknown");
        assert_eq!(left(second * 10, second * 100, 5.0), "1 m 40 s left");
    }
}
