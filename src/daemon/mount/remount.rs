//! Changing the flags of a mount that is there.

use std::path::Path;

use super::options::Options;
use super::session::open_root;
use super::table::{self, FS_TYPE};
use super::{attach, unmount};
use crate::error::{Context, Error, Kind, Result};

/// Changes the flags of a mount that is there, such as read-only. The daemon goes on as it was started: what it would have
/// to know is refused.
pub fn remount(config: &super::MountConfig) -> Result<()> {
    let path = config.mountpoint.as_deref().unwrap_or(table::without_prefix(&config.pool));
    let path = table::absolute(path)?;
    let ours = table::at(&path)?.is_some_and(|entry| entry.fs_type == FS_TYPE);
    if !ours {
        return Err(Error::new(Kind::NotFound, "remount").at(path).because("no clonefs mount here"));
    }
    let now = attach::flags_of(&open_root(&path)?).context("look at the mount", &path)?;
    let wanted = now & !config.options.cleared | config.options.set;
    let mut ignored = not_as_started(&path, &config.options);
    let words = [(libc::MS_NOATIME, "noatime"), (libc::MS_NODIRATIME, "nodiratime"), (libc::MS_DIRSYNC, "dirsync")];
    let words = words.into_iter().chain([(libc::MS_SYNCHRONOUS, "sync")]);
    ignored.extend(words.filter(|(flag, _)| (now ^ wanted) & flag != 0).map(|(_, word)| word.to_owned()));
    if !ignored.is_empty() {
        return Err(Error::new(Kind::Unsupported, "remount")
            .at(&path)
            .because(format!("{} cannot be changed while it is mounted; nothing was changed", ignored.join(", ")))
            .remedy("unmount, and mount again with these options; clonefs deepen --rate changes the rate"));
    }
    attach::remount(&path, wanted)
}

/// Words for the daemon that ask for something else than it was started with. mount(8) repeats those of the fstab.
fn not_as_started(path: &Path, options: &Options) -> Vec<String> {
    let status = unmount::status(path);
    let command = status.as_ref().and_then(|status| std::fs::read(format!("/proc/{}/cmdline", status.pid)).ok());
    let command = command.unwrap_or_default();
    let begun_with = |word: &String| command.split(|&b| b == 0 || b == b',').any(|part| part == word.as_bytes());
    let is_so = |word: &String| {
        let Some(status) = &status else { return false };
        match word.split_once('=') {
            Some(("deepen", value)) => status.deepen == value,
            Some(("rate", value)) => crate::units::parse_size(value) == Ok(status.rate_limit),
            Some(("passthrough", value)) => status.passthrough == value,
            Some(("engine", value)) => status.engine == value,
            _ => false,
        }
    };
    options.daemon.iter().filter(|word| !is_so(word) && !begun_with(word)).cloned().collect()
}
