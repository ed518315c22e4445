//! Names, sizes and times as people see them, and the one way to standard output.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;

use super::failure::{Failure, Outcome};

/// Writes to standard output.
pub fn print(bytes: impl AsRef<[u8]>) -> Outcome {
    let mut out = io::stdout().lock();
    out.write_all(bytes.as_ref()).and_then(|()| out.flush()).map_err(Failure::Output)
}

/// Writes a value as indented JSON to standard output.
pub fn print_json(value: &impl serde::Serialize) -> Outcome {
    let mut json = serde_json::to_vec_pretty(value).map_err(|e| Failure::Output(e.into()))?;
    json.push(b'\n');
    print(json)
}

/// Whether people read standard output.
pub fn on_terminal() -> bool {
    io::stdout().is_terminal()
}

/// A name for standard output: exact for a program, harmless for a terminal.
pub fn name(name: &OsStr, terminal: bool) -> Vec<u8> {
    if terminal { safe(name).into_bytes() } else { name.as_bytes().to_vec() }
}

/// A name that does nothing to a terminal: control characters, and characters that turn or hide text, are escaped, as
/// is what is not UTF-8.
pub fn safe(name: &OsStr) -> String {
    let mut out = String::with_capacity(name.len());
    for chunk in name.as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || turns_text(c) {
                let _ = write!(out, "{}", c.escape_default());
            } else {
                out.push(c);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// Characters that change the direction of text, end lines or show nothing.
fn turns_text(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}')
}

/// Percent, rounded down: 100 only when it is done.
pub fn percent(value: f64) -> String {
    if value >= 100.0 { "100%".into() } else { format!("{:.1}%", (value.max(0.0) * 10.0).floor() / 10.0) }
}

/// A time to wait, in the two largest units.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} m {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// A number of things, whose name takes an `s` when they are many.
pub fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// A bar of `width` characters for `percent`.
pub fn bar(percent: f64, width: usize) -> String {
    let filled = ((percent.clamp(0.0, 100.0) / 100.0) * width as f64).floor() as usize;
    format!("[{}{}]", "#".repeat(filled), "-".repeat(width - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_reach_a_terminal_as_commands() {
        let evil = OsStr::from_bytes(b"a\x1b[2Jb\nc\xc2\x9bd\xffe\xe2\x80\xaef");
        assert_eq!(safe(evil), r"a\u{1b}[2Jb\nc\u{9b}d\xffe\u{202e}f");
        assert_eq!(name(evil, false), evil.as_bytes());
        assert_eq!(safe(OsStr::new("vm 1\u{e9}.img")), "vm 1\u{e9}.img");
    }

    #[test]
    fn percent_is_full_only_when_it_is() {
        assert_eq!(percent(99.99), "99.9%");
        assert_eq!(percent(100.0), "100%");
        assert_eq!(percent(-1.0), "0.0%");
    }

    #[test]
    fn durations_have_two_units() {
        assert_eq!(duration(59), "59 s");
        assert_eq!(duration(61), "1 m 1 s");
        assert_eq!(duration(3 * 3600 + 120), "3 h 2 m");
        assert_eq!(duration(90_000), "1 d 1 h");
    }

    #[test]
    fn bars_have_their_width() {
        assert_eq!(bar(0.0, 4), "[----]");
        assert_eq!(bar(99.9, 4), "[###-]");
        assert_eq!(bar(250.0, 4), "[####]");
    }
}
