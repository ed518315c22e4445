//! Values of settings: how they are written, and what they mean.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::units::{format_size, parse_size};

/// The year 9999, after the epoch.
pub(super) const LAST: Duration = Duration::from_secs(253_370_764_800);

/// When a volume is deepened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum When {
    /// As soon as its turn comes.
    Auto,
    /// While nobody reads or writes in the pool.
    Idle,
    /// When somebody asks for it.
    Manual,
    /// Until this time as `Idle`, from then on as `Auto`.
    By(SystemTime),
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<When, String> {
        match text {
            "auto" => return Ok(When::Auto),
            "idle" => return Ok(When::Idle),
            "manual" => return Ok(When::Manual),
            _ => {}
        }
        let bad = || {
            format!("{text:?} is not auto, idle, manual, or by TIME such as \"by 2026-12-01T06:00:00Z\" or \"by 12h\"")
        };
        let time = text.strip_prefix("by ").ok_or_else(bad)?.trim();
        let time = match humantime::parse_duration(time) {
            Ok(from_now) => SystemTime::now().checked_add(from_now),
            Err(_) => humantime::parse_rfc3339_weak(time).ok(),
        };
        // Later ones cannot be written down.
        time.filter(|time| *time < SystemTime::UNIX_EPOCH + LAST).map(When::By).ok_or_else(bad)
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            When::Auto => f.write_str("auto"),
            When::Idle => f.write_str("idle"),
            When::Manual => f.write_str("manual"),
            When::By(time) => write!(f, "by {}", humantime::format_rfc3339_seconds(*time)),
        }
    }
}

/// Which blocks are copied first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Order {
    /// From the first to the last.
    Front,
    /// What was read a moment ago, then from the first to the last.
    Hot,
}

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Order, String> {
        match text {
            "front" => Ok(Order::Front),
            "hot" => Ok(Order::Hot),
            _ => Err(format!("{text:?} is not front or hot")),
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Order::Hot { "hot" } else { "front" })
    }
}

/// Bytes a second; 0 for no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate(pub u64);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        parse_size(text).map(Rate)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_size(self.0))
    }
}

/// Longest pattern or template.
const LONGEST: usize = 255;

/// A pattern that names must match: `*` for any characters, `?` for one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Pattern, String> {
        if text.is_empty() || text.len() > LONGEST || text.contains('/') {
            return Err(format!("{text:?} is no pattern of a name, such as \"*.img\""));
        }
        Ok(Pattern(text.to_owned()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Pattern {
    /// Whether a name matches.
    pub fn matches(&self, name: &[u8]) -> bool {
        let pattern = self.0.as_bytes();
        let (mut at, mut in_name) = (0, 0);
        // Where the last `*` was, and how much of the name it stands for.
        let mut star: Option<(usize, usize)> = None;
        while in_name < name.len() {
            if pattern.get(at) == Some(&b'*') {
                star = Some((at, in_name));
                at += 1;
            } else if pattern.get(at).is_some_and(|byte| *byte == b'?' || *byte == name[in_name]) {
                at += 1;
                in_name += 1;
            } else if let Some((place, taken)) = star {
                star = Some((place, taken + 1));
                (at, in_name) = (place + 1, taken + 1);
            } else {
                return false;
            }
        }
        pattern[at..].iter().all(|byte| *byte == b'*')
    }
}

/// The name of a clone that was given none: `{name}` is the source's, `{stem}` and `{ext}` its parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CloneName(String);

impl FromStr for CloneName {
    type Err = String;

    fn from_str(text: &str) -> Result<CloneName, String> {
        let bare = ["{name}", "{stem}", "{ext}"].iter().fold(text.to_owned(), |text, part| text.replace(part, ""));
        let named = text.contains("{name}") || text.contains("{stem}");
        if !named || bare.is_empty() || bare.contains(['/', '{', '}']) || text.len() > LONGEST {
            return Err(format!(
                "{text:?} is no name for clones, such as \"{{stem}}-clone{{ext}}\" or \"{{name}}.copy\""
            ));
        }
        Ok(CloneName(text.to_owned()))
    }
}

impl fmt::Display for CloneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl CloneName {
    /// The name for a clone of `source`; the second one that is tried has a 2 in it, and so on.
    pub fn of(&self, source: &str, number: u32) -> String {
        let (stem, ext) = match source.rfind('.').filter(|at| *at > 0) {
            Some(at) => source.split_at(at),
            None => (source, ""),
        };
        let name = self.0.replace("{name}", source).replace("{stem}", stem);
        let number = if number > 1 { format!("-{number}") } else { String::new() };
        match name.contains("{ext}") {
            true => name.replace("{ext}", &format!("{number}{ext}")),
            false => name + &number,
        }
    }
}

/// How many snapshots of each period are kept; `none` for a tree or a volume that is to have none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Schedule(BTreeMap<Period, u32>);

/// A period that snapshots are taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Period {
    /// An hour.
    Hourly,
    /// A day, in UTC.
    Daily,
    /// Seven days, from Monday.
    Weekly,
}

impl Period {
    const ALL: [(&'static str, Period); 3] =
        [("hourly", Period::Hourly), ("daily", Period::Daily), ("weekly", Period::Weekly)];

    /// How long it is.
    pub fn length(self) -> Duration {
        match self {
            Period::Hourly => Duration::from_secs(3600),
            Period::Daily => Duration::from_secs(86_400),
            Period::Weekly => Duration::from_secs(7 * 86_400),
        }
    }

    /// What it is called.
    pub fn called(word: &str) -> Option<Period> {
        Period::ALL.iter().find(|(name, _)| *name == word).map(|(_, period)| *period)
    }

    /// Its name.
    pub fn word(self) -> &'static str {
        Period::ALL.iter().find(|(_, period)| *period == self).map_or("", |(word, _)| word)
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Schedule, String> {
        let bad = || format!("{text:?} is no schedule, such as \"hourly=24,daily=7,weekly=4\"");
        let mut kept = BTreeMap::new();
        if text == "none" {
            return Ok(Schedule(kept));
        }
        for part in text.split(',') {
            let (word, count) = part.split_once('=').ok_or_else(bad)?;
            let period = Period::called(word.trim()).ok_or_else(bad)?;
            let count: u32 = count.trim().parse().map_err(|_| bad())?;
            if !(1..=1000).contains(&count) || kept.insert(period, count).is_some() {
                return Err(bad());
            }
        }
        Ok(Schedule(kept))
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let parts: Vec<String> = self.0.iter().map(|(period, count)| format!("{}={count}", period.word())).collect();
        f.write_str(&parts.join(","))
    }
}

impl Schedule {
    /// The periods and how many snapshots of each are kept.
    pub fn kept(&self) -> impl Iterator<Item = (Period, u32)> + '_ {
        self.0.iter().map(|(period, count)| (*period, *count))
    }
}

macro_rules! as_text {
    ($($name:ty),*) => {$(
        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<$name, String> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    )*};
}

as_text!(When, Order, Rate, Pattern, CloneName, Schedule);

#[cfg(test)]
mod tests {
    use super::*;

    fn same<T: FromStr<Err = String> + fmt::Display>(texts: &[&str]) {
        for text in texts {
            assert_eq!(text.parse::<T>().unwrap_or_else(|e| panic!("{e}")).to_string(), *text);
        }
    }

    fn refused<T: FromStr<Err = String>>(texts: &[&str]) {
        for text in texts {
            assert!(text.parse::<T>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn values_read_back_as_they_are_written() {
        same::<When>(&["auto", "idle", "manual", "by 2026-12-01T06:00:00Z"]);
        same::<Order>(&["front", "hot"]);
        refused::<Order>(&["", "Hot", "back"]);
        same::<Rate>(&["0", "200M", "1.5G"]);
        same::<Pattern>(&["*.img", "vm-??.qcow2"]);
        same::<CloneName>(&["{stem}-clone{ext}", "{name}.copy"]);
        same::<Schedule>(&["hourly=24,daily=7,weekly=4", "daily=1", "none"]);
        refused::<When>(&[
            "",
            "by",
            "by never",
            "soon",
            "by 2026-13-01T00:00:00Z",
            "by 9999999d",
            "by 1960-01-01T00:00:00Z",
        ]);
        refused::<Rate>(&["", "fast", "-1"]);
        refused::<Pattern>(&["", "a/b"]);
        refused::<CloneName>(&["", "{name}", "copy", "../{name}", "{name}-{n}", "{stem}{ext}"]);
        refused::<Schedule>(&[
            "",
            "hourly",
            "hourly=0",
            "hourly=1,hourly=2",
            "yearly=1",
            "daily=x",
            "hourly=9,none",
            "daily=1001",
        ]);
    }

    #[test]
    fn patterns_match_whole_names() {
        let matches = |pattern: &str, name: &str| pattern.parse::<Pattern>().unwrap().matches(name.as_bytes());
        assert!(
            matches("*.img", "a.img") && matches("*", "") && matches("a*b*c", "axxbyybzc") && matches("vm??", "vm12")
        );
        assert!(
            !matches("*.img", "a.imgx") && !matches("vm??", "vm1") && !matches("a*b*c", "axxc") && !matches("a", "")
        );
    }

    #[test]
    fn clones_are_named_by_the_parts_of_the_source() {
        let name = |template: &str, source: &str| template.parse::<CloneName>().unwrap().of(source, 1);
        assert_eq!(name("{stem}-clone{ext}", "base.img"), "base-clone.img");
        assert_eq!(name("{stem}-clone{ext}", ".hidden"), ".hidden-clone");
        assert_eq!(name("{name}.copy", "base.img"), "base.img.copy");
        assert_eq!("{stem}-clone{ext}".parse::<CloneName>().unwrap().of("base.img", 2), "base-clone-2.img");
        assert_eq!("{name}.copy".parse::<CloneName>().unwrap().of("base.img", 3), "base.img.copy-3");
    }
}
