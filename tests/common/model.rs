//! What a crash may leave of each volume and each name.

use std::collections::BTreeMap;

use super::ops::Name;

const SECTOR: usize = 512;

/// Number of a volume; the names of volumes change.
pub type Number = usize;

/// Versions of one volume.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Contents since the last acknowledged sync, that one first, the present one last.
    pub versions: Vec<Vec<u8>>,
    /// It was never acknowledged as durable: it may be empty, or not be there.
    pub fresh: bool,
    /// It was acknowledged with its name, and nobody has removed that since.
    pub must_exist: bool,
    /// What it was when it was made as a clone.
    pub base: Option<Vec<u8>>,
    /// It has had several names at a time.
    pub linked: bool,
    /// Which version was the present one when the last operation began.
    before: usize,
}

impl Volume {
    pub fn now(&self) -> &Vec<u8> {
        self.versions.last().expect("a volume has a version")
    }

    /// Notes a new version.
    pub fn push(&mut self, bytes: Vec<u8>) {
        self.versions.push(bytes);
    }

    /// Whether it can have these bytes after an operation that failed: each sector as before it or as after it.
    fn explains_failure(&self, got: &[u8], new: bool) -> Result<(), String> {
        let versions = self.versions[self.before..].to_vec();
        let fresh = self.fresh && new;
        Volume { versions, fresh, must_exist: false, base: None, linked: false, before: 0 }.explains(got)
    }

    /// Whether these can be its bytes: every sector and the size are those of some version.
    pub fn explains(&self, got: &[u8]) -> Result<(), String> {
        if self.versions.iter().any(|v| v == got) || self.fresh && got.is_empty() {
            return Ok(());
        }
        if !self.versions.iter().any(|v| v.len() == got.len()) {
            let sizes: Vec<usize> = self.versions.iter().map(Vec::len).collect();
            return Err(format!("its size is {}, and was {sizes:?}", got.len()));
        }
        for at in (0..got.len()).step_by(SECTOR) {
            let sector = &got[at..(at + SECTOR).min(got.len())];
            if !self.versions.iter().any(|v| same(v, at, sector)) {
                let what = if sector.iter().all(|b| *b == 0) { "zeros" } else { "bytes that it never had since" };
                return Err(format!("sector {} (block {}) holds {what}", at / SECTOR, at / 4096));
            }
        }
        Ok(())
    }
}

/// Whether `version` has `sector` at `at`; beyond its end it is zeros.
fn same(version: &[u8], at: usize, sector: &[u8]) -> bool {
    let there = version.get(at..).unwrap_or_default();
    let len = there.len().min(sector.len());
    there[..len] == sector[..len] && sector[len..].iter().all(|b| *b == 0)
}

/// All volumes and names.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub volumes: Vec<Volume>,
    /// What each name may stand for after a power loss, the present last; `None`: nothing.
    names: BTreeMap<Name, Vec<Option<Number>>>,
    /// The same when only the daemon dies.
    alive: BTreeMap<Name, Vec<Option<Number>>>,
    /// A group of clones that is being made: they are there together or not at all.
    pub group: Vec<Number>,
    /// Clones that were acknowledged: a daemon that dies does not take them along.
    acknowledged: usize,
    /// A call has failed: where it was a sync, what was not synced is not kept over the daemon's death either.
    pub forgiving: bool,
}

/// What was found.
pub type Found = BTreeMap<Name, Vec<u8>>;

impl Model {
    /// The volume of a name at present.
    pub fn get(&self, name: Name) -> Option<Number> {
        self.names.get(&name).and_then(|n| *n.last().expect("a name has a history"))
    }

    pub fn now(&self, name: Name) -> Option<&Vec<u8>> {
        self.get(name).map(|n| self.volumes[n].now())
    }

    pub fn present(&self) -> Vec<Name> {
        self.names.keys().copied().filter(|n| self.get(*n).is_some()).collect()
    }

    fn name(&mut self, name: Name, to: Option<Number>) {
        for names in [&mut self.names, &mut self.alive] {
            names.entry(name).or_insert_with(|| vec![None]).push(to);
        }
    }

    /// A new volume, with versions that are another's at the moment of a clone.
    pub fn create(&mut self, name: Name, versions: Vec<Vec<u8>>) -> Number {
        let number = self.volumes.len();
        let before = versions.len() - 1;
        self.volumes.push(Volume { versions, fresh: true, must_exist: false, base: None, linked: false, before });
        self.name(name, Some(number));
        number
    }

    pub fn link(&mut self, from: Name, to: Name) {
        let number = self.get(from);
        number.inspect(|number| self.volumes[*number].linked = true);
        self.name(to, number);
    }

    /// Whether two names are of one volume.
    pub fn same(&self, one: Name, other: Name) -> bool {
        self.get(one).is_some() && self.get(one) == self.get(other)
    }

    pub fn unlink(&mut self, name: Name) {
        if let Some(number) = self.get(name) {
            self.volumes[number].must_exist = false;
        }
        self.name(name, None);
    }

    pub fn rename(&mut self, from: Name, to: Name) {
        let moved = self.get(from);
        if let Some(there) = self.get(to) {
            self.volumes[there].must_exist = false;
        }
        self.name(to, moved);
        self.name(from, None);
    }

    /// A sync was acknowledged. With `named` it makes the file's names durable as well.
    pub fn synced(&mut self, number: Number, named: bool) {
        let volume = &mut self.volumes[number];
        volume.versions.drain(..volume.versions.len() - 1);
        volume.before = 0;
        volume.fresh = false;
        if !named {
            return;
        }
        let mut there = false;
        for history in self.names.values_mut() {
            if history.last() == Some(&Some(number)) {
                *history = vec![Some(number)];
                there = true;
            } else {
                history.retain(|n| *n != Some(number));
            }
        }
        self.volumes[number].must_exist = there;
    }

    /// A sync of the directory was acknowledged.
    pub fn synced_names(&mut self) {
        for history in self.names.values_mut() {
            history.drain(..history.len() - 1);
            if let Some(number) = history[0] {
                self.volumes[number].must_exist = !self.volumes[number].fresh;
            }
        }
    }

    /// An operation was acknowledged.
    pub fn acknowledged(&mut self) {
        self.group.clear();
        self.acknowledged = self.volumes.len();
        for history in self.alive.values_mut() {
            history.drain(..history.len() - 1);
        }
        for volume in &mut self.volumes {
            volume.before = volume.versions.len() - 1;
        }
    }

    /// After an operation that failed: what is found must be what was before it or what it would have made, and is
    /// from now on what there is.
    pub fn failed(&mut self, found: &Found) -> Result<(), String> {
        self.whole_group(found)?;
        if let Some(name) = found.keys().find(|n| !self.alive.contains_key(n)) {
            return Err(format!("v{name} was never made"));
        }
        let mut chosen = Vec::new();
        for (name, history) in &self.alive {
            let got = found.get(name);
            let fits = |number: &Option<Number>| match (number, got) {
                (None, None) => true,
                (Some(number), Some(got)) => {
                    self.volumes[*number].explains_failure(got, *number >= self.acknowledged).is_ok()
                }
                _ => false,
            };
            let Some(number) = history.iter().rev().find(|n| fits(n)) else {
                return Err(format!("v{name} ({:?} bytes) is neither as before nor as after", got.map(Vec::len)));
            };
            chosen.push((*name, *number));
        }
        for (name, number) in chosen {
            if self.alive[&name].last() != Some(&number) {
                self.name(name, number);
            }
            if let (Some(number), Some(got)) = (number, found.get(&name)) {
                self.volumes[number].push(got.clone());
            }
        }
        self.acknowledged();
        Ok(())
    }

    /// Names that can stand for nothing but this volume.
    pub fn only_names_of(&self, number: Number) -> Vec<Name> {
        self.names.iter().filter(|(_, h)| h.iter().all(|n| *n == Some(number))).map(|(n, _)| *n).collect()
    }

    /// Whether a crash may leave this.
    pub fn explains(&self, found: &Found, killed: bool) -> Result<(), String> {
        self.whole_group(found)?;
        let names = if killed { &self.alive } else { &self.names };
        if let Some(name) = found.keys().find(|n| !names.contains_key(n)) {
            return Err(format!("v{name} was never made"));
        }
        for (name, history) in names {
            self.explains_name(*name, history, found.get(name), killed)?;
        }
        self.one_name_each(names, found)?;
        for (number, volume) in self.volumes.iter().enumerate().filter(|(_, v)| v.must_exist) {
            let mut places = names.iter().filter(|(_, h)| h.contains(&Some(number)));
            if !places.any(|(n, _)| found.get(n).is_some_and(|got| volume.explains(got).is_ok())) {
                return Err(format!("volume {number}, which was durable, is nowhere"));
            }
        }
        Ok(())
    }

    /// A rename leaves one name: no volume is at two places, unless it was given two.
    fn one_name_each(&self, names: &BTreeMap<Name, Vec<Option<Number>>>, found: &Found) -> Result<(), String> {
        let mut places: BTreeMap<Number, Name> = BTreeMap::new();
        for (name, history) in names.iter().filter(|(name, _)| found.contains_key(name)) {
            let mut numbers: Vec<Number> = history.iter().flatten().copied().collect();
            numbers.dedup();
            let [number] = numbers[..] else { continue };
            if !self.volumes[number].linked
                && let Some(other) = places.insert(number, *name)
            {
                return Err(format!("v{other} was renamed to v{name}, or the other way, and both are there"));
            }
        }
        Ok(())
    }

    /// Of a group that is being made all or none are clones; the others are empty files, or not there.
    fn whole_group(&self, found: &Found) -> Result<(), String> {
        let is_there = |number: &&Number| {
            let place = self.names.iter().find(|(_, history)| history.last() == Some(&Some(**number)));
            place.is_some_and(|(name, _)| found.get(name).is_some_and(|bytes| !bytes.is_empty()))
        };
        match self.group.iter().filter(is_there).count() {
            there if there == 0 || there == self.group.len() => Ok(()),
            there => Err(format!("{there} of a group of {} are there", self.group.len())),
        }
    }

    fn explains_name(
        &self,
        name: Name,
        history: &[Option<Number>],
        got: Option<&Vec<u8>>,
        killed: bool,
    ) -> Result<(), String> {
        let Some(got) = got else {
            return if history.contains(&None) { Ok(()) } else { Err(format!("v{name} is gone")) };
        };
        let mut why = format!("v{name} is there");
        for number in history.iter().flatten() {
            let volume = &self.volumes[*number];
            // The death of the daemon alone costs nothing that was acknowledged, synced or not (R16).
            let kept = || volume.explains_failure(got, *number >= self.acknowledged);
            match if killed && !self.forgiving { kept() } else { volume.explains(got) } {
                Ok(()) => return Ok(()),
                Err(e) => why = format!("v{name}: {e}"),
            }
        }
        Err(why)
    }
}
