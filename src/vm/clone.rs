//! Clones of a domain made, as planned: files first, then the definitions, then the start. All or nothing: what was
//! made is recorded in [`Undo`] the moment it exists, and taken back unless everything has succeeded.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::disks::Action;
use super::freeze::Frozen;
use super::image::{self, Layer};
use super::parts::Part;
use super::plan::{Mode, NewDomain, NewFile, NewImage, Plan, target};
use super::pools;
use super::undo::Undo;
use crate::client::{
    self, CloneOptions, Progress, Source, Staged, Target, WaitProgress, clone_file, copy_file, until_independent,
};
use crate::error::{Error, Kind, Result};
use crate::protocol::{DeepenAction, DeepenRequest, VolumeState};

/// What is told while it goes on. An error from any of these stops the work, which is then taken back.
pub trait Observer {
    /// A file is being copied: bytes done, and in all.
    fn copying(&mut self, file: &Path, done: u64, total: u64) -> Result<()>;
    /// Clones are being made independent.
    fn deepening(&mut self, state: WaitProgress) -> Result<()>;
    /// The next step is about to begin.
    fn check(&mut self) -> Result<()>;
}

/// What was made, as it is printed.
#[derive(Clone, Debug, Serialize)]
pub struct Made {
    /// Name of the new domain.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// The domain it was cloned from.
    pub source: String,
    /// Its disks.
    pub disks: Vec<MadeDisk>,
    /// Its other files: NVRAM, TPM state, cloud-init seed.
    pub files: Vec<PathBuf>,
    /// Whether it was started.
    pub started: bool,
    /// For how long the source was suspended, in milliseconds; `None` if it was not.
    pub suspended_ms: Option<f64>,
}

/// A disk of a new domain.
#[derive(Clone, Debug, Serialize)]
pub struct MadeDisk {
    /// Its name in the guest.
    pub disk: String,
    /// `cloned`, `copied`, `shared` or `skipped`.
    pub how: &'static str,
    /// The source's.
    pub from: String,
    /// The clone's image.
    pub path: Option<PathBuf>,
}

/// A file of a clone, what it is a clone of, and how.
type GroupFile<'a> = (&'a Source, Target, CloneOptions);

impl Plan<'_> {
    /// Makes what was planned.
    pub fn run(&self, progress: &mut dyn Observer) -> Result<Vec<Made>> {
        let mut undo = Undo::new(self.virsh);
        match self.steps(&mut undo, progress) {
            Ok(suspended) => {
                undo.keep();
                Ok(self.clones.iter().map(|clone| self.made(clone, suspended)).collect())
            }
            Err(error) => {
                drop(undo);
                // libvirt may have seen files that are gone again.
                self.refresh_pools();
                Err(error)
            }
        }
    }

    fn steps(&self, undo: &mut Undo, progress: &mut dyn Observer) -> Result<Option<Duration>> {
        let suspended = self.make_files(undo, progress)?;
        for clone in &self.clones {
            progress.check()?;
            self.finish_images(clone, undo)?;
        }
        if self.options.mode == Mode::Copy {
            self.make_independent(progress)?;
        }
        self.refresh_pools();
        for clone in &self.clones {
            progress.check()?;
            self.define(clone, undo)?;
        }
        if self.options.start {
            for clone in &self.clones {
                progress.check()?;
                // Before: a start that failed half-way, or was killed, is taken back as well.
                undo.started(&clone.identity.uuid);
                self.virsh.run_long(
                    &format!("start domain {:?}", clone.identity.name),
                    &["start", "--domain", &clone.identity.uuid],
                )?;
            }
        }
        Ok(suspended)
    }

    fn refresh_pools(&self) {
        let directories: Vec<PathBuf> =
            self.files().filter_map(|f| f.to.path.parent().map(Path::to_path_buf)).collect();
        pools::refresh(self.virsh, &directories);
    }

    fn files(&self) -> impl Iterator<Item = &NewFile> {
        self.clones.iter().flat_map(|clone| &clone.images).flat_map(|image| &image.files)
    }

    /// The files of all clones. Only those of the first come from the source, while that is held still; the others
    /// come from the first.
    fn make_files(&self, undo: &mut Undo, progress: &mut dyn Observer) -> Result<Option<Duration>> {
        let Some((first, others)) = self.clones.split_first() else { return Ok(None) };
        // Opened before anything is held still: that takes most of the time.
        let open =
            |image: &NewImage| image.files.iter().map(|file| Source::open(&file.from)).collect::<Result<Vec<_>>>();
        let sources: Vec<Vec<Source>> = first.images.iter().map(open).collect::<Result<_>>()?;
        let suspended = match self.as_group(first, &sources)? {
            Some(files) => self.make_group(first, &files, undo)?,
            None => {
                let frozen = Frozen::begin(self.virsh, &self.domain.uuid, self.hold())?;
                for (image, sources) in first.images.iter().zip(&sources) {
                    for (n, (file, source)) in image.files.iter().zip(sources).enumerate() {
                        self.make_file(image, n, file, source, undo, progress)?;
                    }
                }
                first.parts.iter().try_for_each(|part| part.copy(undo))?;
                frozen.end()?
            }
        };
        if self.held.is_none() {
            self.domain.still_off(self.virsh)?;
        }
        for clone in others {
            progress.check()?;
            for (image, made) in clone.images.iter().zip(&first.images) {
                for (n, (file, made)) in image.files.iter().zip(&made.files).enumerate() {
                    let made = NewFile { from: made.to.path.clone(), ..file.clone() };
                    // One that was copied into a pool once is cloned there.
                    let copied = file.copied && client::mount_at(&made.from)?.is_none();
                    let made = NewFile { copied, ..made };
                    let source = Source::open(&made.from)?;
                    self.make_file(image, n, &made, &source, undo, progress)?;
                }
            }
            for (part, made) in clone.parts.iter().zip(&first.parts) {
                Part { from: made.to.clone(), kept: None, ..part.clone() }.copy(undo)?;
            }
        }
        Ok(suspended)
    }

    /// The files of a clone, if the pool can clone them as of one moment: then nothing has to be held still for them.
    fn as_group<'a>(&self, clone: &NewDomain, sources: &'a [Vec<Source>]) -> Result<Option<Vec<GroupFile<'a>>>> {
        let mut files = Vec::new();
        for (image, sources) in clone.images.iter().zip(sources) {
            for (n, (file, source)) in image.files.iter().zip(sources).enumerate() {
                if file.copied || source.copied_because()?.is_some() {
                    return Ok(None);
                }
                files.push((source, target(&file.to.path)?, self.clone_options(image, n, file)));
            }
        }
        let one_pool = files.windows(2).all(|pair| pair[0].1.dir.device() == pair[1].1.dir.device());
        Ok(Some(files).filter(|files| files.len() > 1 && one_pool))
    }

    /// Clones them. The machine is suspended only for what is no file of the pool (NVRAM, TPM).
    fn make_group(&self, clone: &NewDomain, files: &[GroupFile], undo: &mut Undo) -> Result<Option<Duration>> {
        let members: Vec<_> = files.iter().map(|(source, target, options)| (*source, target, *options)).collect();
        let mut staged = Staged::new(&members)?;
        let hold = self.hold();
        let hold = super::freeze::Hold { suspend: hold.suspend && !clone.parts.is_empty(), ..hold };
        let frozen = Frozen::begin(self.virsh, &self.domain.uuid, hold)?;
        staged.commit()?;
        clone.parts.iter().try_for_each(|part| part.copy(undo))?;
        let suspended = frozen.end()?;
        for draft in staged.finish()? {
            undo.file(&draft.publish(false)?);
        }
        Ok(suspended)
    }

    fn clone_options(&self, image: &NewImage, number: usize, file: &NewFile) -> CloneOptions {
        let raw = number == 0 && file.to.format == "raw";
        CloneOptions {
            size: image.size.filter(|_| raw),
            no_deepen: self.options.mode == Mode::Linked,
            sync: false,
            keep_times: false,
        }
    }

    fn make_file(
        &self,
        image: &NewImage,
        number: usize,
        file: &NewFile,
        source: &Source,
        undo: &mut Undo,
        progress: &mut dyn Observer,
    ) -> Result<()> {
        let options = self.clone_options(image, number, file);
        let mut tell = |done, total| progress.copying(&file.from, done, total);
        let tell: Progress = &mut tell;
        let target = target(&file.to.path)?;
        let draft = if file.copied {
            copy_file(source, &target, &options, tell)?
        } else {
            clone_file(source, &target, &options, tell)?
        };
        undo.file(&draft.publish(false)?);
        Ok(())
    }

    /// What has to be changed inside of the images, and the seed.
    fn finish_images(&self, clone: &NewDomain, undo: &mut Undo) -> Result<()> {
        for image in &clone.images {
            for pair in image.files.windows(2) {
                image::rebase(&pair[0].to, &pair[1].to)?;
            }
            let top = &image.files[0].to;
            if let Some(name) = &image.snapshot {
                image::apply_snapshot(top, name)?;
            }
            if let Some(size) = image.size.filter(|_| top.format != "raw") {
                image::grow(top, size)?;
            }
        }
        let customize = &self.options.customize;
        if let Some(path) = &clone.seed {
            customize.write_seed(&clone.identity, path, undo)?;
        }
        let images: Vec<(String, Layer)> =
            clone.images.iter().map(|i| (i.disk.clone(), i.files[0].to.clone())).collect();
        customize.run(&clone.identity, &images)
    }

    fn make_independent(&self, progress: &mut dyn Observer) -> Result<()> {
        let request = DeepenRequest { action: DeepenAction::Start, rate: None, physical: false };
        let mut pending = Vec::new();
        for file in self.files() {
            let path = &file.to.path;
            if client::info(path)?.is_some_and(|info| info.state != VolumeState::Independent) {
                client::deepen(path, &request)?;
                pending.push(path.clone());
            }
        }
        until_independent(&pending, &mut |state| progress.deepening(state))
    }

    fn define(&self, clone: &NewDomain, undo: &mut Undo) -> Result<()> {
        let name = &clone.identity.name;
        let doing = format!("define domain {name:?}");
        // Nothing of this UUID was there: it is random. If it is there afterwards it is ours, also after an error.
        let defined = self.virsh.define(&doing, "define", &clone.xml);
        if defined.is_ok() || self.virsh.run(&doing, &["dominfo", "--domain", &clone.identity.uuid]).is_ok() {
            undo.defined(&clone.identity.uuid);
        }
        defined.map(drop).map_err(|error| match error.kind() {
            Kind::Exists => Error::new(Kind::Exists, doing).because(error.to_string()),
            _ => error,
        })
    }

    fn made(&self, clone: &NewDomain, suspended: Option<Duration>) -> Made {
        let disk = |disk: &super::disks::Disk| {
            let image = clone.images.iter().find(|image| image.disk == disk.target);
            let how = match (&disk.action, image) {
                (Action::Drop, _) => "skipped",
                (Action::Clone(_), Some(image)) if image.files[0].copied => "copied",
                (Action::Clone(_), _) => "cloned",
                _ => "shared",
            };
            MadeDisk {
                disk: disk.target.clone(),
                how,
                from: disk.shown.clone(),
                path: image.map(|i| i.files[0].to.path.clone()),
            }
        };
        Made {
            name: clone.identity.name.clone(),
            uuid: clone.identity.uuid.clone(),
            source: self.domain.name.clone(),
            disks: self.disks.iter().map(disk).collect(),
            files: clone.parts.iter().map(|part| part.to.clone()).chain(clone.seed.clone()).collect(),
            started: self.options.start,
            suspended_ms: suspended.map(|time| time.as_secs_f64() * 1000.0),
        }
    }
}
