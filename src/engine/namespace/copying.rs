//! Recognising a `cp` that could make a clone.
//!
//! cp and install of coreutils 9.1 copy a file by one copy_file_range, which is a clone, only if it has no holes by
//! `st_blocks`; they look at that right after they have opened it for reading. A copy that leaves the mount must not be
//! told so: it would lose its holes. Where a copy goes, only the command line says. So it is read as coreutils read it, and
//! whatever is not known here, or could mean something else, is a doubt: then the truth is told.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A program that looks at `st_blocks` before it copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// cp(1).
    Cp,
    /// install(1).
    Install,
}

/// What a command line copies.
#[derive(Debug, PartialEq, Eq)]
pub struct Copying<'a> {
    /// At least one.
    pub sources: Vec<&'a OsStr>,
    /// Where to.
    pub goal: Goal<'a>,
}

/// Where a command line copies to.
#[derive(Debug, PartialEq, Eq)]
pub enum Goal<'a> {
    /// Into this directory.
    Into(&'a OsStr),
    /// Into this, if it is a directory, else there is one source, and this is the name of its copy.
    To(&'a OsStr),
    /// This is the name of the copy of the only source.
    As(&'a OsStr),
}

/// The program that a file is, by its path.
pub fn program(executable: &Path) -> Option<Program> {
    let directory = executable.parent()?;
    let program = match executable.file_name()?.as_bytes() {
        b"cp" => Program::Cp,
        b"install" => Program::Install,
        _ => return None,
    };
    ["/bin", "/usr/bin"].iter().any(|known| directory == Path::new(known)).then_some(program)
}

/// Options of a program that change neither where a copy goes nor that it is one of all bytes.
struct Harmless {
    short: &'static [u8],
    /// Those that take a value.
    short_with_value: &'static [u8],
    long: &'static [&'static str],
    long_with_value: &'static [&'static str],
    /// Those that may have a value behind `=`.
    beginnings: &'static [&'static str],
}

const CP: Harmless = Harmless {
    short: b"adfiHLnPpRruvx",
    short_with_value: b"",
    long: &[
        "archive",
        "force",
        "interactive",
        "no-clobber",
        "dereference",
        "no-dereference",
        "preserve",
        "recursive",
        "remove-destination",
        "update",
        "verbose",
        "one-file-system",
        "reflink=auto",
        "sparse=auto",
    ],
    long_with_value: &[],
    beginnings: &["preserve=", "no-preserve="],
};

const INSTALL: Harmless = Harmless {
    short: b"pv",
    short_with_value: b"mog",
    long: &["preserve-timestamps", "verbose"],
    long_with_value: &["mode", "owner", "group"],
    beginnings: &["mode=", "owner=", "group="],
};

/// What a command line, words ended by NULs, copies; `None` in doubt.
pub fn parse(program: Program, line: &[u8]) -> Option<Copying<'_>> {
    let harmless = if program == Program::Cp { CP } else { INSTALL };
    let mut words = line.strip_suffix(b"\0")?.split(|byte| *byte == 0).skip(1);
    let (mut into, mut exactly, mut operands) = (None, false, Vec::new());
    let mut options = true;
    while let Some(word) = words.next() {
        if word.is_empty() {
            return None;
        }
        if !options || word[0] != b'-' || word == b"-" {
            operands.push(OsStr::from_bytes(word));
            continue;
        }
        if !operands.is_empty() {
            // An operand where POSIXLY_CORRECT is set.
            return None;
        }
        let directory = match word.strip_prefix(b"--") {
            Some(b"") => {
                options = false;
                continue;
            }
            Some(long) => read_long(&harmless, std::str::from_utf8(long).ok()?, &mut words)?,
            None => read_short(&harmless, &word[1..], &mut words)?,
        };
        match directory {
            Found::Nothing => {}
            Found::Exactly => exactly = true,
            Found::Directory(_) if into.is_some() => return None,
            Found::Directory(directory) => into = Some(OsStr::from_bytes(directory)),
        }
    }
    let goal = match into {
        Some(_) if exactly => return None,
        Some(directory) => Goal::Into(directory),
        None if exactly => Goal::As(operands.pop()?),
        None => Goal::To(operands.pop()?),
    };
    let one = !matches!(goal, Goal::As(_)) || operands.len() == 1;
    (one && !operands.is_empty()).then_some(Copying { sources: operands, goal })
}

/// What a word of options says of where a copy goes.
enum Found<'a> {
    Nothing,
    Exactly,
    Directory(&'a [u8]),
}

fn read_long<'a>(known: &Harmless, option: &'a str, rest: &mut impl Iterator<Item = &'a [u8]>) -> Option<Found<'a>> {
    if let Some(directory) = option.strip_prefix("target-directory=") {
        return (!directory.is_empty()).then_some(Found::Directory(directory.as_bytes()));
    }
    match option {
        "target-directory" => rest.next().filter(|word| !word.is_empty()).map(Found::Directory),
        "no-target-directory" => Some(Found::Exactly),
        _ if known.long_with_value.contains(&option) => rest.next().map(|_| Found::Nothing),
        _ if known.long.contains(&option) => Some(Found::Nothing),
        _ if known.beginnings.iter().any(|beginning| option.starts_with(beginning)) => Some(Found::Nothing),
        _ => None,
    }
}

fn read_short<'a>(known: &Harmless, word: &'a [u8], rest: &mut impl Iterator<Item = &'a [u8]>) -> Option<Found<'a>> {
    let mut found = Found::Nothing;
    for (at, letter) in word.iter().enumerate() {
        let value = &word[at + 1..];
        match letter {
            b't' if matches!(found, Found::Exactly) => return None,
            b't' if !value.is_empty() => return Some(Found::Directory(value)),
            b't' => return rest.next().filter(|word| !word.is_empty()).map(Found::Directory),
            b'T' => found = Found::Exactly,
            letter if known.short_with_value.contains(letter) => {
                if value.is_empty() {
                    rest.next()?;
                }
                return Some(found);
            }
            letter if known.short.contains(letter) => {}
            _ => return None,
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(command: &str) -> Option<String> {
        let line = format!("{}\0", command.replace(' ', "\0"));
        let program = program(&Path::new("/usr/bin").join(command.split(' ').next().unwrap()))?;
        let Copying { sources, goal } = parse(program, line.as_bytes())?;
        let sources: Vec<&str> = sources.iter().map(|word| word.to_str().unwrap()).collect();
        let (how, goal) = match goal {
            Goal::Into(goal) => ("into", goal),
            Goal::To(goal) => ("to", goal),
            Goal::As(goal) => ("as", goal),
        };
        Some(format!("{} {how} {}", sources.join(" "), goal.to_str().unwrap()))
    }

    #[test]
    fn what_a_command_line_copies_is_read_as_coreutils_read_it() {
        for (command, expected) in [
            ("cp a b", "a to b"),
            ("cp -a a b /d/", "a b to /d/"),
            ("cp -at /d a b", "a b into /d"),
            ("cp -at/d a", "a into /d"),
            ("cp -t d -- -a -", "-a - into d"),
            ("cp --target-directory=/d -p a", "a into /d"),
            ("cp --target-directory /d --sparse=auto --reflink=auto --preserve=mode a", "a into /d"),
            ("cp -vT a d", "a as d"),
            ("cp --no-target-directory a d", "a as d"),
            ("install -m 600 -o root -groot a b", "a to b"),
            ("install --mode=600 --owner root -pm600 a b", "a to b"),
            ("install -vt d a b", "a b into d"),
        ] {
            assert_eq!(read(command).as_deref(), Some(expected), "{command}");
        }
    }

    #[test]
    fn whatever_could_mean_something_else_is_a_doubt() {
        for command in [
            "cp",
            "cp a",
            "cp -t d",
            "cp -t",
            "cp a -t d",
            "cp a b -v",
            "cp a b --",
            "cp --target=/d a",
            "cp --target-directory= a",
            "cp --target-directory",
            "cp --sparse=never a b",
            "cp --sparse=always a b",
            "cp --reflink=never a b",
            "cp --reflink a b",
            "cp --parents a d",
            "cp -s a b",
            "cp -al a b",
            "cp -b a b",
            "cp -Sx a b",
            "cp -t d -t e a",
            "cp -T -t d a",
            "cp -Tt d a",
            "cp -T a b c",
            "cp -m 600 a b",
            "cp  a b",
            "install -d a b",
            "install -D a b",
            "install -s a b",
            "install -m",
            "install -a a b",
            "mv a b",
        ] {
            assert_eq!(read(command), None, "{command}");
        }
        // A line that was cut off.
        assert_eq!(parse(Program::Cp, b"cp\0a\0b"), None);
        assert_eq!(parse(Program::Cp, b""), None);
        assert_eq!(program(Path::new("/tmp/cp")), None);
        assert_eq!(program(Path::new("/usr/bin/cp (deleted)")), None);
        assert_eq!(program(Path::new("")), None);
    }
}
