//! Random changes against a model in memory, while one in many points of the server's work is its last.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use crate::fixture::Kept;
use crate::support::{errno, ready};

/// What is under a name: a file's number in `files`, or a directory.
#[derive(Clone, Copy, PartialEq)]
enum What {
    File(usize),
    Directory,
}

struct World {
    kept: Kept,
    names: BTreeMap<String, What>,
    files: Vec<Vec<u8>>,
    open: Vec<(File, usize)>,
    state: u64,
}

impl World {
    fn draw(&mut self, below: u64) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % below
    }

    fn name(&mut self) -> String {
        let mut directories = vec![String::new()];
        let is_directory = |(name, what): (&String, &What)| (*what == What::Directory).then(|| format!("{name}/"));
        directories.extend(self.names.iter().filter_map(is_directory));
        let directory = self.draw(directories.len() as u64) as usize;
        let letter = (b'a' + self.draw(6) as u8) as char;
        format!("{}{letter}", directories[directory])
    }

    fn some_file(&mut self) -> Option<(String, usize)> {
        let all: Vec<(String, usize)> = self
            .names
            .iter()
            .filter_map(|(name, what)| match what {
                What::File(file) => Some((name.clone(), *file)),
                What::Directory => None,
            })
            .collect();
        let at = (!all.is_empty()).then(|| self.draw(all.len() as u64) as usize)?;
        Some(all[at].clone())
    }

    fn is_empty(&self, directory: &str) -> bool {
        let inside = format!("{directory}/");
        !self.names.keys().any(|name| name.starts_with(&inside))
    }

    fn put(&mut self, file: usize, offset: usize, bytes: &[u8]) {
        let contents = &mut self.files[file];
        if contents.len() < offset + bytes.len() {
            contents.resize(offset + bytes.len(), 0);
        }
        contents[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// One change, with what the model says must come of it.
    fn step(&mut self) {
        let (name, choice) = (self.name(), self.draw(12));
        let (path, there) = (self.kept.at(&name), self.names.get(&name).copied());
        let says = |result: io::Result<()>, wanted: i32| {
            assert_eq!(errno(result), wanted, "choice {choice} of {name}");
        };
        match choice {
            0 => {
                says(fs::create_dir(&path), if there.is_some() { libc::EEXIST } else { 0 });
                self.names.entry(name).or_insert(What::Directory);
            }
            1 | 2 => {
                let made = OpenOptions::new().write(true).create_new(true).open(&path);
                says(made.map(drop), if there.is_some() { libc::EEXIST } else { 0 });
                if there.is_none() {
                    self.files.push(Vec::new());
                    self.names.insert(name, What::File(self.files.len() - 1));
                }
            }
            3 => match there {
                None => says(fs::remove_file(&path), libc::ENOENT),
                Some(What::Directory) => says(fs::remove_file(&path), libc::EISDIR),
                Some(What::File(_)) => {
                    says(fs::remove_file(&path), 0);
                    self.names.remove(&name);
                }
            },
            4 => match there {
                Some(What::Directory) if self.is_empty(&name) => {
                    says(fs::remove_dir(&path), 0);
                    self.names.remove(&name);
                }
                Some(What::Directory) => says(fs::remove_dir(&path), libc::ENOTEMPTY),
                _ => {}
            },
            5 => self.rename(&name),
            6 => {
                let Some((from, file)) = self.some_file() else { return };
                says(fs::hard_link(self.kept.at(&from), &path), if there.is_some() { libc::EEXIST } else { 0 });
                self.names.entry(name).or_insert(What::File(file));
            }
            7 => {
                let Some((at, file)) = self.some_file() else { return };
                let size = self.draw(20_000) as usize;
                let open = OpenOptions::new().write(true).open(self.kept.at(&at)).expect("open");
                open.set_len(size as u64).expect("truncate");
                self.files[file].resize(size, 0);
            }
            8 => {
                let Some((at, file)) = self.some_file() else { return };
                if self.open.len() < 5 {
                    let open = OpenOptions::new().read(true).write(true).open(self.kept.at(&at)).expect("open");
                    self.open.push((open, file));
                }
            }
            9 if there.is_none() => {
                let Some((at, file)) = self.some_file() else { return };
                fs::copy(self.kept.at(&at), &path).expect("copy");
                let contents = self.files[file].clone();
                self.files.push(contents);
                self.names.insert(name, What::File(self.files.len() - 1));
            }
            10 if !self.open.is_empty() => {
                let at = self.draw(self.open.len() as u64) as usize;
                let (offset, length) = (self.draw(20_000) as usize, 1 + self.draw(6000) as usize);
                let (bytes, file) = (vec![self.draw(256) as u8; length], self.open[at].1);
                let mut found = vec![0; self.files[file].len()];
                self.open[at].0.read_exact_at(&mut found, 0).expect("read");
                assert!(found == self.files[file], "an open file");
                self.open[at].0.write_all_at(&bytes, offset as u64).expect("write");
                self.put(file, offset, &bytes);
                if offset % 3 == 0 {
                    self.open.swap_remove(at);
                }
            }
            _ => {
                let Some((at, file)) = self.some_file() else { return };
                let bytes = vec![self.draw(256) as u8; 1 + self.draw(6000) as usize];
                let offset = self.draw(20_000) as usize;
                let open = OpenOptions::new().read(true).write(true).open(self.kept.at(&at)).expect("open");
                open.write_all_at(&bytes, offset as u64).expect("write");
                open.sync_all().expect("sync");
                self.put(file, offset, &bytes);
                assert!(fs::read(self.kept.at(&at)).expect("read") == self.files[file], "{at}");
            }
        }
    }

    fn rename(&mut self, from: &str) {
        let (to, Some(what)) = (self.name(), self.names.get(from).copied()) else { return };
        let below = |one: &str, other: &str| other.starts_with(&format!("{one}/"));
        if from == to || below(from, &to) || below(&to, from) {
            return;
        }
        let there = self.names.get(&to).copied();
        let wanted = match (what, there) {
            (What::Directory, Some(What::File(_))) => libc::ENOTDIR,
            (What::File(_), Some(What::Directory)) => libc::EISDIR,
            (What::Directory, Some(What::Directory)) if !self.is_empty(&to) => libc::ENOTEMPTY,
            _ => 0,
        };
        let result = fs::rename(self.kept.at(from), self.kept.at(&to));
        assert_eq!(errno(result), wanted, "{from} to {to}");
        // Two names of one file stay as they are.
        if wanted != 0 || there == Some(what) && matches!(what, What::File(_)) {
            return;
        }
        self.names.remove(&to);
        let old = std::mem::take(&mut self.names);
        let inside = format!("{from}/");
        let moved = |(name, what): (String, What)| match name.strip_prefix(&inside) {
            Some(rest) => (format!("{to}/{rest}"), what),
            None if name == from => (to.clone(), what),
            None => (name, what),
        };
        self.names = old.into_iter().map(moved).collect();
    }

    fn compare(&self) {
        for (name, what) in &self.names {
            let path = self.kept.at(name);
            match what {
                What::File(file) => assert!(fs::read(&path).expect("read") == self.files[*file], "{name}"),
                What::Directory => {
                    let inside = format!("{name}/");
                    let direct = |other: &&String| other.strip_prefix(&inside).is_some_and(|rest| !rest.contains('/'));
                    assert_eq!(fs::read_dir(&path).unwrap().count(), self.names.keys().filter(direct).count());
                }
            }
        }
    }
}

/// Random changes; the server dies at every `every`-th point of its work, one in four of a request.
fn random(steps: u64, every: u64, seed: u64) {
    if !ready() {
        return;
    }
    let kept = Kept::dying(&format!("*:*:{every}"));
    let mut world =
        World { kept, names: BTreeMap::new(), files: Vec::new(), open: Vec::new(), state: seed.wrapping_mul(2) | 1 };
    for step in 0..steps {
        world.step();
        if step % 500 == 0 {
            world.compare();
        }
    }
    world.compare();
    let World { kept, open, .. } = world;
    drop(open);
    eprintln!("{steps} changes, {} deaths, seed {seed}", kept.deaths());
    assert!(kept.deaths() > 10);
    kept.end();
}

#[test]
fn random_changes_beside_deaths_are_those_of_the_model() {
    random(1500, 97, 1);
}

/// For scripts/soak: `CLONEFS_DEATH_STEPS` changes, with a death at one point in a hundred.
#[test]
#[ignore = "long: scripts/soak kills"]
fn many_random_changes_beside_deaths_are_those_of_the_model() {
    let steps = std::env::var("CLONEFS_DEATH_STEPS").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000);
    let seed = std::env::var("CLONEFS_SIM_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    random(steps, 101, seed);
}
