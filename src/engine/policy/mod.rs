//! Policies: settings of a pool, of trees and of volumes, each inherited by what lies below, in one file.
//!
//! Policies belong to paths, not to files. The file is read when the pool is opened, and again when it was changed; one
//! that cannot be read changes nothing: the last good one stays in force, also over a restart.

mod file;
pub mod retention;
pub mod value;

use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::engine::io::Fs;
use crate::engine::store::DIR;
use crate::error::{Error, Kind, Result};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, RwLock};
use file::Stamp;
use value::{CloneName, Order, Pattern, Rate, Schedule, When};

pub use file::PATH;

/// Before the six letters of a hidden name.
const DRAFT: &[u8] = b".clonefs-";

/// What the pool itself is called among the paths.
pub const POOL: &str = ".";

/// Settings of one path. What is `None` is inherited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Policy {
    /// When volumes are deepened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deepen: Option<When>,
    /// Which blocks are copied first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// Volumes stay overlays: they are not deepened, also when asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_linked: Option<bool>,
    /// Files are neither deleted nor overwritten nor renamed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protect: Option<bool>,
    /// Limit of background copying; for the whole pool only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Name of a clone that was given none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_name: Option<CloneName>,
    /// Pattern that the names of new clones must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Pattern>,
    /// Snapshots that are taken and kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<Schedule>,
}

/// Names of the settings.
pub const KEYS: [&str; 8] = ["deepen", "order", "keep-linked", "protect", "rate", "clone-name", "names", "snapshots"];

impl Policy {
    /// What holds where `below` says more than `self`.
    fn refined_by(&self, below: &Policy) -> Policy {
        Policy {
            deepen: below.deepen.or(self.deepen),
            order: below.order.or(self.order),
            keep_linked: below.keep_linked.or(self.keep_linked),
            protect: below.protect.or(self.protect),
            rate: below.rate.or(self.rate),
            clone_name: below.clone_name.clone().or_else(|| self.clone_name.clone()),
            names: below.names.clone().or_else(|| self.names.clone()),
            snapshots: below.snapshots.clone().or_else(|| self.snapshots.clone()),
        }
    }
}

/// Policies by path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Set {
    /// Version of the file.
    format: u32,
    /// By path below the pool's root, which is `.`.
    pub policies: BTreeMap<String, Policy>,
}

/// What a door tells of the policies.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Listing {
    /// By path.
    pub policies: BTreeMap<String, Policy>,
    /// Why the file is not what is in force.
    pub trouble: Option<String>,
}

/// In a [`Patch`] for a directory that takes settings back: the path below it, of something that is gone, that they were
/// set for.
pub const BELOW: &str = "below";

/// A setting that holds at a path, and the path that it comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// Its value.
    pub value: serde_json::Value,
    /// Path that it was set for.
    pub from: String,
}

/// Settings to be changed: a value, or null to inherit again.
pub type Patch = BTreeMap<String, serde_json::Value>;

#[derive(Default)]
struct State {
    set: Arc<Set>,
    trouble: Option<String>,
    /// Of the file that this is; `None`: it is not known which.
    stamp: Option<Option<Stamp>>,
}

/// The policies of a pool that is being served.
pub struct Policies {
    fs: Arc<dyn Fs>,
    /// Held for a look or a change in memory, never for I/O.
    state: RwLock<State>,
    /// One change of the file at a time.
    changing: Mutex<()>,
    /// There are some; without, nothing is looked up.
    any: AtomicBool,
    protects: AtomicBool,
    /// Grows with each change of what is in force.
    version: AtomicU64,
}

/// The name of a path among the policies.
fn key(path: &Path) -> Result<String> {
    let bad = |why: &'static str| Error::new(Kind::Invalid, "use a policy").at(path).because(why);
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => {
                parts.push(name.to_str().ok_or_else(|| bad("a path with a policy must be UTF-8"))?)
            }
            Component::CurDir => {}
            _ => return Err(bad("it is no path below the pool's root")),
        }
    }
    Ok(if parts.is_empty() { POOL.to_owned() } else { parts.join("/") })
}

/// The pool, then each directory on the way, then the path itself.
fn lineage(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    std::iter::once(POOL).chain(ends.map(move |end| &path[..end]).filter(|part| *part != POOL))
}

impl Set {
    /// What is wrong with it beyond its form.
    fn check(&self) -> std::result::Result<(), String> {
        if self.format != file::FORMAT {
            return Err(format!("its format is {}, and this clonefs knows {}", self.format, file::FORMAT));
        }
        for (path, policy) in &self.policies {
            if key(Path::new(path)).ok().as_ref() != Some(path) {
                return Err(format!("{path:?} is no path below the pool's root, such as \"golden/base.img\" or \".\""));
            }
            if policy.rate.is_some() && path != POOL {
                return Err(format!("{path:?} has a rate, which can be set for the whole pool only, as \".\""));
            }
        }
        Ok(())
    }

    fn effective(&self, path: &str) -> Policy {
        let found = lineage(path).filter_map(|part| self.policies.get(part));
        found.fold(Policy::default(), |above, below| above.refined_by(below))
    }
}

impl Policies {
    /// The policies of a pool, as its file has them.
    pub fn open(fs: Arc<dyn Fs>, read_only: bool) -> Policies {
        let policies = Policies {
            fs,
            state: RwLock::default(),
            changing: Mutex::default(),
            any: AtomicBool::new(false),
            protects: AtomicBool::new(false),
            version: AtomicU64::new(0),
        };
        policies.refresh(read_only);
        policies
    }

    /// Looks whether the file was changed. Whether that changed what is in force.
    pub fn refresh(&self, read_only: bool) -> bool {
        let _one = self.changing.lock();
        let stamp = match file::stamp(self.fs.as_ref()) {
            Ok(stamp) => stamp,
            Err(e) => return self.stay(None, format!("{PATH}: {e}")),
        };
        let known = { self.state.read().stamp };
        if known == Some(stamp) {
            return false;
        }
        match file::load(self.fs.as_ref()) {
            Ok(set) => {
                if !read_only {
                    file::keep(self.fs.as_ref(), &set);
                }
                self.put(set, Some(stamp), None);
                true
            }
            Err(why) => self.stay(Some(stamp), why),
        }
    }

    /// The file cannot be read: what was in force stays so, at the start what was when it could be read last.
    fn stay(&self, stamp: Option<Option<Stamp>>, why: String) -> bool {
        let (known, first) = {
            let state = self.state.read();
            (state.set.clone(), state.stamp.is_none() && state.trouble.is_none())
        };
        if self.trouble().as_ref() != Some(&why) {
            tracing::error!("{why}");
        }
        let last = if first { file::last_good(self.fs.as_ref()) } else { None };
        self.put(last.unwrap_or_else(|| Set::clone(&known)), stamp, Some(why));
        first
    }

    fn put(&self, set: Set, stamp: Option<Option<Stamp>>, trouble: Option<String>) {
        self.any.store(!set.policies.is_empty(), Ordering::Release);
        let protects = set.policies.values().any(|policy| policy.protect == Some(true));
        self.protects.store(protects, Ordering::Release);
        *self.state.write() = State { set: Arc::new(set), trouble, stamp };
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    fn set_now(&self) -> Arc<Set> {
        self.state.read().set.clone()
    }

    /// A number that grows with each change.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    /// What holds at a path. A path that has no name among the policies has what its nearest directory has.
    pub fn at(&self, path: &Path) -> Policy {
        if !self.any.load(Ordering::Acquire) {
            return Policy::default();
        }
        let set = self.set_now();
        let mut named = Some(path);
        while let Some(path) = named {
            if let Ok(key) = key(path) {
                return set.effective(&key);
            }
            named = path.parent();
        }
        set.effective(POOL)
    }

    /// Whether any policy says when to deepen.
    pub fn any_deepen(&self) -> bool {
        self.any.load(Ordering::Acquire) && self.set_now().policies.values().any(|policy| policy.deepen.is_some())
    }

    /// Whether any file is protected.
    pub fn protect_some(&self) -> bool {
        self.protects.load(Ordering::Acquire)
    }

    /// Whether a file must be left as it is. What is being made under a hidden name is not there yet.
    pub fn is_protected(&self, path: &Path) -> bool {
        self.protect_some() && self.at(path).protect == Some(true) && !is_draft(path)
    }

    /// Whether something at a path, or below it, must be left where it is.
    pub fn protects_below(&self, path: &Path) -> bool {
        if !self.protect_some() {
            return false;
        }
        let below =
            |other: &String, policy: &Policy| policy.protect == Some(true) && Path::new(other).starts_with(path);
        self.is_protected(path) || self.set_now().policies.iter().any(|(other, policy)| below(other, policy))
    }

    /// All settings that hold at a path, each with the path that it comes from.
    ///
    /// # Errors
    /// [`Kind::Invalid`]: the path cannot have policies.
    pub fn explain(&self, path: &Path) -> Result<BTreeMap<String, Setting>> {
        let (key, set) = (key(path)?, self.set_now());
        let mut found = BTreeMap::new();
        for part in lineage(&key) {
            let Some(policy) = set.policies.get(part) else { continue };
            for (name, value) in fields(policy) {
                found.insert(name, Setting { value, from: part.to_owned() });
            }
        }
        Ok(found)
    }

    /// All policies, and what is wrong with the file.
    pub fn list(&self) -> Listing {
        let state = self.state.read();
        Listing { policies: state.set.policies.clone(), trouble: state.trouble.clone() }
    }

    /// Why the file is not what is in force.
    pub fn trouble(&self) -> Option<String> {
        self.state.read().trouble.clone()
    }

    /// Changes the settings of one path, durably. They are in force while `check` looks, which is given what the path had
    /// before and has now; if it fails, or they cannot be written, all is as it was.
    ///
    /// # Errors
    /// [`Kind::Invalid`]: an unknown setting, or a value that makes no sense. [`Kind::Damaged`]: the file was changed by
    /// hand and cannot be read; it is left as it is.
    pub fn change(&self, path: &Path, patch: &Patch, check: impl FnOnce(&Policy, &Policy) -> Result<()>) -> Result<()> {
        self.refresh(false);
        let _one = self.changing.lock();
        if let Some(why) = self.trouble() {
            return Err(Error::new(Kind::Damaged, "change a policy")
                .at(PATH)
                .because(why)
                .remedy("mend that file first"));
        }
        let key = key(path)?;
        if path.starts_with(DIR) {
            return Err(Error::new(Kind::Invalid, "set a policy for").at(path).because("it is no file of the tree"));
        }
        let invalid = |why: String| Error::new(Kind::Invalid, "set a policy for").at(&key).because(why);
        let mut set = Set::clone(&self.set_now());
        let before = set.effective(&key);
        let mut fields: serde_json::Map<String, serde_json::Value> =
            set.policies.get(&key).map(fields).unwrap_or_default().into_iter().collect();
        for (name, value) in patch {
            if !KEYS.contains(&name.as_str()) {
                return Err(invalid(format!("{name:?} is no setting; there are {}", KEYS.join(", "))));
            }
            match value.is_null() {
                true => fields.remove(name),
                false => fields.insert(name.clone(), value.clone()),
            };
        }
        let policy: Policy = serde_json::from_value(fields.into()).map_err(|e| invalid(e.to_string()))?;
        match policy == Policy::default() {
            true => set.policies.remove(&key),
            false => set.policies.insert(key.clone(), policy),
        };
        set.format = file::FORMAT;
        set.check().map_err(invalid)?;
        let (old, stamp) = {
            let state = self.state.read();
            (state.set.clone(), state.stamp)
        };
        let after = set.effective(&key);
        self.put(set.clone(), stamp, None);
        let done = check(&before, &after).and_then(|()| file::save(self.fs.as_ref(), &set));
        if let Err(error) = done {
            self.put(Set::clone(&old), stamp, None);
            return Err(error);
        }
        file::keep(self.fs.as_ref(), &set);
        self.put(set, file::stamp(self.fs.as_ref()).ok(), None);
        Ok(())
    }
}

/// Whether a path is, or lies below, `.NAME.clonefs-` and six letters: what `clonefs clone` gives its name to, or
/// removes, when it is done.
pub fn is_draft(path: &Path) -> bool {
    path.iter().any(|name| {
        let name = name.as_encoded_bytes();
        let ending = name.len().checked_sub(DRAFT.len() + 6).map(|at| &name[at..]);
        name.starts_with(b".") && ending.is_some_and(|ending| ending.starts_with(DRAFT))
    })
}

/// The settings that a policy has, as JSON.
fn fields(policy: &Policy) -> BTreeMap<String, serde_json::Value> {
    let value = serde_json::to_value(policy).unwrap_or_default();
    value.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests;
