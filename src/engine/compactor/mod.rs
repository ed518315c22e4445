//! Background work: deepening, adoption, removal of what is not needed, and syncing what nobody syncs.
//!
//! Three threads. The keeper makes what was written durable within seconds and removes what was deleted. The compactor
//! deepens: volumes in turn, a slice each, so that many make progress; it sleeps while there is nothing to do. The
//! third one makes snapshots by schedule and removes old ones.

mod deepen;
mod pace;
pub mod snapshots;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::engine::events::{Event, What};
use crate::engine::pool::Pool;
use crate::error::{Error, Result};

/// What nobody syncs is durable after about this long; the kernel's own write-back waits as long.
const FLUSH_EVERY: Duration = Duration::from_secs(5);
/// How long the first of several deletions waits for the others.
const GATHER: Duration = Duration::from_millis(10);
/// With nothing to do for so long, the compactor takes checksums of layers that have none.
const IDLE: Duration = Duration::from_secs(20);

/// Starts the threads; [`Pool::shutdown`] ends them.
pub fn start(pool: &Arc<Pool>) -> Result<()> {
    if pool.options().read_only {
        return Ok(());
    }
    pool.events().tell(Event::new(What::Mounted, ""));
    pool.events().start(pool.fs().clone())?;
    spawn(pool, "clonefs-keeper", keep)?;
    spawn(pool, "clonefs-compact", deepen::run)?;
    spawn(pool, "clonefs-snap", snapshots::run)
}

fn spawn(pool: &Arc<Pool>, name: &str, body: fn(&Arc<Pool>)) -> Result<()> {
    let work = pool.clone();
    let thread = thread::Builder::new().name(name.into()).spawn(move || body(&work));
    pool.attach(thread.map_err(|e| Error::io("start background thread", e))?);
    Ok(())
}

/// The keeper.
fn keep(pool: &Arc<Pool>) {
    let mut seen = 0;
    let mut flushed = Instant::now();
    while !pool.stopping() {
        if pool.wait_for_work(&mut seen, FLUSH_EVERY.saturating_sub(flushed.elapsed())) {
            pool.rest(GATHER);
        }
        if let Err(error) = pool.reap_dead() {
            let text = format!("cannot remove what was deleted: {error}");
            tracing::warn!("{text}");
            pool.events().tell(Event::new(What::Failed, "").because(text));
        }
        if flushed.elapsed() >= FLUSH_EVERY {
            if let Err(error) = pool.flush() {
                let text = format!("cannot make writes durable: {error}");
                tracing::warn!("{text}");
                pool.events().tell(Event::new(What::Failed, "").because(text));
            }
            pool.watch_space();
            pool.refresh_policies();
            flushed = Instant::now();
        }
    }
}
