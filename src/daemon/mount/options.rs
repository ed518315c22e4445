//! The words of `-o`, as mount programs take them.

use libc::c_ulong;

use crate::engine::namespace::Passthrough;
use crate::engine::pool::{Mark, Watermarks};
use crate::error::{Error, Kind, Result};
use crate::units::parse_size;

/// Percent in use from which on the status warns, if nothing else is said.
const WARN: u8 = 90;

/// Who besides root and the user who mounts may use the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only the user who mounts.
    Owner,
    /// That user and root.
    OwnerAndRoot,
    /// All, each with the rights that modes and ACLs give.
    All,
}

/// How the backing files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// As is faster: by threads.
    Auto,
    /// Through io_uring where that can be: no thread waits for the disk. Threads do the rest.
    IoUring,
    /// By threads that wait.
    Threads,
}

/// How to mount: the result of one or more `-o` lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `MS_*` flags of mount(2) that were asked for.
    pub(crate) set: c_ulong,
    /// Flags that were asked not to be there (`suid` clears `MS_NOSUID`); they are not taken over from the backing mount.
    pub(crate) cleared: c_ulong,
    /// Change the flags of a mount that is there, as `mount -o remount,ro` does. Words for the daemon must be those that it
    /// was started with.
    pub remount: bool,
    /// The words that are for the daemon and not for the kernel, as they were given.
    pub(crate) daemon: Vec<String>,
    /// Who may use the mount; `None` is all when root mounts, the owner alone otherwise.
    pub access: Option<Access>,
    /// Source shown in the mount table; `None` is `clonefs:` and the path of the pool.
    pub source: Option<String>,
    /// Deepen in the background without being told to.
    pub deepen_auto: bool,
    /// Deepen by copying bytes, also where the backing filesystem could share them.
    pub physical: bool,
    /// Limit of background work in bytes a second, 0 for none.
    pub rate: u64,
    /// How full the backing filesystem may become before something is done about it.
    pub watermarks: Watermarks,
    /// Number of threads that serve requests.
    pub threads: usize,
    /// Which opens may go past the daemon.
    pub passthrough: Passthrough,
    /// How the backing files are read.
    pub engine: Engine,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            set: 0,
            cleared: 0,
            remount: false,
            daemon: Vec::new(),
            access: None,
            source: None,
            deepen_auto: true,
            physical: false,
            rate: 0,
            watermarks: Watermarks { warn: Some(Mark::Used(WARN)), ..Watermarks::default() },
            threads: 16,
            passthrough: Passthrough::default(),
            engine: Engine::Auto,
        }
    }
}

/// Words that set (or, the second column, clear) a flag of mount(2).
const FLAGS: [(&str, &str, c_ulong); 12] = [
    ("ro", "rw", libc::MS_RDONLY),
    ("nosuid", "suid", libc::MS_NOSUID),
    ("nodev", "dev", libc::MS_NODEV),
    ("noexec", "exec", libc::MS_NOEXEC),
    ("noatime", "atime", libc::MS_NOATIME),
    ("nodiratime", "diratime", libc::MS_NODIRATIME),
    ("relatime", "norelatime", libc::MS_RELATIME),
    ("strictatime", "nostrictatime", libc::MS_STRICTATIME),
    ("lazytime", "nolazytime", libc::MS_LAZYTIME),
    ("sync", "async", libc::MS_SYNCHRONOUS),
    ("dirsync", "nodirsync", libc::MS_DIRSYNC),
    ("nosymfollow", "symfollow", MS_NOSYMFOLLOW),
];

/// Follow no symbolic link below this mount; Linux 5.10, not in the libc crate.
const MS_NOSYMFOLLOW: c_ulong = 256;

/// Words for mount(8), fstab and systemd that mean nothing here. `default_permissions` is always on.
const IGNORED: [&str; 13] = [
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "silent",
    "loud",
    "default_permissions",
];

/// Reads a comma-separated list, such as `ro,noatime,rate=200M`.
///
/// # Errors
/// [`Kind::Invalid`] that names the word: unknown, or with a value that makes no sense.
pub fn parse(text: &str) -> Result<Options> {
    let mut options = Options::default();
    options.add(text)?;
    Ok(options)
}

impl Options {
    /// Adds another list; later words win over earlier ones.
    ///
    /// # Errors
    /// As [`parse`].
    pub fn add(&mut self, text: &str) -> Result<()> {
        text.split(',').map(str::trim).filter(|word| !word.is_empty()).try_for_each(|word| self.word(word))
    }

    /// The mount was asked to be read-only.
    pub fn read_only(&self) -> bool {
        self.set & libc::MS_RDONLY != 0
    }

    fn word(&mut self, word: &str) -> Result<()> {
        for (on, off, flag) in FLAGS {
            if word == on {
                self.set |= flag;
                self.cleared &= !flag;
                return Ok(());
            }
            if word == off {
                self.set &= !flag;
                self.cleared |= flag;
                return Ok(());
            }
        }
        if IGNORED.contains(&word) {
            return Ok(());
        }
        match word.split_once('=') {
            None => self.plain(word),
            Some((name, value)) => self.valued(word, name, value),
        }
    }

    fn plain(&mut self, word: &str) -> Result<()> {
        match word {
            "allow_other" => self.access = Some(Access::All),
            "allow_root" => self.access = Some(Access::OwnerAndRoot),
            "physical" => {
                self.physical = true;
                self.daemon.push(word.to_owned());
            }
            "remount" => self.remount = true,
            _ if word.starts_with("x-") => {}
            _ => return Err(unknown(word)),
        }
        Ok(())
    }

    fn valued(&mut self, word: &str, name: &str, value: &str) -> Result<()> {
        if !matches!(name, "fsname" | "user_id" | "group_id" | "max_read" | "blksize" | "subtype" | "comment")
            && !name.starts_with("x-")
        {
            self.daemon.push(word.to_owned());
        }
        match name {
            "fsname" => self.source = Some(value.to_owned()),
            "deepen" => match value {
                "auto" => self.deepen_auto = true,
                "manual" => self.deepen_auto = false,
                _ => return Err(bad(word, "deepen is auto or manual")),
            },
            "rate" => self.rate = parse_size(value).map_err(|cause| bad(word, cause))?,
            "warn" => self.watermarks.warn = mark(word, value)?,
            "stop-deepening" => self.watermarks.stop_deepening = mark(word, value)?,
            "refuse-clones" => self.watermarks.refuse_clones = mark(word, value)?,
            "passthrough" => match value {
                "off" => self.passthrough = Passthrough::Off,
                "read-only" => self.passthrough = Passthrough::ReadOnly,
                "writable" => self.passthrough = Passthrough::Writable,
                _ => return Err(bad(word, "passthrough is off, read-only or writable")),
            },
            "threads" => match value.parse() {
                Ok(threads @ 1..=256) => self.threads = threads,
                _ => return Err(bad(word, "threads is a number from 1 to 256")),
            },
            "engine" => match value {
                "auto" => self.engine = Engine::Auto,
                "io_uring" => self.engine = Engine::IoUring,
                "threads" => self.engine = Engine::Threads,
                _ => return Err(bad(word, "engine is auto, io_uring or threads")),
            },
            // From the mount table, where mount(8) looks before it asks for a remount.
            "user_id" | "group_id" | "max_read" | "blksize" => {}
            // mount(8) passes the type on when it is written as fuse.clonefs; comment= is for people.
            "subtype" if value == "clonefs" => {}
            "comment" => {}
            _ if name.starts_with("x-") => {}
            _ => return Err(unknown(word)),
        }
        Ok(())
    }
}

fn unknown(word: &str) -> Error {
    Error::new(Kind::Invalid, format!("mount option {word:?} is not known"))
        .remedy("see `clonefs mount --help` for the options")
}

fn mark(word: &str, value: &str) -> Result<Option<Mark>> {
    Mark::parse(value).map_err(|cause| bad(word, cause))
}

fn bad(word: &str, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(Kind::Invalid, format!("mount option {word:?}")).because(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_fstab_line_is_understood() {
        let options =
            parse("defaults,_netdev,x-systemd.automount,ro,noatime,allow_other,rate=200M,deepen=manual").unwrap();
        assert!(options.read_only());
        assert_eq!(options.set, libc::MS_RDONLY | libc::MS_NOATIME);
        assert_eq!(options.access, Some(Access::All));
        assert_eq!((options.rate, options.deepen_auto), (200 << 20, false));
    }

    #[test]
    fn watermarks_are_shares_in_use_or_sizes_left() {
        let marks = parse("stop-deepening=95%,refuse-clones=20G").unwrap().watermarks;
        assert_eq!((marks.warn, marks.stop_deepening), (Some(Mark::Used(90)), Some(Mark::Used(95))));
        assert_eq!(marks.refuse_clones, Some(Mark::Left(20 << 30)));
        assert_eq!(parse("warn=off").unwrap().watermarks, Watermarks::default());
    }

    #[test]
    fn an_engine_can_be_chosen() {
        assert_eq!(parse("").unwrap().engine, Engine::Auto);
        assert_eq!(parse("engine=io_uring").unwrap().engine, Engine::IoUring);
        assert_eq!(parse("engine=io_uring,engine=threads").unwrap().engine, Engine::Threads);
        assert_eq!(parse("engine=threads,engine=auto").unwrap().engine, Engine::Auto);
    }

    #[test]
    fn the_later_word_wins() {
        let mut options = parse("ro,nosuid,suid").unwrap();
        assert_eq!((options.set, options.cleared), (libc::MS_RDONLY, libc::MS_NOSUID));
        options.add("rw").unwrap();
        assert!(!options.read_only());
    }

    #[test]
    fn what_mount_passes_on_for_a_remount_is_understood() {
        let options = parse("ro,relatime,remount,user_id=0,group_id=0,default_permissions,allow_other").unwrap();
        assert!(options.remount && options.read_only());
    }

    #[test]
    fn an_unknown_word_is_named() {
        for word in [
            "bogus",
            "rate=fast",
            "threads=0",
            "passthrough=all",
            "engine=fast",
            "deepen=never",
            "subtype=other",
            "size=4G",
            "warn=0%",
            "refuse-clones=x",
        ] {
            let error = parse(&format!("ro,{word}")).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
