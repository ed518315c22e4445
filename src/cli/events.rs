//! `clonefs events`.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use super::args::EventsArgs;
use super::failure::{Failure, INTERRUPTED, Outcome, note};
use super::{interrupt, place, text};
use crate::client;
use crate::engine::events::Event;
use crate::engine::events::log::{self, Cursor, Page};
use crate::engine::io::HostFs;
use crate::error::{Context, Error, Kind, Result};

/// Time between two looks for new events.
const PAUSE: Duration = Duration::from_millis(250);

/// Where events are read from.
enum Source {
    Mounted(PathBuf),
    /// The pool's own directory, which nobody has mounted.
    Directory(HostFs),
}

/// Shows what happened.
pub fn events(args: EventsArgs) -> Outcome {
    let source = source(args.path.as_deref())?;
    if args.follow {
        interrupt::watch();
    }
    let mut at = Cursor::default();
    loop {
        let page = source.read(at)?;
        if page.gap {
            note("some events are not kept any more");
        }
        let mut out = Vec::new();
        for event in page.events.iter().filter(|event| is_since(event, args.since)) {
            out.extend(if args.json { json(event)? } else { line(event, text::on_terminal()) });
        }
        if !out.is_empty() {
            text::print(out)?;
        }
        at = page.next;
        if page.more {
            continue;
        }
        if !args.follow {
            return Ok(());
        }
        sleep(PAUSE);
        if interrupt::check("follow the events").is_err() {
            // It was to go on until then: nothing to be said.
            return Err(Failure::Exit(INTERRUPTED));
        }
    }
}

fn source(path: Option<&Path>) -> Result<Source> {
    match place::resolve(path) {
        Ok(place) if place.is_dir() => Ok(Source::Mounted(place)),
        Ok(place) => Err(Error::new(Kind::Invalid, "read the events of").at(place).because("it is not a directory")),
        Err(error) => match path.filter(|path| path.join(crate::engine::store::DIR).is_dir()) {
            Some(path) => Ok(Source::Directory(HostFs::open_dir(path).context("open the pool", path)?)),
            None => Err(error),
        },
    }
}

impl Source {
    fn read(&self, from: Cursor) -> Result<Page> {
        match self {
            Source::Mounted(path) => client::events(path, from),
            Source::Directory(fs) => log::read(fs, from),
        }
    }
}

/// A time on the command line: so long ago, or a date and time in UTC.
pub fn since(text: &str) -> std::result::Result<SystemTime, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return SystemTime::now().checked_sub(ago).ok_or_else(|| format!("{text} is before all time"));
    }
    let full = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    humantime::parse_rfc3339_weak(&full)
        .map_err(|_| format!("{text:?} is no time: write 90s, 2h or 3d, or 2026-11-21T13:00:00Z"))
}

/// An event whose time cannot be read is shown.
fn is_since(event: &Event, since: Option<SystemTime>) -> bool {
    let Some(since) = since else { return true };
    humantime::parse_rfc3339(&event.time).map_or(true, |time| time >= since)
}

fn json(event: &Event) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(event).map_err(|e| Error::new(Kind::Invalid, "write JSON").because(e))?;
    line.push(b'\n');
    Ok(line)
}

fn line(event: &Event, terminal: bool) -> Vec<u8> {
    let name = |text: &str| if terminal { text::safe(text.as_ref()) } else { text.to_owned() };
    let mut out = format!("{}  {:<11}", event.time, event.event.word());
    if !event.path.is_empty() {
        out.push_str(&format!("  {}", name(&event.path)));
    }
    if let Some(from) = &event.from {
        out.push_str(&format!("  from {}", name(from)));
    }
    match (event.uid, event.pid) {
        (Some(uid), Some(pid)) => out.push_str(&format!("  (user {uid}, process {pid})")),
        (Some(uid), None) => out.push_str(&format!("  (user {uid})")),
        _ => {}
    }
    if let Some(why) = &event.why {
        out.push_str(&format!("  {}", name(why)));
    }
    out.push('\n');
    out.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::events::What;

    #[test]
    fn times_are_ages_or_dates() {
        let before = SystemTime::now();
        let (two, days) = (since("2h").unwrap(), since("3d").unwrap());
        let after = SystemTime::now();
        let ago = |seconds: u64| before - Duration::from_secs(seconds)..=after - Duration::from_secs(seconds);
        assert!(ago(7200).contains(&two) && ago(3 * 86400).contains(&days));
        let day = since("2020-02-29").unwrap();
        assert_eq!(day, since("2020-02-29T00:00:00Z").unwrap());
        assert_eq!(day.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), 1_582_934_400);
        for bad in ["", "yesterday", "2020-13-01", "12", "-1h"] {
            assert!(since(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_event_is_one_harmless_line() {
        let event = Event { uid: Some(7), pid: Some(9), ..Event::new(What::Refused, "a\x1b\n").because("it\nis so") };
        let text = String::from_utf8(line(&event, true)).unwrap();
        assert!(text.ends_with("  refused      a\\u{1b}\\n  (user 7, process 9)  it\\nis so\n"), "{text}");
        assert_eq!(text.lines().count(), 1);
        assert!(is_since(&event, since("1h").ok()) && !is_since(&event, Some(SystemTime::now() + PAUSE)));
    }
}
