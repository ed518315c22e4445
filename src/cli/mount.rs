//! `clonefs mount`, `unmount` and `init`.

use std::sync::Arc;

use super::args::{DeepenPolicy, InitArgs, MountArgs, UnmountArgs};
use super::failure::{Failure, Outcome, note};
use crate::client::mount_over;
use crate::daemon::mount::{self, MountConfig, Options, Unmount};
use crate::engine::io::{Fs, HostFs};
use crate::engine::pool;
use crate::error::{Context, Error, Kind};

/// Mounts a pool.
pub fn mount(args: MountArgs) -> Outcome {
    let options = options(&args)?;
    let MountArgs { pool, mountpoint, foreground, .. } = args;
    mount::run(MountConfig { pool, mountpoint, options, foreground })?;
    Ok(())
}

/// What `-o` and the long options say together; a long option wins over a word of `-o`.
fn options(args: &MountArgs) -> Outcome<Options> {
    let mut words = args.options.clone();
    words.extend(args.read_only.then(|| "ro".to_owned()));
    words.extend(args.allow_other.then(|| "allow_other".to_owned()));
    words.extend(args.deepen.map(|policy| match policy {
        DeepenPolicy::Auto => "deepen=auto".to_owned(),
        DeepenPolicy::Manual => "deepen=manual".to_owned(),
    }));
    words.extend(args.rate.map(|rate| format!("rate={rate}")));
    words.extend(args.threads.map(|threads| format!("threads={threads}")));
    mount::options::parse(&words.join(",")).map_err(|e| Failure::Usage(e.to_string()))
}

/// Unmounts a pool.
pub fn unmount(args: UnmountArgs) -> Outcome {
    mount::unmount(&args.path, Unmount { lazy: args.lazy, timeout: args.timeout }, &mut note)?;
    Ok(())
}

/// Makes a pool's hidden directory.
pub fn init(args: InitArgs) -> Outcome {
    if let Some(mount) = mount_over(&args.pool) {
        return Err(Failure::Error(
            Error::new(Kind::Busy, "make pool")
                .at(&args.pool)
                .because(format!("it is mounted at {:?}", mount.mountpoint))
                .remedy("the first clone makes its hidden directory by itself"),
        ));
    }
    let fs: Arc<dyn Fs> = Arc::new(HostFs::open_dir(&args.pool).context("open directory", &args.pool)?);
    pool::check::initialise(&fs)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use crate::daemon::mount::Access;
    use clap::Parser;

    fn parse(words: &[&str]) -> Outcome<Options> {
        let cli = Cli::try_parse_from([&["clonefs", "mount", "/pool"], words].concat()).expect("arguments");
        let Command::Mount(args) = cli.command else { panic!("not mount") };
        options(&args)
    }

    #[test]
    fn long_options_and_words_say_the_same() {
        let mut words = parse(&["-o", "ro,allow_other,deepen=manual", "-o", "rate=200M,threads=3"]).unwrap();
        let long = parse(&["--read-only", "--allow-other", "--deepen=manual", "--rate=200M", "--threads=3"]).unwrap();
        // A rate is the same however it was written.
        words.daemon = long.daemon.clone();
        assert_eq!(words, long);
        assert_eq!((long.rate, long.threads, long.access), (200 << 20, 3, Some(Access::All)));
        assert!(parse(&["-o", "rw,deepen=manual", "-r", "--deepen", "auto"]).unwrap().deepen_auto);
    }

    #[test]
    fn an_unknown_word_is_wrong_usage() {
        assert_eq!(parse(&["-o", "bogus"]).unwrap_err().code(), 2);
    }
}
