//! From the options of a call, in their order, to [`Settings`] and [`Operands`].

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::args::{Given, Words};
use crate::report::{Done, say};
use crate::settings::{Attribute, Backup, Follow, Operands, Overwrite, Preserve, Reflink, Settings, Sparse};
use crate::usage::{choose, mistake};

const BACKUPS: [(&str, Backup); 8] = [
    ("none", Backup::None),
    ("off", Backup::None),
    ("simple", Backup::Simple),
    ("never", Backup::Simple),
    ("existing", Backup::Existing),
    ("nil", Backup::Existing),
    ("numbered", Backup::Numbered),
    ("t", Backup::Numbered),
];

const SPARSE: [(&str, Sparse); 3] = [("never", Sparse::Never), ("auto", Sparse::Auto), ("always", Sparse::Always)];

const REFLINK: [(&str, Reflink); 3] = [("auto", Reflink::Auto), ("always", Reflink::Always), ("never", Reflink::Never)];

const ATTRIBUTES: [(&str, Attribute); 7] = [
    ("mode", Attribute::Mode),
    ("timestamps", Attribute::Timestamps),
    ("ownership", Attribute::Ownership),
    ("links", Attribute::Links),
    ("context", Attribute::Context),
    ("xattr", Attribute::Xattr),
    ("all", Attribute::All),
];

/// What is known only when all options have been seen.
#[derive(Default)]
struct Pending {
    follow: Option<Follow>,
    backup: bool,
    control: Option<OsString>,
    suffix: Option<OsString>,
    need_context: bool,
    set_context: bool,
}

/// Decides what the call asks for. A contradiction is reported as `cp` reports it.
pub fn resolve(words: Words) -> Done<(Settings, Operands)> {
    let mut settings = Settings {
        follow: Follow::Always,
        overwrite: Overwrite::Yes,
        backup: Backup::None,
        suffix: OsString::new(),
        force: false,
        remove_first: false,
        update: false,
        recursive: false,
        copy_contents: false,
        one_file_system: false,
        hard_link: false,
        symbolic_link: false,
        attributes_only: false,
        preserve: Preserve::default(),
        sparse: Sparse::Auto,
        reflink: Reflink::Auto,
        verbose: false,
        privileged: rustix::process::geteuid().is_root(),
        umask: umask(),
    };
    let mut operands = Operands { names: words.operands, ..Operands::default() };
    let mut pending = Pending::default();
    for given in &words.options {
        apply(given, &mut settings, &mut operands, &mut pending)?;
    }
    finish(&mut settings, pending)?;
    Ok((settings, operands))
}

/// Takes one option into account.
fn apply(given: &Given, s: &mut Settings, operands: &mut Operands, pending: &mut Pending) -> Done {
    let value = given.value.as_os_str();
    match given.name {
        "archive" => {
            pending.follow = Some(Follow::Never);
            s.recursive = true;
            // As --preserve=all, except that it does not undo --no-preserve=mode and is quiet about xattrs.
            let p = &mut s.preserve;
            (p.mode, p.ownership, p.timestamps, p.links, p.xattr) = (true, true, true, true, true);
            (p.context, p.quiet_xattr) = (selinux(), true);
        }
        "attributes-only" => s.attributes_only = true,
        "b" => pending.backup = true,
        "backup" => {
            pending.backup = true;
            if !value.is_empty() {
                pending.control = Some(value.to_owned());
            }
        }
        "copy-contents" => s.copy_contents = true,
        "d" => {
            pending.follow = Some(Follow::Never);
            s.preserve.links = true;
        }
        "dereference" => pending.follow = Some(Follow::Always),
        "force" => s.force = true,
        "H" => pending.follow = Some(Follow::Operands),
        "interactive" => s.overwrite = Overwrite::Ask,
        "link" => s.hard_link = true,
        "no-clobber" => s.overwrite = Overwrite::Never,
        "no-dereference" => pending.follow = Some(Follow::Never),
        "no-preserve" => attributes(given, &mut s.preserve, pending)?,
        "no-target-directory" => operands.no_target_directory = true,
        "one-file-system" => s.one_file_system = true,
        "p" => (s.preserve.mode, s.preserve.ownership, s.preserve.timestamps) = (true, true, true),
        "parents" => operands.parents = true,
        "preserve" => attributes(given, &mut s.preserve, pending)?,
        "recursive" => s.recursive = true,
        "reflink" => s.reflink = choose("--reflink", value, &REFLINK)?,
        "remove-destination" => s.remove_first = true,
        "sparse" => s.sparse = choose("--sparse", value, &SPARSE)?,
        "strip-trailing-slashes" => operands.strip_slashes = true,
        "suffix" => {
            pending.backup = true;
            pending.suffix = Some(value.to_owned());
        }
        "symbolic-link" => s.symbolic_link = true,
        "target-directory" => {
            if operands.target.replace(value.to_owned()).is_some() {
                return Err(crate::report::Failed::Here).inspect_err(|_| say("multiple target directories specified"));
            }
        }
        "update" => s.update = true,
        "verbose" => s.verbose = true,
        "context" | "Z" => {
            pending.set_context = true;
            if !value.is_empty() && !selinux() {
                say("warning: ignoring --context; it requires an SELinux-enabled kernel");
            }
        }
        other => unreachable!("option {other} is in the table and not here"),
    }
    Ok(())
}

/// The list of `--preserve` or `--no-preserve`.
fn attributes(given: &Given, preserve: &mut Preserve, pending: &mut Pending) -> Done {
    let on = given.name == "preserve";
    let option = format!("--{}", given.name);
    for word in given.value.as_bytes().split(|&b| b == b',') {
        let attribute = choose(&option, OsStr::from_bytes(word), &ATTRIBUTES)?;
        if attribute == Attribute::Context {
            (preserve.context, pending.need_context) = (on, on);
        } else {
            preserve.switch(attribute, on);
            preserve.context |= attribute == Attribute::All && on && selinux();
        }
    }
    Ok(())
}

/// Settles what depends on several options.
fn finish(s: &mut Settings, pending: Pending) -> Done {
    if s.hard_link && s.symbolic_link {
        return Err(mistake("cannot make both hard and symbolic links"));
    }
    if pending.backup && s.overwrite == Overwrite::Never {
        return Err(mistake("options --backup and --no-clobber are mutually exclusive"));
    }
    if s.reflink == Reflink::Always && s.sparse != Sparse::Auto {
        return Err(mistake("--reflink can be used only with --sparse=auto"));
    }
    if pending.backup {
        s.backup = backup(pending.control)?;
    }
    s.suffix = suffix(pending.suffix);
    // Without -R, whatever is not a directory is read like a file.
    s.copy_contents |= !s.recursive;
    s.follow = pending.follow.unwrap_or(if s.recursive && !s.hard_link { Follow::Never } else { Follow::Always });
    if pending.need_context && !selinux() {
        return Err(crate::report::Failed::Here)
            .inspect_err(|_| say("cannot preserve security context without an SELinux-enabled kernel"));
    }
    if pending.set_context && selinux() {
        return Err(mistake("-Z and --context are not supported; set contexts with chcon or restorecon afterwards"));
    }
    Ok(())
}

/// The kind of backup: of the option, else of the environment, else the kind that is there already.
fn backup(control: Option<OsString>) -> Done<Backup> {
    match control {
        Some(word) => choose("backup type", &word, &BACKUPS),
        None => match env::var_os("VERSION_CONTROL").filter(|word| !word.is_empty()) {
            Some(word) => choose("$VERSION_CONTROL", &word, &BACKUPS),
            None => Ok(Backup::Existing),
        },
    }
}

/// The suffix of simple backups. One that would lead into another directory is not used.
fn suffix(given: Option<OsString>) -> OsString {
    given
        .or_else(|| env::var_os("SIMPLE_BACKUP_SUFFIX"))
        .filter(|suffix| !suffix.is_empty() && !suffix.as_bytes().contains(&b'/'))
        .unwrap_or_else(|| OsString::from_vec(b"~".to_vec()))
}

/// The kernel labels files.
fn selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// The permission bits that new files do not get.
fn umask() -> u32 {
    // There is no call that only reads it. No other thread runs yet.
    let mask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(mask);
    mask.bits()
}
