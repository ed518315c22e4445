//! All volumes and frozen layers of a pool in memory, and the file they are checkpointed to.
//!
//! The checkpoint `catalogue` is lines of text, each `CRC32C JSON`: a header, then one record a line. A line that does
//! not verify costs that one record, not the pool.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;

use serde::{Deserialize, Serialize};

use super::record::{Change, Deepening, LayerRecord, Snapshot, VolumeRecord};
use crate::units::Id;

/// The catalogue in memory. Counts of heirs are derived, never stored.
#[derive(Debug, Default, Clone)]
pub struct Catalogue {
    volumes: HashMap<Id, VolumeRecord>,
    layers: HashMap<Id, LayerRecord>,
    /// For each layer, the layers and volumes that read from it.
    heirs: HashMap<Id, HashSet<Id>>,
    /// Layers that nothing reads from.
    unread: HashSet<Id>,
    /// Layers whose one heir is a layer.
    merging: HashSet<Id>,
    /// Volumes to be deepened where the pool deepens by itself.
    usual: HashSet<Id>,
    /// Volumes to be deepened because the user said so.
    asked: HashSet<Id>,
    /// How many records name a pair of files. More than one is damage.
    files: HashMap<Id, usize>,
    /// Snapshots by the path of their volume, then by name.
    snapshots: BTreeMap<String, BTreeMap<String, Id>>,
    /// How many these are.
    snapshot_count: usize,
}

impl Catalogue {
    /// A volume's record.
    pub fn volume(&self, id: Id) -> Option<&VolumeRecord> {
        self.volumes.get(&id)
    }

    /// A frozen layer's record.
    pub fn layer(&self, id: Id) -> Option<&LayerRecord> {
        self.layers.get(&id)
    }

    /// All volumes.
    pub fn volumes(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.volumes.values()
    }

    /// All frozen layers.
    pub fn layers(&self) -> impl Iterator<Item = &LayerRecord> {
        self.layers.values()
    }

    /// How many volumes there are.
    pub fn volume_count(&self) -> usize {
        self.volumes.len()
    }

    /// How many frozen layers there are.
    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// Layers and volumes that read from this layer directly.
    pub fn heirs(&self, layer: Id) -> impl Iterator<Item = Id> {
        self.heirs.get(&layer).into_iter().flatten().copied()
    }

    /// How many they are.
    pub fn heir_count(&self, layer: Id) -> usize {
        self.heirs.get(&layer).map_or(0, HashSet::len)
    }

    /// Layers that nothing reads from.
    pub fn unread_layers(&self) -> impl Iterator<Item = &LayerRecord> {
        self.unread.iter().filter_map(|id| self.layers.get(id))
    }

    /// Layers that are the one heir of another layer.
    pub fn single_heirs(&self) -> impl Iterator<Item = &LayerRecord> {
        let heirs = self.merging.iter().filter_map(|parent| self.heirs.get(parent)?.iter().next());
        heirs.filter_map(|heir| self.layers.get(heir))
    }

    /// Volumes that are to be deepened: those that the user named, and with `usual` those that nothing was said about.
    pub fn to_deepen(&self, usual: bool) -> impl Iterator<Item = &VolumeRecord> {
        let usual = usual.then_some(&self.usual).into_iter().flatten();
        self.asked.iter().chain(usual).filter_map(|id| self.volumes.get(id))
    }

    /// Whether a record names the files called `file`.
    pub fn names_file(&self, file: Id) -> bool {
        self.files.contains_key(&file)
    }

    /// The snapshot of this name of the volume at this path.
    pub fn snapshot(&self, of: &str, name: &str) -> Option<&VolumeRecord> {
        self.snapshots.get(of).and_then(|names| names.get(name)).and_then(|id| self.volumes.get(id))
    }

    /// All snapshots of the volume at this path, by name.
    pub fn snapshots_of(&self, of: &str) -> impl Iterator<Item = &VolumeRecord> {
        self.snapshots.get(of).into_iter().flat_map(BTreeMap::values).filter_map(|id| self.volumes.get(id))
    }

    /// All snapshots of volumes below a directory (the root: an empty path), by path and name.
    pub fn snapshots_below(&self, directory: &str) -> impl Iterator<Item = &VolumeRecord> {
        let from = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        let below = self.snapshots.range(from.clone()..).take_while(move |(of, _)| of.starts_with(&from));
        below.flat_map(|(_, names)| names.values()).filter_map(|id| self.volumes.get(id))
    }

    /// What there is in a directory (the root: an empty path): its volumes' snapshots, and the names of directories in
    /// which there are more. Takes no longer for what lies deeper.
    pub fn snapshots_in(&self, directory: &str) -> (Vec<&VolumeRecord>, Vec<String>) {
        let from = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        let (mut records, mut directories) = (Vec::new(), Vec::new());
        let mut next = Bound::Included(from.clone());
        while let Some((of, names)) = self.snapshots.range((next, Bound::Unbounded)).next() {
            let Some(below) = of.strip_prefix(&from) else { break };
            next = match below.split_once('/') {
                // All that begins with the name and '/' is passed over: '0' follows that.
                Some((name, _)) => {
                    directories.push(name.to_owned());
                    Bound::Included(format!("{from}{name}0"))
                }
                None => {
                    records.extend(names.values().filter_map(|id| self.volumes.get(id)));
                    Bound::Excluded(of.clone())
                }
            };
        }
        (records, directories)
    }

    /// Whether there is any snapshot.
    pub fn has_snapshots(&self) -> bool {
        !self.snapshots.is_empty()
    }

    /// How many there are.
    pub fn snapshot_count(&self) -> usize {
        self.snapshot_count
    }

    fn name_snapshot(&mut self, old: Option<&VolumeRecord>, new: Option<(Id, Snapshot)>) {
        if let Some((id, old)) = old.and_then(|record| Some((record.id, record.snapshot.as_ref()?)))
            && let Some(names) = self.snapshots.get_mut(&old.of)
            && names.get(&old.name) == Some(&id)
        {
            names.remove(&old.name);
            self.snapshot_count -= 1;
            if names.is_empty() {
                self.snapshots.remove(&old.of);
            }
        }
        if let Some((id, new)) = new {
            let names = self.snapshots.entry(new.of).or_default();
            self.snapshot_count += usize::from(names.insert(new.name, id).is_none());
        }
    }

    /// Applies one change. Takes the same time however many records there are.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Volume(record) => {
                let (id, parent) = (record.id, record.parent);
                let named = matches!(record.deepening, Deepening::Forced | Deepening::Physical);
                set(&mut self.asked, id, !record.paused && named);
                set(&mut self.usual, id, !record.paused && record.deepening == Deepening::Pool);
                self.name_file(record.file);
                let snapshot = record.snapshot.clone().map(|snapshot| (id, snapshot));
                let old = self.volumes.insert(id, record);
                self.forget_file(old.as_ref().map(|r| r.file));
                self.name_snapshot(old.as_ref(), snapshot);
                self.reparent(id, old.and_then(|r| r.parent), parent);
            }
            Change::Layer(record) => {
                let (id, parent) = (record.id, record.parent);
                self.name_file(record.file);
                let old = self.layers.insert(id, record);
                self.forget_file(old.as_ref().map(|r| r.file));
                self.reparent(id, old.and_then(|r| r.parent), parent);
                self.index(id);
            }
            Change::DropVolume(id) => {
                self.asked.remove(&id);
                self.usual.remove(&id);
                let old = self.volumes.remove(&id);
                self.forget_file(old.as_ref().map(|r| r.file));
                self.name_snapshot(old.as_ref(), None);
                self.reparent(id, old.and_then(|r| r.parent), None);
            }
            Change::DropLayer(id) => {
                let old = self.layers.remove(&id);
                self.forget_file(old.as_ref().map(|r| r.file));
                self.reparent(id, old.and_then(|r| r.parent), None);
                self.index(id);
            }
        }
    }

    fn name_file(&mut self, file: Id) {
        *self.files.entry(file).or_default() += 1;
    }

    fn forget_file(&mut self, file: Option<Id>) {
        let Some(file) = file else { return };
        if let Some(count) = self.files.get_mut(&file) {
            *count -= 1;
            if *count == 0 {
                self.files.remove(&file);
            }
        }
    }

    /// Puts a layer into the sets that it belongs to.
    fn index(&mut self, layer: Id) {
        let exists = self.layers.contains_key(&layer);
        let mut heirs = self.heirs.get(&layer).into_iter().flatten();
        let (first, second) = (heirs.next(), heirs.next());
        set(&mut self.unread, layer, exists && first.is_none());
        let single = second.is_none() && first.is_some_and(|heir| self.layers.contains_key(heir));
        set(&mut self.merging, layer, exists && single);
    }

    fn reparent(&mut self, heir: Id, old: Option<Id>, new: Option<Id>) {
        if let Some(old) = old.filter(|_| old != new)
            && let Some(heirs) = self.heirs.get_mut(&old)
        {
            heirs.remove(&heir);
            if heirs.is_empty() {
                self.heirs.remove(&old);
            }
        }
        if let Some(new) = new {
            self.heirs.entry(new).or_default().insert(heir);
        }
        for layer in [old, new].into_iter().flatten() {
            self.index(layer);
        }
    }
}

/// Adds or removes an id.
fn set(ids: &mut HashSet<Id>, id: Id, member: bool) {
    if member {
        ids.insert(id);
    } else {
        ids.remove(&id);
    }
}

/// First line of a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    /// Always `clonefs catalogue`.
    file: String,
    format: u32,
    generation: u64,
    records: u64,
}

/// What a checkpoint holds.
#[derive(Debug, Default)]
pub struct Checkpoint {
    /// Grows by one with each checkpoint; the journal that follows has the same.
    pub generation: u64,
    /// The records.
    pub catalogue: Catalogue,
    /// Lines that do not verify, with what is wrong. Not empty: some volumes are not known.
    pub damage: Vec<String>,
}

fn line(text: &str) -> String {
    format!("{:08x} {text}\n", crc32c::crc32c(text.as_bytes()))
}

/// Writes a checkpoint.
pub fn encode(catalogue: &Catalogue, generation: u64, format: u32) -> serde_json::Result<Vec<u8>> {
    let records = (catalogue.volumes.len() + catalogue.layers.len()) as u64;
    let header = Header { file: "clonefs catalogue".into(), format, generation, records };
    let mut text = line(&serde_json::to_string(&header)?);
    for layer in catalogue.layers.values() {
        text.push_str(&line(&serde_json::to_string(&Change::Layer(layer.clone()))?));
    }
    for volume in catalogue.volumes.values() {
        text.push_str(&line(&serde_json::to_string(&Change::Volume(volume.clone()))?));
    }
    Ok(text.into_bytes())
}

/// The JSON of a line that verifies.
fn verified(line: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(line).ok()?;
    let (crc, json) = text.split_at_checked(8)?;
    let json = json.strip_prefix(' ')?;
    (u32::from_str_radix(crc, 16).ok()? == crc32c::crc32c(json.as_bytes())).then_some(json)
}

/// Reads a checkpoint. Fails only if the header cannot be read; damaged records are listed.
pub fn decode(bytes: &[u8], format: u32) -> Result<Checkpoint, String> {
    let mut lines = bytes.split(|&b| b == b'\n');
    let header = lines.next().and_then(verified).ok_or("the first line does not verify")?;
    let header: Header = serde_json::from_str(header).map_err(|e| format!("line 1: {e}"))?;
    if header.format != format {
        return Err(format!("line 1: format {} where {format} was expected", header.format));
    }
    let mut checkpoint = Checkpoint { generation: header.generation, ..Checkpoint::default() };
    let seen = checkpoint.read(lines);
    if seen != header.records {
        checkpoint.damage.push(format!("{seen} records where the header says {}", header.records));
    }
    Ok(checkpoint)
}

/// Reads what can be read of a checkpoint whose header cannot be; its generation is then 0.
pub fn salvage(bytes: &[u8]) -> Checkpoint {
    let mut checkpoint = Checkpoint::default();
    checkpoint.read(bytes.split(|&b| b == b'\n').skip(1));
    checkpoint
}

impl Checkpoint {
    /// Takes the records of all lines after the header; returns how many lines there are.
    fn read<'a>(&mut self, lines: impl Iterator<Item = &'a [u8]>) -> u64 {
        let mut seen = 0;
        for (number, text) in lines.enumerate().filter(|(_, l)| !l.is_empty()) {
            seen += 1;
            let change = verified(text).ok_or("it does not verify".to_owned());
            match change.and_then(|json| serde_json::from_str::<Change>(json).map_err(|e| e.to_string())) {
                Ok(change) => self.catalogue.apply(change),
                Err(why) => self.damage.push(format!("line {}: {why}", number + 2)),
            }
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(id: u64, parent: Option<u64>) -> VolumeRecord {
        let record = VolumeRecord::over(Id(id), Id(id + 100), parent.map(Id), (1, 4096), "x".into());
        VolumeRecord { origin: Some("a \"b\"\n.img".into()), ..record }
    }

    #[test]
    fn snapshots_are_found_by_path_and_name() {
        let mut catalogue = Catalogue::default();
        let mut put = |id: u64, of: &str, name: &str| {
            let snapshot = Snapshot { of: of.into(), name: name.into(), made: 0, scheduled: false, directory: None };
            let record = VolumeRecord { snapshot: Some(snapshot), ..volume(id, None) };
            catalogue.apply(Change::Volume(record));
        };
        put(1, "a", "one");
        put(2, "a", "two");
        put(3, "a/b", "one");
        put(4, "a.img", "one");
        // Renamed.
        put(2, "a/c", "three");
        let ids = |found: Vec<&VolumeRecord>| found.iter().map(|r| r.id.0).collect::<Vec<_>>();
        assert_eq!(ids(catalogue.snapshots_of("a").collect()), [1]);
        assert_eq!(ids(catalogue.snapshots_below("a").collect()), [3, 2]);
        assert_eq!(ids(catalogue.snapshots_below("").collect()), [1, 4, 3, 2]);
        assert_eq!(catalogue.snapshot("a/c", "three").map(|r| r.id), Some(Id(2)));
        assert_eq!(catalogue.snapshot_count(), 4);
        let inside = |directory: &str| {
            let (records, directories) = catalogue.snapshots_in(directory);
            (ids(records), directories.join(" "))
        };
        assert_eq!(inside(""), (vec![1, 4], "a".to_owned()));
        assert_eq!(inside("a"), (vec![3, 2], String::new()));
        assert_eq!(inside("a/b"), (vec![], String::new()));
        assert!(catalogue.snapshot("a", "two").is_none());
        (1..=4).for_each(|id| catalogue.apply(Change::DropVolume(Id(id))));
        assert!(!catalogue.has_snapshots() && catalogue.snapshots.is_empty() && catalogue.snapshot_count() == 0);
    }

    fn sample() -> Catalogue {
        let mut catalogue = Catalogue::default();
        catalogue.apply(Change::Layer(LayerRecord::of_file(Id(9), 4096, None)));
        catalogue.apply(Change::Volume(volume(1, Some(9))));
        catalogue.apply(Change::Volume(volume(2, Some(9))));
        catalogue
    }

    #[test]
    fn heirs_follow_the_records() {
        let mut catalogue = sample();
        assert_eq!(catalogue.heir_count(Id(9)), 2);
        catalogue.apply(Change::Volume(volume(1, None)));
        assert_eq!(catalogue.heirs(Id(9)).collect::<Vec<_>>(), [Id(2)]);
        catalogue.apply(Change::DropVolume(Id(2)));
        assert_eq!(catalogue.heir_count(Id(9)), 0);
    }

    /// What the indexes must hold, found by looking at every record.
    fn by_looking(catalogue: &Catalogue) -> [HashSet<Id>; 4] {
        let single =
            |l: &&LayerRecord| l.parent.is_some_and(|p| catalogue.heir_count(p) == 1 && catalogue.layer(p).is_some());
        let named = |v: &&VolumeRecord| matches!(v.deepening, Deepening::Forced | Deepening::Physical);
        [
            catalogue.layers().filter(|l| catalogue.heir_count(l.id) == 0).map(|l| l.id).collect(),
            catalogue.layers().filter(single).map(|l| l.id).collect(),
            catalogue.volumes().filter(|v| !v.paused && named(v)).map(|v| v.id).collect(),
            catalogue.volumes().filter(|v| !v.paused && v.deepening == Deepening::Pool).map(|v| v.id).collect(),
        ]
    }

    #[test]
    fn indexes_follow_the_records() {
        let mut catalogue = Catalogue::default();
        let mut state = 7u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..20_000 {
            let parent = [None, Some(Id(20 + random(12)))][random(2) as usize];
            let change = match random(6) {
                0 => Change::DropVolume(Id(random(20))),
                1 => Change::DropLayer(Id(20 + random(12))),
                2 | 3 => Change::Layer(LayerRecord { parent, ..LayerRecord::of_file(Id(20 + random(12)), 1, None) }),
                _ => Change::Volume(VolumeRecord {
                    paused: random(3) == 0,
                    deepening: [Deepening::Pool, Deepening::Never, Deepening::Forced][random(3) as usize],
                    ..volume(random(20), parent.map(|id| id.0))
                }),
            };
            catalogue.apply(change);
            let kept: [HashSet<Id>; 4] = [
                catalogue.unread_layers().map(|l| l.id).collect(),
                catalogue.single_heirs().map(|l| l.id).collect(),
                catalogue.to_deepen(false).map(|v| v.id).collect(),
                catalogue.to_deepen(true).map(|v| v.id).filter(|id| !catalogue.asked.contains(id)).collect(),
            ];
            assert_eq!(kept, by_looking(&catalogue));
            let named: HashSet<Id> =
                catalogue.layers().map(|l| l.file).chain(catalogue.volumes().map(|v| v.file)).collect();
            assert_eq!(catalogue.files.keys().copied().collect::<HashSet<Id>>(), named);
        }
    }

    #[test]
    fn a_damaged_line_costs_one_record() {
        let bytes = encode(&sample(), 5, 1).unwrap();
        let whole = decode(&bytes, 1).unwrap();
        assert_eq!((whole.generation, whole.catalogue.volume_count(), whole.damage.len()), (5, 2, 0));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            if let Ok(got) = decode(&bad, 1) {
                assert!(!got.damage.is_empty(), "flipping byte {at} went unseen");
                assert!(got.catalogue.volume_count() + got.catalogue.layer_count() >= 1);
            }
        }
    }

    #[test]
    fn every_cut_of_a_checkpoint_is_seen() {
        let bytes = encode(&sample(), 5, 1).unwrap();
        for cut in 0..bytes.len() - 1 {
            assert!(decode(&bytes[..cut], 1).map_or(true, |c| !c.damage.is_empty()), "cut at {cut} went unseen");
        }
    }
}
