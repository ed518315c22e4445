//! Scrubbing: frozen layers are compared with checksums that were taken of them in the background.
//!
//! A layer is summed when the pool has been at rest for a while and the layer is going to stay: nobody is about to adopt
//! it. An adoption changes a layer's file, so it forgets the checksums first. Both happen on the compactor's thread.

use std::sync::Arc;

use super::Pool;
use super::report::LIST_LIMIT;
use crate::engine::events::{Event, What};
use crate::engine::layer::Layer;
use crate::engine::layer::sums;
use crate::engine::store::data_path;
use crate::error::Result;
use crate::protocol::{ScrubStatus, Trouble};
use crate::units::{BLOCK, Id};

/// Pieces done before other work has its turn: 64 MiB.
const TURN: u64 = 64;

/// What scrubbing is at.
#[derive(Default)]
pub(super) struct Scrub {
    /// Layers still to be done, while a scrub runs.
    queue: Vec<Id>,
    /// The layer in work.
    current: Option<Current>,
    /// What the present or last scrub has found.
    status: Option<ScrubStatus>,
    /// Layers that have checksums, or could not get any.
    summed: std::collections::HashSet<Id>,
}

struct Current {
    layer: Arc<Layer>,
    /// What the sums must be; none: they are being taken.
    expect: Option<Vec<u32>>,
    /// A user asked, so that it counts in the status.
    asked: bool,
    taken: Vec<u32>,
    bad: Vec<u32>,
    next: u64,
}

impl Pool {
    /// Begins to compare all frozen layers with their checksums, unless that is under way.
    pub fn begin_scrub(&self) {
        let mut scrub = self.scrub.lock();
        if scrub.status.as_ref().is_some_and(|status| status.running) {
            return;
        }
        let layers: Vec<(Id, u64)> = self.env.store.catalogue().layers().map(|l| (l.id, l.size)).collect();
        let total = layers.iter().map(|(_, size)| sums::pieces(*size)).sum::<u64>() * sums::PIECE * BLOCK;
        scrub.queue = layers.into_iter().map(|(id, _)| id).collect();
        let runs = scrub.status.as_ref().map_or(0, |status| status.runs) + 1;
        scrub.status = Some(ScrubStatus { running: true, total, runs, ..ScrubStatus::default() });
        drop(scrub);
        self.wake_background();
    }

    /// What the present or last scrub has found; `None` before the first. Of what is damaged, the first.
    pub fn scrub_status(&self) -> Option<ScrubStatus> {
        let scrub = self.scrub.lock();
        let status = scrub.status.as_ref()?;
        let damaged = status.damaged.iter().take(LIST_LIMIT).cloned().collect();
        Some(ScrubStatus { damaged, ..*status })
    }

    /// The first of what the present or last scrub has found damaged.
    pub(super) fn scrub_damage(&self) -> Vec<Trouble> {
        self.scrub_status().map(|status| status.damaged).unwrap_or_default()
    }

    /// One turn of the scrub that was asked for. Whether there is more to do. On the compactor's thread only.
    pub fn scrub_turn(&self) -> bool {
        let mut current = match self.next_to_scrub() {
            Some(current) => current,
            None => return false,
        };
        match self.work(&mut current) {
            Ok(false) => self.scrub.lock().current = Some(current),
            Ok(true) => self.end_layer(current),
            Err(error) => {
                tracing::warn!("cannot scrub layer {}: {error}", current.layer.id);
                self.add_scrub_problem(&current.layer, error.to_string());
            }
        }
        true
    }

    fn next_to_scrub(&self) -> Option<Current> {
        loop {
            let id = {
                let mut scrub = self.scrub.lock();
                if let Some(current) = scrub.current.take() {
                    // An adoption or a deletion took it meanwhile.
                    if self.env.store.catalogue().layer(current.layer.id).is_some() && !current.layer.adopting() {
                        return Some(current);
                    }
                }
                let Some(id) = scrub.queue.pop() else {
                    if let Some(status) = &mut scrub.status {
                        status.running = false;
                    }
                    return None;
                };
                id
            };
            match self.open_for_scrub(id, true) {
                Ok(Some(current)) => return Some(current),
                Ok(None) => {}
                Err(error) => tracing::warn!("cannot scrub layer {id}: {error}"),
            }
        }
    }

    fn open_for_scrub(&self, id: Id, asked: bool) -> Result<Option<Current>> {
        let Some(layer) = self.frozen_layer(id)? else { return Ok(None) };
        if layer.adopting() {
            return Ok(None);
        }
        // A checksum must not outlive the data that it was taken of.
        layer.flush()?;
        let expect = sums::read(self.env.fs.as_ref(), layer.file_id())?;
        let expect = expect.filter(|sums| sums.len() as u64 == sums::pieces(layer.size()));
        Ok(Some(Current { layer, expect, asked, taken: Vec::new(), bad: Vec::new(), next: 0 }))
    }

    /// Some pieces of a layer. Whether it is done.
    fn work(&self, current: &mut Current) -> Result<bool> {
        let count = sums::pieces(current.layer.size());
        let until = (current.next + TURN).min(count);
        while current.next < until {
            if self.stopping() {
                return Ok(false);
            }
            let piece = current.next;
            let sum = current.layer.sum_piece(piece, self.trusts_holes)?;
            match current.expect.as_ref().map(|sums| sums[piece as usize]) {
                None => current.taken.push(sum),
                Some(expect) if expect != sum => current.bad.push(piece as u32),
                Some(_) => {}
            }
            current.next += 1;
            if let Some(status) = self.scrub.lock().status.as_mut().filter(|_| current.asked) {
                status.done += sums::PIECE * BLOCK;
            }
        }
        Ok(current.next >= count)
    }

    fn end_layer(&self, current: Current) {
        let layer = &current.layer;
        let fs = self.env.fs.as_ref();
        let noted = match &current.expect {
            None => sums::write(fs, layer.file_id(), &current.taken),
            Some(_) if current.bad != layer.bad() => layer.set_bad(&current.bad),
            Some(_) => Ok(()),
        };
        if let Err(error) = noted {
            tracing::warn!("cannot note what a scrub found in layer {}: {error}", layer.id);
        }
        let mut scrub = self.scrub.lock();
        scrub.summed.insert(layer.id);
        if let Some(status) = scrub.status.as_mut().filter(|_| current.asked) {
            match &current.expect {
                None => status.summed += 1,
                Some(_) => status.compared += 1,
            }
        }
        drop(scrub);
        if !current.bad.is_empty() {
            let bytes = current.bad.len() as u64 * sums::PIECE * BLOCK;
            let what = format!("up to {bytes} bytes are not what they were when their checksum was taken");
            self.add_scrub_problem(layer, what);
        }
    }

    /// Names the volumes that show a layer.
    fn add_scrub_problem(&self, layer: &Layer, problem: String) {
        let volumes = self.readers_of(layer.id);
        let path = match volumes.as_slice() {
            [] => data_path(layer.file_id()).to_string_lossy().into_owned(),
            volumes => volumes.join(", "),
        };
        let remedy = format!("restore {:?} from a backup; reading it gives EIO", data_path(layer.file_id()));
        let mut scrub = self.scrub.lock();
        if let Some(status) = &mut scrub.status {
            self.events.tell(Event::new(What::Failed, &path).because(problem.clone()));
            status.damaged.push(Trouble { path, problem, remedy });
        }
    }

    /// Paths of the volumes that read from a layer, through whatever lies between.
    fn readers_of(&self, layer: Id) -> Vec<String> {
        let catalogue = self.env.store.catalogue();
        let (mut paths, mut layers, mut seen) = (Vec::new(), vec![layer], std::collections::HashSet::new());
        while let Some(layer) = layers.pop().filter(|layer| seen.insert(*layer)) {
            for heir in catalogue.heirs(layer) {
                match catalogue.volume(heir) {
                    Some(volume) => paths.push(volume.shown()),
                    None => layers.push(heir),
                }
            }
        }
        paths.sort();
        paths
    }

    /// For the time when nothing else is to be done: some pieces of a layer that has no checksums and will stay.
    /// Whether there was one. On the compactor's thread only.
    pub fn sum_turn(&self) -> bool {
        // Apart from the match, in which the lock would still be held when the next one takes it.
        let begun = self.scrub.lock().current.take();
        let Some(mut current) = begun.or_else(|| self.next_to_sum()) else { return false };
        match self.work(&mut current) {
            Ok(false) => self.scrub.lock().current = Some(current),
            Ok(true) => self.end_layer(current),
            Err(error) => tracing::warn!("cannot take checksums of layer {}: {error}", current.layer.id),
        }
        true
    }

    fn next_to_sum(&self) -> Option<Current> {
        loop {
            let id = {
                let mut scrub = self.scrub.lock();
                let catalogue = self.env.store.catalogue();
                // With one heir it is about to be adopted, or to lose that heir.
                let stays = |id: Id| catalogue.heir_count(id) > 1;
                let next = catalogue.layers().find(|l| !scrub.summed.contains(&l.id) && stays(l.id))?;
                scrub.summed.insert(next.id);
                next.id
            };
            match self.open_for_scrub(id, false) {
                Ok(Some(current)) if current.expect.is_none() => return Some(current),
                Ok(_) => {}
                Err(error) => tracing::warn!("cannot take checksums of layer {id}: {error}"),
            }
        }
    }

    /// A layer has another file now, which has no checksums: what was learned of the old one counts no more.
    pub(super) fn sum_again(&self, layer: Id) {
        let mut scrub = self.scrub.lock();
        scrub.summed.remove(&layer);
        scrub.current.take_if(|current| current.layer.id == layer);
    }

    /// A layer's file is about to change.
    pub(super) fn forget_sums(&self, layer: &Layer) -> Result<()> {
        self.sum_again(layer.id);
        sums::forget(self.env.fs.as_ref(), layer.file_id())
    }
}
