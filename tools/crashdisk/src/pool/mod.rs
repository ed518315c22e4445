//! clonefs itself under power cuts.
//!
//! [`record_mounted`] lays a pool on the recorder disk, mounts it with the `clonefs` program, and lets a workload clone,
//! write, deepen and delete through the mount. [`record_planted`] does the same below FUSE, with a bug planted at the
//! seam between clonefs and the system. [`judge`] replays power cuts of either and asks the oracle about every sector of
//! every volume.

mod below;
mod load;
mod mounted;
mod planted;
mod verify;

use std::path::{Path, PathBuf};

use clonefs::error::{Context, Result};

pub use self::planted::Bug;

use self::below::Served;
use self::load::Load;
use self::mounted::Mounted;
use self::verify::Verifier;
use crate::boot::Boot;
use crate::log::Log;
use crate::record::{Recording, Site};
use crate::replay::{Outcome, Replay};
use crate::sys;

/// The pool's directory on the filesystem.
const POOL: &str = "pool";
/// The mark behind which the pool's directory is there whatever happens.
const READY: &str = "pool is there";
/// Bytes a second that background work may copy: overlays live long enough to be seen as such.
const RATE: &str = "rate=4M";

/// How much is done while it is recorded.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Threads that work on the pool.
    pub threads: u32,
    /// Steps of each between two mounts.
    pub steps: u32,
    /// Times that the pool is mounted.
    pub mounts: u32,
}

impl Default for Effort {
    fn default() -> Effort {
        Effort { threads: 3, steps: 60, mounts: 3 }
    }
}

/// Makes the pool's directory, durably.
fn make_pool(site: &Site) -> Result<PathBuf> {
    let root = site.mnt.join(POOL);
    std::fs::create_dir(&root).context("make directory", &root)?;
    sys::sync_filesystem(&site.mnt)?;
    crate::workload::Marks::new(site)?.say(READY)?;
    Ok(root)
}

/// Records a workload through real mounts by `program` into `log`. Everything in this mount name space has another boot
/// id than the verification will have.
pub fn record_mounted(filesystem: &str, program: &Path, seed: u64, effort: Effort, log: &Path) -> Result<()> {
    let _boot = Boot::new()?;
    Recording::new(filesystem).run(log, |site| {
        let root = make_pool(site)?;
        let mut load: Option<Load> = None;
        for _ in 0..effort.mounts {
            let mount = Mounted::new(program, &root, RATE)?;
            let done = (|| {
                let load = match &mut load {
                    Some(load) => {
                        load.move_to(|| mount.files());
                        load.check_live(&root)?;
                        load
                    }
                    None => load.insert(Load::new(site, effort.threads, seed, || mount.files())?),
                };
                load.run(effort.steps)?;
                load.check_live(&root)
            })();
            // Also after a failure: the daemon would keep the filesystem busy.
            let unmounted = mount.unmount();
            done.and(unmounted)?;
        }
        Ok(())
    })
}

/// Records a workload below FUSE, with `bug`, into `log`.
pub fn record_planted(filesystem: &str, bug: Bug, seed: u64, effort: Effort, log: &Path) -> Result<()> {
    let _boot = Boot::new()?;
    Recording::new(filesystem).run(log, |site| {
        let root = make_pool(site)?;
        let mut load: Option<Load> = None;
        for _ in 0..effort.mounts {
            let served = Served::open(&root, bug)?;
            let load = match &mut load {
                Some(load) => {
                    load.move_to(|| served.files());
                    load
                }
                None => load.insert(Load::new(site, effort.threads, seed, || served.files())?),
            };
            let done = load.run(effort.steps);
            // Its files hold the pool.
            load.move_to(|| Box::new(crate::files::Directory::new(&root)));
            let closed = served.close();
            match (done.and(closed), bug) {
                (Err(error), Bug::None) => return Err(error),
                // The bug has made itself felt: the recording ends here.
                (Err(_), _) => return Ok(()),
                _ => {}
            }
        }
        Ok(())
    })
}

/// Judges power cuts of a recording. With `program`, some of them through a real mount.
pub fn judge(log: &Log, replay: &Replay, program: Option<&Path>) -> Result<Outcome> {
    let boot = Boot::new()?;
    let verifier = Verifier { boot: &boot, program, mounted_every: 25 };
    replay.run(log, |crash| verifier.verify(crash))
}
