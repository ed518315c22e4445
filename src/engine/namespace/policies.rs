//! Policies as names and files feel them: what is protected stays, and the doors that policies are read and set through.

use std::path::{Path, PathBuf};

use super::caller::Caller;
use super::doors::{administrators_only, bad_request, json};
use super::{NameTree, errno, stale};
use crate::engine::events::{Event, What};
use crate::engine::policy::{BELOW, Patch, Policy};
use crate::error::{Error, Kind, Result};

fn protected(operation: &'static str, path: &Path) -> Error {
    Error::new(Kind::Permission, operation)
        .at(path)
        .because("it is protected by a policy")
        .remedy("clonefs policy get PATH says by which; clonefs policy unset takes it off")
}

impl NameTree {
    /// Fails if the file at `path` must be left as it is.
    pub(super) fn check_free(&self, operation: &'static str, path: &Path) -> Result<()> {
        if self.pool.policies().is_protected(path) { Err(self.refuse(operation, path)) } else { Ok(()) }
    }

    /// Fails if something at `path`, or below it, must be left where it is.
    pub(super) fn check_free_below(&self, operation: &'static str, path: &Path) -> Result<()> {
        if self.pool.policies().protects_below(path) { Err(self.refuse(operation, path)) } else { Ok(()) }
    }

    /// Fails if a file must be left as it is under any of its names that are known.
    pub(super) fn check_file_free(&self, operation: &'static str, id: u64) -> Result<()> {
        self.protected_name(id).map_or(Ok(()), |path| Err(self.refuse(operation, &path)))
    }

    /// As [`NameTree::check_file_free`], where whoever called tells of it.
    pub(super) fn check_volume_free(&self, operation: &'static str, id: u64) -> Result<()> {
        self.protected_name(id).map_or(Ok(()), |path| Err(protected(operation, &path)))
    }

    fn protected_name(&self, id: u64) -> Option<PathBuf> {
        let policies = self.pool.policies();
        if !policies.protect_some() {
            return None;
        }
        let paths = self.table.lock().paths(id);
        paths.into_iter().find(|path| policies.is_protected(path))
    }

    fn refuse(&self, operation: &'static str, path: &Path) -> Error {
        let error = protected(operation, path);
        self.pool.events().tell(Event::new(What::Refused, path).because(error.to_string()));
        error
    }

    /// The settings that hold for a node.
    pub(super) fn get_policy(&self, id: u64) -> Result<Vec<u8>> {
        json(&self.pool.policies().explain(&self.path(id)?)?)
    }

    /// Changes the settings of a node's path.
    pub(super) fn set_policy(&self, id: u64, value: &[u8], caller: &Caller) -> Result<()> {
        administrators_only("set a policy", caller)?;
        let mut patch: Patch = serde_json::from_slice(value).map_err(|e| bad_request("set a policy", e))?;
        let mut path = self.path(id).map_err(|_| stale())?;
        if let Some(below) = patch.remove(BELOW) {
            let below = below.as_str().filter(|_| patch.values().all(serde_json::Value::is_null));
            path.push(below.ok_or_else(|| bad_request("set a policy", "there is no such file"))?);
        }
        // It is in force by now: whoever opens a file from here on is refused, and who has it open is seen.
        let check = |before: &Policy, now: &Policy| {
            let begins = now.protect == Some(true) && before.protect != Some(true);
            if begins { self.check_nobody_writes(&path) } else { Ok(()) }
        };
        self.pool.change_policy(&path, &patch, check)?;
        let text = String::from_utf8_lossy(value).into_owned();
        self.pool.events().tell(Event::new(What::Changed, &path).because(format!("policy: {text}")));
        Ok(())
    }

    /// Whoever has a file open for writing could go on to write what is to be protected.
    fn check_nobody_writes(&self, path: &Path) -> Result<()> {
        let open = {
            let table = self.table.lock();
            let written = table.open_for_writing();
            written.into_iter().flat_map(|id| table.paths(id)).find(|open| open.starts_with(path))
        };
        match open {
            None => self.pool.check_nobody_writes_past(path, "protect"),
            Some(open) => Err(Error::new(Kind::Busy, "protect")
                .at(open)
                .because("it is open for writing")
                .remedy("close it first: shut the machine down that uses it")),
        }
    }

    /// Fails if a volume is to stay an overlay.
    pub(super) fn check_may_deepen(&self, id: u64) -> Result<()> {
        let path = self.path(id)?;
        if self.pool.policies().at(&path).keep_linked != Some(true) {
            return Ok(());
        }
        Err(errno("deepen", libc::EPERM)
            .at(path)
            .remedy("a policy keeps it linked: clonefs policy unset PATH keep-linked"))
    }
}
