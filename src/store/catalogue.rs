//! All volumes and frozen layers of a pool in memory, and the file they are checkpointed to.
//!
//! The checkpoint `catalogue` is lines of text, each `CRC32C JSON`: a header, then one record a line. A line that does
//! not verify costs that one record, not the pool.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::record::{Change, LayerRecord, VolumeRecord};
use crate::units::Id;

/// The catalogue in memory. Counts of heirs are derived, never stored.
#[derive(Debug, Default, Clone)]
pub struct Catalogue {
    volumes: HashMap<Id, VolumeRecord>,
    layers: HashMap<Id, LayerRecord>,
    /// For each layer, the layers and volumes that read from it.
    heirs: HashMap<Id, HashSet<Id>>,
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

    /// Applies one change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Volume(record) => {
                let (id, parent) = (record.id, record.parent);
                let old = self.volumes.insert(id, record).and_then(|r| r.parent);
                self.reparent(id, old, parent);
            }
            Change::Layer(record) => {
                let (id, parent) = (record.id, record.parent);
                let old = self.layers.insert(id, record).and_then(|r| r.parent);
                self.reparent(id, old, parent);
            }
            Change::DropVolume(id) => {
                let old = self.volumes.remove(&id).and_then(|r| r.parent);
                self.reparent(id, old, None);
            }
            Change::DropLayer(id) => {
                let old = self.layers.remove(&id).and_then(|r| r.parent);
                self.reparent(id, old, None);
            }
        }
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
        VolumeRecord {
            id: Id(id),
            top: Id(id + 100),
            file: Id(id + 100),
            parent: parent.map(Id),
            overlap: 1,
            size: 4096,
            complete: false,
            origin: Some("a \"b\"\n.img".into()),
            source: false,
            deepening: Default::default(),
            paused: false,
            doubtful: false,
            path: "x".into(),
        }
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
