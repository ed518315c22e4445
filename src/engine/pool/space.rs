//! Watermarks: how full the backing filesystem may become before users are warned, before deepening stops, and before
//! clones are refused. What is written to volumes is never refused: that is for the filesystem to do.

use crate::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::sync::Mutex;

use super::Pool;
use crate::engine::events::{Event, What};
use crate::engine::io::FsInfo;
use crate::error::{Error, Kind, Result};
use crate::protocol::{Level, SpaceStatus};
use crate::units::{format_size, parse_size};

/// For how long background work takes the last look for the present state.
const FRESH: Duration = Duration::from_millis(100);

/// A limit of how full the filesystem may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// So many percent of what users can have are in use, as df(1) counts.
    Used(u8),
    /// So many bytes or less are left.
    Left(u64),
}

/// The limits of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watermarks {
    /// From here on the status warns.
    pub warn: Option<Mark>,
    /// From here on nothing is copied in the background.
    pub stop_deepening: Option<Mark>,
    /// From here on nothing is cloned.
    pub refuse_clones: Option<Mark>,
}

/// What was seen last.
pub(super) struct Space {
    pub marks: Mutex<Watermarks>,
    looked: Mutex<Option<(Instant, Level)>>,
    told: AtomicU8,
}

impl Space {
    pub fn new(marks: Watermarks) -> Space {
        Space { marks: Mutex::new(marks), looked: Mutex::new(None), told: AtomicU8::new(Level::Fine as u8) }
    }
}

impl Mark {
    /// Reads `90%`, or a size such as `20G` that is left free; `None` for `off`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> std::result::Result<Option<Mark>, String> {
        if text == "off" {
            return Ok(None);
        }
        match text.strip_suffix('%').map(str::parse) {
            Some(Ok(percent @ 1..=100)) => Ok(Some(Mark::Used(percent))),
            Some(_) => Err(format!("{text} is no share: write 1% to 100% in use, a size that is left free, or off")),
            None => parse_size(text).map(|size| Some(Mark::Left(size))),
        }
    }

    fn is_reached(self, info: &FsInfo) -> bool {
        match self {
            Mark::Used(percent) => percent_used(info) >= u64::from(percent),
            Mark::Left(bytes) => info.available.saturating_mul(info.block_size) <= bytes,
        }
    }
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Mark::Used(percent) => write!(f, "{percent}%"),
            Mark::Left(bytes) => write!(f, "{} left", format_size(*bytes)),
        }
    }
}

/// Percent in use of what users can have, rounded up as df does.
fn percent_used(info: &FsInfo) -> u64 {
    let used = info.blocks.saturating_sub(info.free);
    let all = used + info.available;
    if all == 0 { 0 } else { (used as u128 * 100).div_ceil(u128::from(all)) as u64 }
}

impl Watermarks {
    fn level(&self, info: &FsInfo) -> Level {
        let reached = |mark: Option<Mark>| mark.is_some_and(|mark| mark.is_reached(info));
        if reached(self.refuse_clones) {
            Level::RefuseClones
        } else if reached(self.stop_deepening) {
            Level::StopDeepening
        } else if reached(self.warn) {
            Level::Warn
        } else {
            Level::Fine
        }
    }

    /// Whether deepening stops, whatever else has been reached.
    fn stops(&self, info: &FsInfo) -> bool {
        self.stop_deepening.is_some_and(|mark| mark.is_reached(info)) || self.level(info) == Level::RefuseClones
    }
}

impl Pool {
    /// The limits.
    pub fn watermarks(&self) -> Watermarks {
        *self.space.marks.lock()
    }

    /// Sets them.
    pub fn set_watermarks(&self, marks: Watermarks) {
        *self.space.marks.lock() = marks;
        *self.space.looked.lock() = None;
        self.wake_background();
    }

    /// Whether the filesystem is too full for background copies. Looked up anew.
    pub fn is_too_full_to_deepen(&self) -> bool {
        let marks = self.watermarks();
        if marks == Watermarks::default() {
            return false;
        }
        // Where nothing can be seen nothing can be said: copying will tell.
        let Ok(info) = self.env.fs.info() else { return false };
        let level = if marks.stops(&info) { Level::StopDeepening } else { Level::Fine };
        *self.space.looked.lock() = Some((Instant::now(), level));
        level != Level::Fine
    }

    /// The same from the last look, for those who ask once for each volume.
    pub(super) fn was_too_full_to_deepen(&self) -> bool {
        let looked = *self.space.looked.lock();
        match looked.filter(|(at, _)| at.elapsed() < FRESH) {
            Some((_, level)) => level != Level::Fine,
            None => self.is_too_full_to_deepen(),
        }
    }

    /// Fails where clones are refused for want of space.
    pub(super) fn check_room(&self) -> Result<()> {
        let Some(mark) = self.watermarks().refuse_clones else { return Ok(()) };
        let Some(info) = self.env.fs.info().ok().filter(|info| mark.is_reached(info)) else { return Ok(()) };
        Err(Error::new(Kind::NoSpace, "clone")
            .because(format!("the filesystem is {}% full, and clones are refused at {mark}", percent_used(&info)))
            .remedy("delete what is not needed, or raise the watermark refuse-clones"))
    }

    /// The limits and what has been reached.
    pub(super) fn space_status(&self, info: Option<&FsInfo>) -> SpaceStatus {
        let marks = self.watermarks();
        let text = |mark: Option<Mark>| mark.map(|mark| mark.to_string());
        SpaceStatus {
            used_percent: info.map_or(0, percent_used),
            level: info.map_or(Level::Fine, |info| marks.level(info)),
            warn: text(marks.warn),
            stop_deepening: text(marks.stop_deepening),
            refuse_clones: text(marks.refuse_clones),
        }
    }

    /// Looks whether a limit was passed since the last call, and says so once. For the keeper.
    pub fn watch_space(&self) {
        let Ok(info) = self.env.fs.info() else { return };
        let level = self.watermarks().level(&info);
        let before = self.space.told.swap(level as u8, Ordering::AcqRel);
        if before == level as u8 {
            return;
        }
        let text = format!("the filesystem is {}% full: {}", percent_used(&info), level.says());
        self.events.tell(Event::new(What::Space, "").because(text.clone()));
        if level as u8 > before { tracing::warn!("{text}") } else { tracing::info!("{text}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(blocks: u64, free: u64, available: u64) -> FsInfo {
        FsInfo { magic: 0, block_size: 4096, blocks, free, available, files: 0, files_free: 0, name_max: 255 }
    }

    #[test]
    fn marks_are_shares_or_sizes() {
        assert_eq!(Mark::parse("90%"), Ok(Some(Mark::Used(90))));
        assert_eq!(Mark::parse("20G"), Ok(Some(Mark::Left(20 << 30))));
        assert_eq!(Mark::parse("off"), Ok(None));
        for bad in ["0%", "101%", "-1%", "x%", "%", "many", ""] {
            assert!(Mark::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_highest_mark_that_is_reached_counts() {
        let marks = Watermarks {
            warn: Some(Mark::Used(80)),
            stop_deepening: Some(Mark::Left(15 * 4096)),
            refuse_clones: Some(Mark::Used(95)),
        };
        let level = |available| marks.level(&info(100, available, available));
        assert_eq!(level(21), Level::Fine);
        assert_eq!(level(20), Level::Warn);
        assert_eq!(level(15), Level::StopDeepening);
        assert_eq!(level(5), Level::RefuseClones);
        assert!(marks.stops(&info(100, 15, 15)) && !marks.stops(&info(100, 16, 16)));
        assert_eq!(Watermarks::default().level(&info(100, 0, 0)), Level::Fine);
    }

    #[test]
    fn the_share_in_use_is_what_df_shows() {
        // Five blocks are reserved for root.
        assert_eq!(percent_used(&info(100, 50, 45)), 53);
        assert_eq!(percent_used(&info(100, 0, 0)), 100);
        assert_eq!(percent_used(&info(0, 0, 0)), 0);
    }
}
