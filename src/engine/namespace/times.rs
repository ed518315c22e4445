//! Times that directories show. Freezing a file, finishing a volume and going back put another file under a name, and the
//! backing filesystem takes that for a change of the directory; to users nothing has changed, and tar or a backup would take
//! it for a change under way.
//!
//! The directory itself is never touched for that: times put back would race with a real change, and hide it from backups.
//! What is remembered here is what the directory showed before, and the exact time of the last change that our rename left.
//! While it has that one, it shows what it showed. Any change sets another; one through the mount ends this explicitly, as
//! clocks are coarse. After a new start the truth is shown.

use std::collections::HashMap;

use crate::engine::io::{FileKey, Stat, Timestamp};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};

/// Directories remembered at most; then all show the truth.
const MOST: usize = 1 << 16;

/// What directories showed before their files were replaced.
#[derive(Default)]
pub struct Times {
    /// There are some. Without, nothing is looked up.
    any: AtomicBool,
    of: Mutex<HashMap<FileKey, Shown>>,
}

struct Shown {
    mtime: Timestamp,
    ctime: Timestamp,
    /// The time of the last change that replacing a file has left.
    left: Timestamp,
}

impl Times {
    /// A file in a directory was replaced, with no name changing meanwhile: what it was like before and after that.
    pub fn replaced(&self, before: &Stat, after: &Stat) {
        if before.key != after.key {
            return;
        }
        let mut of = self.of.lock();
        if of.len() >= MOST {
            of.clear();
        }
        let known = of.get_mut(&before.key).filter(|shown| shown.left == before.ctime);
        match known {
            Some(shown) => shown.left = after.ctime,
            None => {
                let shown = Shown { mtime: before.mtime, ctime: before.ctime, left: after.ctime };
                of.insert(before.key, shown);
            }
        }
        self.any.store(true, Ordering::Release);
    }

    /// Whether any directory may show something else than it has.
    pub fn is_any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// A directory was changed through the mount: it shows the truth.
    pub fn changed(&self, directory: FileKey) {
        if self.is_any() {
            self.of.lock().remove(&directory);
        }
    }

    /// The status of a directory as users see it.
    pub fn shown(&self, stat: Stat) -> Stat {
        if !self.is_any() {
            return stat;
        }
        let mut of = self.of.lock();
        match of.get(&stat.key) {
            Some(shown) if shown.left == stat.ctime => Stat { mtime: shown.mtime, ctime: shown.ctime, ..stat },
            Some(_) => {
                of.remove(&stat.key);
                stat
            }
            None => stat,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::io::FileKind;

    fn at(seconds: i64) -> Timestamp {
        Timestamp { seconds, nanos: 0 }
    }

    fn directory(ino: u64, changed: i64) -> Stat {
        Stat {
            key: FileKey { dev: 1, ino },
            mode: libc::S_IFDIR | 0o755,
            nlink: 2,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            blksize: 4096,
            atime: at(0),
            mtime: at(changed),
            ctime: at(changed),
            birth: None,
        }
    }

    fn seen(times: &Times, stat: Stat) -> (i64, i64) {
        let shown = times.shown(stat);
        assert_eq!(shown.kind(), FileKind::Directory);
        (shown.mtime.seconds, shown.ctime.seconds)
    }

    #[test]
    fn a_directory_shows_its_old_times_until_it_is_changed() {
        let times = Times::default();
        times.replaced(&directory(5, 10), &directory(5, 20));
        times.replaced(&directory(5, 20), &directory(5, 30));
        assert_eq!(seen(&times, directory(5, 30)), (10, 10));
        assert_eq!(seen(&times, directory(6, 30)), (30, 30));
        assert_eq!(seen(&times, directory(5, 40)), (40, 40), "a change that nobody told of");
        assert_eq!(seen(&times, directory(5, 30)), (30, 30), "what has shown the truth goes on to");
    }

    #[test]
    fn a_change_between_two_replacements_is_shown() {
        let times = Times::default();
        times.replaced(&directory(5, 10), &directory(5, 20));
        times.replaced(&directory(5, 25), &directory(5, 30));
        assert_eq!(seen(&times, directory(5, 30)), (25, 25));
    }

    #[test]
    fn a_change_in_the_same_tick_of_the_clock_is_shown_if_it_came_through_the_mount() {
        let times = Times::default();
        times.replaced(&directory(5, 10), &directory(5, 20));
        times.changed(FileKey { dev: 1, ino: 5 });
        assert_eq!(seen(&times, directory(5, 20)), (20, 20));
    }
}
