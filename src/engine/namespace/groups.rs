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
use crate::engine::pool::open_files;
use crate::engine::pool::{CloneOptions, Member};
use crate::engine::volume::Volume;
use crate::error::{Error, Kind, Result};
use crate::protocol::GroupRequest;

/// A group that nobody has added to for so long is forgotten.
const LIFE: Duration = Duration::from_secs(3600);
/// A group of one's own that nobody has added to for so long makes room for another one.
const IDLE: Duration = Duration::from_secs(60);
/// Shortest and longest name of a group: it must not be guessed, and it is kept.
const NAME: std::ops::RangeInclusive<usize> = 16..=255;

/// What is kept at most. A member keeps up to two files open until its group is carried out.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Groups and members of one user.
    user: Held,
    /// Those of all users but administrators.
    users: Held,
    /// All.
    all: Held,
}

/// So many groups, with so many members together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    groups: usize,
    members: usize,
}

impl Limits {
    /// Of a daemon that may have so many files open.
    fn new(open_files: usize) -> Limits {
        let held = |groups, share: usize, most: usize| Held { groups, members: share.clamp(64, most) };
        Limits {
            user: held(16, open_files / 8, 1 << 16),
            users: held(256, open_files / 4, 1 << 18),
            all: held(512, open_files * 2 / 5, 1 << 19),
        }
    }
}

/// The groups that were begun.
pub struct Groups {
    by_name: HashMap<String, Group>,
    limits: Limits,
}

impl Default for Groups {
    fn default() -> Groups {
        Groups { by_name: HashMap::new(), limits: Limits::new(open_files()) }
    }
}

/// Requests that wait for each other.
pub struct Group {
    uid: u32,
    administrator: bool,
    used: Instant,
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

impl Groups {
    /// The group of this name, begun if there is none, with room for one more member.
    fn with_room(&mut self, name: String, caller: &Caller, now: Instant) -> Result<&mut Group> {
        let (uid, administrator) = (caller.uid, caller.is_administrator());
        let begins = match self.by_name.get(&name) {
            Some(group) if group.uid != uid => return Err(errno("join another user's group", libc::EPERM)),
            Some(_) => false,
            None => true,
        };
        if begins {
            self.by_name.retain(|_, group| now.duration_since(group.used) < LIFE);
        }
        while let Err(error) = self.check_room(uid, administrator, begins) {
            // What its user has left lying about goes first; what others have does not go.
            let own = self.by_name.iter().filter(|(other, group)| group.uid == uid && **other != name);
            let idle = own.filter(|(_, group)| now.duration_since(group.used) >= IDLE);
            let oldest = idle.min_by_key(|(_, group)| group.used).map(|(name, _)| name.clone());
            self.by_name.remove(&oldest.ok_or(error)?);
        }
        let fresh =
            Group { uid, administrator, used: now, clones: Vec::new(), snapshots: Vec::new(), name: String::new() };
        let group = self.by_name.entry(name).or_insert(fresh);
        group.used = now;
        Ok(group)
    }

    fn check_room(&self, uid: u32, administrator: bool, begins: bool) -> Result<()> {
        let held = |counts: &dyn Fn(&Group) -> bool| {
            let count =
                |held: Held, group: &Group| Held { groups: held.groups + 1, members: held.members + group.len() };
            self.by_name.values().filter(|group| counts(group)).fold(Held::default(), count)
        };
        let check = |who: &str, held: Held, most: Held| {
            if held.members < most.members && (!begins || held.groups < most.groups) {
                return Ok(());
            }
            let why = format!(
                "{} requests in {} groups {who} wait to be carried out, of at most {} in {}",
                held.members, held.groups, most.members, most.groups
            );
            let remedy = "clone fewer files in one group, or wait until the others are carried out";
            Err(Error::new(Kind::TooMany, "join a group").because(why).remedy(remedy))
        };
        if !administrator {
            check("of this user", held(&|group| group.uid == uid), self.limits.user)?;
            check("of ordinary users", held(&|group| !group.administrator), self.limits.users)?;
        }
        check("of all users", held(&|_| true), self.limits.all)
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
        if !NAME.contains(&name.len()) {
            return Err(bad_request("join a group", "its name is too short or too long"));
        }
        add(self.groups.lock().with_room(name, caller, Instant::now())?)
    }

    /// Carries out all requests of a group, or none. The group is no more after that.
    pub(super) fn carry_out_group(&self, value: &[u8], caller: &Caller) -> Result<()> {
        let request: GroupRequest = serde_json::from_slice(value).map_err(|e| bad_request("carry out a group", e))?;
        let group = {
            let mut groups = self.groups.lock();
            if groups.by_name.get(&request.group).is_some_and(|group| group.uid != caller.uid) {
                return Err(errno("carry out another user's group", libc::EPERM));
            }
            groups.by_name.remove(&request.group)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32) -> Caller {
        Caller { uid, gid: uid, pid: 0 }
    }

    fn named(user: u32, number: usize) -> String {
        format!("group {number} of user {user}, which nobody guesses")
    }

    fn groups() -> Groups {
        let held = |groups, members| Held { groups, members };
        Groups { by_name: HashMap::new(), limits: Limits { user: held(2, 4), users: held(6, 12), all: held(8, 20) } }
    }

    #[test]
    fn one_user_holds_so_much_and_takes_nothing_from_others() {
        let mut groups = groups();
        let now = Instant::now();
        let mut join = |uid, number, now| groups.with_room(named(uid, number), &user(uid), now).map(drop);
        join(70001, 0, now).unwrap();
        join(70002, 0, now).unwrap();
        join(70002, 1, now).unwrap();
        let error = join(70002, 2, now).unwrap_err();
        assert_eq!((error.kind(), error.errno()), (Kind::TooMany, libc::ENOBUFS));
        assert!(error.to_string().contains("of at most 4 in 2"), "{error}");
        // One that is there can be joined still, and one's own that was left is what makes room.
        join(70002, 1, now + IDLE).unwrap();
        join(70002, 2, now + IDLE).unwrap();
        assert!(join(70002, 0, now + IDLE).is_err(), "it was begun anew: it had gone");
        // Many users together leave room for the administrator.
        for uid in 70003..70006 {
            join(uid, 0, now).unwrap();
        }
        assert_eq!(join(70007, 0, now).unwrap_err().kind(), Kind::TooMany);
        join(0, 0, now).unwrap();
        join(0, 1, now).unwrap();
        assert_eq!(join(0, 2, now).unwrap_err().kind(), Kind::TooMany);
        assert!(join(70001, 0, now).is_ok(), "what was begun goes on");
        // What nobody has come back to is forgotten, whoever it is of.
        join(70007, 0, now + LIFE + IDLE).unwrap();
        assert_eq!(groups.by_name.len(), 1);
    }

    #[test]
    fn shares_follow_from_what_the_daemon_may_open() {
        let limits = Limits::new(20_000);
        assert_eq!((limits.user.members, limits.users.members, limits.all.members), (2_500, 5_000, 8_000));
        assert_eq!(Limits::new(64).user.members, 64);
        assert_eq!(Limits::new(1 << 30).all.members, 1 << 19);
    }
}
