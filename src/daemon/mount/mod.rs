//! Mounting and unmounting: options, the session, daemonising, signals, dead mounts.

mod attach;
pub mod buffers;
mod daemon;
mod fusermount;
mod holder;
mod holders;
mod line;
mod logging;
pub mod nested;
pub mod options;
mod outbox;
mod remount;
mod session;
mod signals;
mod takeover;
mod unmount;
mod xattr;

use std::path::PathBuf;

pub use crate::engine::io::mounts as table;
pub use holders::{Lingering, lingering, quoted};
pub use options::{Access, Options};
pub use unmount::{Unmount, unmount};

use crate::error::Result;

/// What `clonefs mount` is to do.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// Directory to serve.
    pub pool: PathBuf,
    /// Where to mount it; `None` is over the directory itself.
    pub mountpoint: Option<PathBuf>,
    /// What `-o` said.
    pub options: Options,
    /// Serve in this process instead of a daemon; [`run`] returns after the unmount.
    pub foreground: bool,
}

/// Mounts. With `foreground` it returns when the filesystem was unmounted; otherwise it leaves a daemon behind and
/// returns when the mount answers. Call it before any thread is started: it forks.
///
/// # Errors
/// The directory is none or cannot be served (the error says why and what to do), another process serves it
/// ([`Kind::Locked`](crate::error::Kind::Locked), with its pid), the mount was refused. Nothing is left behind then.
pub fn run(config: MountConfig) -> Result<()> {
    if config.options.remount {
        return remount::remount(&config);
    }
    let foreground = config.foreground;
    let sink = logging::start(foreground);
    if foreground && !config.options.continuity {
        logging::write(sink)?;
    }
    let result = session::Plan::new(config).and_then(|plan| {
        // A holder has one thread: its servers write its messages, too.
        let serve = |ready: &mut daemon::Ready| {
            if plan.is_kept() {
                return holder::hold(plan, ready, sink);
            }
            logging::write(sink).and_then(|()| session::serve(plan, ready, None))
        };
        match foreground {
            true => serve(&mut daemon::Ready::nobody()),
            false => daemon::daemonise(|ready| {
                // It is told to whoever waits as well, but a daemon that fails later has nobody.
                let result = serve(ready).inspect_err(|error| tracing::error!("{error}"));
                logging::finish();
                result
            }),
        }
    });
    logging::finish();
    result
}
