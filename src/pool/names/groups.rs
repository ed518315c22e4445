//! Groups: requests that are kept until all of them are there, and carried out as of one moment.
//!
//! Each request came through the file that it is about, so the kernel has checked the caller's rights to that one. Only
//! the same user can carry a group out, and only one who knows its name.

use std::collections::HashMap;
use std::path::PathBuf;
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
#[derive(Default)]
pub struct Group {
    uid: u32,
    used: Option<Instant>,
    /// With the node of each target.
    clones: Vec<(u64, Member)>,
    /// Volumes of which snapshots are to be made, where they are, and what the snapshots are called.
    snapshots: Vec<(Arc<Volume>, PathBuf)>,
    name: String,
}

impl Group {
    fn len(&self) -> usize {
        self.clones.len() + self.snapshots.len()
    }
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

    /// Keeps the request to make a snapshot of a volume.
    pub(super) fn join_snapshots(
        &self,
        group: String,
        volume: Arc<Volume>,
        path: PathBuf,
        name: String,
        caller: &Caller,
    ) -> Result<()> {
        self.with_group(group, caller, |group| {
            if !group.snapshots.is_empty() && group.name != name {
                return Err(bad_request("join a group", "the snapshots of a group have one name"));
            }
            group.snapshots.push((volume, path));
            group.name = name;
            Ok(())
        })
    }

    fn with_group(&self, name: String, caller: &Caller, add: impl FnOnce(&mut Group) -> Result<()>) -> Result<()> {
        if name.len() < SHORTEST {
            return Err(bad_request("join a group", "its name is too short"));
        }
        let mut groups = self.groups.lock();
        groups.retain(|_, group| group.used.is_some_and(|used| used.elapsed() < LIFE));
        if !groups.contains_key(&name) && groups.len() >= MOST_GROUPS {
            let oldest = groups.iter().min_by_key(|(_, group)| group.used).map(|(name, _)| name.clone());
            oldest.map(|name| groups.remove(&name));
        }
        let fresh = || Group { uid: caller.uid, used: Some(Instant::now()), ..Group::default() };
        let group = groups.entry(name).or_insert_with(fresh);
        if group.uid != caller.uid {
            return Err(errno("join another user's group", libc::EPERM));
        }
        if group.len() >= MOST_MEMBERS {
            return Err(bad_request("join a group", "it has too many members"));
        }
        group.used = Some(Instant::now());
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
        let group = group.filter(|group| group.len() == request.members);
        let group = group.ok_or_else(|| bad_request("carry out a group", "some of its members are not known"))?;
        if !group.snapshots.is_empty() {
            if !group.clones.is_empty() {
                return Err(bad_request("carry out a group", "it has both clones and snapshots"));
            }
            return self.pool.create_snapshots(&group.snapshots, &group.name, None);
        }
        for (node, member) in &group.clones {
            self.drop_privileges(*node, &member.target, caller)?;
        }
        let members: Vec<Member> = group.clones.iter().map(|(_, member)| member.clone()).collect();
        self.pool.clone_group(&members)?;
        group.clones.iter().try_for_each(|(node, member)| self.grown(*node, &member.target))
    }
}
