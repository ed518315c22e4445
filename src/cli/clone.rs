//! `clonefs clone`.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::Serialize;

use super::args::CloneArgs;
use super::failure::{Failure, Outcome, note};
use super::progress::{Meter, Unit};
use super::template::Template;
use super::{deepen, interrupt, text};
use crate::client::{self, CloneOptions, Directory, Draft, Source, Target, clone_file, clone_group_into, clone_tree};
use crate::engine::policy::value::{CloneName, Pattern};
use crate::error::{Context, Error, Kind, Result};
use crate::protocol::{DeepenAction, DeepenRequest, VolumeState};

/// Most names that are tried for a clone without a destination.
const MOST_NAMES: u32 = 1_000_000;

/// Clones what the command line names, all of it or nothing.
pub fn clone(args: CloneArgs) -> Outcome {
    let plan = Plan::resolve(&args)?;
    interrupt::watch();
    let made = Work::new(&args).run(&plan)?;
    if args.wait {
        wait(&made)?;
    }
    if args.json {
        if let Destination::Group(_) = plan.destination {
            let rows = plan.sources.iter().zip(made.iter().flat_map(Made::volumes));
            return text::print_json(&rows.map(|(source, path)| Row::of_group(source, &path)).collect::<Vec<_>>());
        }
        return text::print_json(&made.iter().map(Row::new).collect::<Vec<_>>());
    }
    match plan.destination {
        // Its name was chosen here, so it has to be told.
        Destination::Beside => made.iter().try_for_each(|made| {
            let mut line = text::name(made.path.as_os_str(), text::on_terminal());
            line.push(b'\n');
            text::print(line)
        }),
        _ => Ok(()),
    }
}

/// What is to be cloned to where.
struct Plan {
    sources: Vec<PathBuf>,
    destination: Destination,
}

enum Destination {
    /// Beside the source, under a name with `-clone`.
    Beside,
    /// Into this directory, under the source's name.
    Into(PathBuf),
    /// Under this name.
    As(PathBuf),
    /// Under so many names.
    Series(Template, u32),
    /// All as of one moment, into this new directory.
    Group(PathBuf),
}

impl Plan {
    fn resolve(args: &CloneArgs) -> Outcome<Plan> {
        let plan = |sources: &[PathBuf], destination| Ok(Plan { sources: sources.to_vec(), destination });
        match (args.count, args.paths.as_slice()) {
            (Some(count), [source, template]) => {
                let template = Template::parse(template.as_os_str()).map_err(Failure::Usage)?;
                plan(std::slice::from_ref(source), Destination::Series(template, count))
            }
            (None, [sources @ .., last]) if args.group && !sources.is_empty() => {
                plan(sources, Destination::Group(last.clone()))
            }
            (None, _) if args.group => {
                Err(Failure::Usage("--group takes files and the name of a new directory".into()))
            }
            (Some(_), _) => Err(Failure::Usage("--count takes one source and a name such as 'vm{}.img'".into())),
            (None, [source]) => plan(std::slice::from_ref(source), Destination::Beside),
            (None, [sources @ .., last]) => {
                let slash = last.as_os_str().as_bytes().ends_with(b"/");
                // As with cp: the name of a tree may end in a slash though it is yet to be made.
                let new_tree = args.recursive && sources.len() == 1;
                if last.is_dir() || (slash && !new_tree) {
                    plan(sources, Destination::Into(last.clone()))
                } else if sources.len() == 1 {
                    plan(sources, Destination::As(last.clone()))
                } else {
                    Err(Failure::Error(
                        Error::new(Kind::Invalid, "clone into")
                            .at(last)
                            .because("it is not a directory")
                            .remedy("several sources need a directory as destination"),
                    ))
                }
            }
            (None, []) => Err(Failure::Usage("name what to clone".into())),
        }
    }
}

/// The template that a policy gives for clones of this source.
fn clone_name(source: &Path) -> Option<CloneName> {
    let settings = client::policy(source).ok()?;
    serde_json::from_value(settings.get("clone-name")?.value.clone()).ok()
}

/// Whether a policy has rules for names, and this one breaks them.
fn check_name(target: &Target) -> Result<()> {
    let directory = if target.dir.path().as_os_str().is_empty() { Path::new(".") } else { target.dir.path() };
    // Elsewhere than in a pool there are none; what cannot be read is for the clone itself to fail with.
    let Ok(settings) = client::policy(directory) else { return Ok(()) };
    let pattern = settings.get("names").and_then(|s| serde_json::from_value::<Pattern>(s.value.clone()).ok());
    let Some(pattern) = pattern.filter(|pattern| !pattern.matches(target.name.as_bytes())) else { return Ok(()) };
    Err(Error::new(Kind::Invalid, "clone")
        .at(target.path())
        .because(format!("a policy wants names like {pattern}"))
        .remedy("choose another name, or change it with clonefs policy set --names"))
}

/// Something that was made.
struct Made {
    source: PathBuf,
    path: PathBuf,
    /// Regular files in a tree, below `path`; one empty path for a file.
    files: Vec<PathBuf>,
    copied: bool,
}

impl Made {
    fn volumes(&self) -> impl Iterator<Item = PathBuf> {
        let join = |file: &PathBuf| if file.as_os_str().is_empty() { self.path.clone() } else { self.path.join(file) };
        self.files.iter().map(join)
    }
}

/// One run of the command: what it was told and what it has made so far, as drafts.
struct Work<'a> {
    args: &'a CloneArgs,
    options: CloneOptions,
    directories: HashMap<PathBuf, Rc<Directory>>,
    drafts: Vec<(Draft, Made)>,
}

impl Work<'_> {
    fn new(args: &CloneArgs) -> Work<'_> {
        let CloneArgs { size, no_deepen, sync, .. } = *args;
        let options = CloneOptions { size, no_deepen, sync, keep_times: false };
        Work { args, options, directories: HashMap::new(), drafts: Vec::new() }
    }

    /// Makes everything as drafts, then publishes them. An error before that leaves nothing behind.
    fn run(mut self, plan: &Plan) -> Result<Vec<Made>> {
        if let Destination::Group(directory) = &plan.destination {
            self.group(&plan.sources, directory)?;
        }
        for path in &plan.sources {
            match &plan.destination {
                Destination::Group(_) => {}
                Destination::Beside => self.beside(path)?,
                Destination::Into(dir) => {
                    let target = self.target_in(dir, own_name(path)?)?;
                    self.one(path, &[target])?;
                }
                Destination::As(name) => {
                    let target = self.target(name)?;
                    self.one(path, &[target])?;
                }
                Destination::Series(template, count) => {
                    let targets: Result<Vec<Target>> =
                        (1..=*count).map(|n| self.target(Path::new(&template.name(n)))).collect();
                    self.one(path, &targets?)?;
                }
            }
        }
        // A group is durable before it has a name, and the name is durable when the command returns.
        let sync = self.args.sync || self.args.group;
        self.drafts.into_iter().map(|(draft, made)| draft.publish(sync).map(|_| made)).collect()
    }

    /// Clones one source under each of these names.
    fn one(&mut self, path: &Path, targets: &[Target]) -> Result<()> {
        targets.iter().try_for_each(Target::check)?;
        targets.iter().try_for_each(check_name)?;
        let mut counter = Meter::new("cloning", Unit::Items);
        let tree = self.args.recursive && std::fs::symlink_metadata(path).is_ok_and(|m| m.is_dir());
        let mut source = if tree { None } else { Some(Source::open(&client::file_or_snapshot(path)?)?) };
        for (n, target) in targets.iter().enumerate() {
            interrupt::check("clone")?;
            match &mut source {
                Some(source) => self.file_or_successor(source, target)?,
                None => self.tree(path, target)?,
            }
            counter.update(n as u64 + 1, targets.len() as u64);
        }
        Ok(())
    }

    /// A file that others are renamed over has its name at every moment, so a clone of that name must not fail for want of
    /// it: what was opened can be gone when it is to be cloned.
    fn file_or_successor(&mut self, source: &mut Source, target: &Target) -> Result<()> {
        while let Err(error) = self.file(source, target) {
            interrupt::check("clone")?;
            *source = source.successor().ok_or(error)?;
        }
        Ok(())
    }

    fn file(&mut self, source: &Source, target: &Target) -> Result<()> {
        let why = source.copied_because()?;
        let copied = why.is_some();
        if let Some(why) = why.filter(|_| self.drafts.iter().all(|(_, made)| made.source != source.path())) {
            note(&format!("{:?} {why}: copying it", source.path()));
        }
        let draft = clone_file(source, target, &self.options, &mut copy_meter(source.path()))?;
        let made =
            Made { source: source.path().to_path_buf(), path: target.path(), files: vec![PathBuf::new()], copied };
        self.drafts.push((draft, made));
        Ok(())
    }

    fn group(&mut self, paths: &[PathBuf], directory: &Path) -> Result<()> {
        let target = self.target(directory)?;
        target.check().map_err(|error| match error.kind() {
            Kind::Exists => error.remedy("a group gets its name in one step: name a directory that does not exist"),
            _ => error,
        })?;
        let open = |path: &PathBuf| Source::open(&client::file_or_snapshot(path)?);
        let sources = paths.iter().map(open).collect::<Result<Vec<_>>>()?;
        let draft = clone_group_into(&sources, &target, &self.options)?;
        let names = paths.iter().map(|path| PathBuf::from(path.file_name().unwrap_or_default())).collect();
        let source = paths.first().cloned().unwrap_or_default();
        self.drafts.push((draft, Made { source, path: target.path(), files: names, copied: false }));
        Ok(())
    }

    fn tree(&mut self, source: &Path, target: &Target) -> Result<()> {
        let tree = clone_tree(source, target, &self.options, &mut copy_meter(source))?;
        if tree.copied > 0 {
            note(&format!(
                "{} of {} files of {source:?} are copied: they are outside of the pool, have several names, or cannot be shared where they are",
                tree.copied,
                tree.files.len()
            ));
        }
        let copied = !tree.files.is_empty() && tree.copied == tree.files.len();
        let made = Made { source: source.to_path_buf(), path: target.path(), files: tree.files, copied };
        self.drafts.push((tree.draft, made));
        Ok(())
    }

    /// Clones a source beside itself, under the first name that is free.
    fn beside(&mut self, path: &Path) -> Result<()> {
        let name = own_name(path)?;
        let dir = match path.file_name() {
            Some(_) => path.parent().unwrap_or(Path::new("")).to_path_buf(),
            None => path.canonicalize().context("find the path of", path)?.parent().unwrap_or(path).to_path_buf(),
        };
        let template = name.to_str().and_then(|_| clone_name(path));
        for number in 1..=MOST_NAMES {
            let candidate = match &template {
                Some(template) => OsString::from(template.of(&name.to_string_lossy(), number)),
                None => {
                    let number = if number > 1 { format!("-{number}") } else { String::new() };
                    [name.as_os_str(), OsStr::new("-clone"), OsStr::new(&number)].into_iter().collect()
                }
            };
            let target = Target { replace: false, ..self.target_in(&dir, candidate)? };
            match self.one(path, std::slice::from_ref(&target)) {
                Err(e) if e.kind() == Kind::Exists || e.os_error() == Some(libc::EEXIST) => {}
                result => return result,
            }
        }
        Err(Error::new(Kind::Exists, "find a free name for a clone of").at(path).remedy("name the destination"))
    }

    fn target(&mut self, path: &Path) -> Result<Target> {
        let dir = path.parent().unwrap_or(Path::new("")).to_path_buf();
        let name = path.file_name().ok_or_else(|| {
            Error::new(Kind::Invalid, "create").at(path).because("it is no name for a file").remedy("name the clone")
        })?;
        self.target_in(&dir, name.to_owned())
    }

    fn target_in(&mut self, dir: &Path, name: OsString) -> Result<Target> {
        let open = match self.directories.get(dir) {
            Some(open) => open.clone(),
            None => {
                let open = Directory::open(dir)?;
                self.directories.insert(dir.to_path_buf(), open.clone());
                open
            }
        };
        Ok(Target { dir: open, name, replace: self.args.force })
    }
}

/// The last part of a path, also of one like `.` that does not say it.
fn own_name(path: &Path) -> Result<OsString> {
    if let Some(name) = path.file_name() {
        return Ok(name.to_owned());
    }
    let full = path.canonicalize().context("find the path of", path)?;
    full.file_name().map(OsString::from).ok_or_else(|| {
        Error::new(Kind::Invalid, "clone").at(path).because("it has no name of its own").remedy("name the destination")
    })
}

/// A callback that shows a copy's progress and stops it on a signal.
fn copy_meter(path: &Path) -> impl FnMut(u64, u64) -> Result<()> {
    let mut meter = Meter::new(format!("copying {}", text::safe(path.as_os_str())), Unit::Bytes);
    move |done, total| {
        meter.update(done, total);
        interrupt::check("copy")
    }
}

/// Sees to it that what was made becomes independent, whatever the pool's policy, and waits for that.
fn wait(made: &[Made]) -> Outcome {
    let request = DeepenRequest { action: DeepenAction::Start, rate: None, physical: false };
    let mut volumes = Vec::new();
    for path in made.iter().flat_map(Made::volumes) {
        if client::info(&path)?.is_some_and(|info| info.state != VolumeState::Independent) {
            client::deepen(&path, &request)?;
            volumes.push(path);
        }
    }
    deepen::wait_for(&volumes)
}

/// What was made, as JSON.
#[derive(Serialize)]
struct Row {
    source: String,
    path: String,
    /// `false` for a copy, of a source outside of the pool or of several names.
    shared: bool,
    /// Regular files, more than one only for a tree.
    files: usize,
}

impl Row {
    fn of_group(source: &Path, path: &Path) -> Row {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Row { source: text(source), path: text(path), shared: true, files: 1 }
    }

    fn new(made: &Made) -> Row {
        Row {
            source: made.source.to_string_lossy().into_owned(),
            path: made.path.to_string_lossy().into_owned(),
            shared: !made.copied,
            files: made.files.len(),
        }
    }
}
