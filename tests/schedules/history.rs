//! What a file may hold: every state that its only writer gave it, and which of them are acknowledged.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use clonefs::units::BLOCK;

use crate::common::served::pattern;

/// One change of a file.
#[derive(Clone, Copy, Debug)]
pub enum Edit {
    /// So many bytes at an offset.
    Write(u64, usize),
    /// A hole, of bytes from an offset.
    Punch(u64, u64),
    /// Zeros, of bytes from an offset, that keep their space.
    Zero(u64, u64),
    /// Another size.
    Resize(u64),
}

/// The states of one file. Plain locks: nothing is scheduled here.
pub struct History {
    states: Mutex<Vec<Vec<u8>>>,
    acknowledged: AtomicUsize,
    durable: AtomicUsize,
}

impl History {
    /// A file that holds `bytes`, durably.
    pub fn new(bytes: Vec<u8>) -> History {
        let states = Mutex::new(vec![bytes]);
        History { states, acknowledged: AtomicUsize::new(0), durable: AtomicUsize::new(0) }
    }

    /// Number of the last state that was asked for.
    pub fn issued(&self) -> usize {
        self.states.lock().unwrap().len() - 1
    }

    /// Number of the last state that was acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// The last state was acknowledged.
    pub fn acknowledge(&self) {
        self.acknowledged.store(self.issued(), Ordering::SeqCst);
    }

    /// A sync that began when `number` was acknowledged has returned.
    pub fn made_durable(&self, number: usize) {
        self.durable.fetch_max(number, Ordering::SeqCst);
    }

    /// A state.
    pub fn state(&self, number: usize) -> Vec<u8> {
        self.states.lock().unwrap()[number].clone()
    }

    /// The last one.
    pub fn last(&self) -> Vec<u8> {
        self.state(self.issued())
    }

    /// Notes that `edit` is about to be made; returns the bytes that it writes.
    pub fn issue(&self, edit: Edit) -> Vec<u8> {
        let mut states = self.states.lock().unwrap();
        let number = states.len() as u64;
        let mut bytes = states.last().unwrap().clone();
        let mut data = Vec::new();
        match edit {
            Edit::Write(offset, len) => {
                data = pattern(1000 + number, offset, len);
                let end = offset as usize + len;
                bytes.resize(bytes.len().max(end), 0);
                bytes[offset as usize..end].copy_from_slice(&data);
            }
            Edit::Punch(offset, len) | Edit::Zero(offset, len) => {
                let size = bytes.len();
                bytes[size.min(offset as usize)..size.min((offset + len) as usize)].fill(0);
            }
            Edit::Resize(size) => bytes.resize(size as usize, 0),
        }
        states.push(bytes);
        data
    }

    /// Which of the states from `first` to `last` these bytes are.
    pub fn find(&self, bytes: &[u8], first: usize, last: usize) -> Option<usize> {
        let states = self.states.lock().unwrap();
        (first..=last).find(|&number| states[number] == bytes)
    }

    /// After a power cut each sector has some state that is not older than the last durable one.
    pub fn explains(&self, bytes: &[u8]) -> Result<(), String> {
        let states = self.states.lock().unwrap();
        let durable = self.durable.load(Ordering::SeqCst);
        let possible = &states[durable..];
        if !possible.iter().any(|state| state.len() == bytes.len()) {
            return Err(format!("it has a size of {}, which it never had since state {durable}", bytes.len()));
        }
        for (number, sector) in bytes.chunks(512).enumerate() {
            let at = number * 512;
            // What a state does not have reads as zeros once the file has grown again.
            let known = |state: &Vec<u8>| {
                let part = state.get(at..(at + sector.len()).min(state.len())).unwrap_or_default();
                sector.starts_with(part) && sector[part.len()..].iter().all(|&byte| byte == 0)
            };
            if !possible.iter().any(known) {
                let block = at as u64 / BLOCK;
                return Err(format!(
                    "sector {number} (block {block}) is no state since {durable}: {:x?}",
                    &sector[..16]
                ));
            }
        }
        Ok(())
    }
}
