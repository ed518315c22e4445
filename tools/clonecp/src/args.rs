//! The command line as clap sees it: one table of options, and the words of a call in the order they were given.

use std::ffi::{OsStr, OsString};

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::report::{Done, Failed, PROGRAM};
use crate::usage::explain;

/// What may follow an option.
enum Value {
    /// Nothing.
    No,
    /// `=WORD`, and what it is without.
    Maybe(&'static str, &'static str),
    /// A word.
    Must(&'static str),
}

/// One option: long name (or none), letters, value, help.
struct Spec(&'static str, &'static [char], Value, &'static str);

/// Options with a long name first, in the order in which an ambiguous beginning lists them.
const SPECS: [Spec; 31] = [
    Spec("archive", &['a'], Value::No, "Same as -dR --preserve=all"),
    Spec("attributes-only", &[], Value::No, "Copy attributes, leave the contents of the destination alone"),
    Spec("backup", &[], Value::Maybe("CONTROL", ""), "Keep each existing destination under another name"),
    Spec("copy-contents", &[], Value::No, "With -R, read from pipes and devices rather than make new ones"),
    Spec("dereference", &['L'], Value::No, "Follow all symbolic links in SOURCE"),
    Spec("force", &['f'], Value::No, "Remove a destination that cannot be opened, and try again"),
    Spec("interactive", &['i'], Value::No, "Ask before overwriting (undoes an earlier -n)"),
    Spec("link", &['l'], Value::No, "Make hard links instead of copies"),
    Spec("no-clobber", &['n'], Value::No, "Never overwrite (undoes an earlier -i)"),
    Spec("no-dereference", &['P'], Value::No, "Follow no symbolic link in SOURCE"),
    Spec("no-preserve", &[], Value::Must("LIST"), "Do not keep these attributes"),
    Spec("no-target-directory", &['T'], Value::No, "DEST is the copy itself, even if it is a directory"),
    Spec("one-file-system", &['x'], Value::No, "Do not descend into other filesystems"),
    Spec("parents", &[], Value::No, "Rebuild the whole path of SOURCE below DIRECTORY"),
    Spec(
        "preserve",
        &[],
        Value::Maybe("LIST", "mode,ownership,timestamps"),
        "Keep mode, ownership, timestamps, links, xattr, context or all; by default the first three",
    ),
    Spec("recursive", &['R', 'r'], Value::No, "Copy directories with all that is in them"),
    Spec("remove-destination", &[], Value::No, "Remove each existing destination first"),
    Spec("sparse", &[], Value::Must("WHEN"), "Make holes: never, auto (where SOURCE has them) or always (for zeros)"),
    Spec("reflink", &[], Value::Maybe("WHEN", "always"), "Clone: always (or fail), auto (if possible) or never"),
    Spec("strip-trailing-slashes", &[], Value::No, "Take slashes off the end of each SOURCE"),
    Spec("suffix", &['S'], Value::Must("SUFFIX"), "Make backups, with this suffix instead of ~"),
    Spec("symbolic-link", &['s'], Value::No, "Make symbolic links instead of copies"),
    Spec("target-directory", &['t'], Value::Must("DIRECTORY"), "Copy all SOURCEs into DIRECTORY"),
    Spec("update", &['u'], Value::No, "Copy only what is newer than its destination or has none"),
    Spec("verbose", &['v'], Value::No, "Tell what is done"),
    Spec("context", &[], Value::Maybe("CTX", ""), "Accepted for cp's sake; needs SELinux, which is not supported"),
    Spec("", &['b'], Value::No, "Same as --backup"),
    Spec("", &['d'], Value::No, "Same as --no-dereference --preserve=links"),
    Spec("", &['p'], Value::No, "Same as --preserve"),
    Spec("", &['H'], Value::No, "Follow symbolic links named on the command line"),
    Spec("", &['Z'], Value::No, "Same as --context"),
];

const AFTER_HELP: &str = "\
Options and messages are those of GNU cp 9.1. By default a file is cloned where that is possible: by the daemon of a \
clonefs mount in an instant, by FICLONE on filesystems such as xfs and btrfs; it is copied where it is not. With \
--reflink=always a file that cannot be cloned is an error and is not copied.

Backups: none, off: never; simple, never: NAME~; numbered, t: NAME.~1~; existing, nil: numbered where there are \
numbered ones. VERSION_CONTROL and SIMPLE_BACKUP_SUFFIX in the environment set control and suffix.";

/// One option as it was given: its long name (or its letter) and its value, empty if it takes none.
pub struct Given {
    /// Long name, or the letter of an option that has none.
    pub name: &'static str,
    /// Its value.
    pub value: OsString,
}

/// The words of a call.
pub struct Words {
    /// Options in the order they were given.
    pub options: Vec<Given>,
    /// All other words.
    pub operands: Vec<OsString>,
}

/// Name under which an option is known here.
fn name(spec: &Spec) -> &'static str {
    match (spec.0, spec.1) {
        ("", ['b']) => "b",
        ("", ['d']) => "d",
        ("", ['p']) => "p",
        ("", ['H']) => "H",
        ("", ['Z']) => "Z",
        (long, _) => long,
    }
}

/// The command as clap knows it.
fn command() -> Command {
    let mut command = Command::new(PROGRAM)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Copy SOURCE to DEST, or several SOURCEs into DIRECTORY; clone instead of copying where possible")
        .override_usage(format!(
            "{PROGRAM} [OPTION]... [-T] SOURCE DEST\n       {PROGRAM} [OPTION]... SOURCE... DIRECTORY\n       \
             {PROGRAM} [OPTION]... -t DIRECTORY SOURCE..."
        ))
        .after_help(AFTER_HELP)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .infer_long_args(true)
        .arg(Arg::new("operands").value_parser(ValueParser::os_string()).num_args(0..).hide(true));
    for spec in &SPECS {
        let mut arg =
            Arg::new(name(spec)).value_parser(ValueParser::os_string()).action(ArgAction::Append).help(spec.3);
        if !spec.0.is_empty() {
            arg = arg.long(spec.0);
        }
        if spec.0 == "parents" {
            arg = arg.alias("path"); // its name before 1998, which cp still takes
        }
        if let [first, rest @ ..] = spec.1 {
            arg = arg.short(*first).visible_short_aliases(rest.iter().copied());
        }
        arg = match spec.2 {
            Value::No => arg.num_args(0).default_missing_value(""),
            Value::Maybe(word, missing) => {
                arg.num_args(0..=1).require_equals(true).value_name(word).default_missing_value(missing)
            }
            Value::Must(word) => arg.num_args(1).value_name(word).allow_hyphen_values(true),
        };
        command = command.arg(arg);
    }
    command
        .arg(Arg::new("help").long("help").action(ArgAction::Help).help("Print this help and exit"))
        .arg(Arg::new("version").long("version").action(ArgAction::Version).help("Print the version and exit"))
}

/// Reads the command line. `Ok(None)`: help or version was asked for and printed.
pub fn parse(program: OsString, words: &[OsString]) -> Done<Option<Words>> {
    match command().try_get_matches_from(std::iter::once(program).chain(words.iter().cloned())) {
        Ok(matches) => Ok(Some(in_order(&matches))),
        Err(error) if !error.use_stderr() => error.print().map(|()| None).map_err(|_| Failed::Here),
        Err(error) => {
            let long: Vec<&str> =
                SPECS.iter().map(|s| s.0).filter(|l| !l.is_empty()).chain(["help", "version"]).collect();
            Err(explain(&error, words, &long))
        }
    }
}

/// The options of a call, sorted by their place in it.
fn in_order(matches: &ArgMatches) -> Words {
    let mut found: Vec<(usize, Given)> = Vec::new();
    for spec in &SPECS {
        let name = name(spec);
        let places = matches.indices_of(name).into_iter().flatten();
        let values = matches.get_raw(name).into_iter().flatten();
        found.extend(places.zip(values).map(|(place, value)| (place, Given { name, value: value.to_owned() })));
    }
    found.sort_by_key(|(place, _)| *place);
    let operands = matches.get_raw("operands").into_iter().flatten().map(OsStr::to_owned).collect();
    Words { options: found.into_iter().map(|(_, given)| given).collect(), operands }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> String {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let Ok(Some(words)) = parse("x".into(), &words) else { panic!("{line} was refused") };
        let parts: Vec<String> =
            words.options.iter().map(|g| format!("{}={}", g.name, g.value.to_string_lossy())).collect();
        parts.join(" ")
    }

    #[test]
    fn the_table_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn options_come_in_the_order_they_were_given() {
        assert_eq!(
            options("-Pvf a -L b -iPn"),
            "no-dereference= verbose= force= dereference= interactive= no-dereference= no-clobber="
        );
        assert_eq!(
            options("--preserve=all --no-pres mode -p --pres"),
            "preserve=all no-preserve=mode p= preserve=mode,ownership,timestamps"
        );
        assert_eq!(
            options("-bS-x --suff=y -t -d --reflink --reflink=auto"),
            "b= suffix=-x suffix=y target-directory=-d reflink=always reflink=auto"
        );
        assert_eq!(options("a -- -v"), "");
    }
}
