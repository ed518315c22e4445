//! One instant for all disks of a running domain.
//!
//! Files of one pool are cloned as of one instant while the machine runs. Where some lie elsewhere (a second pool, NVRAM,
//! a TPM) the machine is suspended while they are cloned and copied: nothing is written between the first and the last.
//! `virsh` is connected before and stays so, and what suspends also resumes, whatever happens: signals have to wait.

use std::time::{Duration, Instant};

use super::session::Session;
use super::signals::PutOff;
use super::virsh::Virsh;
use crate::error::{Error, Kind, Result};

/// For so long a guest agent may take to freeze or thaw filesystems.
const AGENT: Duration = Duration::from_secs(20);

/// What is to be held still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The processors.
    pub suspend: bool,
    /// The guest's filesystems, by its agent.
    pub quiesce: bool,
}

/// A domain that is held still until this is dropped.
pub struct Frozen<'a> {
    virsh: &'a Virsh,
    uuid: &'a str,
    session: Option<Session>,
    suspended: Option<Instant>,
    quiesced: bool,
    /// Last: dropped when all else is done.
    _signals: Option<PutOff>,
}

impl<'a> Frozen<'a> {
    /// Holds the domain still.
    pub fn begin(virsh: &'a Virsh, uuid: &'a str, hold: Hold) -> Result<Frozen<'a>> {
        let _signals = (hold.suspend || hold.quiesce).then(PutOff::begin);
        let session = if hold.suspend { Some(Session::open(virsh)?) } else { None };
        let mut frozen = Frozen { virsh, uuid, session, suspended: None, quiesced: false, _signals };
        if hold.quiesce {
            // Set first: the agent may freeze them and answer too late.
            frozen.quiesced = true;
            frozen.freeze_filesystems()?;
        }
        if let Some(session) = &mut frozen.session {
            frozen.suspended = Some(Instant::now());
            session.call("suspend the domain", &format!("suspend {uuid}"))?;
        }
        Ok(frozen)
    }

    fn freeze_filesystems(&self) -> Result<()> {
        let doing = "freeze the filesystems of the guest";
        match self.virsh.run_for(doing, &["domfsfreeze", "--domain", self.uuid], AGENT) {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::new(Kind::Unsupported, doing)
                .because(format!("its agent did not: {error}"))
                .remedy("install and start qemu-guest-agent in the guest, or clone without --quiesce")),
        }
    }

    /// Lets it go on. Gives the time for which it was suspended.
    pub fn end(mut self) -> Result<Option<Duration>> {
        self.release()
    }

    fn release(&mut self) -> Result<Option<Duration>> {
        let resumed = self.resume();
        // Whatever happened: a guest with frozen filesystems hangs.
        if std::mem::take(&mut self.quiesced) {
            let thaw = || {
                self.virsh.run_for("thaw the filesystems of the guest", &["domfsthaw", "--domain", self.uuid], AGENT)
            };
            thaw().or_else(|_| thaw())?;
        }
        resumed
    }

    fn resume(&mut self) -> Result<Option<Duration>> {
        let Some(since) = self.suspended.take() else { return Ok(None) };
        let doing = "resume the domain";
        let command = format!("resume {}", self.uuid);
        let resumed = self.session.as_mut().map(|session| session.call(doing, &command));
        match resumed {
            Some(Ok(_)) => Ok(Some(since.elapsed())),
            // That connection is lost: another one.
            _ => {
                self.virsh.run(doing, &["resume", "--domain", self.uuid]).map(|_| Some(since.elapsed())).map_err(|e| {
                    Error::new(e.kind(), doing)
                        .because(e.to_string())
                        .remedy(format!("it is paused: virsh resume {}", self.uuid))
                })
            }
        }
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // The error that led here is the one to report.
        let _ = self.release();
    }
}
