//! Groups: requests that are kept until all of them are there, and carried out as of one moment.
//!
//! Each request came through the file that it is about, so the kernel has checked the caller's rights to that one. Only
//! the same user can carry a group out, and only one who knows its name.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::caller::Caller;
use super::doors::bad_request;
use super::{NameTree, errno};
use crate::door::GroupRequest;
use crate::error::{Error, Kind, Result};
use crate::pool::{CloneOptions, Member};
use crate::volume::Volume;

/// A group that nobody has added to for so long is forgotten.
const LIFE: Duration = Duration::from_secs(3600);
/// Groups kept at most; the one that was used longest ago goes first.
const MOST_GROUPS: usize = 64;
/// Members of one group at most.
const MOST_MEMBERS: usize = 1 << 20;
/// Shortest name of a group: it must not be guessed.
const SHORTEST: usize = 16;

/// The groups by name.
pub type Groups = HashMap<String, Group>;

/// Requests that wait for each other.
pub struct Group {
    uid: u32,
    used: Instant,
    /// With the node of each target.
    clones: Vec<(u64, Member)>,
}

impl NameTree {
    /// Keeps the request to clone `source` into `target`.
    pub(super) fn join_group(
        &self,
        name: String,
        source: &Arc<Volume>,
        target: u64,
        options: CloneOptions,
        caller: &Caller,
    ) -> Result<()> {
        let member = Member { source: source.clone(), target: self.volume(target)?, options };
        if member.target.size()? != 0 {
            return Err(Error::new(Kind::Exists, "clone into")
                .at(member.target.path())
                .because("the destination is not empty"));
        }
        self.with_group(name, caller, |group| {
            group.clones.push((target, member));
            Ok(())
        })
    }

    fn with_group(&self, name: String, caller: &Caller, add: impl FnOnce(&mut Group) -> Result<()>) -> Result<()> {
        if name.len() < SHORTEST {
            return Err(bad_request("join a group", "its name is too short"));
        }
        let mut groups = self.groups.lock();
        groups.retain(|_, group| group.used.elapsed() < LIFE);
        if !groups.contains_key(&name) && groups.len() >= MOST_GROUPS {
            let oldest = groups.iter().min_by_key(|(_, group)| group.used).map(|(name, _)| name.clone());
            oldest.map(|name| groups.remove(&name));
        }
        let fresh = || Group { uid: caller.uid, used: Instant::now(), clones: Vec::new() };
        let group = groups.entry(name).or_insert_with(fresh);
        if group.uid != caller.uid {
            return Err(errno("join another user's group", libc::EPERM));
        }
        if group.clones.len() >= MOST_MEMBERS {
            return Err(bad_request("join a group", "it has too many members"));
        }
        group.used = Instant::now();
        add(group)
    }

    /// Carries out all requests of a group, or none. The group is no more after that.
    pub(super) fn carry_out_group(&self, value: &[u8], caller: &Caller) -> Result<()> {
        let request: GroupRequest = serde_json::from_slice(value).map_err(|e| bad_request("carry out a group", e))?;
        let group = {
            let mut groups = self.groups.lock();
            if groups.get(&request.group).is_some_and(|group| group.uid != caller.uid) {
                return Err(errno("carry out another user's group", libc::EPERM));
            }
            groups.remove(&request.group)
        };
        let group = group.filter(|group| group.clones.len() == request.members);
        let group = group.ok_or_else(|| bad_request("carry out a group", "some of its members are not known"))?;
        let _sharing = self.sharing.read();
        for (node, member) in &group.clones {
            self.drop_privileges(*node, &member.target, caller)?;
        }
        let members: Vec<Member> = group.clones.iter().map(|(_, member)| member.clone()).collect();
        self.pool.clone_group(&members)?;
        group.clones.iter().try_for_each(|(node, member)| self.grown(*node, &member.target))
    }
}
